"""Unlabelled slices beside labelled ones: a weak view that a teacher labels, and a strong view to learn it from.

One slice on its way: it is drawn from the pool by the seed of a labelled sample, cropped and turned as labelled slices
are (weak view), then changed in brightness, contrast and sharpness, and in half of the samples a box of it is replaced
by the same box of another slice of the pool (strong view). `segment.pseudo_labels` goes on from there.

Sources: FixMatch (Sohn et al. 2020) for the two views; UniMatch (Yang et al. 2023) for the changes; CutMix (Yun et al.
2019) for the box, between unlabelled images as in French et al. 2020.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter
from data.augmentation import Augmentation
from data.cines import same_places
from data.preprocessing import Part
from data.readers.label_maps import IGNORED
from data.samples.slices import AugmentedSlices
from data.slices import WHOLE, Slices
from data.tiles import LabelledTiles

STRONG = Augmentation(crop="fixed", flip=0.0, jitter=0.8, brightness=0.5, contrast=0.5, blur=0.5)
"""Changes of intensity from the weak to the strong view: those of UniMatch, brightness in standard deviations."""
BOX_AREA = (0.02, 0.4)
"""Range of the share of the view that a box of CutMix covers (UniMatch)."""
BOX_RATIO = (math.log(0.3), math.log(1 / 0.3))
"""Range of the logarithm of its height over its width (UniMatch, where the ratio itself is uniform)."""
CELLS = 32
"""Rows and columns of cells in which a slice's foreground is kept, whatever the slice's size."""
STREAM = 1
"""Second part of the seed of what is drawn here, so that it has nothing in common with the labelled sample's draws."""


def weak_view(augmentation: Augmentation) -> Augmentation:
    """The crop, flip, rotation and zoom of an augmentation: the teacher sees intensities as they are."""
    return replace(augmentation, jitter=0.0, blur=0.0, solarise=0.0, gamma=0.0, bias_field=0.0, noise=0.0)


