"""Print the scores of a finished classifier run."""

from pathlib import Path
from shlex import quote
from typing import Any

from rich.table import Table

from classify.config import ClassifyConfig
from classify.figures import NAMES
from classify.statistics import interval_text
from core.program import program
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
    folder = cfg.run_folder
    predict, compare = next_commands(folder, cfg.data.data_root).values()
    files = ("result.json", "per_exam.csv", "roc.png", "calibration.png", "report.html")
    console.print(
        f"result:  {folder}: {', '.join(file for file in files if (folder / file).exists())}\n"
        f"next:    {predict}\n         {compare}",
        soft_wrap=True,
    )


def next_commands(folder: Path, data: Path | None) -> dict[str, str]:
    """The commands that come after a finished run, by what they do."""
    run = quote(str(folder))
    return {
        "Classify other exams": f"{program('classify.predict')} --run {run} --input {quote(str(data or 'DIR'))}",
        "Compare with another classifier": f"{program('classify.compare')} {run} OTHER_RUN",
    }
