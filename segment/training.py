"""One segmentation run: the labelled subset, the U-Net, its training and its scores."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from core.errors import UserError
from core.files import write_csv
from core.subjects import anonymised
from core.wording import count_of
from data.augment import Augmenter
from data.duplicates import check_duplicates, subjects_of_pool
from data.labelled_list import with_labelled_list
from data.leakage import check_leakage, record_splits, was_trained_on
from data.protocols import others_than_published, part_of_test
from data.readers.channels import has_numbered_channels
from data.readers.geometry import common_plane, slice_axis_to_save
from data.readers.images import read_shape
from data.reserved_split import keep_reserved_split
from data.samples.slices import AugmentedSlices
from data.samples.unlabelled import STRONG, Pool, WithUnlabelled, weak_view
from data.slices import Dataset, Slices, pooled_statistics, require_possible_sizes, with_splits
from data.sources import AcdcSource, FolderSource, chosen_channels, open_slices, save_requested_splits
from data.splits import digest_of_use, inner_splits, save_splits, unlabelled_pool
from data.tiles import say_large_slices
from encoders.card import read_lineage, say_channels, say_normalisation, unet_source
from encoders.weights import body_of, load_into_unet
from engine.devices import channels_last, make_fabric, show_messages
from engine.loop import Metrics
from engine.model_file import name_of_init, save_model
from engine.optimisers import warmup_cosine, warmup_periodic_cosine
from engine.run_folder import RunFolder
from engine.run_page import write_run_page
from engine.sampler import sampler_of
from engine.supervised import LossInParts, Task, fit, say_start
from segment.components import is_one_component
from segment.config import SegmentConfig
from segment.inference import padded_sizes
from segment.loss_of_sums import SampleSums, loss_of_sums
from segment.model import (
    ModelCard,
    UnlabelledSlices,
    build_segmenter,
    load_unet,
    require_segmenter,
    segmentation_loss,
)
from segment.pseudo_labels import COLUMNS, MOST_SLICES, PseudoLabels, Rules, looks
from segment.run_page import run_page
from segment.scoring import predict_split, score_split, split_scores
from segment.selection import labelled_rows

log = logging.getLogger("fewslice")


def run(cfg: SegmentConfig, fabric: Fabric | None = None, dataset: Dataset | None = None) -> dict[str, Any]:
    """Train on the labelled subset, score whole volumes, write `model.safetensors` and `result.json`.

    Args:
        cfg: all settings of the run.
        fabric: where to compute; None: made from the settings.
        dataset: the data set of `cfg.data`; None: opened here.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    main = fabric.global_rank == 0
    show_messages(main)
    # what is said and saved of the split is that of the whole; the inner one serves this run alone
    whole = with_labelled_list(dataset or _with_reserved_split(open_slices(cfg.data), cfg), cfg.labelled_list)
    dataset = with_splits(whole, inner_splits(whole)) if cfg.inner_split else whole
    positions = labelled_rows(cfg, dataset, fabric.device)
    # Missing labels are reported before training, not after it.
    _require_labels(dataset, ("val", "test") if cfg.test else ("val",))
    require_possible_sizes(dataset.table[dataset.table["labelled"]], cfg.spacing_mm)
    labelled = dataset.table.iloc[positions]
    say_large_slices(labelled, cfg.augmentation, cfg.image_size, cfg.spacing_mm)
    pool = _unlabelled(cfg, dataset, positions) if cfg.unlabelled else None
    warnings = [check_duplicates(whole, test=cfg.test, allow=cfg.allow_duplicates)]
    if cfg.label_order == "ssl4mis" and not cfg.inner_split:
        warnings.append(others_than_published(labelled["subject"].unique()))

    scored = dataset.table[dataset.table["labelled"] & dataset.table["split"].isin(["val", "test"])]
    size = (cfg.image_size, cfg.image_size)
    require_segmenter(cfg.encoder, cfg.norm, cfg.decoder, size, *padded_sizes(scored, cfg.spacing_mm))
    torch.manual_seed(cfg.seed)
    unet = build_segmenter(cfg.encoder, len(dataset.classes), cfg.norm, cfg.decoder, dataset.store.channels)
    lineage: list[dict[str, Any]] = []
    pretrained = None
    if cfg.init != "random":
        report = load_into_unet(unet, cfg.init, cfg.encoder)
        lineage = report.lineage
        # A decoder that came with the encoder is as easily destroyed, and was trained to read its features: one rate
        # for both. De Mooij et al. 2024 halve that of the whole U-Net.
        pretrained = body_of(unet) if report.card and report.card.part == "unet" else None
        each = cfg.normalisation == "image" and dataset.store.channels > 1
        say_normalisation(report.card, "channel" if each else cfg.normalisation)
        say_channels(lineage, chosen_channels(cfg.data))
        warnings.append(check_leakage(whole, lineage, cfg.init, allow=cfg.allow_leakage))
    card = _card(cfg, dataset, positions, pool, lineage, [warning for warning in warnings if warning])

    learned = np.empty(0) if pool is None else pool
    validated = dataset.positions("val", labelled=True)
    used = digest_of_use(dataset.store.key, positions, learned, validated, json.dumps(lineage))
    with RunFolder(cfg.run_folder, cfg, main=main) as run:
        fabric.barrier()
        run.note_data(used)  # before anything is written over a finished run
        if main:
            columns = ["subject", "group", "phase", "frame", "slice", "file"]
            rows = anonymised(labelled[columns]) if cfg.anonymous else labelled[columns]
            write_csv(run.path / "labelled_slices.csv", rows)
            save_splits(run.path / "splits.json", dataset.splits, anonymous=cfg.anonymous)
            save_requested_splits(cfg.data, whole.splits)
        say_start(cfg)
        subjects = labelled["subject"].nunique()
        log.info(
            f"{count_of(len(labelled), 'labelled slice')} of {count_of(subjects, 'subject')}, "
            f"{count_of(cfg.steps, 'optimiser step')} of {cfg.batch_size}"
        )
        if card.unlabelled:
            log.info(
                f"{count_of(card.unlabelled.slices, 'unlabelled slice')} of "
                f"{count_of(card.unlabelled.subjects, 'subject')}, {cfg.batch_size} "
                "more in each step: a moving average of the network (decay rate "
                f"{cfg.decay_of_average:g}) labels them, and is scored and kept"
            )
        began = time.perf_counter()
        speed, predictions = _fit(cfg, fabric, run, unet, pretrained, card, dataset, positions, pool)
        result = {
            "split": "val",
            "init": cfg.init,
            "encoder_lr_factor": cfg.factor_of_encoder_lr,
            "labelled_slices": len(labelled),
            "labelled_subjects": subjects,
            "steps": cfg.steps,
            "seed": cfg.seed,
            "subset_seed": cfg.seed_of_subset,
            "selection": cfg.selection,
            "synthetic": dataset.synthetic,
            "data_set": dataset.store.key,
            "warnings": card.warnings,
            "subjects": card.subjects,
        }
        if card.unlabelled:
            result |= {"unlabelled": card.unlabelled.model_dump()}
        if main:
            label_maps = _predict(cfg, fabric, run.path, dataset, predictions)
            result |= _score(cfg, run.path, dataset, label_maps)
        result |= {"seconds": time.perf_counter() - began, "images_per_second": speed}
        result = run.write_result(result)
        if cfg.figures:
            write_run_page(run, cfg, lambda: run_page(cfg, run.path, dataset, label_maps, result))
    fabric.barrier()
    return result


