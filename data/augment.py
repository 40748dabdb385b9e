"""Augmentation of slices and clips: one specification for unlabelled and for labelled images, and how a CPU applies it.

A resized crop, of which pretraining takes two per slice, is cut straight from the pixels in file units and interpolated
once (`draw_crop`, `cut`); `data.samples.on_device` applies the same draws on a device. Everything else goes through
albumentations (2.0.8, its last MIT release), which only this module imports. Images are z-scored float32, so nothing
here may assume 0..255 or 0..1: albumentations' own brightness, contrast, blur and solarisation clip float images to
[0, 1], and are replaced below by the same operations without clipping.
"""

import math
import os
import random
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer release

import albumentations as A
import cv2
import numpy as np

from core.errors import UserError
from data.preprocessing import z_score
from data.readers.label_maps import IGNORED

cv2.setNumThreads(0)  # the loader's processes are the parallelism; threads inside them only fight


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a training image."""

    crop: Literal["resized", "fixed"] = "resized"
    """`resized`: a crop of random area and aspect ratio, resized to image_size (BYOL); `fixed`: a crop of exactly
    image_size pixels, without rescaling."""
    area: tuple[float, float] = (0.08, 1.0)
    """Range of the share of the slice's area that a resized crop covers, in (0, 1]."""
    bicubic: bool = False
    """Resize crops with bicubic instead of bilinear interpolation."""
    foreground: float = 0.0
    """Probability that a fixed crop must contain some labelled structure, if the slice has any."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    affine: float = 0.0
    """Probability of a random rotation and zoom."""
    rotate_degrees: float = 30.0
    """Largest rotation in either direction, in degrees."""
    zoom: tuple[float, float] = (0.8, 1.25)
    """Range of the zoom factor."""
    jitter: float = 0.8
    """Probability of a random change of brightness and contrast."""
    brightness: float = 0.2
    """Largest change of brightness, in standard deviations of the slice."""
    contrast: float = 0.2
    """Largest relative change of contrast: 0.2 is a factor of 0.8 to 1.2."""
    blur: float = 0.0
    """Probability of a Gaussian blur (sigma 0.1 to 2 pixels)."""
    solarise: float = 0.0
    """Probability of inverting all intensities above the slice's mean."""

    def __post_init__(self) -> None:
        for name in ("foreground", "flip", "affine", "jitter", "blur", "solarise"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"--augmentation.{name} {value}: must lie in [0, 1], a probability")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"--augmentation.area {self.area[0]} {self.area[1]}: must rise and lie in (0, 1]")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise UserError(f"--augmentation.zoom {self.zoom[0]} {self.zoom[1]}: must rise and be above 0")
        for name in ("rotate_degrees", "brightness", "contrast"):
            if not (value := getattr(self, name)) >= 0:
                raise UserError(f"--augmentation.{name.replace('_', '-')} {value}: must be 0 or more")


class _Jitter(A.ImageOnlyTransform):
    """Gain about the slice's mean (0 after z-scoring) and offset in its standard deviations."""

    def __init__(self, brightness: float, contrast: float, p: float) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast = brightness, contrast

    def get_params(self) -> dict[str, Any]:
        return {
            "gain": self.py_random.uniform(1 - self.contrast, 1 + self.contrast),
            "offset": self.py_random.uniform(-self.brightness, self.brightness),
        }

    def apply(self, img: np.ndarray, gain: float, offset: float, **_: Any) -> np.ndarray:
        return img * np.float32(gain) + np.float32(offset)


BLUR = (0.1, 2.0)
"""Range of the blur's sigma, in pixels of the augmented image."""


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with BYOL's 23-pixel kernel."""
    return cv2.GaussianBlur(image, (23, 23), sigma)


class _Blur(A.ImageOnlyTransform):
    """Gaussian blur with a random sigma."""

    def get_params(self) -> dict[str, Any]:
        return {"sigma": self.py_random.uniform(*BLUR)}

    def apply(self, img: np.ndarray, sigma: float, **_: Any) -> np.ndarray:
        return blur(img, sigma)


