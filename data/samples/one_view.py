"""One augmented view of each image, for methods that compare a view with itself."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter
from data.samples.slices import Pairing, Standardised
from data.slices import Slices
from data.tiles import tile_of_views


class OneView(TorchDataset[Tensor]):
    """One augmented view of each image, the first one of `TwoViews`; indexed by `engine.sampler.Sample`."""

    def __init__(self, images: Slices | Standardised, augmenter: Augmenter, pairing: Pairing | None = None) -> None:
        self.images, self.augmenter, self.pairing = images, augmenter, pairing or Pairing()

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(1, size, size) float32."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Tensor:
        """(samples, 1, size, size) float32."""
        batch = np.empty((len(samples), 1, self.augmenter.size, self.augmenter.size), np.float32)
        for view, sample in zip(batch, samples, strict=True):
            index, seed, centres = self.pairing.of(sample)[0]
            image, statistics = self.images.raw(index)
            tile = tile_of_views(image, self.augmenter, sample[1])
            self.augmenter.fill(view[0], tile, seed, statistics, centres)
        return torch.from_numpy(batch)
