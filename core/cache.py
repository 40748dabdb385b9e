"""The cache folder: decoded data, and other files that can be rebuilt, kept between runs."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from core.locks import file_lock


def cache_folder() -> Path:
    """``$FEWSLICE_CACHE``, else ``$XDG_CACHE_HOME/fewslice``, else ``~/.cache/fewslice``; it need not exist."""
    if folder := os.environ.get("FEWSLICE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewslice"


def made_once(name: str, message: str, make: Callable[[Path], object]) -> Path:
    """Make a folder in ``cache_folder()`` on first use, and return its path.

    Safe if two processes start at once: one waits for the other. Where the file system has no locks, each fills a
    temporary folder, the first to finish moves it into place, and the other removes its copy.

    Args:
        name: name of the folder.
        message: printed on standard error before it is made; {folder} in it stands for the path.
        make: writes the folder's content to the path it receives.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.parent / f".{name}.lock", wait=True) as alone:
        if folder.is_dir():
            return folder
        if alone:
            for killed in folder.parent.glob(f"{name}.*"):
                shutil.rmtree(killed, ignore_errors=True)
        print(message.format(folder=folder), file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=folder.parent) as temporary:
            make(Path(temporary) / name)
            try:
                os.rename(Path(temporary) / name, folder)
            except OSError:  # a folder that is not empty is never replaced: another process was first
                if not folder.is_dir():
                    raise
    return folder
