"""Canvases on which the phantoms are painted, and the distance functions of simple shapes.

Structures are painted back to front. A distance is in mm and positive **inside** a structure; edges are one pixel wide,
so that a pixel on an edge is a mixture, as in a real image (partial volume).
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

LEVELS = np.arange(-160, 160.5, 0.5)
"""z in mm, for looking up values that change along the leg."""

OPEN = 100
"""A structure that reaches this z (mm) does not end there: it leaves the image."""


class Painting:
    """Base of canvases and blocks: a signal, painted over step by step."""

    signal: np.ndarray

    def paint(self, value: float | np.ndarray, share: np.ndarray) -> None:
        """Blend ``value`` over the signal; ``share`` in 0..1 is the part of each pixel or voxel that it covers."""
        self.signal += share * (value - self.signal)


@dataclass(kw_only=True)
class Canvas(Painting):
    """One slice: coordinates (rows, columns) in mm and the signal so far."""

    x: np.ndarray
    y: np.ndarray
    pixel: float
    signal: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.signal = np.zeros_like(self.x)

    def edge(self, distance: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Share of each pixel inside a structure, its edge softened by ``blur`` mm."""
        return np.clip(0.5 + distance / (self.pixel + blur), 0, 1)

    def ellipse(self, x: float, y: float, a: float, b: float, angle: float = 0.0, blur: float = 0.0) -> np.ndarray:
        """Share of each pixel inside an ellipse with semi-axes a, b (mm), turned by ``angle`` from x towards y."""
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = self.x - np.float32(x), self.y - np.float32(y)
        p, q = (u * cos + v * sin) / np.float32(a), (v * cos - u * sin) / np.float32(b)
        radius = np.sqrt(p * p + q * q) + np.float32(1e-3)
        slope = np.sqrt((p / np.float32(a)) ** 2 + (q / np.float32(b)) ** 2) / radius + np.float32(1e-4)
        return self.edge((1 - radius) / slope, blur)

    def spot(self, x: float, y: float, radius: float, value: float, longer: float = 1, angle: float = 0) -> None:
        """Paint a small ellipse, ``longer`` times as long as wide, computing only the pixels near it."""
        reach = radius * longer + 2 * self.pixel
        near = (np.abs(self.x - x) < reach) & (np.abs(self.y - y) < reach)
        if near.any():
            part = Canvas(x=self.x[near], y=self.y[near], pixel=self.pixel)
            part.signal = self.signal[near]
            part.paint(value, part.ellipse(x, y, radius * longer, radius, angle))
            self.signal[near] = part.signal


