"""A folder of DICOM files as NIfTI files that the folder data set reads, and a table of what became what."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError
from core.files import write_csv, write_json
from core.progress import progress
from core.text import printable
from core.wording import count_of, listed
from data.dicom.names import Names, alike_patients
from data.dicom.nifti import volume_of, write_volume
from data.dicom.series import LEFT_OUT, Annotation, Archive, Series
from data.dicom.stacks import Stack
from data.readers.file_search import CONVERTED
from data.readers.images import Volume
from data.readers.subjects import subjects_of

log = logging.getLogger("fewslice")

COLUMNS = (
    *("series", "subject", "modality", "series_number", "part", "files", "slices", "frames", "rows", "columns"),
    *("row_mm", "column_mm", "slice_mm", "frame_s", "result", "file", "label_file", "remark"),
)
"""Columns of ``converted.csv``; row_mm, column_mm and slice_mm are distances of rows, columns and slices."""
COUNTS = ("files", "slices", "frames", "rows", "columns")
TEXTS = ("series", "subject", "modality", "series_number", "part", "result", "file", "label_file", "remark")
NAMING = ("patient_id", "description", "folder")
"""Further columns if names are kept."""
CONSTANT = "constant: every voxel is "
ALIKE = "Patient ID or name like another's but for case, spaces, punctuation or issuer"
MOST_REASONS = 5
"""Reasons that are printed if nothing could be converted."""


def write_converted(
    archive: Archive, out: Path, names: Names, classes: Sequence[str] = (), *, keep_names: bool = False
) -> pd.DataFrame:
    """Write ``images/SUBJECT/SUBJECT_SERIES.nii.gz``, label maps beside them in ``labels/``, and ``converted.csv``.

    A cine with labels for some of its frames keeps them unlabelled; each labelled frame is a file of its own as well.

    Args:
        archive: series, sorted.
        out: a new or empty folder.
        names: of subjects and series.
        classes: segments and ROIs to read, in the order of their class indices; (): all.
        keep_names: also write patients, descriptions and folders into the table.

    Returns:
        The table, a row for each stack, refused series, and segmentation or structure set: see `COLUMNS`. See
        `require_converted` if nothing could be converted.

    Raises:
        UserError: if `classes` cannot be meant.
    """
    rows: list[dict[str, Any]] = []
    written: dict[str, str] = {}
    drawings, annotation_rows, class_names = _labels(archive, names, classes)
    alike = alike_patients(series.patient for series in archive.series.values() if series.stacks)
    for series in progress([*archive.series.values()], "converting series"):
        about = _about(archive, series, names, keep_names)
        rows += [{**about, "result": series.outcome, "remark": reason} for reason in dict.fromkeys(series.reasons)]
        for number, stack in enumerate(series.stacks, 1):
            row = {**about, **_shape_of(stack)}
            name = names.subject(series.patient)
            stem = f"{name}_{names.series(series.uid)}" + (f"_part{number}" if len(series.stacks) > 1 else "")
            maps = drawings[stack].maps if stack in drawings else {}
            try:
                volume = volume_of(stack, Path(f"{name}/{stem}.nii.gz"))
                file, label_files = write_volume(out, volume, maps)
            except UserError as error:
                rows.append({**row, "result": "refused", "remark": _without_paths(str(error), stack.files)})
                continue
            written[f"{name}/{stem}"] = name
            remarks = [ALIKE] if series.patient in alike else []
            remarks += [*_remarks(archive, series), *stack.remarks, *_slicing_remark(volume), *_constant_remark(volume)]
            row |= {"result": "converted", "file": file, "label_file": " ".join(label_files)}
            rows.append({**row, "remark": "; ".join(remarks)})
    rows += annotation_rows + _damaged(archive)
    table = pd.DataFrame(rows, columns=[*COLUMNS, *(NAMING if keep_names else ())])
    table = table.astype(dict.fromkeys(COUNTS, "Int64"))
    table[[*TEXTS]] = table[[*TEXTS]].fillna("")
    if table["label_file"].ne("").any():
        write_json(out / "dataset.json", {"labels": {name: k for k, name in enumerate(("background", *class_names))}})
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / CONVERTED, table)
    _report_patients(archive, names, written)
    return table


def require_converted(archive: Archive, table: pd.DataFrame) -> None:
    """Raise a UserError with the reasons, the most frequent first, if a table of `write_converted` has no image."""
    if (table["result"] == "converted").any():
        return
    counts: Counter[str] = Counter()
    for series, files, reason in table[["series", "files", "remark"]].itertuples(index=False):
        counts[reason] += 1 if series else int(files)  # a row without series counts damaged files
    what = f"none of the DICOM series in {archive.root} ({len(archive.series)}) can be converted"
    if len(counts) == 1:
        raise UserError(f"{what}: {_with_descriptions(archive, *counts)}")
    lines = [f"{count}: {_with_descriptions(archive, reason)}" for reason, count in counts.most_common(MOST_REASONS)]
    if others := len(counts) - len(lines):
        lines.append(f"and {count_of(others, 'other reason')}")
    raise UserError("\n  ".join([f"{what}:", *lines]))


def _with_descriptions(archive: Archive, reason: str) -> str:
    """A reason; of `LEFT_OUT` with the descriptions that `--series` would have to match."""
    if reason != LEFT_OUT:
        return reason
    left_out = [series for series in archive.series.values() if series.outcome == "left out"]
    descriptions = sorted({printable(series.description) or "(none)" for series in left_out})
    return f"{reason}, which matches none of the descriptions {listed(descriptions)}"


def doubts(table: pd.DataFrame) -> list[str]:
    """What is doubtful in a table of `write_converted`, in sentences without names."""
    converted = table[table["result"] == "converted"]
    lines = []
    alike = converted.loc[converted["remark"].str.contains(ALIKE, regex=False), "subject"].nunique()
    if alike > 1:
        lines.append(
            f"{alike} subjects have a Patient ID or name that is another's but for case, spaces, punctuation or "
            f"issuer ({CONVERTED} marks them): if they are one patient, correct the IDs, else the patient may lie in "
            "several splits"
        )
    if constant := int(converted["remark"].str.contains(CONSTANT, regex=False).sum()):
        have = "image has" if constant == 1 else "images have"
        lines.append(f"{constant} {have} one value everywhere ({CONVERTED} marks them): leave them out")
    return lines


def summary(table: pd.DataFrame) -> list[str]:
    """What was converted, what is doubtful and what was not converted, in sentences without names."""
    converted = table[table["result"] == "converted"]
    labelled = int(converted["label_file"].ne("").sum())
    lines = [
        f"{count_of(len(converted), 'image')} of {count_of(converted['subject'].nunique(), 'subject')} from DICOM, "
        f"{labelled} with labels"
    ]
    lines += doubts(table)
    refused = Counter(table.loc[table["result"] == "refused", "remark"])
    lines += [f"not converted, {count}: {reason}" for reason, count in refused.most_common()]
    return lines


def _labels(archive: Archive, names: Names, classes: Sequence[str]) -> tuple[dict, list[dict[str, Any]], tuple]:
    """The drawings of all stacks, rows of the table for segmentations and structure sets, and class names."""
    if not archive.annotations:
        if classes:
            raise UserError(f"--classes {' '.join(classes)}: {archive.root} holds no segmentation or structure set")
        return {}, [], ()
    from data.dicom.annotations import read_labels  # highdicom takes a second to import

    def row(annotation: Annotation, result: str, remark: str) -> dict[str, Any]:
        about = {"series": names.series(annotation.series), "subject": names.subject(annotation.patient)}
        return {**about, "modality": annotation.kind, "files": 1, "result": result, "remark": remark}

    try:
        labels = read_labels(archive, classes)
    except UserError as error:
        if classes:
            raise
        return {}, [row(annotation, "refused", str(error)) for annotation in archive.annotations], ()
    return labels.drawings, [row(*outcome) for outcome in labels.outcomes], labels.classes


def _about(archive: Archive, series: Series, names: Names, keep_names: bool) -> dict[str, Any]:
    about: dict[str, Any] = {
        "series": names.series(series.uid),
        "subject": names.subject(series.patient),
        "modality": series.modality,
        "series_number": series.number,
        "files": len(series.files),
    }
    if keep_names:
        folder = series.files[0].parent
        about |= {
            "patient_id": series.patient.partition("|")[2],
            "description": series.description,
            "folder": folder.relative_to(archive.root) if folder.is_relative_to(archive.root) else folder,
        }
    return about


def _shape_of(stack: Stack) -> dict[str, Any]:
    columns, rows, slices, frames = stack.shape
    column_mm, row_mm, slice_mm = (round(mm, 6) for mm in stack.spacing)
    step = None if stack.time_step is None else round(stack.time_step, 6)
    return {
        **{"part": stack.part, "files": len(stack.files), "slices": slices, "frames": frames},
        **{"rows": rows, "columns": columns, "row_mm": row_mm, "column_mm": column_mm, "slice_mm": slice_mm},
        "frame_s": step,
    }


def _remarks(archive: Archive, series: Series) -> list[str]:
    if series.patient not in archive.without_id:
        return series.remarks
    how = (
        "each study counts as a subject" if series.patient.startswith("study|") else "name and birth date tell subjects"
    )
    return [f"no Patient ID: {how}", *series.remarks]


def _slicing_remark(volume: Volume) -> list[str]:
    if volume.shape.slice_axis == 2:
        return []
    return ["pixels are longer than slices are apart: read with --slice-axis 2"]


def _constant_remark(volume: Volume) -> list[str]:
    low, high = volume.stack.min(), volume.stack.max()
    return [f"{CONSTANT}{low:g}"] if low == high else []


def _damaged(archive: Archive) -> list[dict[str, Any]]:
    reasons = Counter(_without_paths(reason, [file]) for file, reason in archive.damaged.items())
    return [{"files": count, "result": "refused", "remark": reason} for reason, count in reasons.items()]


def _without_paths(text: str, files: Sequence[Path]) -> str:
    """A reason without paths, which may name patients."""
    for file in files:
        text = text.replace(str(file), "a file")
    return text


def _report_patients(archive: Archive, names: Names, written: dict[str, str]) -> None:
    """Log doubts about who is who."""
    shared = sum(len(names) > 1 for names in archive.names.values())
    if shared:
        log.info(
            f"{count_of(shared, 'Patient ID')} with several patient names, which count as one subject each: if these "
            "are different patients, correct the Patient IDs"
        )
    if names.kept and written and subjects_of([*written], None) != [*written.values()]:
        log.info("to keep the subjects apart by their folders, read the result with --subject-pattern '^([^/]+)/'")
