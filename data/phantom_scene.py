"""How the phantom looks: a short-axis bSSFP picture of the chest with the beating heart in it.

Signals are relative to LV blood = 1. Fat is **negative**: at the usual TE = TR / 2 fat and water are opposed
in a balanced sequence, so where they share a pixel they cancel, and the magnitude taken at the end draws the
thin black line around every organ by itself.

Coordinates are mm in a standard view, origin on the axis of the left ventricle, x to the right of the
picture, y down: septum, right ventricle and sternum left, lung above and right, diaphragm below.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from data.phantom_heart import ANGLES, RV_WALL, Heart, Walls, cycle, fat_edge, fit, roughness, walls

BLOOD, MYOCARDIUM, MUSCLE, LIVER, SPLEEN, FAT = 1.0, 0.3, 0.26, 0.32, 0.42, -0.92

RV, MYO, LV = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class View:
    """How one subject lies in the scanner. Lengths in mm, angles in radians."""

    rows: int
    columns: int
    pixel: float
    thickness: float
    """Distance between slices, taken as their thickness."""
    heights: np.ndarray
    """(slices,) z of each slice, from the base at end diastole towards the apex."""
    shifts: np.ndarray
    """(slices, 2) displacement in plane of each breath-hold."""
    centre: tuple[float, float]
    """Row and column of the LV axis."""
    turn: float
    """Rotation in plane."""
    noise: float
    """Standard deviation in each channel, relative to blood."""
    coil: float
    """Gain at the chest wall next to the coil, beyond that at the heart."""
    lung: float
    """Signal of the lung."""
    fatness: float
    """Thickness of the subcutaneous fat."""
    banding: bool
    """Whether off-resonance stripes show far from the centre."""


@dataclass(kw_only=True)
class Canvas:
    """One slice under the brush: coordinates (rows, columns) in mm and the signal so far."""

    x: np.ndarray
    y: np.ndarray
    pixel: float
    signal: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.signal = np.zeros_like(self.x)

    def paint(self, value: float | np.ndarray, share: np.ndarray) -> None:
        """Put ``value`` over what is there, ``share`` (rows, columns) of each pixel in 0..1."""
        self.signal += share * (value - self.signal)

    def edge(self, distance: np.ndarray, width: float = 0.0) -> np.ndarray:
        """Share of a pixel that is inside, from the distance (mm, positive inside) of its middle to the edge."""
        return np.clip(0.5 + distance / (self.pixel + width), 0, 1)

    def ellipse(self, x: float, y: float, a: float, b: float, angle: float = 0.0, width: float = 0.0) -> np.ndarray:
        """Share (rows, columns) inside an ellipse with semi-axes a, b (mm), ``angle`` from x towards y."""
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = self.x - np.float32(x), self.y - np.float32(y)
        p, q = (u * cos + v * sin) / np.float32(a), (v * cos - u * sin) / np.float32(b)
        radius = np.sqrt(p * p + q * q) + np.float32(1e-3)
        slope = np.sqrt((p / np.float32(a)) ** 2 + (q / np.float32(b)) ** 2) / radius + np.float32(1e-4)
        return self.edge((1 - radius) / slope, width)

    def spot(self, x: float, y: float, radius: float, value: float, longer: float = 1, angle: float = 0) -> None:
        """Paint a small soft ellipse; only the pixels near it are touched."""
        reach = radius * longer + 2 * self.pixel
        near = (np.abs(self.x - x) < reach) & (np.abs(self.y - y) < reach)
        if near.any():
            part = Canvas(x=self.x[near], y=self.y[near], pixel=self.pixel)
            share = part.ellipse(x, y, radius * longer, radius, angle)
            self.signal[near] += share * (value - self.signal[near])


def picture(
    heart: Heart, view: View, frames: int, body: np.random.Generator, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image a subject.

    Args:
        heart, view: the subject and how it lies.
        frames: of the cine; the first is end diastole.
        body: draws the organs around the heart.
        noise: draws texture and noise.

    Returns:
        (frames, slices, rows, columns) float32 magnitude, blood about 1, and uint8 labels of the same shape.
    """
    phase = cycle(heart, frames)
    size = fit(heart, view.heights, view.thickness)
    where = walls(heart, size, view.heights, phase)
    quarter = view.thickness / 4
    upper, lower = (walls(heart, size, view.heights + dz, phase) for dz in (-quarter, quarter))
    fat = fat_edge(heart, where)
    front = np.abs(ANGLES - 0.2) < 0.7
    organs = _Organs.draw(body, view, fat[..., front].max(), where.outside[:, 0].max(), heart.length)

    shape = (frames, len(view.heights), view.rows, view.columns)
    images, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    rows, columns = np.mgrid[: view.rows, : view.columns].astype(np.float32)
    cos, sin = np.cos(view.turn), np.sin(view.turn)
    for z in range(shape[1]):
        across = (columns - view.centre[1]) * view.pixel - view.shifts[z, 0]
        down = (rows - view.centre[0]) * view.pixel - view.shifts[z, 1]
        x, y = (cos * across + sin * down).astype(np.float32), (cos * down - sin * across).astype(np.float32)
        scene = _chest(organs, view, z, x, y, noise)

        radius = np.hypot(x, y)
        inside = radius < max(fat[z].max(), 1.75 * where.outside[z].max() + 12) + 2 * view.pixel
        near = np.ix_(inside.any(1), inside.any(0))
        angle = np.arctan2(-y[near], -x[near])
        step = 2 * np.pi / len(ANGLES)
        place = np.round((angle + np.pi) / step).astype(np.int32) % len(ANGLES)
        tables = _tables(heart, view, z, where, upper, lower, fat)
        shares = [_share(radius[near], place, *table) for table in tables]
        below = np.clip(0.5 + (where.height[z] * (heart.length - heart.descent * phase)) / view.thickness, 0, 1)

        signal = np.repeat(scene[None], frames, axis=0)
        ventricles = _ventricles(heart, where, z, scene[near], shares, x[near], y[near], radius[near], view, noise)
        if below.min() < 1:
            scale = float(where.outside[z].mean()) / 32
            atria = _atria(Canvas(x=x[near], y=y[near], pixel=view.pixel), scene[near], scale, noise)
            ventricles = atria + below[:, None, None].astype(np.float32) * (ventricles - atria)
        signal[(slice(None), *near)] = ventricles

        lv, myo, rv = (shares[i] > 0.5 for i in (1, 2, 4))
        label = np.where(lv, LV, np.where(myo, MYO, np.where(rv, RV, 0))) * (where.height[z] >= 0)[:, None, None]
        labels[(slice(None), z, *near)] = label
        gain = _gain(view, x, y)
        real, imaginary = noise.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(view.noise)
        images[:, z] = np.hypot(signal * gain + real, imaginary)
    return images, labels


