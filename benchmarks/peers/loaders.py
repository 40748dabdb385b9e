"""How peers make two views of a slice or of a clip.

All make the same views as far as they can: a crop of 8-100 % of the area resized to a square, a left-right flip with
probability 0.5, brightness and contrast within 20 % with probability 0.8, normalisation. What acts on colour alone is
off, and so are blur and solarisation. Where a peer leaves a choice, the faster one is taken: its slices lie in RAM,
decoded and converted, before the clock starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms import v2

AREA, FLIP, JITTER, AMOUNT = (0.08, 1.0), 0.5, 0.8, 0.2


@dataclass(frozen=True)
class TwoOf(Dataset[Any]):
    """Two calls of a transform on each item; indexed by `engine.order.Draw` like `data.samples.TwoViews`."""

    item: Callable[[int], Any]
    transform: Callable[[Any], Any]
    reseed: Callable[[int], object] | None = None
    """Makes the next view a function of its seed; without it draws go on from the last, and the seed is not used."""

    def __getitem__(self, draw: tuple[int, int]) -> list[Any]:
        """Both views, each as the transform returns it."""
        item, views = self.item(draw[0]), []
        for seed in (draw[1], (draw[1] + 2**31) % 2**32):
            if self.reseed:
                self.reseed(seed)
            views.append(self.transform(item))
        return views


# Two views of a slice


def reference(cache: list[np.ndarray], size: int) -> TwoOf:
    """The reference loader: uint8 that wraps around, PIL, solo-learn's BYOL pipeline with ACDC's settings.

    Source: `docs/PEERS.md` section 4; solo-learn's documentation of its augmentation yaml (bicubic crop, jitter,
    grey, blur and solarisation of probability 0, flip, ToTensor, Normalize). Mean and deviation are its own.
    """
    steps = [
        T.RandomResizedCrop(size, scale=AREA, interpolation=T.InterpolationMode.BICUBIC),
        T.RandomApply([T.ColorJitter(AMOUNT, AMOUNT)], p=JITTER),
        T.RandomHorizontalFlip(FLIP),
        T.ToTensor(),
        T.Normalize([67.27], [84.66]),
    ]
    return TwoOf(WrappedPictures(cache), T.Compose(steps))


def lightly(pixels: np.ndarray, size: int) -> TwoOf:
    """lightly's BYOLTransform on 8-bit grey PIL images, colour, blur and solarisation switched off by its arguments.

    Source: docs.lightly.ai, lightly.transforms.byol_transform.

    Args:
        pixels: (slices, rows, columns) uint8.
        size: side of a view, pixels.
    """
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    settings: dict[str, Any] = {
        "input_size": size,
        "cj_prob": JITTER,
        "cj_bright": AMOUNT,
        "cj_contrast": AMOUNT,
        "cj_sat": 0.0,
        "cj_hue": 0.0,
        "min_scale": AREA[0],
        "random_gray_scale": 0.0,
        "gaussian_blur": 0.0,
        "solarization_prob": 0.0,
        "hf_prob": FLIP,
        "normalize": {"mean": [0.5], "std": [0.25]},
    }
    both = BYOLTransform(BYOLView1Transform(**settings), BYOLView2Transform(**settings))
    return Whole(Pictures(pixels), both)


def monai(images: np.ndarray, size: int) -> TwoOf:
    """MONAI's closest chain, without metadata: it has no crop of random area and aspect, so sides are drawn apart.

    CacheDataset's terms: what is not random (channel first, z-score) is done. Crops are smaller than the others'
    (41 % of the area on average instead of 54 %).

    Source: monai.readthedocs.io, transforms.

    Args:
        images: (slices, rows, columns) float32, z-scored.
        size: side of a view, pixels.
    """
    from monai.data import set_track_meta
    from monai.transforms import Compose, RandFlip, RandScaleIntensity, RandShiftIntensity, RandSpatialCrop, Resize

    set_track_meta(False)
    smallest = [round(side * AREA[0] ** 0.5) for side in images.shape[1:]]
    steps = [
        RandSpatialCrop(smallest, random_size=True),
        Resize((size, size), mode="bilinear"),
        RandFlip(prob=FLIP, spatial_axis=1),
        RandScaleIntensity(AMOUNT, prob=JITTER),
        RandShiftIntensity(AMOUNT, prob=JITTER),
    ]
    return TwoOf(torch.from_numpy(images)[:, None].__getitem__, Compose(steps))


class Jitter(A.ImageOnlyTransform):
    """Gain and offset without albumentations' clip to [0, 1], which would cut a z-scored image."""

    def get_params(self) -> dict[str, Any]:
        """Both are drawn per view."""
        return {name: self.py_random.uniform(-AMOUNT, AMOUNT) for name in ("gain", "offset")}

    def apply(self, img: np.ndarray, gain: float, offset: float, **_: Any) -> np.ndarray:
        """Of a slice or of a frame."""
        return img * np.float32(1 + gain) + np.float32(offset)


def _albumentations(size: int, intensities: list[A.ImageOnlyTransform]) -> A.Compose:
    crop = A.RandomResizedCrop((size, size), scale=AREA, interpolation=cv2.INTER_LINEAR)
    return A.Compose([crop, A.HorizontalFlip(p=FLIP), *intensities])


