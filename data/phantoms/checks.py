"""Options of a synthetic data set, checked before it is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from core.errors import UserError
from data.synthetic import mark_synthetic

Matrix = Literal["small", "large"]
"""small: coarse and fast; large: the size of the real images."""


def check_range(option: str, value: int, low: int, high: int) -> None:
    """Raise a UserError unless ``value`` is in low..high."""
    if not low <= value <= high:
        raise UserError(f"--{option} {value} is out of range: choose {low}..{high}")


def start_data_set(out: Path, folders: Sequence[str], seed: int) -> None:
    """Create ``out``, marked as synthetic; raise a UserError if the seed is negative or one of ``folders`` exists."""
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: choose 0 or more")
    for folder in folders:
        if (out / folder).exists():
            raise UserError(f"{out / folder} exists already: choose another --out or remove it")
    mark_synthetic(out)
