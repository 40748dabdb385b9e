"""Splits of ACDC: the paper's, that of the SSL4MIS benchmark, five folds or a file; and the challenge's test set.

A split is by patient, and two names of one person lie on the same side of it.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from core.errors import UserError, first_and_count
from data.readers.acdc import is_official_test
from data.splits import UNUSED, acdc_split, load_splits, patient_number

log = logging.getLogger("fewslice")

TestSet = Literal["paper", "official", "both"]
BUILT_IN = ("paper", "ssl4mis", "five-fold")
FOLDS = 5

# fmt: off
SSL4MIS_TRAIN = (
    99, 38, 50, 100, 58, 21, 49, 20, 72, 40, 60, 89, 4, 56, 98, 96, 31, 18, 94, 47, 48, 55, 97, 74, 43, 41, 63, 37, 95,
    54, 26, 88, 32, 69, 6, 71, 12, 73, 61, 17, 25, 10, 57, 29, 51, 5, 36, 46, 62, 34, 76, 92, 70, 77, 67, 3, 91, 16, 14,
    44, 42, 90, 53, 27, 35, 86, 23, 9, 79, 15,
)
# fmt: on
"""The 70 training patients in the published order: the first 1, 3 or 7 are the benchmark's labelled ones."""
SSL4MIS_VAL = (28, 85, 82, 87, 19, 30, 78, 45, 2, 39)
SSL4MIS_TEST = (11, 13, 84, 33, 93, 22, 68, 24, 83, 81, 80, 1, 7, 66, 8, 65, 75, 64, 59, 52)
CHANGED_PLACES = {76: 79, 79: 76}
"""Patients that swap their folds: 074 and 076 are one person, so 076 goes to the fold of 074, and 079 to its own."""


def acdc_splits(
    subjects: Iterable[str], split: str = "paper", fold: int = 0, test_set: TestSet = "paper"
) -> dict[str, str]:
    """Split of each patient of a copy of ACDC, in whole or in part.

    Args:
        subjects: names, "patient001".
        split: "paper", "ssl4mis", "five-fold", or the path of a file of `data.splits.save_splits`.
        fold: the fold, 0 to 4, that validates in "five-fold"; the other four train.
        test_set: "paper": the test patients of the split alone; "official": patients 101-150 in their place; "both".

    Returns:
        subject -> "train", "val", "test", or `UNUSED` for patients whom the protocol leaves out: neither trained on nor
        scored.

    Raises:
        UserError: if the file misses a patient, or has an official test patient train or validate who is to be tested
            on, or the copy has none to test on.

    Source: Luo, SSL4MIS, github HiLab-git/SSL4MIS (the lists); otherwise as `data.splits.acdc_split`.
    """
    names = sorted({*subjects})
    training = [name for name in names if not is_official_test(name)]
    if split == "paper":
        splits = {name: acdc_split(name) for name in training}
    elif split == "ssl4mis":
        splits = {name: _of_ssl4mis(patient_number(name)) for name in training}
    elif split == "five-fold":
        splits = {name: "val" if fold_of(patient_number(name)) == fold else "train" for name in training}
    else:
        splits = _of_file(Path(split).expanduser(), names)
    official = [name for name in names if is_official_test(name)]
    if test_set == "paper":
        return splits | {name: splits.get(name, UNUSED) for name in official}
    if not official:
        raise UserError(
            f"--test-set {test_set}: this copy of ACDC holds no patients 101-150; copy the challenge's testing/ beside "
            "training/, or pass --test-set paper"
        )
    if others := [name for name in official if splits.get(name) in ("train", "val")]:
        raise UserError(
            f"--test-set {test_set} tests on {first_and_count(others)}, which --split {split} names to train or "
            "validate: pass --test-set paper, or take them out of the file"
        )
    if test_set == "official":
        splits = {name: UNUSED if each == "test" else each for name, each in splits.items()}
    splits |= {name: acdc_split(name) for name in official}
    if UNUSED in (splits[name] for name in official):
        log.info("patient118 is left out of the official test set: its images are those of training patient 055")
    return splits


def part_of_test(patient: str) -> str:
    """Which of the two test sets of `--test-set both` a patient is from: "official", or "own" of the split."""
    return "official" if is_official_test(patient) else "own"


def fold_of(patient: int) -> int:
    """Fold of training patient 1-100: each holds four of the twenty patients of every group, as these are numbered in
    blocks of twenty."""
    return (CHANGED_PLACES.get(patient, patient) - 1) % FOLDS


def require_known_split(split: str, fold: int) -> None:
    """Raise a UserError unless a split is built in or a file, and the fold is one of the five."""
    if split not in BUILT_IN and not Path(split).expanduser().is_file():
        raise UserError(
            f"--split {split}: is neither {', '.join(BUILT_IN[:-1])} or {BUILT_IN[-1]} nor a file; a file holds "
            '{"train": ["patient001", ...], "val": [...], "test": [...]}'
        )
    if not 0 <= fold < FOLDS:
        raise UserError(f"--fold {fold}: must lie between 0 and {FOLDS - 1}")
    if fold and split != "five-fold":
        raise UserError(f"--fold {fold} goes with --split five-fold, not with --split {split}")


def ssl4mis_order(subjects: Iterable[str]) -> list[str]:
    """Training patients in the published order, in which the first 1, 3 or 7 carry the labels.

    Raises:
        UserError: if one of them is not among the benchmark's training patients.
    """
    place = {number: place for place, number in enumerate(SSL4MIS_TRAIN)}
    names = [*subjects]
    if others := [name for name in names if patient_number(name) not in place]:
        raise UserError(
            f"--label-order ssl4mis: {first_and_count(others)} is no training patient of that benchmark; "
            "pass --split ssl4mis"
        )
    return sorted(names, key=lambda name: place[patient_number(name)])


def others_than_published(patients: Iterable[str]) -> str:
    """A warning if patients taken in `ssl4mis_order` are not the first of the published list; empty if they are."""
    numbers = {patient_number(name) for name in patients}
    if not (absent := [number for number in SSL4MIS_TRAIN[: len(numbers)] if number not in numbers]):
        return ""
    warning = (
        f"not the published patients of SSL4MIS: {first_and_count([f'patient{number:03d}' for number in absent])} "
        f"{'is' if len(absent) == 1 else 'are'} missing or without labels here, and the next of its list stand in"
    )
    log.warning(warning)
    return warning


def _of_ssl4mis(patient: int) -> str:
    return "val" if patient in SSL4MIS_VAL else "test" if patient in SSL4MIS_TEST else "train"


def _of_file(path: Path, names: Iterable[str]) -> dict[str, str]:
    splits = load_splits(path)
    if absent := [name for name in names if name not in splits and not is_official_test(name)]:
        raise UserError(f"--split {path} does not name {first_and_count(absent)}: add each patient to one of its lists")
    log.info("split by subject read from %s", path)
    return {name: splits[name] for name in names if name in splits}


LABEL_ORDERS = {"random": None, "ssl4mis": ssl4mis_order}
"""Functions that order the labelled training patients; None: at random."""
