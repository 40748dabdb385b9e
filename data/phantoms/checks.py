"""Checks of the options of a synthetic data set."""

from pathlib import Path
from typing import Literal

from core.errors import UserError

Matrix = Literal["small", "large"]
"""small: coarse and fast; large: the size of the real images."""


def check_range(option: str, value: int, low: int, high: int) -> None:
    """Raise a UserError unless ``value`` is in low..high."""
    if not low <= value <= high:
        raise UserError(f"--{option} {value} is out of range: choose {low}..{high}")


def check_seed(seed: int) -> None:
    """Raise a UserError if the seed is negative."""
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: choose 0 or more")


def check_absent(folder: Path) -> None:
    """Raise a UserError if the folder exists."""
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another --out or remove it")
