"""The ACDC data set on disk, as a table of slices.

Layout: ``training/patientNNN/`` with ``Info.cfg``, ``patientNNN_4d.nii.gz``, and for the ED and ES frames
``patientNNN_frameFF.nii.gz`` and ``patientNNN_frameFF_gt.nii.gz``; the same below ``testing/`` for patients 101-150.

Source: Bernard et al. 2018, IEEE TMI, doi 10.1109/TMI.2018.2837502.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from core.errors import UserError, first_and_count
from core.text import read_text
from data.readers.images import SLICE_COLUMNS, Problems, shape_or_problem, stem
from data.splits import acdc_split, patient_number

ACDC_CLASSES = ("background", "RV", "MYO", "LV")
TRAINING_PATIENTS = 100
PHASES = ("ED", "ES")
"""End diastole and end systole: the frames with label maps."""

log = logging.getLogger("fewslice")


def index_acdc(root: Path, problems: Problems = None) -> pd.DataFrame:
    """List every slice of an ACDC folder, reading headers only.

    The ED and ES frames are also contained in the 4D file: a 4D frame that also has a single-frame file is left out,
    so that each image counts once. Partial copies are read as well; one log line lists what is missing.

    Returns:
        One row per slice: subject ("patient001"), group ("DCM", ...), phase ("ED", "ES" or ""), frame
        (1-based), slice (0-based), file and label_file (relative to root), labelled, split.
    """
    folders = patient_folders(root)
    missing: Counter[str] = Counter()
    rows = [row for folder in folders for row in _patient_rows(root, folder, missing, problems)]
    if not rows:
        unreadable = first_and_count([*problems.values()]) if problems else "copy the data set again"
        raise UserError(f"{root} has patient folders without any readable image: {unreadable}")
    official = sum(is_official_test(folder.name) for folder in folders)
    training = len(folders) - official
    parts = [f"{training} of {TRAINING_PATIENTS} training patients"] if training < TRAINING_PATIENTS else []
    parts += [f"{count} {what}" for what, count in missing.items() if count]
    parts += [f"{official} official test patients"] if official else ["no testing/"]
    log.info("ACDC in %s: %s", root, ", ".join(parts))
    return pd.DataFrame(rows, columns=SLICE_COLUMNS)


def patient_folders(root: Path) -> list[Path]:
    """The ``patientNNN`` folders, sorted, of ``training/`` and ``testing/`` or of the root itself."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --data-root must hold ACDC's training/ or be that folder")
    places = [root / name for name in ("training", "testing") if (root / name).is_dir()] or [root]
    folders = [
        folder for place in places for folder in sorted(place.glob("patient*")) if re.search(r"\d+$", folder.name)
    ]
    if not folders:
        raise UserError(
            f"{root} holds no patientNNN folders: --data-root must hold ACDC's training/ or be that folder; for other "
            "files pass --dataset folder"
        )
    return folders


class FrameName(NamedTuple):
    """The parts of an ACDC file name, see `parse_name`."""

    subject: str
    frame: int | None
    """1-based; None for a whole cine."""
    is_label: bool

    @property
    def is_patient(self) -> bool:
        """Whether the subject is named like the challenge's patients."""
        return bool(re.fullmatch(r"patient\d+", self.subject))


def parse_name(name: str) -> FrameName | None:
    """Parse SUBJECT_frameFF or SUBJECT_4d, with ``_gt`` at the end of label maps; None for other names."""
    match = re.fullmatch(r"(.+?)_(?:frame(\d+)|4d)(_gt)?", name)
    return FrameName(match[1], int(match[2]) if match[2] else None, bool(match[3])) if match else None


def cine_of(name: str) -> tuple[str, int | None]:
    """The cine that a file name is of, and its frame (1-based; None for a whole cine, or a scan that is none).

    X_frame07, X_4d_frame07 (a frame that was taken out of X_4d), X_4d and X are all of X.
    """
    match = re.fullmatch(r"(.+?)(?:_4d)?(?:_frame(\d+))?", name)
    return (match[1], int(match[2]) if match[2] else None) if match else (name, None)


def phase_of(info: Mapping[str, str], frame: int) -> str:
    """Phase of a frame (1-based) according to `read_info`: "ED", "ES" or ""."""
    return next((phase for phase in PHASES if _frame_of(info, phase) == frame), "")


def _frame_of(info: Mapping[str, str], phase: str) -> int | None:
    """The frame (1-based) of a phase according to `read_info`; None if there is no such number."""
    number = info.get(phase, "")
    return int(number) if re.fullmatch("[0-9]{1,9}", number) else None


def read_info(folder: Path) -> dict[str, str]:
    """Parse ``Info.cfg`` ("ED: 1", "Group: DCM", ...); empty when the file is missing."""
    file = folder / "Info.cfg"
    lines = read_text(file, errors="replace").splitlines() if file.is_file() else []
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def frame_files(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Images and label maps of single frames, each by its 1-based frame number."""
    images: dict[int, Path] = {}
    labels: dict[int, Path] = {}
    for file in sorted(folder.glob("*.nii*")):
        name = parse_name(stem(file))
        if name and name.subject == folder.name and name.frame is not None:
            (labels if name.is_label else images)[name.frame] = file
    return images, labels


def missing_halves(root: Path) -> list[tuple[Path, str]]:
    """(file, problem) for each image without label map, label map without image, and missing ED or ES.

    A patient with only a 4D file misses nothing, nor does an official test patient without any label map.
    """
    missing = []
    for folder in patient_folders(root):
        images, labels = frame_files(folder)
        if labels or not is_official_test(folder.name):
            missing += [(images[n], "has no label map") for n in sorted(images.keys() - labels.keys())]
        missing += [(labels[n], "has no image") for n in sorted(labels.keys() - images.keys())]
        info = read_info(folder)
        if not info:
            missing.append((folder / "Info.cfg", "is missing: group, ED and ES are unknown"))
        elif images:
            for phase in PHASES:
                if _frame_of(info, phase) not in images:
                    frame = info.get(phase, "none")
                    missing.append((folder / "Info.cfg", f"names frame {frame} as {phase}, but its image is missing"))
    return missing


def is_official_test(subject: str) -> bool:
    """Whether a patient is one of the challenge's test set, 101-150."""
    return patient_number(subject) > TRAINING_PATIENTS


def _patient_rows(root: Path, folder: Path, missing: Counter[str], problems: Problems) -> list[tuple]:
    subject, info = folder.name, read_info(folder)
    images, labels = frame_files(folder)
    cine = next(iter(sorted(folder.glob(f"{subject}_4d.nii*"))), None)
    missing["patients without a 4D file"] += cine is None
    missing["ED/ES images without labels"] += len(images.keys() - labels.keys())
    missing["patients without Info.cfg"] += not info

    rows: list[tuple] = []
    for number, file in [*images.items(), *([(None, cine)] if cine else [])]:
        if (shape := shape_or_problem(file, problems)) is None:
            continue
        others = (frame for frame in range(1, shape.frames + 1) if frame not in images)
        label = None if number is None else labels.get(number)
        label_name = label.relative_to(root).as_posix() if label else ""
        end = (file.relative_to(root).as_posix(), label_name, label is not None, acdc_split(subject))
        for frame in others if number is None else (number,):
            start = (subject, info.get("Group", ""), phase_of(info, frame), frame)
            rows += [(*start, z, *end) for z in range(shape.slices)]
    return rows
