"""The chest around the heart in a short-axis bSSFP image, and how a subject lies in the scanner.

Signals are relative to blood in the left ventricle = 1. Fat is **negative**: at the usual TE = TR / 2 fat and water
have opposite phase in a balanced sequence, so that they cancel where they share a pixel; the magnitude taken at the end
then shows the thin black line around every organ without further code.

Coordinates are mm in a standard orientation, origin on the axis of the left ventricle, x to the right of the
image, y down: septum, right ventricle and sternum left, lung above and right, diaphragm below.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from data.phantoms.painting import Canvas, texture

MYOCARDIUM, MUSCLE, LIVER, SPLEEN, FAT = 0.3, 0.26, 0.32, 0.42, -0.92


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Position of one subject in the scanner, and how its images are acquired. Lengths in mm, angles in radians."""

    rows: int
    columns: int
    pixel: float
    thickness: float
    """Slice thickness, equal to the distance between slices."""
    heights: np.ndarray
    """(slices,) z of each slice, from the base at end diastole towards the apex."""
    shifts: np.ndarray
    """(slices, 2) in-plane displacement of each breath-hold."""
    centre: tuple[float, float]
    """Row and column of the LV axis."""
    turn: float
    """In-plane rotation."""
    noise: float
    """Standard deviation of the real and the imaginary part, relative to blood."""
    coil: float
    """Extra gain at the chest wall next to the coil, relative to that at the heart."""
    lung: float
    """Signal of the lung."""
    fatness: float
    """Thickness of the subcutaneous fat."""
    banding: bool
    """Whether off-resonance stripes show far from the centre."""


@dataclass(frozen=True, kw_only=True)
class Organs:
    """Random properties of the organs, drawn once per subject so that its slices match.

    ``outline``: left edge, centre y, semi-axes and lean of the chest; ``floor``: y of the diaphragm; ``thickness``:
    subcutaneous fat, muscle and their variation around the chest; ``length``: that of the heart. ``warp`` deforms all
    organs; ``jitter`` and ``bowel`` vary position and size of single ones.
    """

    outline: np.ndarray
    floor: float
    jitter: np.ndarray
    thickness: np.ndarray
    warp: np.ndarray
    bowel: np.ndarray
    length: float

    @classmethod
    def draw(cls, rng: np.random.Generator, scan: Scan, front: float, radius: float, length: float) -> "Organs":
        """Draw the organs around a heart; ``front`` and ``radius``: extent (mm) of the whole heart and of the LV."""
        muscle = rng.uniform(8, 13)
        left = -front - scan.fatness - muscle - rng.uniform(2, 9)  # the heart lies against the chest wall
        return cls(
            outline=np.array([left, 34, 116, 160, 0.16]) + rng.normal(0, [0, 6, 7, 8, 0.06]),
            floor=radius + rng.uniform(5, 12),
            jitter=rng.normal(0, 1, (12, 4)),
            thickness=np.array([scan.fatness, muscle, *rng.normal(0, 0.2, 4)]),
            warp=rng.normal(0, 1, (2, 6, 6)),
            bowel=rng.uniform(0, 1, (22, 6)),
            length=length,
        )


