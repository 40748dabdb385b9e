"""The beating heart: one subject's anatomy, and the position of its walls at every slice and frame.

Coordinates are relative to the axis of the left ventricle. Heights z (mm) run from the base plane at end
diastole (0) towards the apex. The angle t of a table is 0 towards the septum, +90 degrees anterior, 180
lateral, -90 inferior. The phase u of the cycle is 0 at end diastole and 1 at end systole.

The wall keeps its volume, so that it thickens as the cavity contracts and the base descends.
Volumes and ejection fractions per group follow Bernard et al. 2018 and the usual adult ranges
(Kawel-Boehm et al. 2020, J Cardiovasc Magn Reson 22:87).
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d

GROUPS = ("NOR", "MINF", "DCM", "HCM", "RV")

ANGLES = np.linspace(-np.pi, np.pi, 360, endpoint=False)

RV_WALL = 3.0  # mm

SIZES = ("lv_volume", "lv_fraction", "rv_volume", "rv_fraction", "wall", "length", "descent")

RANGES = {
    "NOR": ((110, 170), (0.55, 0.70), (120, 190), (0.48, 0.62), (7, 9), (82, 95), (10, 14)),
    "MINF": ((130, 210), (0.22, 0.40), (90, 150), (0.50, 0.62), (7.5, 9), (86, 98), (5, 8)),
    "DCM": ((210, 320), (0.12, 0.34), (130, 230), (0.20, 0.45), (6, 8), (96, 108), (3, 6)),
    "HCM": ((85, 145), (0.64, 0.80), (85, 150), (0.50, 0.66), (11, 14), (80, 92), (8, 12)),
    "RV": ((75, 130), (0.46, 0.60), (190, 280), (0.20, 0.42), (6, 8), (78, 90), (8, 12)),
}
"""Ranges of SIZES from which a subject of each group is drawn uniformly."""


@dataclass(frozen=True, kw_only=True)
class Heart:
    """One subject's heart. Lengths in mm, volumes in mL, angles in radians."""

    group: str
    lv_volume: float
    """LV cavity at end diastole, papillary muscles included as in ACDC."""
    lv_fraction: float
    """LV ejection fraction."""
    rv_volume: float
    rv_fraction: float
    wall: float
    length: float
    descent: float
    """Motion of the base plane towards the apex in systole."""
    bulge: tuple[float, float]
    """Extra wall as a share of ``wall`` (the septum of HCM), and its angle."""
    scar: tuple[float, float, float, float]
    """Thinning (0 none), angle, half width, and height as a share of the length where the infarct begins."""
    flattening: float
    """Flattening of the septum by an overfilled right ventricle, as a share of the radius."""
    lobes: np.ndarray
    """(4,) small deviations from a circle: cosine and sine of 2 t and 3 t."""
    rv_turn: float
    rv_reach: float
    """Angle from the middle of the right ventricle (at angle ``rv_turn``) to its insertions."""
    rv_flatness: float
    """0 for a round free wall, towards 1 for one with corners at the insertions."""
    fat: np.ndarray
    """(5,) thickness of the epicardial fat: mean, cosine and sine of t, cosine and sine of 2 t."""
    trabeculae: np.ndarray
    """(9, 3) wave number, phase, amplitude of the roughness inside the cavities."""
    papillary: np.ndarray
    """(2, 3) angle, distance as a share of the cavity's radius, radius (mm) of each papillary muscle."""
    systole: float
    """End systole as a share of the cycle."""
    sway: tuple[float, float]
    """Displacement (mm) of the whole heart in systole, and its direction (angle)."""


def draw_heart(rng: np.random.Generator, group: str) -> Heart:
    """Draw a heart of one of GROUPS."""
    sizes = {name: rng.uniform(low, high) for name, (low, high) in zip(SIZES, RANGES[group], strict=True)}
    artery = rng.choice([0.9, -1.6, 2.6])  # anteroseptal, inferior, lateral: the three coronary territories
    scar = (rng.uniform(0.35, 0.55), artery + rng.uniform(-0.2, 0.2), rng.uniform(0.7, 1.1), rng.uniform(0, 0.35))
    septum = (rng.uniform(0.4, 0.9), rng.uniform(-0.2, 0.8))
    flattening = rng.uniform(0.1, 0.2)
    return Heart(
        group=group,
        **sizes,
        bulge=septum if group == "HCM" else (0.15 * septum[0], septum[1]),
        scar=scar if group == "MINF" else (0.0, *scar[1:]),
        flattening=flattening if group == "RV" else 0.1 * flattening,
        lobes=rng.normal(0, [0.03, 0.03, 0.012, 0.012]),
        rv_turn=rng.uniform(0.05, 0.3),
        rv_reach=rng.uniform(1.3, 1.5) + 0.25 * (group == "RV"),
        rv_flatness=rng.uniform(0.0, 0.35),
        fat=np.array([rng.uniform(1, 4), *rng.normal([1.8, 0, 0, 0], [1.2, 1.6, 1.6, 1.6])]),
        trabeculae=np.stack([rng.integers(4, 23, 9), rng.uniform(0, 2 * np.pi, 9), rng.uniform(0.6, 1.3, 9)], axis=1),
        papillary=np.column_stack([rng.normal([2.1, -2.2], 0.2), rng.uniform(0.66, 0.78, 2), rng.uniform(3.8, 5.5, 2)]),
        systole=rng.uniform(0.33, 0.42),
        sway=(rng.uniform(0, 2.5), rng.uniform(-np.pi, np.pi)),
    )


