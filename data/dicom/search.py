"""Find DICOM files, whatever their names, by their first bytes; pydicom, slow to import, is not needed for it."""

import os
from collections.abc import Iterator
from pathlib import Path

from data.readers.images import LOSSLESS_SUFFIXES, NIFTI_SUFFIXES, PLANAR_SUFFIXES

MAGIC_AT = 128
"""Length of the preamble before the letters DICM."""
FIRST_TAGS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""First bytes of files without preamble: group 0002 or 0008, of either byte order."""


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with or without the preamble of 128 bytes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            start = stream.read(MAGIC_AT + 4)
    except OSError:
        return False
    return start[MAGIC_AT:] == b"DICM" or (start[:2] in FIRST_TAGS and not _has_image_name(path))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file that is not hidden, ordered by path; links to folders are followed, each folder is read once."""
    visited: set[str] = set()
    stack = [folder]
    while stack:
        current = stack.pop()
        place = os.path.realpath(current)
        if place in visited:
            continue
        visited.add(place)
        with os.scandir(current) as entries:
            visible = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
        yield from (current / each.name for each in visible if not each.is_dir())
        stack += [current / each.name for each in reversed(visible) if each.is_dir()]


def holds_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or a folder holds DICOM files, more of them than PNG and TIFF files, and no NIfTI.

    Discs from hospitals bring the icons of their viewer.
    """
    if not path.is_dir():
        return is_dicom(path)
    found = planar = 0
    for file in files_below(path):
        name = file.name.lower()
        if name.endswith(NIFTI_SUFFIXES):
            return False
        if name.endswith(LOSSLESS_SUFFIXES):  # JPEG files may be copies of all DICOM images
            planar += 1
        elif is_dicom(file):
            found += 1
    return found > planar


def _has_image_name(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES + PLANAR_SUFFIXES)
