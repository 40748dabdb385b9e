"""Folders of natural images (photographs) for pretraining a generalist."""

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from core.cache import cache_folder
from core.errors import UserError, first_and_count
from core.progress import progress
from core.text import require_utf8
from data.readers.decoding import naming, require_slices
from data.readers.discovery import discover

Image = NDArray[np.float32]
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
"""Suffixes of the files that are read, in lower case."""
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""The same files by content."""


class FolderImages:
    """The image files below a folder as grey images, ordered by path.

    Every image is decoded once when it is first used, so that a damaged one is found before training; the cache
    folder remembers the folders that were checked.

    Raises:
        UserError: if there are no images, or some cannot be read; the message names the first and counts the others.
    """

    def __init__(self, folder: str | Path) -> None:
        self.files: list[Path] = []
        if Path(folder).is_dir():
            discovery = discover(Path(folder), suffixes=tuple(ENDINGS))
            discovery.report()
            self.files = [image.file for image in discovery.images]
        if not self.files:
            raise UserError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))}): check the path")
        for path in self.files:
            require_utf8(path, "the name")
        names = (f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in self.files)
        self.hash = hashlib.sha256("\n".join(names).encode()).hexdigest()
        """SHA-256 of the files' names and sizes, not of their content: a folder may hold a million images."""
        self._check()

    def __len__(self) -> int:
        return len(self.files)

    def image(self, i: int) -> Image:
        """Return image i: (rows, columns) float32, grey levels as stored."""
        path = self.files[i]
        with naming(path):
            # Decoded from memory: cv2 cannot open every path on every system.
            content = np.fromfile(path, np.uint8)
            with PIL.Image.open(path, formats=FORMATS) as header:
                require_slices(path, math.prod(header.size), 1)
            grey = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
            if grey is None:
                raise ValueError("it cannot be decoded")
        return grey.astype(np.float32)

    def _check(self) -> None:
        mark = cache_folder() / "natural" / self.hash
        if mark.is_file():
            return
        problems: list[UserError] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoders run without Python's lock
            for first in progress(range(0, len(self), 1024), "checking images"):
                results = pool.map(self._problem, range(first, min(first + 1024, len(self))))
                problems += [problem for problem in results if problem]
        if problems:
            raise UserError(first_and_count(problems))
        with suppress(OSError):  # without a cache folder they are checked again next time
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def _problem(self, i: int) -> UserError | None:
        """The error of reading image i, None if it can be read."""
        try:
            self.image(i)
            with naming(self.files[i]), PIL.Image.open(self.files[i], formats=FORMATS) as image:
                if image.format == "JPEG":  # OpenCV fills with grey what its end lacks; Pillow refuses it
                    image.draft("L", (1, 1))
                    image.load()
        except UserError as error:
            return error
        return None
