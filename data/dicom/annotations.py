"""Segmentations (DICOM SEG) and RT structure sets as label maps on the grid of the images they refer to."""

import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

import highdicom
import numpy as np
from pydicom.dataset import Dataset

from core.errors import UserError
from core.wording import count_of
from data.dicom.drawing import Drawing, fill_contours, frame_of, voxels_of
from data.dicom.files import read_header, read_whole
from data.dicom.planes import planes_of
from data.dicom.series import Annotation, Archive
from data.dicom.stacks import Stack
from data.readers.decoding import naming, require_memory
from data.readers.label_maps import check_class_names

HALF = 0.5
"""Share from which a voxel of a fractional segmentation belongs to its segment."""


class LeftOut(UserError):
    """The images of a segmentation or structure set are not wanted."""


def plain(name: str) -> str:
    """A class name by which two are compared: case and spaces do not matter."""
    return " ".join(name.casefold().split())


@dataclass(kw_only=True)
class Labels:
    """Label maps of all stacks, and what happened to each segmentation and structure set."""

    classes: tuple[str, ...] = ()
    """Names of the classes 1, 2, ..., the same over all files."""
    drawings: dict[Stack, Drawing] = field(default_factory=dict)
    outcomes: list[tuple[Annotation, str, str]] = field(default_factory=list)
    """(file, "label map", "refused" or "left out", remark or reason)."""


def read_labels(archive: Archive, classes: Sequence[str] = ()) -> Labels:
    """Draw all segmentations and structure sets of an archive onto their stacks.

    Args:
        archive: its series are sorted.
        classes: segments and ROIs to read, in the order of their class indices; (): all, in alphabetical order.

    Raises:
        UserError: if `classes` has two like names, or none of them is in any file.
    """
    check_class_names(classes, "--classes")
    labels = Labels()
    readable: list[tuple[Annotation, dict[int, str], list[Stack]]] = []
    for annotation in archive.annotations:
        try:
            header = read_header(annotation.file)
            stacks = _stacks(archive, annotation, header)
            readable.append((annotation, _names(annotation, header), stacks))
        except LeftOut as error:
            labels.outcomes.append((annotation, "left out", str(error)))
        except Exception as error:  # pydicom parses values when they are used, and raises errors of any type
            labels.outcomes.append((annotation, "refused", _reason(error, annotation)))
    found = {plain(name): name for _, names, _ in reversed(readable) for name in sorted(names.values(), reverse=True)}
    labels.classes = tuple(classes) or tuple(found[name] for name in sorted(found))
    if classes and readable and not {plain(name) for name in classes} & found.keys():
        raise UserError(f"--classes {' '.join(classes)}: the files have {', '.join(sorted(found.values()))}")
    if not classes:
        _require_usable(labels.classes)
    values = {plain(name): value for value, name in enumerate(labels.classes, 1)}
    broken: dict[Stack, str] = {}
    drawn: dict[Stack, list[tuple[Annotation, str]]] = defaultdict(list)
    for annotation, names, stacks in readable:
        wanted = {number: values[plain(name)] for number, name in names.items() if plain(name) in values}
        if not wanted:
            labels.outcomes.append((annotation, "left out", "none of its segments is in --classes"))
            continue
        left_out = [name for number, name in names.items() if number not in wanted]
        draw = _draw_structures if annotation.kind == "RTSTRUCT" else _draw_segments
        for stack in stacks:
            remarks = [f"left out: {', '.join(left_out)}"] if left_out else []
            try:
                remarks += draw(labels.drawings.setdefault(stack, Drawing(stack)), annotation, names, wanted)
            except Exception as error:
                broken.setdefault(stack, _reason(error, annotation))
            drawn[stack].append((annotation, "; ".join(remarks)))
    for stack, members in drawn.items():
        for annotation, remark in members:
            if stack in broken:  # a label map that lacks a structure would call it background
                labels.drawings.pop(stack, None)
            outcome = ("refused", broken[stack]) if stack in broken else ("label map", remark)
            labels.outcomes.append((annotation, *outcome))
    labels.drawings = {stack: drawing for stack, drawing in labels.drawings.items() if drawing.maps}
    return labels


def _require_usable(names: Sequence[str]) -> None:
    check_class_names(names, "a segmentation or structure set")
    if ignored := [name for name in names if plain(name) == "ignore"]:
        raise UserError(f"a segment is called {ignored[0]!r}, which means voxels to leave out: choose with --classes")
    if len(names) > 254:
        raise UserError(f"segmentations and structure sets have {len(names)} names, 254 are possible: use --classes")


def _reason(error: Exception, annotation: Annotation) -> str:
    text = " ".join(str(error).split()).replace(str(annotation.file), "the file")[:300]
    return text if isinstance(error, UserError) else f"cannot be read ({text or type(error).__name__})"


def _names(annotation: Annotation, header: Dataset) -> dict[int, str]:
    """Number -> name of the segments or ROIs of a file."""
    if annotation.kind == "RTSTRUCT":
        items = header.get("StructureSetROISequence") or []
        names = {int(item.ROINumber): str(item.get("ROIName") or "").strip() for item in items}
        names = {number: name for number, name in names.items() if number not in _points(header)}
    else:
        items = header.get("SegmentSequence") or []
        names = {
            int(item.SegmentNumber): str(item.get("SegmentLabel") or "").strip()
            for item in items
            if int(item.SegmentNumber) > 0  # 0 is the background of a label map
        }
    if not names or not all(names.values()):
        raise UserError("it has no segments or regions, or some without a name: name them and export it again")
    if repeated := [name for name, count in Counter(map(plain, names.values())).items() if count > 1]:
        raise UserError(f"several segments are called {repeated[0]!r}: rename all but one and export it again")
    return names


