"""Tiles of large slices: a sample of fixed crops is cut from a tile, so that a step touches none of the other pixels.

A tile has twice the side of the crop, which leaves room for rotations and zooms, and for the two views of a
self-supervised method to show overlapping places: two crops from anywhere in a large slice have nothing in common.
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from data.augment import Augmenter
from data.augmentation import Augmentation
from data.preprocessing import Part, is_large, resampled_size
from data.readers.images import PLANAR_SUFFIXES
from data.readers.label_maps import IGNORED
from data.slices import WHOLE, Slices

log = logging.getLogger("fewslice")

SIDE = 2
"""Side of a tile in sides of the crop."""
STREAM = 2**34
"""Added to the seed of a sample for its tile; the seeds of its views are below 2**32."""
SHRINKS_MUCH = 4
"""Pixels of a large slice that a resized crop may show as one, along a side, without a warning."""

Draw = Callable[[random.Random], tuple[int, int] | None]
"""Draws the (row, column) of a pixel of the foreground; None without one."""


def has_tiles(augmentation: Augmentation, shape: Sequence[int]) -> bool:
    """Whether an augmentation cuts its samples of an image of some (rows, columns) from tiles."""
    return augmentation.crop == "fixed" and is_large(shape)


def part_of_views(shape: tuple[int, ...], augmenter: Augmenter, seed: int) -> Part:
    """The tile of a large image that all views of a sample are cut from, or the whole of a smaller one.

    Args:
        shape: (rows, columns) of the image.
        augmenter: of one of the views; the others have the same kind of crop.
        seed: seed of the sample.
    """
    if not has_tiles(augmenter.augmentation, shape):
        return WHOLE
    side = SIDE * augmenter.size
    return draw_tile(shape, (side, side), random.Random(seed + STREAM))


class LabelledTiles:
    """What samples of slices with labels are cut from, and by which augmenter: large slices from tiles.

    A tile has foreground as often as the augmentation asks for, and of such a tile every crop has.
    """

    def __init__(self, slices: Slices, augmenter: Augmenter) -> None:
        self.slices, self.augmenter = slices, augmenter
        self.of_tiles = [
            Augmenter(replace(augmenter.augmentation, foreground=probability), augmenter.size)
            for probability in (0.0, 1.0)
        ]

    def draw(self, k: int, seed: int, foreground: Callable[[], Draw]) -> tuple[Part, Augmenter]:
        """The tile of a sample, or the whole of a slice that is not large, and the augmenter to apply to it.

        Args:
            k: number of the slice.
            seed: seed of the sample.
            foreground: returns what draws a pixel of the slice's foreground.
        """
        shape, augmentation = self.slices.shape(k), self.augmenter.augmentation
        if not has_tiles(augmentation, shape):
            return WHOLE, self.augmenter
        rng = random.Random(seed + STREAM)
        wanted = rng.random() < augmentation.foreground
        part = draw_tile(
            shape, self.slices.pixels(k, SIDE * self.augmenter.size), rng, foreground() if wanted else None
        )
        return part, self.of_tiles[wanted]


def draw_tile(
    shape: Sequence[int], side: tuple[int, int], rng: random.Random, draw_foreground: Draw | None = None
) -> Part:
    """Draw a tile that shows a random pixel in its central half, as far as it need not be moved into the image.

    Args:
        shape: (rows, columns) of the image.
        side: (rows, columns) of the tile; it is cut to the image.
        rng: random numbers.
        draw_foreground: draws the pixel; None, or if it finds none: every one is as probable.
    """
    pixel = draw_foreground(rng) if draw_foreground else None
    if pixel is None:
        pixel = rng.randrange(shape[0]), rng.randrange(shape[1])
    starts = [at - round(length * rng.uniform(0.25, 0.75)) for at, length in zip(pixel, side, strict=True)]
    starts = [max(0, min(start, n - length)) for start, n, length in zip(starts, shape, side, strict=True)]
    ends = [min(start + length, n) for start, length, n in zip(starts, side, shape, strict=True)]
    rows, columns = (slice(start, end) for start, end in zip(starts, ends, strict=True))
    return rows, columns


class Foreground:
    """The foreground of a label map, of which pixels are drawn alike.

    It holds a number for each row, not a position for each pixel.
    """

    def __init__(self, label: np.ndarray) -> None:
        self.label = label
        self._until = np.cumsum([np.count_nonzero(_is_foreground(row)) for row in label])
        """(rows,): foreground pixels down to each row."""

    def __call__(self, rng: random.Random) -> tuple[int, int] | None:
        """(row, column) of a pixel that is neither background nor `IGNORED`; None without one."""
        if not (total := int(self._until[-1])):
            return None
        number = rng.randrange(total)
        row = int(np.searchsorted(self._until, number, side="right"))
        of_row = np.flatnonzero(_is_foreground(self.label[row]))
        return row, int(of_row[number - int(self._until[row])])  # counted from the end of the row


def _is_foreground(label: np.ndarray) -> np.ndarray:
    return (label > 0) & (label != IGNORED)


def say_large_slices(
    table: pd.DataFrame, augmentation: Augmentation, size: int, spacing_mm: float | None = None
) -> None:
    """Log what training shows of slices that are large, and that images without a pixel size are resampled.

    Args:
        table: of a store, the slices that are trained on.
        augmentation: their augmentation.
        size: side of a training image in pixels.
        spacing_mm: pixel size that they are resampled to; None: they are not.
    """
    if not len(table):
        return
    largest = table.iloc[int(np.argmax(table["rows"] * table["columns"]))]
    rows, columns = int(largest["rows"]), int(largest["columns"])
    seen = resampled_size((rows, columns), (largest["row_mm"], largest["column_mm"]), spacing_mm, largest["file"])
    if seen != (rows, columns) and str(largest["file"]).lower().endswith(PLANAR_SUFFIXES):
        log.warning(
            f"PNG, TIFF and JPEG images are read as having pixels of 1 mm: --spacing-mm {spacing_mm:g} makes {rows} x "
            f"{columns} pixels {seen[0]} x {seen[1]}; pass --spacing-mm None to train on the pixels of the files"
        )
    if not is_large((rows, columns)):
        return
    what = f"slices of up to {rows} x {columns} pixels are large"
    shown = math.sqrt(augmentation.area[1] * math.prod(seen))
    if augmentation.crop == "fixed":
        log.info(
            f"{what}: a sample is a crop of {size} x {size} pixels at the pixel size of training, without shrinking"
        )
    elif shown > SHRINKS_MUCH * size:
        log.warning(
            f"{what}: resized crops show up to {shown:.0f} pixels as {size} along a side, in which objects of less "
            f"than {shown / size:.0f} pixels vanish; pass --augmentation.crop fixed to train on full resolution"
        )
