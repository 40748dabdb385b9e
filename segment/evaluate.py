"""Score a folder of predicted masks against a folder of reference masks: ``python -m segment.evaluate``.

The masks may come from any program: NIfTI volumes or PNG and TIFF images, matched by name.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.files import remove_leftovers, write_csv, write_json
from core.messages import show_messages
from core.progress import progress
from core.settings import Settings
from core.subjects import anonymised
from core.terminal import terminal
from core.wording import count_of, listed
from data.readers.acdc import ACDC_CLASSES, parse_name, phase_of, read_info
from data.readers.discovery import label_maps_among, mask_name
from data.readers.file_search import search_files
from data.readers.geometry import align
from data.readers.images import IMAGE_SUFFIXES, read_volume
from data.readers.label_maps import (
    IGNORED,
    LabelMap,
    ReadingOptions,
    check_class_names,
    class_indices,
    refuse_mixed_masks,
    with_ignore_label,
)
from data.readers.roles import keys_of
from data.readers.subjects import subjects_of
from segment.metrics import foreground, score_volume, summarise
from segment.parity import ssl4mis_scores, ssl4mis_summary
from segment.tables import result_tables

log = logging.getLogger("fewslice")

FEW_CLASSES = 16
"""Number of classes up to which labels that no mask holds get a row."""
EXAMPLES = ("--prediction OUT --reference DIR", "--prediction OUT --reference DIR --classes liver tumour --partial")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Settings):
    """Score predicted masks against reference masks, per volume, per patient and over patients."""

    prediction: Path
    """Folder of predicted masks (.nii, .nii.gz, .png, .tif), searched with its subfolders."""
    reference: Path
    """Folder of reference masks of the same names; _gt, _seg, _mask and the like at their ends are ignored, and images
    in the folder are left out."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a mask's name; default: the name up to frame, slice, visit, phase
    and the like, or the folder named after the patient."""
    classes: tuple[str, ...] = ()
    """Names of labels 1, 2, ...; default: RV MYO LV if all files are named as in ACDC, else label_1 label_2 ..."""
    out: Path | None = None
    """Folder for per_volume.csv and result.json; default: scores/ in the prediction folder."""
    partial: bool = False
    """Score the masks that both folders have, and ignore the others."""
    ignore_label: int | None = None
    """Label value of reference voxels that are left out of all scores; default: that of a nnU-Net dataset.json in the
    reference folder or the one above it, if any."""
    mask_threshold: float | None = None
    """Value from which a pixel of a grey mask is foreground, e.g. 128; default: masks hold class indices."""
    parity: Literal["none", "ssl4mis"] = "none"
    """Also score as another benchmark does, see `python -m segment --help`."""
    anonymous: bool = False
    """Write codes in place of the names of subjects and files into per_volume.csv."""


def run(cfg: Evaluate) -> dict[str, Any]:
    """Score the folders, print the table, write per_volume.csv and result.json.

    Returns:
        The content of result.json: see `segment.metrics.summarise`.

    Raises:
        UserError: if masks are missing, differ in shape, or hold labels without a name, or the output folder is a run.
    """
    show_messages()
    out = cfg.out or cfg.prediction / "scores"
    if any((out / name).exists() for name in ("config.json", "study.json")):
        raise UserError(f"--out {out} is the folder of a run or study, whose results would be replaced: choose another")
    pairs = match_masks(cfg.prediction, cfg.reference, cfg.partial)
    subjects = dict(zip(pairs, subjects_of(list(pairs), cfg.subject_pattern), strict=True))
    names = [parse_name(name) for name in pairs]
    is_acdc = all(name and name.is_patient and name.frame is not None for name in names)
    options = ReadingOptions(ignore_label=cfg.ignore_label, mask_threshold=cfg.mask_threshold)
    for folder in (cfg.reference, cfg.reference.resolve().parent):
        options = with_ignore_label(options, folder / "dataset.json")
    check_class_names(foreground(cfg.classes), "--classes")
    classes = foreground(cfg.classes) or (foreground(ACDC_CLASSES) if is_acdc else _numbered_classes(pairs, options))
    rows: list[dict[str, Any]] = []
    for name, (prediction, reference) in progress(pairs.items(), "scoring"):
        for row in score_files(name, prediction, reference, classes, options, parity=cfg.parity == "ssl4mis"):
            if cfg.subject_pattern is not None or row["subject"] == name:  # names like ACDC's tell it themselves
                row["subject"] = subjects[name]
            rows.append({"subject": row["subject"], "file": prediction.relative_to(cfg.prediction).as_posix()} | row)
    per_volume = pd.DataFrame(rows)
    result = summarise(per_volume, classes)
    result |= {"parity_ssl4mis": ssl4mis_summary(per_volume, classes)} if cfg.parity == "ssl4mis" else {}
    if cfg.anonymous:
        per_volume = anonymised(per_volume)

    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    write_csv(out / "per_volume.csv", per_volume)
    write_json(out / "result.json", result)
    console = terminal()
    for table in result_tables(result):
        console.print(table)
    console.print(f"written: {out / 'per_volume.csv'}, {out / 'result.json'}", soft_wrap=True)
    return result


def match_masks(prediction: Path, reference: Path, partial: bool = False) -> dict[str, tuple[Path, Path]]:
    """Pair the masks of two folders by name.

    Args:
        prediction: folder of predicted masks, searched with its subfolders.
        reference: folder of reference masks, searched alike.
        partial: leave out the masks that only one folder has.

    Returns:
        {name: (prediction file, reference file)}, sorted. The name is the stem without ``_gt``, ``_seg`` and the like,
        or the path inside the folder where several masks of a folder have the same stem.

    Raises:
        UserError: if a folder is missing or has no masks, or (without ``partial``) a mask has no counterpart.
    """
    predicted, true = _find_masks(prediction), _find_masks(reference)
    if all(len({name.name for name in masks}) == len(masks) for masks in (predicted, true)):
        predicted = {Path(name.name): file for name, file in predicted.items()}
        true = {Path(name.name): file for name, file in true.items()}
    _rename_alike(predicted, true)
    names = sorted(predicted.keys() & true.keys())
    if not names:
        raise UserError(
            f"no mask in {prediction} has the name of a mask in {reference} "
            f"(such as {min(predicted)} and {min(true)}): rename one side"
        )
    for folder, missing in ((prediction, true.keys() - predicted), (reference, predicted.keys() - true)):
        if missing and not partial:
            raise UserError(
                f"{folder} lacks {len(missing)} of the other folder's masks ({listed(sorted(missing))}): "
                "add them, or pass --partial to score what both have"
            )
        if missing:
            log.info(f"{folder} lacks {count_of(len(missing), 'mask')}, not scored: {listed(sorted(missing))}")
    return {str(name): (predicted[name], true[name]) for name in names}


def _find_masks(folder: Path) -> dict[Path, Path]:
    """{name of a mask, see `mask_name`: file}; images beside label maps are left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: pass the folder that holds the masks")
    search = search_files(folder)
    if not search.files:
        hint = "; `python -m data.convert` makes them of its DICOM files, if their images lie there as well"
        raise UserError(
            f"{folder} holds no masks: they must end in {', '.join(IMAGE_SUFFIXES)}{hint if search.dicom else ''}"
        )
    for message in search.messages():
        log.info(message)
    masks: dict[Path, Path] = {}
    for file in label_maps_among(search) or search.files:
        name = mask_name(file.relative_to(folder))
        if name in masks:
            raise UserError(f"{masks[name]} and {file} are two masks of one name: keep one of them")
        masks[name] = file
    return masks


