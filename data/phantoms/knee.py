"""Synthetic knee MRI in the file layout of MRNet, for demonstrations and tests.

``python -m data.phantom --dataset mrnet --out DIR --subjects 120 --sheet sheet.png``

One 3D knee per exam, imaged three times as in MRNet: sagittal T2 with fat saturation, coronal T1, axial proton
density with fat saturation. The same seed gives the same bytes; exam k does not depend on the number of exams. Scores
on a phantom are no evidence about patients.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from core.cache import made_once
from core.files import write_atomically
from data.phantoms import knee_soft_tissue as soft_tissue
from data.phantoms.checks import Matrix, check_range, new_data_set
from data.phantoms.knee_anatomy import Knee, Tones, deform, draw_knee
from data.phantoms.knee_bones import paint_bones
from data.phantoms.painting import LEVELS, Block

KNEE_VERSION = 2
"""Part of the cache folder's name: increase it when the files change."""

KNEE_EXAMS, KNEE_SEED = 120, 0

PLANES = ("sagittal", "coronal", "axial")

START = "fork" if sys.platform == "linux" else "spawn"
"""Start method of the processes that render exams."""

TASKS = ("acl", "meniscus", "abnormal")

POSITIVE = {"train": 0.18, "valid": 0.45}
"""Share of ACL tears; in MRNet 208 of 1130 and 54 of 120."""

FIRST_VALID = 1130
"""MRNet numbers its exams consecutively: 0000-1129 train, from 1130 on valid."""

SEQUENCES = {
    "sagittal": Tones(
        fat=0.29, marrow=0.23, muscle=0.41, fluid=1.1, cartilage=0.62, meniscus=0.07,
        ligament=0.11, oedema=0.75, artery=0.1, vein=0.5, skin=0.3,
    ),
    "coronal": Tones(
        fat=0.88, marrow=0.73, muscle=0.36, fluid=0.24, cartilage=0.45, meniscus=0.1,
        ligament=0.12, oedema=0.3, artery=0.12, vein=0.25, skin=0.4,
    ),
    "axial": Tones(
        fat=0.29, marrow=0.25, muscle=0.47, fluid=1.0, cartilage=0.66, meniscus=0.12,
        ligament=0.13, oedema=0.7, artery=0.5, vein=0.75, skin=0.35,
    ),
}  # fmt: skip
"""Signal per plane, relative to the brightest common tissue; tissues are ordered as in real sequences."""

SPAN = {"sagittal": (-44, 44), "coronal": (-56, 44), "axial": (-66, 44)}
"""Range covered by the slices: x, y or z in mm."""

SHEET = (
    ("sagittal", (-22, 0, 0)), ("sagittal", (22, 0, 0)), ("sagittal", (-2, 0, 0)), ("sagittal", (4, 0, 0)),
    ("coronal", (0, 1, -10)), ("coronal", (0, 12, -10)), ("axial", (0, 0, -32)), ("axial", (0, 0, -14)),
)  # fmt: skip
"""Plane and a point (mm) of each column of a contact sheet: medial and lateral compartment, PCL, ACL, anterior and
posterior notch, patella, condyles."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One exam: the knee and its labels."""

    case: str
    """Four digits, unique over both splits."""
    split: str
    index: int
    """0-based index in its split."""
    knee: Knee
    labels: dict[str, int]
    """0 or 1 for each of TASKS."""
    left: bool
    """Whether it is a left knee."""


def draw_exam(seed: int, split: str, index: int) -> Exam:
    """Draw exam ``index`` (0-based) of a split ("train" or "valid"), without rendering images."""
    number = list(POSITIVE).index(split)
    rate = POSITIVE[split]
    # evenly spread from a random start: any number of exams has the right share of tears to within one
    torn = (index * rate + np.random.default_rng([seed, number]).random()) % 1 < rate
    rng = np.random.default_rng([seed, number, index, 0])
    knee, meniscus, abnormal = draw_knee(rng, torn)
    labels = dict(zip(TASKS, map(int, (torn, meniscus, abnormal)), strict=True))
    case, left = f"{index + FIRST_VALID * number:04d}", bool(rng.random() < 0.5)
    return Exam(case=case, split=split, index=index, knee=knee, labels=labels, left=left)


