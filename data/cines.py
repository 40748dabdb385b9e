"""What a table of slices says about their surroundings: neighbouring slices, phases of a cine, and where it moves.

None of it needs labels. A cine is the frames of one 4D file, and of files that are named as its single frames; several
channels in a 4D file are taken for frames unless one of them is chosen.
"""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from data.readers.acdc import cine_of
from data.readers.images import stem
from data.slices import Slices

CELLS = 32
"""Rows and columns of cells in which a slice's map of crop centres is kept, whatever the slice's size."""
MOST_FRAMES = 10
"""Frames of a cine, evenly spread, that its motion is measured from."""
ANYWHERE = 0.1
"""Share of crops towards motion whose centre is drawn from all over the slice."""


def centre_map() -> np.ndarray:
    """Cumulative probabilities (CELLS, CELLS), row by row, of crop centres: a Gaussian about the slice's centre.

    Its standard deviation is a quarter of each side.
    """
    at = (np.arange(CELLS) + 0.5) / CELLS - 0.5
    density = np.exp(-(at**2) / (2 * 0.25**2))
    return _cumulated(np.outer(density, density))


def motion_maps(slices: Slices) -> list[np.ndarray | None]:
    """Where the cine of each slice moves, as cumulative probabilities (CELLS, CELLS) like those of `centre_map`.

    The probability of a place is the square of the standard deviation over the cine's frames, each z-scored, less its
    median over the slice, which is noise; smoothed, and `ANYWHERE` of it spread evenly. The frames of one slice share a
    map. With the heart's label maps as the judge, which are not used, it puts 39 % of the centres into the heart's
    bounding box on ACDC, in place of 5 % spread evenly and 13 % of `centre_map` (27 % without the square).

    Returns:
        A map per slice; None where the slice has no other frame, or nothing moves.
    """
    maps: list[np.ndarray | None] = [None] * len(slices)
    places = _places(slices)
    shapes = slices.store.table.iloc[slices.positions][["rows", "columns"]].reset_index(drop=True)
    for _, group in places.join(shapes).groupby(["cine", "slice", "rows", "columns"], sort=False):
        if len(group) > 1:
            spread = np.linspace(0, len(group) - 1, min(len(group), MOST_FRAMES)).round().astype(int)
            shared = _motion_map(slices, group.sort_values("time").index[spread].tolist())
            for k in group.index:
                maps[k] = shared
    return maps


def neighbours(slices: Slices, positives: Literal["slice", "phase"]) -> list[tuple[int, ...]]:
    """The slices beside each slice, of the same subject: none, one or two.

    Args:
        slices: the slices; only they are neighbours.
        positives: `slice`: those before and after it in its volume, of the same time frame; `phase`: the same slice in
            the frames before and after it, of those that there are.

    Returns:
        For each slice the numbers of its neighbours.
    """
    places = _places(slices)
    along, fixed = ("slice", ["cine", "time"]) if positives == "slice" else ("time", ["cine", "slice"])
    found: list[tuple[int, ...]] = [()] * len(slices)
    for _, group in places.groupby(fixed, sort=False):
        group = group.sort_values(along)
        order, at = group.index.tolist(), group[along].tolist()
        for n, k in enumerate(order):
            beside = [m for m in (n - 1, n + 1) if 0 <= m < len(order)]
            found[k] = tuple(order[m] for m in beside if positives == "phase" or abs(at[m] - at[n]) == 1)
    return found


def same_places(slices: Slices) -> np.ndarray:
    """Number of the place that each slice shows, (slices,) int64 from 0: the frames of one slice of a cine share it."""
    places = _places(slices)
    return places.groupby(["cine", "slice"], sort=False).ngroup().to_numpy()


def _places(slices: Slices) -> pd.DataFrame:
    """cine (number), time (frame, from 1) and slice of each slice."""
    table = slices.store.table.iloc[slices.positions].reset_index(drop=True)
    names = {file: cine_of(stem(Path(file))) for file in table["file"].unique()}
    cines = [
        (subject, str(Path(file).parent), names[file][0])
        for subject, file in zip(table["subject"], table["file"], strict=True)
    ]
    times = [
        frame if names[file][1] is None else names[file][1]
        for file, frame in zip(table["file"], table["frame"], strict=True)
    ]
    numbers, _ = pd.factorize(pd.MultiIndex.from_tuples(cines))
    return pd.DataFrame({"cine": numbers, "time": times, "slice": table["slice"]})


def _motion_map(slices: Slices, frames: list[int]) -> np.ndarray | None:
    size = (2 * CELLS, 2 * CELLS)
    small = [cv2.resize(slices.image(k), size, interpolation=cv2.INTER_AREA) for k in frames]
    moving = np.std(small, axis=0, dtype=np.float64)
    moving = gaussian_filter(np.maximum(moving - np.median(moving), 0) ** 2, CELLS / 8, mode="nearest")
    density = cv2.resize(moving, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    if not (total := density.sum()) > 0:
        return None
    return _cumulated((1 - ANYWHERE) * density / total + ANYWHERE / CELLS**2)


def _cumulated(density: np.ndarray) -> np.ndarray:
    return (np.cumsum(density) / density.sum()).reshape(density.shape)
