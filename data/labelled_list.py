"""Lists of what carries labels: the subjects or slices that somebody has annotated, in place of a random draw."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import UserError
from core.tables import read_table
from core.text import read_text
from core.wording import count_of
from data.slices import Dataset
from data.splits import carries_labels
from data.store import SliceStore

log = logging.getLogger("fewslice")

KEYS = ("subject", "file", "frame", "slice")
"""Columns of a list that say what carries labels; others are ignored."""
NAMES = {"val": "validates", "test": "tests"}


def with_labelled_list(dataset: Dataset, file: Path | None) -> Dataset:
    """The data set in which, of the training slices, only those that a list names carry labels.

    Args:
        dataset: the data set, split.
        file: a subject on each line, or a CSV table with a column subject or file and optionally frame (from 1) and
            slice (from 0), such as the `labelled_slices.csv` of a run; None: the data set as it is.

    Raises:
        UserError: if the list cannot be read, is empty, or names what is not in the data set, has no labels, or does
            not train; the message names the first such line.
    """
    if file is None:
        return dataset
    wanted = _read(Path(file).expanduser())
    if wanted.empty:
        raise UserError(f"--labelled-list {file} names nothing: write a subject on each line")
    keys = [*wanted.columns]
    places = dataset.table[keys].assign(place=np.arange(len(dataset.table)))
    found = wanted.assign(line=np.arange(len(wanted))).merge(places, on=keys, how="left", sort=False)
    if (absent := found["place"].isna()).any():
        what = _named(wanted, int(found.loc[absent, "line"].iloc[0]))
        raise UserError(f"--labelled-list {file} names {what}, which {dataset.root} does not hold: correct the list")
    found["place"] = found["place"].astype(int)
    of_list = dataset.table.iloc[found["place"]]
    if len(outside := np.flatnonzero(of_list["split"] != "train")):
        what, split = _named(wanted, int(found["line"].iloc[outside[0]])), of_list["split"].iloc[outside[0]]
        does = NAMES.get(split, "is left out")
        raise UserError(
            f"--labelled-list {file} names {what}, which {does} in this split: scores on what is trained on would be "
            "too high; remove the line, or choose another split"
        )
    labelled = found[carries_labels(of_list).to_numpy()]
    if len(bare := set(found["line"]) - set(labelled["line"])):
        raise UserError(f"--labelled-list {file} names {_named(wanted, min(bare))}, which has no labels: remove it")
    listed = np.zeros(len(dataset.table), bool)
    listed[labelled["place"]] = True
    table = dataset.table.assign(labelled=dataset.table["labelled"] & (listed | (dataset.table["split"] != "train")))
    subjects = table.loc[listed, "subject"].nunique()
    log.info(f"labels of {count_of(listed.sum(), 'slice')} of {count_of(subjects, 'subject')} are used, as {file} says")
    return replace(dataset, table=table, store=SliceStore(table, dataset.store.file))


def _read(file: Path) -> pd.DataFrame:
    """The entries of a list, one a row, with the columns of `KEYS` that it has."""
    if not file.is_file():
        raise UserError(f"--labelled-list {file}: no such file")
    lines = [line.strip() for line in read_text(file, errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    if not {"subject", "file"} & {*header}:
        if len(re.split("[,;\t]", lines[0] if lines else "")) > 1:
            raise UserError(
                f"--labelled-list {file}: {lines[0]!r} is neither a subject nor the head of a table, which has commas "
                "and a column subject or file, in lower case, and optionally frame and slice"
            )
        return pd.DataFrame({"subject": lines}, dtype=object).drop_duplicates()
    table = read_table(file, (), "write one with a column subject or file, and optionally frame and slice")
    return table[[name for name in KEYS if name in table]].drop_duplicates(ignore_index=True)


def _named(wanted: pd.DataFrame, line: int) -> str:
    """An entry of a list in words: subject patient001, frame 1, slice 3."""
    return ", ".join(f"{name} {value}" for name, value in wanted.iloc[line].items())
