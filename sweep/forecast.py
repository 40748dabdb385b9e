"""`python -m sweep.forecast --results DIR --target 0.85`: how many labels are needed, what are the next ones worth?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from data.errors import UserError, user_errors
from engine.config import read_config
from sweep.analysis import scored_split, study_scores
from sweep.config import SweepConfig
from sweep.grid import unit
from sweep.learning_curves import backtest, fit, labels_needed, next_labels
from sweep.statistics import bootstrap


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Say from a study's learning curves what a target score takes, with intervals, or why that cannot be said."""

    results: Path
    """Folder of a study (`--out` of `python -m sweep`)."""
    target: float
    """Score to reach, in (0, 1): Dice (or Jaccard) of a segmentation, AUC of a classifier."""
    at: float | None = None
    """Number of labels you have; None: the largest size of the study."""
    more: float = 10
    """Number of labels that you think of adding."""
    measure: Literal["dice", "jaccard"] = "dice"
    """Which score of a segmentation."""
    draws: int = 2000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UserError(f"--target {self.target}: must lie in (0, 1), e.g. 0.85")
        if self.at is not None and self.at <= 0:
            raise UserError(f"--at {self.at}: must be above 0")
        if self.more <= 0 or self.draws < 100 or self.seed < 0:
            raise UserError("--more must be above 0, --draws 100 or more, --seed 0 or more")


def run(cfg: Forecast) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Print the forecast of every pipeline.

    Returns:
        The tables of `labels_needed` and `next_labels`.

    Raises:
        UserError: when the folder holds no study or no scores.
    """
    if not (cfg.results / "study.json").is_file():
        raise UserError(f"{cfg.results} holds no study (no study.json); give the --out folder of python -m sweep")
    study = read_config(SweepConfig, cfg.results / "study.json")
    boot = bootstrap(study_scores(cfg.results, cfg.measure), cfg.draws, cfg.seed)
    curves, labels = fit(boot), unit(study)
    needed = labels_needed(curves, cfg.target, labels)
    at = float(boot.scores.labels[-1]) if cfg.at is None else cfg.at
    worth = next_labels(curves, at, cfg.more, labels)

    console = Console()
    score = "AUC" if study.task == "classify" else {"dice": "Dice", "jaccard": "Jaccard"}[cfg.measure]
    split = {"val": "validation", "test": "test"}[scored_split(cfg.results)]
    console.print(f"[bold]{score} of {cfg.target:g} on the {split} split[/]", soft_wrap=True, highlight=False)
    for answer in needed["answer"]:
        console.print(f"  {answer}", soft_wrap=True, highlight=False)
    console.print(f"[bold]you are at {at:g} {labels}: the next {cfg.more:g} are worth[/]", highlight=False)
    for answer in worth["answer"]:
        console.print(f"  {answer}", soft_wrap=True, highlight=False)
    checked = backtest(boot, cfg.seed).dropna(subset=["observed", "low", "high"])
    if len(checked):
        console.print(_backtest_table(checked))
        inside = int(checked["inside"].astype(bool).sum())
        console.print(
            f"of {len(checked)} larger sizes, forecast from the smaller ones alone, {inside} lay inside their interval",
            soft_wrap=True,
        )
    if study.data_root is None:
        console.print("synthetic phantom: this shows that the plumbing works, nothing about patients")
    return needed, worth


def _backtest_table(rows: pd.DataFrame) -> Table:
    table = Table(title="back-test: error forecast from the smaller sizes, and the error observed")
    for heading in ("pipeline", "fitted up to", "labels", "forecast", "95 % interval", "observed"):
        table.add_column(heading, justify="left" if heading == "pipeline" else "right")
    for row in rows.to_dict("records"):
        between = f"{row['low']:.3f}-{row['high']:.3f}"
        numbers = (f"{row['fitted_on']:g}", f"{row['labels']:g}", f"{row['predicted']:.3f}", between)
        table.add_row(row["pipeline"], *numbers, f"{row['observed']:.3f}" + ("" if row["inside"] else " outside"))
    return table


if __name__ == "__main__":
    with user_errors():
        run(tyro.cli(Forecast, prog="python -m sweep.forecast"))
