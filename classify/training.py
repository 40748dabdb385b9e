"""One classifier run: the exams, the classifier, its training, its threshold and its scores; or one per plane."""

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
from sklearn.linear_model import LogisticRegression
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from classify.config import ClassifyConfig
from classify.evaluation import highest, probabilities, score_table, validate, write_scores
from classify.explain import explain_exams
from classify.figures import learning_curve
from classify.model import (
    Classifier,
    Combination,
    ModelCard,
    build_classifier,
    load_classifier,
    log_odds,
    save_classifier,
)
from classify.statistics import youden_threshold
from data.clips import LabelledClips
from data.errors import UserError
from data.exams import ExamSet, load_exams, require_both_classes
from data.splits import save_splits
from data.subsets import labelled_exams
from data.views import Views
from encoders.video import VIDEO_ENCODERS
from encoders.weights import load_weights
from engine.compiling import compile_method
from engine.config import plain
from engine.devices import make_fabric, scales_gradients, show_messages
from engine.loop import Metrics, Training, train
from engine.optimisers import adamw, warmup_cosine
from engine.order import Order
from engine.run import RunFolder, write_json

log = logging.getLogger("fewslice")


def run(cfg: ClassifyConfig, fabric: Fabric | None = None, exams: ExamSet | None = None) -> dict[str, Any]:
    """Train, choose weights and threshold on the inner validation, score; write `model.safetensors`, `result.json`.

    Several planes give a run each, in a folder of its name, and their combination above.

    Args:
        cfg: all that the run is told.
        fabric: where to compute, when the caller has one.
        exams: those of `load_run_exams(cfg)`, when the caller has them open already.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file, before anything is written.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)
    if not cfg.planes:
        return _run_plane(cfg, fabric, *_prepare(cfg, exams))
    for plane in cfg.planes:
        _prepare(replace(cfg, plane=plane))
    with _open(cfg, fabric) as run:
        result = _run_planes(cfg, fabric, run)
        run.write_result(result)
    fabric.barrier()
    return result


def load_run_exams(cfg: ClassifyConfig) -> ExamSet:
    """The exams that a run's configuration names."""
    return load_exams(
        cfg.dataset,
        cfg.data_root,
        task=cfg.task,
        plane=cfg.plane,
        labels=cfg.labels,
        split_seed=cfg.split_seed,
        subject_pattern=cfg.subject_pattern,
    )


def _prepare(cfg: ClassifyConfig, exams: ExamSet | None = None) -> tuple[ExamSet, Classifier, ModelCard]:
    """All that a mistake can be found in: the exams, and the classifier with its first weights."""
    exams = exams or load_run_exams(cfg)
    if cfg.test and not len(exams.positions("test")):
        raise UserError(f"{exams.root} has no test exams of {exams.task}; add them, or leave them out with --no-test")
    for split in ("train", "val", "test") if cfg.test else ("train", "val"):
        require_both_classes(exams, split)
    torch.manual_seed(cfg.seed)
    classifier = build_classifier(
        cfg.encoder, cfg.clip, cfg.norm, probe=cfg.linear_probe, checkpoint_activations=cfg.checkpoint_activations
    )
    lineage: list[dict[str, Any]] = []
    if cfg.init != "random":
        lineage = load_weights(classifier.encoder, cfg.init, name=cfg.encoder, in_channels=1).lineage
    card = ModelCard(
        encoder=cfg.encoder,
        clip=cfg.clip,
        norm=cfg.norm,
        image_size=cfg.image_size,
        clip_frames=cfg.clip_frames,
        test_clips=cfg.test_clips,
        test_seed=cfg.test_seed,
        task=exams.task,
        plane=exams.plane,
        dataset=f"{exams.name} {exams.key}",
        init=cfg.init,
        lineage=lineage,
    )
    return exams, classifier, card


