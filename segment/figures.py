"""Pictures of a segmentation: images with their label maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from core.files import save_figure
from data.pictures import OPACITY, colour_of
from data.readers.discovery import mask_name
from data.readers.label_maps import without_ignored
from segment.metrics import foreground, mean_dice

MOST_PIXELS = 1024
"""Rows and columns of a picture; outlines of the objects in a large image would take minutes and gigabytes."""


def worst_median_best(per_volume: pd.DataFrame, classes: Sequence[str]) -> dict[str, int]:
    """Row positions of the worst, the median and the best volume by mean Dice; fewer where there are fewer.

    Args:
        per_volume: rows of `segment.metrics.score_volume`; those with no counted class are left out.
        classes: foreground names.
    """
    dice = mean_dice(per_volume, classes).to_numpy()
    order = np.argsort(dice, kind="stable")[: np.isfinite(dice).sum()]  # NaN is sorted to the end
    if not len(order):
        return {}
    picked = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    rows = {position: name for name, position in reversed(picked.items())}  # a volume is shown once
    return {name: int(position) for position, name in reversed(rows.items())}


def titles_of_cases(per_volume: pd.DataFrame, classes: Sequence[str]) -> dict[int, str]:
    """Row position -> title of the volumes of `worst_median_best`, in this order.

    Args:
        per_volume: rows of `segment.scoring.score_split`, with codes in place of names if titles shall have them.
        classes: foreground names.
    """
    dice, titles = mean_dice(per_volume, classes), {}
    for name, position in worst_median_best(per_volume, classes).items():
        row = per_volume.iloc[position]
        if row["phase"]:
            volume = f"{row['subject']} {row['phase']}"
        else:  # a subject may have several files, and a file several frames
            frame = f" {row['frame']}" if (per_volume["file"] == row["file"]).sum() > 1 else ""
            volume = mask_name(Path(row["file"])).as_posix() + frame
        titles[position] = f"{name}: {volume}, Dice {dice.iloc[position]:.3f}"
    return titles


def panel_case(
    title: str, image: np.ndarray, reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> dict[str, Any]:
    """One case of `prediction_panel`: the slice with the most reference foreground, else the most predicted.

    Args:
        title: shown above the row.
        image: (slices, rows, columns), any unit.
        reference: label map of the same shape.
        prediction: label map of the same shape.
        spacing: (slice_mm, row_mm, column_mm).
    """
    prediction, reference = without_ignored(prediction, reference)
    labels = reference if reference.any() else prediction
    index = int(np.argmax((labels > 0).sum(axis=(1, 2))))
    return {
        "title": f"{title}, slice {index + 1} of {len(image)}",
        "image": image[index],
        "reference": reference[index],
        "prediction": prediction[index],
        "aspect": spacing[1] / spacing[2],
    }


def prediction_panel(
    cases: Sequence[Mapping[str, Any]], path: Path, classes: Sequence[str] = ("RV", "MYO", "LV")
) -> None:
    """Draw a row per case: image, reference, prediction, cropped to the foreground of either label map.

    Args:
        cases: each with ``title``, ``image`` (rows, columns), ``reference`` and ``prediction`` (label maps of
            that shape) and ``aspect`` (row_mm / column_mm); see `panel_case`.
        path: file to write; its suffix determines the format (.png, .pdf, .svg).
        classes: foreground names, for the legend.

    Source: Kalapos and Gyires-Toth 2022, figure 5.
    """
    figure = Figure(figsize=(7.5, 0.4 + 2.75 * len(cases)), layout="constrained", facecolor="white")
    rows = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
    for row, case in zip(rows, cases, strict=True):
        row.suptitle(case["title"], fontsize=10, fontweight="bold", parse_math=False)
        window = foreground_window((case["reference"] > 0) | (case["prediction"] > 0), case["aspect"])
        image = case["image"][window]
        low, high = np.percentile(image, (1, 99))
        axes = row.subplots(1, 3)
        for axis, name in zip(axes, ("image", "reference", "prediction"), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=case["aspect"])
            axis.set_axis_off()
            axis.set_title(name, fontsize=9)
            if name != "image":
                _draw_labels(axis, case[name][window], case["aspect"])
    handles = [
        # matplotlib leaves a label that begins with an underscore out of the legend
        Line2D([], [], color=colour_of(i + 1), linewidth=5, label=f" {name}" if name[0] == "_" else name)
        for i, name in enumerate(foreground(classes))
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is no formula
    save_figure(path, figure, dpi=200)


def foreground_window(foreground: np.ndarray, aspect: float) -> tuple[slice, slice]:
    """A square (in mm) of 1.5 times the width of the foreground, cut to the image; the image without foreground.

    Of a large window every n-th row and column, so that at most `MOST_PIXELS` of each are drawn.

    Args:
        foreground: (rows, columns) boolean.
        aspect: row_mm / column_mm.
    """
    rows, columns = (np.flatnonzero(foreground.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        step = _step(max(foreground.shape))
        return slice(None, None, step), slice(None, None, step)
    low, high = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]]) + 1
    scale = np.array([aspect, 1.0])  # column widths per voxel
    half = 0.75 * max((high - low) * scale) / scale
    start = np.maximum(np.floor((low + high) / 2 - half), 0).astype(int)
    stop = np.ceil((low + high) / 2 + half).astype(int)
    step = _step(max(np.minimum(stop, foreground.shape) - start))
    return slice(start[0], stop[0], step), slice(start[1], stop[1], step)


def _step(side: int) -> int | None:
    return -(-side // MOST_PIXELS) if side > MOST_PIXELS else None


def _draw_labels(axis: Axes, labels: np.ndarray, aspect: float) -> None:
    """Draw a translucent label map with its outlines."""
    for label in range(1, int(labels.max()) + 1):
        mask = labels == label
        if mask.any():
            colour = colour_of(label)
            overlay = np.dstack([np.broadcast_to(to_rgb(colour), (*mask.shape, 3)), mask * OPACITY])
            axis.imshow(overlay, aspect=aspect, interpolation="nearest")
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4)