def image_exam(exam: Exam, seed: int, plane: str, matrix: Matrix = "small") -> np.ndarray:
    """Image one plane of an exam.

    Returns:
        (frames, side, side) uint8: 16..28 frames of 104 pixels (small) or 17..61 of 256 (large). Sagittal frames
        go from one side to the other, coronal ones backwards, axial ones down the leg; femur up, patella left
        or up.
    """
    knee, rng = exam.knee, _random(exam, seed, plane)
    block = _voxels(exam, plane, rng, matrix)
    tones = SEQUENCES[plane]
    names = [name for name in Tones.__dataclass_fields__ if name != "cortex"]
    tones = replace(tones, **{name: getattr(tones, name) * rng.uniform(0.88, 1.12) for name in names})
    corner = block.x * rng.normal(0, 0.6) + block.y * rng.normal(0, 0.4) + block.z * rng.normal()
    # fat saturation may fail in a corner; T1 (coronal) has none
    unsaturated = 0.0 if plane == "coronal" else rng.uniform(0, 0.5) * np.clip(corner / 60 - 0.7, 0, 1)
    soft_tissue.paint_leg(knee, block, tones, unsaturated)  # back to front
    for paint in (
        soft_tissue.paint_vessels, soft_tissue.paint_fluid, soft_tissue.paint_menisci, paint_bones,
        soft_tissue.paint_tendons, soft_tissue.paint_cruciates,
    ):  # fmt: skip
        paint(knee, block, tones)

    gain = 1 + rng.uniform(-0.003, 0.003) * block.x + rng.uniform(-0.003, 0.003) * block.z
    gain *= 1 + rng.uniform(0, 0.35) * (np.hypot(block.x, block.y) / 55) ** 2  # the coil lies around the leg
    noise = np.float32(rng.uniform(0.015, 0.045))
    real, imaginary = (rng.standard_normal(block.x.shape, dtype=np.float32) * noise for _ in range(2))
    blurred = gaussian_filter(block.signal, (0, 0.35, 0.35), truncate=2) * gain
    return np.clip(np.hypot(blurred + real, imaginary) * rng.uniform(190, 280), 0, 255).astype(np.uint8)


def locate(exam: Exam, seed: int, plane: str, points: np.ndarray, matrix: Matrix = "small") -> np.ndarray:
    """Voxel positions, in the stack of ``image_exam``, of points (..., 3) x, y, z in mm of the standard right knee.

    Returns:
        (..., 3) frame, row, column, not rounded; accurate to 3 mm, as the deformation of the knee is ignored.
    """
    to_index = _voxels(exam, plane, _random(exam, seed, plane), matrix).to_index
    return np.asarray(points) @ to_index[:, :3].T + to_index[:, 3]


def _random(exam: Exam, seed: int, plane: str) -> np.random.Generator:
    return np.random.default_rng([seed, list(POSITIVE).index(exam.split), exam.index, 1 + PLANES.index(plane)])


def _voxels(exam: Exam, plane: str, rng: np.random.Generator, matrix: Matrix) -> Block:
    """An unpainted block: the coordinates of every voxel, in mm of the standard right knee."""
    low, high = SPAN[plane]
    if matrix == "small":
        side, least, most, spacing = 104, 16, 28, rng.uniform(4.2, 6)
    else:
        side, least, most, spacing = 256, 17, 61, rng.choice([1.8, 3, 3.5, 4, 4.5, 5], p=[0.1] + [0.18] * 5)
    frames = int(np.clip(round((high - low) * exam.knee.size / spacing), least, most))
    shape, pixel = (frames, side, side), rng.uniform(130, 152) / side
    thickness = (high - low) * exam.knee.size / frames

    right, back, down = np.eye(3)
    axes = {"sagittal": (right, down, back), "coronal": (back, down, right), "axial": (down, back, right)}[plane]
    tilt, turn, roll = rng.normal(0, (0.04, 0.05, 0.04))  # position of the patient and orientation of the slices
    rotation = np.array([[1, -turn, roll], [turn, 1, -tilt], [-roll, tilt, 1]])
    rotation = np.linalg.qr(rotation)[0] * np.sign(np.diag(np.linalg.qr(rotation)[1]))
    mirror = np.diag([-1.0 if exam.left else 1.0, 1, 1])
    if plane == "sagittal" and rng.random() < 0.3:
        axes = (-axes[0], *axes[1:])  # some stacks start from the other side
    steps = np.column_stack(axes) * (thickness, pixel, pixel)
    centre = np.array([0.0, -3.0, -8.0])
    depth = PLANES.index(plane)
    centre[depth] = (low + high) / 2
    centre += rng.normal(0, 2.5, 3)
    to_mm = mirror @ rotation @ steps / exam.knee.size
    origin = centre * np.array([-1 if exam.left and depth else 1, 1, 1])
    origin = origin - to_mm @ ((np.array(shape) - 1) / 2)

    grid = [axis.astype(np.float32) for axis in np.ogrid[tuple(slice(n) for n in shape)]]
    coordinates = [
        np.float32(o) + np.float32(a) * grid[0] + np.float32(b) * grid[1] + np.float32(c) * grid[2]
        for (a, b, c), o in zip(to_mm, origin, strict=True)
    ]
    inverse = np.linalg.inv(to_mm)
    sigma = (0.6, 0.6, 0.6) if plane == "axial" else (0.4, 3.0 / pixel, 0.6)  # fibres run along the leg
    grain = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=2)
    x, y, z = deform(exam.knee, *coordinates)
    return Block(
        x=x, y=y, z=z, level=np.clip((z - LEVELS[0]) * 2 + 0.5, 0, len(LEVELS) - 1).astype(np.intp),
        signal=np.zeros(shape, np.float32), grain=grain / grain.std(), width=1.15 * pixel / exam.knee.size,
        to_index=np.column_stack([inverse, -inverse @ origin]),
    )  # fmt: skip