def _stacks(archive: Archive, annotation: Annotation, header: Dataset) -> list[Stack]:
    """The stacks that a segmentation or structure set refers to, by their series or their images."""
    series = [archive.series[uid] for uid in _series_uids(header) if uid in archive.series]
    instances = _instances(header)
    if not series:
        named = {instance for instance, _ in instances}
        series = [each for each in archive.series.values() if named & {plane.instance for plane in each.planes}]
    if series and all(each.outcome == "left out" for each in series):
        raise LeftOut("its series is left out by --series")
    series = [each for each in series if each.outcome == "refused"]  # that of every series with images
    if not series:
        raise UserError("it refers to a series that is not among the files: add that series")
    if any(each.patient != annotation.patient for each in series):
        raise UserError(
            "it is of another patient than the series it refers to: compare the patient IDs, export it again"
        )
    if reasons := [each.reasons[0] for each in series if not each.stacks]:
        raise UserError(f"its series could not be converted: {reasons[0]}")
    stacks = [stack for each in series for stack in each.stacks]
    named_stacks = [stack for stack in stacks if any(instance in stack.places for instance in instances)]
    if not named_stacks and len(stacks) > 1:
        raise UserError("it does not say which images of its series it is for: export it again with references to them")
    return named_stacks or stacks


def _series_uids(header: Dataset) -> list[str]:
    """UIDs of the series that a file says it refers to."""
    items = [*(header.get("ReferencedSeriesSequence") or [])]
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            items += study.get("RTReferencedSeriesSequence") or []
    return list(dict.fromkeys(str(item.SeriesInstanceUID) for item in items if "SeriesInstanceUID" in item))


def _instances(header: Dataset) -> set[tuple[str, int]]:
    """(SOP Instance UID, frame from 0) of the images that a file's frames or contours were drawn on."""
    found: set[tuple[str, int]] = set()
    if header.get("PerFrameFunctionalGroupsSequence"):
        found |= {source for plane in planes_of(Path(), header) for source in plane.sources}
    for roi in header.get("ROIContourSequence") or []:
        for contour in roi.get("ContourSequence") or []:
            found |= set(_contour_sources(contour))
    for series in header.get("ReferencedSeriesSequence") or [] if not found else []:
        for item in series.get("ReferencedInstanceSequence") or []:
            found.add((str(item.ReferencedSOPInstanceUID), 0))
    return found


def _contour_sources(contour: Dataset) -> list[tuple[str, int]]:
    return [
        (str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber") or 1) - 1)
        for item in contour.get("ContourImageSequence") or []
    ]


def _points(header: Dataset) -> set[int]:
    """Numbers of the ROIs of a structure set that are points, such as the isocentre: they have no voxels."""
    kinds: dict[int, set[str]] = defaultdict(set)
    for roi in header.get("ROIContourSequence") or []:
        for contour in roi.get("ContourSequence") or []:
            kinds[int(roi.ReferencedROINumber)].add(str(contour.get("ContourGeometricType")))
    return {number for number, of_roi in kinds.items() if of_roi == {"POINT"}}


def _draw_segments(
    drawing: Drawing, annotation: Annotation, names: Mapping[int, str], wanted: Mapping[int, int]
) -> list[str]:
    """Draw a segmentation; returns remarks."""
    with naming(annotation.file), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        dataset = read_whole(annotation.file)
        require_memory(
            annotation.file, int(dataset.get("NumberOfFrames") or 1) * int(dataset.Rows) * int(dataset.Columns)
        )
        segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    kind = segmentation.segmentation_type.value
    threshold = HALF * int(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1
    regions = {number: drawing.region(names[number]) for number in wanted}
    instances = sorted(_instances(dataset))
    for plane, frame_pixels in zip(planes_of(annotation.file, dataset), pixels, strict=True):
        numbers = [number for number in wanted if kind == "LABELMAP" or number == plane.segment]
        for number in numbers:
            mask = frame_pixels == number if kind == "LABELMAP" else frame_pixels >= threshold
            voxels = voxels_of(drawing.stack, plane, mask)
            time = frame_of(drawing.stack, plane.sources or instances)
            drawing.draw(time, voxels, wanted[number], regions[number])
    return [f"fractions from {HALF:g} count"] if kind == "FRACTIONAL" else []


def _draw_structures(
    drawing: Drawing, annotation: Annotation, names: Mapping[int, str], wanted: Mapping[int, int]
) -> list[str]:
    """Draw the closed contours of a structure set; returns remarks."""
    header = read_header(annotation.file)
    isocentres = len(_points(header))
    remarks = [f"{count_of(isocentres, 'point')} left out"] if isocentres else []
    for roi in header.get("ROIContourSequence") or []:
        number = int(roi.ReferencedROINumber)
        if number not in wanted:
            continue
        region = drawing.region(names[number])
        by_time: dict[int, list[np.ndarray]] = defaultdict(list)
        for contour in roi.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType"))
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                raise UserError(
                    f"{names[number]!r} has contours of type {kind}, only closed planar ones are read: close them"
                )
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
            by_time[frame_of(drawing.stack, _contour_sources(contour))].append(points)
        for time, contours in by_time.items():
            masks = fill_contours(drawing.stack, contours)
            for z, mask in masks.items():
                rows, columns = np.nonzero(mask)
                drawing.draw(time, (columns, rows, np.full(len(rows), z)), wanted[number], region)
            if gaps := max(masks, default=0) - min(masks, default=0) + 1 - len(masks) if masks else 0:
                remarks.append(
                    f"{names[number]!r} has no contour on {count_of(gaps, 'slice')} between its first and last"
                )
    if not drawing.maps:
        raise UserError("its structures have no contours: draw them, or leave the file out")
    return remarks
