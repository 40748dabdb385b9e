"""Short-axis bSSFP images and labels of a subject: the beating heart in its chest, as a scanner would see them."""

import numpy as np

from data.phantoms.chest import FAT, MYOCARDIUM, Organs, Scan, coil_gain, paint_chest
from data.phantoms.heart import ANGLES, RV_WALL, Heart, Walls, cycle, fat_edge, fit, roughness, walls
from data.phantoms.painting import Canvas, drift, texture

RV, MYO, LV = 1, 2, 3
"""Label values, as in ACDC."""


def image_subject(
    heart: Heart, scan: Scan, frames: int, body: np.random.Generator, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image a subject.

    Args:
        heart, scan: the subject and its position in the scanner.
        frames: number of frames of the cine; the first is end diastole.
        body: random generator of the organs around the heart.
        noise: random generator of texture and noise.

    Returns:
        (frames, slices, rows, columns) float32 magnitude, blood about 1, and uint8 labels of the same shape.
    """
    phase = cycle(heart, frames)
    size = fit(heart, scan.heights, scan.thickness)
    contours = walls(heart, size, scan.heights, phase)
    quarter = scan.thickness / 4
    upper, lower = (walls(heart, size, scan.heights + dz, phase) for dz in (-quarter, quarter))
    fat = fat_edge(heart, contours)
    front = np.abs(ANGLES - 0.2) < 0.7
    organs = Organs.draw(body, scan, fat[..., front].max(), contours.outside[:, 0].max(), heart.length)

    shape = (frames, len(scan.heights), scan.rows, scan.columns)
    images, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    rows, columns = np.mgrid[: scan.rows, : scan.columns].astype(np.float32)
    cos, sin = np.cos(scan.turn), np.sin(scan.turn)
    for z in range(shape[1]):
        across = (columns - scan.centre[1]) * scan.pixel - scan.shifts[z, 0]
        down = (rows - scan.centre[0]) * scan.pixel - scan.shifts[z, 1]
        x, y = (cos * across + sin * down).astype(np.float32), (cos * down - sin * across).astype(np.float32)
        scene = paint_chest(organs, scan, z, x, y, noise)

        radius = np.hypot(x, y)
        inside = radius < max(fat[z].max(), 1.75 * contours.outside[z].max() + 12) + 2 * scan.pixel
        near = np.ix_(inside.any(1), inside.any(0))
        angle = np.arctan2(-y[near], -x[near])
        step = 2 * np.pi / len(ANGLES)
        place = np.round((angle + np.pi) / step).astype(np.int32) % len(ANGLES)
        tables = _tables(heart, scan, z, contours, upper, lower, fat)
        shares = [_share(radius[near], place, *table) for table in tables]
        below = np.clip(0.5 + (contours.height[z] * (heart.length - heart.descent * phase)) / scan.thickness, 0, 1)

        signal = np.repeat(scene[None], frames, axis=0)
        ventricles = _ventricles(heart, contours, z, scene[near], shares, x[near], y[near], scan, noise)
        if below.min() < 1:
            scale = float(contours.outside[z].mean()) / 32
            atria = _atria(Canvas(x=x[near], y=y[near], pixel=scan.pixel), scene[near], scale, noise)
            ventricles = atria + below[:, None, None].astype(np.float32) * (ventricles - atria)
        signal[(slice(None), *near)] = ventricles

        lv, myo, rv = (shares[i] > 0.5 for i in (1, 2, 4))
        label = np.where(lv, LV, np.where(myo, MYO, np.where(rv, RV, 0))) * (contours.height[z] >= 0)[:, None, None]
        labels[(slice(None), z, *near)] = label
        gain = coil_gain(scan, x, y)
        real, imaginary = noise.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(scan.noise)
        images[:, z] = np.hypot(signal * gain + real, imaginary)
    return images, labels


def _tables(
    heart: Heart, scan: Scan, z: int, contours: Walls, upper: Walls, lower: Walls, fat: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Radius and steepness (frames, angles) of rough cavity, cavity, LV wall, rough RV, RV, RV wall and fat."""
    rough = roughness(heart, contours.height[z])
    cavity, outside, right = contours.cavity[z], contours.outside[z], contours.right[z]
    has_right = np.clip((right - outside) / 2, 0, 1)
    slopes = [np.abs(getattr(lower, name)[z] - getattr(upper, name)[z]) * 2 for name in ("cavity", "outside", "right")]
    edges = [
        (np.maximum(cavity - rough, 0.3 * cavity), slopes[0]),
        (cavity, slopes[0]),
        (outside, slopes[1]),
        (np.maximum(right - 1.5 * np.roll(rough, 40, -1), outside + 0.4 * (right - outside)), slopes[2]),
        (right, slopes[2]),
        (np.maximum(outside, right + RV_WALL * has_right), slopes[2]),
        (fat[z], 0.3 * slopes[1]),
    ]
    tables = []
    for radius, spread in edges:
        bend = (np.roll(radius, -1, -1) - np.roll(radius, 1, -1)) / (2 * (ANGLES[1] - ANGLES[0]))
        slant = 1 / np.sqrt(1 + (bend / np.maximum(radius, 3)) ** 2)
        steep = slant / np.hypot(scan.pixel, np.minimum(spread, 2 * scan.thickness) * slant)
        # radius 0: no such structure at this angle, so push its edge far inside
        tables.append((np.where(radius > 0, radius, -1e3).astype(np.float32), steep.astype(np.float32)))
    return tables


def _share(radius: np.ndarray, place: np.ndarray, edge: np.ndarray, steep: np.ndarray) -> np.ndarray:
    """Share (frames, rows, columns) of each pixel inside an edge, looked up by its angle (index ``place``)."""
    share = edge.take(place, axis=1)
    share -= radius
    share *= steep.take(place, axis=1)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def _ventricles(
    heart: Heart, contours: Walls, z: int, scene: np.ndarray, shares: list[np.ndarray], x: np.ndarray, y: np.ndarray,
    scan: Scan, noise: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Signal (frames, rows, columns) of ventricles, papillary muscles and epicardial fat over ``scene``."""
    rough_lv, lv, myo, rough_rv, rv, rv_wall, fat = shares
    frames = len(lv)
    flow = 1 + 0.13 * drift(noise, (frames, *x.shape))
    muscle = MYOCARDIUM * (1 + 0.09 * texture(noise, x.shape, 1.1) + 0.06 * drift(noise, (1, *x.shape)))
    tip = float(np.clip(contours.height[z, 0], 0, 1))

    # bands of muscle cross the right ventricle, more of them towards the apex
    bands = texture(noise, x.shape, 2.6 / scan.pixel)
    bands = np.clip((bands - 1.35 + 0.7 * tip) * 1.4, 0, 0.7).astype(np.float32)
    right = rough_rv * (1 - bands)

    left = rough_lv
    for angle, distance, full in heart.papillary:
        if 0.15 < tip < 0.85:
            at = int(np.round((angle + np.pi) / (ANGLES[1] - ANGLES[0]))) % len(ANGLES)
            away = (distance * contours.cavity[z, :, at])[:, None, None].astype(np.float32)
            thick = np.float32(full) * np.float32(np.sin(np.pi * (tip - 0.1) / 0.8))
            for turn, out, part in ((0.0, 1.0, 1.0), (0.22, 1.12, 0.75), (-0.16, 1.2, 0.7)):
                px, py = np.float32(np.cos(angle + turn) * out), np.float32(np.sin(angle + turn) * out)
                gap = np.hypot(x + away * px, y + away * py)
                left = left * (1 - np.clip(0.5 + (part * thick - gap) / np.float32(1.4 * scan.pixel), 0, 0.92))

    signal = scene + fat * (FAT * 0.92 - scene)
    for value, share in (
        (muscle * 1.1, rv_wall),
        (muscle * 1.2, rv),
        (0.93 * flow, np.minimum(right, rv)),
        (muscle, myo),
        (muscle * 1.1, lv),
        (flow, np.minimum(left, lv)),
    ):
        signal += share * (value - signal)
    return signal


def _atria(canvas: Canvas, scene: np.ndarray, scale: float, noise: np.random.Generator) -> np.ndarray:
    """Signal above the base: left atrium, right atrium, outflow of the right ventricle, aortic root."""
    canvas.signal = scene.copy()
    chambers = ((8, 6, 27, 21, 0.2), (-44, 8, 20, 26, 0.2), (-25, -32, 19, 13, -0.4), (-10, -10, 14, 14, 0))
    for grow, value in ((7, 0.9 * FAT), (2.2, MYOCARDIUM), (0, 0)):
        for x, y, a, b, angle in chambers:
            blood = 0.95 * (1 + 0.06 * texture(noise, canvas.x.shape, 3))
            share = canvas.ellipse(x * scale, y * scale, a * scale + grow, b * scale + grow, angle, 2)
            canvas.paint(value or blood, share)
    return canvas.signal
