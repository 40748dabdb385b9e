"""The knee of the phantom: who the subject is, what is wrong with it, and how a block of voxels of it looks.

Coordinates are mm in a standard right knee of adult size, origin between the condyles on the joint line:
x lateral, y posterior, z inferior (down the leg). A distance is positive **inside** a structure. Everything is
painted back to front: leg, muscles, vessels, fluid, menisci, bones with their cartilage, tendons, cruciates.

Sizes follow the usual adult ranges: femoral condyles 76 mm wide and 60 mm deep, ACL 33 mm long at 50 degrees
to the plateau, cartilage 2-3 mm, menisci 9-12 mm wide and 5-7 mm high, patellar tendon 45 mm long.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Acl = Literal["intact", "wavy", "gap", "gone"]

MUSCLES = {  # z, then x, y of the middle and the two semi-axes of the cross-section
    "semimembranosus": (
        (-100, -20, 36, 18, 16),
        (-60, -24, 36, 16, 15),
        (-30, -27, 35, 11, 11),
        (-5, -27, 33, 6, 7),
        (12, -26, 29, 1, 1),
    ),
    "biceps femoris": (
        (-100, 24, 36, 17, 16),
        (-60, 29, 35, 14, 14),
        (-30, 35, 31, 8, 11),
        (0, 39, 25, 4, 7),
        (16, 38, 20, 1, 1),
    ),
    "sartorius": ((-100, -44, 14, 8, 13), (-50, -44, 20, 6, 12), (-10, -42, 25, 3.5, 9), (25, -38, 20, 1, 4)),
    "vastus medialis": (
        (-100, -28, -20, 21, 22),
        (-70, -32, -20, 16, 21),
        (-45, -35, -21, 8, 16),
        (-28, -33, -24, 1, 4),
    ),
    "vastus lateralis": ((-100, 30, -18, 20, 23), (-75, 34, -17, 13, 20), (-55, 37, -16, 6, 13), (-42, 37, -16, 1, 4)),
    "vastus intermedius": ((-100, 0, -32, 20, 9), (-80, 0, -33, 13, 5), (-66, 0, -34, 1, 1)),
    "popliteus": ((6, 22, 22, 2, 2), (20, 8, 24, 12, 5), (45, -6, 18, 14, 6), (72, -10, 15, 5, 3)),
    "soleus": ((22, 30, 26, 2, 2), (45, 18, 27, 17, 8), (100, 6, 27, 30, 13)),
    "tibialis anterior": ((14, 26, -8, 2, 2), (40, 26, -7, 11, 13), (100, 25, -7, 14, 15)),
    "peroneus": ((26, 39, 4, 2, 3), (55, 38, 5, 9, 13), (100, 36, 6, 11, 15)),
    "medial gastrocnemius": (
        (-30, -16, 34, 2, 2),
        (-10, -20, 38, 10, 8),
        (20, -21, 41, 17, 13),
        (100, -19, 43, 22, 16),
    ),
    "lateral gastrocnemius": ((-28, 20, 33, 2, 2), (-8, 21, 36, 9, 8), (20, 19, 41, 15, 12), (100, 19, 43, 19, 15)),
}
"""The muscles, as elliptic tubes along z; those that reach 100 mm go on as they are."""

LEVELS = np.arange(-160, 160.5, 0.5)
"""z in mm, for looking up what changes along the leg."""

OPEN = 100
"""Past this z (mm) nothing ends: it leaves the picture."""

LEG: tuple[tuple[float, ...], ...] = (
    (-100, -56, 58, 57),
    (-55, -57, 52, 50),
    (-34, -57.5, 48, 48),
    (-12, -55, 46, 47),
    (8, -47, 48, 46),
)
LEG += ((24, -40, 53, 46), (42, -34, 57, 48), (100, -29, 60, 50))
"""The deep fascia: z, front y, back y, half width."""


@dataclass(frozen=True, kw_only=True)
class Knee:
    """One subject's knee. Lengths in mm."""

    acl: Acl
    size: float
    """1 for the standard knee."""
    fatness: float
    """Thickness of the subcutaneous fat at the sides."""
    effusion: float
    """Thickness of the fluid in the suprapatellar recess; up to 2 is normal."""
    shift: float
    """How far the tibia lies too far in front (anterior drawer)."""
    tear: float
    """Side of the torn meniscus: -1 medial, 1 lateral, 0 none."""
    tear_place: tuple[float, float]
    """Slope of the tear, and where along the wedge it lies (0..1)."""
    bruises: np.ndarray
    """(n, 5) middle x, y, z, radius and strength of marrow oedema."""
    defect: tuple[float, float, float]
    """Middle x, y and depth (share of the cartilage) of a cartilage defect of the femur."""
    cyst: float
    """Radius of a popliteal (Baker) cyst, 0 for none."""
    muscles: np.ndarray
    """(12, 3) displacement x, y and thickness of each muscle, unit variance."""
    mucoid: float
    """Brightness of an intact ACL above the usual one, 0..1: a normal variant."""
    swelling: float
    """Strength of the oedema around the ACL, 0..1; an old tear has little, an inflamed joint with a whole ACL some."""
    sway: tuple[float, float, float]
    """Of a torn ACL: sag, waviness (mm) and phase."""
    warp: np.ndarray
    """(3, 2, 2) smooth deformation of everything: axis, wave, (amplitude in mm, phase)."""
    jitter: np.ndarray
    """(6, 4) small departures of single structures, unit variance."""


