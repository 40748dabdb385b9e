"""Two views of a slice or of a clip, made by other libraries.

All make the same views as far as they can: a crop of 8-100 % of the area resized to a square, a left-right flip with
probability 0.5, brightness and contrast within 20 % with probability 0.8, normalisation. Changes of colour, blur and
solarisation are off. Where a library leaves a choice, the faster one is taken: slices are decoded and converted in RAM
before the clock starts. In every function `size` is the side of a view in pixels.
"""

from collections.abc import Callable, Sequence
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
class TwoCalls(Dataset[Any]):
    """Two calls of a transform on each item; indexed by `engine.sampler.Sample` like `data.samples.slices.TwoViews`."""

    item: Callable[[int], Any]
    transform: Callable[[Any], Any]
    reseed: Callable[[int], object] | None = None
    """Sets the random seed of the next view; None: seeds are ignored."""

    def __getitem__(self, sample: tuple[int, int]) -> list[Any]:
        """Both views, each as the transform returns it."""
        item, views = self.item(sample[0]), []
        for seed in (sample[1], (sample[1] + 2**31) % 2**32):
            if self.reseed:
                self.reseed(seed)
            views.append(self.transform(item))
        return views


# Two views of a slice


def reference(cache: list[np.ndarray], size: int) -> TwoCalls:
    """The loader of Kalapos and Gyires-Toth 2022: uint8 with wrap-around, PIL, solo-learn's BYOL augmentation.

    Source: their code, and solo-learn's documentation of its augmentation yaml (bicubic crop, jitter; grey, blur and
    solarisation of probability 0; flip, ToTensor, Normalize). Mean and standard deviation are those of their code.
    """
    steps = [
        T.RandomResizedCrop(size, scale=AREA, interpolation=T.InterpolationMode.BICUBIC),
        T.RandomApply([T.ColorJitter(AMOUNT, AMOUNT)], p=JITTER),
        T.RandomHorizontalFlip(FLIP),
        T.ToTensor(),
        T.Normalize([67.27], [84.66]),
    ]
    return TwoCalls(partial(_picture, cache), T.Compose(steps))


def lightly(pixels: np.ndarray, size: int) -> TwoCalls:
    """lightly's BYOLTransform on 8-bit grey PIL images, without colour changes, blur and solarisation.

    `pixels` is (slices, rows, columns) uint8. Source: docs.lightly.ai, lightly.transforms.byol_transform.
    """
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    settings: dict[str, Any] = {
        "input_size": size, "min_scale": AREA[0], "hf_prob": FLIP, "normalize": {"mean": [0.5], "std": [0.25]},
        "cj_prob": JITTER, "cj_bright": AMOUNT, "cj_contrast": AMOUNT, "cj_sat": 0.0, "cj_hue": 0.0,
        "random_gray_scale": 0.0, "gaussian_blur": 0.0, "solarization_prob": 0.0,
    }  # fmt: skip
    transform = BYOLTransform(BYOLView1Transform(**settings), BYOLView2Transform(**settings))
    return PairTransform(partial(_picture, pixels), transform)


