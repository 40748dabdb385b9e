"""Images with classes handed to a network: two views to pretrain, one view and its class to train, whole to score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter, pair_of_seeds
from data.colours import draw_colours, recolour
from data.preprocessing import resize, z_score
from data.readers.class_images import ClassImages


def augmented(image: np.ndarray, augmenter: Augmenter, seed: int) -> np.ndarray:
    """One view of an image (rows, columns[, 3]), as (channels, size, size) float32.

    All channels are z-scored together, which keeps colours; they go through one draw like the frames of a clip.
    """
    statistics = float(image.mean()), float(image.std())
    channels = image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
    view = augmenter.clip(channels, seed, statistics)
    return view if image.ndim == 2 else recolour(view, draw_colours(augmenter.augmentation, seed))


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image (rows, columns[, 3]), z-scored, as (channels, size, size) float32."""
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    part = image[top : top + side, left : left + side]
    part = z_score(part, float(part.mean()), float(part.std()))
    resized = resize(part, (size, size))
    return resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1)


@dataclass(frozen=True)
class ViewsOfImages(TorchDataset[Tensor]):
    """One or two independently augmented views of each training image; indexed by `engine.sampler.Sample`."""

    images: ClassImages
    augmenters: Sequence[Augmenter]
    """Those of the first and, if there are two views, of the second."""

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(views, channels, size, size) float32, or of one view (channels, size, size)."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Tensor:
        """(samples, views, channels, size, size) float32, or of one view (samples, channels, size, size)."""
        batch = []
        for index, sample_seed in samples:
            image, seeds = self.images.image(self.images.train[index]), pair_of_seeds(sample_seed)
            batch.append([augmented(image, each, seed) for each, seed in zip(self.augmenters, seeds, strict=False)])
        views = torch.from_numpy(np.array(batch, np.float32))
        return views if len(self.augmenters) > 1 else views[:, 0]


@dataclass(frozen=True)
class LabelledImages(TorchDataset[tuple[Tensor, Tensor]]):
    """One augmented view of each training image, and its class; indexed by `engine.sampler.Sample`."""

    images: ClassImages
    augmenter: Augmenter

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(channels, size, size) float32 and the class index, int64."""
        index, seed = sample
        k = self.images.train[index]
        view = augmented(self.images.image(k), self.augmenter, seed)
        return torch.from_numpy(np.ascontiguousarray(view)), torch.tensor(self.images.labels[k])


def squares(images: ClassImages, positions: np.ndarray, size: int) -> Tensor:
    """The images at some positions as `square` makes them, (n, channels, size, size)."""
    return torch.from_numpy(np.stack([square(images.image(k), size) for k in positions]))
