"""The planes of DICOM images: one 2D frame each, with its place, time and contrast, as the header says."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from core.errors import UserError

TIMES = ("trigger time", "frame time", "temporal position", "acquisition time")
"""What may tell the time frames of a position apart, the most trusted first; all in seconds but temporal position."""

GROUPS = {
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    "PixelSpacing": ("PixelMeasuresSequence",),
    "SliceThickness": ("PixelMeasuresSequence",),
    "SpacingBetweenSlices": ("PixelMeasuresSequence",),
    "RescaleSlope": ("PixelValueTransformationSequence",),
    "RescaleIntercept": ("PixelValueTransformationSequence",),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
    "TemporalPositionIndex": ("FrameContentSequence",),
    "FrameReferenceDateTime": ("FrameContentSequence",),
    "FrameAcquisitionDateTime": ("FrameContentSequence",),
    "StackID": ("FrameContentSequence",),
    "EffectiveEchoTime": ("MREchoSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "DiffusionGradientOrientation": ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    "FrameType": ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence",),
    "ReferencedSegmentNumber": ("SegmentIdentificationSequence",),
}
"""Functional groups of enhanced and other multi-frame objects that hold an attribute (DICOM PS3.3, C.7.6.16.2)."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One 2D frame. Coordinates are DICOM's, in mm: x to the patient's left, y to the back, z to the head."""

    file: Path
    index: int
    """Number of the frame in its file, from 0."""
    instance: str
    """SOP Instance UID of the file."""
    rows: int
    columns: int
    spacing: tuple[float, float] | None
    """Distance of rows and of columns in mm."""
    orientation: tuple[float, ...] | None
    """Unit vectors along a row and along a column, 6 numbers."""
    position: tuple[float, ...] | None
    """Centre of the first pixel."""
    thickness: float | None
    """Distance to the next slice, or else thickness of the slice, as the header says."""
    slope: float
    intercept: float
    times: dict[str, float]
    """Value of each of `TIMES` that the header has."""
    contrast: tuple[tuple[str, str], ...]
    """What distinguishes images of one place and time: (name, value) of echo, b-value, type of image."""
    segment: int | None = None
    """Number of the segment, in a segmentation."""
    sources: tuple[tuple[str, int], ...] = ()
    """(SOP Instance UID, frame from 0) of the images that a frame of a segmentation was drawn on."""

    @property
    def has_place(self) -> bool:
        """Whether orientation, position and spacing are known."""
        return None not in (self.spacing, self.orientation, self.position)


def planes_of(file: Path, header: Dataset) -> list[Plane]:
    """The planes of one file, in the order of its frames.

    Raises:
        UserError: if sizes or numbers of the header are missing or cannot be meant.
    """
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    count = int(header.get("NumberOfFrames") or 1)
    if min(rows, columns, count) < 1:
        raise UserError(f"an image of {rows} x {columns} pixels and {count} frames: export it again")
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != count:
        raise UserError(f"{count} frames, but the header describes {len(groups)}: export it again")
    frame_times = _frame_times(header, count) if count > 1 and not groups else None
    planes = []
    for index in range(count):
        attributes = _Attributes([groups[index], shared[0]] if groups else [], header)
        times = _times(attributes) if frame_times is None else {"frame time": frame_times[index]}
        planes.append(
            Plane(
                file=file,
                index=index,
                instance=str(header.get("SOPInstanceUID", "")),
                rows=rows,
                columns=columns,
                spacing=_pair(_spacing(attributes)),
                orientation=attributes.numbers("ImageOrientationPatient", 6),
                position=attributes.numbers("ImagePositionPatient", 3),
                thickness=abs(attributes.number("SpacingBetweenSlices") or attributes.number("SliceThickness") or 0)
                or None,
                slope=_slope(attributes),
                intercept=_default(attributes.number("RescaleIntercept"), 0.0),
                times=times if count == 1 or groups or frame_times is not None else {},
                contrast=_contrast(attributes),
                segment=attributes.get("ReferencedSegmentNumber"),
                sources=_sources(groups[index]) if groups else (),
            )
        )
    return planes


