"""Random views of a slice: one description for unlabelled and for labelled images.

Resized crops, which pretraining draws two of per slice, are cut straight from the pixels in the file's units and
interpolated once (`draw_crop`, `cut`). All else goes through albumentations (2.0.8, its last MIT release), which only
this module knows. Views are z-scored float32, so nothing here may assume 0..255 or 0..1: albumentations' own
brightness, contrast, blur and solarisation clip float images to [0, 1], and are replaced below by the same operations
without the clip.
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

from data.errors import UserError

cv2.setNumThreads(0)  # the loader's processes are the parallelism; threads inside them only fight


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """What may happen to a slice on its way to a view."""

    crop: Literal["resized", "fixed"] = "resized"
    """`resized`: random area and aspect, resized to the image size (BYOL); `fixed`: that many pixels as they are."""
    area: tuple[float, float] = (0.08, 1.0)
    """Share of the slice's area that a resized crop covers."""
    bicubic: bool = False
    """Bicubic in place of bilinear interpolation in a resized crop."""
    foreground: float = 0.0
    """Probability that a fixed crop must hold some labelled structure (where the slice has any)."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    affine: float = 0.0
    """Probability of a rotation and zoom."""
    rotate_degrees: float = 30.0
    """Largest rotation either way, degrees."""
    zoom: tuple[float, float] = (0.8, 1.25)
    """Range of the zoom factor."""
    jitter: float = 0.8
    """Probability of an intensity jitter."""
    brightness: float = 0.2
    """Largest offset, in standard deviations of the slice."""
    contrast: float = 0.2
    """Largest relative change of gain."""
    blur: float = 0.0
    """Probability of a Gaussian blur (sigma 0.1-2 pixels)."""
    solarise: float = 0.0
    """Probability of inverting everything above the slice's mean."""

    def __post_init__(self) -> None:
        for name in ("foreground", "flip", "affine", "jitter", "blur", "solarise"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"--views.{name} {value}: must lie in [0, 1], a probability")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"--views.area {self.area[0]} {self.area[1]}: must rise and lie in (0, 1]")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise UserError(f"--views.zoom {self.zoom[0]} {self.zoom[1]}: must rise and be above 0")
        for name in ("rotate_degrees", "brightness", "contrast"):
            if not (value := getattr(self, name)) >= 0:
                raise UserError(f"--views.{name.replace('_', '-')} {value}: must be 0 or more")


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
"""Range of the blur's sigma, pixels of the view."""


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with BYOL's 23-pixel kernel."""
    return cv2.GaussianBlur(image, (23, 23), sigma)


class _Blur(A.ImageOnlyTransform):
    """Blur of a random sigma."""

    def get_params(self) -> dict[str, Any]:
        return {"sigma": self.py_random.uniform(*BLUR)}

    def apply(self, img: np.ndarray, sigma: float, **_: Any) -> np.ndarray:
        return blur(img, sigma)


class _Solarise(A.ImageOnlyTransform):
    """Mirror intensities above the mean: |x| -> -|x| (the z-scored form of 255 - x above 128)."""

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        return -np.abs(img)