def _rename_alike(predicted: dict[Path, Path], true: dict[Path, Path]) -> None:
    """Give masks whose names differ only in case, separators or words like label the name of the reference."""

    def leftover(masks: dict[Path, Path], others: dict[Path, Path]) -> dict[tuple, Path]:
        keys = [((name.parent, keys_of(name.name)[0]), name) for name in masks.keys() - others.keys()]
        count = Counter(key for key, _ in keys)
        return {key: name for key, name in keys if count[key] == 1 and key[1]}

    of_reference = leftover(true, predicted)
    pairs = [(name, of_reference[key]) for key, name in leftover(predicted, true).items() if key in of_reference]
    for name, reference in pairs:
        predicted[reference] = predicted.pop(name)
    if pairs:
        log.info(f"masks paired though their names differ: {listed([f'{a} and {b}' for a, b in sorted(pairs)])}")


def score_files(
    name: str,
    prediction: Path,
    reference: Path,
    classes: Sequence[str],
    options: ReadingOptions,
    *,
    parity: bool = False,
) -> list[dict[str, Any]]:
    """Score one pair of files on the grid of the reference, with its spacing.

    Args:
        name: name of the pair; ``patientNNN_frameFF`` with an Info.cfg beside the reference is ACDC.
        prediction: label map, one frame or more.
        reference: label map on the same grid, but for the order and direction of its axes.
        classes: foreground names of labels 1, 2, ...
        options: how the values of both are read.
        parity: whether to add the scores of `segment.parity`.

    Returns:
        A row per frame: ``subject``, ``group``, ``phase``, ``frame`` and the scores of `score_volume`.

    Raises:
        UserError: if the grids differ, or a label is no class index or has no name.
    """
    predicted_labels, true_labels, spacing = _read_pair(prediction, reference, options)
    for file, labels in ((prediction, predicted_labels), (reference, true_labels)):
        if (top := _top(labels)) > len(classes):
            raise UserError(
                f"{file} holds label {top} and the classes are {', '.join(classes)}: "
                "name every label from 1 on with --classes"
            )
        refuse_mixed_masks([file] if labels.scaled else [], len(classes))
    frames = zip(predicted_labels.indices, true_labels.indices, strict=True)
    return [
        _identity(name, number, reference)
        | score_volume(predicted_frame, true_frame, spacing, classes)
        | (ssl4mis_scores(predicted_frame, true_frame, classes) if parity else {})
        for number, (predicted_frame, true_frame) in enumerate(frames, start=1)
    ]


