"""From pixels in the file's units to what a network sees: z-scored float32 on square pixels.

Training and inference share these functions. Label maps are resampled on the same grid.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from core.errors import UserError

EXACT = 2.0**49
"""Below this a double that is a few units in the last place off still rounds to the true integer."""
LARGEST_SLICE = 2**24
"""Pixels of a slice that a network takes as a whole: 4096 x 4096, some gigabytes of memory."""
SMALLEST_SIDE = 8
"""Pixels to which a larger slice may shrink."""


def preprocess(
    image: np.ndarray, statistics: tuple[float, float], spacing: tuple[float, float], spacing_mm: float | None
) -> np.ndarray:
    """z-score a slice with `statistics`, its mean and standard deviation, and `resample` it: (rows, columns) float32.

    With `spacing_mm` None it keeps the pixels of its file.
    """
    image = z_score(image, *statistics)
    return image if spacing_mm is None else resample(image, spacing, spacing_mm)


def z_score(image: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Float32 with mean 0 and standard deviation 1; a constant image becomes 0 everywhere."""
    scale = 1 / std if std > 0 else 0.0
    return (image.astype(np.float32) - np.float32(mean)) * np.float32(scale)


def resampled_size(
    shape: Sequence[int], spacing: Sequence[float], to_mm: float | None, name: str = "the image"
) -> tuple[int, int]:
    """(rows, columns) of a slice of some spacing (row_mm, column_mm) that is resampled to square pixels of `to_mm`.

    Raises:
        UserError: if before or after a slice has more than `LARGEST_SLICE` pixels, or one of its sides shrinks below
            `SMALLEST_SIDE` pixels and a quarter of its own.
    """
    if to_mm is not None and not to_mm > 0:
        raise UserError(f"{name} cannot be resampled to pixels of {to_mm:g} mm: the pixel size must be above 0")
    sides = [n if to_mm is None else n * mm / to_mm for n, mm in zip(shape, spacing, strict=True)]
    rows, columns = (max(1.0, side) for side in sides)
    if math.prod(shape) > LARGEST_SLICE:
        most = f"a network takes {LARGEST_SLICE:,}"
        raise UserError(f"{name} has slices of {shape[0]:,} x {shape[1]:,} pixels, {most}: cut it into tiles")
    legible = all(side >= min(n / 4, SMALLEST_SIDE) for side, n in zip(sides, shape, strict=True))  # False for NaN
    if not (legible and rows * columns <= LARGEST_SLICE):
        mm = f"{shape[0]} x {shape[1]} pixels of {spacing[0]:g} x {spacing[1]:g} mm"
        raise UserError(
            f"{name} has slices of {mm}, which become {rows:,.0f} x {columns:,.0f} pixels of {to_mm:g} mm: "
            "check the spacing in its header, and --spacing-mm"
        )
    return round(rows), round(columns)


def resample(image: np.ndarray, spacing: tuple[float, float], to_mm: float, *, label: bool = False) -> np.ndarray:
    """An image (rows, columns) of some spacing (row_mm, column_mm), resampled to square pixels with sides of `to_mm`.

    A `label` map takes the nearest class index instead of interpolating. The size must be possible, see
    `resampled_size`.
    """
    rows, columns = resampled_size(image.shape, spacing, to_mm)
    shrinks = rows * columns < image.size
    # INTER_NEAREST rounds coordinates down, which would displace labels by half a pixel against their images
    how = cv2.INTER_NEAREST_EXACT if label else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (columns, rows), interpolation=how)


def mean_and_std(image: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over the pixels of (rows, columns), in file units and double precision.

    Integers are summed exactly, for which OpenCV needs a tenth of the time of `cv2.meanStdDev`.
    """
    squares = cv2.norm(image, cv2.NORM_L2SQR)  # to a few units in the last place
    if image.dtype.kind == "f" or squares > EXACT:
        mean, std = cv2.meanStdDev(image)
        return float(mean[0, 0]), float(std[0, 0])
    n, total = image.size, int(cv2.sumElems(image)[0])
    return total / n, math.sqrt(n * round(squares) - total**2) / n


def narrow(values: np.ndarray) -> np.ndarray:
    """The values as uint8, int16, uint16 or float32: their own type, 16 bits if wider integers fit, else float32."""
    if values.dtype.name in ("uint8", "int16", "uint16", "float32"):
        return values
    if values.dtype.kind in "iu":
        low, high = values.min(), values.max()
        for name in ("int16", "uint16"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return values.astype(name)
    return values.astype(np.float32)
