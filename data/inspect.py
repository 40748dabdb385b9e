"""Integrity check and fingerprint of a data set: ``python -m data.inspect --dataset acdc --data-root DIR``.

Reads every file, one at a time, goes on past bad ones, and ends with exit code 1 if any is unfit for training.
"""

import logging
from collections import Counter
from collections.abc import Sequence
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
from core.files import require_writable, write_json, write_text
from core.progress import progress
from core.settings import Settings
from core.terminal import terminal
from core.wording import count_of
from data.duplicates import duplicate_findings, fingerprint, fingerprint_of_channels
from data.inspect_image import PERCENTILES, check_image
from data.inspect_page import picture_of, pictured, render
from data.inspection import Report
from data.readers.acdc import missing_halves
from data.readers.channels import OF_CHANNELS, Channels, checked_channels, read_channels
from data.readers.discovery import discover
from data.readers.folder import description_of
from data.readers.geometry import SliceAxis, align, differing_planes
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
from data.sources import find_root, readable_folder
from data.splits import SPLITS, refuse_overlap

EXAMPLES = ("--data-root ACDC", "--dataset folder --data-root DIR --json report.json --html report.html")


@dataclass(frozen=True, kw_only=True)
class Inspect(Settings):
    """Check every file of a data set and describe it."""

    dataset: Literal["acdc", "folder"] = "acdc"
    """Layout of the data set: the ACDC challenge's, or any folder of NIfTI, PNG, TIFF, JPEG or DICOM files."""
    data_root: Path | None = None
    """Folder of the data set; default: the embedded synthetic hearts (acdc only)."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's path (folder only); default: the name up to frame, slice,
    visit, phase and the like, or the folder named after the patient."""
    splits_file: Path | None = None
    """JSON file of the subjects of each split (folder only)."""
    channels: Channels = None
    """Number of the channel to use, from 0 (folder only): of nnU-Net's case_0000, case_0001, ... (default 0), of
    colours or of the last axis of 4D images with 3D label maps; or several, see `python -m segment --help`."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", checked_channels(self.channels))
        if self.html is not None and self.html.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"--html {self.html}: must end in .html")
        for option, path in (("--json", self.json), ("--html", self.html)):
            if path is not None:
                require_writable(option, path)


def inspect_dataset(
    dataset: str,
    root: Path,
    subject_pattern: str | None = None,
    splits_file: Path | None = None,
    channels: Channels = None,
    options: ReadingOptions | None = None,
) -> dict[str, Any]:
    """Read every file of a data set and describe it.

    Returns:
        JSON-able: ``subjects`` (count); ``labelled_slices`` {split: count}; ``unlabelled_slices`` (count of
        slices in images without a label map, all splits, each image once); ``subjects_per_split``; ``groups``
        {group: {split: subjects}}; ``files``; ``dtypes``, ``orientations``, ``slices_across`` {name: files};
        ``spacing_mm``, ``shape``, ``intensity`` {quantity: [smallest, median, largest over files]}, of several channels
        over all images of a channel, the intensities of each under ``channels`` {number: {quantity: [...]}} as well;
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
    channels: Channels = None,
    options: ReadingOptions | None = None,
    *,
    for_page: bool = False,
) -> tuple[Report, pd.DataFrame, tuple[str, ...]]:
    """What `inspect_dataset` describes: what was found, the table of slices and the classes.

    With `for_page` pictures and samples of the images are kept as well.
    """
    report = Report()
    unreadable: dict[Path, UserError] = {}
    options, channels = options or ReadingOptions(), checked_channels(channels)
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
    chosen = files.set_index("file")[OF_CHANNELS].T.to_dict("list") if "channels" in files else {}
    if for_page:
        report.pictured = pictured([root / file for file, _ in pairs])
    for file, label_file in progress(pairs, "reading"):
        numbers, names = chosen.get(file, ((), ()))
        of_file = tuple(root / name for name in names), numbers
        _check(report, root / file, of_file, root / label_file if label_file else None, classes, options, channels)
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
    of_file: tuple[Sequence[Path], tuple[int, ...]],
    label_file: Path | None,
    classes: tuple[str, ...],
    options: ReadingOptions,
    channels: Channels,
) -> None:
    """Check an image, of which `of_file` has the files and numbers of the chosen channels, and its label map."""
    volume = None
    channel_files, chosen = of_file
    try:
        if chosen:
            volumes = read_channels(channel_files, chosen, options.slice_axis)
            report.digests[file] = [fingerprint_of_channels([each.stack[0] for each in volumes])]
            if len(channel_files) > 1:  # as they are stored, not as they are brought onto one grid
                volumes = [replace(read_volume(each), slicing=options.slice_axis) for each in channel_files]
        else:
            volumes = [replace(read_volume(file), slicing=options.slice_axis)]
            report.digests[file] = [fingerprint(frame) for frame in volumes[0].stack]
        volume = volumes[0]
        report.shapes[label_file is not None][file] = volume.shape
        for place, each in enumerate(volumes):
            check_image(report, each, chosen[place] if len(chosen) > 1 else None)
    except UserError as error:
        report.error(file, str(error))
    if label_file is None:
        _draw(report, file, volume, None)
        return
    try:
        labels = _labels_of(report, label_file, volume, options, channels)
        if options.mask_threshold is None and not labels.scaled:
            report.palettes.add(label_file, labels.indices)
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
    report: Report, label_file: Path, volume: Volume | None, options: ReadingOptions, channels: Channels
) -> LabelMap:
    """Labels on the grid of their image; as they are, and an error is noted, if they do not fit it."""
    mask = read_volume(label_file, label_map=True)
    if volume is not None:
        of_channel = mask.shape.frames == 1 < volume.shape.frames
        try:
            mask = align(mask, one_channel(volume, channels) if of_channel and isinstance(channels, int) else volume)
        except UserError as error:
            advice = "; or choose a channel with --channels" if of_channel and channels is None else ""
            report.error(label_file, f"{error}{advice}")
    return class_indices(mask, options)