class _Attributes:
    """Attributes of one frame: from its functional groups, then those of all frames, then the header itself."""

    def __init__(self, groups: Sequence[Dataset], header: Dataset) -> None:
        self.groups, self.header = groups, header

    def get(self, keyword: str) -> Any:
        for group in self.groups:
            for sequence in GROUPS.get(keyword, ()):
                items = [item for item in group.get(sequence) or [] if item is not None]
                items += [inner for item in items for inner in item.get("DiffusionGradientDirectionSequence") or []]
                for item in items:
                    if (value := item.get(keyword)) not in (None, ""):
                        return value
        value = self.header.get(keyword)
        return None if value == "" else value

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        value = self.get(keyword)
        if value is None or (not isinstance(value, str) and hasattr(value, "__len__") and len(value) == 0):
            return None
        values = tuple(float(each) for each in (value if hasattr(value, "__iter__") else [value]))
        if len(values) != count or not np.isfinite(values).all():
            raise UserError(f"{keyword} is {[*values]}, {count} numbers are needed: export it again")
        return values

    def number(self, keyword: str) -> float | None:
        values = self.numbers(keyword, 1)
        return None if values is None else values[0]


def _pair(values: tuple[float, ...] | None) -> tuple[float, float] | None:
    if values is None:
        return None
    if min(values) <= 0:
        raise UserError(f"a pixel spacing of {values[0]:g} x {values[1]:g} mm: export it again with its spacing")
    return values[0], values[1]


def _spacing(attributes: _Attributes) -> tuple[float, ...] | None:
    return attributes.numbers("PixelSpacing", 2) or attributes.numbers("ImagerPixelSpacing", 2)


def _slope(attributes: _Attributes) -> float:
    slope = _default(attributes.number("RescaleSlope"), 1.0)
    if slope == 0:
        raise UserError("a rescale slope of 0, which makes every value the intercept: export it again")
    return slope


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _frame_times(header: Dataset, count: int) -> list[float] | None:
    """Seconds of the frames of a multi-frame image without functional groups (ultrasound, angiography)."""
    vector = header.get("FrameTimeVector")
    if vector is not None and hasattr(vector, "__len__") and len(vector) == count:
        return [milliseconds / 1000 for milliseconds in accumulate(float(step) for step in vector)]
    step = float(header.get("FrameTime") or 0)
    return [index * step / 1000 for index in range(count)] if step > 0 else None


def _times(attributes: _Attributes) -> dict[str, float]:
    trigger = attributes.number("NominalCardiacTriggerDelayTime")
    trigger = attributes.number("TriggerTime") if trigger is None else trigger
    position = attributes.number("TemporalPositionIndex") or attributes.number("TemporalPositionIdentifier")
    seconds = _acquired(attributes)
    values = (None if trigger is None else trigger / 1000, None, position, seconds)
    return {name: value for name, value in zip(TIMES, values, strict=True) if value is not None}


def _acquired(attributes: _Attributes) -> float | None:
    """Seconds since an arbitrary day at which the frame was acquired."""
    for keyword in ("FrameReferenceDateTime", "FrameAcquisitionDateTime", "AcquisitionDateTime"):
        if (value := attributes.get(keyword)) and (moment := DT(str(value))):
            return _seconds(moment.toordinal(), moment)
    if not (value := attributes.get("AcquisitionTime")) or not (clock := TM(str(value))):
        return None
    day = DA(str(attributes.get("AcquisitionDate") or ""))
    return _seconds(day.toordinal() if day else 0, clock)


def _seconds(day: int, clock: datetime | time) -> float:
    return ((day * 24 + clock.hour) * 60 + clock.minute) * 60 + clock.second + clock.microsecond / 1e6


def _contrast(attributes: _Attributes) -> tuple[tuple[str, str], ...]:
    kind = attributes.get("FrameType") or attributes.get("ImageType")
    kind = [] if kind is None or isinstance(kind, str) else [*kind][2:]
    echo = attributes.number("EffectiveEchoTime") or attributes.number("EchoTime")
    direction = attributes.numbers("DiffusionGradientOrientation", 3)
    values = {
        "image type": " ".join(map(str, kind)),
        "component": str(attributes.get("ComplexImageComponent") or ""),
        "echo time": "" if echo is None else f"{echo:.2f} ms",
        "b-value": str(attributes.get("DiffusionBValue") or ""),
        "gradient direction": "" if direction is None else " ".join(f"{part:.3f}" for part in direction),
        "stack": str(attributes.get("StackID") or ""),
    }
    return tuple((name, value) for name, value in values.items() if value)


def _sources(group: Dataset) -> tuple[tuple[str, int], ...]:
    found = []
    for derivation in group.get("DerivationImageSequence") or []:
        for source in derivation.get("SourceImageSequence") or []:
            frames = source.get("ReferencedFrameNumber")
            numbers = [1] if frames is None else (frames if hasattr(frames, "__iter__") else [frames])
            found += [(str(source.ReferencedSOPInstanceUID), int(number) - 1) for number in numbers]
    return tuple(found)