@dataclass(frozen=True)
class Pool:
    """The unlabelled slices and their views, all drawn from one seed and depending on nothing else but `foreground`."""

    slices: Slices
    weak: Augmenter
    strong: Augmenter
    mixing: float
    """Probability of CutMix."""
    has_labels: np.ndarray
    """(slices,) bool: whether a slice has a label map, which `views` returns to measure pseudo-labels by."""

    @cached_property
    def tiles(self) -> LabelledTiles:
        """What weak views are cut from."""
        return LabelledTiles(self.slices, self.weak)

    @cached_property
    def places(self) -> np.ndarray:
        """(slices,) int64: slices of equal number show one place, and share a row of `foreground`."""
        return same_places(self.slices)

    @cached_property
    def foreground(self) -> np.ndarray:
        """(places, CELLS * CELLS / 8) uint8: a bit for each cell, set where the teacher saw foreground. Fixed crops are
        drawn by it as those of labelled slices are by their labels; anywhere, where no bit is set."""
        return np.zeros((self.places.max() + 1, CELLS * CELLS // 8), np.uint8)

    def views(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The views of a slice, and those of its partner in CutMix (without CutMix the slice itself).

        Returns:
            weak: (2, channels, size, size) float32, of the slice and of its partner.
            strong: (channels, size, size) float32, of the slice, within the box of the partner.
            box: (size, size) bool, True where `strong` shows the partner.
            hidden: (size, size) uint8, label map of the slice's weak view, `IGNORED` where it has none. For metrics.
        """
        rng = np.random.default_rng((seed, STREAM))
        first, partner = map(int, rng.integers(len(self.slices), size=2))
        seeds = [int(each) for each in rng.integers(2**32, size=4)]
        box = draw_box(rng, self.weak.size) if rng.random() < self.mixing else None
        weak, hidden = self._weak(first, seeds[0])
        strong, _ = self.strong(weak, seeds[1])
        mixed = np.zeros(hidden.shape, bool)
        beside = weak
        if box is not None:
            mixed[box] = True
            beside, _ = self._weak(partner, seeds[2])
            strong = np.where(mixed, self.strong(beside, seeds[3])[0], strong)
        pair, strong = (values.reshape(-1, *mixed.shape) for values in (np.stack([weak, beside]), strong))
        return (
            torch.from_numpy(pair).unflatten(0, (2, -1)),
            torch.from_numpy(strong),
            torch.from_numpy(mixed),
            torch.from_numpy(hidden),
        )

    def _weak(self, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Weak view of slice k, (size, size) or (channels, size, size), and the label map that is hidden from training,
        (size, size)."""
        shape = self.slices.shape(k)
        cells = np.unpackbits(self.foreground[self.places[k]]).reshape(CELLS, CELLS)
        part, weak = self.tiles.draw(k, seed, lambda: partial(pixel_of_cells, cells, shape))
        image = self.slices.image(k, part)
        label = self.slices.label(k, part) if self.has_labels[k] else np.full(image.shape[-2:], IGNORED, np.uint8)
        cells = cells if part == WHOLE else cells_in(cells, part, shape)
        foreground = cv2.resize(cells, label.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        view, hidden = weak(image, seed, label, foreground=foreground)
        assert hidden is not None
        return np.ascontiguousarray(view), np.ascontiguousarray(hidden)

    def find_foreground(self, predict: Callable[[np.ndarray], Tensor], most: int, seed: tuple[int, int]) -> np.ndarray:
        """`foreground` after a new look at places in random order, one slice of each, at most `most`.

        Args:
            predict: a whole slice as a network sees it, (rows, columns) or (channels, rows, columns) -> class indices
                (rows, columns).
            most: number of slices to look at.
            seed: of the order; places with more frames tend to come first, as they are drawn more often, too.
        """
        order = np.random.default_rng(seed).permutation(len(self.slices))
        _, firsts = np.unique(self.places[order], return_index=True)
        found = self.foreground.copy()
        for k in order[np.sort(firsts)[:most]]:
            occupied = (predict(self.slices.image(k)) > 0).float()
            cells = torch.nn.functional.adaptive_max_pool2d(occupied[None], CELLS)
            found[self.places[k]] = np.packbits(cells.cpu().numpy().astype(bool))
        return found


def pixel_of_cells(cells: np.ndarray, shape: Sequence[int], rng: random.Random) -> tuple[int, int] | None:
    """A random (row, column) of an image of some shape, within a cell that is set; None if none is."""
    places = np.flatnonzero(cells)
    if not len(places):
        return None
    row, column = divmod(int(rng.choice(places)), CELLS)
    return int((row + rng.random()) * shape[0] / CELLS), int((column + rng.random()) * shape[1] / CELLS)


def cells_in(cells: np.ndarray, part: Part, shape: Sequence[int]) -> np.ndarray:
    """The cell of each pixel of a part of an image of some shape: (rows, columns) of the part."""
    rows, columns = (
        (2 * np.arange(pixels.start, pixels.stop) + 1) * CELLS // (2 * n) for pixels, n in zip(part, shape, strict=True)
    )
    return cells[np.ix_(rows, columns)]


def draw_box(rng: np.random.Generator, size: int) -> tuple[slice, slice]:
    """Rows and columns of a random box within a square of `size` pixels; cut off where it would be longer than that."""
    area, ratio = rng.uniform(*BOX_AREA) * size**2, math.exp(rng.uniform(*BOX_RATIO))
    height, width = (min(size, max(1, round(side))) for side in (math.sqrt(area * ratio), math.sqrt(area / ratio)))
    top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
    return slice(top, top + height), slice(left, left + width)


class WithUnlabelled(TorchDataset[tuple[Tensor, ...]]):
    """Each labelled sample together with an unlabelled one; indexed by `engine.sampler.Sample`.

    The unlabelled slice and all that is random about it are drawn from the sample's seed: micro-batches, devices and
    resumed runs see the same pairs, and the labelled samples are those of a run without unlabelled ones.
    """

    def __init__(self, labelled: AugmentedSlices, pool: Pool) -> None:
        self.labelled, self.pool = labelled, pool

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, ...]:
        """Image (channels, size, size) float32 and label map (size, size) int64, then what `Pool.views` returns."""
        return (*self.labelled[sample], *self.pool.views(sample[1]))