def _check_pairs(report: Report, root: Path, files: pd.DataFrame, channels: Channels) -> None:
    """Check which label map belongs to which image, and name what is not read."""
    bare = files.loc[files["label_file"] == "", "file"]
    if 0 < len(bare) < len(files):
        report.warn(root / bare.iloc[0], f"has no label map, as {len(bare)} of {len(files)} images: pretraining only")
    discovery = discover(root, channels=channels)
    for file in discovery.unpaired:
        report.error(file, "has no image")
    for conflict in discovery.conflicts + discovery.incomplete:
        report.error(root, conflict)
    if discovery.search.dicom:
        report.warn(root, discovery.search.dicom_message().removeprefix(f"{root}: "))
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
    volumes, files = pd.DataFrame(report.volumes), report.files()

    def per_split(rows: pd.DataFrame) -> dict[str, int]:
        return {split: int((rows["split"] == split).sum()) for split in SPLITS}

    def spread(names: list[str], volumes: pd.DataFrame = volumes) -> dict[str, list[float]]:
        columns = {} if volumes.empty else {name: volumes[name] for name in names}
        return {name: [float(f) for f in (c.min(), c.median(), c.max())] for name, c in columns.items()}

    percentiles = [f"percentile {p}" for p in PERCENTILES]
    of_channels = (
        {}
        if "channel" not in volumes
        else {"channels": {str(channel): spread(percentiles, rows) for channel, rows in volumes.groupby("channel")}}
    )
    return {
        "subjects": int(table["subject"].nunique()),
        "labelled_slices": per_split(labelled),
        "unlabelled_slices": len(table) - len(labelled),
        "subjects_per_split": per_split(subjects),
        "groups": {str(group): per_split(rows) for group, rows in subjects.groupby("group")},
        "files": len(files),
        "dtypes": dict(Counter(files.get("dtype", ()))),
        "orientations": dict(Counter(files.get("orientation", ()))),
        "slices_across": dict(Counter(files.get("across", ()))),
        "spacing_mm": spread(["row_mm", "column_mm", "slice_mm"]),
        "shape": spread(["rows", "columns", "slices", "frames"]),
        "intensity": spread(percentiles),
        "class_share": {
            classes[value] if value < len(classes) else str(value): count / report.voxels.total()
            for value, count in sorted(report.voxels.items())
        },
        "problems": report.problems,
        "warnings": report.warnings,
    } | of_channels


def print_report(report: dict[str, Any], console: Console) -> None:
    """Show a report of ``inspect_dataset`` as tables."""
    counts = Table("", *SPLITS, title=count_of(report["subjects"], "subject"), title_justify="left")
    rows = {"subjects": report["subjects_per_split"], "labelled slices": report["labelled_slices"]}
    rows |= {f"subjects {group}": subjects for group, subjects in report["groups"].items() if group}
    for name, row in rows.items():
        counts.add_row(name, *(str(row[split]) for split in SPLITS))
    console.print(counts)
    console.print(
        f"{count_of(report['unlabelled_slices'], 'slice')} without labels, "
        f"{count_of(report['files'], 'image file')} read"
    )

    spread = Table("", "smallest", "median", "largest", title="over image files", title_justify="left")
    channels = {
        f"channel {channel}, {name}": values
        for channel, intensities in report.get("channels", {}).items()
        for name, values in intensities.items()
    }
    for name, values in (report["shape"] | report["spacing_mm"] | (channels or report["intensity"])).items():
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
    # always in the plural: scripts look for these words
    console.print(f"{len(report['problems'])} problems, {len(report['warnings'])} warnings")


def run(cfg: Inspect) -> int:
    """Inspect a data set, print and save the report; return the number of problems."""
    options = ReadingOptions(
        slice_axis=cfg.slice_axis, ignore_label=cfg.ignore_label, mask_threshold=cfg.mask_threshold
    )
    root = find_root(cfg.dataset, cfg.data_root)
    root = readable_folder(root, cfg.channels) if cfg.dataset == "folder" else root
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
