"""Slices of a data set: indexed, split by subject, packed, and preprocessed as a network sees them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pandas as pd

from core.errors import UserError
from data.preprocessing import Part, Statistics, preprocess, resample, resampled_size, resize
from data.readers.acdc import ACDC_CLASSES, index_acdc
from data.readers.channels import Channels
from data.readers.folder import description_of, index_folder
from data.readers.images import Problems
from data.readers.label_maps import ReadingOptions, with_ignore_label
from data.readers.roles import split_of_folders
from data.splits import SplitTable, carries_labels, refuse_overlap
from data.store import SliceStore, open_store, statistics_columns

WHOLE: Part = (slice(None), slice(None))
PartOf = Callable[[tuple[int, ...]], Part]
"""From the (rows, columns) of a slice to a part of it."""
Normalisation = Literal["image", "dataset"]
"""z-score a slice with its own mean and standard deviation, or with those of the training slices; of several channels,
each by itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(SplitTable):
    """Slices, their splits and their classes. ``table`` is that of ``store``, one row per slice.

    ``classes`` are names, background first; a label map's value is a position in them. Just ("background",)
    when nothing is labelled.
    """

    store: SliceStore
    classes: tuple[str, ...]
    ignores: bool = False
    """Whether label maps may hold ``label_maps.IGNORED``."""

    def positions(self, split: str, labelled: bool | None = None) -> np.ndarray:
        """Row positions of a split, ascending; ``labelled`` keeps slices with (True) or without labels."""
        rows = super().positions(split)
        return rows if labelled is None else rows[carries_labels(self.table).to_numpy()[rows] == labelled]

    @property
    def digest(self) -> str:
        """Digest of the files' contents."""
        return self.store.key

    @property
    def labelled_subjects(self) -> set[str]:
        """The subjects that have label maps, of some images at least."""
        return {*self.table.loc[self.table["labelled"], "subject"]}

    def images(self) -> pd.DataFrame:
        """subject, split, file and digest, a row for each volume and frame."""
        return self.table.drop_duplicates(["file", "frame"])[["subject", "split", "file", "digest"]]


def with_splits(dataset: Dataset, splits: Mapping[str, str]) -> Dataset:
    """The data set with another split by subject; subjects it leaves out are for training, or a folder says test."""
    split = dataset.table["subject"].map(splits)
    others = dataset.table.loc[split.isna(), "file"]
    split = split.fillna(others.map(lambda file: "test" if split_of_folders(file) == "test" else "train"))
    table = dataset.table.assign(split=split)
    return replace(dataset, table=table, store=SliceStore(table, dataset.store.file))


def load_dataset(
    dataset: Literal["acdc", "folder"],
    root: Path,
    *,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    channels: Channels = None,
    labelled: bool = True,
    options: ReadingOptions | None = None,
) -> Dataset:
    """Index a data set, check its splits and labels, and open its slice store (packed on first use).

    Args:
        dataset: "acdc", or "folder" for any other layout, see ``data.readers.folder``.
        subject_pattern: regular expression that finds the subject in a file's path ("folder" only).
        splits_file: JSON of subjects per split ("folder" only; ACDC's split is fixed).
        channels: the channel or channels to use ("folder" only), see ``data.readers.folder``.
        labelled: whether the label maps are to be trained on; False to pretrain.
        options: how files are read ("folder" only); the label to ignore of a ``dataset.json`` is added.

    Raises:
        UserError: for anything wrong with the data or the choices, naming file and value.
    """
    root = Path(root).expanduser()
    options = options or ReadingOptions()
    table, classes = index_dataset(
        dataset,
        root,
        subject_pattern,
        splits_file,
        channels=channels,
        labelled=labelled,
        options=options,
        one_plane=True,
    )
    refuse_overlap(table)
    if dataset == "folder":
        options = with_ignore_label(options, description_of(table, root))
    store = open_store(table, root, options)
    classes = check_labels(store.table, classes)
    ignores = options.ignore_label is not None
    return Dataset(name=dataset, root=root, table=store.table, store=store, classes=classes, ignores=ignores)


