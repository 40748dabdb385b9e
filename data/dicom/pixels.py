"""Decode the pixels of a stack, rescaled file by file."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)

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
ADVICE = {
    **dict.fromkeys((HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL), "install the packages pylibjpeg and pylibjpeg-openjpeg"),
    JPEGExtended12Bit: "decompress it first with dcmdjpeg of DCMTK",
}
"""What to do about compression for which no decoder is among the dependencies; others can be decompressed by GDCM."""
NO_FRAME = (0xC4, 0xC8, 0xCC)
"""The markers from 0xC0 to 0xCF that begin no frame header of JPEG data."""


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
            f"colour images ({header.get('PhotometricInterpretation', 'unknown')}): only grey ones are read; export "
            "them in grey"
        )
    syntax = _transfer_syntax(header)
    try:
        decoder = get_decoder(syntax)
        available = decoder.is_available
        if syntax == JPEGExtended12Bit and int(header.get("BitsStored") or 8) > 8:
            available = not set(decoder.available_plugins) <= {"pillow", "gdcm"}  # which decode 8 bits of it
    except NotImplementedError:
        available = False
    if not available:
        advice = ADVICE.get(syntax, "decompress it first (gdcmconv --raw), or export it uncompressed")
        raise UserError(f"compressed as {syntax.name}, which cannot be decoded here: {advice}")


def _planes(stack: Stack) -> list[Plane]:
    return [plane for frame in stack.planes for plane in frame]


def _stored(file: Path) -> np.ndarray:
    """(frames, rows, columns) as stored, or by the look-up table of the modality if the file has one."""
    header = read_whole(file)
    frames, rows, columns = (int(header.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns"))
    bits = max(int(header.get("BitsAllocated") or 8), 8)
    require_memory(file, frames * rows * columns * bits // 8 * 2)
    try:
        pixels = pixel_array(header, **_decoding(header))
    except Exception as error:  # decoders raise errors of any type on damaged data
        reason = " ".join(str(error).split())[:200].replace(str(file), "the file") or type(error).__name__
        if "NoneType" in reason:  # what GDCM's refusal becomes
            reason = "damaged, or of another size than the header says"
        raise UserError(f"pixels cannot be decoded ({reason}): export them again") from error
    pixels = pixels.reshape(frames, rows, columns)
    if pixels.dtype.kind in "iu":
        _require_stored_bits(header, pixels)
    if header.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(pixels, header))
    if header.get("PhotometricInterpretation") == "MONOCHROME1" and is_inverted(header):
        top = (1 << int(header.BitsStored)) - 1
        pixels = (-1 if pixels.dtype.kind == "i" else top) - pixels
    return pixels


def _transfer_syntax(header: Dataset) -> UID:
    return UID(str(header.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2")))


def _decoding(header: Dataset) -> dict[str, Any]:
    """Options of pydicom's decoder. GDCM decodes what no other decoder can.

    From JPEG Lossless it cuts off, without a word, the bits above those that the header says are stored. It gets the
    number of the JPEG data in its place, so that `_require_stored_bits` sees such values.

    Raises:
        ValueError: if the two numbers contradict each other.
    """
    syntax = _transfer_syntax(header)
    names = sorted(get_decoder(syntax).available_plugins, key=lambda name: name == "gdcm")
    if not names:
        return {}
    if syntax not in (JPEGLossless, JPEGLosslessSV1):
        return {"decoding_plugin": names[0]}
    frames = generate_frames(header.PixelData, number_of_frames=int(header.get("NumberOfFrames") or 1))
    found = sorted({_bits_of_jpeg(frame) for frame in frames})
    signed, stored, allocated = header.PixelRepresentation, header.BitsStored, header.BitsAllocated
    if len(found) > 1 or found[0] > allocated or (signed and found[0] < stored):
        said = f"{stored} of {allocated}" + (", with a sign" if signed else "")
        raise ValueError(f"the JPEG data has values of {' and '.join(map(str, found))} bits, its header says {said}")
    return {"decoding_plugin": names[0], "bits_stored": found[0]}


def _bits_of_jpeg(frame: bytes) -> int:
    """Bits of a value in JPEG data, by its frame header (ISO/IEC 10918-1, B.2.2)."""
    at = 2
    while at + 4 < len(frame):
        marker = frame[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            return frame[at + 4]
        # any marker may follow fill bytes, which are those that markers begin with
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4])
    raise ValueError("it holds no JPEG data")


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
