"""Geometry of image files: the axis of their slices, their place in the world, and label maps brought onto an image.

The world's axes are nibabel's: x to the patient's right-left, y posterior-anterior, z inferior-superior. Many files
have no place in it, genuine ACDC files and masks saved without a header among them: their affine is the unit matrix,
possibly with signs, or none at all. Of such files only the spacing in the header counts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from nibabel.openers import Opener
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from core.errors import UserError
from data.readers.decoding import MM_PER_UNIT

if TYPE_CHECKING:
    from data.readers.images import Volume, VolumeShape

log = logging.getLogger("fewslice")

SliceAxis = Literal["auto", "0", "1", "2", "sagittal", "coronal", "axial"]
"""Choice of the axis across the slices, see `slice_axis`."""
Plane = Literal["sagittal", "coronal", "axial"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""The planes across the world's x, y and z."""

COARSE = 1.1
"""How many times larger the spacing across slices must be than the others to count; less may be rounding."""
SCALE = 0.025
"""Largest relative difference of two spacings that may be rounding."""
SHIFT = 0.1
"""Largest distance, in voxels, between two grids that may be rounding."""
TURN = 0.25
"""Largest distance, in voxels, at the far end of an axis that a rounded direction may make."""


def coded_affine(header: Any) -> np.ndarray | None:
    """Affine (4, 4) of a NIfTI header from voxel indices to mm; None if it has no code or cannot be inverted."""
    if header is None or not (header["sform_code"] > 0 or header["qform_code"] > 0):
        return None
    affine = np.array(header.get_best_affine(), float)
    if not _is_invertible(affine):
        return None
    with suppress(KeyError):  # of a unit that is not in the standard
        affine[:3] *= MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    return affine


def world_affine(header: Any) -> np.ndarray | None:
    """`coded_affine`, but None also for a unit matrix, possibly with signs: the file has no place in the world."""
    affine = coded_affine(header)
    return None if affine is None or np.allclose(np.abs(affine), np.eye(4)) else affine


def slice_axis(shape: VolumeShape) -> int:
    """The axis across the slices, 0, 1 or 2.

    The setting `shape.slicing` chooses it: an axis of the array, or a plane, by the affine; a file without a place in
    the world has its axial slices across axis 2. With "auto" it is the axis of size 1 if there is one, else the axis
    that is clearly coarser than the others (more than `COARSE` times), else 2.
    """
    if shape.slicing in ("0", "1", "2"):
        return int(shape.slicing)
    if shape.slicing != "auto":
        return _world_axes(shape).index(PLANES.index(shape.slicing))
    coarse = _distinct_axis(shape)
    return 2 if coarse is None else coarse


def plane(shape: VolumeShape) -> Plane | None:
    """The plane of the slices, by the closest axis of the world; None for files without a place in the world."""
    return None if shape.affine is None else PLANES[_world_axes(shape)[shape.slice_axis]]


def slice_axis_to_save(shapes: Sequence[VolumeShape]) -> SliceAxis:
    """The setting with which a model that was trained on some files must read others.

    It is the setting of the files. But where this is "auto" and the plane was no property of the files, as no axis of
    theirs was coarser than the others, it is the plane they were sliced in: other files may be stored otherwise.
    """
    settings = {shape.slicing for shape in shapes}
    planes = {plane(shape) for shape in shapes}
    if settings == {"auto"} and len(planes) == 1 and all(_distinct_axis(shape) is None for shape in shapes):
        return next(iter(planes)) or "auto"
    return settings.pop() if len(settings) == 1 else "auto"


def common_plane(shapes: Sequence[VolumeShape]) -> Plane | None:
    """The plane of the slices of files that share one; None if they have several, none in the world, or oblique ones.

    The closest plane to a short axis of the heart, say, differs from patient to patient.
    """
    planes = {None if is_oblique(shape) else plane(shape) for shape in shapes}
    return planes.pop() if len(planes) == 1 else None


def is_oblique(shape: VolumeShape) -> bool:
    """Whether the direction across the slices is more than 25 degrees from each axis of the world."""
    if shape.affine is None:
        return False
    across = shape.affine[:3, shape.slice_axis]
    return bool(np.abs(across).max() < math.cos(math.radians(25)) * np.linalg.norm(across))


def slicing_like(trained: Plane | None, setting: SliceAxis, shape: VolumeShape) -> SliceAxis:
    """The setting with which a model reads a file: its own, but the plane of the files that it was trained on where
    that is "auto" and no axis of the file is coarser than the others."""
    if trained is None or setting != "auto" or shape.affine is None or _distinct_axis(shape) is not None:
        return setting
    return trained


