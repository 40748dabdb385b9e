"""Where decoded data, and anything else that can be made again, is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$FEWSLICE_CACHE``, else ``$XDG_CACHE_HOME/fewslice``, else ``~/.cache/fewslice``; perhaps absent."""
    if chosen := os.environ.get("FEWSLICE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fewslice"
