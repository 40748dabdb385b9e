"""One subject's knee: its sizes and injuries, drawn at random.

Coordinates are mm in a standard right knee of adult size, origin between the condyles on the joint line: x lateral,
y posterior, z inferior (down the leg).

Sizes follow the usual adult ranges: femoral condyles 76 mm wide and 60 mm deep, ACL 33 mm long at 50 degrees
to the plateau, cartilage 2-3 mm, menisci 9-12 mm wide and 5-7 mm high, patellar tendon 45 mm long.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Acl = Literal["intact", "wavy", "gap", "gone"]

MUSCLES = {
    "semimembranosus": (
        (-100, -20, 36, 18, 16), (-60, -24, 36, 16, 15), (-30, -27, 35, 11, 11), (-5, -27, 33, 6, 7),
        (12, -26, 29, 1, 1),
    ),
    "biceps femoris": (
        (-100, 24, 36, 17, 16), (-60, 29, 35, 14, 14), (-30, 35, 31, 8, 11), (0, 39, 25, 4, 7), (16, 38, 20, 1, 1),
    ),
    "sartorius": ((-100, -44, 14, 8, 13), (-50, -44, 20, 6, 12), (-10, -42, 25, 3.5, 9), (25, -38, 20, 1, 4)),
    "vastus medialis": (
        (-100, -28, -20, 21, 22), (-70, -32, -20, 16, 21), (-45, -35, -21, 8, 16), (-28, -33, -24, 1, 4),
    ),
    "vastus lateralis": ((-100, 30, -18, 20, 23), (-75, 34, -17, 13, 20), (-55, 37, -16, 6, 13), (-42, 37, -16, 1, 4)),
    "vastus intermedius": ((-100, 0, -32, 20, 9), (-80, 0, -33, 13, 5), (-66, 0, -34, 1, 1)),
    "popliteus": ((6, 22, 22, 2, 2), (20, 8, 24, 12, 5), (45, -6, 18, 14, 6), (72, -10, 15, 5, 3)),
    "soleus": ((22, 30, 26, 2, 2), (45, 18, 27, 17, 8), (100, 6, 27, 30, 13)),
    "tibialis anterior": ((14, 26, -8, 2, 2), (40, 26, -7, 11, 13), (100, 25, -7, 14, 15)),
    "peroneus": ((26, 39, 4, 2, 3), (55, 38, 5, 9, 13), (100, 36, 6, 11, 15)),
    "medial gastrocnemius": (
        (-30, -16, 34, 2, 2), (-10, -20, 38, 10, 8), (20, -21, 41, 17, 13), (100, -19, 43, 22, 16),
    ),
    "lateral gastrocnemius": ((-28, 20, 33, 2, 2), (-8, 21, 36, 9, 8), (20, 19, 41, 15, 12), (100, 19, 43, 19, 15)),
}  # fmt: skip
"""The muscles as elliptic tubes along z: rows of z, x and y of the centre, two semi-axes; from 100 mm on unchanged."""


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
    """Displacement of the tibia to the front (anterior drawer)."""
    tear: float
    """Side of the torn meniscus: -1 medial, 1 lateral, 0 none."""
    tear_place: tuple[float, float]
    """Slope of the tear and its position along the wedge (0..1)."""
    bruises: np.ndarray
    """(n, 5) marrow oedema: x, y, z of the centre, radius, strength."""
    defect: tuple[float, float, float]
    """Cartilage defect of the femur: x, y of the centre, and depth as a share of the cartilage."""
    cyst: float
    """Radius of a popliteal (Baker) cyst, 0 for none."""
    muscles: np.ndarray
    """(12, 3) displacement x, y and thickness of each muscle, unit variance."""
    mucoid: float
    """Extra brightness of an intact ACL, 0..1: a normal variant."""
    swelling: float
    """Strength of the oedema around the ACL, 0..1: little in an old tear, some around an inflamed intact ACL."""
    sway: tuple[float, float, float]
    """Shape of a torn ACL: sag (mm), waviness (mm) and phase."""
    warp: np.ndarray
    """(3, 2, 2) smooth deformation of the whole knee: axis, wave, (amplitude in mm, phase)."""
    jitter: np.ndarray
    """(6, 4) small variations of single structures, unit variance."""


def draw_knee(rng: np.random.Generator, torn: bool) -> tuple[Knee, bool, bool]:
    """Draw a knee whose ACL is torn or not.

    Returns:
        The knee, whether a meniscus is torn, and whether anything is abnormal.
    """
    acl: Acl = str(rng.choice(["wavy", "gap", "gone"], p=[0.36, 0.3, 0.34])) if torn else "intact"  # type: ignore[assignment]
    meniscus = bool(rng.random() < (0.6 if torn else 0.28))
    other = rng.random(4) < (0.5, 0.3, 0.25, 0.12)  # effusion, bruise, defect, cyst
    if not (torn or meniscus) and rng.random() < 0.32:
        other[:] = False  # a normal knee
    abnormal = torn or meniscus or bool(other.any())
    spots = [(23, -9, -8, 9, 1), (24, 15, 9, 9, 1)]  # pivot shift: lateral condyle, posterolateral plateau
    usual = rng.random(2) < (0.68 if torn else 0.0)
    chosen = [spot for spot, present in zip(spots, usual, strict=True) if present]
    if other[1]:
        sites = [*spots, (-24, -4, -9, 9, 1), (-24, 2, 9, 9, 1), (6, -45, -32, 7, 1), (24, 2, -9, 8, 1)]
        chosen.append(sites[rng.integers(len(sites))])
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


def deform(knee: Knee, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deform standard coordinates smoothly (by 1 to 2 mm), so that no two knees have the same outlines."""
    moved = []
    for axis, first, second, ((a, p), (b, q)) in zip((x, y, z), (y, z, x), (z, x, y), knee.warp, strict=True):
        moved.append(axis + a * np.sin(first / 31 + 3 * p) + b * np.sin(second / 34 + 3 * q))
    return moved[0], moved[1], moved[2]


@dataclass(frozen=True, kw_only=True)
class Tones:
    """Signal of each tissue in one sequence; the brightest common one, fluid or fat, is about 1."""

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