def _open(cfg: ClassifyConfig, fabric: Fabric) -> RunFolder:
    run = RunFolder(
        cfg.run_folder, plain(cfg), resume=cfg.resume, overwrite=cfg.overwrite, main=fabric.global_rank == 0
    )
    fabric.barrier()
    return run


def _run_plane(
    cfg: ClassifyConfig, fabric: Fabric, exams: ExamSet, classifier: Classifier, card: ModelCard
) -> dict[str, Any]:
    """One classifier of one plane."""
    with _open(cfg, fabric) as run:
        if run.main:
            save_splits(run.path / "splits.json", exams.splits)
        if cfg.init == "random":
            log.info("encoder: random weights; pass a pretrained one with --init FILE (python -m pretrain makes one)")
        began = time.perf_counter()
        subset_seed = cfg.seed if cfg.subset_seed is None else cfg.subset_seed
        positions = labelled_exams(exams.table, cfg.labelled_fraction, subset_seed)
        if run.main:
            exams.table.iloc[positions][["exam", "subject", "label"]].to_csv(
                run.path / "labelled_exams.csv", index=False
            )
        speed = _fit(cfg, fabric, run, exams, classifier, card, positions)
        result: dict[str, Any] = {
            "task": exams.task,
            "plane": exams.plane,
            "encoder": cfg.encoder,
            "init": cfg.init,
            "linear_probe": cfg.linear_probe,
            "epochs": cfg.epochs,
            "seed": cfg.seed,
            "subset_seed": subset_seed,
            "synthetic": exams.synthetic,
            "train": {"exams": len(positions), "positive": int(exams.labels[positions].sum())},
        }
        if run.main:
            result |= _score(cfg, fabric, run.path, exams)
        result |= {"seconds": time.perf_counter() - began, "exams_per_second": speed}
        run.write_result(result)
    fabric.barrier()
    return result


