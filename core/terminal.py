"""Text on the terminal as it is, without markup in names."""

from typing import Any

from rich.console import Console


def terminal(**settings: Any) -> Console:
    """A console on which square brackets and colons in names are no markup; the settings are those of rich."""
    return Console(markup=False, emoji=False, **settings)
