"""Procedural images with the statistics of natural images, for pretraining a generalist without photographs."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def procedural_image(size: int, rng: np.random.Generator) -> Image:
    """Generate one grey image with the statistics of natural images.

    Three of four follow the dead leaves model: occluding shapes with power-law radii (r^-3), each flat, shaded or
    textured. The others are noise with a 1/f^alpha amplitude spectrum.

    Returns:
        (size, size) float32, arbitrary units, mean 0, standard deviation near 1.

    Source: Lee, Mumford and Huang 2001, Occlusion models for natural images; Baradad et al. 2021, Learning
    to see by looking at noise.
    """
    image = _spectrum(size, rng) if rng.random() < 0.25 else _dead_leaves(size, rng)
    return (image - image.mean()) / (image.std() + 1e-6)


@dataclass(frozen=True)
class ProceduralImages:
    """``count`` procedural images, generated on access; image i depends on (size, seed, i) only."""

    count: int
    size: int = 128
    """Side in pixels."""
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def image(self, i: int) -> Image:
        """Return image i: (size, size) float32, arbitrary units."""
        if not 0 <= i < self.count:
            raise IndexError(f"image {i} of {self.count}")
        return procedural_image(self.size, np.random.default_rng((self.seed, i)))


def _dead_leaves(size: int, rng: np.random.Generator) -> Image:
    """Dead leaves: 100 to 300 opaque shapes painted over each other."""
    count = int(rng.integers(100, 300))
    smallest, largest = max(1.5, size / 64), size / 2.5
    # Inverse transform of the density r^-3 between the two radii.
    radii = (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5
    radii[: count // 20] = rng.uniform(size / 6, largest, count // 20)  # the lowest leaves cover the background
    outlines = _outlines(size, radii, rng)
    levels = rng.normal(0, 1, count)
    textured = (rng.random(count) < rng.uniform(0, 0.8)) & (radii > 4)
    image = _spectrum(size, rng)
    texture = _spectrum(size, rng) * np.float32(rng.uniform(0.1, 0.5))
    for outline, level, with_texture in zip(outlines, levels, textured, strict=True):
        if with_texture:
            _fill(image, outline, level, texture, rng)
        else:
            cv2.fillPoly(image, [outline], float(level), shift=4)
    # Blur as by a camera lens: edges one or two pixels wide.
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0))


def _outlines(size: int, radii: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int32]:
    """Outlines of circles, ellipses, rectangles and irregular polygons.

    Returns:
        (leaves, 24, 2) x and y in sixteenths of a pixel.
    """
    count, points = len(radii), 24
    mixture = rng.dirichlet(np.ones(4))  # each image has its own mixture of shapes
    shape = rng.choice(4, (count, 1), p=mixture)
    corners = np.choose(shape, [points, points, 4, rng.integers(3, 8, (count, 1))])
    corner = np.arange(points) * corners // points  # corners repeat in shapes with fewer than 24
    leaf = np.arange(count)[:, None]
    shift = np.where(shape == 3, rng.uniform(-0.3, 0.3, (count, points))[leaf, corner], 0)
    turn = (corner + 0.5) / corners * 2 * np.pi + shift
    reach = np.where(shape == 3, rng.uniform(0.6, 1.2, (count, points))[leaf, corner], 1)
    aspect = np.where(shape == 0, 1, rng.uniform(0.35, 1, (count, 1)))
    angle = rng.uniform(0, 2 * np.pi, (count, 1))
    x, y = reach * np.cos(turn), reach * np.sin(turn) * aspect
    cos, sin = np.cos(angle), np.sin(angle)
    rotated = np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
    centre = rng.uniform(-0.1, 1.1, (count, 1, 2)) * size
    return np.rint((rotated * radii[:, None, None] + centre) * 16).astype(np.int32)


def _fill(image: Image, outline: NDArray[np.int32], level: float, texture: Image, rng: np.random.Generator) -> None:
    """Fill an outline in place with a patch of texture on a brightness gradient."""
    size = len(image)
    left, top = np.clip(outline.min(axis=0) // 16, 0, size)
    right, bottom = np.clip(outline.max(axis=0) // 16 + 2, 0, size)
    rows, columns = bottom - top, right - left
    if not rows or not columns:
        return
    mask = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(mask, [outline - np.array([left, top], np.int32) * 16], 1, shift=4)
    row, column = rng.integers(0, (size - rows + 1, size - columns + 1))
    slope_y, slope_x = rng.normal(0, 0.7, 2)
    slope = level + slope_y * np.linspace(-1, 1, rows)[:, None] + slope_x * np.linspace(-1, 1, columns)
    patch = texture[row : row + rows, column : column + columns] + slope.astype(np.float32)
    cv2.copyTo(patch, mask, image[top:bottom, left:right])


def _spectrum(size: int, rng: np.random.Generator) -> Image:
    """Noise with a 1/f^alpha amplitude spectrum, alpha 0.7 to 1.8 (natural images: near 1), standard deviation 1."""
    down, across = _squared_frequencies(size)
    stretch = rng.uniform(0.6, 1.7)  # anisotropy: rows and columns differ
    exponent = np.float32(-rng.uniform(0.7, 1.8) / 2)
    real, imaginary = rng.standard_normal((2, size, size // 2 + 1), dtype=np.float32)
    squared = down * np.float32(stretch) + across / np.float32(stretch)
    squared[0, 0] = np.inf  # mean 0
    noise = np.fft.irfft2((real + 1j * imaginary) * squared**exponent, s=(size, size))
    return (noise / (noise.std() + 1e-12)).astype(np.float32)


@cache
def _squared_frequencies(size: int) -> tuple[Image, Image]:
    """Squared frequencies along rows (size, 1) and columns (1, size // 2 + 1), cycles per pixel."""
    down = np.fft.fftfreq(size).astype(np.float32)[:, None] ** 2
    return down, np.fft.rfftfreq(size).astype(np.float32)[None] ** 2
