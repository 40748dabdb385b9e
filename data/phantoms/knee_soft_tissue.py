"""The soft tissue of the synthetic knee: leg, vessels, fluid, menisci, tendons and cruciate ligaments."""

import numpy as np

from data.phantoms.knee_anatomy import MUSCLES, Knee, Tones
from data.phantoms.knee_bones import femur_distance, tibia_distance
from data.phantoms.painting import Block, ellipse, intersection, norm

LEG = (
    (-100, -56, 58, 57), (-55, -57, 52, 50), (-34, -57.5, 48, 48), (-12, -55, 46, 47),
    (8, -47, 48, 46), (24, -40, 53, 46), (42, -34, 57, 48), (100, -29, 60, 50),
)  # fmt: skip
"""The deep fascia: rows of z, front y, back y, half width."""


def paint_leg(knee: Knee, block: Block, tones: Tones, unsaturated: float | np.ndarray) -> None:
    """Paint skin, fat and muscles; ``unsaturated`` is signal added to fat where fat saturation fails."""
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
        cut = block.around_tube(table, 4)
        part = block.cut(cut)
        inside = np.minimum(part.tube(table) + soft[cut], fascia[cut] - 1.2)
        part.paint(fat[cut], part.share(inside + 1.1))
        part.paint(flesh[cut], part.share(inside))
        part.paint(tones.fat, part.share(inside - 1.5) * streak[cut] * 0.5)


def paint_vessels(knee: Knee, block: Block, tones: Tones) -> None:
    """Paint popliteal artery and vein, the tibial nerve, and two veins under the skin."""
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


def paint_fluid(knee: Knee, block: Block, tones: Tones) -> None:
    """Paint fluid: the suprapatellar recess, the gutters beside the condyles, a popliteal cyst."""
    e, j = knee.effusion, knee.jitter[2]
    wavy = np.float32(0.35 * e) * np.sin(block.z / 6 + block.x / 9 + j[0])
    cut = block.index((-34, 34), (-56, -22), (-92, -38))
    part = block.cut(cut)
    level = part.along(np.array([-90, -60, -38]), np.array([-33.5, -37, -38]))
    across = (1 - norm(part.x / (20 + 1.2 * e), (part.z + 58) / (16 + 2 * e))) * 9
    sheet = 0.5 * e + 0.25 * wavy[cut] - np.abs(part.y - level + 0.3 * e) - 0.3
    part.paint(tones.fluid, part.share(intersection(sheet, across, 1.5)))
    cut = block.index((-50, 50), (-44, 32), (-56, 8))
    part = block.cut(cut)
    beside = np.clip((np.abs(part.x) - 30) / 5, 0, 1) * np.clip((12 - part.y) / 14, 0, 1)
    beside = beside * np.clip((-4 - part.z) / 8, 0, 1)
    before = np.clip((-16 - part.y) / 10, 0, 1) * np.clip((-14 - part.z) / 6, 0, 1)
    room = np.maximum(beside * (2.6 + 0.4 * e + wavy[cut]), before * (2.6 + 0.15 * e)) - 0.7
    inside = np.minimum(femur_distance(part) + room, np.minimum(part.z + 50 + 0.015 * (part.y + 15) ** 2, 3 - part.z))
    part.paint(tones.fluid, part.share(np.minimum(inside, 40 - np.abs(part.x))))
    if knee.cyst:
        part = block.box((-34, -8), (24, 56), (-30, 34))
        sac = part.ball(-19, 40 + j[1], 2 + 4 * j[2], 0.8 * knee.cyst, knee.cyst, 2 * knee.cyst)
        part.paint(tones.fluid, part.share(sac))
        part.paint(tones.fluid, part.share(part.cord(np.array([(-18, 24, -8), (-19, 40, 0)]), np.full(2, 1.2))))


def paint_menisci(knee: Knee, block: Block, tones: Tones) -> None:
    """Paint the menisci, two rings of wedges; the bones painted later cut their upper and lower faces."""
    for side, x, a, b in ((-1, -21.5, 17.0, 23.0), (1, 21.0, 16.0, 18.5)):
        part = block.box((x - 21, x + 21), (-28, 30), (-11, 11))
        u, v = part.x - x, part.y - 1 + np.float32(knee.shift)
        deep = ellipse(u, v, a, b)
        width = 8.5 + 2.5 * np.clip(v / 14, 0, 1) * (1.2 if side < 0 else 0.8)
        middle = np.float32(-2.3) + np.float32(0.07) * v
        wedge = 4.6 * (1 - deep / width) + 0.4 - np.abs(part.z - middle)
        body = np.minimum(intersection(deep, width - deep, 0.6), wedge)
        body = np.minimum(body, np.maximum(np.abs(v) - 9, 7.5 + side * u))  # open towards the notch
        part.paint(tones.meniscus, part.share(body))
        if side == knee.tear:
            slope, place = knee.tear_place
            cleft = 0.75 - np.abs(part.z - middle - np.float32(slope) * (deep - np.float32(place) * width))
            part.paint(0.8 * tones.fluid, part.share(np.minimum(body, cleft), 0.4) * (v > 5) * (deep < 0.8 * width))
            fringe = np.minimum(body + 1.5, 3.5 - norm(deep - 0.9 * width, v - 15))
            part.paint(0.6 * tones.fluid, part.share(fringe, 1.5) * 0.6)


