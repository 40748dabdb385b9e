"""Which subject trains, which validates and which tests. Always by subject, never by slice."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import UserError

SPLITS = ("train", "val", "test")


def acdc_split(subject: str) -> str:
    """Split of an ACDC patient: test 1, 11, ..., 91; val 2, 12, ..., 92; train the other 80 of 100.

    Patients 101-150 are the challenge's official test set and belong to "test" as well.

    Source: the official code of Kalapos & Gyires-Tóth, github kaland313/SSL-MedSeg.
    """
    number = int(re.sub(r"\D", "", subject))
    if number > 100 or number % 10 == 1:
        return "test"
    return "val" if number % 10 == 2 else "train"


def split_subjects(subjects: Iterable[str], seed: int = 0, test: bool = True) -> dict[str, str]:
    """Draw a split: about 70 % train, 10 % val, 20 % test of the subjects.

    Two subjects give one train and one val; three or more give at least one of each.

    Args:
        subjects: names; their order and repetitions do not matter.
        seed: of the draw.
        test: False when a test set is given otherwise: then about 7 train to 1 val.

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


def save_splits(path: Path, splits: Mapping[str, str]) -> None:
    """Write subject -> split as JSON: ``{"train": [subjects], "val": [...], "test": [...]}``."""
    lists = {split: sorted(subject for subject, its in splits.items() if its == split) for split in SPLITS}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lists, indent=1) + "\n")


def load_splits(path: Path) -> dict[str, str]:
    """Read a file that ``save_splits`` wrote, or one written by hand in its form.

    Raises:
        UserError: if it is not of that form, or a subject stands in two splits (it is named).
    """
    try:
        lists = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path of the splits file") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): mend it, or remove it to draw a new split") from None
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
    """Refuse a table in which slices of one subject stand in two splits.

    Raises:
        UserError: naming the first such subject, its splits and a file of each.
    """
    pairs = table.drop_duplicates(["subject", "split"])
    twice = pairs[pairs.duplicated("subject", keep=False)].sort_values("subject", kind="stable")
    if len(twice):
        subject = twice.subject.iloc[0]
        places = " and ".join(f"{row.split} ({row.file})" for row in twice[twice.subject == subject].itertuples())
        raise UserError(f"subject {subject} is in two splits, {places}: a subject must stay in one")
