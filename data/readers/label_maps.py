"""Label maps: from stored values to class indices on the grid of their image, and the names of classes."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from core.text import read_json
from data.preprocessing import LARGE_SLICE
from data.readers.geometry import SliceAxis, align
from data.readers.images import Volume, read_volume

IGNORED = 255
"""Value, in label maps in memory, of voxels that are left out of losses and scores."""
WHOLE = 1e-3
"""Largest distance of a label value from a whole number that may be rounding."""
FEW_VALUES = 8
"""A map with more values than this is checked for soft edges."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options for reading image files and label maps."""

    slice_axis: SliceAxis = "auto"
    """See `data.readers.geometry.slice_axis`."""
    ignore_label: int | None = None
    """Label value of voxels that are left out of losses and scores."""
    mask_threshold: float | None = None
    """Value from which a voxel of a grey mask is foreground; None: label maps hold class indices."""

    def __post_init__(self) -> None:
        if self.mask_threshold is not None and not (0 < self.mask_threshold < math.inf):
            raise UserError(f"--mask-threshold {self.mask_threshold}: must be a number above 0, e.g. 128")


class LabelMap(NamedTuple):
    """Class indices of a label map."""

    indices: np.ndarray
    """(frames, slices, rows, columns) uint8: 0..254, or `IGNORED`."""
    scaled: bool
    """Whether the file holds 255 or 65535 for class 1, and nothing else but 0."""


def read_labels(path: Path, image: Volume | None = None, options: ReadingOptions | None = None) -> LabelMap:
    """Read a label map, brought onto the grid of its image if one is passed.

    Raises:
        UserError: if the two grids differ, or a value is no class index; see `geometry.align` and `class_indices`.
    """
    mask = read_volume(path, label_map=True)
    return class_indices(mask if image is None else align(mask, image), options or ReadingOptions())


def class_indices(mask: Volume, options: ReadingOptions) -> LabelMap:
    """The class indices of a label map.

    Values within `WHOLE` of a whole number are that number. In a map of nothing but 0 and 255, or 0 and 65535, these
    are the classes 0 and 1.

    Raises:
        UserError: if it holds anything but whole numbers from 0 to 254 (the values are named), or is a grey image.
    """
    stack = mask.stack
    if options.mask_threshold is not None:
        if stack.dtype.kind == "f" and np.isnan(stack).any():
            raise UserError(f"{mask.path} holds label values [nan]: repair or remove it")
        if stack.max() == 1 < options.mask_threshold and np.isin(stack, (0, 1)).all():
            raise UserError(
                f"{mask.path} holds only 0 and 1, below --mask-threshold {options.mask_threshold:g}: lower it"
            )
        labels = (stack >= options.mask_threshold).astype(np.uint8)
        return LabelMap(_with_ignored(labels, stack, options.ignore_label), False)
    if stack.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # NaN and infinity are caught by the comparison
            whole = np.rint(stack)
            wrong = ~(np.abs(stack - whole) <= WHOLE)
        if wrong.any():
            raise UserError(
                f"{mask.path} holds label values {np.unique(stack[wrong])[:5].tolist()}: class indices are whole "
                "numbers; pass --mask-threshold to make a grey mask of probabilities or soft edges binary"
            )
        stack = whole
    classes = stack if options.ignore_label is None else np.where(stack == options.ignore_label, 0, stack)
    low, top = classes.min(), classes.max()
    scaled = bool(top in (255, 65535) and ((classes == 0) | (classes == top)).all())
    if scaled:
        classes = classes == top
    elif top > FEW_VALUES and low >= 0 and top < 1 << 16 and _has_soft_edges(classes.astype(np.uint16)):
        raise UserError(
            f"{mask.path} holds {len(np.unique(classes))} grey values, most of them along edges: it is no map of class "
            "indices; pass --mask-threshold (such as 128) to make it binary, or export it without interpolation"
        )
    elif low < 0 or top >= IGNORED:
        values = np.unique(classes)
        wrong = values[(values < 0) | (values >= IGNORED)][:5]
        raise UserError(
            f"{mask.path} holds label values {wrong.tolist()}: class indices are whole numbers from 0 to 254; pass "
            f"--ignore-label {int(wrong[-1])} if these voxels are to be left out, --mask-threshold for a grey mask"
        )
    labels = classes.astype(np.uint8, copy=False)
    return LabelMap(_with_ignored(labels, stack, options.ignore_label), scaled)


def counts_of(labels: np.ndarray, length: int = IGNORED + 1) -> np.ndarray:
    """Pixels of each value 0, 1, ... of a label map (rows, columns) uint8: (length,) int64."""
    pixels = labels.ravel()
    parts = range(0, len(pixels), LARGE_SLICE)  # `np.bincount` makes a copy of eight bytes a pixel
    return np.sum([np.bincount(pixels[first : first + LARGE_SLICE], minlength=length) for first in parts], axis=0)