def split_as_trained(cfg: SegmentConfig) -> Dataset:
    """The data set of a run with the split that it was trained and validated on."""
    whole = with_labelled_list(_with_reserved_split(open_slices(cfg.data), cfg), cfg.labelled_list)
    return with_splits(whole, inner_splits(whole)) if cfg.inner_split else whole


def _with_reserved_split(dataset: Dataset, cfg: SegmentConfig) -> Dataset:
    """The data set with the split beside the initial weights, if these were trained on it."""
    same = was_trained_on(dataset, read_lineage(cfg.init), cfg.init)
    return keep_reserved_split(dataset, cfg.data, cfg.init, same_data=same)


def _unlabelled(cfg: SegmentConfig, dataset: Dataset, labelled: np.ndarray) -> np.ndarray:
    """Row positions of the unlabelled slices to learn from; a UserError if there are none."""
    pool = unlabelled_pool(dataset.table, labelled, cfg.unlabelled_pool)
    pool = pool[dataset.table["subject"].iloc[pool].isin(subjects_of_pool(dataset, ["train"])).to_numpy()]
    if not len(pool):
        what = {"all": "no other slice", "annotated": "no label map that is not used"}[cfg.unlabelled_pool]
        raise UserError(
            f"--unlabelled: the training subjects of {dataset.root} have {what} to learn from; "
            "add scans without labels, lower --labelled-fraction, or leave --unlabelled out"
        )
    require_possible_sizes(dataset.table.iloc[pool], cfg.spacing_mm)
    return pool