def write_mrnet(out: Path, exams: int, seed: int, matrix: Matrix = "small") -> None:
    """Write ``exams`` training exams and a third as many validation exams, with the same files as MRNet.

    Args:
        out: folder for {train,valid}/{sagittal,coronal,axial}/NNNN.npy and {train,valid}-{task}.csv.
        exams: 3..1130.

    Raises:
        UserError: if a number is out of range or ``out`` already holds train or valid.
    """
    check_range("subjects", exams, 3, FIRST_VALID)
    with new_data_set(out, list(POSITIVE), seed) as folder:
        _write_splits(folder, exams, seed, matrix)


def _write_splits(out: Path, exams: int, seed: int, matrix: Matrix) -> None:
    for split, count in {"train": exams, "valid": exams // 3}.items():
        drawn = [draw_exam(seed, split, index) for index in range(count)]
        for plane in PLANES:
            (out / split / plane).mkdir(parents=True)
        stacks = [(exam, plane) for exam in drawn for plane in PLANES]
        with ProcessPoolExecutor(os.cpu_count(), get_context(START)) as pool:  # each stack has its own random seed
            for done in [pool.submit(_save_stack, out / split, *stack, seed, matrix) for stack in stacks]:
                done.result()
        for task in TASKS:
            lines = [f"{exam.case},{exam.labels[task]}\n" for exam in drawn]
            (out / f"{split}-{task}.csv").write_text("".join(lines))


def _save_stack(folder: Path, exam: Exam, plane: str, seed: int, matrix: Matrix) -> None:
    np.save(folder / plane / f"{exam.case}.npy", image_exam(exam, seed, plane, matrix))


def demo_knee_root() -> Path:
    """The demonstration set of knees, written to the cache folder on first use."""
    return made_once(
        f"phantom-mrnet-v{KNEE_VERSION}",
        f"writing {KNEE_EXAMS * 4 // 3} synthetic knees in {{folder}}, once (about 40 s)",
        lambda folder: write_mrnet(folder, KNEE_EXAMS, KNEE_SEED),
    )


def write_knee_sheet(file: Path, seed: int, matrix: Matrix = "small") -> None:
    """Write a contact sheet (PNG): rows are the first normal knee, the first wavy ACL and the first missing ACL.

    Columns are those of SHEET. The exams of ``seed`` are rendered again, so no folder is read.
    """
    from PIL import Image

    first: dict[str, Exam] = {}
    for exam in (draw_exam(seed, "train", index) for index in range(FIRST_VALID)):
        if exam.knee.acl != "intact" or not exam.labels["abnormal"]:
            first.setdefault(exam.knee.acl, exam)
    side = 192
    sheet = Image.new("L", (len(SHEET) * side, 3 * side))
    for row, state in enumerate(("intact", "wavy", "gone")):
        exam = first[state]
        stacks = {plane: image_exam(exam, seed, plane, matrix) for plane in PLANES}
        for column, (plane, point) in enumerate(SHEET):
            frame = round(float(locate(exam, seed, plane, np.array(point), matrix)[0]))
            picture = Image.fromarray(stacks[plane][frame]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * side, row * side))
    file.parent.mkdir(parents=True, exist_ok=True)
    quantized = sheet.quantize(28, dither=Image.Dither.NONE)
    write_atomically(file, lambda path: quantized.save(path, optimize=True))