def _identity(name: str, frame: int, reference: Path) -> dict[str, Any]:
    """Subject, group, phase and frame; for names not like ACDC's, the name is the subject and the rest unknown."""
    acdc = parse_name(name)
    if not (acdc and acdc.is_patient and acdc.frame is not None):
        return {"subject": name, "group": "", "phase": "", "frame": frame}
    info = read_info(reference.parent)
    phase = phase_of(info, acdc.frame)
    return {"subject": acdc.subject, "group": info.get("Group", ""), "phase": phase, "frame": acdc.frame}


def _read_pair(
    prediction: Path, reference: Path, options: ReadingOptions
) -> tuple[LabelMap, LabelMap, tuple[float, float, float]]:
    """Labels of the prediction on the grid of the reference, those of the reference, (slice_mm, row_mm, column_mm)."""
    true = read_volume(reference, label_map=True)
    predicted = read_volume(prediction, label_map=True)
    if true.shape.affine is None and true.spacing == (1, 1, 1) != predicted.spacing:
        log.warning("%s has no spacing: that of %s is used", reference, prediction)
        true = replace(true, spacing=predicted.spacing)
    predicted = align(predicted, true)
    true_labels = class_indices(true, options)
    ignored = true_labels.indices == IGNORED
    if ignored.any():  # whatever the prediction holds there, its own value to ignore for example, does not matter
        stack = np.where(ignored, 0, predicted.stack)
        predicted = replace(predicted, values=np.moveaxis(stack.T, 2, true.shape.slice_axis))
    predicted_labels = class_indices(predicted, replace(options, ignore_label=None))
    row_mm, column_mm, slice_mm = true.shape.slice_spacing
    return predicted_labels, true_labels, (slice_mm, row_mm, column_mm)


def _numbered_classes(pairs: dict[str, tuple[Path, Path]], options: ReadingOptions) -> list[str]:
    values: set[int] = set()
    for pair in pairs.values():
        for labels in _read_pair(*pair, options)[:2]:
            values.update(np.unique(labels.indices[labels.indices != IGNORED]).tolist())
    top = max(values, default=0)
    if top > FEW_CLASSES and top > 2 * len(values):  # such as 0 and 128: most rows would be empty
        raise UserError(
            f"the masks hold the label values {listed(sorted(values), 8)}: renumber them 0, 1, 2, ..., name "
            f"labels 1 to {top} with --classes, or pass --mask-threshold for masks of two values"
        )
    return [f"label_{label}" for label in range(1, max(top, 1) + 1)]


def _top(labels: LabelMap) -> int:
    """Highest class index."""
    return int(labels.indices.max(where=labels.indices != IGNORED, initial=0))


if __name__ == "__main__":
    with user_errors():
        run(parse_command(Evaluate, "python -m segment.evaluate", EXAMPLES))