def monai(images: np.ndarray, size: int) -> TwoCalls:
    """The closest MONAI pipeline, without metadata: crops have independent random sides, not random area and aspect.

    As with CacheDataset, deterministic steps (channel first, z-score) are done beforehand: `images` is z-scored
    (slices, rows, columns) float32. Crops are smaller than those of the others (41 % of the area on average instead of
    54 %). Source: monai.readthedocs.io, transforms.
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
    return TwoCalls(torch.from_numpy(images)[:, None].__getitem__, Compose(steps))


class Jitter(A.ImageOnlyTransform):
    """Random gain and offset, without the clipping to [0, 1] by albumentations, which is wrong for z-scored images."""

    def get_params(self) -> dict[str, Any]:
        """Random gain and offset of one view."""
        return {name: self.py_random.uniform(-AMOUNT, AMOUNT) for name in ("gain", "offset")}

    def apply(self, img: np.ndarray, gain: float, offset: float, **_: Any) -> np.ndarray:
        """Apply gain and offset to a slice or a frame."""
        return img * np.float32(1 + gain) + np.float32(offset)


def _albumentations(size: int, intensities: list[A.ImageOnlyTransform]) -> A.Compose:
    crop = A.RandomResizedCrop((size, size), scale=AREA, interpolation=cv2.INTER_LINEAR)
    return A.Compose([crop, A.HorizontalFlip(p=FLIP), *intensities])


def _through(compose: A.Compose, image: np.ndarray) -> Tensor:
    return torch.from_numpy(compose(image=image)["image"])[None]


def albumentations(stored: list[np.ndarray], size: int, *, seeded: bool) -> TwoCalls:
    """albumentations 2.0.8 on float32, z-scored once per slice, with the jitter above.

    Each of `stored` is (rows, columns) int16. Seeded, the same seed gives the same view, as in fewslice; unseeded is
    albumentations at its fastest. Source: albumentations.ai, RandomResizedCrop, Compose.set_random_seed.
    """
    compose = _albumentations(size, [Jitter(p=JITTER)])
    statistics = [(pixels.mean(), 1 / pixels.std()) for pixels in stored]
    reseed = compose.set_random_seed if seeded else None
    return TwoCalls(lambda i: _z_score(stored[i], *statistics[i]), partial(_through, compose), reseed)


def albumentations_stock(images: np.ndarray, size: int) -> TwoCalls:
    """albumentations 2.0.8 with its built-in jitter and normalisation, unseeded.

    `images` is (slices, rows, columns) float32 in [0, 1], as both require. Source: albumentations.ai,
    RandomBrightnessContrast and Normalize.
    """
    intensities: list[A.ImageOnlyTransform] = [
        A.RandomBrightnessContrast(AMOUNT, AMOUNT, p=JITTER),
        A.Normalize(mean=(0.5,), std=(0.25,), max_pixel_value=1.0),
    ]
    return TwoCalls(images.__getitem__, partial(_through, _albumentations(size, intensities)))


def torchvision(images: np.ndarray, size: int) -> TwoCalls:
    """torchvision.transforms.v2 slice by slice on float tensors, as its documentation advises.

    `images` is (slices, rows, columns) float32 in [0, 1].
    """
    steps = [
        v2.RandomResizedCrop(size, scale=AREA, antialias=True),
        v2.RandomHorizontalFlip(FLIP),
        v2.RandomApply([v2.ColorJitter(AMOUNT, AMOUNT)], p=JITTER),
        v2.Normalize([0.5], [0.25]),
    ]
    return TwoCalls(torch.from_numpy(images)[:, None].__getitem__, v2.Compose(steps))


# Two views of a clip


def albumentations_clip(clip: Callable[[int], np.ndarray], statistics: tuple[float, float], size: int) -> TwoCalls:
    """albumentations' `images=`: random parameters drawn once and applied frame by frame.

    `clip` maps an exam to (frames, rows, columns) int16; `statistics` are its mean and standard deviation.
    """
    compose = _albumentations(size, [Jitter(p=JITTER)])
    mean, std = statistics

    def view(frames: np.ndarray) -> Tensor:
        return torch.from_numpy(compose(images=frames)["images"])[None]

    return TwoCalls(lambda i: _z_score(clip(i), mean, 1 / std), view)


def pil_clip(clip: Callable[[int], np.ndarray], size: int) -> TwoCalls:
    """The augmentation of lightly and solo-learn, applied with torchvision frame by frame with the same parameters.

    `clip` maps an exam to (frames, rows, columns) uint8. Neither library supports clips. Source: torchvision's
    documentation of RandomResizedCrop.get_params and functional.
    """

    def view(frames: list[Image.Image]) -> Tensor:
        box = T.RandomResizedCrop.get_params(frames[0], list(AREA), [3 / 4, 4 / 3])
        flip, jitter = torch.rand(2).tolist()
        brightness, contrast = (1 - AMOUNT + 2 * AMOUNT * torch.rand(2)).tolist()
        tensors = []
        for frame in frames:
            frame = F.resized_crop(frame, *box, [size, size])
            frame = F.hflip(frame) if flip < FLIP else frame
            if jitter < JITTER:
                frame = F.adjust_contrast(F.adjust_brightness(frame, brightness), contrast)
            tensors.append(F.normalize(F.to_tensor(frame), [0.5], [0.25]))
        return torch.stack(tensors, dim=1)

    return TwoCalls(lambda i: [Image.fromarray(frame) for frame in clip(i)], view)


# Helpers of the functions above


class PairTransform(TwoCalls):
    """One call of a transform that returns both views."""

    def __getitem__(self, sample: tuple[int, int]) -> Any:
        """Both views, as the transform returns them."""
        return self.transform(self.item(sample[0]))


def _picture(slices: Sequence[np.ndarray] | np.ndarray, i: int) -> Image.Image:
    """8-bit grey PIL image; uint16 is taken modulo 256 as in the code of Kalapos and Gyires-Toth 2022."""
    return Image.fromarray(slices[i].astype(np.uint8, copy=False))


def _z_score(pixels: np.ndarray, mean: float, gain: float) -> np.ndarray:
    return (pixels.astype(np.float32) - np.float32(mean)) * np.float32(gain)