def _fit(
    cfg: ClassifyConfig,
    fabric: Fabric,
    run: RunFolder,
    exams: ExamSet,
    classifier: Classifier,
    card: ModelCard,
    positions: np.ndarray,
) -> float:
    """Train the classifier on the exams at `positions`, write its kept weights; returns training exams per second."""
    labelled, validation = len(positions), exams.positions("val")
    if cfg.oversample:
        positions = oversampled(positions, exams.labels[positions], cfg.seed)
    share = -(-cfg.batch_size // fabric.world_size)
    order = Order(
        count=len(positions),
        batch=cfg.batch_size,
        micro=min(cfg.micro_batch_size or share, share),
        seed=cfg.seed,
        wrap=cfg.steps is not None,
        device=fabric.global_rank,
        devices=fabric.world_size,
    )
    if cfg.encoder not in VIDEO_ENCODERS:
        classifier = classifier.to(memory_format=torch.channels_last)  # in three dimensions it does not pay
    network: nn.Module = Supervised(classifier)
    if fabric.world_size > 1 and cfg.norm == "batch" and fabric.device.type == "cuda":
        network = convert_sync_batchnorm(network)
    trained = [p for p in classifier.parameters() if p.requires_grad]
    adam = adamw(trained, lr=cfg.lr, weight_decay=cfg.weight_decay, scaled=scales_gradients(fabric))
    steps = cfg.steps or cfg.epochs * order.steps_per_epoch
    wanted = "no" if cfg.checkpoint_activations else cfg.compile  # the compiler does not take their recomputation
    compile_method(network, "logits", wanted, fabric, micro_batches=steps * order.micro_steps(0))
    model, optimiser = fabric.setup(network, adam)
    epoch = max(1, steps // cfg.epochs)
    kept = _Kept(run.path / "kept.json", cfg.select)
    log.info(
        f"{labelled} training exams, {len(positions)} with the rarer class repeated; "
        f"{steps} optimiser steps of {order.batch} ({order.steps_per_epoch} per epoch)"
    )
    if cfg.norm == "batch" and order.micro == 1 and not cfg.linear_probe:
        log.info("batch norm sees one exam at a time; --norm frozen keeps a pretrained encoder's statistics")

    def observe(step: int, last: bool) -> Metrics:
        if step % (cfg.evaluate_every or epoch) and not last:
            return {}
        metrics = dict.fromkeys(COLUMNS, 0.0)
        if run.main:
            metrics = validate(classifier, exams, validation, card, cfg.workers)
            if kept.beaten_by(metrics, last):
                save_classifier(classifier, run.path, card)
                kept.note(metrics, step)
        return metrics

    speed = train(
        Training(
            fabric=fabric,
            run=run,
            model=model,
            optimiser=optimiser,
            order=order,
            data=exams.key,
            samples=LabelledClips(exams, positions, Views(cfg.views, cfg.image_size), cfg.clip_frames),
            steps=steps,
            learning_rate=lambda step: cfg.lr * decay(cfg.schedule)(step, steps, epoch),
            observe=observe,
            columns=COLUMNS,
            workers=cfg.workers,
            checkpoint_every=cfg.checkpoint_every,
            log_every=cfg.log_every,
        ),
        resume=cfg.resume,
    )
    if run.main:
        learning_curve(pd.read_csv(run.path / "metrics.csv"), run.path / "learning_curve.png")
    return speed


COLUMNS = ["validation_auc", "validation_accuracy", "validation_loss"]


class Supervised(nn.Module):
    """A classifier and its loss, so that one call is the whole forward of a training step."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean binary cross-entropy of clips (N, 1, T, H, W) with labels (N,)."""
        clips, labels = batch
        return binary_cross_entropy_with_logits(self.logits(clips).float(), labels)

    def logits(self, clips: Tensor) -> Tensor:
        """Of a training step: (N, 1, T, H, W) -> (N,)."""
        return self.classifier(clips)


def oversampled(positions: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions with exams of the rarer class repeated at random until both classes are equally many.

    Each is repeated equally often, give or take one; the order of training shuffles them.
    """
    counts = np.bincount(labels, minlength=2)
    rarer = positions[labels == counts.argmin()]
    whole, rest = divmod(int(counts.max() - counts.min()), len(rarer))
    drawn = np.random.default_rng(seed).choice(rarer, rest, replace=False)
    return np.concatenate([positions, np.tile(rarer, whole), drawn])


def decay(schedule: str) -> Callable[[int, int, int], float]:
    """The factor on the learning rate as a function of optimiser step (0-based), steps, and steps per epoch."""
    return {
        "milestones": lambda step, steps, epoch: 0.1 ** ((step >= 0.6 * steps) + (step >= 0.8 * steps)),
        "exponential": lambda step, steps, epoch: 0.98 ** (step // epoch),
        "cosine": lambda step, steps, epoch: warmup_cosine(step, steps, min(epoch, steps // 10)),
    }[schedule]


class _Kept:
    """The validation metrics of the weights that were kept, on disk so that a resumed run knows them."""

    def __init__(self, path: Path, select: str) -> None:
        self.path, self.select = path, select

    def beaten_by(self, metrics: Metrics, last: bool) -> bool:
        if self.select == "last":
            return last
        return not self.path.exists() or self._rank(metrics) > self._rank(json.loads(self.path.read_text()))

    def note(self, metrics: Metrics, step: int) -> None:
        write_json(self.path, {"step": step, "selected_by": self.select} | metrics)

    def _rank(self, metrics: Metrics) -> tuple[float, float]:
        loss = -metrics["validation_loss"]  # few exams give many equal AUCs
        return (loss if self.select == "loss" else metrics[f"validation_{self.select}"]), loss


def _score(cfg: ClassifyConfig, fabric: Fabric, folder: Path, exams: ExamSet) -> dict[str, Any]:
    """Choose the threshold of the kept weights, score the inner validation and the test exams, explain some."""
    classifier, card = load_classifier(folder)
    classifier.to(fabric.device)
    tables = []
    for split in ("val", "test") if cfg.test else ("val",):
        positions = exams.positions(split)
        scores = probabilities(classifier, exams, positions, card, card.test_clips, cfg.workers)
        tables.append(score_table(exams, positions, scores))
    threshold = _threshold(cfg, tables[0])
    card = card.model_copy(update={"threshold": threshold["value"]})
    write_json(folder / "model.json", card.model_dump())
    table = pd.concat(tables)
    figures = write_scores(table, card.threshold, folder)
    if cfg.explain:
        explain_exams(classifier, card, exams, highest(table, cfg.explain), folder / "explain")
    return {
        "kept": json.loads((folder / "kept.json").read_text()),
        "threshold": threshold,
        "test_clips": cfg.test_clips,
        **figures,
    }


def _threshold(cfg: ClassifyConfig, validation: pd.DataFrame) -> dict[str, Any]:
    if cfg.threshold == "fixed":
        return {"value": 0.5, "source": "fixed"}
    labels = validation["label"].to_numpy()
    source = f"Youden's index on the inner validation ({len(labels)} exams, {labels.sum()} positive)"
    return {"value": youden_threshold(labels, validation["probability"].to_numpy()), "source": source}


def _run_planes(cfg: ClassifyConfig, fabric: Fabric, run: RunFolder) -> dict[str, Any]:
    """A run per plane, then logistic regression on the log-odds of their probabilities.

    Source: Bien et al. 2018, MRNet, who combine three planes so.
    """
    began = time.perf_counter()
    results = {}
    for plane in cfg.planes:
        log.info(f"plane {plane}")
        own = replace(cfg, plane=plane, planes=(), out=run.path / plane, overwrite=False)
        results[plane] = _run_plane(own, fabric, *_prepare(own))
    first = results[cfg.planes[0]]
    result = {key: first[key] for key in ("task", "encoder", "init", "linear_probe", "epochs", "seed", "synthetic")}
    result |= {"planes": list(cfg.planes), "train": first["train"]}
    if run.main:
        table, combination, threshold = _combine(cfg, run.path)
        write_json(run.path / "model.json", combination.model_dump())
        result |= {"threshold": threshold, "test_clips": cfg.test_clips}
        result |= {"weights": dict(zip(combination.planes, combination.weights, strict=True))}
        result |= write_scores(table, combination.threshold, run.path)
        result |= {
            "by_plane": {plane: {k: own[k] for k in ("val", "test") if k in own} for plane, own in results.items()}
        }
    return result | {"seconds": time.perf_counter() - began}


def _combine(cfg: ClassifyConfig, folder: Path) -> tuple[pd.DataFrame, Combination, dict[str, Any]]:
    """Fit on the inner validation, apply to all exams that every plane has."""
    tables = [pd.read_csv(folder / plane / "per_exam.csv", dtype={"exam": str, "subject": str}) for plane in cfg.planes]
    common = set.intersection(*(set(table["exam"]) for table in tables))
    if missing := len({exam for table in tables for exam in table["exam"]} - common):
        log.info(f"{missing} exams lack a plane and are left out of the combination")
    tables = [table[table["exam"].isin(common)].sort_values("exam", ignore_index=True) for table in tables]
    table = tables[0][["exam", "subject", "split", "label"]]
    validation = (table["split"] == "val").to_numpy()
    if table.loc[validation, "label"].nunique() < 2:
        raise UserError("the exams of the inner validation that have every plane are not of both classes; drop a plane")

    def features(column: str) -> np.ndarray:
        return np.stack([own[column].map(log_odds) for own in tables], axis=1)

    labels = table["label"].to_numpy()
    regression = LogisticRegression().fit(features("probability")[validation], labels[validation])
    table = table.assign(
        **{column: regression.predict_proba(features(column))[:, 1] for column in ("probability", "single_draw")}
    )
    threshold = _threshold(cfg, table[validation])
    combination = Combination(
        planes=list(cfg.planes),
        weights=regression.coef_[0].tolist(),
        intercept=float(regression.intercept_[0]),
        threshold=threshold["value"],
    )
    return table, combination, threshold
