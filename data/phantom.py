"""Synthetic cardiac cine MRI in ACDC's own layout: for trying everything out, and for tests.

``python -m data.phantom --dataset acdc --out DIR --subjects 30 --sheet sheet.png``

``--dataset mrnet`` writes knees instead (data.phantom_knee).

Same seed, same bytes; subject k does not depend on how many are made. The traps of the genuine files are
there: affines that are a unit matrix while pixdim holds the spacing, int16 and float32 mixed, ED not always
frame 1, slices without labels, intensities past 255. Scores reached on a phantom say nothing about patients.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from data.acdc import read_info
from data.cache import made_once
from data.errors import UserError, user_errors
from data.phantom_heart import GROUPS, Heart, draw_heart, end_systole
from data.phantom_knee import KNEE_EXAMS, write_knee_sheet, write_mrnet
from data.phantom_scene import LV, MYO, RV, View, picture

DEMO_VERSION = 1
"""Raise it when the pictures change, so that nobody keeps an old demonstration set."""

DEMO_SUBJECTS, DEMO_FRAMES, DEMO_SEED = 30, 14, 0

OUTLINES = {RV: "deepskyblue", MYO: "lime", LV: "red"}
"""Colours of the labels on a contact sheet."""

Matrix = Literal["small", "large"]


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Write a synthetic data set in the layout of a real one."""

    out: Path
    """Folder to write to; its training/ (mrnet: train/ and valid/) must not exist yet."""
    dataset: Literal["acdc", "mrnet"] = "acdc"
    """Whose layout to write: hearts or knees."""
    subjects: int | None = None
    """acdc: how many, 1..100 (from 101 on ACDC's numbers are its official test set), default 30. mrnet: training
    exams, 3..1130, default 120; a third as many validation exams come on top."""
    seed: int = DEMO_SEED
    """Same seed, same files."""
    frames: int | None = None
    """Frames of the cine, 4..99, default 14 (acdc only: the stacks of mrnet vary by themselves)."""
    matrix: Matrix = "small"
    """acdc: small is 96..144 pixels of 1.9-2.3 mm, large 192..288 pixels of 1.2-1.8 mm as in clinical scans.
    mrnet: small is 16..28 frames of 104 pixels, large 17..61 frames of 256 as in the real set."""
    sheet: Path | None = None
    """Also write a contact sheet here (PNG): the five groups, or ACLs intact and torn."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Everything about one subject but the noise."""

    number: int
    heart: Heart
    view: View
    scale: float
    """Stored intensity of blood."""
    dtype: type
    affine: np.ndarray
    first: int
    """Frame (0-based) that is end diastole."""
    stature: tuple[float, float]
    """Height (cm) and weight (kg)."""


def group_of(number: int) -> str:
    """The group of subject ``number`` (1-based): two of each in every ten.

    Turned by two every ten, so that the test subjects (1, 11, 21, ...) and the validation subjects
    (2, 12, 22, ...) meet all five groups as soon as they can.
    """
    block, place = divmod(number - 1, 10)
    return GROUPS[(place + 2 * block) % len(GROUPS)]


def draw_subject(seed: int, number: int, matrix: Matrix = "small") -> Subject:
    """Draw subject ``number`` (1-based) of the data set ``seed``; cheap, nothing is rendered."""
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
    view = View(
        rows=int(rows),
        columns=int(columns),
        pixel=float(np.float32(pixel)),
        thickness=thickness,
        heights=start + thickness * np.arange(slices),
        shifts=rng.normal(0, 1.2, (slices, 2)),
        centre=(rows * rng.uniform(0.42, 0.5), columns * rng.uniform(0.42, 0.52)),
        turn=turn,
        noise=rng.uniform(0.02, 0.05),
        coil=rng.uniform(0.3, 1.5),
        lung=rng.uniform(0.04, 0.13),
        fatness=rng.uniform(7, 17),
        banding=rng.random() < 0.35,
    )
    affines = (np.diag([-1.0, -1, 1, 1]), np.eye(4), np.diag([-view.pixel, -view.pixel, thickness, 1]))
    return Subject(
        number=number,
        heart=heart,
        view=view,
        scale=rng.uniform(110, 420),
        dtype=np.float32 if rng.random() < 0.25 else np.int16,
        affine=affines[rng.choice(3, p=[0.5, 0.2, 0.3])],
        first=int(rng.integers(3, 12)) if rng.random() < 0.12 else 0,
        stature=(float(rng.integers(152, 194)), float(rng.integers(50, 108))),
    )


