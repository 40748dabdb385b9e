"""The commands of the fault campaign, on data made here."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SMALL = shlex.split(
    "--encoder test_resnet --image-size 32 --batch-size 4 --device cpu --checkpoint-every 2 --log-every 1"
)
SEGMENT = [*SMALL, *shlex.split("--steps 8 --evaluate-every 3 --spacing-mm None --dataset folder")]
PRETRAIN = [
    *SMALL,
    *shlex.split("--steps 8 --stage hierarchical --generalist-images 16 --generalist-epochs 1 --dataset folder"),
    *shlex.split("--projector-hidden 8 --predictor-hidden 8 --projection 8"),
]
CLASSIFY = [
    *SMALL,
    *shlex.split("--steps 8 --evaluate-every 3 --clip-frames 4 --test-clips 1 --dataset mrnet"),
]
SWEEP = shlex.split(
    "--processes 1 --threads 1 --device cpu --pipelines random specialist --fractions 0.5 --seeds 0 --dataset folder "
    "--segment.encoder test_resnet --segment.image-size 32 --segment.steps 4 --segment.batch-size 4 "
    "--segment.evaluate-every 2 --segment.spacing-mm None --pretrain.encoder test_resnet "
    "--pretrain.image-size 32 --pretrain.steps 2 --pretrain.batch-size 4"
)


@dataclass(frozen=True)
class Command:
    """One command of the campaign."""

    name: str
    module: str
    arguments: Sequence[str]
    out: Path
    """What it writes."""
    again: Sequence[str] = ()
    """Arguments that continue it after a kill."""
    setting: dict[str, str] = field(default_factory=dict)
    """Environment variables."""


def commands(folder: Path) -> list[Command]:
    """The commands, with their data below a folder."""
    write_folder(folder / "data")
    write_knees(folder / "knees")
    slices, knees = ["--data-root", str(folder / "data")], ["--data-root", str(folder / "knees")]
    runs, predictions = folder / "runs", folder / "predictions"
    trained, classifier = str(folder / "trained"), str(folder / "classifier")
    knee_images = str(folder / "knees/valid/sagittal")
    resume, store = ("--resume",), {"FEWSLICE_CACHE": str(folder / "store")}

    def made(name: str, module: str, arguments: Sequence[str], out: Path, *rest: Any) -> Command:
        return Command(name, module, [*arguments, "--out", str(out)], out, *rest)

    return [
        made("segment", "segment", [*SEGMENT, *slices], runs / "segment", resume),
        made("pretrain", "pretrain", [*PRETRAIN, *slices], runs / "pretrain", resume),
        made("classify", "classify", [*CLASSIFY, *knees], runs / "classify", resume),
        made("overwrite", "segment", [*SEGMENT, *slices, "--overwrite"], runs / "overwrite"),
        Command(
            "segment.predict",
            "segment.predict",
            ["--run", trained, "--input", str(folder / "data/images"), "--output", str(predictions), "--device", "cpu"],
            predictions,
        ),
        Command(
            "classify.predict",
            "classify.predict",
            ["--run", classifier, "--input", knee_images, "--output", str(folder / "table/p.csv"), "--device", "cpu"],
            folder / "table",
        ),
        made("phantom", "data.phantom", ["--subjects", "2", "--frames", "4", "--seed", "3"], folder / "phantom"),
        Command("store", "benchmarks.packing", slices[1:], folder / "store", (), store),
        made("sweep", "sweep", [*SWEEP, *slices], folder / "study"),
    ]  # fmt: skip


def write_folder(root: Path, count: int = 8) -> None:
    """Small NIfTI images with label maps."""
    for number in range(count):
        rng = np.random.default_rng(number)
        label = np.zeros((40, 36, 3), np.uint8)
        x, y = rng.integers(4, 20, 2)
        label[x : x + 10, y : y + 8] = 1
        image = (rng.normal(300, 30, label.shape) + 200.0 * label).astype(np.int16)
        for kind, values in (("images", image), ("labels", label)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1])).to_filename(root / kind / f"case{number}.nii.gz")


def write_knees(root: Path) -> None:
    """Small exams in the layout of MRNet."""
    for split, count, first in (("train", 30, 0), ("valid", 8, 1130)):
        (root / split / "sagittal").mkdir(parents=True, exist_ok=True)
        for case in range(first, first + count):
            frames = np.random.default_rng(case).integers(0, 60 + 60 * (case % 2), (6, 40, 36)).astype(np.uint8)
            np.save(root / split / "sagittal" / f"{case:04d}.npy", frames)
        rows = (f"{case:04d},{case % 2}\n" for case in range(first, first + count))
        (root / f"{split}-acl.csv").write_text("".join(rows))
