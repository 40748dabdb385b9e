"""One classifier run: the exams, the classifier, its training, its threshold and its scores."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn

from classify.config import ClassifyConfig
from classify.explain import explain_exams
from classify.model import Classifier, ModelCard, build_classifier, load_classifier
from classify.run_page import run_page
from classify.scoring import highest, probabilities, score_table, validate, write_scores
from classify.statistics import youden_threshold
from core.errors import UserError
from core.files import write_csv
from core.subjects import anonymised
from core.wording import count_of
from data.augment import Augmenter
from data.duplicates import check_duplicates
from data.leakage import check_leakage, record_splits
from data.readers.exams import ExamSet, require_both_classes
from data.samples.clips import LabelledClips
from data.sources import ExamsSource, open_exams
from data.splits import digest_of_use, inner_splits, labelled_exams, save_splits
from encoders.build import require_image_size
from encoders.card import say_normalisation
from encoders.weights import load_weights
from engine.devices import make_fabric, show_messages
from engine.loop import Metrics
from engine.model_file import name_of_init, save_model, write_card
from engine.optimisers import warmup_cosine
from engine.run_folder import RunFolder
from engine.run_page import write_run_page
from engine.sampler import sampler_of
from engine.supervised import Task, fit, say_start

log = logging.getLogger("fewslice")

COLUMNS = ["validation_auc", "validation_accuracy", "validation_loss"]


def run(cfg: ClassifyConfig, fabric: Fabric | None = None, exams: ExamSet | None = None) -> dict[str, Any]:
    """Train, choose weights and threshold on the inner validation, score; write `model.safetensors`, `result.json`.

    One plane only; for several see `classify.planes.run`.

    Args:
        cfg: all settings of the run.
        fabric: where to compute; None: made from the settings.
        exams: the exams of `cfg.data`; None: opened here.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file, before anything is written.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)
    return run_plane(cfg, fabric, *prepare(cfg, exams))


def prepare(cfg: ClassifyConfig, exams: ExamSet | None = None) -> tuple[ExamSet, Classifier, ModelCard]:
    """The exams, the classifier with its initial weights and its card: all mistakes are found before training."""
    exams = whole = exams or open_exams(cfg.data, labelled=True)
    if cfg.inner_split:
        # leaks and duplicates are those of the split that is reported on
        exams = replace(whole, table=whole.table.assign(split=whole.table["subject"].map(inner_splits(whole))))
    if cfg.test and not len(exams.positions("test")):
        raise UserError(f"{exams.root} has no test exams of {exams.task}; add them, or leave them out with --no-test")
    for split in ("train", "val", "test") if cfg.test else ("train", "val"):
        require_both_classes(exams, split)
    require_image_size(cfg.encoder, cfg.norm, cfg.image_size, cfg.clip_frames)
    torch.manual_seed(cfg.seed)
    classifier = build_classifier(
        cfg.encoder, cfg.norm, probe=cfg.linear_probe, checkpoint_activations=cfg.checkpoint_activations
    )
    lineage: list[dict[str, Any]] = []
    if cfg.init != "random":
        report = load_weights(classifier.encoder, cfg.init, name=cfg.encoder, in_channels=1)
        lineage = report.lineage
        say_normalisation(report.card, "exam")
    warnings = [
        check_duplicates(whole, test=cfg.test, allow=cfg.allow_duplicates),
        check_leakage(whole, lineage, cfg.init, allow=cfg.allow_leakage),
        _several_exams(exams, test=cfg.test),
    ]
    positions = labelled_exams(exams.table, cfg.labelled_fraction, cfg.seed_of_subset)
    card = ModelCard(
        encoder=cfg.encoder,
        norm=cfg.norm,
        image_size=cfg.image_size,
        clip_frames=cfg.clip_frames,
        test_clips=cfg.test_clips,
        test_seed=cfg.test_seed,
        task=exams.task,
        plane=exams.plane,
        slice_axis=cfg.data.slice_axis if isinstance(cfg.data, ExamsSource) else "auto",
        dataset=f"{exams.name} {exams.key}",
        init=name_of_init(cfg.init),
        lineage=lineage,
        subjects=record_splits(exams, positions),
        warnings=[warning for warning in warnings if warning],
    )
    return exams, classifier, card


