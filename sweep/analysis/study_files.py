"""The tables and JSON files of a study's folder, checked as they are read: nothing in them is trusted."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from core.errors import UserError, first_violation
from core.tables import read_table
from core.text import read_text

ADVICE = "remove it and run the same `python -m sweep` command again"
BOTH = "remove both and run the same `python -m sweep` command again"
KEY = ("cell", "pipeline", "pretrain_epochs", "pretrain_seed", "labels", "subset_seed", "seed")
"""Columns of all tables of a study: a cell's name and what it is."""


def read_scores(folder: Path) -> pd.DataFrame:
    """Rows of the volumes or exams of all cells: per_exam.csv or, without it, per_volume.csv.

    Raises:
        UserError: if there is no such table, it is damaged, or it has no rows.
    """
    exams = (folder / "per_exam.csv").is_file()
    file = _existing(folder / ("per_exam.csv" if exams else "per_volume.csv"))
    rows = read_table(file, (*KEY, "split", *(("exam", "label", "probability") if exams else ("subject",))), ADVICE)
    if rows.empty:
        raise UserError(
            f"{file}: holds no scores because no run has finished; run the same `python -m sweep` command again"
        )
    return _checked(file, rows)


def read_results(folder: Path) -> pd.DataFrame:
    """Rows of results.csv, one for each finished cell and split.

    Raises:
        UserError: if no run of the study has finished, or the table is damaged.
    """
    file = folder / "results.csv"
    if not file.is_file() or file.stat().st_size < 3:  # pandas writes a table without columns as an empty line
        raise UserError(f"{folder}: no run of the study has finished; run the same python -m sweep command again")
    rows = _checked(file, read_table(file, (*KEY, "fraction", "split", "synthetic"), ADVICE))
    if unsafe := [cell for cell in rows["cell"] if not is_inside(cell)]:
        raise UserError(f"{file}: {unsafe[0]!r} is no name of a cell; {ADVICE}")
    return rows


def read_curves(folder: Path, measure: str = "dice") -> pd.DataFrame:
    """Rows of curves.parquet, the validation curves of all cells.

    Args:
        folder: folder of the study.
        measure: "jaccard" for that of a segmentation as `score`, if every run has it (`curve_measure`).

    Raises:
        UserError: if there is no such table, or it is damaged.
    """
    file = _existing(folder / "curves.parquet")
    try:
        rows = pd.read_parquet(file)
        if missing := [name for name in (*KEY, "step", "score") if name not in rows]:
            raise ValueError(f"it has no column {missing[0]!r}")
        numbers = [name for name in ("pretrain_epochs", "fraction", "step", "score", "jaccard") if name in rows]
        rows = rows.astype(dict.fromkeys(numbers, float))
        if not np.isfinite(rows["step"]).all():
            raise ValueError("a step is not finite")
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is no table of validation curves ({reason}); {ADVICE}") from None
    rows = _checked(file, rows)
    return rows.assign(score=rows["jaccard"]) if curve_measure(rows, measure) == "jaccard" else rows


def curve_measure(curves: pd.DataFrame, measure: str) -> str:
    """The measure that validation curves can show: Jaccard only if every run has it; those of version 0.1 do not."""
    return "dice" if measure == "jaccard" and ("jaccard" not in curves or curves["jaccard"].isna().any()) else measure


def require_all_cells(folder: Path, results: pd.DataFrame) -> None:
    """Compare the tables of scores and curves with the results: each must hold every finished cell as a whole.

    Raises:
        UserError: if rows are missing, as in a table that was cut.
    """
    scores, curves = read_scores(folder), read_curves(folder)
    exams = "exam" in scores
    file = folder / ("per_exam.csv" if exams else "per_volume.csv")
    keys = _keys(results)
    for table, name in ((scores, file), (curves, folder / "curves.parquet")):
        if different := keys ^ _keys(table):
            cell = min(str(key[0]) for key in different)
            raise UserError(f"{name} and {folder / 'results.csv'} do not hold the same cells ({cell}); {BOTH}")
    counts = scores.groupby(["cell", "split"]).size()
    expected = results.set_index(["cell", "split"])
    if lacking := set(counts.index) ^ set(expected.index):
        cell, split = min(lacking)
        raise UserError(f"{file} and {folder / 'results.csv'} do not hold the same scores ({cell}, {split}); {BOTH}")
    size = "exams" if exams else "volumes"
    if size in expected and (wrong := counts != expected[size].reindex(counts.index)).any():
        cell, split = counts.index[wrong][0]
        raise UserError(f"{file} lacks {size} of the cell {cell}, {split}; {ADVICE}")


def _keys(table: pd.DataFrame) -> set[tuple[Any, ...]]:
    """The cells of a table, each with its pipeline, number of labels and seeds."""
    unique = table[[*KEY]].drop_duplicates().fillna({"pretrain_epochs": -1.0})
    return set(unique.itertuples(index=False, name=None))


