"""Decode image files whose headers were checked first: what they promise must be there and fit into memory.

The limits keep a tiny damaged or malicious file from filling the memory. A file may unpack to `LARGEST_GB`, or as
FEWSLICE_MAX_VOLUME_GB says; one that unpacks to more than `BOMB_RATIO` times its size, to `BOMB_GB` only.
"""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import deflate
import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from PIL import Image

from core.errors import UserError
from core.text import require_utf8

LARGEST_GB = 4.0
BOMB_GB, BOMB_RATIO = 0.65, 100  # a label map of 512 x 512 x 300 as float64 is read
DEFLATE_RATIO = 1032
"""Highest compression ratio of zlib."""
MOST_PIXELS = 100_000_000
"""Largest slice: 10,000 x 10,000 pixels."""
MOST_SLICES = 200_000
"""Slices of all frames of one file."""
LARGEST_HEADER = 2**26
"""Bytes of a NIfTI header with its extensions."""
SPACING_MM = (1e-6, 1000.0)
"""Smallest and largest distance of voxels that is believed."""
MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
PLANAR_FORMATS = ("PNG", "TIFF", "JPEG")
"""Decoders that Pillow may use. It knows others, of which that of EPS runs a program on the file."""

Image.MAX_IMAGE_PIXELS = None  # `require_slices` has the limit; Pillow's is an exception of no common base class


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn every exception of the libraries that read a file into one UserError that names the file.

    They raise errors of any type on damaged files, from SyntaxError to struct.error, and MemoryError on false sizes.
    """
    require_utf8(path, "the name")
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
        raise UserError(f"{path} cannot be read ({reason}): the file is damaged, or no image; copy it again") from error


def require_slices(path: Path, pixels: int, slices: int) -> None:
    """Raise a UserError if a file's slices have more pixels than `MOST_PIXELS`, or are more than `MOST_SLICES`."""
    if pixels > MOST_PIXELS:
        raise UserError(f"{path} has slices of {pixels:,} pixels, {MOST_PIXELS:,} are possible: cut it into tiles")
    if slices > MOST_SLICES:
        raise UserError(f"{path} has {slices:,} slices, {MOST_SLICES:,} are possible: divide it into several files")


def require_memory(path: Path, needed: int) -> None:
    """Raise a UserError if decoding a file takes more bytes than the limits of this module, compared with its size."""
    limit = os.environ.get("FEWSLICE_MAX_VOLUME_GB", "")
    try:
        most = float(limit or LARGEST_GB)
    except ValueError:
        raise UserError(f"FEWSLICE_MAX_VOLUME_GB={limit} is no number: set it to a size in GB, or unset it") from None
    if not limit and needed > BOMB_RATIO * path.stat().st_size:
        most = BOMB_GB
    if not needed <= most * 1e9:
        raise UserError(
            f"{path} would take {needed / 1e9:.1f} GB of memory from a file of {path.stat().st_size / 1e6:.3f} MB, "
            f"{most:g} GB are allowed: set FEWSLICE_MAX_VOLUME_GB higher if you trust the file"
        )


@contextmanager
def open_planar(path: Path) -> Iterator[tuple[Image.Image, int]]:
    """Open a PNG, TIFF or JPEG file, whatever its suffix, without decoding it; yields it and its number of pages."""
    with Image.open(path, formats=PLANAR_FORMATS) as image:
        pages = int(getattr(image, "n_frames", 1))
        if image.format != "TIFF" and pages > 1:
            raise UserError(f"{path} is an animation of {pages} images: save them as pages of a TIFF file")
        require_slices(path, math.prod(image.size), pages)
        require_memory(path, 2 * _page_bytes(image))
        total, size = 0, image.size
        for page in range(pages):
            image.seek(page)
            total += _page_bytes(image)
            if image.size != size:
                sizes = f"{size[0]} x {size[1]} and {image.size[0]} x {image.size[1]} pixels"
                raise UserError(f"{path} has pages of {sizes}: save pages of one size, or a file for each")
        require_memory(path, 2 * total)
        image.seek(0)
        yield image, pages


def _page_bytes(image: Image.Image) -> int:
    """Bytes of a decoded page: of four in the modes with floats or wide integers."""
    return math.prod(image.size) * (4 if image.mode[0] in "IF" else len(image.getbands()))