def paint_chest(
    organs: Organs, scan: Scan, z: int, x: np.ndarray, y: np.ndarray, noise: np.random.Generator
) -> np.ndarray:
    """Signal (rows, columns) of everything but the heart, slice ``z``."""
    tip = float(np.clip(scan.heights[z] / organs.length, -0.2, 1.1))
    grid = np.stack([y, x]) / 60 + 2.5
    warp = [map_coordinates(w, grid, order=1, mode="nearest").astype(np.float32) for w in organs.warp]
    canvas = Canvas(x=x + 4.5 * warp[0], y=y + 4.5 * warp[1], pixel=scan.pixel)
    j = organs.jitter

    # skin, fat, muscle: depth is the distance below the skin; in apical slices the chest is smaller
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
    canvas.paint(FAT * (1 + 0.07 * texture(noise, x.shape, 1.5)), canvas.edge(depth - 1.2))
    canvas.paint(MUSCLE * (1 + 0.12 * texture(noise, x.shape, 1.0)), canvas.edge(depth - skin_fat))
    seam = np.exp(-(((depth - skin_fat - 0.55 * muscle) / 1.3) ** 2)) * np.clip(
        np.sin(4 * around + modes[3] * 9) + 0.5 * warp[1], 0, 0.8
    )
    canvas.paint(0.8 * FAT, seam)

    # ribs: a row of dark rings with marrow, fat between them
    inner = depth - skin_fat - muscle
    arc = around * np.hypot(u * a, v * b) / 27 + 0.25 * np.sin(5 * around + 9 * modes[0]) + 0.5 * z
    rough = texture(noise, x.shape, 1.6)
    ring = np.hypot((inner + 1.5 * warp[1]) / 4.0, np.cos(np.pi * arc) * 2.3) + 0.22 * rough
    band = canvas.edge(inner + 4) * (1 - canvas.edge(inner - 3))
    canvas.paint(0.55 * FAT, band * np.clip(ring - 0.5 + 0.3 * warp[0], 0, 0.9))
    canvas.paint(0.12, np.clip(2.0 - 1.7 * ring, 0, 1) * band)
    canvas.paint(0.28, np.clip(0.9 - 1.6 * ring, 0, 0.8) * band)

    # lung with its vessels, thicker towards the hilum
    lung = canvas.edge(inner - 3)
    canvas.paint(scan.lung * (1 + 0.25 * texture(noise, x.shape, 2.0)), lung)
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
    thick = (17 + 4 * j[0, 0]) * np.exp(-(((canvas.y - 12 - 9 * j[0, 1]) / (30 - 6 * tip)) ** 2))
    pad = canvas.edge(thick - inner, 1) * (canvas.x < 0) * lung
    canvas.paint(0.8 * FAT * (1 + 0.2 * texture(noise, x.shape, 1.6)), pad)

    # below the diaphragm
    floor = organs.floor - 12 * max(tip, 0)
    dome = floor + 0.0036 * (canvas.x - 12 - 8 * j[1, 0]) ** 2
    abdomen = canvas.edge(canvas.y - dome, 2) * lung
    canvas.paint(MUSCLE, canvas.edge(canvas.y - dome + 2.4) * lung)
    before = canvas.signal.copy()
    canvas.paint(0.75 * FAT * (1 + 0.18 * texture(noise, x.shape, 1.6)), canvas.edge(canvas.y - dome))
    for kind, across, down, wide, angle, tone in organs.bowel:
        value = (0.3, 0.5, 0.9, 0.14, 0.4)[int(kind * 5)]
        bx, by = -35 + 125 * across + 10 * tip, floor + 42 + 85 * down - 14 * tip
        canvas.spot(bx, by, 4 + 8 * wide, MUSCLE * 1.2, 1 + tone, np.pi * angle)
        canvas.spot(bx, by, 2 + 7 * wide, value * (0.85 + 0.3 * tone), 1 + tone, np.pi * angle)
    grain = 1 + 0.07 * texture(noise, x.shape, 1.0)
    canvas.paint(SPLEEN * grain, canvas.ellipse(82 + 5 * j[2, 0], floor + 48 + 5 * j[2, 1], 19, 36, 0.25))
    kidney = (54 + 5 * j[3, 0], floor + 84 + 6 * j[3, 1] - 8 * tip)
    canvas.paint(0.52 * grain, canvas.ellipse(*kidney, 25, 19, 0.5))
    canvas.paint(0.4 + 0.2 * texture(noise, x.shape, 1.5), canvas.ellipse(*kidney, 13, 8, 0.5, 3))
    stomach = (44 + 6 * j[4, 0], floor + 27 + 4 * j[4, 1], 27 + 3 * j[4, 2], 17 + 3 * j[4, 3], -0.25)
    canvas.paint(0.4, canvas.ellipse(*stomach))
    content = 0.04 if j[5, 0] < -0.4 else 0.5
    inside = canvas.ellipse(*stomach[:2], stomach[2] - 3.5, stomach[3] - 3.5, stomach[4], 1)
    canvas.paint(content * (1 + 0.25 * texture(noise, x.shape, 1.8)), inside)
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

    # spine and descending aorta: in basal slices only
    if tip < 0.55:
        spine = (78 + 6 * j[8, 0] + 30 * tip, 92 + 6 * j[8, 1])
        canvas.paint(0.12, canvas.ellipse(*spine, 25, 21, 0.6) * lung)
        marrow = 0.42 * (1 + 0.15 * texture(noise, x.shape, 1.2))
        canvas.paint(marrow, canvas.ellipse(*spine, 23, 19, 0.6) * lung)
    if tip < 0.8:
        aorta = (34 + 5 * j[9, 0] + 12 * tip, organs.floor + 7 + 4 * j[9, 1])
        canvas.spot(*aorta, 12.5, 0.9 * FAT)
        canvas.spot(*aorta, 10.5, MYOCARDIUM)
        canvas.spot(*aorta, 9.2, 1.02)

    signal = canvas.signal
    if scan.banding:
        away = np.hypot(x - 15, y) / 100
        stripes = 0.62 + 0.38 * np.cos(26 * away**3 + 3 * warp[0])
        signal = signal * (1 + np.clip((away - 1.15) * 5, 0, 1) * (stripes - 1))
    return gaussian_filter(signal, 0.4).astype(np.float32)


def coil_gain(scan: Scan, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coil sensitivity, 1 at the heart: high in front (left in the image), slightly raised at the back."""
    front = np.exp((-0.94 * x - 0.34 * y - 80) / 42)
    back = np.exp((0.8 * x + 0.6 * y - 120) / 50)
    gain = 0.75 + scan.coil * np.clip(front, 0, 1.6) + 0.3 * np.clip(back, 0, 1.5)
    return (gain / (0.75 + scan.coil * np.exp(-80 / 42))).astype(np.float32)
