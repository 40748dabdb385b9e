"""Splits by subject into train, val and test, and nested subsets of the labels for data-efficiency studies."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from core.errors import UserError
from core.files import write_json
from core.subjects import pseudonyms
from core.text import read_json
from data.synthetic import is_synthetic

SPLITS = ("train", "val", "test")
UNUSED = "unused"
"""In place of a split, of subjects that are left out: they are neither trained on nor scored."""
IMAGES_OF_055 = 118
"""ACDC's official test patient whose images are, voxel by voxel, those of training patient 055."""
FEWEST_EXAMS = 2
"""Smallest labelled subset of exams, one of each class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTable:
    """What data sets of slices and of exams have in common: a table with the columns subject and split."""

    name: str
    root: Path
    table: pd.DataFrame
    plane: str = ""
    """Plane of the exams; "" if the layout has none."""

    @property
    def synthetic(self) -> bool:
        """Whether the images are generated: scores reached on them say nothing about patients."""
        return is_synthetic(self.root)

    @property
    def splits(self) -> dict[str, str]:
        """subject -> split, for ``save_splits`` beside a run."""
        return dict(zip(self.table["subject"], self.table["split"], strict=True))

    def positions(self, split: str) -> np.ndarray:
        """Row positions of a split, ascending."""
        return np.flatnonzero(self.table["split"] == split)

    @property
    def digest(self) -> str:
        """Digest of the files' contents."""
        raise NotImplementedError

    @property
    def labelled_subjects(self) -> set[str]:
        """The subjects that have labels, wholly or in part."""
        raise NotImplementedError

    def images(self) -> pd.DataFrame:
        """subject, split, file and digest (of `data.duplicates.fingerprint`), a row for each volume and frame."""
        raise NotImplementedError


