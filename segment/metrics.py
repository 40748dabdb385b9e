"""Scores of a segmentation: one row per 3D volume, and the summary of many rows.

The rules: scores are of whole volumes, averaged per patient and then over patients. A class that is empty in
prediction and reference alike is not counted; a class empty in one of them has Dice 0 and no distance. Every
summary says how often either happened.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data.preprocessing import LARGE_SLICE
from data.readers.label_maps import IGNORED, without_ignored
from segment.clinical import clinical_errors

MEASURES = ("dice", "jaccard", "hd95_mm", "assd_mm")


def foreground(classes: Sequence[str]) -> list[str]:
    """The class names of labels 1, 2, ...; a leading "background" is dropped."""
    return list(classes[1:] if classes and classes[0] == "background" else classes)


def dice_per_class(prediction: np.ndarray, reference: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Dice of each foreground class of one volume, without distances; NaN where both are empty."""
    scores = {}
    prediction, reference = without_ignored(prediction, reference)
    for label, name in enumerate(classes[1:], start=1):
        p, r = prediction == label, reference == label
        total = int(p.sum()) + int(r.sum())
        scores[name] = 2 * int((p & r).sum()) / total if total else float("nan")
    return scores


def score_volume(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], classes: Sequence[str]
) -> dict[str, float]:
    """Score one volume, class by class.

    Args:
        prediction: (slices, rows, columns) label map, 0 background, i + 1 the i-th foreground class.
        reference: label map of the same shape; voxels that are `IGNORED` are left out of all scores.
        spacing: (slice_mm, row_mm, column_mm).
        classes: foreground names; a leading "background" is dropped.

    Returns:
        A flat row. Per class X: ``dice_X`` and ``jaccard_X`` in [0, 1], NaN where X is empty in both;
        ``hd95_mm_X`` and ``assd_mm_X``, NaN where X is empty in either; ``volume_ml_X`` (prediction) and
        ``reference_ml_X``. Once: ``slice_jaccard``, the paper's score: the mean over slices and all classes,
        background included, where a class absent from both sides of a slice scores 1; and ``slices``, the number of
        slices that are not ignored as a whole.

    Raises:
        ValueError: if the shapes differ or a label has no class name.

    Source: Kalapos and Gyires-Toth 2022, section 3, and their code (``inference_acdc.py``) for ``slice_jaccard``.
    """
    classes = foreground(classes)
    if prediction.shape != reference.shape or reference.ndim != 3:
        shapes = f"prediction {prediction.shape}, reference {reference.shape}"
        raise ValueError(f"both must have the same shape (slices, rows, columns): {shapes}")
    ignored = (reference == IGNORED).sum(axis=(1, 2))
    prediction, reference = without_ignored(prediction, reference)
    for label in (min(prediction.min(), reference.min()), max(prediction.max(), reference.max())):
        if not 0 <= label <= len(classes):
            raise ValueError(f"label {label} has no name among background, {', '.join(classes)}")

    confusion = _confusion(prediction, reference, len(classes) + 1)
    confusion[:, 0, 0] -= ignored  # which `without_ignored` made background
    both = np.diagonal(confusion, axis1=1, axis2=2)  # (slices, classes) voxels, as `predicted` and `true` below
    predicted, true = confusion.sum(axis=1), confusion.sum(axis=2)
    union = predicted + true - both
    annotated = ignored < reference[0].size  # a slice of which all is to be ignored is no slice that was got right
    slice_jaccard = np.where(union == 0, 1.0, both / np.maximum(union, 1))[annotated]

    both, predicted, true, union = (count.sum(axis=0) for count in (both, predicted, true, union))
    voxel_ml = math.prod(spacing) / 1000
    row: dict[str, float] = {}
    for label, name in enumerate(classes, start=1):
        hd95, assd = surface_distances(prediction == label, reference == label, spacing)
        counted = union[label] > 0
        row[f"dice_{name}"] = 2 * both[label] / (predicted[label] + true[label]) if counted else math.nan
        row[f"jaccard_{name}"] = both[label] / union[label] if counted else math.nan
        row[f"hd95_mm_{name}"], row[f"assd_mm_{name}"] = hd95, assd
        row[f"volume_ml_{name}"] = predicted[label] * voxel_ml
        row[f"reference_ml_{name}"] = true[label] * voxel_ml
    row = {column: float(value) for column, value in row.items()}
    row["slice_jaccard"] = float(slice_jaccard.mean()) if annotated.any() else math.nan
    return {**row, "slices": int(annotated.sum())}