def draw_knee(rng: np.random.Generator, torn: bool) -> tuple[Knee, bool, bool]:
    """Draw a knee whose ACL is torn or not.

    Returns:
        the knee, whether a meniscus is torn, and whether anything at all is abnormal.
    """
    acl: Acl = str(rng.choice(["wavy", "gap", "gone"], p=[0.36, 0.3, 0.34])) if torn else "intact"  # type: ignore[assignment]
    meniscus = bool(rng.random() < (0.6 if torn else 0.28))
    other = rng.random(4) < (0.5, 0.3, 0.25, 0.12)  # effusion, bruise, defect, cyst
    if not (torn or meniscus) and rng.random() < 0.32:
        other[:] = False  # a normal knee
    abnormal = torn or meniscus or bool(other.any())
    spots = [(23, -9, -8, 9, 1), (24, 15, 9, 9, 1)]  # pivot shift: lateral condyle, posterolateral plateau
    usual = rng.random(2) < (0.68 if torn else 0.0)
    chosen = [spot for spot, here in zip(spots, usual, strict=True) if here]
    if other[1]:
        anywhere = [*spots, (-24, -4, -9, 9, 1), (-24, 2, 9, 9, 1), (6, -45, -32, 7, 1), (24, 2, -9, 8, 1)]
        chosen.append(anywhere[rng.integers(len(anywhere))])
    bruises = np.array(chosen, float).reshape(-1, 5)
    bruises *= rng.uniform((0.9, 0.9, 0.9, 0.6, 0.5), (1.1, 1.1, 1.1, 1.4, 1.0), bruises.shape)
    knee = Knee(
        acl=acl,
        size=rng.uniform(0.9, 1.1),
        fatness=rng.uniform(4, 15),
        effusion=rng.uniform(1.5, 9) if torn or other[0] else rng.uniform(0.4, 2.0),
        shift=rng.uniform(0, 6) if torn else rng.uniform(-1, 2),
        tear=float(rng.choice([-1, 1], p=[0.68, 0.32])) if meniscus else 0.0,
        tear_place=(rng.uniform(-0.7, 0.7), rng.uniform(0.25, 0.6)),
        bruises=bruises.astype(np.float32),
        defect=(float(rng.choice([-1, 1])) * rng.uniform(18, 28), rng.uniform(-10, 12), 0.95 * bool(other[2])),
        cyst=rng.uniform(4, 9) * bool(other[3]),
        muscles=rng.normal(0, 1, (len(MUSCLES), 3)).clip(-2, 2),
        mucoid=rng.uniform(0.3, 1) if rng.random() < 0.15 else rng.uniform(0, 0.15),
        swelling=rng.uniform(0.05, 0.75) if torn else rng.uniform(0.1, 0.5) if rng.random() < 0.22 else 0.0,
        sway=(rng.uniform(2, 6), rng.uniform(1.3, 2.6), rng.uniform(0, 2 * np.pi)),
        warp=rng.normal(0, 1, (3, 2, 2)).astype(np.float32),
        jitter=rng.normal(0, 1, (6, 4)).clip(-2, 2).astype(np.float32),
    )
    return knee, meniscus, abnormal