def open_nifti(path: Path, *, channels: bool = False) -> Any:
    """Read the header of a NIfTI file and check that the file can hold what it describes.

    Args:
        path: the file.
        channels: whether colours (RGB or RGBA) and vectors (X, Y, Z, 1, C) are possible.

    Returns:
        The nibabel image; its numbers are read by `decode_nifti`, not from the image.

    Raises:
        UserError: if it holds colours or vectors without `channels`, complex numbers, or is too large.
    """
    compressed = path.name.lower().endswith(".gz")
    with gzip.open(path) if compressed else path.open("rb") as stream:
        start = stream.read(544)
        kind, offset = _kind_and_offset(start)
        start += stream.read(max(0, offset - len(start)))
    nifti: Any = kind.from_stream(io.BytesIO(start))  # so that no extension of the header is longer than the header
    shape, dtype, proxy = tuple(map(int, nifti.shape)), nifti.get_data_dtype(), nifti.dataobj
    if dtype.kind not in "iuf" and not (channels and dtype.fields):
        what = "colours" if dtype.fields else f"numbers of type {dtype}"
        raise UserError(f"{path} holds {what}, integers or real numbers are needed: convert it to grey values")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if channels and len(shape) == 5 and shape[3] == 1:
        shape = shape[:3] + shape[4:]
    if len(shape) > (3 if dtype.fields else 4):
        raise UserError(f"{path} has the shape {shape}, not (X, Y, Z) or (X, Y, Z, T): save a file for each volume")
    if not shape or min(shape) < 1:
        raise ValueError(f"its shape is {shape}")
    held, size = proxy.offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if held > (size + 1) * (DEFLATE_RATIO if compressed else 1):
        raise ValueError(f"its header describes {held:,} bytes, more than a file of {size:,} bytes can hold")
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    require_memory(path, math.prod(shape) * (dtype.itemsize + (12 if scaled else 0)))
    return nifti


def _kind_and_offset(start: bytes) -> tuple[Any, int]:
    """The nibabel class and the position of the numbers, from the first bytes of a NIfTI file."""
    for order in "<>":
        if len(start) >= 348 and struct.unpack(order + "i", start[:4])[0] == 348:
            offset = struct.unpack(order + "f", start[108:112])[0]
            break
        if len(start) >= 540 and struct.unpack(order + "i", start[:4])[0] == 540:
            offset = struct.unpack(order + "q", start[168:176])[0]
            break
    else:
        raise ValueError("it is compressed, name it .nii.gz" if start[:2] == b"\x1f\x8b" else "no NIfTI header")
    if not 0 <= offset <= LARGEST_HEADER:
        raise ValueError(f"its header puts the voxels at byte {offset:g}")
    return nib.Nifti1Image if start[:4] in (b"\\\1\0\0", b"\0\0\1\\") else nib.Nifti2Image, int(offset)


def spacing_of(path: Path, nifti: Any) -> tuple[float, float, float]:
    """(x_mm, y_mm, z_mm) from the zooms of a header, 1 mm for a zoom of zero, which was never filled in.

    Raises:
        UserError: if a distance, its unit or the affine matrix cannot be meant.
    """
    try:
        factor = MM_PER_UNIT.get(nifti.header.get_xyzt_units()[0], 1.0)
    except KeyError:
        code = int(nifti.header["xyzt_units"])
        raise UserError(f"{path} has an unknown unit of length (xyzt_units {code}): repair its header") from None
    zooms = [float(zoom) for zoom in nifti.header.get_zooms()[:3]]
    x, y, z = [zoom * factor if zoom else 1.0 for zoom in zooms] + [1.0] * (3 - len(zooms))
    if not all(SPACING_MM[0] <= mm <= SPACING_MM[1] for mm in (x, y, z)):
        raise UserError(f"{path} has a spacing of {x:g} x {y:g} x {z:g} mm: repair its header")
    if not np.isfinite(nifti.affine).all() or np.linalg.matrix_rank(nifti.affine[:3, :3]) < 3:
        raise UserError(f"{path} has an affine matrix (sform or qform) that maps no volume: repair its header")
    return x, y, z


def decode_nifti(path: Path, nifti: Any) -> np.ndarray:
    """The numbers of an image that `open_nifti` has checked: as stored, or float32 if the header asks for scaling."""
    proxy = nifti.dataobj
    data = _inflate(path, nifti) if path.name.lower().endswith(".gz") else None
    if data is not None and (proxy.slope, proxy.inter) == (1.0, 0.0):
        flat = np.frombuffer(data, proxy.dtype, count=math.prod(proxy.shape), offset=proxy.offset)
        return native(flat.reshape(proxy.shape, order="F"))
    source = path if data is None else io.BytesIO(data)
    stored = ArrayProxy(source, (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter))
    if (proxy.slope, proxy.inter) == (1.0, 0.0):
        return native(np.asanyarray(stored.get_unscaled()))
    return np.asarray(stored, np.float32)


def _inflate(path: Path, nifti: Any) -> bytearray:
    """Header and numbers of a gzip file, the checksum verified, never more than the header describes."""
    packed = path.read_bytes()
    size = nifti.dataobj.offset + math.prod(nifti.shape) * nifti.get_data_dtype().itemsize
    with suppress(deflate.DeflateError):
        data = deflate.gzip_decompress(packed, size)  # half the time of zlib, one member only
        if len(data) == size:
            return data
    # Several members, trailing bytes, or damage, which zlib reports.
    data, filled, rest = bytearray(size), 0, 0
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream, memoryview(data) as view:
        while filled < size and (count := stream.readinto(view[filled : filled + 2**24])):
            filled += count
        while chunk := stream.read(2**20):
            if (rest := rest + len(chunk)) > size + 2**24:
                raise ValueError(f"it goes on after the {size:,} bytes that its header describes")
    if filled < size:
        raise zlib.error(f"it ends after {filled:,} of the {size:,} bytes that its header describes")
    return data


def native(values: np.ndarray) -> np.ndarray:
    """The values in the byte order of this machine."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