def with_known_spacing(shape: VolumeShape) -> VolumeShape:
    """The shape with the spacing of its affine where the header has none, that is 1 along each axis."""
    if shape.affine is None or shape.spacing != (1, 1, 1):
        return shape
    x, y, z = np.linalg.norm(shape.affine[:3, :3], axis=0).tolist()
    return shape if np.allclose((x, y, z), 1, rtol=SCALE) else shape._replace(spacing=(x, y, z))


def check_planes(labelled: Mapping[Path, VolumeShape], unlabelled: Mapping[Path, VolumeShape]) -> None:
    """Raise a UserError if labelled files of a data set differ in plane; log a warning if only unlabelled ones do."""
    if difference := differing_planes(labelled):
        raise UserError(difference)
    if difference := differing_planes({**labelled, **unlabelled}):
        log.warning("%s", difference)


def differing_planes(shapes: Mapping[Path, VolumeShape]) -> str:
    """A sentence that names two files which would be sliced in different planes; "" if there are none.

    Slices across one axis of the array count as one plane, as oblique acquisitions of one kind are stored alike; so do
    slices of one plane of the world, as one file may be stored slices first and the other slices last. Where no axis
    of a file is coarser than the others, only the plane of the world counts.
    """
    if any(shape.slicing != "auto" for shape in shapes.values()):
        return ""
    files: dict[tuple[int, str], Path] = {}
    isotropic: dict[str, Path] = {}
    for file, shape in shapes.items():
        name = plane(shape) or PLANES[shape.slice_axis]
        files.setdefault((shape.slice_axis, name), file)
        if _distinct_axis(shape) is None and shape.affine is not None:
            isotropic.setdefault(name, file)
    axes, names = {axis for axis, _ in files}, {name for _, name in files}
    differing = dict(files) if len(axes) > 1 and len(names) > 1 else {}
    if not differing and len(isotropic) > 1:
        differing = {(shapes[file].slice_axis, name): file for name, file in isotropic.items()}
    if not differing:
        return ""
    each = "; ".join(f"{file}: {name}, across axis {axis}" for (axis, name), file in list(differing.items())[:3])
    return (
        f"the files would be sliced in different planes ({each}): choose one for all with --slice-axis, "
        f"{', '.join(PLANES)} or an axis of the arrays"
    )


def align(mask: Volume, image: Volume) -> Volume:
    """Bring a label map onto the voxel grid of its image, whose geometry it takes.

    If their affines describe one grid, axes are swapped and flipped as these say. If one of the two has no place in
    the world, or is no NIfTI file, the arrays must agree as they are.

    Raises:
        UserError: naming both files and what differs: shape, spacing, direction or origin.
    """
    aligned, difference = mask.values, ""
    affines = coded_affine(image.header), coded_affine(mask.header)
    if affines[0] is not None and affines[1] is not None:
        aligned, difference = _onto(image, affines[0], mask, affines[1])
    if image.shape.affine is None or mask.shape.affine is None:
        aligned = mask.values if difference else aligned
        difference = _spacing_difference(mask, image) if aligned is mask.values else ""
    if not difference and aligned.shape != image.values.shape:
        difference = f"shape {_times(mask.values.shape)} for {_times(image.values.shape)}"
    if difference:
        raise UserError(
            f"{mask.path} does not lie on the voxel grid of {image.path} ({difference}): save it on that grid"
        )
    return replace(image, values=aligned, path=mask.path)


def header_disagreement(volume: Volume) -> str:
    """The contradiction between two entries of a NIfTI header; "" if there is none, and for other files."""
    header, affine = volume.header, volume.shape.affine
    if affine is None:
        return ""
    with suppress(HeaderDataError, ValueError):  # of a qform that is no rotation
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        both = sform is not None and qform is not None and _is_invertible(qform)
        if both and not _same_grid(sform, qform, volume.values.shape[:3]):
            return "has an sform and a qform that differ: the sform is used"
    counted = np.array(volume.values.shape[:3]) > 1
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(spacing[counted], np.array(volume.spacing)[counted], rtol=SCALE):
        return f"has the spacing {_mm(spacing)} mm in its affine but {_mm(volume.spacing)} in pixdim, which is used"
    return ""


def stored_spacing(volume: Volume) -> np.ndarray:
    """Spacing (x, y, z) as the file holds it, in its unit; nibabel replaces zeros by 1 when it loads a file."""
    with Opener(str(volume.path)) as stream:
        header = type(volume.header).from_fileobj(stream, check=False)
    return np.array(header["pixdim"][1 : 1 + min(int(header["dim"][0]), 3)], float)