def paint_tendons(knee: Knee, block: Block, tones: Tones) -> None:
    """Paint extensor mechanism, collateral ligaments, iliotibial band, popliteus tendon."""
    j, back = knee.jitter[4], -knee.shift
    straps = (
        (0.7, ((-100, 0, -46, 20, 3.5), (-75, 0, -47, 17, 3.6), (-54, 0, -51, 14, 3), (-46, 0, -53, 12, 0.5))),
        (0.7, ((-52, 0, -54, 12, 0.6), (-35, 0, -54.2, 15, 1.1), (-18, 0, -52, 14, 1.8),
               (-8, 0, -48.5 + 0.3 * back, 13, 2.5))),
        (0.7, ((-9, 0, -49 + 0.3 * back, 13, 2.5), (22, 0, -33.5 + 0.9 * back, 12, 2.5),
               (40, 0, -25.5 + back, 9, 2.2))),
        (1.0, ((-30, -38.5, -1, 1.4, 4), (-22, -39.5, -1, 1.5, 5), (0, -41.5, -2, 1.3, 5), (22, -36.8, -5, 1.2, 5),
               (35, -31.5, -6, 1.1, 5), (50, -24.5, -8, 1, 4))),
        (1.0, ((-24, 38.5, 4, 2, 3), (-6, 41.5, 9, 1.7, 2.2), (15, 38, 16, 2, 2.2))),
        (1.0, ((-100, 49, -14, 1.4, 12), (-30, 43.5, -14, 1.3, 9), (0, 41.5, -16, 1.6, 7), (14, 34, -19, 1, 4))),
        (1.2, ((-16, 37.5, 5, 2, 2), (-4, 33, 16, 2.2, 2.4), (8, 24, 23, 2, 2.2))),
    )  # fmt: skip
    for tone, rows in straps:
        table = np.array(rows, float)
        table[:, 1] += 0.5 * j[0]
        part = block.cut(block.around_tube(table, 3))
        part.paint(tone * tones.ligament, part.share(part.tube(table)))


def paint_cruciates(knee: Knee, block: Block, tones: Tones) -> None:
    """Paint the notch: fat and fluid, PCL, and the ACL, intact or torn."""
    j, drawer = knee.jitter[5], knee.shift
    notch = block.box((-14, 14), (-24, 34), (-40, 12))
    # the notch holds synovial fat in front and fluid along the ligaments
    gap = np.minimum(-femur_distance(notch), -tibia_distance(knee, notch)) - 0.5
    room = np.minimum(gap, 11 - np.abs(notch.x))
    filled = np.minimum(room, np.minimum(notch.y + 16, 22 - notch.y))
    notch.paint(0.85 * tones.fat + 0.1 * tones.fluid, notch.share(filled, 3))

    start = np.array([6.6 + 0.4 * j[0], 12.5 + j[1], -25 + j[2]])
    end = np.array([-1.0, -9 + j[1] - drawer, 0.5])
    t = np.linspace(0, 1, 9)[:, None]
    line = start + t * (end - start)
    mottle = np.sin(notch.x / 1.7 + notch.z / 2.9 + 3 * j[0]) * np.sin(notch.y / 2.3 - notch.z / 1.9 + 3 * j[1])
    mottle += 0.7 * np.sin(notch.x / 3.1 - notch.y / 3.7 + notch.z / 4.1 + 3 * j[2])
    halo = notch.cord(line[::4], np.full(3, 5.6 + 0.1 * knee.effusion)) + mottle
    notch.paint(0.7 * tones.fluid, notch.share(np.minimum(halo, room), 1.5) * min(0.1 + 0.05 * knee.effusion, 0.5))

    slack = 0.35 * max(drawer, 0)
    above = [(-7.5, -7, -16), (-6, 8 + slack, -21 + j[3]), (-2, 22 + slack, -15)]
    bend = np.array([*above, (0, 25 - 0.6 * drawer, 4), (0, 24 - drawer, 14)])
    s = np.linspace(0, 1, 9)
    posterior = np.column_stack([np.interp(s, np.linspace(0, 1, 5), axis) for axis in bend.T])
    posterior[1:-1] = (posterior[:-2] + 2 * posterior[1:-1] + posterior[2:]) / 4
    wide = block.box((-15, 9), (-16, 36), (-32, 22))
    wide.paint(tones.ligament, wide.share(wide.cord(posterior, np.linspace(4.4, 3.4, 9))))

    torn = tones.oedema
    sag, wave, phase = knee.sway
    middle = 0.55 * start + 0.45 * end + np.array([0, 1, 1])
    cloud = np.minimum(notch.ball(middle[0], middle[1], middle[2], 7.5, 11, 11) + 1.2 * mottle, room)
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
        radius, value = np.linspace(3.5, 2.4, 4), 1.3 * tones.ligament + 0.2 * torn
        parts = [(upper, radius, value), (lower, radius[::-1], value)]
    else:
        parts = [(line[7:] + np.array([0, 0, 1]), np.array([2.5, 4.0]), 1.3 * tones.ligament + 0.25 * torn)]
    for points, radius, value in parts:
        inside = notch.cord(points, radius)
        fibres = np.sin((notch.y * 0.75 + notch.z * 0.66) * 2.2 + notch.x)
        share = notch.share(np.minimum(inside, -femur_distance(notch) + 1), 0.0 if knee.acl == "intact" else 1.0)
        notch.paint(value * (1 + 0.35 * np.clip(fibres, 0, 1)), share)