def write_acdc(out: Path, subjects: int, seed: int, frames: int = DEMO_FRAMES, matrix: Matrix = "small") -> None:
    """Write ``out/training/patientNNN`` for patients 1..subjects, file for file as in ACDC.

    Raises:
        UserError: if a number is out of range or ``out/training`` is there already.
    """
    for name, value, low, high in (("subjects", subjects, 1, 100), ("frames", frames, 4, 99)):
        if not low <= value <= high:
            raise UserError(f"--{name} {value} is out of range: choose {low}..{high}")
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: choose 0 or more")
    training = Path(out) / "training"
    if training.exists():
        raise UserError(f"{training} exists already: choose another --out or remove it")
    for number in range(1, subjects + 1):
        _write_subject(training / f"patient{number:03d}", draw_subject(seed, number, matrix), seed, frames)


def demo_root() -> Path:
    """The embedded demonstration set, made in ``cache_folder()`` on first use."""
    return made_once(
        f"phantom-acdc-v{DEMO_VERSION}",
        f"making {DEMO_SUBJECTS} synthetic subjects in {{folder}}, once (about 20 s)",
        lambda folder: write_acdc(folder, DEMO_SUBJECTS, DEMO_SEED),
    )


def _write_subject(folder: Path, subject: Subject, seed: int, frames: int) -> None:
    body, noise = (np.random.default_rng([seed, subject.number, stream]) for stream in (1, 2))
    images, labels = picture(subject.heart, subject.view, frames, body, noise)
    first = subject.first % frames
    images, labels = np.roll(images, first, axis=0), np.roll(labels, first, axis=0)
    # whole numbers in float32 files too, as in the genuine ones
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
    """Write (slices, rows, columns), or frames first, as data[X, Y, Z] or data[X, Y, Z, T]."""
    image = nib.Nifti1Image(stack.T, subject.affine)
    image.set_sform(subject.affine, code=2)
    image.set_qform(None, code=0)
    view = subject.view
    image.header.set_zooms((view.pixel, view.pixel, view.thickness, 1.0)[: stack.ndim])
    nib.save(image, file)  # gzip level 1, no time stamp: same seed, same bytes


def write_sheet(root: Path, file: Path) -> None:
    """Draw a contact sheet of an ACDC folder: a group per row; base, middle, apex at ED and ES.

    Each picture is 180 mm wide around the heart. The middle ones carry the outlines of the labels (RV blue,
    MYO green, LV red).
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
            for place, axis, z in zip(("base", "middle", "apex"), half, (1, round(0.45 * last), last - 2), strict=True):
                axis.imshow(values[:, :, z].T, cmap="gray", vmin=0, vmax=np.percentile(values, 99.3))
                for value, colour in OUTLINES.items():
                    if place == "middle" and (mask[:, :, z] == value).any():
                        axis.contour(value == mask[:, :, z].T, [0.5], colors=colour, linewidths=0.9)
                axis.set_xlim(x - 90 / pixel, x + 90 / pixel)
                axis.set_ylim(y + 75 / pixel, y - 75 / pixel)
                axis.axis("off")
                axis.set_title(f"{group}  {phase} {place}", fontsize=6, color="white", pad=2)
    figure.subplots_adjust(0, 0, 1, 0.975, 0.02, 0.1)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90, facecolor="black")
    plt.close(figure)
    # greys and the outlines' colours are all there is: a third of the bytes
    hues = [(1, 1, 1)] * 32 + [to_rgb(colour) for colour in OUTLINES.values()] * 4
    steps = [*np.linspace(0, 255, 32), *np.repeat([255, 200, 150, 110], len(OUTLINES))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([round(step * part) for step, hue in zip(steps, hues, strict=True) for part in hue])
    Image.open(file).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE).save(file, optimize=True)


def run(cfg: PhantomConfig) -> Path:
    """Write the data set, and the contact sheet if one is asked for; return its folder."""
    if cfg.dataset == "mrnet":
        if cfg.frames is not None:
            raise UserError(f"--frames {cfg.frames} belongs to acdc: knee stacks vary in length, leave it out")
        write_mrnet(cfg.out, KNEE_EXAMS if cfg.subjects is None else cfg.subjects, cfg.seed, cfg.matrix)
        if cfg.sheet:
            write_knee_sheet(cfg.sheet, cfg.seed, cfg.matrix)
        return cfg.out
    subjects = DEMO_SUBJECTS if cfg.subjects is None else cfg.subjects
    write_acdc(cfg.out, subjects, cfg.seed, DEMO_FRAMES if cfg.frames is None else cfg.frames, cfg.matrix)
    if cfg.sheet:
        write_sheet(cfg.out, cfg.sheet)
    return cfg.out


if __name__ == "__main__":
    import tyro

    with user_errors():
        print(f"wrote {run(tyro.cli(PhantomConfig))}")