def read_json(file: Path, model: type[BaseModel] | None = None, advice: str = ADVICE) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Args:
        file: the file.
        model: what the content must hold; more is allowed.
        advice: what to do about a damaged file, for the message.

    Raises:
        UserError: if the file cannot be read, holds no object, or a value is missing or of another type.
    """
    try:
        text = read_text(file)
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, no object")
        if model:
            model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{file} is damaged ({first_violation(error)}); {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); {advice}") from None
    return content


def first_line(file: Path) -> str:
    """First line of a text file of any content, at most 2000 characters; empty if it cannot be read."""
    try:
        with file.open(encoding="utf-8", errors="replace") as text:
            return text.readline(2000).strip().replace("\0", "")
    except OSError:
        return ""


def relative_paths(text: str, folder: Path) -> str:
    """A message without the folders of this machine: paths in `folder` become relative, of others the name is left."""
    for known in sorted({str(folder), str(folder.resolve())}, key=len, reverse=True):
        text = text.replace(f"{known}/", "")
    for known in sorted({str(Path.cwd()), str(Path.home())}, key=len, reverse=True):
        text = text.replace(f"{known}/", "/")
    return re.sub(r"(?<![\w./<])/(?:[^\s/'\"]+/)+", "", text)


UNLABELLED = "+unlabelled"
"""End of the name of a pipeline whose fine-tuning learns from unlabelled slices as well, by pseudo-labels."""
SELECTIONS = ("random", "foreground", "first", "next")
"""Rules by which labelled slices are chosen (`segment --selection`); all but random end a pipeline's name: +next."""


def goes_with(pipeline: str, rule: str) -> bool:
    """Whether a rule can choose a pipeline's labels: first goes by the view of a pretrained encoder."""
    return rule != "first" or start_and_endings(pipeline)[0] != "random"


def with_selections(pipelines: Sequence[str], selections: Sequence[str]) -> list[str]:
    """The pipelines of a study with each rule that goes with them in their names: hierarchical, hierarchical+next."""
    return [
        name + f"+{rule}" * (rule != "random") for name in pipelines for rule in selections if goes_with(name, rule)
    ]


def start_and_endings(pipeline: str) -> tuple[str, str]:
    """A pipeline's name in two: hierarchical=FILE+unlabelled+next is hierarchical=FILE and +unlabelled+next."""
    endings = rf"((?:{re.escape(UNLABELLED)})?(?:\+(?:{'|'.join(SELECTIONS)}))?)$"
    found = re.search(endings, pipeline)
    assert found is not None  # it may be empty
    return pipeline[: found.start()], found[0]


def display_name(pipeline: str) -> str:
    """A pipeline's name without folders of this machine: generalist=/home/a/b.pth is generalist=b-1a2b3c.

    It is that of the cells' folders; different files stay different.
    """
    start, endings = start_and_endings(pipeline)
    stage, _, source = start.partition("=")
    return f"{stage}={source_name(source)}{endings}" if source.startswith("/") else pipeline


def source_name(source: str) -> str:
    """The name of a file of weights without its folder and suffix; different paths stay different."""
    return f"{Path(source).stem}-{hashlib.sha256(source.encode(errors='surrogateescape')).hexdigest()[:6]}"


def is_inside(name: str) -> bool:
    """Whether a relative path stays in the folder that it starts from."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _checked(file: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows; UserError if a number of labels, seed, class or score is impossible."""
    for name, least in (("labels", 1), ("subset_seed", 0), ("seed", 0), ("pretrain_seed", 0)):
        if rows[name].dtype.kind not in "iu" or (rows[name] < least).any():
            raise UserError(f"{file} is damaged ({name} must be whole numbers, {least} or more); {ADVICE}")
    names = ("dice", "jaccard", "auc", "probability", "score", "label")
    for name in rows.columns:
        if name in names or str(name).startswith(("dice_", "jaccard_")):
            values = rows[name].to_numpy(float)
            if not (np.isnan(values) | ((values >= 0) & (values <= 1))).all():
                raise UserError(f"{file} is damaged ({name} must lie between 0 and 1); {ADVICE}")
    epochs = rows["pretrain_epochs"].to_numpy(float)
    if not (np.isnan(epochs) | ((epochs >= 0) & np.isfinite(epochs))).all():
        raise UserError(f"{file} is damaged (pretrain_epochs must be 0 or more); {ADVICE}")
    if "fraction" in rows and not rows["fraction"].between(0, 1).all():
        raise UserError(f"{file} is damaged (fraction must lie between 0 and 1); {ADVICE}")
    rows["pipeline"] = [display_name(str(pipeline)) for pipeline in rows["pipeline"]]
    if "label" in rows and not rows["label"].isin([0, 1]).all():
        raise UserError(f"{file} is damaged (label must be 0 or 1); {ADVICE}")
    return rows


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; pass the folder that `python -m sweep --out` wrote")
    return path
