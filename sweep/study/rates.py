"""The learning rate of each pipeline, chosen on an inner part of the labelled training subjects.

One rate for all starts favours the starts that it fits. So each pipeline tries every rate once, on labels and
validation subjects that are both taken from the training split (`data.splits.inner_splits`): the subjects that the
study reports on have no part in the choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.errors import UserError
from core.files import write_json
from sweep.analysis.study_files import read_json

SHARE = 0.05
"""Share of the labelled training set that a rate is tried on: 75 of ACDC's 1,498 slices, where the error curves of
Kalapos and Gyires-Toth 2022 (section 5.2) bend. It does not depend on the sizes, so that `--extend` changes no choice.
"""
FEWEST = {"slices": 8, "patients": 2, "exams": 8}
"""Least number of labels that a rate is tried on."""
FILE = "chosen.json"
"""In the folder of a pipeline's trials: the rate chosen and all scores. While it exists, the choice stands."""


class _Chosen(BaseModel):
    lr: float


def fraction_to_try(total: int, unit: str) -> float:
    """Fraction of the labels of the inner training part, two thirds of the whole, to try a rate on.

    Args:
        total: number of labelled training slices, patients or exams.
        unit: which of them, in the plural.
    """
    return min(1.0, max(SHARE * total, FEWEST[unit]) / (2 / 3 * total))


def chosen_rate(trials: Sequence[tuple[float, Path]]) -> float:
    """The rate with the best score on the inner validation subjects; of equal ones the lowest.

    A rate whose run failed, as too high a one may, is not chosen. The choice is written beside the trials and then
    kept, so that all cells of a pipeline have the same rate whenever they run.

    Args:
        trials: rate and run folder of each trial of a pipeline; all have ended.

    Raises:
        UserError: if every trial failed, or its result is damaged.
    """
    file = trials[0][1].parent / FILE
    if file.is_file():
        return float(read_json(file, _Chosen)["lr"])
    scores = {rate: score for rate, folder in trials if (score := _score(folder)) is not None}
    if not scores:
        raise UserError(f"no learning rate could be tried: see error.txt in the folders of {file.parent}")
    best = max(scores, key=lambda rate: (scores[rate], -rate))
    tried = [{"lr": rate, "score": scores.get(rate)} for rate, _ in trials]
    write_json(file, {"lr": best, "trials": tried})
    return best


def _score(folder: Path) -> float | None:
    """Dice or AUC on the inner validation subjects; None if the run has no result."""
    if not (folder / "result.json").is_file():
        return None
    result: dict[str, Any] = read_json(folder / "result.json")
    try:
        score = result["val"]["auc"]["value"] if "val" in result else result["dice"]["mean"]
        return None if score is None else float(score)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'result.json'} is damaged: remove the folder {folder} and run again") from None
