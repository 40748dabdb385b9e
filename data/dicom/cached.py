"""A folder of DICOM files as a data set: converted once into the cache folder, under hashed names."""

import hashlib
import json
import logging
import os
from pathlib import Path

from core.cache import cache_folder, made_once
from core.files import write_json
from core.text import read_json
from data.dicom.names import names_for, read_salt
from data.dicom.search import files_below, holds_dicom
from data.readers.file_search import CONVERTED

log = logging.getLogger("fewslice")

FORMAT = 3
"""Version of the conversion: raised when the same files are converted otherwise."""
PREFIX = "dicom-"
"""Beginning of the names of conversions in the cache folder."""


def readable_root(root: Path) -> Path:
    """The folder that a reader of NIfTI files can read: `root` itself, or of a folder of DICOM files the conversion.

    The conversion is that of ``python -m data.convert`` without options, kept in the cache folder and made again when
    files have changed.

    Raises:
        UserError: if the folder holds DICOM files, none of which can be converted.
    """
    if not root.is_dir() or not holds_dicom(root):
        return root
    salt = read_salt()
    listing = []
    for file in files_below(root):
        stat = file.stat()
        listing.append([str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns])
    content = json.dumps([FORMAT, str(root.resolve()), salt, listing], default=str)
    key = hashlib.blake2b(content.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    message = f"{root} holds DICOM files: converting them once, into {{folder}}"
    origin = made_once(PREFIX + key, message, lambda new: _convert(root, new, salt)) / "origin.json"
    os.utime(origin)  # when it was last used, for `python -m data.cache`
    folder = origin.parent / "data"
    first, *others = read_json(origin)["summary"]
    for line in (f"{first}; {folder / CONVERTED} lists every series", *others):
        log.info("%s: %s", root, line)
    return folder


def conversions() -> list[Path]:
    """The folders of conversions in the cache folder, each with an ``origin.json`` (root, format, summary)."""
    return [folder for folder in sorted(cache_folder().glob(f"{PREFIX}*")) if (folder / "origin.json").is_file()]


def _convert(root: Path, folder: Path, salt: str) -> None:
    from data.dicom.series import read_archive
    from data.dicom.writing import require_converted, summary, write_converted

    archive = read_archive(root)
    table = write_converted(archive, folder / "data", names_for((), salt, keep=False))
    require_converted(archive, table)
    about = {"root": str(root.resolve()), "format": FORMAT, "summary": summary(table)}
    write_json(folder / "origin.json", about)
