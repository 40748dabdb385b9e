"""Augmentation of slices and clips as a CPU applies it, from the settings of `data.augmentation`.

A resized crop, of which pretraining takes two per slice, is cut straight from the pixels in file units and interpolated
once (`draw_crop`, `data.crops`); `data.samples.on_device` applies the same draws on a device. Everything else goes
through albumentations (2.0.8, its last MIT release), which only this module imports. Images are z-scored float32, so
nothing here may assume 0..255 or 0..1: albumentations' own brightness, contrast, gamma, noise, blur and solarisation
clip float images to [0, 1], and are replaced by the same operations of `data.intensities` without clipping.
"""

import math
import os
import random
from collections.abc import Callable
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer release

import albumentations as A
import cv2
import numpy as np

from data.augmentation import Augmentation
from data.crops import Crop, change_intensities, cut, part_of
from data.intensities import bias_field, blur, gamma, jitter, noise, solarise
from data.preprocessing import BORDER, resize, z_score
from data.readers.label_maps import IGNORED

cv2.setNumThreads(0)  # the loader's processes are the parallelism; threads inside them only fight


def _draw_nothing(rng: random.Random) -> tuple[()]:
    return ()


class _Change(A.ImageOnlyTransform):
    """A random change of intensities: `change(image, *draw(rng))`, with one draw for all frames of a clip."""

    def __init__(self, change: Callable[..., np.ndarray], draw: Callable[[random.Random], tuple], p: float) -> None:
        super().__init__(p=p)
        self.change, self.draw = change, draw

    def get_params(self) -> dict[str, Any]:
        return {"drawn": self.draw(self.py_random)}

    def apply(self, img: np.ndarray, drawn: tuple, **_: Any) -> np.ndarray:
        return self.change(img, *drawn)

    def apply_to_images(self, images: np.ndarray, drawn: tuple, **_: Any) -> np.ndarray:
        return self.change(images, *drawn)


class _ResizedCrop(A.RandomResizedCrop):
    """A resized crop that is averaged by area where it shrinks much."""

    antialias: bool

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], **_: Any) -> np.ndarray:
        left, top, right, bottom = crop_coords
        return resize(img[top:bottom, left:right], self.size, self.interpolation, antialias=self.antialias)

    def apply_to_images(self, images: np.ndarray, crop_coords: tuple[int, int, int, int], **_: Any) -> np.ndarray:
        return np.stack([self.apply(image, crop_coords) for image in images])


def pair_of_seeds(seed: int) -> tuple[int, int]:
    """The seeds of a sample's two views."""
    return seed, (seed + 2**31) % 2**32


RATIO = (math.log(3 / 4), math.log(4 / 3))
"""Range of the logarithm of a resized crop's width over its height (torchvision's RandomResizedCrop)."""


def draw_crop(augmentation: Augmentation, shape: tuple[int, int], seed: int, centres: np.ndarray | None = None) -> Crop:
    """Draw the crop of an image of (rows, columns); its geometry first, so that it depends on nothing that follows.

    Area and aspect ratio are drawn up to ten times until the crop fits; an image too elongated for that is cropped at
    its centre. With `centres`, cumulative probabilities as of `data.cines.centre_map`, the crop's centre is drawn from
    them, and the crop is then moved into the image; without, every place is as probable.
    """
    rng = random.Random(seed)
    rows, columns = shape
    for _ in range(10):
        area, ratio = rng.uniform(*augmentation.area) * rows * columns, math.exp(rng.uniform(*RATIO))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            if centres is None:
                top, left = int(rng.random() * (rows - height + 1)), int(rng.random() * (columns - width + 1))
            else:
                row, column = _draw_centre(centres, rng)
                top = min(max(round(row * rows - height / 2), 0), rows - height)
                left = min(max(round(column * columns - width / 2), 0), columns - width)
            break
    else:
        height = min(rows, max(1, round(columns * 4 / 3)))
        width = min(columns, max(1, round(rows * 4 / 3)))
        top, left = (rows - height) // 2, (columns - width) // 2
    flip = rng.random() < augmentation.flip
    gain, offset = 1.0, 0.0
    if rng.random() < augmentation.jitter:
        gain, offset = augmentation.draw_jitter(rng)
    sigma = augmentation.draw_blur(rng)[0] if rng.random() < augmentation.blur else 0.0
    inverted = rng.random() < augmentation.solarise
    power = augmentation.draw_gamma(rng)[0] if rng.random() < augmentation.gamma else 1.0
    bias = augmentation.draw_bias(rng)[0] if rng.random() < augmentation.bias_field else ()
    noisy = augmentation.draw_noise(rng) if rng.random() < augmentation.noise else (0.0, 0)
    return Crop(top, left, height, width, flip, gain, offset, sigma, inverted, power, bias, noisy)