def _require_labels(dataset: Dataset, splits: tuple[str, ...]) -> None:
    if len(dataset.classes) < 2:
        raise UserError(
            f"{dataset.root} has no label maps with more than background; python -m pretrain needs none, segment does"
        )
    for split in splits:
        if not len(dataset.positions(split, labelled=True)):
            waiting = sorted({*dataset.table["subject"].iloc[dataset.positions(split)]})
            if not waiting and split == "test":
                raise UserError(f"--test: no subject of {dataset.root} is in the test split; leave it out")
            example = f", e.g. {waiting[0]} of the {len(waiting)} that have no labels yet" if waiting else ""
            raise UserError(
                f"{dataset.root} has no labelled volume in the {split} split to score; label a {split} subject{example}"
            )


def _fit(
    cfg: SegmentConfig,
    fabric: Fabric,
    run: RunFolder,
    unet: nn.Module,
    pretrained: nn.Module | None,
    card: ModelCard,
    dataset: Dataset,
    positions: np.ndarray,
    pool: np.ndarray | None,
) -> tuple[float, list[np.ndarray]]:
    """Train the U-Net in place, on the rows `positions` and without labels on those of `pool`, and write it.

    Returns:
        Training images per second, and the kept network's label maps of the validation split (none if its weights
        were saved before the run was resumed).
    """
    slices = Slices(
        store=dataset.store,
        positions=positions,
        normalisation=cfg.normalisation,
        statistics=card.statistics,
        spacing_mm=cfg.spacing_mm,
    )
    last: list[np.ndarray] = []
    kept: list[np.ndarray] = []

    def validate(network: nn.Module) -> Metrics:
        last[:] = predict_split(network, card, dataset, "val")
        return {f"validation_{name}": score for name, score in split_scores(last, dataset, "val").items()}

    def save(network: nn.Module) -> None:
        save_model(network, run.path, card)
        kept[:] = last  # scored at the end, so that they are not predicted twice

    samples = AugmentedSlices(slices, Augmenter(cfg.augmentation, cfg.image_size))
    teaching = None if pool is None else _teaching(cfg, fabric, samples, dataset, pool)
    warmup = round(cfg.warmup * cfg.steps)
    decay = {"cosine": warmup_cosine, "periodic": warmup_periodic_cosine}[cfg.schedule]
    task = Task(
        pretrained=pretrained,
        loss=segmentation_loss(cfg.loss, ignores=dataset.ignores),
        in_parts=LossInParts(SampleSums(), loss_of_sums(cfg.loss)),
        supervised=teaching[0] if teaching else None,
        samples=teaching[1] if teaching else samples,
        data=run.data,
        validate=validate,
        save=save,
        columns=["validation_dice", "validation_jaccard", *(COLUMNS if teaching else ())],
        score="validation_dice",
        select=cfg.select,
        rank=None if cfg.select == "last" else lambda metrics: (metrics["validation_dice"],),
        max_grad_norm=cfg.max_grad_norm,
        figures=cfg.figures,
    )
    speed, _ = fit(
        cfg,
        fabric,
        run,
        unet,
        task,
        # Every batch is full, so that all labelled fractions take the same number of steps of the same size.
        sampler=sampler_of(cfg, fabric, len(slices), cfg.batch_size, wrap=True),
        steps=cfg.steps,
        evaluate_every=cfg.evaluate_every,
        learning_rate=lambda step: cfg.lr * decay(step, cfg.steps, warmup),
    )
    return speed, kept


