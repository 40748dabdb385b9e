"""Slices handed to a network: two augmented views of each to pretrain, one with its label map to fine-tune."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter, pair_of_seeds
from data.crops import Crop
from data.slices import PartOf, Slices, whole
from data.tiles import Foreground, LabelledTiles, part_of_views


class Images(Protocol):
    """Anything with numbered grey images, in any units."""

    def __len__(self) -> int: ...
    def image(self, k: int) -> np.ndarray:
        """(rows, columns)."""


@dataclass(frozen=True)
class Standardised:
    """Images in any units, each z-scored with its own statistics."""

    images: Images
    channels: ClassVar[int] = 1

    def __len__(self) -> int:
        return len(self.images)

    def raw(self, k: int, part: PartOf = whole) -> tuple[np.ndarray, tuple[float, float]]:
        """A part of image k (rows, columns) in its own units, and the whole one's mean and standard deviation."""
        image = self.images.image(k)
        return image[part(image.shape)], (float(image.mean()), float(image.std()))


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What the two views of a sample show: the sample's slice in both, or in the second one a neighbour of it."""

    neighbours: Sequence[Sequence[int]] = ()
    """For each slice the numbers of those that the second view shows one of, the same slice if there are none; (): the
    same of all."""
    centres: Sequence[np.ndarray] = ()
    """For each slice the probabilities of its crops' centres, see `data.augment.draw_crop`; (): every place alike."""

    def of(self, sample: tuple[int, int]) -> list[tuple[int, int, np.ndarray | None]]:
        """Slice, seed and `centres` of both views of a sample; they depend on nothing else."""
        index, seed = sample
        shown = [index, index]
        if self.neighbours and (beside := self.neighbours[index]):
            shown[1] = beside[random.Random(seed + 2**33).randrange(len(beside))]  # views have seeds below 2**32
        return [
            (k, view_seed, self.centres[k] if self.centres else None)
            for k, view_seed in zip(shown, pair_of_seeds(seed), strict=True)
        ]


class TwoViews(TorchDataset[Tensor]):
    """Two independently augmented views of each image, for BYOL; indexed by `engine.sampler.Sample`.

    `second` makes the second view; None: `first` makes both.
    """

    def __init__(
        self,
        images: Slices | Standardised,
        first: Augmenter,
        second: Augmenter | None = None,
        pairing: Pairing | None = None,
    ) -> None:
        self.images, self.augmenters, self.pairing = images, (first, second or first), pairing or Pairing()

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(2, channels, size, size) float32."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Tensor:
        """(samples, 2, channels, size, size) float32."""
        return self.fill(samples)[0]

    def fill(self, samples: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Crop | None]]:
        """Views (samples, 2, channels, size, size) float32, each made where it lies in the batch, and their crops."""
        size = self.augmenters[0].size
        batch = np.empty((len(samples), 2, self.images.channels, size, size), np.float32)
        crops = []
        for pair, sample in zip(batch, samples, strict=True):
            shown = self.pairing.of(sample)
            part = partial(part_of_views, augmenter=self.augmenters[0], seed=sample[1])
            raw = {index: self.images.raw(index, part) for index in {index for index, _, _ in shown}}  # decode once
            for view, augmenter, (index, seed, centres) in zip(pair, self.augmenters, shown, strict=True):
                image, statistics = raw[index]
                crops.append(augmenter.fill(view, image, seed, statistics, centres))
        return torch.from_numpy(batch), crops


class AugmentedSlices(TorchDataset[tuple[Tensor, Tensor]]):
    """Each labelled slice augmented together with its label map; indexed by `engine.sampler.Sample`."""

    def __init__(self, slices: Slices, augmenter: Augmenter) -> None:
        self.slices, self.augmenter = slices, augmenter
        self.tiles = LabelledTiles(slices, augmenter)
        self._foreground: dict[int, Foreground] = {}

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image (channels, size, size) float32 and label map (size, size) int64."""
        index, seed = sample
        part, augmenter = self.tiles.draw(index, seed, lambda: self._foreground_of(index))
        image, label = augmenter(self.slices.image(index, part), seed, self.slices.label(index, part))
        assert label is not None
        image = np.ascontiguousarray(image).reshape(-1, *label.shape)
        return torch.from_numpy(image), torch.from_numpy(label.astype(np.int64))

    def _foreground_of(self, index: int) -> Foreground:
        if index not in self._foreground:
            self._foreground[index] = Foreground(self.slices.store.label(self.slices.positions[index]))
        return self._foreground[index]