def _several_exams(exams: ExamSet, *, test: bool) -> str | None:
    """A warning if several of the exams that are scored are of one subject."""
    scored = exams.table[exams.table["split"].isin(["val", "test"] if test else ["val"])]
    if (subjects := scored["subject"].nunique()) == len(scored):
        return None
    warning = (
        f"the intervals of this run are too narrow: they take its {len(scored)} scored exams, which are of {subjects} "
        "subjects, for independent; a study's draw subjects"
    )
    log.warning(warning)
    return warning


def run_plane(
    cfg: ClassifyConfig, fabric: Fabric, exams: ExamSet, classifier: Classifier, card: ModelCard
) -> dict[str, Any]:
    """Train and score one classifier with what `prepare` returned."""
    with RunFolder(cfg.run_folder, cfg, main=fabric.global_rank == 0) as run:
        fabric.barrier()
        positions = labelled_exams(exams.table, cfg.labelled_fraction, cfg.seed_of_subset)
        run.note_data(_digest_of_use(exams, positions, card))  # before anything is written over a finished run
        if run.main:
            save_splits(run.path / "splits.json", exams.splits, anonymous=cfg.anonymous)
            labelled = exams.table.iloc[positions][["exam", "subject", "label"]]
            write_csv(run.path / "labelled_exams.csv", anonymised(labelled) if cfg.anonymous else labelled)
        say_start(cfg)
        began = time.perf_counter()
        speed = _fit(cfg, fabric, run, exams, classifier, card, positions)
        # a finished run that scored the test split does so again, and says what was in doubt about it
        before = run.finished or {}
        result: dict[str, Any] = {
            "task": exams.task,
            "plane": exams.plane,
            "encoder": cfg.encoder,
            "init": cfg.init,
            "encoder_lr_factor": cfg.factor_of_encoder_lr,
            "linear_probe": cfg.linear_probe,
            "epochs": cfg.epochs if cfg.steps is None else None,
            "steps": cfg.steps,
            "seed": cfg.seed,
            "subset_seed": cfg.seed_of_subset,
            "synthetic": exams.synthetic,
            "data_set": exams.key,
            "warnings": [*dict.fromkeys([*before.get("warnings", []), *card.warnings])],
            "subjects": card.subjects,
            "train": {"exams": len(positions), "positive": int(exams.labels[positions].sum())},
        }
        if run.main:
            result |= _score(cfg, fabric, run.path, exams, test=cfg.test or "test" in before)
        result |= {"seconds": time.perf_counter() - began, "exams_per_second": speed}
        result = run.write_result(result)
        write_run_page(run, cfg, lambda: run_page(cfg, run.path, result))
    fabric.barrier()
    return result


def _digest_of_use(exams: ExamSet, positions: np.ndarray, card: ModelCard) -> str:
    """Digest of what a run learns from: its exams at `positions` and those it validates on, with their labels."""
    validation = exams.positions("val")
    labels = exams.labels[positions], exams.labels[validation]
    return digest_of_use(exams.key, positions, validation, *labels, json.dumps(card.lineage))


