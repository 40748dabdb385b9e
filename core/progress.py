"""A progress bar for loops over many files."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Show a bar on standard error while iterating and erase it at the end; no bar if that is not a terminal."""
    hidden = not sys.stderr.isatty()
    return track(items, description, total, console=Console(stderr=True), disable=hidden, transient=True)
