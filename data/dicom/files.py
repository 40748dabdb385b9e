"""DICOM files, read with limits on what they may unpack to."""

import warnings
import zlib
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from core.errors import UserError
from data.dicom.search import MAGIC_AT
from data.readers.decoding import naming, require_memory

DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, which only lists other files."""


def read_header(file: Path) -> Dataset:
    """Everything before the pixels.

    Raises:
        UserError: if the file is damaged or no DICOM file.
    """
    return _read(file, stop_before_pixels=True)


def read_whole(file: Path) -> Dataset:
    """Header and pixels, not decoded.

    Raises:
        UserError: if the file is damaged or no DICOM file, or would fill the memory.
    """
    return _read(file, stop_before_pixels=False)


def _read(file: Path, *, stop_before_pixels: bool) -> Dataset:
    with naming(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break the standard's rules, which most archives hold
        _require_inflatable(file)
        header = pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)
        if "SOPClassUID" not in header and header.file_meta.get("MediaStorageSOPClassUID") != DIRECTORY:
            raise UserError(f"{file} is no DICOM object (it has no SOP Class UID): remove it, or export it again")
        return header


def _require_inflatable(file: Path) -> None:
    """Refuse a deflated file that unpacks to more than the limits of `data.readers.decoding`."""
    with file.open("rb") as stream:
        if stream.read(MAGIC_AT + 4)[MAGIC_AT:] != b"DICM":
            return
    meta = read_file_meta_info(file)
    if UID(str(meta.get("TransferSyntaxUID", ""))) != DeflatedExplicitVRLittleEndian:
        return
    content = file.read_bytes()
    start = MAGIC_AT + 4 + 12 + int(meta.get("FileMetaInformationGroupLength", 0))
    inflater, unpacked, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, content[start:]
    while rest:
        unpacked += len(inflater.decompress(rest, 2**24))
        require_memory(file, unpacked)
        rest = inflater.unconsumed_tail