def cycle(heart: Heart, frames: int) -> np.ndarray:
    """Phase u (frames,) of a cine starting at end diastole; exactly 1 at frame ``end_systole``.

    Models ejection, rapid filling, diastasis and atrial contraction.
    """
    share = end_systole(heart, frames) / frames
    rest = 1 - share
    knots = [0, 0.12 * share, 0.55 * share, share, share + 0.12 * rest, share + 0.42 * rest, 1 - 0.25 * rest, 1]
    return PchipInterpolator(knots, [0, 0.06, 0.7, 1, 0.86, 0.26, 0.18, 0])(np.arange(frames) / frames)


def end_systole(heart: Heart, frames: int) -> int:
    """Number of frames from end diastole to end systole."""
    return max(1, round(heart.systole * frames))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes for which the label volumes equal the subject's volumes, see ``fit``."""

    lv_radius: float
    lv_squeeze: float
    rv_depth: float
    rv_squeeze: float


@dataclass(frozen=True, kw_only=True)
class Walls:
    """Distances of the walls from the axis (mm), each (slices, frames, angles); 0 or less: no wall at that angle."""

    height: np.ndarray
    """(slices, frames) position of a slice in the tissue: 0 at the base plane, 1 at the tip of the cavity."""
    cavity: np.ndarray
    outside: np.ndarray
    """Outer edge of the LV wall."""
    right: np.ndarray
    """Outer edge of the RV cavity, which begins at ``outside``."""


def walls(heart: Heart, size: Size, heights: np.ndarray, phase: np.ndarray) -> Walls:
    """Positions of the walls at heights (slices,), z in mm, and at phases u (frames,); ``size`` is from ``fit``."""
    phase = phase[None, :]
    descent = heart.descent * phase
    z, length = heights[:, None] - descent, heart.length - descent
    height = z / length
    tip = height[..., None]

    modes = np.array([np.cos(2 * ANGLES), np.sin(2 * ANGLES), np.cos(3 * ANGLES), np.sin(3 * ANGLES)])
    lobes = 1 + heart.lobes @ modes - heart.flattening * _bell(ANGLES, 0, 0.75)
    scar = heart.scar[0] * _bell(ANGLES, heart.scar[1], heart.scar[2]) * _rise(tip, heart.scar[3], 0.2)
    wall = heart.wall * (1 + heart.bulge[0] * _bell(ANGLES, heart.bulge[1], 1.0)) * (1 - scar)
    wall = wall * (1 - 0.2 * np.clip(tip, 0, 1))

    cavity = size.lv_radius * lobes * _taper(tip, 2.3)
    outer = (size.lv_radius * lobes + wall) * _taper(z[..., None] / (length[..., None] + 1.3 * heart.wall), 2.6)
    outer = np.maximum(outer, cavity + 0.5 * wall * (tip < 1))
    muscle = np.maximum(outer**2 - cavity**2, 0) * (heart.length / length)[..., None]
    squeeze = size.lv_squeeze * (0.9 + 0.2 * np.clip(tip, 0, 1)) * (1 - 1.9 * np.clip(scar, 0, 0.5))
    cavity = cavity * (1 - np.clip(squeeze * phase[..., None], 0, 0.97))
    outer = np.sqrt(cavity**2 + muscle)

    sway = heart.sway[0] * phase[..., None] * np.cos(ANGLES - heart.sway[1])
    outer = np.where(outer > 0, np.maximum(outer + sway, 0), 0)
    cavity = np.where(cavity > 0, np.maximum(cavity + sway, 0), 0)

    # The right ventricle is a crescent: widest near the base, ending before the apex, turned to the front at the base.
    turn: np.ndarray = heart.rv_turn + 0.35 * np.clip(0.4 - tip, 0, 0.4)
    reach = heart.rv_reach * (1 - 0.25 * np.clip(tip, 0, 1) ** 2)
    share = np.clip(1 - (np.abs(ANGLES - turn) / reach) ** 2, 0, None) ** 0.75
    share = share * (1 - heart.rv_flatness * _bell(ANGLES, turn, 0.6))
    depth = size.rv_depth * _taper(tip / 0.9, 1.5) * (1 + 0.25 * np.sin(ANGLES - turn) * np.clip(1 - 2 * tip, 0, 1))
    right = outer + depth * share * (1 - size.rv_squeeze * phase[..., None])
    return Walls(height=height, cavity=cavity, outside=outer, right=right)