def digest_of_use(key: str, *parts: np.ndarray | str) -> str:
    """Digest of a data set and of what a run takes from it, so that a run is not resumed on other rows or labels.

    Args:
        key: that of the data set.
        parts: rows, labels or words, the same in number and order for every run of a command.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else np.asarray(part, np.int64).tobytes()
        digest.update(f"|{len(content)}|".encode() + content)
    return digest.hexdigest()


def patient_number(subject: str) -> int:
    """Number of an ACDC patient: 1 of "patient001"."""
    return int(re.sub(r"\D", "", subject))


def acdc_split(subject: str) -> str:
    """Split of an ACDC patient: test 1, 11, ..., 91; val 2, 12, ..., 92; train the other 80 of 100.

    Patients 101-150 are the challenge's official test set and belong to "test" as well, but for a copy of a training
    patient, which is `UNUSED`.

    Source: official code of Kalapos and Gyires-Tóth 2022, github kaland313/SSL-MedSeg.
    """
    number = patient_number(subject)
    if number == IMAGES_OF_055:
        return UNUSED
    if number > 100 or number % 10 == 1:
        return "test"
    return "val" if number % 10 == 2 else "train"


def split_subjects(subjects: Iterable[str], seed: int = 0, test: bool = True) -> dict[str, str]:
    """Draw a split: about 70 % train, 10 % val, 20 % test of the subjects.

    Of two subjects one trains and one validates; of three or more each split gets at least one.

    Args:
        subjects: names; their order and repetitions do not matter.
        test: False if the data set has a test set already: then about 7 train to 1 val.

    Returns:
        subject -> split.
    """
    names = sorted(set(subjects))
    count = len(names)
    tests = max(round(0.2 * count), 1) if test and count > 2 else 0
    vals = max(round(0.1 * count if test else count / 8), 1) if count > 1 else 0
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(count)]
    order = ["test"] * tests + ["val"] * vals + ["train"] * (count - tests - vals)
    return dict(sorted(zip(shuffled, order, strict=True)))


def save_splits(path: Path, splits: Mapping[str, str], *, anonymous: bool = False) -> None:
    """Write subject -> split as JSON: ``{"train": [subjects], "val": [...], "test": [...]}``.

    With `anonymous` the file holds codes, and cannot be read back as a split.
    """
    if anonymous:
        code = pseudonyms()
        splits = {code(subject): split for subject, split in splits.items()}
    lists = {split: sorted(subject for subject, name in splits.items() if name == split) for split in SPLITS}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, lists)


def load_splits(path: Path) -> dict[str, str]:
    """Read subject -> split from a file of ``save_splits``, or raise a UserError that says what is wrong with it."""
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path; --save-splits FILE writes the split that is drawn")
    lists = read_json(path)
    if not isinstance(lists, dict) or not all(
        name in SPLITS and isinstance(subjects, list) for name, subjects in lists.items()
    ):
        raise UserError(f'{path} must hold {{"train": [subjects], "val": [...], "test": [...]}} and nothing else')
    splits: dict[str, str] = {}
    for split, subjects in lists.items():
        for subject in map(str, subjects):
            if splits.setdefault(subject, split) != split:
                raise UserError(f"subject {subject} is both in {splits[subject]} and in {split} of {path}: keep one")
    return splits


def refuse_overlap(table: pd.DataFrame) -> None:
    """Raise a UserError, naming subject, splits and files, if a subject has slices in two splits."""
    pairs = table.drop_duplicates(["subject", "split"])
    twice = pairs[pairs.duplicated("subject", keep=False)].sort_values("subject", kind="stable")
    if len(twice):
        subject = twice.subject.iloc[0]
        places = " and ".join(f"{row.split} ({row.file})" for row in twice[twice.subject == subject].itertuples())
        raise UserError(f"subject {subject} is in two splits, {places}: a subject must stay in one")


def labelled_count(fraction: float, total: int, fewest: int = 1) -> int:
    """A share of `total` slices, patients or exams as a number: rounded, halves up, and at least `fewest`."""
    return max(fewest, math.floor(fraction * total + 0.5))


def carries_labels(table: pd.DataFrame) -> pd.Series:
    """Whether each slice of an index or store table has labels: a training slice not if all of its voxels are ignored.

    In a scan of which a few slices were annotated, the others are such. Scored volumes keep theirs: they are whole.
    """
    if "label_values" not in table:
        return table["labelled"]
    return table["labelled"] & ((table["split"] != "train") | (table["label_values"] != ""))


def labelled_subset(
    table: pd.DataFrame,
    fraction: float,
    unit: Literal["slice", "patient"] = "slice",
    seed: int = 0,
    order: Callable[[Iterable[str]], list[str]] | None = None,
) -> np.ndarray:
    """Draw a share of the labelled training slices.

    Subsets are nested (for one seed a smaller one lies inside a larger one) and depend on the seed alone, not on the
    order of the rows. Counts round to the nearest, halves up, and are at least one: 0.1 % of 1498 slices is 1, 0.5 % is
    7, 1 % is 15. "patient" draws whole patients, spread over the groups in proportion at every size.

    Args:
        table: index or store table, one row per slice.
        fraction: share of the slices (or patients), in (0, 1].
        unit: what is counted: "slice" as in the paper, or "patient", which is how scans are annotated.
        order: puts patients in the order in which they are drawn; None: at random.

    Returns:
        Row positions in ``table``, ascending, int64.

    Raises:
        UserError: if the fraction is outside (0, 1], the unit unknown, or no training slice is labelled.

    Source: Kalapos and Gyires-Tóth 2022, figure 4, for the fractions and counts.
    """
    if not 0 < fraction <= 1:  # NaN fails too
        raise UserError(f"labelled fraction {fraction} is outside (0, 1]: choose a share such as 0.1")
    if unit not in ("slice", "patient"):
        raise UserError(f"label unit {unit!r} is unknown: choose slice or patient")
    pool = table.assign(position=np.arange(len(table)))[(table["split"] == "train") & carries_labels(table)]
    pool = pool.sort_values(["subject", "frame", "slice", "file"])
    if not len(pool):
        raise UserError("no training slice has labels: a labelled subset needs some, check the data set's split")
    rng = np.random.default_rng(seed)
    if unit == "slice":
        chosen = pool["position"].to_numpy()[rng.permutation(len(pool))[: labelled_count(fraction, len(pool))]]
    else:
        pool_of_patients = pool.drop_duplicates("subject")
        names = order(pool_of_patients["subject"]) if order else _stratified(pool_of_patients, rng)
        patients = names[: labelled_count(fraction, len(names))]
        chosen = pool.loc[pool["subject"].isin(patients), "position"].to_numpy()
    return np.sort(chosen)


def unlabelled_pool(table: pd.DataFrame, labelled: np.ndarray, kind: Literal["all", "annotated"]) -> np.ndarray:
    """The training slices that are trained on without labels, beside those whose labels are used.

    Args:
        table: index or store table, one row per slice.
        labelled: row positions of the slices whose labels are used (`labelled_subset`).
        kind: "all" other slices of the training split; or "annotated", those of them that have a label map, which is
            not used: frames and scans without one are left out.

    Returns:
        Row positions in ``table``, ascending, int64; none of a validation or test subject.
    """
    chosen = (table["split"] == "train").to_numpy(copy=True)
    if kind == "annotated":
        chosen &= (table["label_file"] != "").to_numpy(bool)
    chosen[labelled] = False
    return np.flatnonzero(chosen)


def labelled_exams(table: pd.DataFrame, fraction: float, seed: int = 0) -> np.ndarray:
    """Draw a share of the training exams, nested and depending on the seed alone as `labelled_subset`.

    The classes are in proportion at every size; the first two exams are one of each, as fewer train no classifier.

    Args:
        table: of an `ExamSet`, one row per exam.
        fraction: share of the training exams, in (0, 1]; at least two are drawn.

    Returns:
        Row positions in ``table``, ascending, int64.

    Raises:
        UserError: if the fraction is outside (0, 1] or a class has no training exam.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"labelled fraction {fraction} is outside (0, 1]: choose a share such as 0.1")
    pool = table.assign(position=np.arange(len(table)), subject=table["exam"], group=table["label"].astype(str))
    pool = pool[pool["split"] == "train"]
    if pool["group"].nunique() < 2:
        raise UserError(f"all training exams are of class {', '.join(pool['group'].unique())}: label some of both")
    order = _stratified(pool, np.random.default_rng(seed))
    label = dict(zip(pool["exam"], pool["label"], strict=True))
    firsts = [next(exam for exam in order if label[exam] == value) for value in (0, 1)]
    order = firsts + [exam for exam in order if exam not in firsts]
    chosen = order[: labelled_count(fraction, len(order), FEWEST_EXAMS)]
    return np.sort(pool.loc[pool["exam"].isin(chosen), "position"].to_numpy())