def index_dataset(
    dataset: str,
    root: Path,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    problems: Problems = None,
    *,
    channels: Channels = None,
    labelled: bool = True,
    options: ReadingOptions | None = None,
    one_plane: bool = False,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Index table and classes of a data set, () if the label maps determine them; see ``load_dataset``."""
    if dataset == "folder":
        return index_folder(
            root,
            subject_pattern,
            splits_file,
            problems,
            channels=channels,
            labelled=labelled,
            slice_axis=options.slice_axis if options else "auto",
            one_plane=one_plane,
        )
    if dataset != "acdc":
        raise UserError(f"data set {dataset!r} is unknown: choose acdc or folder")
    if (subject_pattern, splits_file, channels) != (None, None, None):
        raise UserError("--subject-pattern, --splits-file and --channels go with --dataset folder: ACDC's are fixed")
    if options not in (None, ReadingOptions()):
        raise UserError("--slice-axis, --ignore-label and --mask-threshold go with --dataset folder")
    return index_acdc(root, problems), ACDC_CLASSES


def check_labels(table: pd.DataFrame, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Check a store's label values against the classes, or without classes number them ("background", "1", ...).

    Raises:
        UserError: if a value lies outside the classes (file and values are named), or the values leave a gap.
    """
    maps = table.loc[table["labelled"], ["label_file", "label_values"]].drop_duplicates()
    values = {int(value) for line in maps["label_values"].unique() for value in line.split()} | {0}
    if not classes:
        if values != set(range(len(values))):
            raise UserError(
                f"the label maps hold the values {sorted(values)}, which leave a gap: renumber them 0, 1, 2, ... "
                'or name every class in a dataset.json, {"labels": {"background": 0, "name": 1}}'
            )
        return ("background", *map(str, range(1, len(values))))
    if wrong := sorted(value for value in values if value >= len(classes)):
        lines = maps["label_values"].str.split().map(lambda line: bool({*map(int, line)} & {*wrong}))
        file = maps.loc[lines, "label_file"].iloc[0]
        raise UserError(
            f"{file} (and possibly others) holds label values among {wrong}: "
            f"the classes are 0..{len(classes) - 1} ({', '.join(classes)})"
        )
    return classes


def whole(shape: tuple[int, ...]) -> Part:
    """All of a slice."""
    return WHOLE


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices of a store, preprocessed for a network; slice k is row `positions[k]` of the store's table."""

    store: SliceStore
    positions: np.ndarray
    normalisation: Normalisation = "image"
    statistics: Statistics = (0.0, 1.0)
    """Those of the training slices; used when `normalisation` is "dataset"."""
    spacing_mm: float | None = None
    """Resample to square pixels of this size; None keeps the file's own pixels."""

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def _statistics_columns(self) -> list[tuple[str, str]]:
        return statistics_columns(self.store.table)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        names = (*chain.from_iterable(self._statistics_columns), "rows", "columns", "row_mm", "column_mm")
        return {name: self.store.table[name].to_numpy()[self.positions] for name in names}

    def spacing(self, k: int) -> tuple[float, float]:
        """(row_mm, column_mm) of slice k in its file."""
        return float(self._columns["row_mm"][k]), float(self._columns["column_mm"][k])

    @property
    def channels(self) -> int:
        """Number of channels of a slice."""
        return len(self._statistics_columns)

    def raw(self, k: int, part: PartOf = whole) -> tuple[np.ndarray, tuple[float, float]]:
        """A part (rows, columns) of slice k in file units, read-only, and the mean and standard deviation of all of it.

        Several channels, (channels, rows, columns), are z-scored already, as each has its own; with them 0 and 1.
        """
        image, statistics = self._stored(k)
        image = image[(..., *part(image.shape[-2:]))]
        if image.ndim == 3:
            return preprocess(image, statistics, self.spacing(k), None), (0.0, 1.0)
        return image, cast(tuple[float, float], statistics)

    def shape(self, k: int) -> tuple[int, int]:
        """(rows, columns) of slice k in its file."""
        return int(self._columns["rows"][k]), int(self._columns["columns"][k])

    def pixels(self, k: int, side: int) -> tuple[int, int]:
        """(rows, columns) of slice k in its file that `side` pixels of `image` show along each side."""
        scales = (1.0, 1.0) if self.spacing_mm is None else (self.spacing_mm / mm for mm in self.spacing(k))
        rows, columns = (math.ceil(side * scale) for scale in scales)
        return rows, columns

    def image(self, k: int, part: Part = WHOLE) -> np.ndarray:
        """(rows, columns) or (channels, rows, columns) float32: a part of slice k in its file, z-scored and resampled.

        The statistics are those of the whole slice.
        """
        image, statistics = self._stored(k)
        return preprocess(image[(..., *part)], statistics, self.spacing(k), self.spacing_mm)

    def square(self, k: int, side: int) -> np.ndarray:
        """(channels, side, side) float32: `image` stretched to a square."""
        image = self.image(k)
        return np.stack([resize(channel, (side, side)) for channel in image.reshape(-1, *image.shape[-2:])])

    def _stored(self, k: int) -> tuple[np.ndarray, Statistics]:
        """The slice in file units, read-only, and the statistics that z-score it."""
        image, columns = self.store.image(self.positions[k]), self._columns
        if self.normalisation == "dataset":
            return image, self.statistics
        of_slice = tuple((float(columns[mean][k]), float(columns[std][k])) for mean, std in self._statistics_columns)
        return image, of_slice if len(of_slice) > 1 else of_slice[0]

    def label(self, k: int, part: Part = WHOLE) -> np.ndarray:
        """(rows, columns) uint8 class indices, or ``label_maps.IGNORED``, on the grid of `image`."""
        label = self.store.label(self.positions[k])[part]
        return label if self.spacing_mm is None else resample(label, self.spacing(k), self.spacing_mm, label=True)


def require_possible_sizes(table: pd.DataFrame, spacing_mm: float | None) -> None:
    """Raise a UserError that names a file whose slices cannot be resampled, see `data.preprocessing.resampled_size`."""
    sizes = table[["rows", "columns", "row_mm", "column_mm", "file"]]
    for rows, columns, row_mm, column_mm, file in sizes.drop_duplicates(sizes.columns[:4]).itertuples(index=False):
        resampled_size((rows, columns), (row_mm, column_mm), spacing_mm, file)


def pooled_statistics(store: SliceStore, positions: np.ndarray) -> Statistics:
    """Mean and standard deviation over all pixels of some slices, file units (law of total variance)."""
    table = store.table.iloc[positions]
    pixels = (table["rows"] * table["columns"]).to_numpy(dtype=float)
    pooled = []
    for of_mean, of_std in statistics_columns(store.table):
        means, variances = table[of_mean].to_numpy(), table[of_std].to_numpy() ** 2
        mean = np.average(means, weights=pixels)
        variance = np.average(variances + (means - mean) ** 2, weights=pixels)
        pooled.append((float(mean), float(np.sqrt(variance))))
    return tuple(pooled) if len(pooled) > 1 else pooled[0]
