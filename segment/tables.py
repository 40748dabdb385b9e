"""Tables of segmentation scores and predicted volumes on the terminal."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from core.program import program
from core.terminal import terminal
from core.wording import count_of
from segment.clinical import ejection_fractions


def print_result(result: dict[str, Any], folder: Path, images: Path | None) -> None:
    """Print the scores of a finished run and the next command, with `images`, the folder of the data set, if any."""
    console = terminal()
    scores = {"val": result} | ({"test": result["test"]} if "test" in result else {})
    for name, part in scores.get("test", {}).get("parts", {}).items():  # each by itself, below what mixes them
        scores[f"test ({name} patients)"] = part
    for split, summary in scores.items():
        console.print(f"{split} split:")
        for table in result_tables(summary):
            console.print(table)
    if result["synthetic"]:
        console.print("synthetic data: this checks that the software runs; it is no evidence about any method")
    files = ("result.json", "per_volume.csv", "predictions.png", "learning_curve.png", "report.html")
    console.print(
        f"result:  {folder}: {', '.join(file for file in files if (folder / file).exists())}\n"
        f"next:    {next_command(folder, images)}",
        soft_wrap=True,
    )


def next_command(folder: Path, images: Path | None) -> str:
    """The command that segments the images of a data set, or a file, with a finished run."""
    what = quote(str(images or "FILE.nii.gz"))
    return f"{program('segment.predict')} --run {quote(str(folder))} --input {what} --output OUT"


def result_tables(result: dict[str, Any]) -> Iterator[Table]:
    """The summary of `segment.metrics.summarise` as tables: scores, then clinical read-outs."""
    title = f"mean over {count_of(result['patients'], 'patient')}, {count_of(result['volumes'], 'volume')}; "
    title += f"slice-wise Jaccard {_format(result['slice_jaccard'], 4)}"
    table = table_of(title, "phase", "class", "Dice", "Jaccard", "HD95 mm", "ASSD mm", "both empty", "one empty")
    for phase, scores in {"all": result, **result.get("phases", {})}.items():
        for name in scores["dice"]:
            overlap = [_format(scores[measure][name], 4) for measure in ("dice", "jaccard")]
            distance = [_format(scores[measure][name], 2) for measure in ("hd95_mm", "assd_mm")]
            empty = [str(counts.get(name, sum(counts.values()))) for counts in scores["not_counted"].values()]
            table.add_row(phase, name, *overlap, *distance, *empty)
        table.add_section()
    yield table
    if "parity_ssl4mis" in result:
        title = "as SSL4MIS scores (slices stretched to 256 x 256, voxels, mean over volumes): for its tables only"
        table = table_of(title, "class", "Dice", "Jaccard", "HD95 voxels", "ASD voxels")
        measures = result["parity_ssl4mis"]
        for name in measures["dice"]:
            digits = {"dice": 4, "jaccard": 4}
            table.add_row(name, *(_format(scores[name], digits.get(of, 2)) for of, scores in measures.items()))
        yield table
    if "clinical" in result:
        title = "clinical read-outs: means over patients, errors of the prediction"
        headings = ("read-out", "predicted", "reference", "bias", "absolute error", "patients", "missing")
        table = table_of(title, *headings)
        for name, values in result["clinical"].items():
            *numbers, count, missing = values.values()
            table.add_row(name, *(_format(number, 1) for number in numbers), str(count), str(missing))
        yield table


def table_of(title: str, *headings: str) -> Table:
    """An empty table with names on the left and numbers on the right of their columns."""
    table = Table(title=title)
    for heading in headings:
        is_name = heading in ("phase", "class", "read-out", "file")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name and heading != "file")
    return table


def _format(number: float | None, digits: int) -> str:
    return "–" if number is None else f"{number:.{digits}f}"


def print_volumes(
    table: pd.DataFrame, output: Path, uncertainty: Path | None = None, contact_sheet: Path | None = None
) -> None:
    """Print the volumes and ejection fractions of a prediction, and what was written.

    Args:
        table: of `segment.predict.run`.
        output: folder of the label maps.
        uncertainty: folder of the uncertainty maps, if any.
        contact_sheet: its file, if any.
    """
    console = terminal()
    classes = [column.removeprefix("volume_ml_") for column in table.columns if column.startswith("volume_ml_")]
    if table[[f"volume_ml_{name}" for name in classes]].notna().any(axis=None):
        heads = [*(f"{name} mL" for name in classes), *["predicted Dice"] * ("predicted_dice" in table)]
        summary = table_of("volumes", "file", "phase", "frame", *heads)
        is_single = table.groupby("file")["frame"].transform("size") == 1
        for _, row in table[(table["phase"] != "") | is_single].iterrows():
            values = [(row[f"volume_ml_{name}"], ".1f") for name in classes]
            values += [(row["predicted_dice"], ".2f")] if "predicted_dice" in row else []
            numbers = ["–" if np.isnan(value) else format(value, digits) for value, digits in values]
            summary.add_row(Path(row["file"]).name, row["phase"], str(row["frame"]), *numbers)
        if summary.row_count:
            console.print(summary)
        for chamber in (name for name in ("LV", "RV") if name in classes):
            for _, row in ejection_fractions(table, chamber).iterrows():
                console.print(
                    f"{row['source']}: {chamber} {row['ed_ml']:.0f} mL at ED, {row['es_ml']:.0f} mL at ES, "
                    f"ejection fraction {row['ejection_fraction']:.0f} %",
                    soft_wrap=True,
                )
    console.print(
        f"written: {count_of(table['file'].nunique(), 'label map')} and volumes.csv in {output}", soft_wrap=True
    )
    if uncertainty is not None:
        console.print(
            f"uncertainty maps: {uncertainty}; their means are mean_entropy_nats in volumes.csv", soft_wrap=True
        )
    if contact_sheet is not None:
        console.print(f"contact sheet: {contact_sheet}", soft_wrap=True)
    if "predicted_dice" in table:
        console.print("agreement of the runs: predicted_dice in volumes.csv; check the lowest first")