def _through(compose: A.Compose, image: np.ndarray) -> Tensor:
    return torch.from_numpy(compose(image=image)["image"])[None]


def albumentations(stored: list[np.ndarray], size: int, *, seeded: bool) -> TwoOf:
    """albumentations 2.0.8 on float32, z-scored once per slice, with a jitter of our own in place of theirs.

    Seeded it is how this product made views before, and its equal in what it promises: the same seed, the same view.
    Unseeded it is the least that albumentations can be asked for.

    Source: albumentations.ai, RandomResizedCrop, Compose.set_random_seed.

    Args:
        stored: (rows, columns) each, int16.
        size: side of a view, pixels.
        seeded: set the seed of every view.
    """
    compose = _albumentations(size, [Jitter(p=JITTER)])
    scores = [(slice_.mean(), 1 / slice_.std()) for slice_ in stored]

    def z_scored(i: int) -> np.ndarray:
        return _z_score(stored[i], *scores[i])

    return TwoOf(z_scored, partial(_through, compose), compose.set_random_seed if seeded else None)


def albumentations_stock(images: np.ndarray, size: int) -> TwoOf:
    """albumentations 2.0.8 with its own jitter and normalisation, on float32 in [0, 1] as these require; unseeded.

    Source: albumentations.ai, RandomBrightnessContrast and Normalize.

    Args:
        images: (slices, rows, columns) float32 in [0, 1].
        size: side of a view, pixels.
    """
    theirs = [
        A.RandomBrightnessContrast(AMOUNT, AMOUNT, p=JITTER),
        A.Normalize(mean=(0.5,), std=(0.25,), max_pixel_value=1.0),
    ]
    return TwoOf(images.__getitem__, partial(_through, _albumentations(size, theirs)))


def torchvision(images: np.ndarray, size: int) -> TwoOf:
    """torchvision.transforms.v2 slice by slice on float tensors in [0, 1], as its documentation advises.

    Args:
        images: (slices, rows, columns) float32 in [0, 1].
        size: side of a view, pixels.
    """
    steps = [
        v2.RandomResizedCrop(size, scale=AREA, antialias=True),
        v2.RandomHorizontalFlip(FLIP),
        v2.RandomApply([v2.ColorJitter(AMOUNT, AMOUNT)], p=JITTER),
        v2.Normalize([0.5], [0.25]),
    ]
    return TwoOf(torch.from_numpy(images)[:, None].__getitem__, v2.Compose(steps))


# Two views of a clip


def albumentations_clip(clip: Callable[[int], np.ndarray], statistics: tuple[float, float], size: int) -> TwoOf:
    """albumentations' `images=`: parameters drawn once, then applied frame by frame.

    Args:
        clip: exam -> (frames, rows, columns) int16.
        statistics: mean and standard deviation.
        size: side of a view, pixels.
    """
    compose = _albumentations(size, [Jitter(p=JITTER)])
    mean, std = statistics

    def view(frames: np.ndarray) -> Tensor:
        return torch.from_numpy(compose(images=frames)["images"])[None]

    return TwoOf(lambda i: _z_score(clip(i), mean, 1 / std), view)


def pil_clip(clip: Callable[[int], np.ndarray], size: int) -> TwoOf:
    """What lightly and solo-learn do to an image, frame by frame with one draw, by torchvision's functions.

    Neither knows clips. Source: torchvision's documentation of RandomResizedCrop.get_params and functional.

    Args:
        clip: exam -> (frames, rows, columns) uint8.
        size: side of a view, pixels.
    """

    def view(frames: list[Image.Image]) -> Tensor:
        box = T.RandomResizedCrop.get_params(frames[0], list(AREA), [3 / 4, 4 / 3])
        flip, jitter = torch.rand(2).tolist()
        brightness, contrast = (1 - AMOUNT + 2 * AMOUNT * torch.rand(2)).tolist()
        done = []
        for frame in frames:
            frame = F.resized_crop(frame, *box, [size, size])
            frame = F.hflip(frame) if flip < FLIP else frame
            if jitter < JITTER:
                frame = F.adjust_contrast(F.adjust_brightness(frame, brightness), contrast)
            done.append(F.normalize(F.to_tensor(frame), [0.5], [0.25]))
        return torch.stack(done, dim=1)

    return TwoOf(lambda i: [Image.fromarray(frame) for frame in clip(i)], view)


# Pieces


class Whole(TwoOf):
    """A transform that makes both views itself."""

    def __getitem__(self, draw: tuple[int, int]) -> list[Any]:
        """Both views."""
        views: list[Any] = self.transform(self.item(draw[0]))
        return views


@dataclass(frozen=True)
class Pictures:
    """Item -> 8-bit grey PIL image of (slices, rows, columns) uint8."""

    pixels: np.ndarray

    def __call__(self, i: int) -> Image.Image:
        """Image i."""
        return Image.fromarray(self.pixels[i])


@dataclass(frozen=True)
class WrappedPictures:
    """Item -> PIL image of a cached uint16 slice, modulo 256 as the reference casts."""

    cache: list[np.ndarray]

    def __call__(self, i: int) -> Image.Image:
        """Image i."""
        return Image.fromarray(self.cache[i].astype(np.uint8))


def _z_score(pixels: np.ndarray, mean: float, gain: float) -> np.ndarray:
    return (pixels.astype(np.float32) - np.float32(mean)) * np.float32(gain)
