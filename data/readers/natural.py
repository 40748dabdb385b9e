"""Folders of natural images (photographs) for pretraining a generalist."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import UserError

Image = NDArray[np.float32]
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
"""Suffixes of the files that are read, in lower case."""


class FolderImages:
    """The image files below a folder as grey images, ordered by path; a UserError if there are none."""

    def __init__(self, folder: str | Path) -> None:
        candidates = (path for path in Path(folder).rglob("[!.]*") if path.suffix.lower() in ENDINGS)
        self.files = sorted(path for path in candidates if path.is_file())
        if not self.files:
            raise UserError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))}): check the path")
        names = (f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in self.files)
        self.hash = hashlib.sha256("\n".join(names).encode()).hexdigest()
        """SHA-256 of the files' names and sizes, not of their content: a folder may hold a million images."""

    def __len__(self) -> int:
        return len(self.files)

    def image(self, i: int) -> Image:
        """Return image i: (rows, columns) float32, grey levels as stored."""
        path = self.files[i]
        # Decoded from memory: cv2 cannot open every path on every system.
        content = np.fromfile(path, np.uint8)
        grey = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH) if content.size else None
        if grey is None:
            raise UserError(f"{path} cannot be decoded as an image: replace or remove the file")
        return grey.astype(np.float32)
