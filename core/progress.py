"""A progress bar for work that goes through many files."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Show a bar on standard error while iterating; nothing where that is no terminal, and nothing stays."""
    shown = sys.stderr.isatty()
    return track(items, description, total, console=Console(stderr=True), disable=not shown, transient=True)
