"""Settings of augmentation: one specification for unlabelled and labelled images, which `data.augment` applies.

A module of its own since configurations need it and albumentations takes seconds to import.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

from core.errors import UserError
from data.intensities import POWERS


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a training image."""

    crop: Literal["resized", "fixed"] = "resized"
    """`resized`: a crop of random area and aspect ratio, resized to image_size (BYOL); `fixed`: a crop of exactly
    image_size pixels, without rescaling; of slices of more than 2048 x 2048 pixels, cut from a random tile of twice
    that side, which the views of pretraining share."""
    area: tuple[float, float] = (0.08, 1.0)
    """Range of the share of the slice's area that a resized crop covers, in (0, 1]."""
    bicubic: bool = False
    """Resize crops with bicubic instead of bilinear interpolation."""
    antialias: bool = True
    """Average by area where a crop shrinks by more than 1.5 (a side of the crop over that of the result)."""
    foreground: float = 0.0
    """Probability that a fixed crop must contain some labelled structure, if the slice has any."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    affine: float = 0.0
    """Probability of a random rotation and zoom."""
    rotate_degrees: float = 30.0
    """Largest rotation in either direction, in degrees."""
    zoom: tuple[float, float] = (0.8, 1.25)
    """Range of the zoom factor, which is drawn for rows and columns each: shapes are stretched a little, too."""
    jitter: float = 0.8
    """Probability of a random change of brightness and contrast."""
    brightness: float = 0.2
    """Largest change of brightness, in standard deviations of the slice."""
    contrast: float = 0.2
    """Largest relative change of contrast: 0.2 is a factor of 0.8 to 1.2."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's sigma, in pixels of the augmented image, whose kernel has 23 pixels."""
    solarise: float = 0.0
    """Probability of inverting all intensities above the slice's mean."""
    gamma: float = 0.0
    """Probability of a gamma change: intensities, on the range of the augmented image, are raised to a power. Mean and
    standard deviation stay."""
    gamma_range: tuple[float, float] = (0.7, 1.5)
    """Range of the gamma change's power, above 0."""
    bias_field: float = 0.0
    """Probability of multiplying the image by a smooth field, like the uneven sensitivity of the coils of MRI. Mean and
    standard deviation stay."""
    bias_strength: float = 0.3
    """Largest coefficient, in [0, 5], of the polynomial of order 3 whose exponential is the field; at 0.3 the corners
    change by a factor of about 1.7."""
    noise: float = 0.0
    """Probability of Gaussian noise."""
    noise_sd: tuple[float, float] = (0.0, 0.3)
    """Range of the noise's standard deviation, in standard deviations of the slice."""
    colour: float = 0.0
    """Probability of a random change of saturation and hue; RGB images only."""
    saturation: float = 0.4
    """Largest relative change of saturation: 0.4 is a factor of 0.6 to 1.4."""
    hue: float = 0.1
    """Largest turn of the hue in either direction, as a share of the whole circle, in [0, 0.5]."""
    grey: float = 0.0
    """Probability of making an RGB image grey; it keeps its three channels."""

    def __post_init__(self) -> None:
        probabilities = ("foreground", "flip", "affine", "jitter", "blur", "solarise", "gamma", "bias_field", "noise")
        for name in (*probabilities, "colour", "grey"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"--augmentation.{_flag(name)} {value}: must lie in [0, 1], a probability")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"--augmentation.area {self.area[0]} {self.area[1]}: must rise and lie in (0, 1]")
        for name in ("zoom", "blur_sigma", "gamma_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UserError(f"--augmentation.{_flag(name)} {low} {high}: must rise and be above 0")
        if not 0 <= self.noise_sd[0] <= self.noise_sd[1] < math.inf:
            raise UserError(f"--augmentation.noise-sd {self.noise_sd[0]} {self.noise_sd[1]}: must rise from 0 or more")
        if not 0 <= self.bias_strength <= 5:
            raise UserError(f"--augmentation.bias-strength {self.bias_strength}: must lie in [0, 5]")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"--augmentation.hue {self.hue}: must lie in [0, 0.5], half of the circle")
        for name in ("rotate_degrees", "brightness", "contrast", "saturation"):
            if not (value := getattr(self, name)) >= 0:
                raise UserError(f"--augmentation.{_flag(name)} {value}: must be 0 or more")

    # The arguments of the functions of `data.intensities`, drawn alike for crops and for albumentations.

    def draw_jitter(self, rng: random.Random) -> tuple[float, float]:
        """Gain and offset."""
        gain = rng.uniform(1 - self.contrast, 1 + self.contrast)
        return gain, rng.uniform(-self.brightness, self.brightness)

    def draw_blur(self, rng: random.Random) -> tuple[float]:
        """Sigma."""
        return (rng.uniform(*self.blur_sigma),)

    def draw_gamma(self, rng: random.Random) -> tuple[float]:
        """Power."""
        return (rng.uniform(*self.gamma_range),)

    def draw_bias(self, rng: random.Random) -> tuple[tuple[float, ...]]:
        """Coefficients of the field."""
        return (tuple(rng.uniform(-self.bias_strength, self.bias_strength) for _ in POWERS),)

    def draw_noise(self, rng: random.Random) -> tuple[float, int]:
        """Standard deviation, and the seed of the pixels."""
        return rng.uniform(*self.noise_sd), rng.getrandbits(32)


def _flag(name: str) -> str:
    return name.replace("_", "-")
