"""Knee MRI in MRNet's layout, as a table of exams.

``{train,valid}/{sagittal,coronal,axial}/NNNN.npy`` (frames, rows, columns) and ``{train,valid}-{task}.csv``
(case, 0 or 1, no header). Planes and tasks are whatever the folder holds, not a fixed list.

Partial copies are welcome: planes, tasks, ``train`` or ``valid`` may be missing, and files without a row of
the csv are left out. A row without its file is refused, unless more than half of that csv's files are missing:
then the copy is taken to be partial on purpose, and the files present are used.

Source: Bien et al. 2018, PLOS Medicine, doi 10.1371/journal.pmed.1002699.
"""

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError, first_and_count
from core.text import read_text
from data.readers.decoding import naming, require_slices

HALVES = ("train", "valid")
"""The two folders; the second, the official validation set, is the papers' test set."""

VALIDATION = 0.1
"""Share of the training exams that validates (stratified)."""

log = logging.getLogger("fewslice")


def index_mrnet(
    root: Path, task: str | None, plane: str, split_seed: int = 0, *, unlabelled: bool = False
) -> pd.DataFrame:
    """List the exams of one plane; their arrays are not opened.

    The inner validation set is drawn over all rows of ``train-{task}.csv``, whether their files exist or
    not: every plane, and every partial copy, gets the same split from the same seed. Without a task there is
    no such set: all of ``train`` trains. With `unlabelled`, for pretraining, exams without a row are listed as well and
    every label is -1; the inner validation set is the same.

    Returns:
        One row per exam: exam and subject ("train/0042"; the number alone may stand in both halves), split
        ("train", "val", "test"), file (relative to root), label (0, 1, or -1 without a task).
    """
    _check(root, task, plane)
    rows: list[tuple] = []
    for half in HALVES:
        files = {_case(file.stem): file for file in _arrays(root / half / plane)}
        csv_file = root / f"{half}-{task}.csv"
        labels = read_labels_csv(csv_file) if task and csv_file.is_file() else {}
        vals = stratified_draw(labels, VALIDATION, split_seed) if half == "train" else set()
        if task is None or unlabelled:
            labels = dict.fromkeys(files, -1)
        else:
            _refuse_missing(csv_file, labels, files, root / half / plane)
        for case in (cases := sorted(labels.keys() & files.keys())):
            split = "test" if half == "valid" else "val" if case in vals else "train"
            name = files[case].relative_to(root).as_posix()
            rows.append((f"{half}/{case}", f"{half}/{case}", split, name, labels[case]))
        if not cases:
            log.info("%s: no %s exams of plane %s%s", root, half, plane, f" with a label of {task}" if task else "")
        elif left_out := len(files) - len(cases):
            log.info("%s: files without a row in %s are left out: %d", root / half / plane, csv_file.name, left_out)
    if not rows:
        raise UserError(f"no file of plane {plane} in {root} has a label of {task}: copy its csv and files again")
    return pd.DataFrame(rows, columns=["exam", "subject", "split", "file", "label"])


def stratified_draw(labels: Mapping[str, int], share: float, seed: int) -> set[str]:
    """Draw a share of each class: counts round to the nearest, halves up, and are at least one of two or more.

    The names drawn depend on the seed, not on the order of `labels` (name -> class).
    """
    rng = np.random.default_rng(seed)
    drawn: set[str] = set()
    for label in sorted(set(labels.values())):
        names = sorted(name for name, value in labels.items() if value == label)
        count = max(math.floor(share * len(names) + 0.5), int(len(names) > 1))
        drawn |= {names[i] for i in rng.permutation(len(names))[:count]}
    return drawn


