"""A data set ready for training: indexed, split by subject, packed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.acdc import ACDC_CLASSES, index_acdc
from data.errors import UserError
from data.folder import index_folder
from data.splits import refuse_overlap
from data.store import SliceStore, open_store


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Slices, their splits and their classes.

    ``classes`` are names, background first; a label map's value is a position in them. Just ("background",)
    when nothing is labelled. ``synthetic`` marks the embedded demonstration: its scores say nothing about
    patients.
    """

    name: str
    root: Path
    synthetic: bool
    store: SliceStore
    classes: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The store's table, one row per slice."""
        return self.store.table

    @property
    def splits(self) -> dict[str, str]:
        """subject -> split, for ``save_splits`` beside a run."""
        return dict(zip(self.table["subject"], self.table["split"], strict=True))

    def positions(self, split: str, labelled: bool | None = None) -> np.ndarray:
        """Row positions of a split, ascending; ``labelled`` keeps slices with (True) or without labels."""
        chosen = self.table["split"] == split
        if labelled is not None:
            chosen &= self.table["labelled"] == labelled
        return np.flatnonzero(chosen)


def load_dataset(
    dataset: Literal["acdc", "folder"] = "acdc",
    data_root: Path | None = None,
    *,
    subject_pattern: str | None = None,
    split_seed: int = 0,
    splits_file: Path | None = None,
) -> Dataset:
    """Index a data set, check its splits and labels, and open its slice store (packed on first use).

    Args:
        dataset: "acdc", or "folder" for any other layout, see ``data.folder``.
        data_root: its folder; without one "acdc" is the embedded synthetic demonstration.
        subject_pattern: regular expression giving the subject of a file ("folder" only).
        split_seed: of the drawn split ("folder" only; ACDC's is fixed).
        splits_file: JSON of subjects per split, written if absent ("folder" only).

    Raises:
        UserError: for anything wrong with the data or the choices, naming file and value.
    """
    if data_root is None and dataset != "acdc":
        raise UserError("the data set 'folder' needs --data-root: give the folder that holds the images")
    if data_root is None:
        from data.phantom import demo_root

        root = demo_root()
    else:
        root = Path(data_root).expanduser()
    table, classes = index_dataset(dataset, root, subject_pattern, split_seed, splits_file)
    refuse_overlap(table)
    store = open_store(table, root)
    classes = check_labels(store.table, classes)
    return Dataset(name=dataset, root=root, synthetic=data_root is None, store=store, classes=classes)


def index_dataset(
    dataset: str,
    root: Path,
    subject_pattern: str | None = None,
    split_seed: int = 0,
    splits_file: Path | None = None,
    problems: dict[Path, UserError] | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Index table and classes of a data set, () where the label maps must tell; see ``load_dataset``."""
    if dataset == "folder":
        return index_folder(root, subject_pattern, split_seed, splits_file, problems)
    if dataset != "acdc":
        raise UserError(f"data set {dataset!r} is unknown: choose acdc or folder")
    if subject_pattern is not None or splits_file is not None:
        raise UserError("--subject-pattern and --splits-file go with --dataset folder: ACDC's split is fixed")
    return index_acdc(root, problems), ACDC_CLASSES


def check_labels(table: pd.DataFrame, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Hold the label values found against the classes, or make the classes from them.

    Args:
        table: of a store, with ``label_values``.
        classes: names, or () to number them as found: ("background", "1", "2", ...).

    Raises:
        UserError: if a value lies outside the classes (file and values are named), or the values found leave
            a gap.
    """
    found = table.loc[table["labelled"], ["label_file", "label_values"]].drop_duplicates()
    values = {int(value) for line in found["label_values"].unique() for value in line.split()} | {0}
    if not classes and values != set(range(len(values))):
        raise UserError(
            f"the label maps hold the values {sorted(values)}, which leave a gap: renumber them 0, 1, 2, ... "
            'or name every class in a dataset.json, {"labels": {"background": 0, "name": 1}}'
        )
    if not classes:
        return ("background", *map(str, range(1, len(values))))
    if wrong := sorted(value for value in values if value >= len(classes)):
        lines = found["label_values"].str.split().map(lambda line: bool({*map(int, line)} & {*wrong}))
        file = found.loc[lines, "label_file"].iloc[0]
        raise UserError(
            f"{file}, and perhaps more, holds label values among {wrong}: "
            f"the classes are 0..{len(classes) - 1} ({', '.join(classes)})"
        )
    return classes