def known_spacing(volume: Volume) -> tuple[bool, bool]:
    """Whether a file states the size of its pixels, and the distance of its slices; else 1 mm is assumed."""
    if volume.header is None:
        return False, False
    stored = stored_spacing(volume)
    stored = np.pad(stored, (0, 3 - len(stored)))  # a file of one slice need not state the third
    if volume.spacing != (1, 1, 1) and np.isin(stored, (0, 1)).all():  # see `with_known_spacing`
        return True, True
    across = volume.shape.slice_axis
    return bool(np.delete(stored, across).min() > 0), bool(stored[across] > 0)


def _distinct_axis(shape: VolumeShape) -> int | None:
    """The axis of size 1, else the one clearly coarser than the others, else None."""
    if 1 in shape.shape[:3]:
        return next(axis for axis in (2, 0, 1) if shape.shape[axis] == 1)
    first, second = np.argsort(shape.spacing)[::-1][:2]
    return int(first) if shape.spacing[first] > COARSE * shape.spacing[second] else None


def _world_axes(shape: VolumeShape) -> list[int]:
    """The world's axis that is closest to each axis of the array."""
    if shape.affine is None:
        return [0, 1, 2]
    return [int(axis) for axis in io_orientation(shape.affine)[:, 0]]


def _is_invertible(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3)


def _onto(image: Volume, image_affine: np.ndarray, mask: Volume, mask_affine: np.ndarray) -> tuple[np.ndarray, str]:
    """The values of a label map in the axis order and directions of the image, and how the two grids still differ."""
    if np.array_equal(image_affine, mask_affine):  # most pairs
        return mask.values, ""
    orientation = io_orientation(np.linalg.inv(image_affine) @ mask_affine)
    values = apply_orientation(mask.values, orientation)
    affine = mask_affine @ inv_ornt_aff(orientation, mask.values.shape[:3])
    if values.shape[:3] != image.values.shape[:3]:
        return values, f"shape {_times(values.shape)} for {_times(image.values.shape)}"
    # A 2D file says nothing about the place and thickness of its slice.
    planar = any(volume.header["dim"][0] < 3 for volume in (image, mask))
    same = _same_grid(image_affine, affine, values.shape[:3], planar)
    return values, "" if same else _difference(image_affine, affine)


def _same_grid(one: np.ndarray, other: np.ndarray, sizes: Sequence[int], planar: bool = False) -> bool:
    """Whether two affines of one shape describe the same grid, but for rounding."""
    steps = np.array(sizes) - 1  # along an axis of size 1 neither spacing nor direction matters
    error = np.linalg.inv(one) @ other - np.eye(4)
    scale, shift = np.diagonal(error)[:3], error[:3, 3]
    turn = (error[:3, :3] - np.diag(scale)) * steps  # shift at the far end of each axis, in voxels
    near, far = np.abs(shift), np.abs(shift + scale * steps)
    shifted = np.minimum(near, far) if (np.abs(scale * (steps > 0)) <= SCALE).all() else np.full(3, np.inf)
    counted = slice(0, 2) if planar else slice(None)
    return bool((shifted[counted] <= SHIFT).all() and (np.abs(turn[counted]) <= TURN).all())


def _difference(one: np.ndarray, other: np.ndarray) -> str:
    """The difference between two affines of one shape, in words."""
    spacings = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (one, other)]
    parts = []
    if not np.allclose(spacings[0], spacings[1], rtol=SCALE):
        parts.append(f"spacing {_mm(spacings[1])} for {_mm(spacings[0])} mm")
    if not np.allclose(one[:3, :3] / spacings[0], other[:3, :3] / spacings[1], atol=1e-3):
        parts.append("direction")
    if not np.allclose(one[:3, 3], other[:3, 3], atol=SHIFT * spacings[0].min()):
        parts.append(f"origin {_mm(other[:3, 3])} for {_mm(one[:3, 3])} mm")
    return ", ".join(parts) or "direction"


def _spacing_difference(mask: Volume, image: Volume) -> str:
    """The difference in spacing of two files, one of them without a place in the world; spacing 1 counts as unknown."""
    one, other = np.array(mask.spacing), np.array(image.spacing)
    counted = np.array(image.values.shape[:3]) > 1
    known = not np.allclose(one, 1) and not np.allclose(other, 1) and mask.values.shape == image.values.shape
    if not known or np.allclose(one[counted], other[counted], rtol=SCALE):
        return ""
    return f"spacing {_mm(one)} for {_mm(other)} mm"


def _mm(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def orientation_name(affine: np.ndarray) -> str:
    """Directions of the array's axes, such as "LPS"; "unknown" for an affine that is not invertible."""
    return "".join(nib.aff2axcodes(affine)) if _is_invertible(affine) else "unknown"
