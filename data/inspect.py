"""Integrity check and fingerprint of a data set: ``python -m data.inspect --dataset acdc --data-root DIR``.

Reads every file, one at a time, goes on past bad ones, and ends with exit code 1 if any is unfit for training.
"""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.files import write_json, write_text
from core.progress import progress
from core.settings import Settings
from core.terminal import terminal
from data.dicom.cached import readable_root
from data.duplicates import duplicate_findings, fingerprint
from data.inspect_page import picture_of, pictured, render, sample_of
from data.inspection import Report
from data.readers.acdc import missing_halves
from data.readers.discovery import discover
from data.readers.folder import description_of
from data.readers.geometry import (
    SliceAxis,
    align,
    differing_planes,
    header_disagreement,
    orientation_name,
    plane,
    stored_spacing,
)
from data.readers.images import Volume, one_channel, read_volume
from data.readers.label_maps import (
    IGNORED,
    LabelMap,
    ReadingOptions,
    class_indices,
    refuse_mixed_masks,
    with_ignore_label,
)
from data.slices import index_dataset
from data.sources import find_root
from data.splits import SPLITS, refuse_overlap

PERCENTILES = (0.5, 50, 99.5)
EXAMPLES = ("--data-root ACDC", "--dataset folder --data-root DIR --json report.json --html report.html")


@dataclass(frozen=True, kw_only=True)
class Inspect(Settings):
    """Check every file of a data set and describe it."""

    dataset: Literal["acdc", "folder"] = "acdc"
    """Layout of the data set: the ACDC challenge's, or any folder of NIfTI, PNG, TIFF or DICOM files."""
    data_root: Path | None = None
    """Folder of the data set; default: the embedded synthetic hearts (acdc only)."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's path (folder only); default: the name up to frame, slice,
    visit, phase and the like, or the folder named after the patient."""
    splits_file: Path | None = None
    """JSON file of the subjects of each split (folder only)."""
    channels: int | None = None
    """Number of the channel to use, from 0 (folder only): of nnU-Net's case_0000, case_0001, ... (default 0), or of the
    last axis of 4D images with 3D label maps."""
    slice_axis: SliceAxis = "auto"
    """Axis across the slices (folder only): a plane, an axis of the arrays, or auto, see `python -m segment --help`."""
    ignore_label: int | None = None
    """Label value of voxels that are not annotated (folder only); default: that of nnU-Net's dataset.json, if any."""
    mask_threshold: float | None = None
    """Value from which a pixel of a grey mask is foreground (folder only); default: masks hold class indices."""
    json: Path | None = None
    """Also write the report to this file."""
    html: Path | None = None
    """Also write a self-contained page to this file: contact sheet, intensities, classes, outliers and duplicates. Its
    pictures and names show patients."""


def inspect_dataset(
    dataset: str,
    root: Path,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    channels: int | None = None,
    options: ReadingOptions | None = None,
) -> dict[str, Any]:
    """Read every file of a data set and describe it.

    Returns:
        JSON-able: ``subjects`` (count); ``labelled_slices`` {split: count}; ``unlabelled_slices`` (count of
        slices in images without a label map, all splits, each image once); ``subjects_per_split``; ``groups``
        {group: {split: subjects}}; ``files``; ``dtypes``, ``orientations``, ``slices_across`` {name: files};
        ``spacing_mm``, ``shape``, ``intensity`` {quantity: [smallest, median, largest over files]};
        ``class_share`` {class: share of the labelled voxels}; ``problems`` and ``warnings`` [{file, problem}].

    Raises:
        UserError: if there is no data set at the root.
    """
    report, table, classes = examine(dataset, root, subject_pattern, splits_file, channels, options)
    return _summary(report, table, classes)


