"""From pixels in the file's units to what a network sees: z-scored float32 on square pixels.

Training and inference share these functions. Label maps are resampled on the same grid.
"""

import math
from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np

from core.errors import UserError

EXACT = 2.0**49
"""Below this a double that is a few units in the last place off still rounds to the true integer."""
LARGE_SLICE = 2**22
"""Pixels up to which a slice is augmented and segmented whole: 2048 x 2048. Larger ones are taken tile by tile."""
LARGEST_SLICE = 2**24
"""Pixels to which a smaller slice may grow when it is resampled: 4096 x 4096."""
SMALLEST_SIDE = 8
"""Pixels to which a larger slice may shrink."""
SHRINK = 1.5
"""Ratio of an old side to the new one above which `resize` averages by area: the two pixels between which bilinear
interpolation takes each value then leave out pixels of the image, which aliases fine detail into coarse."""
BORDER = cv2.BORDER_REFLECT_101
"""How images and label maps are padded, in training and in scoring: mirrored at their edge pixels, as `reflected`. The
texture of the image goes on, while repeated edges would be streaks, which no training image has elsewhere."""

Part = tuple[slice, slice]
"""Rows and columns of a slice."""


Statistics = tuple[float, float] | tuple[tuple[float, float], ...]
"""Mean and standard deviation, in file units, or those of each of several channels."""


def preprocess(
    image: np.ndarray, statistics: Statistics, spacing: tuple[float, float], spacing_mm: float | None
) -> np.ndarray:
    """z-score a slice with `statistics`, its mean and standard deviation, and `resample` it: (rows, columns) float32.

    With `spacing_mm` None it keeps the pixels of its file. Several channels, (channels, rows, columns), are each
    z-scored with their own.
    """
    if image.ndim == 3:
        pairs = cast(tuple[tuple[float, float], ...], statistics)
        channels = zip(image, pairs, strict=True)
        return np.stack([preprocess(channel, of_channel, spacing, spacing_mm) for channel, of_channel in channels])
    statistics = cast(tuple[float, float], statistics)
    image = z_score(image, *statistics)
    return image if spacing_mm is None else resample(image, spacing, spacing_mm)


def z_score(image: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Float32 with mean 0 and standard deviation 1; a constant image becomes 0 everywhere."""
    scored = image.astype(np.float32)
    scored -= np.float32(mean)
    scored *= np.float32(1 / std if std > 0 else 0.0)
    return scored


def is_large(shape: Sequence[int]) -> bool:
    """Whether an image of some (rows, columns) has more than `LARGE_SLICE` pixels."""
    return math.prod(shape) > LARGE_SLICE


def resampled_size(
    shape: Sequence[int], spacing: Sequence[float], to_mm: float | None, name: str = "the image"
) -> tuple[int, int]:
    """(rows, columns) of a slice of some spacing (row_mm, column_mm) that is resampled to square pixels of `to_mm`.

    Raises:
        UserError: if a slice grows beyond `LARGEST_SLICE` pixels, or one of its sides shrinks below `SMALLEST_SIDE`
            pixels and a quarter of its own.
    """
    if to_mm is not None and not to_mm > 0:
        raise UserError(f"{name} cannot be resampled to pixels of {to_mm:g} mm: the pixel size must be above 0")
    sides = [n if to_mm is None else n * mm / to_mm for n, mm in zip(shape, spacing, strict=True)]
    rows, columns = (max(1.0, side) for side in sides)
    legible = all(side >= min(n / 4, SMALLEST_SIDE) for side, n in zip(sides, shape, strict=True))  # False for NaN
    if not (legible and rows * columns <= max(LARGEST_SLICE, math.prod(shape))):
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


def resize(
    image: np.ndarray,
    shape: tuple[int, int],
    how: int = cv2.INTER_LINEAR,
    *,
    antialias: bool = True,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """An image (rows, columns[, channels]) resized to another shape (rows, columns) by an interpolation of OpenCV.

    With `antialias`, a side that shrinks by more than `SHRINK` is averaged by area: each new pixel is the mean over
    what it covers. The centres of pixels are at half integers either way, so that label maps resized by
    `cv2.INTER_NEAREST_EXACT` stay aligned.

    Args:
        image: float32, or any type that OpenCV resizes.
        shape: (rows, columns) of the result.
        how: interpolation of the sides that shrink less or grow, an `INTER_` constant of OpenCV.
        antialias: whether to average by area.
        out: array for the result, of the image's type; None: a new one.
    """
    averaged = tuple(
        new if antialias and old > SHRINK * new else old for old, new in zip(image.shape[:2], shape, strict=True)
    )
    if averaged == shape:
        how = cv2.INTER_AREA
    elif averaged != image.shape[:2]:
        image = cv2.resize(image, averaged[::-1], interpolation=cv2.INTER_AREA)
    return cv2.resize(image, shape[::-1], dst=out, interpolation=how)


def reflected(length: int, before: int, after: int) -> np.ndarray:
    """Positions in a row of `length` pixels that pad it by `BORDER`: (before + length + after,) int64."""
    return np.pad(np.arange(length), (before, after), mode="reflect")


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


def statistics_of(image: np.ndarray) -> Statistics:
    """`mean_and_std` of (rows, columns), or of each channel of (channels, rows, columns)."""
    return mean_and_std(image) if image.ndim == 2 else tuple(map(mean_and_std, image))


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