def _confusion(prediction: np.ndarray, reference: np.ndarray, labels: int) -> np.ndarray:
    """Voxel counts (slices, labels of the reference, labels of the prediction)."""
    counts = np.zeros((len(reference), labels**2), np.int64)
    for count, true, predicted in zip(counts, reference, prediction, strict=True):
        true, predicted = true.ravel(), predicted.ravel()
        for first in range(0, len(true), LARGE_SLICE):  # cells take eight bytes a pixel
            part = slice(first, first + LARGE_SLICE)
            count += np.bincount(true[part].astype(np.intp) * labels + predicted[part], minlength=labels**2)
    return counts.reshape(-1, labels, labels)


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """HD95 and ASSD in mm between the surfaces of two masks.

    HD95 is the larger of the two directed 95th percentiles; ASSD is the mean over the surface voxels of both.
    A surface voxel has a face neighbour outside the mask. An image of one slice is measured in its plane,
    as in 3D each of its voxels would be surface.

    Args:
        prediction: (slices, rows, columns) boolean.
        reference: mask of the same shape.
        spacing: (slice_mm, row_mm, column_mm).

    Returns:
        (HD95, ASSD); both NaN where a mask is empty.

    Source: MONAI ``compute_hausdorff_distance`` and ``compute_average_surface_distance``, whose distances these are,
    computed once for both.
    """
    if not (prediction.any() and reference.any()):
        return math.nan, math.nan
    import torch  # torch and MONAI take seconds to import
    from monai.metrics.utils import get_edge_surface_distance

    if len(reference) == 1:
        prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
    # The bounding box of both masks and one voxel around it hold the whole surface: smaller and faster than the image.
    box = _box(prediction | reference)
    masks = [torch.from_numpy(mask[box].copy()) for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of its own call
        _, distances, _ = get_edge_surface_distance(*masks, spacing=[float(mm) for mm in spacing], symmetric=True)
    hd95 = max(torch.quantile(directed, 0.95).item() for directed in distances)
    return hd95, torch.cat(distances).mean().item()


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of a mask, and one voxel around it."""
    axes = range(mask.ndim)
    places = (np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
    return tuple(slice(max(at[0] - 1, 0), at[-1] + 2) for at in places)


def summarise(per_volume: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """The mean scores of many volumes, ready for JSON (None where nothing was counted).

    Args:
        per_volume: one row per volume: ``subject``, ``phase`` ("ED", "ES" or "") and the scores of `score_volume`.
        classes: foreground names; a leading "background" is dropped.

    Returns:
        ``dice``, ``jaccard``, ``hd95_mm``, ``assd_mm``: {"mean", class: ...}, volumes averaged per patient,
        then over patients; a patient's "mean" is over the classes counted in it. ``slice_jaccard``: over all
        slices. ``not_counted``: {"both_empty", "one_empty"}, volumes per class; the first have no score, the
        second have Dice 0 and no distance. ``patients`` and ``volumes``: counts. ``phases``: the same for ED
        and for ES, if there are such rows. ``clinical``: see `clinical_errors`; with both phases and RV, MYO, LV.
    """
    classes = foreground(classes)
    result = _scores(per_volume, classes)
    phases = {phase: per_volume[per_volume["phase"] == phase] for phase in ("ED", "ES")}
    phases = {phase: rows for phase, rows in phases.items() if len(rows)}
    if phases:
        result["phases"] = {phase: _scores(rows, classes) for phase, rows in phases.items()}
    if len(phases) == 2 and {"RV", "MYO", "LV"} <= set(classes):
        result["clinical"] = clinical_errors(per_volume)
    return plain_numbers(result)


def mean_dice(per_volume: pd.DataFrame, classes: Sequence[str]) -> pd.Series:
    """Dice of each row, the mean over its counted classes."""
    return per_volume[[f"dice_{name}" for name in foreground(classes)]].mean(axis=1)


def _scores(rows: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """`summarise` without phases; NaN where nothing was counted."""
    result: dict[str, Any] = {}
    for measure in MEASURES:
        columns = {f"{measure}_{name}": name for name in classes}
        patients = rows.groupby("subject")[list(columns)].mean().rename(columns=columns)  # leaves out NaN
        result[measure] = {"mean": patients.mean(axis=1).mean(), **patients.mean()}
    slices = rows["slices"].sum()
    result["slice_jaccard"] = (rows["slice_jaccard"] * rows["slices"]).sum() / slices if slices else math.nan
    both_empty = {name: rows[f"dice_{name}"].isna() for name in classes}
    one_empty = {name: rows[f"hd95_mm_{name}"].isna() & ~both_empty[name] for name in classes}
    result["not_counted"] = {
        "both_empty": {name: empty.sum() for name, empty in both_empty.items()},
        "one_empty": {name: empty.sum() for name, empty in one_empty.items()},
    }
    return result | {"patients": rows["subject"].nunique(), "volumes": len(rows)}


def plain_numbers(value: Any) -> Any:
    """A nested result with plain Python numbers, None for NaN."""
    if isinstance(value, Mapping):
        return {key: plain_numbers(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return int(value)
