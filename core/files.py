"""Files that are complete or absent: written under a hidden temporary name, then moved into place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object], *, sync: bool = False) -> None:
    """Write a file so that readers see the previous content or the new one, never a part.

    If several processes write the same file at once, the last one to finish determines its content.

    Args:
        path: the file; its folder must exist.
        write: writes the content to the path it receives, a hidden file in the same folder.
        sync: wait until the content is on the disk before the previous file is replaced.

    Raises:
        OSError: if the disk is full or the folder not writable. The previous file stays, the temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; values of types that JSON lacks (paths, NumPy numbers) become strings."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")
