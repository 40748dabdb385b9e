"""Random views of a slice: one description for unlabelled and for labelled images.

The only module that knows albumentations (2.0.8, its last MIT release). Images are float32 and already
z-scored, so nothing here may assume 0..255 or 0..1: albumentations' own brightness, contrast, blur and
solarisation clip float images to [0, 1], and are replaced below by the same operations without the clip.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

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


class _Blur(A.ImageOnlyTransform):
    """Gaussian blur with a 23-pixel kernel at 224 (BYOL), the kernel following sigma."""

    def get_params(self) -> dict[str, Any]:
        return {"sigma": self.py_random.uniform(0.1, 2.0)}

    def apply(self, img: np.ndarray, sigma: float, **_: Any) -> np.ndarray:
        return cv2.GaussianBlur(img, (23, 23), sigma)


class _Solarise(A.ImageOnlyTransform):
    """Mirror intensities above the mean: |x| -> -|x| (the z-scored form of 255 - x above 128)."""

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        return -np.abs(img)


class Views:
    """Draws views by one recipe; the same seed gives the same view.

    Args:
        recipe: what may happen.
        size: side of the square view, in pixels.
        transform: a composition of the user's own in place of the recipe (any `A.Compose`).
    """

    def __init__(self, recipe: ViewRecipe, size: int, transform: A.Compose | None = None) -> None:
        self.transform = transform or A.Compose(_steps(recipe, size))

    def __call__(
        self, image: np.ndarray, seed: int, label: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One view.

        Args:
            image: (rows, columns) float32, z-scored.
            seed: of this one draw.
            label: (rows, columns) uint8 class indices that go through the same geometry, or None.

        Returns:
            image (size, size) float32 and label (size, size) uint8 or None.
        """
        self.transform.set_random_seed(seed)
        if label is None:
            return self.transform(image=image)["image"], None
        view = self.transform(image=image, mask=label)
        return view["image"], view["mask"]

    def clip(self, frames: np.ndarray, seed: int) -> np.ndarray:
        """One view of a clip: every frame goes through the same draw, so what changes between them is anatomy.

        Args:
            frames: (frames, rows, columns) float32, z-scored.
            seed: of this one draw.

        Returns:
            (frames, size, size) float32; frame t is what ``self(frames[t], seed)`` gives.
        """
        self.transform.set_random_seed(seed)
        return self.transform(images=frames)["images"]


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
        crop = A.RandomResizedCrop((size, size), scale=recipe.area, ratio=(3 / 4, 4 / 3), interpolation=how)
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