def _fit(
    cfg: ClassifyConfig,
    fabric: Fabric,
    run: RunFolder,
    exams: ExamSet,
    classifier: Classifier,
    card: ModelCard,
    positions: np.ndarray,
) -> float:
    """Train the classifier on the exams at `positions` and write the selected weights; returns exams per second."""
    labelled, validation = len(positions), exams.positions("val")
    if cfg.oversample:
        positions = oversampled(positions, exams.labels[positions], cfg.seed)
    sampler = sampler_of(cfg, fabric, len(positions), cfg.batch_size, wrap=cfg.steps is not None)
    steps = cfg.steps or cfg.epochs * sampler.steps_per_epoch
    epoch = max(1, steps // cfg.epochs)
    log.info(
        f"{labelled} training exams, {len(positions)} with the rarer class repeated; "
        f"{count_of(steps, 'optimiser step')} of {cfg.batch_size} ({sampler.steps_per_epoch} per epoch)"
    )
    if cfg.norm == "batch" and sampler.micro_batch_size == 1 and not cfg.linear_probe:
        log.info("batch norm sees one exam at a time; --norm frozen keeps a pretrained encoder's statistics")
    task = Task(
        loss=nn.BCEWithLogitsLoss(),
        samples=LabelledClips(exams, positions, Augmenter(cfg.augmentation, cfg.image_size), cfg.clip_frames),
        data=run.data,
        validate=lambda network: validate(network, exams, validation, card, cfg.workers),
        save=lambda network: save_model(network, run.path, card),
        columns=COLUMNS,
        score="validation_auc",
        select=cfg.select,
        rank=selection_rule(cfg.select),
    )
    speed, _ = fit(
        cfg,
        fabric,
        run,
        classifier,
        task,
        sampler=sampler,
        steps=steps,
        evaluate_every=cfg.evaluate_every or epoch,
        learning_rate=lambda step: cfg.lr * decay(cfg.schedule)(step, steps, epoch),
    )
    return speed


def selection_rule(select: str) -> Callable[[Metrics], tuple[float, ...]] | None:
    """The rank of weights by their validation metrics, see `engine.supervised.Task.rank`; None keeps the last ones."""
    if select == "last":
        return None
    if select == "loss":
        return lambda metrics: (-metrics["validation_loss"],)
    # With few exams many AUCs are equal: of equal ones the lower loss wins.
    return lambda metrics: (metrics[f"validation_{select}"], -metrics["validation_loss"])


def oversampled(positions: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions in which exams of the rarer class repeat, equally often or once more, until both classes are equal."""
    counts = np.bincount(labels, minlength=2)
    rarer = positions[labels == counts.argmin()]
    whole, rest = divmod(int(counts.max() - counts.min()), len(rarer))
    drawn = np.random.default_rng(seed).choice(rarer, rest, replace=False)
    return np.concatenate([positions, np.tile(rarer, whole), drawn])


def decay(schedule: str) -> Callable[[int, int, int], float]:
    """The factor of the learning rate as a function of optimiser step (0-based), steps, and steps per epoch."""
    return {
        "milestones": lambda step, steps, epoch: 0.1 ** ((step >= 0.6 * steps) + (step >= 0.8 * steps)),
        "exponential": lambda step, steps, epoch: 0.98 ** (step // epoch),
        "cosine": lambda step, steps, epoch: warmup_cosine(step, steps, min(epoch, steps // 10)),
    }[schedule]


def _score(cfg: ClassifyConfig, fabric: Fabric, folder: Path, exams: ExamSet, *, test: bool) -> dict[str, Any]:
    """Choose the threshold for the kept weights, score the inner validation and the test exams, explain some."""
    classifier, card = load_classifier(folder)
    classifier.to(fabric.device)
    tables = []
    for split in ("val", "test") if test else ("val",):
        positions = exams.positions(split)
        scores = probabilities(classifier, exams, positions, card, card.test_clips, cfg.workers)
        tables.append(score_table(exams, positions, scores))
    threshold = choose_threshold(cfg, tables[0])
    card = card.model_copy(update={"threshold": threshold["value"]})
    write_card(folder / "model.json", card)
    table = pd.concat(tables)
    scores_by_split = write_scores(anonymised(table) if cfg.anonymous else table, card.threshold, folder)
    if cfg.explain:
        names = highest(table, cfg.explain)
        explain_exams(classifier, card, exams, names, folder / "explain", anonymous=cfg.anonymous)
    return {
        "kept": json.loads((folder / "kept.json").read_text()),
        "threshold": threshold,
        "test_clips": cfg.test_clips,
        **scores_by_split,
    }


def choose_threshold(cfg: ClassifyConfig, validation: pd.DataFrame) -> dict[str, Any]:
    """The probability from which an exam is called positive (value), and how it was chosen (source)."""
    if cfg.threshold == "fixed":
        return {"value": 0.5, "source": "fixed"}
    labels = validation["label"].to_numpy()
    source = f"Youden's index on the inner validation ({count_of(len(labels), 'exam')}, {labels.sum()} positive)"
    return {"value": youden_threshold(labels, validation["probability"].to_numpy()), "source": source}
