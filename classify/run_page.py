"""What the page of a run of an exam classifier shows: its scores with intervals, and each exam's probability."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from classify.config import ClassifyConfig
from classify.figures import NAMES
from classify.statistics import interval_text
from classify.tables import next_commands
from core.tables import read_table
from core.wording import count_of
from data.pictures import embedded_png
from engine.run_page import Case, CasePage, RunPage, Table

PICTURE = 420
"""Largest width of the ROC curve in pixels."""


def run_page(cfg: ClassifyConfig, folder: Path, result: Mapping[str, Any]) -> RunPage:
    """The page of a finished run.

    Args:
        cfg: its configuration.
        folder: its folder, with `per_exam.csv` and the pictures.
        result: content of `result.json`.
    """
    splits = [split for split in ("val", "test") if split in result]
    last = splits[-1]
    notices = list(result["warnings"])
    if result["synthetic"]:
        notices.insert(0, "Synthetic data: this checks that the software runs; it is no evidence about any method.")
    drawn = {"ROC curve": "roc.png", "calibration": "calibration.png"}
    pictures = {name: embedded_png(folder / file, PICTURE) for name, file in drawn.items() if (folder / file).exists()}
    auc = interval_text(result[last]["auc"])
    return RunPage(
        title=f"Classification of {result['task']} from {count_of(result['train']['exams'], 'exam')}",
        lead=f"AUC {auc} on {count_of(result[last]['exams'], 'exam')}, "
        f"{result[last]['positive']} positive: {NAMES[last]}.",
        notices=notices,
        what_was_run={
            "Training exams": f"{result['train']['exams']}, {result['train']['positive']} positive",
            "Plane": " + ".join(result.get("planes", ())) or result.get("plane", "") or "not named",
            "Start of the encoder": cfg.init,
            "Network": f"{cfg.encoder}, {cfg.norm} norm" + (", linear probe" if cfg.linear_probe else ""),
            "Threshold": f"{result['threshold']['value']:.3f}: {result['threshold']['source']}",
            "Seed": str(cfg.seed),
        },
        tables=[_scores(result, splits), _exams(read_table(folder / "per_exam.csv"))],
        curves={
            "loss": ["loss", "validation_loss"],
            "validation score": ["validation_auc", "validation_accuracy"],
        },
        cases=[Case(title="All scored exams", pages=[CasePage(title="", pictures=pictures)])] if pictures else [],
        cases_text="The ROC curve with the threshold's operating point, and predicted against observed frequency.",
        following=next_commands(folder, cfg.data.data_root),
        notes=["Intervals are 95 % intervals over exams: DeLong's of the AUC, Wilson's of the others."],
    )


def _scores(result: Mapping[str, Any], splits: list[str]) -> Table:
    measures = {"auc": "AUC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}
    rows = [
        [words, *(interval_text(result[split][name]) for split in splits)] for name, words in measures.items()
    ]  # fmt: skip
    for name, words in {"brier": "Brier score", "calibration_error": "calibration error"}.items():
        rows.append([words, *(f"{result[split][name]:.3f}" for split in splits)])
    heads = ["score", *(NAMES[split] for split in splits)]
    return Table(title="Scores", text="With 95 % intervals.", heads=heads, rows=rows, open=True)


def _exams(table: pd.DataFrame) -> Table:
    """Every scored exam, those that are called wrongly first, by how far they are off."""
    off = (table["probability"] - table["label"]).abs()
    ordered = table.assign(wrong=table["called"] != table["label"], off=off)
    ordered = ordered.sort_values(["wrong", "off"], ascending=False, kind="stable")
    rows = [
        [
            str(row["exam"]),
            str(row["split"]),
            str(row["label"]),
            f"{row['probability']:.3f}",
            "✗" if row["wrong"] else "",
        ]
        for _, row in ordered.iterrows()
    ]
    text = "Wrong calls first, by the distance of the probability from the label."
    return Table(title="Exams", text=text, heads=["exam", "split", "label", "probability", "wrong"], rows=rows, words=2)