def examine(
    dataset: str,
    root: Path,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    channels: int | None = None,
    options: ReadingOptions | None = None,
    *,
    for_page: bool = False,
) -> tuple[Report, pd.DataFrame, tuple[str, ...]]:
    """What `inspect_dataset` describes: what was found, the table of slices and the classes.

    With `for_page` pictures and samples of the images are kept as well.
    """
    report = Report()
    unreadable: dict[Path, UserError] = {}
    options = options or ReadingOptions()
    table, classes = index_dataset(
        dataset, root, subject_pattern, splits_file, unreadable, channels=channels, labelled=False, options=options
    )
    if dataset == "folder":
        options = with_ignore_label(options, description_of(table, root))
    for file, error in unreadable.items():
        report.error(file, str(error))
    try:
        refuse_overlap(table)
    except UserError as error:
        report.error(root, str(error))
    files = table.drop_duplicates("file")
    pairs = list(zip(files["file"], files["label_file"], strict=True))
    if for_page:
        report.pictured = pictured([root / file for file, _ in pairs])
    for file, label_file in progress(pairs, "reading"):
        _check(report, root / file, root / label_file if label_file else None, classes, options, channels)
    if dataset == "folder":
        _check_pairs(report, root, files, channels)
    else:
        for file, what in missing_halves(root):
            report.error(file, what)
    _check_duplicates(report, root, files)
    _check_together(report, root, classes)
    return report, table, classes


def _check(
    report: Report,
    file: Path,
    label_file: Path | None,
    classes: tuple[str, ...],
    options: ReadingOptions,
    channels: int | None,
) -> None:
    volume = None
    try:
        volume = replace(read_volume(file), slicing=options.slice_axis)
        report.digests[file] = [fingerprint(frame) for frame in volume.stack]
        report.shapes[label_file is not None][file] = volume.shape
        _check_image(report, volume)
    except UserError as error:
        report.error(file, str(error))
    if label_file is None:
        _draw(report, file, volume, None)
        return
    try:
        labels = _labels_of(report, label_file, volume, options, channels)
    except UserError as error:
        report.error(label_file, str(error))
        _draw(report, file, volume, None)
        return
    _draw(report, file, volume, labels)
    report.scaled += [label_file] if labels.scaled else []
    counts = np.bincount(labels.indices.ravel())[:IGNORED]
    values = np.flatnonzero(counts).tolist()
    report.label_counts[label_file] = {value: int(counts[value]) for value in values}
    report.voxels.update(report.label_counts[label_file])
    if classes and values and values[-1] >= len(classes):
        wrong = [value for value in values if value >= len(classes)]
        report.error(label_file, f"holds label values {wrong}; the classes are 0..{len(classes) - 1}")
    if values in ([], [0]):
        report.warn(label_file, "is background only" if values else "is ignored everywhere")


def _draw(report: Report, file: Path, volume: Volume | None, labels: LabelMap | None) -> None:
    if volume is not None and file in report.pictured:
        report.pictures[file] = picture_of(volume, labels)


def _labels_of(
    report: Report, label_file: Path, volume: Volume | None, options: ReadingOptions, channels: int | None
) -> LabelMap:
    """Labels on the grid of their image; as they are, and an error is noted, if they do not fit it."""
    mask = read_volume(label_file, label_map=True)
    if volume is not None:
        of_channel = mask.shape.frames == 1 < volume.shape.frames
        try:
            mask = align(mask, one_channel(volume, channels) if of_channel and channels is not None else volume)
        except UserError as error:
            advice = "; or choose a channel with --channels" if of_channel and channels is None else ""
            report.error(label_file, f"{error}{advice}")
    return class_indices(mask, options)