def fit(heart: Heart, heights: np.ndarray, spacing: float) -> Size:
    """Find, by bisection, the sizes for which the labels of these slices sum to the subject's volumes.

    ``heights`` (slices,) are z in mm, ``spacing`` is the distance between slices in mm.
    """
    values = {"lv_radius": 25.0, "lv_squeeze": 0.3, "rv_depth": 25.0, "rv_squeeze": 0.3}

    def solve(name: str, low: float, high: float, phase: float, ventricle: int, target: float) -> None:
        for _ in range(22):
            values[name] = (low + high) / 2
            volume = volumes(walls(heart, Size(**values), heights, np.array([phase])), spacing)[ventricle]
            grows = name in ("lv_radius", "rv_depth")
            low, high = (values[name], high) if (volume[0] < target) == grows else (low, values[name])

    solve("lv_radius", 8, 60, 0, 0, heart.lv_volume)
    solve("lv_squeeze", -0.3, 0.95, 1, 0, heart.lv_volume * (1 - heart.lv_fraction))
    solve("rv_depth", 5, 90, 0, 1, heart.rv_volume)
    solve("rv_squeeze", -0.5, 0.95, 1, 1, heart.rv_volume * (1 - heart.rv_fraction))
    return Size(**values)


def volumes(contours: Walls, spacing: float) -> np.ndarray:
    """LV and RV cavity volumes, (2, frames) in mL, of the slices that lie mostly below the base."""
    step = (ANGLES[1] - ANGLES[0]) / 2 * spacing / 1000
    below = contours.height >= 0
    left = (contours.cavity**2).sum(-1) * below
    right = (contours.right**2 - contours.outside**2).sum(-1) * below
    return np.stack([left.sum(0), right.sum(0)]) * step


def roughness(heart: Heart, height: np.ndarray) -> np.ndarray:
    """Depth (mm) of the trabeculae in the cavities, (..., angles) at ``height`` (...)."""
    number, phase, amplitude = heart.trabeculae.T[:, :, None]
    tip = np.clip(height, 0, 1)[..., None, None]
    waves = amplitude * np.sin(number * ANGLES + phase + 9 * number * tip)
    return np.clip(waves.sum(-2) - 0.6, 0, None) * (0.35 + 0.6 * tip[..., 0])


def fat_edge(heart: Heart, contours: Walls) -> np.ndarray:
    """Outer edge (slices, frames, angles) of the epicardial fat, which also fills the grooves."""
    modes = np.array([np.ones_like(ANGLES), *(f(k * ANGLES) for k in (1, 2) for f in (np.cos, np.sin))])
    thickness = np.clip(heart.fat @ modes, 0.3, 9)
    outside, right = contours.outside, contours.right
    edge = np.maximum(outside, right + RV_WALL * (right > outside + 1))
    smooth = gaussian_filter1d(edge, 14, axis=-1, mode="wrap")
    return np.maximum(edge, smooth) + thickness * (outside.max(-1, keepdims=True) > 0)


def _taper(height: np.ndarray, power: float) -> np.ndarray:
    """Relative radius of a chamber along its axis: slightly narrowed at the base, full below it, 0 at height 1."""
    waist = 1 - 0.1 * np.exp(-(np.maximum(height, 0) ** 2) / 0.02)
    return waist * np.sqrt(np.clip(1 - np.clip(height, 0, 1) ** power, 0, None))


def _bell(angle: np.ndarray, centre: float | np.ndarray, width: float) -> np.ndarray:
    """Smooth plateau around an angle: 1 at ``centre``, 1/e at ``width`` from it."""
    away = np.angle(np.exp(1j * (angle - centre)))
    return np.exp(-((np.abs(away) / width) ** 4))


def _rise(value: np.ndarray, start: float, width: float) -> np.ndarray:
    """Ramp from 0 at ``start`` to 1 at ``start + width``; 1 everywhere if start is 0."""
    return np.clip((value - start) / width, 0, 1) if start > 0 else np.ones_like(value)
