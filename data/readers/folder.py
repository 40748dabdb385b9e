"""Any folder of images, as a table of slices: layouts are those of `data.readers.discovery`.

Of several channels those of `--channels` are used, `_0000` if it names none. Images of ``imagesTs/`` or ``test/``
test, labelled or not.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from core.errors import UserError, first_and_count
from core.wording import count_of, listed
from data.readers.acdc import cine_of
from data.readers.channels import OF_CHANNELS, Channels, checked_channels, refuse_frames, several
from data.readers.discovery import ImageFile, discover
from data.readers.geometry import SliceAxis, check_planes
from data.readers.images import (
    SLICE_COLUMNS,
    Problems,
    VolumeShape,
    read_shape,
    require_in_file,
    shape_or_problem,
    stem,
)
from data.readers.label_maps import read_classes
from data.readers.subjects import subjects_of
from data.splits import load_splits, split_subjects

log = logging.getLogger("fewslice")


def index_folder(
    root: Path,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    problems: Problems = None,
    *,
    channels: Channels = None,
    labelled: bool = True,
    slice_axis: SliceAxis = "auto",
    one_plane: bool = False,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """List every slice of a folder of images, reading headers only.

    Subjects with labels are split as `splits_file` or `splits.json` in the root says, else as folders say that are
    named after splits (train/, imagesTs/), else at random. Subjects without labels, and in no split, train: images
    without labels serve pretraining only.

    Args:
        root: the folder.
        subject_pattern: see `data.readers.subjects.subjects_of`.
        splits_file: JSON file of the subjects of each split.
        problems: collects errors of unreadable files.
        channels: number of the channel to use of nnU-Net's case_0000, case_0001, ..., or of those that one file holds:
            colours, or the last axis of 4D images; or several.
        labelled: whether label maps must fit; False to pretrain, when doubts about them are only logged.
        slice_axis: a setting of `data.readers.geometry.slice_axis`.
        one_plane: refuse labelled files that would be sliced in different planes.

    Returns:
        The table, with the columns of ``data.readers.acdc.index_acdc`` (group and phase empty) and for several channels
        or one colour ``data.readers.channels.OF_CHANNELS``; and the classes of ``dataset.json``, () without one.

    Raises:
        UserError: for anything wrong with files, subjects or splits.
    """
    channels = checked_channels(channels)
    if isinstance(channels, int) and channels < 0:
        raise UserError(f"--channels {channels}: must be 0 or more")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --data-root must be the folder that holds the images")
    discovery = discover(root, channels=channels)
    discovery.report()
    if not discovery.images:
        discovery.require_pairs()
        raise UserError(f"{root} holds no .nii, .nii.gz, .png, .tif or .jpg images: check --data-root")
    if labelled:
        discovery.require_pairs()
    else:
        if several(channels) and problems is None and discovery.incomplete:
            raise UserError(first_and_count(discovery.incomplete))
        for conflict in discovery.conflicts + discovery.incomplete:
            log.info(conflict)
    subjects = subjects_of([image.name for image in discovery.images], subject_pattern)
    images = list(zip(subjects, discovery.images, strict=True))
    of_folders = {subject: image.split for subject, image in images if image.split in ("val", "test")}
    splits = _splits(root, images, of_folders, splits_file)
    rows: list[tuple] = []
    of_channels: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    shapes: dict[bool, dict[Path, VolumeShape]] = {True: {}, False: {}}
    single_frames = {(image.file.parent, *cine_of(stem(image.file))) for image in discovery.images}
    for subject, image in images:
        if (shape := _shape_of(image, channels, slice_axis, problems)) is None:
            continue
        image, frames = _frames(image, shape, channels, labelled, problems)
        if channels is None and image.label is None and shape.frames > 1:  # each image counts once, as in `index_acdc`
            cine = image.file.parent, cine_of(stem(image.file))[0]
            frames = [frame for frame in frames if (*cine, frame) not in single_frames]
        shapes[image.label is not None][image.file] = shape
        name, label_name = (path.relative_to(root).as_posix() if path else "" for path in (image.file, image.label))
        if chosen := several(channels) or _chosen_colour(image, shape, channels):
            files = image.channels or (image.file,)
            of_channels[name] = chosen, tuple(file.relative_to(root).as_posix() for file in files)
        split = splits.get(subject, "train")
        if image.split == "test" or (image.split == "train" and split == of_folders.get(subject)):
            split = image.split  # a subject that lies in folders of two splits is refused by `refuse_overlap`
        rows += [
            (subject, "", "", frame, z, name, label_name, image.label is not None, split)
            for frame in frames
            for z in range(shape.slices)
        ]
    if one_plane:
        check_planes(shapes[True], shapes[False])
    if not rows:
        raise UserError(f"no image in {root} can be read: {first_and_count([*(problems or {}).values()])}")
    _report_colours([*shapes[True].values(), *shapes[False].values()], channels)
    table = pd.DataFrame(rows, columns=SLICE_COLUMNS)
    for place, column in enumerate(OF_CHANNELS if of_channels else ()):
        values = [of_channels.get(file, ((), ()))[place] for file in table["file"]]
        table[column] = pd.Series(values, index=table.index, dtype=object)
    return table, read_classes(description_of(table, root))


def description_of(table: pd.DataFrame, root: Path) -> Path:
    """The dataset.json of a folder: in it, or beside the first folder of label maps; it need not exist.

    Args:
        table: of `index_folder`.
        root: the folder.
    """
    labels = table.loc[table["labelled"], "label_file"]
    beside = (root / labels.iloc[0]).parent.parent if len(labels) else root
    return next((path for each in (root, beside) if (path := each / "dataset.json").is_file()), root / "dataset.json")


def _shape_of(image: ImageFile, channels: Channels, slicing: SliceAxis, problems: Problems) -> VolumeShape | None:
    """Shape of an image that has the chosen channels; None if the error is added to `problems`."""
    try:
        shape = read_shape(image.file, channels=channels is not None and not image.channels)
        if image.channels:
            refuse_frames(image.file, shape.frames)
        elif channels is not None:
            require_in_file(image.file, shape.frames, channels if isinstance(channels, tuple) else (channels,))
        return shape._replace(slicing=slicing)
    except UserError as error:
        if problems is None:
            raise
        problems[image.file] = error
        return None


def _chosen_colour(image: ImageFile, shape: VolumeShape, channels: Channels) -> tuple[int, ...]:
    """The single chosen channel of a file of colours or vectors; () where a file has one channel, or frames."""
    return (channels,) if isinstance(channels, int) and shape.colours and not image.channels else ()


def _report_colours(shapes: Sequence[VolumeShape], channels: Channels) -> None:
    """Log that colours become grey values, and, where every image has them, how to keep them."""
    if not (count := sum(shape.colours and shape.frames == 1 for shape in shapes)):
        return
    message = f"colours are read as grey in {count} of {count_of(len(shapes), 'image')}"
    if count == len(shapes) and channels is None:
        message += "; --channels 0 1 2 gives the network all three"
    log.info(message)


def _frames(
    image: ImageFile, shape: VolumeShape, channels: Channels, labelled: bool, problems: Problems
) -> tuple[ImageFile, Sequence[int]]:
    """The image, and its frames (from 1) that are used: all, or the chosen channel of a 4D image.

    Without a choice, a 3D label map does not say which channel of a 4D image it is for: that is refused, or with
    `labelled` False the image loses its label map.
    """
    every = range(1, shape.frames + 1)
    if several(channels) or _chosen_colour(image, shape, channels):
        return image, [1]
    if shape.frames == 1:
        return image, every
    if isinstance(channels, int):
        return image, [channels + 1]
    label = shape_or_problem(image.label, {} if problems is None else problems) if image.label else None
    if label is None or label.frames > 1 or problems is not None:
        return image, every
    if not labelled:
        return replace(image, label=None), every
    raise UserError(
        f"{image.file} has {shape.frames} channels (or frames) and its label map {image.label} one: "
        f"pass --channels K, from 0 to {shape.frames - 1}, to use one of them"
    )


def _splits(
    root: Path, images: list[tuple[str, ImageFile]], of_folders: Mapping[str, str], splits_file: Path | None
) -> dict[str, str]:
    """Subject -> split: as a file says, else as folders say (val and test), else drawn at random."""
    labelled = {subject for subject, image in images if image.label}
    of_folders = dict(of_folders)
    file = splits_file or root / "splits.json"
    if splits_file is None and not file.is_file():
        if "val" in {of_folders.get(subject) for subject in labelled}:
            return of_folders  # train/ and val/, perhaps test/: nothing is left to draw
        tested = "test" in {of_folders.get(subject) for subject in labelled}
        return split_subjects(labelled - of_folders.keys(), test=not tested) | of_folders
    splits = _by_subject(load_splits(file), images)
    if absent := sorted(labelled - of_folders.keys() - splits.keys()):
        raise UserError(
            f"{file} misses {count_of(len(absent), 'labelled subject')} ({listed(absent)}): add them to a split"
        )
    subjects = {subject for subject, _ in images}
    if unknown := sorted(splits.keys() - subjects):
        message = f"{file} names {count_of(len(unknown), 'subject')} without an image in {root} ({listed(unknown)})"
        if missing := sorted(subjects - splits.keys() - of_folders.keys()):
            raise UserError(f"{message}, and does not name {listed(missing)}: correct the names")
        log.info("%s: they are ignored", message)
    for subject, split in of_folders.items():
        if split == "test" and splits.get(subject, split) != split:
            raise UserError(f"{file} has subject {subject} in {splits[subject]}, and its folder says test: keep one")
    log.info("split by subject read from %s", file)
    return of_folders | splits


def _by_subject(splits: dict[str, str], images: list[tuple[str, ImageFile]]) -> dict[str, str]:
    """The splits of a file that may also name images (patient1_s0) of subjects (patient1)."""
    subjects = {subject for subject, _ in images}
    of_name = {image.name: subject for subject, image in images if image.name not in subjects}
    by_subject: dict[str, str] = {}
    for name, split in splits.items():
        subject = of_name.get(name, name)
        if by_subject.setdefault(subject, split) != split:
            raise UserError(
                f"{name} in {split} is of subject {subject}, which is also in {by_subject[subject]}: keep one"
            )
    return by_subject
