"""Changes of intensity of augmented images: jitter, solarisation, blur, gamma, bias field and noise.

Images are z-scored float32, (rows, columns), or the frames of one clip, (frames, rows, columns), all of which change
alike. Nothing is clipped, as albumentations' operations of these names do to float images.
"""

import cv2
import numpy as np

from data.preprocessing import BORDER

KERNEL = 23
"""Pixels of the blur's kernel, as in BYOL (Grill et al. 2020)."""
POWERS = [(i, j) for i in range(4) for j in range(4) if 0 < i + j < 4]
"""Exponents of row and column in the nine terms of a bias field: a polynomial of order 3 without a constant."""


def jitter(image: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """A gain about the slice's mean, 0 after z-scoring, and an offset in its standard deviations."""
    return image * np.float32(gain) + np.float32(offset)


def solarise(image: np.ndarray) -> np.ndarray:
    """Mirror intensities above the mean: |x| -> -|x| (the z-scored form of 255 - x above 128)."""
    return -np.abs(image)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, `sigma` in pixels."""
    if image.ndim == 3:
        return np.stack([blur(frame, sigma) for frame in image])
    return cv2.GaussianBlur(image, (KERNEL, KERNEL), sigma, borderType=BORDER)


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Raise intensities to a power, within the image's range and keeping its mean and standard deviation.

    An exponent above 1 darkens the middle of the range (nnU-Net's gamma augmentation, Isensee et al. 2021).
    """
    low = image.min()
    if not (span := image.max() - low) > 0:
        return image
    return _with_moments(((image - low) / span) ** np.float32(exponent), image)


def bias_field(image: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """Multiply by a smooth field, keeping mean and standard deviation: the uneven sensitivity of MRI's coils.

    The field is exp(P), P a polynomial with the given coefficients of `POWERS` in row and column, which run from -1 to
    1 (Van Leemput et al. 1999). It multiplies the height above the image's darkest pixel, since 0 is not black in a
    z-scored image.
    """
    rows, columns = (np.linspace(-1, 1, n) for n in image.shape[-2:])
    matrix = np.zeros((4, 4))
    for (i, j), coefficient in zip(POWERS, coefficients, strict=True):
        matrix[i, j] = coefficient
    exponent = np.vander(rows, 4, increasing=True) @ matrix @ np.vander(columns, 4, increasing=True).T
    return _with_moments((image - image.min()) * np.exp(exponent.astype(np.float32)), image)


def noise(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Add Gaussian noise with this standard deviation, the same to each frame of a clip."""
    drawn = np.random.default_rng(seed).standard_normal(image.shape[-2:], np.float32)
    return image + np.float32(sd) * drawn


def _with_moments(changed: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The changed image with the mean and standard deviation that it had."""
    mean, sd = changed.mean(), changed.std()
    if not sd > 0:
        return image
    return (changed - mean) * (image.std() / sd) + image.mean()
