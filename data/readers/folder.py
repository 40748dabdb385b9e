"""Any folder of images, as a table of slices. The first layout that fits is used:

* nnU-Net: ``imagesTr/case_0000.nii.gz`` and ``labelsTr/case.nii.gz``, optionally ``imagesTs/``, ``labelsTs/``,
  ``dataset.json``. Of several channels ``_0000`` is used. ``imagesTs`` are test subjects, labelled or not.
* pairs: ``images/`` and ``labels/`` with the same names below them up to the suffix, in 2D or 3D.
* otherwise every image found at any depth, without labels: enough for pretraining.
"""

import logging
import re
from pathlib import Path

import pandas as pd

from core.errors import UserError, first_and_count
from core.text import search
from data.readers.geometry import SliceAxis, check_planes
from data.readers.images import SLICE_COLUMNS, Problems, VolumeShape, is_image, shape_or_problem, stem
from data.readers.label_maps import read_classes
from data.splits import load_splits, save_splits, split_subjects

log = logging.getLogger("fewslice")


def index_folder(
    root: Path,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    problems: Problems = None,
    slice_axis: SliceAxis = "auto",
    one_plane: bool = False,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """List every slice of a folder of images, reading headers only.

    Subjects with labels are split at random, or as ``splits_file`` or ``splits.json`` in the root says; a
    ``splits_file`` that does not exist yet is written, and nothing else is. Subjects without labels, and in no such
    file, train: images without labels serve pretraining only. ``subject_pattern`` is searched in an image's path below
    its images folder, without suffix and channel; its first group, or the whole match, is the subject. ``slice_axis``
    is a setting of ``data.readers.geometry.slice_axis``; with ``one_plane`` labelled files that would be sliced in
    different planes are refused.

    Returns:
        The table, with the columns of ``data.readers.acdc.index_acdc`` (group and phase empty), and the classes of
        ``dataset.json``, () without one.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --data-root must be the folder that holds the images")
    images = [
        (subject_of(name, file, subject_pattern), file, label, test) for name, file, label, test in find_images(root)
    ]
    if not images:
        raise UserError(f"{root} holds no .nii, .nii.gz, .png or .tif images: check --data-root")
    labelled = {subject for subject, _, label, _ in images if label}
    tests = {subject for subject, _, _, test in images if test}
    splits = _splits(root, labelled, tests, splits_file)
    rows = []
    shapes: dict[bool, dict[Path, VolumeShape]] = {True: {}, False: {}}
    for subject, file, label, test in images:
        if (shape := shape_or_problem(file, problems, slice_axis)) is None:
            continue
        shapes[label is not None][file] = shape
        name, label_name = (path.relative_to(root).as_posix() if path else "" for path in (file, label))
        split = "test" if test else splits.get(subject, "train")
        rows += [
            (subject, "", "", frame, z, name, label_name, label is not None, split)
            for frame in range(1, shape.frames + 1)
            for z in range(shape.slices)
        ]
    if one_plane:
        check_planes(shapes[True], shapes[False])
    if not rows:
        raise UserError(f"no image in {root} can be read: {first_and_count([*(problems or {}).values()])}")
    return pd.DataFrame(rows, columns=SLICE_COLUMNS), read_classes(root / "dataset.json")


def label_files(root: Path) -> dict[str, Path]:
    """Every label map of the two labelled layouts, by folder and name without suffix ("labelsTr/case")."""
    folders = [root / "labelsTr", root / "labelsTs"] if (root / "imagesTr").is_dir() else [root / "labels"]
    return {f"{folder.name}/{name}": file for folder in folders for name, file in _named(folder)}


def unpaired_labels(root: Path) -> list[Path]:
    """Label maps whose image is missing."""
    used = {label for _, _, label, _ in find_images(root)}
    return [file for file in label_files(root).values() if file not in used]


def find_images(root: Path) -> list[tuple[str, Path, Path | None, bool]]:
    """(name, image, label map, whether it is a test image), ordered by path."""
    labels = label_files(root)
    if (root / "imagesTr").is_dir():
        # The Decathlon has these folders without channel numbers: a label map has the full name of its image.
        channels = not any(f"labelsTr/{name}" in labels for name, _ in _named(root / "imagesTr"))
        images = []
        for folder in ("imagesTr", "imagesTs"):
            for name, file in _first_channel(_named(root / folder), folder) if channels else _named(root / folder):
                label = labels.get(f"{folder.replace('images', 'labels')}/{name}")
                images.append((name, file, label, folder == "imagesTs"))
        return images
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return [(name, file, labels.get(f"labels/{name}"), False) for name, file in _named(root / "images")]
    return [(name, file, None, False) for name, file in _named(root)]


def _named(folder: Path) -> list[tuple[str, Path]]:
    """Images at any depth, each with its path below the folder up to the suffix."""
    files = (file for file in sorted(folder.rglob("*")) if is_image(file) and file.is_file())
    return [((file.parent.relative_to(folder) / stem(file)).as_posix(), file) for file in files]


def _first_channel(named: list[tuple[str, Path]], folder: str) -> list[tuple[str, Path]]:
    parts = [(re.fullmatch(r"(.+)_(\d{4})", name), name, file) for name, file in named]
    if others := sum(match is not None and match[2] != "0000" for match, _, _ in parts):
        log.info("%s: only the first channel (_0000) is used, %d files of other channels are not", folder, others)
    return [(match[1] if match else name, file) for match, name, file in parts if not match or match[2] == "0000"]


def subject_of(name: str, file: Path, pattern: str | None) -> str:
    """The subject in a file's name, by a regular expression; without one the name.

    Raises:
        UserError: if the pattern is no regular expression, or finds nothing in the name.
    """
    if pattern is None:
        return name
    match = search(pattern, name)
    subject = (match[1] if match.re.groups else match[0]) if match else None
    if not subject:
        raise UserError(f"--subject-pattern {pattern!r} finds no subject in {name!r} ({file}): widen it")
    return subject


def _splits(root: Path, labelled: set[str], tests: set[str], splits_file: Path | None) -> dict[str, str]:
    file = splits_file or root / "splits.json"
    if file.is_file():
        splits = load_splits(file)
        if absent := sorted(labelled - tests - splits.keys()):
            raise UserError(f"{file} misses {len(absent)} labelled subjects, the first {absent[0]}: add it to a split")
        log.info("split by subject read from %s", file)
        return splits
    splits = split_subjects(labelled - tests, test=not tests & labelled)
    if splits_file is not None:
        save_splits(splits_file, splits | dict.fromkeys(tests, "test"))
        log.info("split by subject drawn at random and saved as %s", splits_file)
    return splits