def _draw_centre(centres: np.ndarray, rng: random.Random) -> tuple[float, float]:
    """A place within the image, (row, column) each in [0, 1)."""
    cell = int(np.searchsorted(centres.ravel(), rng.random() * centres[-1, -1], side="right"))
    row, column = divmod(min(cell, centres.size - 1), centres.shape[1])
    return (row + rng.random()) / centres.shape[0], (column + rng.random()) / centres.shape[1]


class Augmenter:
    """Applies an augmentation on the CPU, to squares of `size` pixels; the same seed gives the same result."""

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self.augmentation, self.size = augmentation, size
        self.cuts = augmentation.crop == "resized" and not augmentation.affine
        """Whether results are cut from the pixels; otherwise they go through albumentations."""
        self.transform = None if self.cuts else compose(augmentation, size)

    def __call__(
        self,
        image: np.ndarray,
        seed: int,
        label: np.ndarray | None = None,
        *,
        statistics: tuple[float, float] = (0.0, 1.0),
        foreground: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Augment one image.

        Args:
            image: (rows, columns), any units; or (channels, rows, columns), which go through one draw as in `clip`.
            seed: seed of this one draw.
            label: (rows, columns) uint8 class indices that go through the same geometry, or None.
            statistics: mean and standard deviation that z-score the image; (0, 1) if it is z-scored already.
            foreground: (rows, columns) uint8, not 0 where a fixed crop has to look for foreground; None: where `label`
                has some. With it the crop does not depend on `label`.

        Returns:
            image (size, size) or (channels, size, size) float32, z-scored, and label (size, size) uint8 or None.
        """
        if self.transform is None:
            augmented = np.empty((*image.shape[:-2], self.size, self.size), np.float32)
            crop = self._cut(_stacked(augmented), _stacked(image), seed, statistics)
            if label is None:
                return augmented, None
            # INTER_NEAREST rounds coordinates down, which would displace labels by half a pixel against their images
            part, how = np.ascontiguousarray(part_of(crop, label)), cv2.INTER_NEAREST_EXACT
            return augmented, cv2.resize(part, (self.size, self.size), interpolation=how)
        self.transform.set_random_seed(seed)
        image = image if statistics == (0.0, 1.0) else z_score(image, *statistics)
        target = "image" if image.ndim == 2 else "images"
        if label is None:
            return self.transform(**{target: image})[target], None
        if foreground is not None:
            result = self.transform(**{target: image}, mask=foreground, masks=[label])
            return result[target], result["masks"][0]
        result = self.transform(**{target: image}, mask=label)
        return result[target], result["mask"]

    def fill(
        self,
        out: np.ndarray,
        image: np.ndarray,
        seed: int,
        statistics: tuple[float, float],
        centres: np.ndarray | None = None,
    ) -> Crop | None:
        """Augment an unlabelled image into `out`, (channels, size, size) float32, without a copy.

        The image is (rows, columns), or (channels, rows, columns) as in `__call__`; `centres` as in `draw_crop`.

        Returns:
            The crop, None if the view is no plain resized crop.
        """
        if self.transform is None:
            return self._cut(out, _stacked(image), seed, statistics, centres)
        out[:] = self(image, seed, statistics=statistics)[0]
        return None

    def clip(
        self,
        frames: np.ndarray,
        seed: int,
        statistics: tuple[float, float] = (0.0, 1.0),
        centres: np.ndarray | None = None,
    ) -> np.ndarray:
        """Augment a clip (frames, rows, columns): every frame goes through the same draw, so only anatomy changes.

        Returns:
            (frames, size, size) float32; without gamma and bias field, which see the range of the whole clip, frame t
            equals ``self(frames[t], seed, statistics=statistics)``.
        """
        if self.transform is None:
            augmented = np.empty((len(frames), self.size, self.size), np.float32)
            self._cut(augmented, frames, seed, statistics, centres)
            return augmented
        self.transform.set_random_seed(seed)
        return self.transform(images=frames if statistics == (0.0, 1.0) else z_score(frames, *statistics))["images"]

    def _cut(
        self,
        out: np.ndarray,
        frames: np.ndarray,
        seed: int,
        statistics: tuple[float, float],
        centres: np.ndarray | None = None,
    ) -> Crop:
        """Augment frames (frames, rows, columns) by one crop, which is returned, into `out`, (frames, size, size)."""
        augmentation = self.augmentation
        crop = draw_crop(augmentation, frames[0].shape, seed, centres)
        for frame, view in zip(frames, out, strict=True):
            cut(crop, frame, view, statistics, bicubic=augmentation.bicubic, antialias=augmentation.antialias)
        if (changed := change_intensities(crop, out)) is not out:
            out[:] = changed
        return crop


def _stacked(image: np.ndarray) -> np.ndarray:
    """(rows, columns) as (1, rows, columns); several channels as they are. Shares memory with the image."""
    return image if image.ndim == 3 else image[None]


def compose(augmentation: Augmentation, size: int) -> A.Compose:
    """An augmentation as a composition of albumentations, for z-scored float32 images."""
    steps: list[Any] = []
    if augmentation.affine:
        degrees = (-augmentation.rotate_degrees, augmentation.rotate_degrees)
        steps.append(A.Affine(rotate=degrees, scale=augmentation.zoom, border_mode=BORDER, p=augmentation.affine))
    if augmentation.crop == "resized":
        how = cv2.INTER_CUBIC if augmentation.bicubic else cv2.INTER_LINEAR
        ratio = (math.exp(RATIO[0]), math.exp(RATIO[1]))
        crop = _ResizedCrop((size, size), scale=augmentation.area, ratio=ratio, interpolation=how)
        crop.antialias = augmentation.antialias
        # Set afterwards, as its constructor refuses it: INTER_NEAREST rounds coordinates down, which would displace
        # labels by half a pixel against their images.
        crop.mask_interpolation = cv2.INTER_NEAREST_EXACT
        steps.append(crop)
    else:
        steps.append(A.PadIfNeeded(size, size, border_mode=BORDER))
        anywhere = A.RandomCrop(size, size, p=1 - augmentation.foreground)
        if augmentation.foreground:
            foreground = A.CropNonEmptyMaskIfExists(size, size, ignore_values=[IGNORED], p=augmentation.foreground)
            steps.append(A.OneOf([foreground, anywhere], p=1))
        else:
            steps.append(anywhere)
    changes: list[tuple[Callable[..., np.ndarray], Callable[[random.Random], tuple], float]] = [
        (jitter, augmentation.draw_jitter, augmentation.jitter),
        (bias_field, augmentation.draw_bias, augmentation.bias_field),
        (gamma, augmentation.draw_gamma, augmentation.gamma),
        (blur, augmentation.draw_blur, augmentation.blur),
        (noise, augmentation.draw_noise, augmentation.noise),
        (solarise, _draw_nothing, augmentation.solarise),
    ]
    if augmentation.flip > 0:
        steps.append(A.HorizontalFlip(p=augmentation.flip))
    return A.Compose(steps + [_Change(change, draw, p=p) for change, draw, p in changes if p > 0])
