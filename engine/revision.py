"""The commit of this software, where it runs from a git checkout."""

import subprocess
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


@cache
def revision() -> str | None:
    """The commit, followed by "-dirty" if files differ from it; None outside a checkout."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=CHECKOUT, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