def inner_splits(data: SplitTable, seed: int = 0) -> dict[str, str]:
    """Split the labelled training subjects once more, to make choices on subjects that nothing is reported on.

    A third of them, spread over the groups (classes of exams) in proportion, validates and the others train. Those that
    validated and tested are for testing, so that a run without a score of the test split does not use them.

    Returns:
        subject -> split.

    Raises:
        UserError: if fewer than three training subjects are labelled.
    """
    splits = {subject: "test" if split != "train" else split for subject, split in data.splits.items()}
    subjects = data.table[data.table["subject"].isin(data.labelled_subjects) & (data.table["split"] == "train")]
    if (count := subjects["subject"].nunique()) < 3:
        raise UserError(
            f"{data.root} has {count} labelled training subjects: a choice on an inner part of them needs 3 or more"
        )
    if "label" in subjects:  # a subject with exams of both classes counts as one of class 1
        subjects = subjects.assign(group=subjects["label"].astype(str)).sort_values("group", ascending=False)
    order = _stratified(subjects.drop_duplicates("subject"), np.random.default_rng(seed))
    return splits | dict.fromkeys(order[: round(count / 3)], "val")


def _stratified(patients: pd.DataFrame, rng: np.random.Generator) -> list[str]:
    """Order patients so that each beginning of the list holds the groups in proportion to their sizes."""
    keyed = []
    groups = sorted(patients["group"].unique())
    for rank, group in zip(rng.permutation(len(groups)), groups, strict=True):
        names = rng.permutation(patients.loc[patients["group"] == group, "subject"].to_numpy(str))
        keyed += [((place + 0.5) / len(names), rank, str(name)) for place, name in enumerate(names)]
    return [name for _, _, name in sorted(keyed)]
