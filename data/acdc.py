"""The ACDC data set on disk, as a table of slices.

Layout: ``training/patientNNN/`` with ``Info.cfg``, ``patientNNN_4d.nii.gz``, and for the ED and ES frames
``patientNNN_frameFF.nii.gz`` and ``patientNNN_frameFF_gt.nii.gz``; the same below ``testing/`` for patients
101-150.

Source: Bernard et al. 2018, IEEE TMI, doi 10.1109/TMI.2018.2837502.
"""

import logging
import re
from pathlib import Path

import pandas as pd

from data.errors import UserError
from data.splits import acdc_split
from data.volume import read_shape

ACDC_CLASSES = ("background", "RV", "MYO", "LV")
TRAINING_PATIENTS = 100

log = logging.getLogger("fewslice")


def index_acdc(root: Path, problems: dict[Path, UserError] | None = None) -> pd.DataFrame:
    """List every slice of an ACDC folder, reading headers only.

    The ED and ES frames also stand inside the 4D file: a 4D frame whose own file is there is left out, so
    that each image counts once. Works on partial copies and says in one line what is missing.

    Args:
        root: the folder holding ``training/`` (and perhaps ``testing/``), or ``training`` itself.
        problems: unreadable files are left out and their errors put here; without it the first one raises.

    Returns:
        One row per slice: subject ("patient001"), group ("DCM", ...), phase ("ED", "ES" or ""), frame
        (1-based), slice (0-based), file and label_file (relative to root), labelled, split.

    Raises:
        UserError: if the folder is missing or holds no patients, or a header cannot be read.
    """
    folders = patient_folders(root)
    missing = _Missing()
    rows: list[tuple] = []
    for folder in folders:
        rows += _patient_rows(root, folder, missing, problems)
    if not rows:
        raise UserError(f"{root} has patient folders without any readable image: copy the data set again")
    missing.say(root, folders)
    columns = ["subject", "group", "phase", "frame", "slice", "file", "label_file", "labelled", "split"]
    return pd.DataFrame(rows, columns=columns)


def patient_folders(root: Path) -> list[Path]:
    """The ``patientNNN`` folders, sorted, of ``training/`` and ``testing/`` or of the root itself.

    Raises:
        UserError: if there are none.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --data-root must hold ACDC's training/ or be that folder")
    places = [root / name for name in ("training", "testing") if (root / name).is_dir()] or [root]
    folders = [
        folder for place in places for folder in sorted(place.glob("patient*")) if re.search(r"\d+$", folder.name)
    ]
    if not folders:
        raise UserError(f"{root} holds no patientNNN folders: --data-root must hold ACDC's training/ or be that folder")
    return folders


def read_info(folder: Path) -> dict[str, str]:
    """Parse ``Info.cfg`` ("ED: 1", "Group: DCM", ...); empty when the file is missing."""
    file = folder / "Info.cfg"
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def frame_files(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Images and label maps of single frames, each by its 1-based frame number."""
    images: dict[int, Path] = {}
    labels: dict[int, Path] = {}
    for file in sorted(folder.glob("*.nii*")):
        if found := re.fullmatch(rf"{folder.name}_frame(\d+)(_gt)?\.nii(\.gz)?", file.name):
            (labels if found[2] else images)[int(found[1])] = file
    return images, labels


def missing_halves(root: Path) -> list[tuple[Path, str]]:
    """(file, what) wherever an image has no label map, a label map no image, or ED no ES.

    A patient with only a 4D file lacks no half, nor does an official test patient without any label map.
    """
    found = []
    for folder in patient_folders(root):
        images, labels = frame_files(folder)
        if labels or not is_official_test(folder.name):
            found += [(images[n], "has no label map") for n in sorted(images.keys() - labels.keys())]
        found += [(labels[n], "has no image") for n in sorted(labels.keys() - images.keys())]
        info = read_info(folder)
        if not info:
            found.append((folder / "Info.cfg", "is missing: group, ED and ES are unknown"))
        elif images:
            for phase in ("ED", "ES"):
                if not (info.get(phase, "").isdigit() and int(info[phase]) in images):
                    frame = info.get(phase, "none")
                    found.append((folder / "Info.cfg", f"gives {phase} as frame {frame}, whose image is missing"))
    return found


class _Missing:
    """Counts what a partial copy lacks, to say it once."""

    def __init__(self) -> None:
        self.cine = self.labels = self.info = 0

    def say(self, root: Path, folders: list[Path]) -> None:
        official = sum(is_official_test(folder.name) for folder in folders)
        training = len(folders) - official
        parts = [f"{training} of {TRAINING_PATIENTS} training patients"] if training < TRAINING_PATIENTS else []
        parts += [f"{self.cine} patients without a 4D file"] if self.cine else []
        parts += [f"{self.labels} ED/ES images without labels"] if self.labels else []
        parts += [f"{self.info} patients without Info.cfg"] if self.info else []
        parts += [f"{official} official test patients, split test"] if official else ["no testing/"]
        log.info("ACDC in %s: %s", root, ", ".join(parts))


def is_official_test(subject: str) -> bool:
    """Whether a patient is one of the challenge's test set, 101-150."""
    return int(re.sub(r"\D", "", subject)) > TRAINING_PATIENTS


def _patient_rows(root: Path, folder: Path, missing: _Missing, problems: dict[Path, UserError] | None) -> list[tuple]:
    subject, info = folder.name, read_info(folder)
    images, labels = frame_files(folder)
    cine = next(iter(sorted(folder.glob(f"{subject}_4d.nii*"))), None)
    phases = {int(info[phase]): phase for phase in ("ED", "ES") if info.get(phase, "").isdigit()}
    missing.cine += cine is None
    missing.info += not info
    missing.labels += len(images.keys() - labels.keys())

    rows: list[tuple] = []
    for file in [*images.values(), *([cine] if cine else [])]:
        try:
            shape = read_shape(file)
        except UserError as error:
            if problems is None:
                raise
            problems[file] = error
            continue
        if file == cine:
            numbers = [number for number in range(1, shape.frames + 1) if number not in images]
        else:
            numbers = [number for number, image in images.items() if image == file]
        for number in numbers:
            label = labels.get(number) if file != cine else None
            label_name = label.relative_to(root).as_posix() if label else ""
            start = (subject, info.get("Group", ""), phases.get(number, ""), number)
            end = (file.relative_to(root).as_posix(), label_name, label is not None, acdc_split(subject))
            rows += [(*start, z, *end) for z in range(shape.slices)]
    return rows
