"""All tables of a study, from the files that its cells left."""

from pathlib import Path

import pandas as pd

from data.errors import UserError
from sweep import convergence, learning_curves, statistics
from sweep.statistics import Scores, scores_from


def analyse(folder: Path, measure: str = "dice", draws: int = 2000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Compute every table of a study and write each to statistics/NAME.csv.

    Args:
        folder: of the study.
        measure: "dice" or "jaccard", what a segmentation's score is; exams are scored by AUC.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        by_size, pairs, primary, areas (see `sweep.statistics`), fits, bands, bends, multipliers, backtest
        (`sweep.learning_curves`), steps, speedups, curve_areas (`sweep.convergence`).

    Raises:
        UserError: if the study has no scores.
    """
    boot = statistics.bootstrap(study_scores(folder, measure), draws, seed)
    runs = convergence.runs_from(pd.read_parquet(_present(folder / "curves.parquet")))
    tables = {
        "by_size": statistics.by_size(boot),
        "pairs": statistics.pairs(boot),
        "primary": statistics.primary(boot),
        "areas": statistics.areas(boot),
        "fits": learning_curves.fits(boot),
        "bands": learning_curves.bands(learning_curves.fit(boot)),
        "bends": learning_curves.bends(boot),
        "multipliers": learning_curves.multipliers(boot),
        "backtest": learning_curves.backtest(boot, seed),
        "steps": convergence.steps(runs, draws, seed),
        "speedups": convergence.speedups(runs, draws, seed),
        "curve_areas": convergence.curve_areas(runs, draws, seed),
    }
    (folder / "statistics").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / "statistics" / f"{name}.csv", index=False, float_format="%.8g")
    return tables


def study_scores(folder: Path, measure: str = "dice") -> Scores:
    """Scores of a study on the split that `scored_split` names.

    Raises:
        UserError: if the study has no scores, or not this measure.
    """
    rows = _cells(folder)
    rows = rows[rows["split"] == scored_split(folder)]
    if "probability" not in rows and measure not in ("dice", "jaccard"):
        raise UserError(f"measure {measure!r} is unknown: choose dice or jaccard")
    return scores_from(rows, measure)


def scored_split(folder: Path) -> str:
    """The split that a study is judged on: "test" where that was scored, else "val"."""
    return "test" if (_cells(folder)["split"] == "test").any() else "val"


def _cells(folder: Path) -> pd.DataFrame:
    """Rows of volumes or exams, with the labelled subjects of their cells where the study counted them."""
    path = folder / "per_exam.csv"
    if not path.is_file():
        path = folder / "per_volume.csv"
    rows = pd.read_csv(_present(path), dtype={"subject": str, "exam": str, "pipeline": str})
    if rows.empty:
        raise UserError(f"{path}: holds no scores, for no cell has finished; run the sweep again")
    results = pd.read_csv(_present(folder / "results.csv"))
    if "labelled_subjects" in results:
        subjects = results.drop_duplicates("cell").set_index("cell")["labelled_subjects"]
        rows["labelled_subjects"] = rows["cell"].map(subjects)
    return rows


def _present(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the folder of a study that `python -m sweep` wrote")
    return path
