"""Scores of a classifier of images: accuracy by class and by frequency, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.metrics import confusion_matrix

from classify.statistics import interval_text, mean_proportion, proportion
from core.files import save_figure, write_csv
from core.subjects import anonymised
from core.terminal import terminal
from data.readers.class_images import ClassImages

GROUPS = ("frequent", "medium", "rare")


def frequency_groups(counts: Sequence[int]) -> dict[str, list[int]]:
    """Class indices of the frequent, medium and rare third of the classes by training images.

    The first thirds are larger by one where three does not divide. Empty if all classes are equally frequent, to within
    one image.
    """
    if len(counts) < 3 or max(counts) - min(counts) <= 1:
        return {}
    order = np.argsort(-np.asarray(counts), kind="stable")
    return {name: sorted(map(int, part)) for name, part in zip(GROUPS, np.array_split(order, 3), strict=True)}


def score_images(
    images: ClassImages, predicted: np.ndarray, counts: Sequence[int], folder: Path, *, anonymous: bool = False
) -> dict[str, Any]:
    """Score the test images; write `per_image.csv`, `confusion.csv` and `confusion.png`.

    Args:
        images: the data set.
        predicted: (test images,) class indices.
        counts: images of each class that the encoder was trained on, which make the groups.
        folder: the run folder.
        anonymous: write codes in place of the names of files.

    Returns:
        accuracy (value, low, high: the mean of the classes' accuracies, so that each class counts the same, and its
        95 % interval), per_class (the same of each class, with training and test images), groups (the same of the
        frequent, medium and rare classes), untested_classes (names of the classes without test images, which are left
        out of all others).
    """
    labels, names = images.labels[images.test], images.classes
    matrix = confusion_matrix(labels, predicted, labels=range(len(names)))
    table = pd.DataFrame({"file": [images.files[k] for k in images.test], "label": labels, "predicted": predicted})
    write_csv(folder / "per_image.csv", anonymised(table) if anonymous else table)
    write_csv(
        folder / "confusion.csv", pd.DataFrame(matrix, index=names, columns=names), index=True, index_label="class"
    )
    confusion_figure(matrix, names, folder / "confusion.png")
    right, total = matrix.diagonal(), matrix.sum(axis=1)
    tested = np.flatnonzero(total)
    groups = {group: np.intersect1d(members, tested) for group, members in frequency_groups(counts).items()}
    return {
        "accuracy": mean_proportion(right[tested], total[tested]),
        "per_class": [
            {"class": name, "training_images": int(counts[k]), "test_images": int(total[k])}
            | proportion(int(right[k]), int(total[k]))
            for k, name in enumerate(names)
            if total[k]
        ],
        "groups": {
            group: {"classes": [names[k] for k in members]} | mean_proportion(right[members], total[members])
            for group, members in groups.items()
            if len(members)
        },
        "untested_classes": [name for k, name in enumerate(names) if not total[k]],
    }


def confusion_figure(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row as shares of its class, with percentages where they are legible."""
    count = len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.2 + 0.45 * count)
    figure = Figure(figsize=(side, side), layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 20:
        for row, column in np.ndindex(count, count):
            if matrix[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = f"{100 * shares[row, column]:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(count), names, rotation=45, ha="right")
        axis.set_yticks(range(count), names)
    axis.set(xlabel="predicted class", ylabel="true class", title="percent of the true class")
    save_figure(path, figure, dpi=150)


def print_scores(result: dict[str, Any], folder: Path) -> None:
    """Print the scores of a finished run."""
    console = terminal()
    table = Table("", "training images", "accuracy (95 %)", title=f"{result['dataset']}: test images")
    for row in result["per_class"]:
        table.add_row(row["class"], str(row["training_images"]), interval_text(row))
    untested = result.get("untested_classes", [])  # not in the results of earlier runs
    for name in untested:
        table.add_row(name, "", "no test images")
    for name, row in result["groups"].items():
        table.add_row(f"mean of the {name} classes", "", interval_text(row))
    tested = len(result["per_class"])
    which = f"{tested} of {tested + len(untested)}" if untested else f"all {tested}"
    table.add_row(f"mean of {which} classes", "", interval_text(result["accuracy"]))
    console.print(table)
    console.print(f"result:  {folder}: result.json, per_image.csv, confusion.csv, confusion.png", soft_wrap=True)