def read_labels_csv(path: Path) -> dict[str, int]:
    """Read ``case,label`` lines without a header; leading zeros that a spreadsheet removed are restored.

    Raises:
        UserError: naming file and line, if a line is not a case and 0 or 1, or a case comes twice.
    """
    labels: dict[str, int] = {}
    try:
        lines = list(csv.reader(read_text(path).splitlines()))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} is not a readable csv file ({error}): copy it again") from None
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if len(cells) != 2:
            raise UserError(f"{path}, line {number}: {','.join(line)!r} is not a case and its label, like 0042,1")
        case = _case(cells[0])
        if cells[1] not in ("0", "1"):
            wrong = f"{path}, line {number}: the label {cells[1]!r} of exam {case} is not 0 or 1"
            raise UserError(f"{wrong}: correct it (the file has no header line)")
        if case in labels:
            raise UserError(f"{path}, line {number}: exam {case} comes a second time: keep one of its rows")
        labels[case] = int(cells[1])
    return labels


def read_array(path: Path) -> np.ndarray:
    """Open a ``.npy`` exam without reading it: (frames, rows, columns), memory-mapped, read-only, never unpickled.

    Raises:
        UserError: if it is missing or damaged, holds Python objects or no plain numbers, or
            does not have three axes and at least two frames.
    """
    objects = (
        f"{path} holds Python objects, which would run code when read: save it again as a plain array, "
        'np.save(file, frames.astype("uint8"))'
    )
    with naming(path):
        with path.open("rb") as file:
            start = file.read(6)
        if start[:2] == b"PK":
            raise UserError(f"{path} is an .npz archive: save its one array with np.save")
        if start != b"\x93NUMPY":
            if start[:1] == b"\x80":  # a pickle
                raise UserError(objects)
            raise ValueError("no .npy header" if start else "no data")
        try:
            frames: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            if "object" in str(error).lower():
                raise UserError(objects) from None
            if "allow_pickle" in str(error):  # numpy's advice to trust a file with a long header
                raise ValueError("its header is too long") from None
            raise
    if frames.dtype.kind not in "uif":
        raise UserError(f"{path} holds numbers of type {frames.dtype}: save integers or floating-point numbers")
    return check_frames(frames, path)


def check_frames(frames: np.ndarray, path: Path) -> np.ndarray:
    """Return the frames; raise a UserError unless they are (frames, rows, columns), at least two."""
    if frames.ndim != 3:
        raise UserError(f"{path} has the shape {frames.shape}: three axes (frames, rows, columns) are needed")
    if len(frames) < 2 or not frames.size:
        count = f"{len(frames)} frame{'s' if len(frames) != 1 else ''}"
        raise UserError(f"{path} has {count} of {frames.shape[1]} x {frames.shape[2]} pixels: an exam needs at least 2")
    require_slices(path, frames.shape[1] * frames.shape[2], len(frames))
    return frames


def _check(root: Path, task: str | None, plane: str) -> None:
    expected = "--data-root must be the folder that holds MRNet's train/ and valid/"
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: {expected}")
    folders = (folder for half in HALVES for folder in (root / half).glob("*") if folder.is_dir())
    planes = sorted({folder.name for folder in folders if _arrays(folder)})
    tasks = sorted({file.stem.removeprefix(f"{half}-") for half in HALVES for file in root.glob(f"{half}-*.csv")})
    if not planes:
        raise UserError(f"{root} holds no train/PLANE/NNNN.npy or valid/PLANE/NNNN.npy: {expected}")
    if plane not in planes:
        raise UserError(f"the plane {plane!r} does not exist in {root}: choose {', '.join(planes)}")
    if task is not None and not tasks:
        raise UserError(f"{root} holds no train-TASK.csv or valid-TASK.csv: copy MRNet's label files beside train/")
    if task is not None and task not in tasks:
        raise UserError(f"the task {task!r} does not exist in {root}: choose {', '.join(tasks)}")


def _refuse_missing(file: Path, labels: dict[str, int], files: dict[str, Path], folder: Path) -> None:
    missing = sorted(labels.keys() - files.keys())
    if 2 * len(missing) > len(labels):
        if files:
            log.info("%s: a partial copy, %d of the %d exams in %s", folder, len(files), len(labels), file.name)
        return
    if missing:
        named = f"{file} names exam {first_and_count(missing)}"
        raise UserError(f"{named}, but {folder / missing[0]}.npy is missing: copy it, or remove the row")


def _case(name: str) -> str:
    return name.zfill(4) if name.isdigit() else name


def _arrays(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.npy") if not file.name.startswith("."))
