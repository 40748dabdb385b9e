"""Lists of exams that are NIfTI files: a CSV file that names them, or every one in a folder."""

import csv
import io
from pathlib import Path

import pandas as pd

from core.errors import UserError
from core.text import read_text
from data.readers.discovery import discover
from data.readers.images import NIFTI_SUFFIXES, stem
from data.readers.mrnet import stratified_draw
from data.readers.subjects import subjects_of
from data.splits import SPLITS, refuse_overlap

TEST, VALIDATION = 0.2, 0.1
"""Shares of the subjects that a drawn split tests and validates."""


def read_exams_csv(path: Path, root: Path, split_seed: int, subject_pattern: str | None) -> pd.DataFrame:
    """Read ``path,label[,split][,subject]``, see `data.readers.exams.load_exams`.

    Returns:
        exam (the path as written), subject, split, file (relative to root, absolute if not below it), label.
    """
    rows: list[tuple] = []
    has_subjects = False
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        exam = line["path"]
        file = next((file for file in (root / exam, path.parent / exam) if exam and file.is_file()), None)
        if file is None:
            missing = f"{where}: the exam {exam!r} is neither below {root} nor beside the csv"
            raise UserError(f"{missing}: correct the path, or remove the row")
        if line["label"] not in ("0", "1"):
            raise UserError(f"{where}: the label {line['label']!r} of exam {exam} is not 0 or 1: correct it")
        if "split" in line and line["split"] not in SPLITS:
            raise UserError(f"{where}: the split {line['split']!r} of exam {exam}: choose {', '.join(SPLITS)}")
        if line.get("subject") == "":
            raise UserError(f"{where}: exam {exam} has no subject: fill it in, or remove the column")
        stored = file.relative_to(root) if file.is_relative_to(root) else file.resolve()
        bare = (Path(exam).parent / stem(file)).as_posix()
        rows.append((exam, line.get("subject") or bare, line.get("split"), stored.as_posix(), int(line["label"])))
        has_subjects = "subject" in line
    table = pd.DataFrame(rows, columns=["exam", "subject", "split", "file", "label"])
    if not has_subjects:
        table["subject"] = subjects_of(table["subject"].tolist(), subject_pattern)
    if table["file"].duplicated().any():
        twice = table.loc[table["file"].duplicated(), "exam"].iloc[0]
        raise UserError(f"{path} names exam {twice} more than once: keep one of its rows")
    share = VALIDATION
    if table["split"].isna().any():
        share /= 1 - TEST
        tests = stratified_draw(_classes(table), TEST, split_seed)
        table["split"] = table["subject"].isin(tests).map({True: "test", False: "train"})
    refuse_overlap(table)
    if not (table["split"] == "val").any():
        vals = stratified_draw(_classes(table[table["split"] == "train"]), share, split_seed)
        table.loc[table["subject"].isin(vals), "split"] = "val"
    return table


def _classes(table: pd.DataFrame) -> dict[str, int]:
    """subject -> 1 if any of its exams is positive."""
    return {str(subject): int(label) for subject, label in table.groupby("subject")["label"].max().items()}


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of a csv with a header."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, restval="")
        names = [name.strip().lower() for name in reader.fieldnames or []]
        if missing := [name for name in ("path", "label") if name not in names]:
            raise UserError(
                f"{path} has the columns {', '.join(names)[:200] or 'none'}: {' and '.join(missing)} must be among them"
            )
        reader.fieldnames = names
        lines = []
        for row in reader:
            cells = {name: (row[name] or "").strip() for name in names}
            if any(cells.values()):
                lines.append((reader.line_num, cells))
    except OSError as error:
        raise UserError(f"--labels {path} cannot be opened ({error.strerror}): check the path") from None
    except csv.Error as error:
        raise UserError(f"--labels {path} is not a csv file ({error}): export it again") from None
    if not lines:
        raise UserError(f"{path} names no exams: add lines like patient001.nii.gz,0 below path,label")
    return lines


def list_exams(root: Path, subject_pattern: str | None) -> pd.DataFrame:
    """List every NIfTI image below a folder, to pretrain on; columns as of `read_exams_csv`, label -1."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --data-root must be the folder that holds the exams")
    discovery = discover(root)
    discovery.report()
    images = [image for image in discovery.images if image.file.name.lower().endswith(NIFTI_SUFFIXES)]
    subjects = subjects_of([image.name for image in images], subject_pattern)
    rows = [
        (subject, "test" if image.split == "test" else "train", image.file.relative_to(root).as_posix())
        for subject, image in zip(subjects, images, strict=True)
    ]
    if not rows:
        raise UserError(f"{root} holds no .nii or .nii.gz files: check --data-root, or pass --labels FILE.csv")
    table = pd.DataFrame(rows, columns=["subject", "split", "file"])
    return table.assign(exam=table["file"], label=-1)
