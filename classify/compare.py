"""`python -m classify.compare RUN RUN`: compare two classifiers on the same exams."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tyro

from classify.statistics import auc_with_interval, confusion_counts, delong_test, interval_text, mcnemar
from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.settings import Settings
from core.tables import read_table
from core.terminal import terminal
from core.wording import count_of

COLUMNS = ("exam", "split", "label", "probability", "called")


@dataclass(frozen=True, kw_only=True)
class Compare(Settings):
    """Compare two runs of `python -m classify` exam by exam: areas under the ROC curve, calls at their thresholds."""

    runs: tyro.conf.Positional[tuple[Path, Path]]
    """Two run folders."""
    split: Literal["test", "val"] = "test"
    """Split whose exams are compared."""


def run(cfg: Compare) -> dict[str, Any]:
    """Print and return the comparison.

    Returns:
        exams, positive, auc (of both, with intervals), difference (see `delong_test`), accuracy (of both), mcnemar
        (see `mcnemar`).

    Raises:
        UserError: if a run has no scores, or the exams or their labels are not the same.
    """
    first, second = (_read(folder, cfg.split) for folder in cfg.runs)
    if different := sorted(set(first.index) ^ set(second.index)):
        raise UserError(
            f"{cfg.runs[0]} and {cfg.runs[1]} were not scored on the same exams: {different[0]} and "
            f"{len(different) - 1} more are in one of them only; compare runs of the same data and split seed"
        )
    second = second.loc[first.index]
    if (wrong := first["label"] != second["label"]).any():
        raise UserError(
            f"{cfg.runs[0]} and {cfg.runs[1]} label exam {wrong.idxmax()} differently; compare runs of one task"
        )
    labels = first["label"].to_numpy()
    scores, calls = ([table[column].to_numpy() for table in (first, second)] for column in ("probability", "called"))
    counts = [confusion_counts(labels, called) for called in calls]
    result = {
        "exams": len(labels),
        "positive": int(labels.sum()),
        "auc": [auc_with_interval(labels, each) for each in scores],
        "difference": delong_test(labels, *scores),
        "accuracy": [(each["tp"] + each["tn"]) / len(labels) for each in counts],
        "mcnemar": mcnemar(labels, *calls),
    }
    _print(result, cfg)
    return result


def _read(folder: Path, split: str) -> pd.DataFrame:
    """The scores of one split, by exam."""
    file = folder / "per_exam.csv"
    if not file.is_file():
        raise UserError(f"{folder} holds no per_exam.csv; pass a finished run of python -m classify")
    table = read_table(file, COLUMNS, "it is not the table of a classifier run, score the run again")
    table = table.loc[table["split"] == split, list(COLUMNS)]
    valid = table["label"].isin([0, 1]) & table["called"].isin([0, 1]) & table["probability"].between(0, 1)
    if not valid.all():
        raise UserError(f"{file}: exam {table['exam'][~valid].iloc[0]} has impossible scores; score the run again")
    if (repeated := table["exam"].duplicated()).any():
        raise UserError(f"{file}: exam {table['exam'][repeated].iloc[0]} is there twice; score the run again")
    if table["label"].nunique() < 2:
        raise UserError(
            f"{file} has no {split} exams of both classes; choose the other --split, or train without --no-test"
        )
    return table.set_index("exam")


def _print(result: dict[str, Any], cfg: Compare) -> None:
    console = terminal(soft_wrap=True)
    console.print(f"{count_of(result['exams'], f'{cfg.split} exam')}, {result['positive']} positive")
    for folder, auc, accuracy in zip(cfg.runs, result["auc"], result["accuracy"], strict=True):
        console.print(f"{folder}: AUC {interval_text(auc)}, accuracy {accuracy:.3f}")
    difference, errors = result["difference"], result["mcnemar"]
    console.print(
        f"difference of the AUCs {difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f}), "
        f"DeLong z = {difference['z']:.2f}, p = {difference['p']:.3g}"
    )
    console.print(
        f"right in the first only {errors['first_only_right']}, in the second only {errors['second_only_right']} "
        f"exams, McNemar's exact p = {errors['p']:.3g}"
    )


if __name__ == "__main__":
    with user_errors():
        run(parse_command(Compare, "python -m classify.compare", ("RUN OTHER_RUN", "RUN OTHER_RUN --split val")))
