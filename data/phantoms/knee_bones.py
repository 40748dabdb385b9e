"""The bones of the synthetic knee: femur, tibia, fibula and patella, with cartilage and marrow."""

import numpy as np

from data.phantoms.knee_anatomy import Knee, Tones
from data.phantoms.painting import Block, bump, intersection, norm, squarish, union


def femur_distance(block: Block) -> np.ndarray:
    """Distance to the surface of the femur."""
    x, y, z = block.x, block.y, block.z
    groove = np.float32(5.5) * bump(x + 1, 10)
    inner = np.where(x > 0, x - 23.5, x + 23.5)
    small = (x < 0) * np.float32(1.0)  # the medial condyle is longer and narrower
    rear = np.float32(19.5) - norm(y - 8 - small, z + 21.5)
    front = np.float32(23.5) - norm(y + 5, z + 27.5)
    condyles = intersection(union(rear, front, 5), 14.2 - small - np.abs(inner), 11.5)
    trochlea = 24 - groove - norm(y + 9, z + 29.5)
    trochlea = intersection(trochlea, 33 - np.abs(x - 1), 9)
    flare = np.clip((z + 92) / 60, 0, 1)
    flare = flare * flare * (3 - 2 * flare)
    shaft = squarish(x, y + 11 - 5 * flare, 14 + 23.5 * flare, 14 + 7 * flare)
    bone = union(union(condyles, trochlea, 4), intersection(shaft, -20 - z, 6), 8)
    roof = (y + 11) * np.float32(0.68) + (z + 10) * np.float32(0.733)  # Blumensaat's line
    return intersection(bone, -intersection(roof, 9.8 - np.abs(x), 7), 2.5)


def tibia_distance(knee: Knee, block: Block) -> np.ndarray:
    """Distance to the surface of the tibia."""
    x, y, z = block.x, block.y + np.float32(knee.shift), block.z
    top = 2.2 + 0.08 * y - 5.5 * bump(np.abs(x) - 5.5, 3.4) * bump(y - 1, 8) - 0.6 * np.clip(x / 20, -1, 1)
    top += 1.2 * bump(x + 22, 10) * bump(y, 18) - 0.6 * bump(x - 22, 9) * bump(y - 6, 14)
    taper = 1 / (1 + (np.maximum(z - 9, 0) / 31) ** 2)
    side = squarish(x - 1, y + 5 - 6 * taper, 13.5 + 25 * taper, 14.5 + 10.5 * taper)
    bone = intersection(side, z - top, 3)
    return union(bone, block.ball(0, -15 - knee.shift, 36, 8, 11, 13), 5)


def paint_bones(knee: Knee, block: Block, tones: Tones) -> None:
    """Paint femur, tibia, fibula and patella."""
    j = knee.jitter[3]
    femur = block.box((-46, 46), (-40, 36), (-200, 6))
    inside = femur_distance(femur)
    x, y, z = femur.x, femur.y, femur.z
    covered = np.clip((np.abs(x) - 7.5) / 2, 0, 1) * (y > -14) + (y <= -14)
    covered = covered * np.clip((37.5 - np.abs(x)) / 3, 0, 1) * np.clip((z + 49 - 0.35 * y) / 4, 0, 1)
    covered = covered * np.clip(np.maximum((z + 32) / 4, np.maximum(-y - 16, y - 2) / 4), 0, 1)
    cx, cy, depth = knee.defect
    covered = covered * (1 - depth * bump(norm(x - cx, y - cy), 6.5))
    seam = z + 38 + 5 * bump(x, 14) - 0.06 * np.abs(x)
    _bone(knee, femur, tones, inside, (2.1 + 0.2 * j[0]) * covered, seam)

    tibia = block.box((-46, 46), (-40, 36), (-8, 200))
    inside = tibia_distance(knee, tibia)
    x, y = tibia.x, tibia.y + np.float32(knee.shift)
    plate = 1 - norm((np.abs(x) - 20) / 15, y / 19)
    covered = np.clip(plate * 5, 0, 1) * np.clip((16 - tibia.z) / 4, 0, 1)
    _bone(knee, tibia, tones, inside, (1.9 + 0.2 * j[1]) * covered, tibia.z - 19 - 0.05 * np.abs(x) + 0.15 * y)

    fibula = block.box((24, 46), (4, 30), (6, 200))
    head = ((11, 34.3, 17, 5, 5), (14, 34.5, 17, 7.5, 7.5), (20, 35, 17, 8.5, 8))
    shaft = ((34, 36, 17, 5.5, 5.5), (100, 35, 15, 5.5, 6))
    _bone(knee, fibula, tones, fibula.tube(np.array(head + shaft)), 0, fibula.z - 24)

    patella = block.box((-28, 28), (-60, -26), (-62, -8))
    ridge = 1.2 * float(j[2])
    inside = patella.ball(ridge, -42.5, -35, 23, 12.5, 21.5)
    back = -33.6 - 0.27 * np.abs(patella.x - ridge) - patella.y
    inside = intersection(inside, back - 0.15 * np.maximum(-22 - patella.z, -3), 2.5)
    facing = np.clip((patella.y + 43) / 3, 0, 1) * np.clip((-19 - patella.z) / 4, 0, 1)
    _bone(knee, patella, tones, inside, 2.7 * facing, None)


def _bone(
    knee: Knee, block: Block, tones: Tones, inside: np.ndarray, cartilage: np.ndarray | float, seam: np.ndarray | None
) -> None:
    """Paint one bone: cartilage, cortex, marrow with oedema, and the line of the closed growth plate (``seam``)."""
    block.paint(tones.cartilage, block.share(inside + cartilage))
    block.paint(tones.cortex, block.share(inside))
    marrow = tones.marrow * (1 + 0.02 * block.grain)
    if seam is not None:
        marrow *= 1 - 0.35 * bump(seam + 0.7 * block.grain, 0.9)
    rough = 3.0 * np.sin(block.x / 4 + block.z / 5) * np.sin(block.y / 4.5)
    for x, y, z, radius, strength in knee.bruises:
        away = np.sqrt((block.x - x) ** 2 + (block.y - y) ** 2 + ((block.z - z) / 1.2) ** 2) + rough
        marrow += (0.6 * (tones.oedema - tones.marrow) * strength) * np.clip(1.5 - away / radius, 0, 1)
    block.paint(marrow, block.share(inside - 1.1, 0.4))
