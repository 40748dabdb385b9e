"""Synthetic cardiac cine MRI in the file layout of ACDC, for demonstrations and tests.

``python -m data.phantom --dataset acdc --out DIR --subjects 30 --sheet sheet.png``

The same seed gives the same bytes; subject k does not depend on the number of subjects. The files have the pitfalls of
the real ones: identity affines while pixdim holds the spacing, int16 and float32 mixed, ED not always frame 1, slices
without labels, intensities above 255. Scores on a phantom are no evidence about patients.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from core.cache import made_once
from core.files import write_atomically
from data.phantoms.checks import Matrix, check_range, new_data_set
from data.phantoms.chest import Scan
from data.phantoms.heart import GROUPS, Heart, draw_heart, end_systole
from data.phantoms.short_axis import LV, MYO, RV, image_subject
from data.readers.acdc import read_info

DEMO_VERSION = 2
"""Part of the cache folder's name: increase it when the files change."""

DEMO_SUBJECTS, DEMO_FRAMES, DEMO_SEED = 30, 14, 0

OUTLINES = {RV: "deepskyblue", MYO: "lime", LV: "red"}
"""Colours of the labels on a contact sheet."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """All properties of one subject except organs and noise."""

    number: int
    heart: Heart
    scan: Scan
    scale: float
    """Stored intensity of blood."""
    dtype: type
    affine: np.ndarray
    first: int
    """Index of the frame at end diastole."""
    stature: tuple[float, float]
    """Height (cm) and weight (kg)."""


def group_of(number: int) -> str:
    """The group of subject ``number`` (1-based): two of each in every ten.

    The sequence shifts by two every ten, so that the test subjects (1, 11, 21, ...) and the validation subjects
    (2, 12, 22, ...) cover all five groups as early as possible.
    """
    block, index = divmod(number - 1, 10)
    return GROUPS[(index + 2 * block) % len(GROUPS)]


def draw_subject(seed: int, number: int, matrix: Matrix = "small") -> Subject:
    """Draw subject ``number`` (1-based) of the data set ``seed``, without rendering images."""
    rng = np.random.default_rng([seed, number, 0])
    heart = draw_heart(rng, group_of(number))
    if matrix == "small":
        pixel, (rows, columns) = rng.uniform(1.9, 2.3), 4 * rng.integers(26, 35, 2)
    else:
        pixel, (rows, columns) = rng.uniform(1.2, 1.8), 8 * rng.integers(24, 37, 2)
    thickness = float(rng.choice([5, 7, 8, 9, 10], p=[0.06, 0.1, 0.2, 0.14, 0.5]))
    start = rng.uniform(-0.9, 0.5) * thickness
    slices = int(np.clip(round((heart.length + heart.wall - start) / thickness), 6, 18))
    turn = rng.normal(0, 0.22) + rng.choice([0, np.pi / 2], p=[0.88, 0.12])
    scan = Scan(
        rows=int(rows), columns=int(columns), pixel=float(np.float32(pixel)), thickness=thickness,
        heights=start + thickness * np.arange(slices),
        shifts=rng.normal(0, 1.2, (slices, 2)),
        centre=(rows * rng.uniform(0.42, 0.5), columns * rng.uniform(0.42, 0.52)),
        turn=turn, noise=rng.uniform(0.02, 0.05), coil=rng.uniform(0.3, 1.5), lung=rng.uniform(0.04, 0.13),
        fatness=rng.uniform(7, 17), banding=rng.random() < 0.35,
    )  # fmt: skip
    affines = (np.diag([-1.0, -1, 1, 1]), np.eye(4), np.diag([-scan.pixel, -scan.pixel, thickness, 1]))
    return Subject(
        number=number, heart=heart, scan=scan, scale=rng.uniform(110, 420),
        dtype=np.float32 if rng.random() < 0.25 else np.int16,
        affine=affines[rng.choice(3, p=[0.5, 0.2, 0.3])],
        first=int(rng.integers(3, 12)) if rng.random() < 0.12 else 0,
        stature=(float(rng.integers(152, 194)), float(rng.integers(50, 108))),
    )  # fmt: skip


def write_acdc(out: Path, subjects: int, seed: int, frames: int = DEMO_FRAMES, matrix: Matrix = "small") -> None:
    """Write ``out/training/patientNNN`` for patients 1..subjects, with the same files as ACDC.

    Raises:
        UserError: if a number is out of range or ``out/training`` exists.
    """
    check_range("subjects", subjects, 1, 100)
    check_range("frames", frames, 4, 99)
    with new_data_set(out, ["training"], seed) as folder:
        for number in range(1, subjects + 1):
            subject = draw_subject(seed, number, matrix)
            _write_subject(folder / "training" / f"patient{number:03d}", subject, seed, frames)


def demo_root() -> Path:
    """The demonstration set of hearts, written to the cache folder on first use."""
    return made_once(
        f"phantom-acdc-v{DEMO_VERSION}",
        f"writing {DEMO_SUBJECTS} synthetic subjects in {{folder}}, once (about 20 s)",
        lambda folder: write_acdc(folder, DEMO_SUBJECTS, DEMO_SEED),
    )


def _write_subject(folder: Path, subject: Subject, seed: int, frames: int) -> None:
    body, noise = (np.random.default_rng([seed, subject.number, stream]) for stream in (1, 2))
    images, labels = image_subject(subject.heart, subject.scan, frames, body, noise)
    first = subject.first % frames
    images, labels = np.roll(images, first, axis=0), np.roll(labels, first, axis=0)
    # whole numbers in float32 files too, as in the real ones
    images = np.rint(images * subject.scale).clip(0, 32767).astype(subject.dtype)
    phases = {"ED": first, "ES": (first + end_systole(subject.heart, frames)) % frames}

    folder.mkdir(parents=True)
    name = folder.name
    _write(folder / f"{name}_4d.nii.gz", images, subject)
    for frame in phases.values():
        _write(folder / f"{name}_frame{frame + 1:02d}.nii.gz", images[frame], subject)
        _write(folder / f"{name}_frame{frame + 1:02d}_gt.nii.gz", labels[frame], subject)
    height, weight = subject.stature
    (folder / "Info.cfg").write_text(
        f"ED: {phases['ED'] + 1}\nES: {phases['ES'] + 1}\nGroup: {subject.heart.group}\n"
        f"Height: {height}\nNbFrame: {frames}\nWeight: {weight}\n"
    )


def _write(file: Path, stack: np.ndarray, subject: Subject) -> None:
    """Write (slices, rows, columns) or (frames, slices, rows, columns) as data[X, Y, Z] or data[X, Y, Z, T]."""
    image = nib.Nifti1Image(stack.T, subject.affine)
    image.set_sform(subject.affine, code=2)
    image.set_qform(None, code=0)
    scan = subject.scan
    image.header.set_zooms((scan.pixel, scan.pixel, scan.thickness, 1.0)[: stack.ndim])
    nib.save(image, file)  # gzip without a time stamp: same seed, same bytes


def write_sheet(root: Path, file: Path) -> None:
    """Write a contact sheet of an ACDC folder (PNG): one row per group; base, middle and apex at ED and ES.

    Each image shows 180 mm around the heart, the middle ones with the outlines of the labels (RV blue, MYO green,
    LV red).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb
    from PIL import Image

    infos = {folder: read_info(folder) for folder in sorted((root / "training").glob("patient*"))}
    chosen = {info["Group"]: folder for folder, info in reversed(infos.items())}
    rows = [(group, chosen[group]) for group in GROUPS if group in chosen]
    figure, axes = plt.subplots(len(rows), 6, figsize=(9.6, 1.5 * len(rows)), squeeze=False, facecolor="black")
    for line, (group, folder) in zip(axes, rows, strict=True):
        for phase, half in (("ED", line[:3]), ("ES", line[3:])):
            base = folder / f"{folder.name}_frame{int(infos[folder][phase]):02d}"
            image, label = (nib.load(f"{base}{end}.nii.gz") for end in ("", "_gt"))
            pixel = image.header.get_zooms()[0]
            values, mask = np.asarray(image.dataobj), np.asarray(label.dataobj)
            x, y = (np.nonzero(mask)[k].mean() for k in (0, 1))
            last = values.shape[2] - 1
            for level, axis, z in zip(("base", "middle", "apex"), half, (1, round(0.45 * last), last - 2), strict=True):
                axis.imshow(values[:, :, z].T, cmap="gray", vmin=0, vmax=np.percentile(values, 99.3))
                for value, colour in OUTLINES.items():
                    if level == "middle" and (mask[:, :, z] == value).any():
                        axis.contour(value == mask[:, :, z].T, [0.5], colors=colour, linewidths=0.9)
                axis.set_xlim(x - 90 / pixel, x + 90 / pixel)
                axis.set_ylim(y + 75 / pixel, y - 75 / pixel)
                axis.axis("off")
                axis.set_title(f"{group}  {phase} {level}", fontsize=6, color="white", pad=2)
    figure.subplots_adjust(0, 0, 1, 0.975, 0.02, 0.1)
    file.parent.mkdir(parents=True, exist_ok=True)
    # a palette of greys and the outlines' colours only: a third of the bytes
    hues = [(1, 1, 1)] * 32 + [to_rgb(colour) for colour in OUTLINES.values()] * 4
    steps = [*np.linspace(0, 255, 32), *np.repeat([255, 200, 150, 110], len(OUTLINES))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([round(step * part) for step, hue in zip(steps, hues, strict=True) for part in hue])
    picture = io.BytesIO()
    figure.savefig(picture, dpi=90, facecolor="black")
    plt.close(figure)
    sheet = Image.open(picture).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    write_atomically(file, lambda path: sheet.save(path, optimize=True))
