"""Print the scores of a finished classifier run."""

from shlex import quote
from typing import Any

from rich.table import Table

from classify.config import ClassifyConfig
from classify.figures import NAMES
from classify.statistics import interval_text
from core.terminal import terminal


def print_result(result: dict[str, Any], cfg: ClassifyConfig) -> None:
    """Print the scores of each split and the commands that come next."""
    console = terminal()
    splits = [split for split in ("val", "test") if split in result]
    threshold = result["threshold"]
    table = Table("", title=f"{result['task']}, threshold {threshold['value']:.3f}: {threshold['source']}")
    for split in splits:
        table.add_column(NAMES[split], justify="right")
    for name in ("auc", "accuracy", "sensitivity", "specificity"):
        cells = [interval_text(result[split][name]) for split in splits]
        table.add_row({"auc": "AUC"}.get(name, name), *cells)
    table.add_row("AUC of a single clip", *(f"{result[split]['single_draw']['auc']['value']:.3f}" for split in splits))
    table.add_row("Brier score", *(f"{result[split]['brier']:.3f}" for split in splits))
    table.add_row("calibration error", *(f"{result[split]['calibration_error']:.3f}" for split in splits))
    table.add_row("exams (positive)", *(f"{result[split]['exams']} ({result[split]['positive']})" for split in splits))
    console.print(table)
    if result["synthetic"]:
        console.print("synthetic data: this checks that the software runs; it is no evidence about any method")
    folder, data = cfg.run_folder, cfg.data.data_root or "DIR"
    files = ("result.json", "per_exam.csv", "roc.png", "calibration.png")
    console.print(
        f"result:  {folder}: {', '.join(file for file in files if (folder / file).exists())}\n"
        f"next:    python -m classify.predict --run {quote(str(folder))} --input {quote(str(data))}\n"
        f"         python -m classify.compare {quote(str(folder))} OTHER_RUN",
        soft_wrap=True,
    )
