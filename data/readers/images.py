"""Read and write image files: NIfTI volumes and 2D PNG, TIFF or JPEG images, in file units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from PIL import ExifTags, Image

from core.errors import UserError
from core.files import write_atomically
from data.readers.colour import grey_or_rgb_pages, grey_pages, has_deep_colour, is_rgb
from data.readers.decoding import decode_nifti, naming, native, open_nifti, open_planar, require_slices, spacing_of
from data.readers.geometry import SliceAxis, slice_axis, with_known_spacing, world_affine

NIFTI_SUFFIXES = (".nii.gz", ".nii")
LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg")
PLANAR_SUFFIXES = LOSSLESS_SUFFIXES + JPEG_SUFFIXES
IMAGE_SUFFIXES = NIFTI_SUFFIXES + PLANAR_SUFFIXES

SLICE_COLUMNS = ["subject", "group", "phase", "frame", "slice", "file", "label_file", "labelled", "split"]
"""Columns of an index of slices, see ``data.readers.acdc.index_acdc``."""

Problems = dict[Path, UserError] | None
"""Collects the errors of unreadable files; None: the first one is raised."""

PLANAR_DTYPES = {"F": "float32", "I": "int32", "I;16": "uint16", "I;16B": "uint16", "I;16L": "uint16"}


class VolumeShape(NamedTuple):
    """Shape, spacing, data type and place of an image file, as its header says.

    ``shape`` is (X, Y, Z) or (X, Y, Z, T), ``spacing`` (x_mm, y_mm, z_mm), ``dtype`` that of the stored numbers,
    ``affine`` (4, 4) from voxels to mm or None, see ``geometry.world_affine``; ``slicing`` chooses ``slice_axis``;
    ``colours`` is whether the file holds colours or vectors, which are frames here if they are read by channels.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    dtype: np.dtype
    affine: np.ndarray | None = None
    slicing: SliceAxis = "auto"
    colours: bool = False

    @property
    def slice_axis(self) -> int:
        """The axis across the slices, see ``data.readers.geometry.slice_axis``."""
        return slice_axis(self)

    @property
    def slices(self) -> int:
        """Number of slices along ``slice_axis``."""
        return self.shape[self.slice_axis]

    @property
    def frames(self) -> int:
        """Number of time frames, 1 for a 3D volume."""
        return self.shape[3] if len(self.shape) == 4 else 1

    @property
    def slice_spacing(self) -> tuple[float, float, float]:
        """(row_mm, column_mm, slice_mm): between rows, between columns and between slices."""
        column, row = (mm for axis, mm in enumerate(self.spacing) if axis != self.slice_axis)
        return row, column, self.spacing[self.slice_axis]


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """One image file, decoded.

    ``values`` is (X, Y, Z) or (X, Y, Z, T) in the file's own units, ``spacing`` (x_mm, y_mm, z_mm) from the
    header's zooms (genuine ACDC files carry a unit affine), ``affine`` and ``header`` are kept for writing;
    ``header`` is None for PNG, TIFF and JPEG; ``slicing`` chooses the slice axis.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    header: Any
    path: Path
    slicing: SliceAxis = "auto"

    @cached_property
    def shape(self) -> VolumeShape:
        """Shape, spacing, dtype and place together."""
        affine = world_affine(self.header)
        return VolumeShape(self.values.shape, self.spacing, self.values.dtype, affine, self.slicing)

    @property
    def stack(self) -> np.ndarray:
        """(frames, slices, rows, columns), a view: slice z of ``data[X, Y, Z]`` is ``data[:, :, z].T``."""
        stack = np.moveaxis(self.values, self.shape.slice_axis, 2).T
        return stack if stack.ndim == 4 else stack[None]


def is_image(path: Path) -> bool:
    """Whether a file is a supported image by its name; hidden files (``._scan.nii`` of macOS) are not."""
    return path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The file's name without its image suffix, ``.nii.gz`` counting as one."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def read_volume(path: Path, *, label_map: bool = False, channels: bool = False) -> Volume:
    """Read a ``.nii``, ``.nii.gz``, ``.png``, ``.tif`` or ``.jpg`` file.

    Stored numbers keep their type unless the header asks for scaling, which gives float32. The checksum of a gzip
    stream is verified; bytes after the voxels are ignored. PNG, TIFF and JPEG have spacing 1 mm; the pages
    of a TIFF are slices; colour becomes grey, but see ``colour.grey_pages`` for a ``label_map``. With ``channels``
    colours, and the vectors (X, Y, Z, 1, C) of a NIfTI file, are kept: the last axis of (X, Y, Z, C), without
    transparency.

    Raises:
        UserError: if the file is missing, cut short, or no image of these kinds.
    """
    path = Path(path)
    with naming(path):
        if path.name.lower().endswith(PLANAR_SUFFIXES):
            with open_planar(path) as (image, _):
                _require_upright(path, image)
                pages = grey_or_rgb_pages(image, path) if channels else grey_pages(image, path, label_map=label_map)
            values = np.stack(pages).swapaxes(0, 2)  # (columns, rows, pages[, colours])
            if values.dtype == bool:
                values = values.astype(np.uint8)
            return Volume(values=native(values), spacing=(1.0, 1.0, 1.0), affine=np.eye(4), header=None, path=path)
        nifti = open_nifti(path, channels=channels)
        shape = _shape(path, nifti)
        values = decode_nifti(path, nifti)
        if values.dtype.fields:
            values = np.stack([values[colour] for colour in "RGB"], axis=-1)
        values = values.reshape(shape.shape, order="F")
        return Volume(values=values, spacing=shape.spacing, affine=nifti.affine, header=nifti.header, path=path)


def read_shape(path: Path, *, channels: bool = False) -> VolumeShape:
    """Read only the header: shape, spacing in mm and stored dtype; `channels` as in `read_volume`.

    Raises:
        UserError: if the file is missing or no image.
    """
    path = Path(path)
    with naming(path):
        if path.name.lower().endswith(PLANAR_SUFFIXES):
            with open_planar(path) as (image, pages):
                _require_upright(path, image)
                dtype = np.dtype("uint16" if has_deep_colour(image) else PLANAR_DTYPES.get(image.mode, "uint8"))
                rgb = is_rgb(image)
                shape = (*image.size, pages, *((3,) if channels and rgb else ()))
                return VolumeShape(shape, (1.0, 1.0, 1.0), dtype, colours=rgb)
        return _shape(path, open_nifti(path, channels=channels))


def _require_upright(path: Path, image: Image.Image) -> None:
    """Raise a UserError if viewers would turn the image: its label map may have been drawn either way."""
    if image.format == "JPEG" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        raise UserError(
            f"{path} is stored turned or mirrored (EXIF orientation), so that its label map may not lie as its pixels "
            "do: save it upright, e.g. by ImageMagick's `mogrify -auto-orient`"
        )


def shape_or_problem(path: Path, problems: Problems, slicing: SliceAxis = "auto") -> VolumeShape | None:
    """Read only the header; None if that fails and the error is added to `problems`."""
    try:
        return read_shape(path)._replace(slicing=slicing)
    except UserError as error:
        if problems is None:
            raise
        problems[path] = error
        return None


def require_in_file(file: Path, held: int, channels: Sequence[int]) -> None:
    """Raise a UserError unless a file of `held` channels has those that are chosen.

    The one channel of a file is its channel 0, or the single chosen one whose number ends the name (case_0001).
    """
    largest = max(channels)
    if largest < held or (held == len(channels) == 1 and stem(file).endswith(f"_{largest:04d}")):
        return
    what = "one channel" if held == 1 else f"the channels 0 to {held - 1}"
    if len(channels) == 1:
        raise UserError(
            f"{file} has {what}, and channel {largest} is missing: choose another by --channels (a model keeps that of "
            f"its training), or end the name of a file of that channel alone with _{largest:04d}"
        )
    raise UserError(
        f"{file} has {what}, and channel {largest} of the chosen {' '.join(map(str, channels))} is missing: add a file "
        "of each channel (case_0000, case_0001), or choose others by --channels"
    )


def one_channel(volume: Volume, channel: int) -> Volume:
    """The 3D volume of one channel, from 0; a UserError as of `require_in_file` if there is no such channel."""
    require_in_file(volume.path, volume.shape.frames, (channel,))
    if volume.values.ndim == 3:
        return volume
    header = None if volume.header is None else volume.header.copy()
    if header is not None:
        if len(header.get_data_shape()) > 4:
            header.set_intent("none")  # no vectors any more
        header.set_data_shape(volume.shape.shape[:3])
    return replace(volume, values=volume.values[..., channel], header=header)


def label_suffix(image: Path) -> str:
    """The suffix of a label map that is to be written for an image: its own, but a JPEG would blur the classes."""
    suffix = image.name[len(stem(image)) :]
    return ".png" if suffix.lower() in JPEG_SUFFIXES else suffix


def write_label_map(path: Path, stack: np.ndarray, like: Volume) -> None:
    """Write labels on the grid of the image they belong to: its shape, affine and zooms, uint8, unscaled.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.tif`` for a stack of slices, or ``.png`` for a single one.
            Missing folders are created.
        stack: (frames, slices, rows, columns) class indices 0..255, as ``like.stack``.
        like: the image.

    Raises:
        ValueError: if the shapes differ (both are named).
    """
    _write_on_grid(path, stack, like, np.uint8)


def write_map(path: Path, stack: np.ndarray, like: Volume) -> None:
    """Write float32 values, such as an uncertainty, on the grid of an image, as `write_label_map` writes labels.

    Args:
        path: ``.nii``, ``.nii.gz``, or ``.tif`` for a PNG, TIFF or JPEG image.
        stack: (frames, slices, rows, columns), as ``like.stack``.
        like: the image.

    Raises:
        ValueError: if the shapes differ (both are named).
    """
    _write_on_grid(path, stack, like, np.float32)


def _write_on_grid(path: Path, stack: np.ndarray, like: Volume, dtype: type[np.uint8] | type[np.float32]) -> None:
    if stack.shape != like.stack.shape:
        raise ValueError(f"stack {stack.shape} does not fit the image stack {like.stack.shape} of {like.path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.lower().endswith(PLANAR_SUFFIXES):
        frames, slices = stack.shape[:2]
        if frames > 1 or (slices > 1 and path.suffix.lower() == ".png"):
            raise UserError(f"{path} can hold one slice and {like.path} has more: write a .nii.gz file")
        first, *others = (Image.fromarray(page.astype(dtype, copy=False)) for page in stack[0])
        options: dict[str, Any] = {"save_all": True, "append_images": others} if others else {}
        write_atomically(path, lambda file: first.save(file, **options))
        return
    values = np.moveaxis(stack.astype(dtype, copy=False).T, 2, like.shape.slice_axis)
    if like.header is None:
        write_atomically(path, nib.Nifti1Image(values[..., 0], like.affine).to_filename)
        return
    header = like.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the image's display window would hide the labels
    for name in ("descrip", "db_name", "aux_file", "intent_name"):  # they may name the patient
        if name in header:
            header[name] = b""
    header.extensions.clear()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(values.reshape(header.get_data_shape(), order="F"), like.affine, header)
    write_atomically(path, image.to_filename)


def _shape(path: Path, nifti: Any) -> VolumeShape:
    shape = tuple(int(size) for size in nifti.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (3 - len(shape))
    if vectors := len(shape) == 5:  # which `open_nifti` lets pass as channels alone
        shape = shape[:3] + shape[4:]
    if shape[:3].count(1) > 1:
        raise UserError(f"{path} has the shape {shape}: a line of voxels is no image; remove it, or export it again")
    stored, affine = np.dtype(nifti.get_data_dtype().newbyteorder("=")), world_affine(nifti.header)
    if stored.fields:
        shape, stored = (*shape, 3), np.dtype(np.uint8)
    colours = bool(vectors or nifti.get_data_dtype().fields)
    volume = with_known_spacing(VolumeShape(shape, spacing_of(path, nifti), stored, affine, colours=colours))
    require_slices(path, math.prod(shape[:3]) // volume.slices, volume.slices * volume.frames)
    return volume
