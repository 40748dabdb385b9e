"""Decode the pixels of a stack, rescaled file by file."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import UID

from core.errors import UserError
from data.dicom.files import read_whole
from data.dicom.planes import Plane
from data.dicom.stacks import Stack
from data.readers.decoding import naming, require_memory, require_slices

INTEGERS = (np.int16, np.uint16, np.int32)
"""Types for stacks of whole numbers, the first that holds them; else float32."""
LARGEST = np.iinfo(np.int32).max
RADIOGRAPHS = {"CR", "DX", "MG", "RF", "XA", "IO", "PX", "RG"}
"""Modalities whose pixels have no physical unit, so that an inverted image may be turned."""


def decode(stack: Stack) -> np.ndarray:
    """The values of a stack in the units of its modality: (columns, rows, slices), or (..., frames) of a cine.

    Whole numbers stay whole numbers (see `INTEGERS`), others are float32.

    Raises:
        UserError: if a file is damaged, compressed in a way that cannot be decoded, or would fill the memory.
    """
    columns, rows, slices, frames = stack.shape
    of_file: dict[Path, list[tuple[int, int, Plane]]] = defaultdict(list)
    for t, frame in enumerate(stack.planes):
        for z, plane in enumerate(frame):
            of_file[plane.file].append((t, z, plane))
    first = stack.files[0]
    require_slices(first, rows * columns, slices * frames)
    whole = all(plane.slope == int(plane.slope) and plane.intercept == int(plane.intercept) for plane in _planes(stack))
    values = np.zeros((columns, rows, slices, frames), np.int32 if whole else np.float32)
    for file, members in of_file.items():
        with naming(file):
            stored = _stored(file)
        for t, z, plane in members:
            pixels = stored[plane.index]
            rescaled = pixels.astype(np.float64) * plane.slope + plane.intercept
            if values.dtype.kind != "f" and (pixels.dtype.kind == "f" or np.abs(rescaled).max() > LARGEST):
                values = values.astype(np.float32)
            values[:, :, z, t] = rescaled.T
    if values.dtype.kind == "i":
        low, high = values.min(), values.max()
        fitting = next(each for each in INTEGERS if np.iinfo(each).min <= low and high <= np.iinfo(each).max)
        values = values.astype(fitting)
    return values if frames > 1 else values[..., 0]


def require_readable(header: Dataset) -> None:
    """Refuse colour images and compression that cannot be decoded here, by the header alone.

    Raises:
        UserError: with the reason.
    """
    if int(header.get("SamplesPerPixel") or 1) != 1 or "MONOCHROME" not in str(header.get("PhotometricInterpretation")):
        raise UserError(
            f"colour images ({header.get('PhotometricInterpretation', 'unknown')}): only grey ones are read"
        )
    syntax = UID(str(header.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2")))
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise UserError(
            f"compressed as {syntax.name}, which cannot be decoded here: install pylibjpeg-libjpeg or python-gdcm, or "
            "decompress it first (gdcmconv --raw, dcmdjpeg)"
        )


def _planes(stack: Stack) -> list[Plane]:
    return [plane for frame in stack.planes for plane in frame]


def _stored(file: Path) -> np.ndarray:
    """(frames, rows, columns) as stored, or by the look-up table of the modality if the file has one."""
    header = read_whole(file)
    frames, rows, columns = (int(header.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns"))
    bits = max(int(header.get("BitsAllocated") or 8), 8)
    require_memory(file, frames * rows * columns * bits // 8 * 2)
    try:
        pixels = pixel_array(header)
    except Exception as error:  # decoders raise errors of any type on damaged data
        reason = " ".join(str(error).split())[:200].replace(str(file), "the file") or type(error).__name__
        raise UserError(f"pixels cannot be decoded ({reason})") from error
    pixels = pixels.reshape(frames, rows, columns)
    if pixels.dtype.kind in "iu":
        _require_stored_bits(header, pixels)
    if header.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(pixels, header))
    if header.get("PhotometricInterpretation") == "MONOCHROME1" and is_inverted(header):
        top = (1 << int(header.BitsStored)) - 1
        pixels = (-1 if pixels.dtype.kind == "i" else top) - pixels
    return pixels


def is_inverted(header: Dataset) -> bool:
    """Whether low values are bright in a radiograph, which is turned so that all are alike."""
    return header.get("PhotometricInterpretation") == "MONOCHROME1" and header.get("Modality") in RADIOGRAPHS


def _require_stored_bits(header: Dataset, pixels: np.ndarray) -> None:
    bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 16)
    signed = pixels.dtype.kind == "i"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    padding: Sequence[int] = [header.PixelPaddingValue] if isinstance(header.get("PixelPaddingValue"), int) else []
    outside = (pixels < low) | (pixels > high)
    if outside.any() and not np.isin(pixels[outside], padding).all():
        raise UserError(
            f"pixels hold values outside their {bits} bits, which may be an overlay: export without overlay"
        )
