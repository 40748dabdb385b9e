"""`python -m sweep.forecast --results DIR --target 0.85`: labels needed for a score, and the gain from more labels."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.table import Table

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.settings import Settings
from core.terminal import terminal
from sweep.analysis.bootstrap import bootstrap, require_resamples
from sweep.analysis.curve_fitting import fit
from sweep.analysis.forecasts import labels_needed, next_labels
from sweep.analysis.learning_curves import backtest
from sweep.analysis.study_files import read_results, require_all_cells
from sweep.analysis.tables import scored_split, study_scores
from sweep.report.study_folder import NAMES, is_synthetic, read_plan, read_settings

EXAMPLES = ("--results runs/study --target 0.85", "--results runs/study --target 0.9 --at 75 --more 25")


@dataclass(frozen=True, kw_only=True)
class Forecast(Settings):
    """Predict from a study's learning curves how many labels a target score takes, with intervals.

    Where that cannot be predicted, the reason is printed.
    """

    results: Path
    """Folder of a study (`--out` of `python -m sweep`)."""
    target: float
    """Score to reach, in (0, 1): Dice (or Jaccard) of a segmentation, AUC of a classifier."""
    at: float | None = None
    """Current number of labels; None: the largest size of the study."""
    more: float = 10
    """Number of labels to add, above 0."""
    measure: Literal["dice", "jaccard"] | None = None
    """Score of a segmentation; None: that of the study. Exams are always scored by AUC."""
    draws: int = 2000
    """Number of bootstrap resamples, 100 or more."""
    seed: int = 0
    """Random seed of the bootstrap, 0 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target < 1:
            raise UserError(f"--target {self.target}: must lie in (0, 1), e.g. 0.85")
        for name in ("at", "more"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value}: must be above 0")
        require_resamples(self.draws, self.seed)


def run(cfg: Forecast) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Print the forecast of every pipeline.

    Returns:
        The tables of `labels_needed` and `next_labels`.

    Raises:
        UserError: if the folder holds no study or no scores.
    """
    measure = cfg.measure or read_settings(cfg.results).get("measure") or "dice"
    results, plan = read_results(cfg.results), read_plan(cfg.results)
    require_all_cells(cfg.results, results)
    boot = bootstrap(study_scores(cfg.results, measure), cfg.draws, cfg.seed)
    curves, unit = fit(boot), plan["unit"]
    at = float(boot.scores.labels[-1]) if cfg.at is None else cfg.at
    needed, gains = labels_needed(curves, cfg.target, unit), next_labels(curves, at, cfg.more, unit)

    console = terminal(highlight=False, soft_wrap=True)
    score, split = "AUC" if plan["task"] == "classify" else NAMES[measure], scored_split(cfg.results)
    for title, table in (
        (f"labels needed for {score} {cfg.target:g} on the {NAMES.get(split, split)} split", needed),
        (f"gain in {score} from {cfg.more:g} more {unit} at {at:g}", gains),
    ):
        console.print(title, style="bold")
        for answer in table["answer"]:
            console.print(f"  {answer}")
    tested = backtest(boot, cfg.seed).dropna(subset=["observed", "low", "high"])
    if len(tested):
        console.print(_backtest_table(tested))
        inside = int(tested["inside"].astype(bool).sum())
        console.print(f"{inside} of {len(tested)} errors at larger sizes lay inside the interval predicted for them")
    if is_synthetic(results):
        console.print("synthetic phantom: this checks that the software runs; it is no evidence about any method")
    return needed, gains


def _backtest_table(rows: pd.DataFrame) -> Table:
    table = Table(title="back-test: error predicted from the smaller sizes, and error observed")
    for heading in ("pipeline", "fitted up to", "labels", "predicted", "95 % interval", "observed"):
        table.add_column(heading, justify="left" if heading == "pipeline" else "right")
    for row in rows.to_dict("records"):
        between = f"{row['low']:.3f}-{row['high']:.3f}"
        numbers = (f"{row['fitted_on']:g}", f"{row['labels']:g}", f"{row['predicted']:.3f}", between)
        table.add_row(row["pipeline"], *numbers, f"{row['observed']:.3f}" + ("" if row["inside"] else " outside"))
    return table


def main() -> None:
    """Parse the command line and print the forecast."""
    with user_errors():
        run(parse_command(Forecast, "python -m sweep.forecast", EXAMPLES))


if __name__ == "__main__":
    main()
