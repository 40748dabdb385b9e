"""One augmented view of each image, for methods that compare a view with itself."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter
from data.samples.slices import Pairing, Standardised
from data.slices import Slices
from data.tiles import part_of_views


class OneView(TorchDataset[Tensor]):
    """One augmented view of each image, the first one of `TwoViews`; indexed by `engine.sampler.Sample`."""

    def __init__(self, images: Slices | Standardised, augmenter: Augmenter, pairing: Pairing | None = None) -> None:
        self.images, self.augmenter, self.pairing = images, augmenter, pairing or Pairing()

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(channels, size, size) float32."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Tensor:
        """(samples, channels, size, size) float32."""
        size = self.augmenter.size
        batch = np.empty((len(samples), self.images.channels, size, size), np.float32)
        for view, sample in zip(batch, samples, strict=True):
            index, seed, centres = self.pairing.of(sample)[0]
            part = partial(part_of_views, augmenter=self.augmenter, seed=sample[1])
            image, statistics = self.images.raw(index, part)
            self.augmenter.fill(view, image, seed, statistics, centres)
        return torch.from_numpy(batch)