@dataclass(frozen=True, kw_only=True)
class Tones:
    """Signal of each tissue in one sequence, fluid or fat about 1."""

    fat: float
    marrow: float
    muscle: float
    fluid: float
    cartilage: float
    meniscus: float
    ligament: float
    oedema: float
    """Swollen soft tissue; marrow oedema lies halfway from marrow to it."""
    artery: float
    vein: float
    skin: float
    cortex: float = 0.04


@dataclass(kw_only=True)
class Block:
    """A box of voxels under the brush; every array (frames, rows, columns) float32."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    level: np.ndarray
    """z as an index into LEVELS."""
    signal: np.ndarray
    grain: np.ndarray
    """Texture of unit variance, drawn out along the leg."""
    width: float
    """Over how many mm an edge goes from 0 to 1."""
    to_index: np.ndarray
    """(3, 4) from mm to voxels of the whole stack."""

    def where(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> tuple[slice, ...]:
        """Slices of the part that holds these ranges of mm (with a margin for the deformation)."""
        z = z[0] if z[0] > -OPEN else -300, z[1] if z[1] < OPEN else 300
        corners = np.array([(a, b, c, 1) for a in x for b in y for c in z])
        places = self.to_index @ corners.T
        low, high = np.floor(places.min(1)).astype(int) - 2, np.ceil(places.max(1)).astype(int) + 3
        return tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))

    def cut(self, part: tuple[slice, ...]) -> "Block":
        """A part as views: painting there paints here. Only whole stacks can be cut."""
        arrays = {name: getattr(self, name)[part] for name in ("x", "y", "z", "level", "signal", "grain")}
        return Block(**arrays, width=self.width, to_index=self.to_index)

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> "Block":
        """The part that holds these ranges of mm."""
        return self.cut(self.where(x, y, z))

    def share(self, distance: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Share of each voxel that is inside."""
        return np.clip(0.5 + distance / np.float32(self.width + blur), 0, 1)

    def paint(self, value: float | np.ndarray, share: np.ndarray) -> None:
        """Put ``value`` over what is there."""
        self.signal += share * (value - self.signal)

    def along(self, z: np.ndarray, values: np.ndarray) -> np.ndarray:
        """What is given at some z, at every voxel (linear between)."""
        return np.interp(LEVELS, z, values).astype(np.float32)[self.level]

    def tube(self, table: np.ndarray) -> np.ndarray:
        """Distance to an elliptic tube along z, its rows as in MUSCLES."""
        z = table[:, 0]
        x, y, a, b = (self.along(z, column) for column in table.T[1:])
        inside = _ellipse(self.x - x, self.y - y, a, b)
        for end, way in ((float(z[0]), 1), (float(z[-1]), -1)):
            if abs(end) < OPEN:
                inside = np.minimum(inside, way * (self.z - end))
        return inside

    def cord(self, points: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Distance to a cord through (n, 3) points with (n,) radii."""
        best = np.full(self.x.shape, -99, np.float32)
        for k, (a, b) in enumerate(pairwise(points)):
            u, v, w = (p - np.float32(q) for p, q in zip((self.x, self.y, self.z), a, strict=True))
            d = (b - a).astype(np.float32)
            t = np.clip((u * d[0] + v * d[1] + w * d[2]) / max(float(d @ d), 1e-6), 0, 1)
            away = np.sqrt((u - t * d[0]) ** 2 + (v - t * d[1]) ** 2 + (w - t * d[2]) ** 2)
            best = np.maximum(best, np.float32(radius[k]) + t * np.float32(radius[k + 1] - radius[k]) - away)
        return best

    def ball(self, x: float, y: float, z: float, a: float, b: float, c: float) -> np.ndarray:
        """About the distance to an ellipsoid with semi-axes a, b, c."""
        u, v, w = (self.x - np.float32(x)) / a, (self.y - np.float32(y)) / b, (self.z - np.float32(z)) / c
        return (1 - np.sqrt(u * u + v * v + w * w)) * np.float32(min(a, b, c))


def _norm(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)  # a third of the time of np.hypot


def _ellipse(u: np.ndarray, v: np.ndarray, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    p, q = u / a, v / b
    rho = np.sqrt(p * p + q * q) + np.float32(1e-3)
    return (1 - rho) * rho / (np.sqrt((p / a) ** 2 + (q / b) ** 2) + np.float32(1e-4))


def _oval(u: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """About the distance to a squarish ellipse."""
    p, q = u / a, v / b
    p, q = p * p, q * q
    rho = np.sqrt(np.sqrt(p * p + q * q + p * q)) + np.float32(1e-3)
    return (1 - rho) * (p * a + q * b) / (p + q + np.float32(1e-4))


def _join(p: np.ndarray, q: np.ndarray, soft: float) -> np.ndarray:
    """Union with a fillet of about ``soft`` mm."""
    return np.maximum(p, q) + np.maximum(soft - np.abs(p - q), 0) ** 2 * np.float32(0.25 / soft)


def _meet(p: np.ndarray, q: np.ndarray, radius: float) -> np.ndarray:
    """Intersection with edges rounded to ``radius`` mm."""
    u, v = np.float32(radius) - p, np.float32(radius) - q
    return radius - np.minimum(np.maximum(u, v), 0) - _norm(np.maximum(u, 0), np.maximum(v, 0))


def _bump(u: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-((u / np.float32(width)) ** 2))


def paint_knee(knee: Knee, block: Block, tones: Tones, unsaturated: float | np.ndarray = 0.0) -> None:
    """Paint the whole knee into ``block``; ``unsaturated`` is added to fat (where fat saturation fails)."""
    _leg(knee, block, tones, unsaturated)
    _vessels(knee, block, tones)
    _fluid(knee, block, tones)
    _menisci(knee, block, tones)
    _bones(knee, block, tones)
    _tendons(knee, block, tones)
    _cruciates(knee, block, tones)


def deform(knee: Knee, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bend standard coordinates smoothly (by a mm or two), so that no two knees have the same outlines."""
    moved = []
    for own, first, second, ((a, p), (b, q)) in zip((x, y, z), (y, z, x), (z, x, y), knee.warp, strict=True):
        moved.append(own + a * np.sin(first / 31 + 3 * p) + b * np.sin(second / 34 + 3 * q))
    return moved[0], moved[1], moved[2]


def _leg(knee: Knee, block: Block, tones: Tones, unsaturated: float | np.ndarray) -> None:
    z, front, back, half = np.array(LEG, np.float32).T
    front, back, half = (block.along(z, column) for column in (front, back, half))
    j = knee.jitter[0]
    half = half * np.float32(1 + 0.03 * j[0])
    middle, deep = (front + back) / 2, (back - front) / 2
    u, v = np.abs(block.x / half), (block.y - middle) / deep
    p, q = u * u, v * v
    rho = np.sqrt(np.sqrt(p * p + q * q + np.float32(1.55) * p * q)) + np.float32(1e-3)
    fascia = (1 - rho) * (half * u + deep * np.abs(v)) / (u + np.abs(v) + np.float32(1e-3))
    cover = knee.fatness * np.clip(0.66 + 1.2 * (v + 0.55), 0.32, 1) + 2.5
    depth = fascia + cover
    fat = tones.fat * (1 + 0.02 * block.grain) + unsaturated
    block.paint(tones.skin, block.share(depth))
    block.paint(fat, block.share(depth - 1.6))
    septa = np.sin(block.x / 3.1 + 2 * np.sin(block.y / 7) + block.z / 13 + j[1])
    septa = septa * np.sin(block.y / 4.3 - block.z / 5 + j[2])
    lobules = block.share(depth - 2.5)
    block.paint(0.6 * fat, lobules * np.clip(septa - 0.55, 0, 0.45))
    block.paint(0.55 * tones.muscle, 0.6 * block.share(0.9 - np.abs(fascia)))
    soft = 1.2 * np.sin(block.x / 9 + j[0]) + 1.2 * np.sin(block.y / 11 + block.z / 17 + j[3])
    flesh = tones.muscle * (1 + 0.1 * block.grain)
    streak = np.clip(block.grain - 1.3, 0, 0.6)
    for jitter, rows in zip(knee.muscles, MUSCLES.values(), strict=True):
        table = np.array(rows, float)
        table[:, 1:3] += 0.8 * jitter[:2]
        table[:, 3:] *= 1 + 0.06 * jitter[2]
        low, high = (table[:, 1:3] - table[:, 3:]).min(0) - 4, (table[:, 1:3] + table[:, 3:]).max(0) + 4
        cut = block.where((low[0], high[0]), (low[1], high[1]), (table[0, 0], table[-1, 0]))
        part = block.cut(cut)
        inside = np.minimum(part.tube(table) + soft[cut], fascia[cut] - 1.2)
        part.paint(fat[cut], part.share(inside + 1.1))
        part.paint(flesh[cut], part.share(inside))
        part.paint(tones.fat, part.share(inside - 1.5) * streak[cut] * 0.5)


def _vessels(knee: Knee, block: Block, tones: Tones) -> None:
    """Popliteal artery and vein, the tibial nerve, and two veins under the skin."""
    j = knee.jitter[1]
    artery = np.array([(-200, -6, 20), (-80, -4, 23), (-35, 2, 30), (0, 3, 33), (40, 3, 31), (200, 3, 30)])
    around = 22 + 4 * j[3]
    for x, y, radius, value in (
        (0.0, 0.0, 3.2, tones.artery),
        (2.0 + j[0], 7.5, 3.6, tones.vein),
        (6.5, 12.5 + j[1], 2.4, 0.75 * tones.muscle),
        (-49 - 0.5 * knee.fatness, around - 30, 1.8, tones.vein),
        (4.0, 20 + 0.6 * knee.fatness, 1.6, tones.vein),
    ):
        rows = np.column_stack([artery + np.array([0, x, y]), np.full((len(artery), 2), radius)])
        part = block.box((x - 12, x + 9), (y + 15, y + 39), (-200, 200))
        if radius > 3:  # wall
            part.paint(tones.cortex, part.share(part.tube(rows) + 0.9))
        part.paint(value, part.share(part.tube(rows)))


def _fluid(knee: Knee, block: Block, tones: Tones) -> None:
    """The suprapatellar recess, the gutters beside the condyles, a popliteal cyst."""
    e, j = knee.effusion, knee.jitter[2]
    wavy = np.float32(0.35 * e) * np.sin(block.z / 6 + block.x / 9 + j[0])
    cut = block.where((-34, 34), (-56, -22), (-92, -38))
    part = block.cut(cut)
    level = part.along(np.array([-90, -60, -38]), np.array([-33.5, -37, -38]))
    across = (1 - _norm(part.x / (20 + 1.2 * e), (part.z + 58) / (16 + 2 * e))) * 9
    sheet = 0.5 * e + 0.25 * wavy[cut] - np.abs(part.y - level + 0.3 * e) - 0.3
    part.paint(tones.fluid, part.share(_meet(sheet, across, 1.5)))
    cut = block.where((-50, 50), (-44, 32), (-56, 8))
    part = block.cut(cut)
    beside = (
        np.clip((np.abs(part.x) - 30) / 5, 0, 1) * np.clip((12 - part.y) / 14, 0, 1) * np.clip((-4 - part.z) / 8, 0, 1)
    )
    before = np.clip((-16 - part.y) / 10, 0, 1) * np.clip((-14 - part.z) / 6, 0, 1)
    room = np.maximum(beside * (2.6 + 0.4 * e + wavy[cut]), before * (2.6 + 0.15 * e)) - 0.7
    inside = np.minimum(_femur(part) + room, np.minimum(part.z + 50 + 0.015 * (part.y + 15) ** 2, 3 - part.z))
    part.paint(tones.fluid, part.share(np.minimum(inside, 40 - np.abs(part.x))))
    if knee.cyst:
        part = block.box((-34, -8), (24, 56), (-30, 34))
        part.paint(
            tones.fluid, part.share(part.ball(-19, 40 + j[1], 2 + 4 * j[2], 0.8 * knee.cyst, knee.cyst, 2 * knee.cyst))
        )
        part.paint(tones.fluid, part.share(part.cord(np.array([(-18, 24, -8), (-19, 40, 0)]), np.full(2, 1.2))))


def _menisci(knee: Knee, block: Block, tones: Tones) -> None:
    """Two rings of wedges; the bones painted after them cut their upper and lower faces."""
    for side, x, a, b in ((-1, -21.5, 17.0, 23.0), (1, 21.0, 16.0, 18.5)):
        part = block.box((x - 21, x + 21), (-28, 30), (-11, 11))
        u, v = part.x - x, part.y - 1 + np.float32(knee.shift)
        deep = _ellipse(u, v, a, b)
        width = 8.5 + 2.5 * np.clip(v / 14, 0, 1) * (1.2 if side < 0 else 0.8)
        middle = np.float32(-2.3) + np.float32(0.07) * v
        wedge = 4.6 * (1 - deep / width) + 0.4 - np.abs(part.z - middle)
        body = np.minimum(_meet(deep, width - deep, 0.6), wedge)
        body = np.minimum(body, np.maximum(np.abs(v) - 9, 7.5 + side * u))  # open towards the middle
        part.paint(tones.meniscus, part.share(body))
        if side == knee.tear:
            slope, place = knee.tear_place
            cleft = 0.75 - np.abs(part.z - middle - np.float32(slope) * (deep - np.float32(place) * width))
            part.paint(0.8 * tones.fluid, part.share(np.minimum(body, cleft), 0.4) * (v > 5) * (deep < 0.8 * width))
            fringe = np.minimum(body + 1.5, 3.5 - _norm(deep - 0.9 * width, v - 15))
            part.paint(0.6 * tones.fluid, part.share(fringe, 1.5) * 0.6)


def _femur(block: Block) -> np.ndarray:
    """Distance to the surface of the femur."""
    x, y, z = block.x, block.y, block.z
    groove = np.float32(5.5) * _bump(x + 1, 10)
    inner = np.where(x > 0, x - 23.5, x + 23.5)
    small = (x < 0) * np.float32(1.0)  # the medial condyle is longer and narrower
    rear = np.float32(19.5) - _norm(y - 8 - small, z + 21.5)
    front = np.float32(23.5) - _norm(y + 5, z + 27.5)
    condyles = _meet(_join(rear, front, 5), 14.2 - small - np.abs(inner), 11.5)
    trochlea = 24 - groove - _norm(y + 9, z + 29.5)
    trochlea = _meet(trochlea, 33 - np.abs(x - 1), 9)
    flare = np.clip((z + 92) / 60, 0, 1)
    flare = flare * flare * (3 - 2 * flare)
    shaft = _oval(x, y + 11 - 5 * flare, 14 + 23.5 * flare, 14 + 7 * flare)
    bone = _join(_join(condyles, trochlea, 4), _meet(shaft, -20 - z, 6), 8)
    roof = (y + 11) * np.float32(0.68) + (z + 10) * np.float32(0.733)  # Blumensaat's line
    return _meet(bone, -_meet(roof, 9.8 - np.abs(x), 7), 2.5)


def _tibia(knee: Knee, block: Block) -> np.ndarray:
    x, y, z = block.x, block.y + np.float32(knee.shift), block.z
    top = 2.2 + 0.08 * y - 5.5 * _bump(np.abs(x) - 5.5, 3.4) * _bump(y - 1, 8) - 0.6 * np.clip(x / 20, -1, 1)
    top += 1.2 * _bump(x + 22, 10) * _bump(y, 18) - 0.6 * _bump(x - 22, 9) * _bump(y - 6, 14)
    taper = 1 / (1 + (np.maximum(z - 9, 0) / 31) ** 2)
    side = _oval(x - 1, y + 5 - 6 * taper, 13.5 + 25 * taper, 14.5 + 10.5 * taper)
    bone = _meet(side, z - top, 3)
    return _join(bone, block.ball(0, -15 - knee.shift, 36, 8, 11, 13), 5)


def _bones(knee: Knee, block: Block, tones: Tones) -> None:
    j = knee.jitter[3]
    femur = block.box((-46, 46), (-40, 36), (-200, 6))
    inside = _femur(femur)
    x, y, z = femur.x, femur.y, femur.z
    covered = np.clip((np.abs(x) - 7.5) / 2, 0, 1) * (y > -14) + (y <= -14)
    covered = covered * np.clip((37.5 - np.abs(x)) / 3, 0, 1) * np.clip((z + 49 - 0.35 * y) / 4, 0, 1)
    covered = covered * np.clip(np.maximum((z + 32) / 4, np.maximum(-y - 16, y - 2) / 4), 0, 1)
    cx, cy, depth = knee.defect
    covered = covered * (1 - depth * _bump(_norm(x - cx, y - cy), 6.5))
    seam = z + 38 + 5 * _bump(x, 14) - 0.06 * np.abs(x)
    _bone(knee, femur, tones, inside, (2.1 + 0.2 * j[0]) * covered, seam)

    tibia = block.box((-46, 46), (-40, 36), (-8, 200))
    inside = _tibia(knee, tibia)
    x, y = tibia.x, tibia.y + np.float32(knee.shift)
    plate = 1 - _norm((np.abs(x) - 20) / 15, y / 19)
    covered = np.clip(plate * 5, 0, 1) * np.clip((16 - tibia.z) / 4, 0, 1)
    _bone(knee, tibia, tones, inside, (1.9 + 0.2 * j[1]) * covered, tibia.z - 19 - 0.05 * np.abs(x) + 0.15 * y)

    fibula = block.box((24, 46), (4, 30), (6, 200))
    rows = np.array(
        [
            (11, 34.3, 17, 5, 5),
            (14, 34.5, 17, 7.5, 7.5),
            (20, 35, 17, 8.5, 8),
            (34, 36, 17, 5.5, 5.5),
            (100, 35, 15, 5.5, 6),
        ]
    )
    _bone(knee, fibula, tones, fibula.tube(rows), 0, fibula.z - 24)

    patella = block.box((-28, 28), (-60, -26), (-62, -8))
    ridge = 1.2 * float(j[2])
    inside = patella.ball(ridge, -42.5, -35, 23, 12.5, 21.5)
    back = -33.6 - 0.27 * np.abs(patella.x - ridge) - patella.y
    inside = _meet(inside, back - 0.15 * np.maximum(-22 - patella.z, -3), 2.5)
    facing = np.clip((patella.y + 43) / 3, 0, 1) * np.clip((-19 - patella.z) / 4, 0, 1)
    _bone(knee, patella, tones, inside, 2.7 * facing, None)


def _bone(
    knee: Knee, block: Block, tones: Tones, inside: np.ndarray, cartilage: np.ndarray | float, seam: np.ndarray | None
) -> None:
    """Cartilage, cortex, marrow with its oedema and the line of the old growth plate."""
    block.paint(tones.cartilage, block.share(inside + cartilage))
    block.paint(tones.cortex, block.share(inside))
    marrow = tones.marrow * (1 + 0.02 * block.grain)
    if seam is not None:
        marrow *= 1 - 0.35 * _bump(seam + 0.7 * block.grain, 0.9)
    rough = 3.0 * np.sin(block.x / 4 + block.z / 5) * np.sin(block.y / 4.5)
    for x, y, z, radius, strength in knee.bruises:
        away = np.sqrt((block.x - x) ** 2 + (block.y - y) ** 2 + ((block.z - z) / 1.2) ** 2) + rough
        marrow += (0.6 * (tones.oedema - tones.marrow) * strength) * np.clip(1.5 - away / radius, 0, 1)
    block.paint(marrow, block.share(inside - 1.1, 0.4))


def _tendons(knee: Knee, block: Block, tones: Tones) -> None:
    """Extensor mechanism, collateral ligaments, iliotibial band, popliteus tendon."""
    j, back = knee.jitter[4], -knee.shift
    straps = (
        (0.7, ((-100, 0, -46, 20, 3.5), (-75, 0, -47, 17, 3.6), (-54, 0, -51, 14, 3), (-46, 0, -53, 12, 0.5))),
        (
            0.7,
            (
                (-52, 0, -54, 12, 0.6),
                (-35, 0, -54.2, 15, 1.1),
                (-18, 0, -52, 14, 1.8),
                (-8, 0, -48.5 + 0.3 * back, 13, 2.5),
            ),
        ),
        (
            0.7,
            ((-9, 0, -49 + 0.3 * back, 13, 2.5), (22, 0, -33.5 + 0.9 * back, 12, 2.5), (40, 0, -25.5 + back, 9, 2.2)),
        ),
        (
            1.0,
            (
                (-30, -38.5, -1, 1.4, 4),
                (-22, -39.5, -1, 1.5, 5),
                (0, -41.5, -2, 1.3, 5),
                (22, -36.8, -5, 1.2, 5),
                (35, -31.5, -6, 1.1, 5),
                (50, -24.5, -8, 1, 4),
            ),
        ),
        (1.0, ((-24, 38.5, 4, 2, 3), (-6, 41.5, 9, 1.7, 2.2), (15, 38, 16, 2, 2.2))),
        (1.0, ((-100, 49, -14, 1.4, 12), (-30, 43.5, -14, 1.3, 9), (0, 41.5, -16, 1.6, 7), (14, 34, -19, 1, 4))),
        (1.2, ((-16, 37.5, 5, 2, 2), (-4, 33, 16, 2.2, 2.4), (8, 24, 23, 2, 2.2))),
    )
    for tone, rows in straps:
        table = np.array(rows, float)
        table[:, 1] += 0.5 * j[0]
        low, high = (table[:, 1:3] - table[:, 3:]).min(0) - 3, (table[:, 1:3] + table[:, 3:]).max(0) + 3
        part = block.box((low[0], high[0]), (low[1], high[1]), (table[0, 0], table[-1, 0]))
        part.paint(tone * tones.ligament, part.share(part.tube(table)))


def _cruciates(knee: Knee, block: Block, tones: Tones) -> None:
    """The notch: fat and fluid, PCL, and the ACL as it is."""
    j, drawer = knee.jitter[5], knee.shift
    notch = block.box((-14, 14), (-24, 34), (-40, 12))
    # what fills it: synovial fat in front, fluid along the ligaments
    gap = np.minimum(-_femur(notch), -_tibia(knee, notch)) - 0.5
    room = np.minimum(gap, 11 - np.abs(notch.x))
    notch.paint(
        0.85 * tones.fat + 0.1 * tones.fluid, notch.share(np.minimum(room, np.minimum(notch.y + 16, 22 - notch.y)), 3)
    )

    start = np.array([6.6 + 0.4 * j[0], 12.5 + j[1], -25 + j[2]])
    end = np.array([-1.0, -9 + j[1] - drawer, 0.5])
    t = np.linspace(0, 1, 9)[:, None]
    line = start + t * (end - start)
    mottle = np.sin(notch.x / 1.7 + notch.z / 2.9 + 3 * j[0]) * np.sin(notch.y / 2.3 - notch.z / 1.9 + 3 * j[1])
    mottle += 0.7 * np.sin(notch.x / 3.1 - notch.y / 3.7 + notch.z / 4.1 + 3 * j[2])
    halo = notch.cord(line[::4], np.full(3, 5.6 + 0.1 * knee.effusion)) + mottle
    notch.paint(0.7 * tones.fluid, notch.share(np.minimum(halo, room), 1.5) * min(0.1 + 0.05 * knee.effusion, 0.5))

    slack = 0.35 * max(drawer, 0)
    bend = np.array(
        [
            (-7.5, -7, -16),
            (-6, 8 + slack, -21 + j[3]),
            (-2, 22 + slack, -15),
            (0, 25 - 0.6 * drawer, 4),
            (0, 24 - drawer, 14),
        ]
    )
    s = np.linspace(0, 1, 9)
    posterior = np.column_stack([np.interp(s, np.linspace(0, 1, 5), axis) for axis in bend.T])
    posterior[1:-1] = (posterior[:-2] + 2 * posterior[1:-1] + posterior[2:]) / 4
    wide = block.box((-15, 9), (-16, 36), (-32, 22))
    wide.paint(tones.ligament, wide.share(wide.cord(posterior, np.linspace(4.4, 3.4, 9))))

    torn = tones.oedema
    sag, wave, phase = knee.sway
    middle = 0.55 * start + 0.45 * end + np.array([0, 1, 1])
    cloud = notch.ball(middle[0], middle[1], middle[2], 7.5, 11, 11)
    cloud = np.minimum(cloud + 1.2 * mottle, room)
    across = np.array([0.15, 0.75, 0.65])
    notch.paint(torn * (1 + 0.15 * mottle), notch.share(cloud, 5) * knee.swelling)
    if knee.acl == "intact":
        parts = [(line, np.linspace(4.3, 5.4, 9), tones.ligament * (1.2 + 0.15 * j[3] ** 2) + 0.3 * knee.mucoid * torn)]
    elif knee.acl == "wavy":
        curve = line + across * (sag * np.sin(np.pi * t) + wave * np.sin(3 * np.pi * t + phase) * np.sin(np.pi * t))
        parts = [(curve, np.linspace(3.6, 4.6, 9), 0.6 * tones.ligament + 0.4 * torn)]
    elif knee.acl == "gap":
        fall = across * 1.3 * sag
        upper, lower = line[:4] + t[:4] * 2.6 * fall, line[5:] + (1 - t[5:]) * 2.2 * fall
        parts = [
            (stump, np.linspace(3.5, 2.4, 4)[::way], 1.3 * tones.ligament + 0.2 * torn)
            for stump, way in ((upper, 1), (lower, -1))
        ]
    else:
        parts = [(line[7:] + np.array([0, 0, 1]), np.array([2.5, 4.0]), 1.3 * tones.ligament + 0.25 * torn)]
    for points, radius, value in parts:
        inside = notch.cord(points, radius)
        fibres = np.sin((notch.y * 0.75 + notch.z * 0.66) * 2.2 + notch.x)
        share = notch.share(np.minimum(inside, -_femur(notch) + 1), 0.0 if knee.acl == "intact" else 1.0)
        notch.paint(value * (1 + 0.35 * np.clip(fibres, 0, 1)), share)
