"""From the planes of a series to stacks of slices and time frames: sorted by geometry, refused where it is in doubt.

A stack is a regular grid: parallel slices of one size, equally spaced along their normal. Nothing is resampled.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.wording import count_of
from data.dicom.planes import TIMES, Plane
from data.readers.geometry import SHIFT

PARALLEL = 2e-3
"""Largest difference of direction cosines that may be rounding: 0.1 degrees."""
TILT = 0.01
"""Largest shift of a slice against the next one, as a share of their distance: 0.6 degrees."""
SAME_PLACE = 0.05
"""Largest distance of two planes of one place, in pixels."""
UNEVEN_TIMES = 0.1
"""Largest relative difference of two time steps that is not mentioned."""
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's coordinates (left, posterior, superior) to NIfTI's (right, anterior, superior)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Slices of one grid, and their time frames."""

    planes: tuple[tuple[Plane, ...], ...]
    """[frame][slice]: slices ascend along the normal, the cross product of the directions of rows and columns."""
    affine: np.ndarray | None
    """(4, 4) from (column, row, slice) to DICOM's coordinates in mm; None for images without a place."""
    spacing: tuple[float, float, float]
    """Distance in mm of columns, rows and slices."""
    time_step: float | None = None
    """Mean time between frames in seconds; None if unknown or there is one frame."""
    part: str = ""
    """Which images of the series these are, if it holds several at each place: "echo time 4.60 ms"."""
    remarks: tuple[str, ...] = field(default=())
    """Decisions and doubts worth knowing."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(columns, rows, slices, frames)."""
        first = self.planes[0][0]
        return first.columns, first.rows, len(self.planes[0]), len(self.planes)

    @property
    def files(self) -> list[Path]:
        """Files that hold the planes."""
        return sorted({plane.file for frame in self.planes for plane in frame})

    @property
    def ras_affine(self) -> np.ndarray | None:
        """(4, 4) from (column, row, slice) to NIfTI's coordinates in mm."""
        return None if self.affine is None else TO_RAS @ self.affine

    @cached_property
    def places(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(SOP Instance UID, frame of the file) -> (frame, slice) of the stack."""
        return {
            (plane.instance, plane.index): (t, z)
            for t, frame in enumerate(self.planes)
            for z, plane in enumerate(frame)
        }


def stacks_of(planes: Sequence[Plane]) -> list[Stack | UserError]:
    """The stacks of one series; in place of a part that is no regular stack, the reason.

    Raises:
        UserError: if the series as a whole is none: its images differ in size or orientation, or some have no place.
    """
    planes, remarks = _without_copies(planes)
    placed = [plane for plane in planes if plane.has_place]
    if not placed:
        return _without_place(planes, remarks)
    if len(placed) < len(planes):
        raise UserError(
            f"{len(planes) - len(placed)} of {len(planes)} images have no position, orientation or spacing: export the "
            "others as a series of their own"
        )
    _require_alike(planes)
    stacks: list[Stack | UserError] = []
    for part, members in _parts(planes).items():
        try:
            stack = _stack(members)
            stacks.append(replace(stack, part=part, remarks=(*remarks, *stack.remarks)))
        except UserError as error:
            stacks.append(UserError(f"{part}: {error}") if part else error)
    return stacks


def plane_affine(plane: Plane, step: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """(4, 4) from (column, row, slice) to DICOM's coordinates: the third axis is `step`, default the unit normal.

    Raises:
        UserError: if the two directions are no perpendicular unit vectors.
    """
    assert plane.orientation is not None
    assert plane.spacing is not None
    assert plane.position is not None
    along_row, along_column = np.reshape(plane.orientation, (2, 3))
    lengths = np.linalg.norm([along_row, along_column], axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(along_row @ along_column) > PARALLEL:
        raise UserError(
            f"the orientation {[*plane.orientation]} is no pair of perpendicular unit vectors: export it again"
        )
    along_row, along_column = along_row / lengths[0], along_column / lengths[1]
    affine = np.eye(4)
    affine[:3, 0] = along_row * plane.spacing[1]
    affine[:3, 1] = along_column * plane.spacing[0]
    affine[:3, 2] = np.cross(along_row, along_column) if step is None else step
    affine[:3, 3] = plane.position
    return affine


def _without_copies(planes: Sequence[Plane]) -> tuple[list[Plane], tuple[str, ...]]:
    """The planes, each image once: archives hold copies of files."""
    kept: dict[tuple[str, int], Plane] = {}
    for plane in planes:
        other = kept.setdefault((plane.instance, plane.index), plane)
        if replace(other, file=plane.file) != plane:
            raise UserError("two different images have the same SOP Instance UID: export them again with their own")
    copies = len(planes) - len(kept)
    return [*kept.values()], ((f"{count_of(copies, 'image')} present more than once, used once",) if copies else ())


def _require_alike(planes: Sequence[Plane]) -> None:
    sizes = Counter((plane.rows, plane.columns) for plane in planes)
    if len(sizes) > 1:
        counted = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common(3))
        raise UserError(f"the images differ in size ({counted} pixels): export each size as a series of its own")
    spacings = np.array([plane.spacing for plane in planes])
    if not np.allclose(spacings, spacings[0], rtol=1e-3):
        raise UserError(
            f"the images differ in pixel spacing ({spacings.min():g} to {spacings.max():g} mm): export each as a "
            "series of its own"
        )
    groups: list[np.ndarray] = []
    for orientation in np.array([plane.orientation for plane in planes]):
        if not any(np.abs(orientation - other).max() <= PARALLEL for other in groups):
            groups.append(orientation)
    if len(groups) > 1:
        raise UserError(
            f"the images have {len(groups)} orientations, as those of a localiser do: if a stack is among them, export "
            "it as a series of its own"
        )


def _parts(planes: Sequence[Plane]) -> dict[str, list[Plane]]:
    """Planes by echo, b-value or type of image, if that distinguishes images of the same places; else all as one."""
    normal = plane_affine(planes[0])[:3, 2]
    levels = _levels(planes, normal, SAME_PLACE * min(planes[0].spacing or (1.0,)))
    parts: dict[tuple, list[Plane]] = defaultdict(list)
    places: dict[tuple, set[int]] = defaultdict(set)
    for number, level in enumerate(levels):
        for plane in level:
            parts[plane.contrast].append(plane)
            places[plane.contrast].add(number)
    if len(parts) == 1 or any(len(place) < len(levels) for place in places.values()):
        return {"": [*planes]}
    common = set.intersection(*(set(contrast) for contrast in parts))
    named: dict[str, list[Plane]] = {}
    for contrast, part in parts.items():
        own = ", ".join(f"{name} {value}" for name, value in contrast if (name, value) not in common)
        named[own or "the others"] = part
    return named


def _along(plane: Plane, normal: np.ndarray) -> float:
    return float(np.dot(plane.position or (0, 0, 0), normal))


def _stack(planes: Sequence[Plane]) -> Stack:
    normal = plane_affine(planes[0])[:3, 2]
    pixel = min(planes[0].spacing or (1.0,))
    levels = _levels(planes, normal, SAME_PLACE * pixel)
    frames, time_step, remarks = _in_time(levels)
    centres = np.array([np.array([plane.position for plane in level]).mean(axis=0) for level in levels])
    for level, centre in zip(levels, centres, strict=True):
        if np.abs(np.array([plane.position for plane in level]) - centre).max() > SHIFT * pixel:
            raise UserError(
                "images of one slice position are shifted against each other within their plane: register them before"
            )
    step, more = _step(centres, normal, pixel, planes[0].thickness)
    affine = plane_affine(replace(planes[0], position=tuple(centres[0])), step)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Stack(
        planes=frames,
        affine=affine,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        time_step=time_step,
        remarks=(*remarks, *more),
    )


def _levels(planes: Sequence[Plane], normal: np.ndarray, tolerance: float) -> list[list[Plane]]:
    """The planes of each place along the normal, in ascending order."""
    ordered = sorted(planes, key=lambda plane: _along(plane, normal))
    levels = [[ordered[0]]]
    for plane in ordered[1:]:
        if _along(plane, normal) - _along(levels[-1][0], normal) <= tolerance:
            levels[-1].append(plane)
        else:
            levels.append([plane])
    return levels


def _in_time(levels: Sequence[Sequence[Plane]]) -> tuple[tuple[tuple[Plane, ...], ...], float | None, list[str]]:
    """The planes as [frame][slice], the time step in seconds, and remarks."""
    counts = {len(level) for level in levels}
    if len(counts) > 1:
        raise UserError(
            f"{min(counts)} to {max(counts)} images at the {len(levels)} slice positions: some are missing or "
            "repeated; export all of them once"
        )
    if counts == {1}:
        return (tuple(level[0] for level in levels),), None, []
    for name in TIMES:
        times = np.array([sorted(plane.times.get(name, np.nan) for plane in level) for level in levels])
        steps = np.diff(times, axis=1)
        if not (steps > 0).all() or (name == "temporal position" and (times != times[0]).any()):
            continue  # NaN compares as False
        ordered = [sorted(level, key=lambda plane, name=name: plane.times[name]) for level in levels]  # type: ignore[misc]
        frames = tuple(zip(*ordered, strict=True))
        remarks = [f"{len(frames)} frames by {name}"]
        if name == "temporal position":
            return frames, None, [*remarks, "time between frames unknown"]
        mean = float(steps.mean())
        if np.abs(steps - mean).max() > UNEVEN_TIMES * mean:
            remarks.append(
                f"frames are {steps.min() * 1000:.4g} to {steps.max() * 1000:.4g} ms apart, mean {mean * 1000:.4g}"
            )
        return frames, mean, remarks
    raise UserError(
        f"{counts.pop()} images at each slice position, and neither trigger time, temporal position nor acquisition "
        "time tells them apart: export the series again with its times"
    )


def _step(
    centres: np.ndarray, normal: np.ndarray, pixel: float, thickness: float | None
) -> tuple[np.ndarray, list[str]]:
    """The vector from one slice to the next, and remarks."""
    if len(centres) == 1:
        remark = [] if thickness else ["slice thickness unknown, 1 mm is written"]
        return normal * (thickness or 1.0), remark
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    distance = float(step @ normal)
    away = centres - (centres[0] + np.arange(len(centres))[:, None] * step)
    gaps = np.diff(centres @ normal)
    if np.abs(away @ normal).max() > SHIFT * distance:
        raise UserError(
            f"the slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart: slices are missing, or spaced unevenly; "
            "export the whole series again, or resample it"
        )
    within = away - np.outer(away @ normal, normal)
    if np.linalg.norm(within, axis=1).max() > SHIFT * pixel:
        raise UserError("the slices are shifted against each other within their planes: resample them to an even stack")
    if np.linalg.norm(step - distance * normal) > TILT * distance:
        raise UserError(
            "the slices are stacked at an angle (tilted gantry), which no voxel grid of NIfTI keeps upright: "
            "resample them to an even stack"
        )
    remarks = []
    if thickness and distance > 2.5 * thickness:
        remarks.append(f"slices of {thickness:.4g} mm lie {distance:.4g} mm apart: some may be missing")
    return step, remarks


def _without_place(planes: Sequence[Plane], remarks: tuple[str, ...]) -> list[Stack | UserError]:
    """A stack for each file of projection images and the like, which have no place in the patient."""
    by_file: dict[Path, list[Plane]] = defaultdict(list)
    for plane in planes:
        by_file[plane.file].append(plane)
    stacks: list[Stack | UserError] = []
    for position, members in enumerate(by_file.values(), 1):
        part = f"image {position}" if len(by_file) > 1 else ""
        row_mm, column_mm = members[0].spacing or (1.0, 1.0)
        own = [
            "no position in the patient",
            *([] if members[0].spacing else ["pixel spacing unknown, 1 mm is written"]),
        ]
        try:
            frames, time_step, more = _in_time([members])
        except UserError:
            reason = f"{len(members)} frames, and nothing says whether they are times or slices"
            stacks.append(UserError(f"{reason}: export the series again with positions or times"))
            continue
        own = [*remarks, *own, *more]
        spacing = (column_mm, row_mm, 1.0)
        stacks.append(
            Stack(planes=frames, affine=None, spacing=spacing, time_step=time_step, part=part, remarks=tuple(own))
        )
    return stacks
