"""One slice from the store to the network: z-scored, resampled, viewed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.store import SliceStore
from data.views import Views, pair_of_seeds, z_score

Normalisation = Literal["image", "dataset"]
"""Z-scoring with the slice's own mean and standard deviation, or with those of the training slices."""


class Images(Protocol):
    """Anything with numbered grey images, in any units."""

    def __len__(self) -> int: ...
    def image(self, k: int) -> np.ndarray:
        """(rows, columns)."""
        ...


class RawImages(Protocol):
    """Images with what z-scores them, so that a view z-scores only what it shows."""

    def __len__(self) -> int: ...
    def raw(self, k: int) -> tuple[np.ndarray, tuple[float, float]]:
        """Image k (rows, columns) in any units, and its mean and standard deviation."""
        ...


def resample(image: np.ndarray, spacing: tuple[float, float], to_mm: float, *, label: bool = False) -> np.ndarray:
    """An image on a grid of square pixels.

    Args:
        image: (rows, columns).
        spacing: (row_mm, column_mm) of the image.
        to_mm: side of the new pixels.
        label: take the nearest class index in place of interpolating.
    """
    rows, columns = (max(1, round(n * mm / to_mm)) for n, mm in zip(image.shape, spacing, strict=True))
    shrinks = rows * columns < image.size
    # INTER_NEAREST rounds coordinates down, which would displace labels by half a pixel against their images
    how = cv2.INTER_NEAREST_EXACT if label else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (columns, rows), interpolation=how)


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Slices of a store as a network sees them.

    `positions` are rows of the store's table; k counts within them.
    """

    store: SliceStore
    positions: np.ndarray
    normalisation: Normalisation = "image"
    statistics: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training slices, file units; used when `normalisation` is "dataset"."""
    spacing_mm: float | None = None
    """Resample to square pixels of this size; None keeps the file's own pixels."""

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        names = ("mean", "std", "row_mm", "column_mm")
        return {name: self.store.table[name].to_numpy()[self.positions] for name in names}

    def spacing(self, k: int) -> tuple[float, float]:
        """(row_mm, column_mm) of slice k in its file."""
        return float(self._columns["row_mm"][k]), float(self._columns["column_mm"][k])

    def raw(self, k: int) -> tuple[np.ndarray, tuple[float, float]]:
        """(rows, columns) as they lie in the store, a read-only view, and the mean and deviation that z-score them."""
        own = float(self._columns["mean"][k]), float(self._columns["std"][k])
        return self.store.image(self.positions[k]), own if self.normalisation == "image" else self.statistics

    def image(self, k: int) -> np.ndarray:
        """(rows, columns) float32, z-scored and resampled."""
        image, statistics = self.raw(k)
        image = z_score(image, *statistics)
        return image if self.spacing_mm is None else resample(image, self.spacing(k), self.spacing_mm)

    def label(self, k: int) -> np.ndarray:
        """(rows, columns) uint8 class indices on the image's grid."""
        label = self.store.label(self.positions[k])
        return label if self.spacing_mm is None else resample(label, self.spacing(k), self.spacing_mm, label=True)


def pooled_statistics(store: SliceStore, positions: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over all pixels of the given slices, file units (law of total variance)."""
    table = store.table.iloc[positions]
    pixels = (table["rows"] * table["columns"]).to_numpy(dtype=float)
    means, variances = table["mean"].to_numpy(), table["std"].to_numpy() ** 2
    mean = np.average(means, weights=pixels)
    variance = np.average(variances + (means - mean) ** 2, weights=pixels)
    return float(mean), float(np.sqrt(variance))


class TwoViews(TorchDataset[Tensor]):
    """Two independent views of each image, for BYOL; indexed by `engine.order.Draw`.

    `second` draws the second view where its recipe is another.
    """

    def __init__(self, images: RawImages, views: Views, second: Views | None = None) -> None:
        self.images, self.views = images, (views, second or views)

    def __getitem__(self, draw: tuple[int, int]) -> Tensor:
        """(2, 1, size, size) float32."""
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[tuple[int, int]]) -> Tensor:
        """(draws, 2, 1, size, size) float32, every view made where it lies in the batch."""
        batch = np.empty((len(draws), 2, 1, self.views[0].size, self.views[0].size), np.float32)
        for pair, (index, seed) in zip(batch, draws, strict=True):
            image, statistics = self.images.raw(index)
            for out, views, its in zip(pair[:, 0], self.views, pair_of_seeds(seed), strict=True):
                views.fill(out, image, its, statistics)
        return torch.from_numpy(batch)


class LabelledViews(TorchDataset[tuple[Tensor, Tensor]]):
    """One view of each labelled slice and of its label map; indexed by `engine.order.Draw`."""

    def __init__(self, slices: Slices, views: Views) -> None:
        self.slices, self.views = slices, views

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image (1, size, size) float32 and label map (size, size) int64."""
        index, seed = draw
        image, label = self.views(self.slices.image(index), seed, self.slices.label(index))
        assert label is not None
        return torch.from_numpy(np.ascontiguousarray(image)[None]), torch.from_numpy(label.astype(np.int64))


@dataclass(frozen=True)
class Standardised:
    """Images in any units, each z-scored by itself."""

    images: Images

    def __len__(self) -> int:
        return len(self.images)

    def raw(self, k: int) -> tuple[np.ndarray, tuple[float, float]]:
        """(rows, columns) in their own units, and their mean and standard deviation."""
        image = self.images.image(k)
        return image, (float(image.mean()), float(image.std()))