# The heart


def _tables(
    heart: Heart, view: View, z: int, where: Walls, upper: Walls, lower: Walls, fat: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Radius and steepness (frames, angles) of: rough cavity, cavity, LV wall, rough RV, RV, RV wall, fat."""
    rough = roughness(heart, where.height[z])
    cavity, outside, right = where.cavity[z], where.outside[z], where.right[z]
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
        steep = slant / np.hypot(view.pixel, np.minimum(spread, 2 * view.thickness) * slant)
        # nothing is there where the radius is 0: push the edge far inside
        tables.append((np.where(radius > 0, radius, -1e3).astype(np.float32), steep.astype(np.float32)))
    return tables


def _share(radius: np.ndarray, place: np.ndarray, edge: np.ndarray, steep: np.ndarray) -> np.ndarray:
    share = edge.take(place, axis=1)
    share -= radius
    share *= steep.take(place, axis=1)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def _ventricles(
    heart: Heart,
    where: Walls,
    z: int,
    scene: np.ndarray,
    shares: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    view: View,
    noise: np.random.Generator,
) -> np.ndarray:
    rough_lv, lv, myo, rough_rv, rv, rv_wall, fat = shares
    frames = len(lv)
    flow = 1 + 0.13 * _drift(noise, (frames, *x.shape))
    muscle = MYOCARDIUM * (1 + 0.09 * _smooth(noise, x.shape, 1.1) + 0.06 * _drift(noise, (1, *x.shape)))
    tip = float(np.clip(where.height[z, 0], 0, 1))

    # bands of muscle cross the right ventricle, the more the nearer the apex
    bands = _smooth(noise, x.shape, 2.6 / view.pixel)
    bands = np.clip((bands - 1.35 + 0.7 * tip) * 1.4, 0, 0.7).astype(np.float32)
    right = rough_rv * (1 - bands)

    left = rough_lv
    for angle, distance, full in heart.papillary:
        if 0.15 < tip < 0.85:
            at = int(np.round((angle + np.pi) / (ANGLES[1] - ANGLES[0]))) % len(ANGLES)
            away = (distance * where.cavity[z, :, at])[:, None, None].astype(np.float32)
            thick = np.float32(full) * np.float32(np.sin(np.pi * (tip - 0.1) / 0.8))
            for turn, out, part in ((0.0, 1.0, 1.0), (0.22, 1.12, 0.75), (-0.16, 1.2, 0.7)):
                px, py = np.float32(np.cos(angle + turn) * out), np.float32(np.sin(angle + turn) * out)
                gap = np.hypot(x + away * px, y + away * py)
                left = left * (1 - np.clip(0.5 + (part * thick - gap) / np.float32(1.4 * view.pixel), 0, 0.92))

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
    """What lies above the base: left atrium, aortic root, outflow of the right ventricle, right atrium."""
    canvas.signal = scene.copy()
    chambers = (
        (8, 6, 27, 21, 0.2),
        (-44, 8, 20, 26, 0.2),
        (-25, -32, 19, 13, -0.4),
        (-10, -10, 14, 14, 0),
    )
    for grow, value in ((7, 0.9 * FAT), (2.2, MYOCARDIUM), (0, 0)):
        for x, y, a, b, angle in chambers:
            blood = 0.95 * (1 + 0.06 * _smooth(noise, canvas.x.shape, 3))
            share = canvas.ellipse(x * scale, y * scale, a * scale + grow, b * scale + grow, angle, 2)
            canvas.paint(value or blood, share)
    return canvas.signal


# The chest around it


@dataclass(frozen=True, kw_only=True)
class _Organs:
    """What is drawn once per subject, so that the slices of a stack belong together."""

    outline: np.ndarray
    floor: float
    jitter: np.ndarray
    thickness: np.ndarray
    warp: np.ndarray
    bowel: np.ndarray
    length: float

    @classmethod
    def draw(cls, rng: np.random.Generator, view: View, front: float, radius: float, length: float) -> "_Organs":
        """``front`` and ``radius``: how far the whole heart and the LV reach from the axis, mm."""
        muscle = rng.uniform(8, 13)
        left = -front - view.fatness - muscle - rng.uniform(2, 9)  # the heart lies against the chest wall
        return cls(
            outline=np.array([left, 34, 116, 160, 0.16]) + rng.normal(0, [0, 6, 7, 8, 0.06]),
            floor=radius + rng.uniform(5, 12),
            jitter=rng.normal(0, 1, (12, 4)),
            thickness=np.array([view.fatness, muscle, *rng.normal(0, 0.2, 4)]),
            warp=rng.normal(0, 1, (2, 6, 6)),
            bowel=rng.uniform(0, 1, (22, 6)),
            length=length,
        )


def _chest(organs: _Organs, view: View, z: int, x: np.ndarray, y: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Everything but the heart, (rows, columns)."""
    tip = float(np.clip(view.heights[z] / organs.length, -0.2, 1.1))
    grid = np.stack([y, x]) / 60 + 2.5
    warp = [map_coordinates(w, grid, order=1, mode="nearest").astype(np.float32) for w in organs.warp]
    canvas = Canvas(x=x + 4.5 * warp[0], y=y + 4.5 * warp[1], pixel=view.pixel)
    jitter = organs.jitter

    # skin, fat, muscle: depth is the distance below the skin; apical slices leave the chest to the front
    left, cy, a, b, lean = organs.outline
    a, b = a * (1 - 0.2 * max(tip, 0)), b * (1 - 0.1 * max(tip, 0))
    cx = left + a + 4 * tip
    cos, sin = np.cos(lean), np.sin(lean)
    u, v = canvas.x - cx, canvas.y - cy
    u, v = (u * cos + v * sin) / a, (v * cos - u * sin) / b
    around = np.arctan2(v, u)
    bulk = np.sqrt(np.sqrt(u**4 + v**4 + 1.2 * u**2 * v**2)) + 1e-3
    depth = (1 - bulk) * np.hypot(u * a, v * b) / bulk
    skin_fat, muscle, *modes = organs.thickness
    wave = modes[0] * np.cos(2 * around) + modes[1] * np.sin(2 * around) + modes[2] * np.cos(3 * around)
    skin_fat = np.clip(skin_fat * (1 + wave + 0.5 * np.cos(around - 0.4)), 3, None)
    muscle = muscle * (1 - wave) + 14 * np.exp(-(((around + 1.5) / 0.5) ** 2))
    canvas.paint(0.5, canvas.edge(depth))
    canvas.paint(FAT * (1 + 0.07 * _smooth(noise, x.shape, 1.5)), canvas.edge(depth - 1.2))
    canvas.paint(MUSCLE * (1 + 0.12 * _smooth(noise, x.shape, 1.0)), canvas.edge(depth - skin_fat))
    seam = np.exp(-(((depth - skin_fat - 0.55 * muscle) / 1.3) ** 2)) * np.clip(
        np.sin(4 * around + modes[3] * 9) + 0.5 * warp[1], 0, 0.8
    )
    canvas.paint(0.8 * FAT, seam)

    # ribs: a row of dark rings with marrow, fat between them
    inner = depth - skin_fat - muscle
    arc = around * np.hypot(u * a, v * b) / 27 + 0.25 * np.sin(5 * around + 9 * modes[0]) + 0.5 * z
    rough = _smooth(noise, x.shape, 1.6)
    ring = np.hypot((inner + 1.5 * warp[1]) / 4.0, np.cos(np.pi * arc) * 2.3) + 0.22 * rough
    band = canvas.edge(inner + 4) * (1 - canvas.edge(inner - 3))
    canvas.paint(0.55 * FAT, band * np.clip(ring - 0.5 + 0.3 * warp[0], 0, 0.9))
    canvas.paint(0.12, np.clip(2.0 - 1.7 * ring, 0, 1) * band)
    canvas.paint(0.28, np.clip(0.9 - 1.6 * ring, 0, 0.8) * band)

    # lung with its vessels, thicker towards the hilum
    lung = canvas.edge(inner - 3)
    canvas.paint(view.lung * (1 + 0.25 * _smooth(noise, x.shape, 2.0)), lung)
    lung_only = canvas.signal.copy()
    for _ in range(int(70 * (1 - 0.35 * tip))):
        vx, vy = noise.normal(35, 38), noise.normal(-35, 38)
        hilum = np.exp(-((vx - 22) ** 2 + (vy + 30) ** 2) / 700) * (1 - tip)
        thick = 0.6 + 1.6 * noise.random() ** 4 + 1.6 * hilum
        value = 0.12 + 0.8 * noise.random() ** 2 + 0.3 * hilum
        longer = 1 + 5 * noise.random() ** 3
        canvas.spot(vx, vy, thick, value, longer, np.arctan2(vy + 30, vx - 22) + noise.normal(0, 0.4))
    canvas.signal = lung_only + lung * (canvas.signal - lung_only)

    # fat between sternum and heart
    thick = (17 + 4 * jitter[0, 0]) * np.exp(-(((canvas.y - 12 - 9 * jitter[0, 1]) / (30 - 6 * tip)) ** 2))
    pad = canvas.edge(thick - inner, 1) * (canvas.x < 0) * lung
    canvas.paint(0.8 * FAT * (1 + 0.2 * _smooth(noise, x.shape, 1.6)), pad)

    # below the diaphragm
    floor = organs.floor - 12 * max(tip, 0)
    dome = floor + 0.0036 * (canvas.x - 12 - 8 * jitter[1, 0]) ** 2
    abdomen = canvas.edge(canvas.y - dome, 2) * lung
    canvas.paint(MUSCLE, canvas.edge(canvas.y - dome + 2.4) * lung)
    before = canvas.signal.copy()
    canvas.paint(0.75 * FAT * (1 + 0.18 * _smooth(noise, x.shape, 1.6)), canvas.edge(canvas.y - dome))
    for kind, across, down, wide, angle, tone in organs.bowel:
        value = (0.3, 0.5, 0.9, 0.14, 0.4)[int(kind * 5)]
        bx, by = -35 + 125 * across + 10 * tip, floor + 42 + 85 * down - 14 * tip
        canvas.spot(bx, by, 4 + 8 * wide, MUSCLE * 1.2, 1 + tone, np.pi * angle)
        canvas.spot(bx, by, 2 + 7 * wide, value * (0.85 + 0.3 * tone), 1 + tone, np.pi * angle)
    grain = 1 + 0.07 * _smooth(noise, x.shape, 1.0)
    j = jitter
    canvas.paint(SPLEEN * grain, canvas.ellipse(82 + 5 * j[2, 0], floor + 48 + 5 * j[2, 1], 19, 36, 0.25))
    kidney = (54 + 5 * j[3, 0], floor + 84 + 6 * j[3, 1] - 8 * tip)
    canvas.paint(0.52 * grain, canvas.ellipse(*kidney, 25, 19, 0.5))
    canvas.paint(0.4 + 0.2 * _smooth(noise, x.shape, 1.5), canvas.ellipse(*kidney, 13, 8, 0.5, 3))
    stomach = (44 + 6 * j[4, 0], floor + 27 + 4 * j[4, 1], 27 + 3 * j[4, 2], 17 + 3 * j[4, 3], -0.25)
    canvas.paint(0.4, canvas.ellipse(*stomach))
    content = 0.04 if j[5, 0] < -0.4 else 0.5
    inside = canvas.ellipse(*stomach[:2], stomach[2] - 3.5, stomach[3] - 3.5, stomach[4], 1)
    canvas.paint(content * (1 + 0.25 * _smooth(noise, x.shape, 1.8)), inside)
    liver = np.maximum(
        canvas.ellipse(-62 + 5 * j[6, 0], floor + 54 + 4 * j[6, 1], 64 + 4 * j[6, 2], 50, -0.2),
        canvas.ellipse(-8 + 6 * j[7, 0], floor + 12, 52, 17 + 2 * j[7, 1], -0.12),
    )
    plain = canvas.signal.copy()
    canvas.paint(LIVER * grain, liver)
    for k in range(12):
        lx, ly = -100 + 100 * organs.bowel[k, 1] + 6 * tip, floor + 6 + 85 * organs.bowel[k, 2]
        canvas.spot(lx, ly, 1.2 + 2.4 * organs.bowel[k, 3], 0.75, 1 + 2 * organs.bowel[k, 4], 3 * organs.bowel[k, 5])
    canvas.signal = plain + liver * (canvas.signal - plain)
    canvas.signal = before + abdomen * (canvas.signal - before)

    # spine and descending aorta lie behind: basal slices only
    if tip < 0.55:
        spine = (78 + 6 * j[8, 0] + 30 * tip, 92 + 6 * j[8, 1])
        canvas.paint(0.12, canvas.ellipse(*spine, 25, 21, 0.6) * lung)
        marrow = 0.42 * (1 + 0.15 * _smooth(noise, x.shape, 1.2))
        canvas.paint(marrow, canvas.ellipse(*spine, 23, 19, 0.6) * lung)
    if tip < 0.8:
        aorta = (34 + 5 * j[9, 0] + 12 * tip, organs.floor + 7 + 4 * j[9, 1])
        canvas.spot(*aorta, 12.5, 0.9 * FAT)
        canvas.spot(*aorta, 10.5, MYOCARDIUM)
        canvas.spot(*aorta, 9.2, 1.02)

    signal = canvas.signal
    if view.banding:
        away = np.hypot(x - 15, y) / 100
        stripes = 0.62 + 0.38 * np.cos(26 * away**3 + 3 * warp[0])
        signal = signal * (1 + np.clip((away - 1.15) * 5, 0, 1) * (stripes - 1))
    return gaussian_filter(signal, 0.4).astype(np.float32)


def _gain(view: View, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coil sensitivity, 1 at the heart: strong in front (left), a little stronger again behind."""
    front = np.exp((-0.94 * x - 0.34 * y - 80) / 42)
    back = np.exp((0.8 * x + 0.6 * y - 120) / 50)
    gain = 0.75 + view.coil * np.clip(front, 0, 1.6) + 0.3 * np.clip(back, 0, 1.5)
    return (gain / (0.75 + view.coil * np.exp(-80 / 42))).astype(np.float32)


def _smooth(noise: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Texture of unit variance."""
    texture = gaussian_filter(noise.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=2.5)
    return texture * np.float32(2 * np.sqrt(np.pi) * max(sigma, 0.3))


def _drift(noise: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Slow variation (frames, rows, columns) in about -1..1: flow and off-resonance."""
    coarse = noise.standard_normal((max(2, shape[0] // 3), 6, 6), dtype=np.float32)
    steps = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
    if shape[0] == 1:
        return zoom(coarse[0], steps[1:], order=1)[None] * np.float32(0.6)
    return zoom(coarse, steps, order=1) * np.float32(0.6)