@dataclass(kw_only=True)
class Block(Painting):
    """A box of voxels: coordinates in mm and the signal so far; every array (frames, rows, columns) float32."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    level: np.ndarray
    """z as an index into LEVELS."""
    signal: np.ndarray
    grain: np.ndarray
    """Texture of unit variance, stretched along the leg."""
    width: float
    """Distance in mm over which an edge goes from 0 to 1."""
    to_index: np.ndarray
    """(3, 4) matrix from mm to voxel indices of the whole stack."""

    def index(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> tuple[slice, ...]:
        """Index of the box with these ranges in mm (plus a margin for the deformation)."""
        z = z[0] if z[0] > -OPEN else -300, z[1] if z[1] < OPEN else 300
        corners = np.array([(a, b, c, 1) for a in x for b in y for c in z])
        places = self.to_index @ corners.T
        low, high = np.floor(places.min(1)).astype(int) - 2, np.ceil(places.max(1)).astype(int) + 3
        return tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))

    def around_tube(self, table: np.ndarray, margin: float) -> tuple[slice, ...]:
        """Index of the box around the tube of ``tube(table)``, with a margin in mm."""
        low, high = (table[:, 1:3] - table[:, 3:]).min(0) - margin, (table[:, 1:3] + table[:, 3:]).max(0) + margin
        return self.index((low[0], high[0]), (low[1], high[1]), (table[0, 0], table[-1, 0]))

    def cut(self, part: tuple[slice, ...]) -> "Block":
        """The part at a result of ``index``, sharing memory: painting it paints this block. For whole stacks only."""
        arrays = {name: getattr(self, name)[part] for name in ("x", "y", "z", "level", "signal", "grain")}
        return Block(**arrays, width=self.width, to_index=self.to_index)

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> "Block":
        """The part with these ranges in mm, sharing memory."""
        return self.cut(self.index(x, y, z))

    def share(self, distance: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Share of each voxel inside a structure, its edge softened by ``blur`` mm."""
        return np.clip(0.5 + distance / np.float32(self.width + blur), 0, 1)

    def along(self, z: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values known at some z, linearly interpolated at every voxel."""
        return np.interp(LEVELS, z, values).astype(np.float32)[self.level]

    def tube(self, table: np.ndarray) -> np.ndarray:
        """Distance to an elliptic tube along z: rows of z, x and y of the centre, and two semi-axes."""
        z = table[:, 0]
        x, y, a, b = (self.along(z, column) for column in table.T[1:])
        inside = ellipse(self.x - x, self.y - y, a, b)
        for end, way in ((float(z[0]), 1), (float(z[-1]), -1)):
            if abs(end) < OPEN:
                inside = np.minimum(inside, way * (self.z - end))
        return inside

    def cord(self, points: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Distance to a cord through (n, 3) points with radii (n,)."""
        best = np.full(self.x.shape, -99, np.float32)
        for k, (a, b) in enumerate(pairwise(points)):
            u, v, w = (p - np.float32(q) for p, q in zip((self.x, self.y, self.z), a, strict=True))
            d = (b - a).astype(np.float32)
            t = np.clip((u * d[0] + v * d[1] + w * d[2]) / max(float(d @ d), 1e-6), 0, 1)
            away = np.sqrt((u - t * d[0]) ** 2 + (v - t * d[1]) ** 2 + (w - t * d[2]) ** 2)
            best = np.maximum(best, np.float32(radius[k]) + t * np.float32(radius[k + 1] - radius[k]) - away)
        return best

    def ball(self, x: float, y: float, z: float, a: float, b: float, c: float) -> np.ndarray:
        """Approximate distance to an ellipsoid with semi-axes a, b, c."""
        u, v, w = (self.x - np.float32(x)) / a, (self.y - np.float32(y)) / b, (self.z - np.float32(z)) / c
        return (1 - np.sqrt(u * u + v * v + w * w)) * np.float32(min(a, b, c))


def norm(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Length of the vectors (u, v)."""
    return np.sqrt(u * u + v * v)  # three times as fast as np.hypot


def ellipse(u: np.ndarray, v: np.ndarray, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """Approximate distance to an ellipse with semi-axes a, b."""
    p, q = u / a, v / b
    rho = np.sqrt(p * p + q * q) + np.float32(1e-3)
    return (1 - rho) * rho / (np.sqrt((p / a) ** 2 + (q / b) ** 2) + np.float32(1e-4))


def squarish(u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Approximate distance to an ellipse that bulges towards the corners of its box."""
    p, q = u / a, v / b
    p, q = p * p, q * q
    rho = np.sqrt(np.sqrt(p * p + q * q + p * q)) + np.float32(1e-3)
    return (1 - rho) * (p * a + q * b) / (p + q + np.float32(1e-4))


def union(p: np.ndarray, q: np.ndarray, soft: float) -> np.ndarray:
    """Union of two structures with a fillet of about ``soft`` mm."""
    return np.maximum(p, q) + np.maximum(soft - np.abs(p - q), 0) ** 2 * np.float32(0.25 / soft)


def intersection(p: np.ndarray, q: np.ndarray, radius: float) -> np.ndarray:
    """Intersection of two structures with edges rounded to ``radius`` mm."""
    u, v = np.float32(radius) - p, np.float32(radius) - q
    return radius - np.minimum(np.maximum(u, v), 0) - norm(np.maximum(u, 0), np.maximum(v, 0))


def bump(u: np.ndarray, width: float) -> np.ndarray:
    """Gaussian bump: 1 at 0, 1/e at ``width``."""
    return np.exp(-((u / np.float32(width)) ** 2))


def texture(noise: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smoothed noise of unit variance; ``sigma`` in pixels."""
    smooth = gaussian_filter(noise.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=2.5)
    return smooth * np.float32(2 * np.sqrt(np.pi) * max(sigma, 0.3))


def drift(noise: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Slow variation (frames, rows, columns), mostly in -1..1: flow and off-resonance."""
    coarse = noise.standard_normal((max(2, shape[0] // 3), 6, 6), dtype=np.float32)
    steps = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
    if shape[0] == 1:
        return zoom(coarse[0], steps[1:], order=1)[None] * np.float32(0.6)
    return zoom(coarse, steps, order=1) * np.float32(0.6)
