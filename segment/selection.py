"""`segment --selection`: which slices carry the labels that are trained on, at random or by the rules of `annotate`.

In a study all training slices have label maps; a rule must not look at them, but for the foreground-aware draw, which
stands for an annotator who leafs through the slices.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from core.errors import UserError
from core.tables import read_table
from data.protocols import LABEL_ORDERS
from data.slices import Dataset, Slices
from data.splits import carries_labels, labelled_subset
from encoders.weights import load_into_unet
from engine.config import read_config
from segment.choice import foreground_aware, sharpness_of, typical_slices, uncertain_slices, unit_length
from segment.config import SegmentConfig
from segment.inference import uncertainty_by_class
from segment.model import ModelCard, build_segmenter, load_unet

SIDE = 128
"""Side in pixels of the squares that slices are resized to for an encoder, as for the probe of pretraining."""
BATCH = 32
SLICES_PER_SUBJECT = 10
"""Slices of each subject that `first` chooses, as `python -m annotate first` unless told otherwise."""
KEYS = ["file", "frame", "slice"]
"""Columns of a table of slices that name one."""


def labelled_rows(cfg: SegmentConfig, dataset: Dataset, device: torch.device) -> np.ndarray:
    """The labelled training slices to train on.

    Returns:
        Row positions in `dataset.table`, ascending; as many for every rule.

    Raises:
        UserError: if there are no labels, fewer slices to choose from than are wanted, or the run to go on from is not
            finished or of other data.
    """
    order, seed = LABEL_ORDERS[cfg.label_order], cfg.seed_of_subset
    drawn = labelled_subset(dataset.table, cfg.labelled_fraction, cfg.label_unit, seed, order=order)
    if cfg.selection == "random":
        return drawn
    table = dataset.table.assign(row=np.arange(len(dataset.table)))
    table = table[(table["split"] == "train") & carries_labels(table)].sort_values(["subject", *KEYS[1:], "file"])
    if cfg.selection == "foreground":
        has_foreground = table["label_values"].map(lambda values: bool({*values.split()} - {"0"})).to_numpy(bool)
        chosen = table["row"].to_numpy()[foreground_aware(has_foreground, len(drawn), seed)]
    elif cfg.selection == "first":
        chosen = np.array(_first(cfg, dataset, table, len(drawn), device))
    else:
        chosen = _next(cfg, dataset, table, len(drawn), device)
    return np.sort(chosen)


def _first(cfg: SegmentConfig, dataset: Dataset, table: pd.DataFrame, count: int, device: torch.device) -> list[int]:
    """Rows of slices of typical subjects, spread over the first labelled volume of each, as `annotate first` does."""
    unet = build_segmenter(cfg.encoder, len(dataset.classes), cfg.norm, cfg.decoder, dataset.store.channels)
    load_into_unet(unet, cfg.init, cfg.encoder)
    encoder = nn.Sequential(_LastFeatures(unet.encoder), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device).eval()
    firsts = table.drop_duplicates("subject")[["subject", *KEYS[:2]]]
    rows = {
        str(subject): group["row"].to_numpy() for subject, group in table.merge(firsts).groupby("subject", sort=True)
    }
    if (most := sum(map(len, rows.values()))) < count:
        raise UserError(
            f"--selection first chooses from one volume of each training subject, {most} slices in all: ask for fewer "
            f"than {count} by --labelled-fraction"
        )
    features = {subject: embed(encoder, dataset, of_subject) for subject, of_subject in rows.items()}
    subjects = min(len(features), -(-count // SLICES_PER_SUBJECT))
    while len(chosen := typical_slices(features, subjects, count, cfg.seed_of_subset)) < count:
        subjects += 1  # volumes of few slices: of more subjects
    return [int(rows[subject][z]) for subject, z, _ in chosen]


def _next(cfg: SegmentConfig, dataset: Dataset, table: pd.DataFrame, count: int, device: torch.device) -> np.ndarray:
    """Rows of the slices that a run was trained on, and of those that its U-Net is most unsure of."""
    assert cfg.selection_run is not None  # checked with the settings
    finished_run(cfg.selection_run)
    before = pd.MultiIndex.from_frame(read_table(cfg.selection_run / "labelled_slices.csv", KEYS)[KEYS])
    known = pd.MultiIndex.from_frame(table[KEYS]).isin(before)
    if known.sum() < len(before):
        raise UserError(
            f"--selection-run {cfg.selection_run} was trained on slices that are not labelled or do not train in "
            f"{dataset.root}: pass a run on the same data and split"
        )
    rows, candidates = table["row"].to_numpy()[known], np.sort(table["row"].to_numpy()[~known])
    if not len(candidates):
        of_list = f" that --labelled-list {cfg.labelled_list} names" if cfg.labelled_list else ""
        raise UserError(
            f"--selection-run {cfg.selection_run} was trained on all {len(rows)} labelled training slices of "
            f"{dataset.root}{of_list}: none is left to choose; label more, or pass a run on fewer"
        )
    if len(rows) >= count:
        comparison = "more than the" if len(rows) > count else "as many as the"
        raise UserError(
            f"--selection-run {cfg.selection_run} was trained on {len(rows)} slices, {comparison} {count} that are "
            "wanted: raise --labelled-fraction"
        )
    unet, card = load_unet(cfg.selection_run)
    entropy = entropy_by_class(unet.to(device), card, dataset, candidates)
    # Every frame of a scan has label maps of its own here, so that each slice is a place to label.
    chosen = uncertain_slices(
        entropy, range(len(candidates)), count - len(rows), sharpness_of(*cfg.selection_round), cfg.seed_of_subset
    )
    return np.concatenate([rows, candidates[[k for k, _ in chosen]]])


def finished_run(folder: Path) -> SegmentConfig:
    """The settings of a run, if it is finished and its subjects are known; else a UserError."""
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} is no finished run of python -m segment: pass its folder")
    config = read_config(SegmentConfig, folder / "config.json")
    if config.anonymous:
        raise UserError(f"{folder} is anonymous, its subjects are not known: train without --anonymous")
    return config


class _LastFeatures(nn.Module):
    """The last feature map of a segmentation network's encoder."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) -> (N, features, H / 32, W / 32)."""
        maps = self.encoder(x)
        if isinstance(maps[0], list):  # of a transformer: maps, and tokens of the whole image
            maps = maps[0]
        last: torch.Tensor = maps[-1]
        return last


@torch.no_grad()
def embed(encoder: nn.Module, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Features of slices, each resized to `SIDE` x `SIDE`: (slices, features), each row of length 1.

    Args:
        encoder: (N, channels, H, W) -> (N, features), in evaluation mode.
        rows: of `dataset.table`.
    """
    slices = Slices(store=dataset.store, positions=rows)
    images = np.stack([slices.square(k, SIDE) for k in range(len(slices))])
    device = next(encoder.parameters()).device
    batches = torch.from_numpy(images).split(BATCH)
    return unit_length(torch.cat([encoder(batch.to(device)).float().cpu() for batch in batches]).numpy())


def entropy_by_class(unet: nn.Module, card: ModelCard, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """`segment.inference.uncertainty_by_class` of each slice: (slices, classes)."""
    spacings = dataset.table.iloc[rows][["row_mm", "column_mm"]].to_numpy(float)
    return np.stack(
        [
            uncertainty_by_class(unet, dataset.store.image(row), (row_mm, column_mm), card)
            for row, (row_mm, column_mm) in zip(rows, spacings, strict=True)
        ]
    )
