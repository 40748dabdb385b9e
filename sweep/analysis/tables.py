"""All tables of a study, from the files in its folder."""

from pathlib import Path

import pandas as pd

from core.errors import UserError
from core.files import write_csv
from sweep.analysis import convergence, learning_curves, statistics
from sweep.analysis.bootstrap import bootstrap
from sweep.analysis.curve_fitting import fit
from sweep.analysis.scores import Scores, scores_from
from sweep.analysis.study_files import read_curves, read_scores


def analyse(folder: Path, measure: str = "dice", draws: int = 2000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Compute every table of a study and write each to statistics/NAME.csv.

    Args:
        folder: folder of the study.
        measure: "dice" or "jaccard", what a segmentation's score is; exams are scored by AUC.
        draws: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Returns:
        by_size, gains, pairs, primary, areas (`sweep.analysis.statistics`), fits, bands, bends, multipliers, backtest
        (`sweep.analysis.learning_curves`), steps, speedups, curve_areas (`sweep.analysis.convergence`).

    Raises:
        UserError: if the study has no scores.
    """
    boot = bootstrap(study_scores(folder, measure), draws, seed)
    runs = convergence.runs_from(read_curves(folder, measure))
    tables = {
        "by_size": statistics.by_size(boot),
        "gains": statistics.gains(boot),
        "pairs": statistics.pairs(boot),
        "primary": statistics.primary(boot),
        "areas": statistics.areas(boot),
        "fits": learning_curves.fits(boot),
        "bands": learning_curves.bands(fit(boot)),
        "bends": learning_curves.bends(boot),
        "multipliers": learning_curves.multipliers(boot),
        "backtest": learning_curves.backtest(boot, seed),
        "steps": convergence.steps(runs, draws, seed),
        "speedups": convergence.speedups(runs, draws, seed),
        "curve_areas": convergence.curve_areas(runs, draws, seed),
    }
    (folder / "statistics").mkdir(exist_ok=True)
    for name, table in tables.items():
        write_csv(folder / "statistics" / f"{name}.csv", table, float_format="%.8g")
    return tables


def study_scores(folder: Path, measure: str = "dice") -> Scores:
    """Scores of a study on the split that `scored_split` names.

    Raises:
        UserError: if the study has no scores, or the measure is unknown.
    """
    rows = read_scores(folder)
    rows = rows[rows["split"] == _scored_split(rows)]
    if "probability" not in rows and measure not in ("dice", "jaccard"):
        raise UserError(f"measure {measure!r} is unknown: choose dice or jaccard")
    return scores_from(rows, measure)


def scored_split(folder: Path) -> str:
    """The split that the analysis uses: "test" if it was scored, else "val"."""
    return _scored_split(read_scores(folder))


def _scored_split(rows: pd.DataFrame) -> str:
    return "test" if (rows["split"] == "test").any() else "val"