class _Solarise(A.ImageOnlyTransform):
    """Mirror intensities above the mean: |x| -> -|x| (the z-scored form of 255 - x above 128)."""

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        return -np.abs(img)


class Crop(NamedTuple):
    """One random resized crop and the changes to its intensities."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    gain: float
    offset: float
    sigma: float
    """Sigma of the Gaussian blur, in pixels of the augmented image; 0 for none."""
    solarise: bool

    def affine(self, statistics: tuple[float, float]) -> tuple[float, float]:
        """Factor and offset that z-score and jitter at once; a constant image becomes the jitter's offset."""
        mean, std = statistics
        scale = self.gain / std if std > 0 else 0.0
        return scale, self.offset - mean * scale


def pair_of_seeds(seed: int) -> tuple[int, int]:
    """The seeds of a sample's two views."""
    return seed, (seed + 2**31) % 2**32


RATIO = (math.log(3 / 4), math.log(4 / 3))
"""Range of the logarithm of a resized crop's width over its height (torchvision's RandomResizedCrop)."""


def draw_crop(augmentation: Augmentation, shape: tuple[int, int], seed: int) -> Crop:
    """Draw the crop of an image of (rows, columns); its geometry first, so that it depends on nothing that follows.

    Area and aspect ratio are drawn up to ten times until the crop fits; an image too elongated for that is cropped at
    its centre.
    """
    rng = random.Random(seed)
    rows, columns = shape
    for _ in range(10):
        area, ratio = rng.uniform(*augmentation.area) * rows * columns, math.exp(rng.uniform(*RATIO))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            top, left = int(rng.random() * (rows - height + 1)), int(rng.random() * (columns - width + 1))
            break
    else:
        height = min(rows, max(1, round(columns * 4 / 3)))
        width = min(columns, max(1, round(rows * 4 / 3)))
        top, left = (rows - height) // 2, (columns - width) // 2
    flip = rng.random() < augmentation.flip
    gain, offset = 1.0, 0.0
    if rng.random() < augmentation.jitter:
        gain = rng.uniform(1 - augmentation.contrast, 1 + augmentation.contrast)
        offset = rng.uniform(-augmentation.brightness, augmentation.brightness)
    sigma = rng.uniform(*BLUR) if rng.random() < augmentation.blur else 0.0
    return Crop(top, left, height, width, flip, gain, offset, sigma, rng.random() < augmentation.solarise)


def cut(
    crop: Crop, image: np.ndarray, out: np.ndarray, statistics: tuple[float, float] = (0.0, 1.0), *, bicubic: bool
) -> None:
    """Apply a crop: one multiplication z-scores and jitters the cut-out, one interpolation resizes it.

    Fills `out`, (size, size) float32, from `image`, (rows, columns) in any units, for whose shape `crop` was drawn;
    `statistics` are the mean and standard deviation that z-score the image.
    """
    scale, offset = crop.affine(statistics)
    part = np.multiply(_part(crop, image), np.float32(scale), dtype=np.float32)
    part += np.float32(offset)
    how = cv2.INTER_CUBIC if bicubic else cv2.INTER_LINEAR
    cv2.resize(part, out.shape[::-1], dst=out, interpolation=how)
    if crop.sigma:
        out[:] = blur(out, crop.sigma)
    if crop.solarise:
        np.negative(np.abs(out, out=out), out=out)


