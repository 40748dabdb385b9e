"""Scores as other benchmarks compute them, to stand beside their tables; ours are in `segment.metrics`.

SSL4MIS stretches every slice to 256 x 256 pixels whatever its spacing, measures distances in voxels as if these were
cubes, gives an empty prediction Dice 0 and distance 0, and averages over volumes first and classes second.

Source: Luo, SSL4MIS, github HiLab-git/SSL4MIS (`test_2D_fully.py`, with MedPy's measures), rewritten.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import ndimage

from data.readers.label_maps import IGNORED
from segment.metrics import foreground, plain_numbers

SIDE = 256
MEASURES = ("dice", "jaccard", "hd95_voxels", "asd_voxels")


def ssl4mis_scores(prediction: np.ndarray, reference: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Scores of one volume, class by class, by the rules of SSL4MIS.

    The prediction goes through that benchmark's grid and back, by nearest neighbour, as a network there sees no other.

    Args:
        prediction: (slices, rows, columns) class indices.
        reference: the same shape; voxels that are to be ignored count as background in both.
        classes: names; a leading "background" is dropped.

    Returns:
        ``ssl4mis_MEASURE_CLASS`` for each of `MEASURES`. HD95 is the 95th percentile of both directions together, ASD
        the mean distance from the prediction's surface to the reference's.
    """
    prediction = np.stack([_stretch(_stretch(slice_, (SIDE, SIDE)), slice_.shape) for slice_ in prediction])
    prediction[reference == IGNORED] = 0
    row: dict[str, float] = {}
    for label, name in enumerate(foreground(classes), start=1):
        values = _scores(prediction == label, reference == label)
        row |= {f"ssl4mis_{measure}_{name}": value for measure, value in zip(MEASURES, values, strict=True)}
    return row


def ssl4mis_summary(per_volume: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """{measure: {"mean", class: ...}}: means of `ssl4mis_scores` over volumes, then over classes; None for NaN."""
    names = foreground(classes)
    result: dict[str, dict[str, float]] = {}
    for measure in MEASURES:
        means = {name: per_volume[f"ssl4mis_{measure}_{name}"].mean() for name in names}
        result[measure] = {"mean": float(np.mean([*means.values()])), **means}
    return plain_numbers(result)


def _stretch(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return ndimage.zoom(image, [new / old for new, old in zip(shape, image.shape, strict=True)], order=0)


def _scores(p: np.ndarray, r: np.ndarray) -> tuple[float, float, float, float]:
    if not p.any():
        return 0.0, 0.0, 0.0, 0.0
    both, either = int((p & r).sum()), int((p | r).sum())
    dice, jaccard = 2 * both / (int(p.sum()) + int(r.sum())), both / either
    if not r.any():  # MedPy refuses to measure; no reference of ACDC is empty
        return dice, jaccard, float("nan"), float("nan")
    # MedPy's defaults: cubes of side 1, face neighbours
    surfaces = [mask ^ ndimage.binary_erosion(mask) for mask in (p, r)]
    of_p, of_r = (ndimage.distance_transform_edt(~other)[own] for own, other in (surfaces, surfaces[::-1]))
    return dice, jaccard, float(np.percentile(np.concatenate([of_p, of_r]), 95)), float(of_p.mean())