def _check_image(report: Report, volume: Volume) -> None:
    stack = volume.stack
    flat = stack.ravel()
    if stack.dtype.kind == "f" and not np.isfinite(flat).all():
        flat = flat[np.isfinite(flat)]
    if flat.size < stack.size:
        report.error(volume.path, f"holds NaN or infinite values ({stack.size - flat.size} voxels)")
    if not flat.size:
        return
    constant = int((stack.max(axis=(2, 3)) == stack.min(axis=(2, 3))).sum())
    if flat.min() == flat.max():
        report.error(volume.path, f"is constant ({flat[0]} everywhere)")
    elif constant:
        report.warn(volume.path, f"has {constant} constant slices")
    if volume.header is not None and not stored_spacing(volume).min() > 0:
        assumed = "1 mm" if volume.spacing == (1, 1, 1) else "that of its affine"
        report.warn(volume.path, f"has no spacing in its header along some axis: {assumed} is assumed")
    elif disagreement := header_disagreement(volume):
        report.warn(volume.path, disagreement)
    row_mm, column_mm, slice_mm = volume.shape.slice_spacing
    if report.pictured:
        report.samples.append(sample_of(flat))
    sample = np.percentile(flat[:: max(1, flat.size // 200_000)], PERCENTILES)  # of some 200,000 voxels
    across = f"axis {volume.shape.slice_axis}" + (f" ({name})" if (name := plane(volume.shape)) else "")
    report.volumes.append(
        {
            "file": str(volume.path),
            "dtype": stack.dtype.name,
            "orientation": orientation_name(volume.affine),
            "across": across,
        }
        | dict(zip(("frames", "slices", "rows", "columns"), stack.shape, strict=True))
        | {"row_mm": row_mm, "column_mm": column_mm, "slice_mm": slice_mm}
        | {f"percentile {p}": float(value) for p, value in zip(PERCENTILES, sample, strict=True)}
    )


def _check_pairs(report: Report, root: Path, files: pd.DataFrame, channels: int | None) -> None:
    """Check which label map belongs to which image, and name what is not read."""
    bare = files.loc[files["label_file"] == "", "file"]
    if 0 < len(bare) < len(files):
        report.warn(root / bare.iloc[0], f"has no label map, as {len(bare)} of {len(files)} images: pretraining only")
    discovery = discover(root, channels=channels)
    for file in discovery.unpaired:
        report.error(file, "has no image")
    for conflict in discovery.conflicts + discovery.incomplete:
        report.error(root, conflict)
    for file in discovery.search.broken_links:
        report.error(file, "is a link that leads nowhere")
    if len(discovery.data_sets) > 1:
        report.error(root, f"{len(discovery.data_sets)} data sets with label maps lie in it: pass one as --data-root")


def _check_duplicates(report: Report, root: Path, files: pd.DataFrame) -> None:
    """Name subjects with an image in common: an error if they are in different splits."""
    columns = ["subject", "split", "file"]
    rows = [
        (subject, split, file, digest)
        for subject, split, file in files[columns].to_numpy().tolist()
        for digest in report.digests.get(root / file, [])
    ]
    report.images = pd.DataFrame(rows, columns=[*columns, "digest"])
    for file, what, apart in duplicate_findings(report.images):
        (report.error if apart else report.warn)(root / file, what)


def _check_together(report: Report, root: Path, classes: tuple[str, ...]) -> None:
    """Check orientations and label values over all files."""
    orientations = Counter(volume["orientation"] for volume in report.volumes)
    if len(orientations) > 1:
        rare = min(orientations, key=lambda name: orientations[name])
        first = next(volume["file"] for volume in report.volumes if volume["orientation"] == rare)
        report.warn(Path(first), f"is oriented {rare}; all files: {dict(orientations)}")
    if difference := differing_planes(report.shapes[True]) or differing_planes(
        report.shapes[True] | report.shapes[False]
    ):
        report.warn(root, difference)
    try:
        refuse_mixed_masks(report.scaled, max(report.voxels, default=0))
    except UserError as error:
        report.error(report.scaled[0], str(error))
    values = sorted(report.voxels.keys() | {0})
    if not classes and values != list(range(len(values))):
        report.error(root, f"its label maps hold the values {values}, which leave a gap")


def _summary(report: Report, table: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, Any]:
    labelled = table[table["labelled"]]
    subjects = table.drop_duplicates(["subject", "split"])
    volumes = pd.DataFrame(report.volumes)

    def per_split(rows: pd.DataFrame) -> dict[str, int]:
        return {split: int((rows["split"] == split).sum()) for split in SPLITS}

    def spread(names: list[str]) -> dict[str, list[float]]:
        columns = {} if volumes.empty else {name: volumes[name] for name in names}
        return {name: [float(f) for f in (c.min(), c.median(), c.max())] for name, c in columns.items()}

    return {
        "subjects": int(table["subject"].nunique()),
        "labelled_slices": per_split(labelled),
        "unlabelled_slices": len(table) - len(labelled),
        "subjects_per_split": per_split(subjects),
        "groups": {str(group): per_split(rows) for group, rows in subjects.groupby("group")},
        "files": len(volumes),
        "dtypes": dict(Counter(volume["dtype"] for volume in report.volumes)),
        "orientations": dict(Counter(volume["orientation"] for volume in report.volumes)),
        "slices_across": dict(Counter(volume["across"] for volume in report.volumes)),
        "spacing_mm": spread(["row_mm", "column_mm", "slice_mm"]),
        "shape": spread(["rows", "columns", "slices", "frames"]),
        "intensity": spread([f"percentile {p}" for p in PERCENTILES]),
        "class_share": {
            classes[value] if value < len(classes) else str(value): count / report.voxels.total()
            for value, count in sorted(report.voxels.items())
        },
        "problems": report.problems,
        "warnings": report.warnings,
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """Show a report of ``inspect_dataset`` as tables."""
    counts = Table("", *SPLITS, title=f"{report['subjects']} subjects", title_justify="left")
    rows = {"subjects": report["subjects_per_split"], "labelled slices": report["labelled_slices"]}
    rows |= {f"subjects {group}": subjects for group, subjects in report["groups"].items() if group}
    for name, row in rows.items():
        counts.add_row(name, *(str(row[split]) for split in SPLITS))
    console.print(counts)
    console.print(f"{report['unlabelled_slices']} slices without labels, {report['files']} image files read")

    spread = Table("", "smallest", "median", "largest", title="over image files", title_justify="left")
    for name, values in (report["shape"] | report["spacing_mm"] | report["intensity"]).items():
        spread.add_row(name, *(f"{value:.6g}" for value in values))
    console.print(spread)
    for name in ("dtypes", "orientations", "slices_across"):
        counted = ", ".join(f"{key} {count}" for key, count in report[name].items())
        console.print(f"{name.replace('_', ' ')}: {counted}")
    if report["class_share"]:
        shares = (f"{name} {share:.2%}" for name, share in report["class_share"].items())
        console.print("share of the labelled voxels: " + ", ".join(shares))

    for kind, style in (("warnings", "yellow"), ("problems", "red")):
        for finding in report[kind]:
            what = finding["problem"].removeprefix(f"{finding['file']} ")
            console.print(Text.assemble((kind[:-1], style), f" {finding['file']} {what}"), soft_wrap=True)
    console.print(f"{len(report['problems'])} problems, {len(report['warnings'])} warnings")


def run(cfg: Inspect) -> int:
    """Inspect a data set, print and save the report; return the number of problems."""
    options = ReadingOptions(
        slice_axis=cfg.slice_axis, ignore_label=cfg.ignore_label, mask_threshold=cfg.mask_threshold
    )
    root = find_root(cfg.dataset, cfg.data_root)
    root = readable_root(root) if cfg.dataset == "folder" else root
    found, table, classes = examine(
        cfg.dataset,
        root,
        cfg.subject_pattern,
        cfg.splits_file,
        cfg.channels,
        options,
        for_page=cfg.html is not None,
    )
    report = _summary(found, table, classes)
    print_report(report, terminal())
    if cfg.json is not None:
        cfg.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(cfg.json, report)
    if cfg.html is not None:
        cfg.html.parent.mkdir(parents=True, exist_ok=True)
        write_text(cfg.html, render(root, report, found, classes))
        print(f"page:    {cfg.html.resolve().as_uri()}")
    return len(report["problems"])


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the readers log what a partial copy lacks
    with user_errors():
        if run(parse_command(Inspect, "python -m data.inspect", EXAMPLES)):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