def _teaching(
    cfg: SegmentConfig, fabric: Fabric, labelled: AugmentedSlices, dataset: Dataset, positions: np.ndarray
) -> tuple[Callable[[nn.Module], PseudoLabels], WithUnlabelled]:
    """What pseudo-labels change in a training step: network and loss, made of the network, and the samples."""
    pool = Pool(
        replace(labelled.slices, positions=positions),
        weak=Augmenter(weak_view(cfg.augmentation), cfg.image_size),
        strong=Augmenter(STRONG, cfg.image_size),
        mixing=cfg.cutmix,
        has_labels=(dataset.table["label_file"] != "").to_numpy(bool)[positions],
    )
    rules = Rules(
        classes=len(dataset.classes),
        loss=loss_of_sums(cfg.loss),
        confidence=cfg.confidence,
        weight=cfg.unlabelled_weight,
        ramp=(round(cfg.unlabelled_ramp[0] * cfg.steps), round(cfg.unlabelled_ramp[1] * cfg.steps)),
        # resized crops are drawn without regard to labels
        looks=looks(cfg.steps) if cfg.augmentation.crop == "fixed" and cfg.augmentation.foreground else (),
        slices_per_look=min(MOST_SLICES, max(1, cfg.steps * cfg.batch_size // 10)),
        seed=cfg.seed,
    )
    return partial(PseudoLabels, pool=pool, rules=rules, fabric=fabric), WithUnlabelled(labelled, pool)


def _predict(
    cfg: SegmentConfig, fabric: Fabric, folder: Path, dataset: Dataset, validation: list[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Label maps of the kept network on the validation split, and with `--test` on the test split.

    `validation` holds those of the validation split, or none if they are yet to be predicted.
    """
    predictions = {"val": validation} if validation else {}
    if missing := [split for split in (("val", "test") if cfg.test else ("val",)) if split not in predictions]:
        unet, card = load_unet(folder)
        channels_last(unet.to(fabric.device))
        predictions |= {split: predict_split(unet, card, dataset, split) for split in missing}
    return predictions


def _score(
    cfg: SegmentConfig, folder: Path, dataset: Dataset, predictions: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    """The scores of the label maps of each split."""
    settings: dict[str, Any] = {"figures": cfg.figures, "anonymous": cfg.anonymous, "parity": cfg.parity == "ssl4mis"}
    result = score_split(predictions["val"], dataset, "val", folder, **settings)
    if cfg.test:
        both = isinstance(cfg.data, AcdcSource) and cfg.data.test_set == "both"
        settings |= {"part_of": part_of_test if both else None}
        result["test"] = score_split(predictions["test"], dataset, "test", folder / "test", **settings)
    return result


def _card(
    cfg: SegmentConfig,
    dataset: Dataset,
    positions: np.ndarray,
    pool: np.ndarray | None,
    lineage: list[dict[str, Any]],
    warnings: list[str],
) -> ModelCard:
    labelled = dataset.table.iloc[positions]
    unlabelled = None
    if pool is not None:
        subjects = dataset.table["subject"].iloc[pool].nunique()
        unlabelled = UnlabelledSlices(pool=cfg.unlabelled_pool, slices=len(pool), subjects=subjects)
    slicing = cfg.data.slice_axis if isinstance(cfg.data, FolderSource) else "auto"
    files = [dataset.root / file for file in labelled["file"].unique()]
    shapes = [read_shape(file, channels=True)._replace(slicing=slicing) for file in files]
    one_component = cfg.keep_largest_component == "auto" and is_one_component(dataset, positions)
    return ModelCard(
        encoder=cfg.encoder,
        norm=cfg.norm,
        decoder=cfg.decoder,
        classes=list(dataset.classes),
        normalisation=cfg.normalisation,
        statistics=pooled_statistics(dataset.store, positions),
        spacing_mm=cfg.spacing_mm,
        channels=getattr(cfg.data, "channels", None),
        numbered_channels=has_numbered_channels(dataset.table, getattr(cfg.data, "channels", None)),
        flip_tta=cfg.flip_tta,
        keep_largest_component=cfg.keep_largest_component == "yes" or one_component,
        slice_axis=slice_axis_to_save(shapes),
        plane=common_plane(shapes),
        dataset=f"{dataset.name} {dataset.store.key}",
        init=name_of_init(str(unet_source(cfg.init))),
        lineage=lineage,
        subjects=record_splits(dataset, positions, pool),
        unlabelled=unlabelled,
        warnings=warnings,
    )