def without_ignored(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label maps of one shape, background where the reference is ignored."""
    ignored = reference == IGNORED
    if not ignored.any():
        return prediction, reference
    return np.where(ignored, 0, prediction), np.where(ignored, 0, reference)


def refuse_mixed_masks(scaled: Sequence[Path], top: int) -> None:
    """Raise a UserError if some masks hold 0 and 255 and others the classes 0 to `top`, more than 1.

    Args:
        scaled: files of which `LabelMap.scaled` is true.
        top: highest class index over all label maps.
    """
    if scaled and top > 1:
        raise UserError(
            f"{scaled[0]} holds only 0 and 255 (or 65535), other label maps the classes 0 to {top}: renumber it, or "
            "pass --ignore-label 255 if these voxels are to be left out"
        )


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names of an nnU-Net ``dataset.json``: version 1 ``{"0": "background"}`` or 2 ``{"background": 0}``.

    Its label "ignore" is left out, see `read_ignore_label`.

    Returns:
        Names, background first; () if there is no file, it has no "labels", or they are regions of several values.

    Raises:
        UserError: if it is not JSON, its values are not 0, 1, 2, ... without gaps, or two names are alike.
    """
    labels = _labels_of(path)
    if any(isinstance(value, list) for _, value in labels):
        return ()
    names = {value: name for name, value in labels if not _is_ignore(name)}
    if sorted(names) != list(range(len([name for name, _ in labels if not _is_ignore(name)]))):
        raise UserError(
            f"{path} names the label values {sorted(names)}: they must be 0, 1, 2, ... without gaps, below the one "
            "to ignore if there is any"
        )
    classes = tuple(names[value] for value in sorted(names))
    check_class_names(classes[1:], path)
    return classes


def read_ignore_label(path: Path) -> int | None:
    """The value of nnU-Net's label "ignore" in a ``dataset.json``; None without the file or the label."""
    return next((value for name, value in _labels_of(path) if _is_ignore(name) and isinstance(value, int)), None)


def with_ignore_label(options: ReadingOptions, path: Path) -> ReadingOptions:
    """Options with the label to ignore of a ``dataset.json``, if there is one.

    Raises:
        UserError: if the options name another one.
    """
    value = read_ignore_label(path)
    if value is None or value == options.ignore_label:
        return options
    if options.ignore_label is not None:
        raise UserError(f"--ignore-label {options.ignore_label}, but {path} ignores {value}: leave the option out")
    return replace(options, ignore_label=value)


def check_class_names(foreground: Sequence[str], where: object) -> None:
    """Refuse names of foreground classes that would replace or merge scores.

    Args:
        foreground: names of classes 1, 2, ...
        where: file or option that names them, for the message.

    Raises:
        UserError: if a name is empty, "mean" or "background", or two are equal but for case and spaces.
    """
    plain = [" ".join(name.casefold().split()) for name in foreground]
    if reserved := [name for name, bare in zip(foreground, plain, strict=True) if bare in ("", "mean", "background")]:
        raise UserError(f"{where} calls a foreground class {reserved[0]!r}, which has another meaning: rename it")
    if repeated := [name for name, count in Counter(plain).items() if count > 1]:
        raise UserError(f"{where} has {repeated[0]!r} as the name of several classes: rename all but one")


def _with_ignored(labels: np.ndarray, stack: np.ndarray, ignore_label: int | None) -> np.ndarray:
    return labels if ignore_label is None else np.where(stack == ignore_label, np.uint8(IGNORED), labels)


def _has_soft_edges(classes: np.ndarray) -> bool:
    """Whether most values form no regions, as those of a mask that was interpolated or compressed with loss.

    The pixels of a region mostly have the value of their neighbours to the right and below.
    """
    counts = np.bincount(classes.ravel())
    values = np.flatnonzero(counts)
    if len(values) <= FEW_VALUES:
        return False
    equal = np.zeros(len(counts))
    for one, other in ((classes[..., 1:], classes[..., :-1]), (classes[..., 1:, :], classes[..., :-1, :])):
        equal += np.bincount(one[one == other], minlength=len(counts))
    return bool(np.mean(equal[values] / (2 * counts[values]) < 1 / 3) > 0.5)


def _is_ignore(name: str) -> bool:
    return name.strip().casefold() == "ignore"


def _labels_of(path: Path) -> list[tuple[str, int | list]]:
    """(name, value) of each label in a ``dataset.json``; [] without the file or without labels."""
    if not path.is_file():
        return []
    try:
        labels = read_json(path).get("labels", {})
        if labels and all(re.fullmatch("[0-9]{1,9}", str(key)) for key in labels):
            return [(str(name), int(value)) for value, name in labels.items()]
        if fractions := [value for value in labels.values() if isinstance(value, float) and not value.is_integer()]:
            raise ValueError(f"{fractions[0]} is no whole number")
        return [(str(name), value if isinstance(value, list) else int(value)) for name, value in labels.items()]
    except (AttributeError, TypeError, OverflowError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} cannot be parsed ({error}): "labels" must be like {{"background": 0}}') from None
