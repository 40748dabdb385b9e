"""Random resized crops as they are drawn, and how a CPU cuts them out of an image."""

from typing import NamedTuple

import cv2
import numpy as np

from data.intensities import bias_field, blur, gamma, noise, solarise
from data.preprocessing import resize


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
    power: float
    """Power of the gamma change; 1 for none."""
    bias: tuple[float, ...]
    """Coefficients of the bias field; () for none."""
    noise: tuple[float, int]
    """Standard deviation of the noise, 0 for none, and the seed of its pixels."""

    def affine(self, statistics: tuple[float, float]) -> tuple[float, float]:
        """Factor and offset that z-score and jitter at once; a constant image becomes the jitter's offset."""
        mean, std = statistics
        scale = self.gain / std if std > 0 else 0.0
        return scale, self.offset - mean * scale


def cut(
    crop: Crop,
    image: np.ndarray,
    out: np.ndarray,
    statistics: tuple[float, float] = (0.0, 1.0),
    *,
    bicubic: bool,
    antialias: bool,
) -> None:
    """Apply the geometry and the jitter of a crop: one multiplication z-scores and jitters, one interpolation resizes.

    Fills `out`, (size, size) float32, from `image`, (rows, columns) in any units, for whose shape `crop` was drawn;
    `statistics` are the mean and standard deviation that z-score the image.
    """
    scale, offset = crop.affine(statistics)
    part = np.multiply(part_of(crop, image), np.float32(scale), dtype=np.float32)
    part += np.float32(offset)
    how = cv2.INTER_CUBIC if bicubic else cv2.INTER_LINEAR
    resize(part, out.shape, how, antialias=antialias, out=out)


def change_intensities(crop: Crop, image: np.ndarray) -> np.ndarray:
    """Apply to the result of `cut`, or to the results for all frames of a clip, the rest of a crop's changes.

    Gamma and bias field keep mean and standard deviation, so that it makes no difference that the jitter precedes them.
    """
    if crop.bias:
        image = bias_field(image, crop.bias)
    if crop.power != 1:
        image = gamma(image, crop.power)
    if crop.sigma:
        image = blur(image, crop.sigma)
    if crop.noise[0]:
        image = noise(image, *crop.noise)
    return solarise(image) if crop.solarise else image


def part_of(crop: Crop, image: np.ndarray) -> np.ndarray:
    """The pixels of a crop, flipped; shares memory with the image."""
    part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return part[:, ::-1] if crop.flip else part