def z_score(image: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Float32 with mean 0 and standard deviation 1; a constant image becomes 0 everywhere."""
    scale = 1 / std if std > 0 else 0.0
    return (image.astype(np.float32) - np.float32(mean)) * np.float32(scale)


class Crop(NamedTuple):
    """One draw of a resized crop and of what happens to its intensities."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    gain: float
    offset: float
    sigma: float
    """Of the Gaussian blur, pixels of the view; 0 for none."""
    solarise: bool

    def affine(self, statistics: tuple[float, float]) -> tuple[float, float]:
        """Factor and offset that z-score and jitter in one go; a constant image becomes the jitter's offset."""
        mean, std = statistics
        scale = self.gain / std if std > 0 else 0.0
        return scale, self.offset - mean * scale


def pair_of_seeds(seed: int) -> tuple[int, int]:
    """The seeds of a sample's two views."""
    return seed, (seed + 2**31) % 2**32


RATIO = (math.log(3 / 4), math.log(4 / 3))
"""Range of the logarithm of a resized crop's width over its height (torchvision's RandomResizedCrop)."""


def draw_crop(recipe: ViewRecipe, shape: tuple[int, int], seed: int) -> Crop:
    """Draw a view of an image of (rows, columns); the geometry first, so that it depends on nothing that follows.

    Area and aspect are drawn up to ten times until the crop fits; an image too elongated for that gives its centre.
    """
    rng = random.Random(seed)
    rows, columns = shape
    for _ in range(10):
        area, ratio = rng.uniform(*recipe.area) * rows * columns, math.exp(rng.uniform(*RATIO))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            top, left = int(rng.random() * (rows - height + 1)), int(rng.random() * (columns - width + 1))
            break
    else:
        height = min(rows, max(1, round(columns * 4 / 3)))
        width = min(columns, max(1, round(rows * 4 / 3)))
        top, left = (rows - height) // 2, (columns - width) // 2
    flip = rng.random() < recipe.flip
    gain, offset = 1.0, 0.0
    if rng.random() < recipe.jitter:
        gain = rng.uniform(1 - recipe.contrast, 1 + recipe.contrast)
        offset = rng.uniform(-recipe.brightness, recipe.brightness)
    sigma = rng.uniform(*BLUR) if rng.random() < recipe.blur else 0.0
    return Crop(top, left, height, width, flip, gain, offset, sigma, rng.random() < recipe.solarise)


def cut(
    crop: Crop, image: np.ndarray, out: np.ndarray, statistics: tuple[float, float] = (0.0, 1.0), *, bicubic: bool
) -> None:
    """Make the view of a crop: one multiplication z-scores and jitters the cut-out, one interpolation resizes it.

    Args:
        crop: of this image's shape.
        image: (rows, columns), any units.
        out: (size, size) float32, filled.
        statistics: mean and standard deviation that z-score the image.
        bicubic: in place of bilinear interpolation.
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
    """The pixels of a crop, flipped, a view of the image."""
    part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return part[:, ::-1] if crop.flip else part


class Views:
    """Draws views by one recipe; the same seed gives the same view.

    Args:
        recipe: what may happen.
        size: side of the square view, in pixels.
        transform: a composition of the user's own in place of the recipe (any `A.Compose`).
    """

    def __init__(self, recipe: ViewRecipe, size: int, transform: A.Compose | None = None) -> None:
        self.recipe, self.size = recipe, size
        self.cuts = transform is None and recipe.crop == "resized" and not recipe.affine
        """Whether views are cut from the pixels; otherwise they go through albumentations."""
        self.transform = None if self.cuts else transform or compose(recipe, size)

    def __call__(
        self,
        image: np.ndarray,
        seed: int,
        label: np.ndarray | None = None,
        *,
        statistics: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One view.

        Args:
            image: (rows, columns), any units.
            seed: of this one draw.
            label: (rows, columns) uint8 class indices that go through the same geometry, or None.
            statistics: mean and standard deviation that z-score the image; (0, 1) when it is.

        Returns:
            image (size, size) float32, z-scored, and label (size, size) uint8 or None.
        """
        if self.transform is None:
            crop = draw_crop(self.recipe, image.shape, seed)
            view = np.empty((self.size, self.size), np.float32)
            cut(crop, image, view, statistics, bicubic=self.recipe.bicubic)
            if label is None:
                return view, None
            # INTER_NEAREST rounds coordinates down, which would displace labels by half a pixel against their images
            part, how = np.ascontiguousarray(_part(crop, label)), cv2.INTER_NEAREST_EXACT
            return view, cv2.resize(part, (self.size, self.size), interpolation=how)
        self.transform.set_random_seed(seed)
        image = image if statistics == (0.0, 1.0) else z_score(image, *statistics)
        if label is None:
            return self.transform(image=image)["image"], None
        viewed = self.transform(image=image, mask=label)
        return viewed["image"], viewed["mask"]

    def fill(self, out: np.ndarray, image: np.ndarray, seed: int, statistics: tuple[float, float]) -> None:
        """Write one view of an unlabelled image into `out`, (size, size) float32."""
        if self.transform is None:
            cut(draw_crop(self.recipe, image.shape, seed), image, out, statistics, bicubic=self.recipe.bicubic)
        else:
            out[:] = self(image, seed, statistics=statistics)[0]

    def clip(self, frames: np.ndarray, seed: int, statistics: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
        """One view of a clip: every frame goes through the same draw, so what changes between them is anatomy.

        Args:
            frames: (frames, rows, columns), any units.
            seed: of this one draw.
            statistics: mean and standard deviation that z-score the frames; (0, 1) when they are.

        Returns:
            (frames, size, size) float32; frame t is what ``self(frames[t], seed)`` gives.
        """
        if self.transform is None:
            crop = draw_crop(self.recipe, frames[0].shape, seed)
            view = np.empty((len(frames), self.size, self.size), np.float32)
            for frame, out in zip(frames, view, strict=True):
                cut(crop, frame, out, statistics, bicubic=self.recipe.bicubic)
            return view
        self.transform.set_random_seed(seed)
        return self.transform(images=frames if statistics == (0.0, 1.0) else z_score(frames, *statistics))["images"]


def compose(recipe: ViewRecipe, size: int) -> A.Compose:
    """A recipe as a composition of albumentations, for z-scored float32 images."""
    return A.Compose(_steps(recipe, size))


def _steps(recipe: ViewRecipe, size: int) -> list[A.BasicTransform]:
    steps: list[Any] = []
    if recipe.affine:
        steps.append(
            A.Affine(
                rotate=(-recipe.rotate_degrees, recipe.rotate_degrees),
                scale=recipe.zoom,
                border_mode=cv2.BORDER_REFLECT_101,
                p=recipe.affine,
            )
        )
    if recipe.crop == "resized":
        how = cv2.INTER_CUBIC if recipe.bicubic else cv2.INTER_LINEAR
        ratio = (math.exp(RATIO[0]), math.exp(RATIO[1]))
        crop = A.RandomResizedCrop((size, size), scale=recipe.area, ratio=ratio, interpolation=how)
        # Set afterwards, as its constructor refuses it: INTER_NEAREST rounds coordinates down, which would displace
        # labels by half a pixel against their images.
        crop.mask_interpolation = cv2.INTER_NEAREST_EXACT
        steps.append(crop)
    else:
        steps.append(A.PadIfNeeded(size, size, border_mode=cv2.BORDER_REFLECT_101))
        anywhere = A.RandomCrop(size, size, p=1 - recipe.foreground)
        if recipe.foreground:
            steps.append(A.OneOf([A.CropNonEmptyMaskIfExists(size, size, p=recipe.foreground), anywhere], p=1))
        else:
            steps.append(anywhere)
    optional = [
        (A.HorizontalFlip(p=recipe.flip), recipe.flip),
        (_Jitter(recipe.brightness, recipe.contrast, p=recipe.jitter), recipe.jitter),
        (_Blur(p=recipe.blur), recipe.blur),
        (_Solarise(p=recipe.solarise), recipe.solarise),
    ]
    return steps + [step for step, probability in optional if probability > 0]