def _part(crop: Crop, image: np.ndarray) -> np.ndarray:
    """The pixels of a crop, flipped; shares memory with the image."""
    part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return part[:, ::-1] if crop.flip else part


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
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Augment one image.

        Args:
            image: (rows, columns), any units.
            seed: seed of this one draw.
            label: (rows, columns) uint8 class indices that go through the same geometry, or None.
            statistics: mean and standard deviation that z-score the image; (0, 1) if it is z-scored already.

        Returns:
            image (size, size) float32, z-scored, and label (size, size) uint8 or None.
        """
        if self.transform is None:
            crop = draw_crop(self.augmentation, image.shape, seed)
            augmented = np.empty((self.size, self.size), np.float32)
            cut(crop, image, augmented, statistics, bicubic=self.augmentation.bicubic)
            if label is None:
                return augmented, None
            # INTER_NEAREST rounds coordinates down, which would displace labels by half a pixel against their images
            part, how = np.ascontiguousarray(_part(crop, label)), cv2.INTER_NEAREST_EXACT
            return augmented, cv2.resize(part, (self.size, self.size), interpolation=how)
        self.transform.set_random_seed(seed)
        image = image if statistics == (0.0, 1.0) else z_score(image, *statistics)
        if label is None:
            return self.transform(image=image)["image"], None
        result = self.transform(image=image, mask=label)
        return result["image"], result["mask"]

    def fill(self, out: np.ndarray, image: np.ndarray, seed: int, statistics: tuple[float, float]) -> None:
        """Augment an unlabelled image into `out`, (size, size) float32, without a copy."""
        if self.transform is None:
            crop = draw_crop(self.augmentation, image.shape, seed)
            cut(crop, image, out, statistics, bicubic=self.augmentation.bicubic)
        else:
            out[:] = self(image, seed, statistics=statistics)[0]

    def clip(self, frames: np.ndarray, seed: int, statistics: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
        """Augment a clip (frames, rows, columns): every frame goes through the same draw, so only anatomy changes.

        Returns:
            (frames, size, size) float32; frame t equals ``self(frames[t], seed, statistics=statistics)``.
        """
        if self.transform is None:
            crop = draw_crop(self.augmentation, frames[0].shape, seed)
            augmented = np.empty((len(frames), self.size, self.size), np.float32)
            for frame, out in zip(frames, augmented, strict=True):
                cut(crop, frame, out, statistics, bicubic=self.augmentation.bicubic)
            return augmented
        self.transform.set_random_seed(seed)
        return self.transform(images=frames if statistics == (0.0, 1.0) else z_score(frames, *statistics))["images"]


def compose(augmentation: Augmentation, size: int) -> A.Compose:
    """An augmentation as a composition of albumentations, for z-scored float32 images."""
    steps: list[Any] = []
    if augmentation.affine:
        degrees, border = (-augmentation.rotate_degrees, augmentation.rotate_degrees), cv2.BORDER_REFLECT_101
        steps.append(A.Affine(rotate=degrees, scale=augmentation.zoom, border_mode=border, p=augmentation.affine))
    if augmentation.crop == "resized":
        how = cv2.INTER_CUBIC if augmentation.bicubic else cv2.INTER_LINEAR
        ratio = (math.exp(RATIO[0]), math.exp(RATIO[1]))
        crop = A.RandomResizedCrop((size, size), scale=augmentation.area, ratio=ratio, interpolation=how)
        # Set afterwards, as its constructor refuses it: INTER_NEAREST rounds coordinates down, which would displace
        # labels by half a pixel against their images.
        crop.mask_interpolation = cv2.INTER_NEAREST_EXACT
        steps.append(crop)
    else:
        steps.append(A.PadIfNeeded(size, size, border_mode=cv2.BORDER_REFLECT_101))
        anywhere = A.RandomCrop(size, size, p=1 - augmentation.foreground)
        if augmentation.foreground:
            foreground = A.CropNonEmptyMaskIfExists(size, size, ignore_values=[IGNORED], p=augmentation.foreground)
            steps.append(A.OneOf([foreground, anywhere], p=1))
        else:
            steps.append(anywhere)
    optional = [
        (A.HorizontalFlip(p=augmentation.flip), augmentation.flip),
        (_Jitter(augmentation.brightness, augmentation.contrast, p=augmentation.jitter), augmentation.jitter),
        (_Blur(p=augmentation.blur), augmentation.blur),
        (_Solarise(p=augmentation.solarise), augmentation.solarise),
    ]
    return A.Compose(steps + [step for step, probability in optional if probability > 0])
