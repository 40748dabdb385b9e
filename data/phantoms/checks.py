"""Options of a synthetic data set, checked before it is written."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from core.errors import UserError
from core.files import naming_file, remove_leftovers, temporary_name
from data.synthetic import is_synthetic, mark_synthetic

Matrix = Literal["small", "large"]
"""small: coarse and fast; large: the size of the real images."""


def check_range(option: str, value: int, low: int, high: int) -> None:
    """Raise a UserError unless ``value`` is in low..high."""
    if not low <= value <= high:
        raise UserError(f"--{option} {value} is out of range: choose {low}..{high}")


@contextmanager
def new_data_set(out: Path, folders: Sequence[str], seed: int) -> Iterator[Path]:
    """A folder to write a data set into; at the end its content moves into ``out``, marked as synthetic.

    Whatever a killed process left is removed, so that the same command can be repeated.

    Args:
        out: folder of the data set; created if absent.
        folders: folders of the data set, which must not exist in ``out``; the last one is moved last.
        seed: random seed.

    Raises:
        UserError: if the seed is negative or one of ``folders`` exists, or ``out`` holds other files.
    """
    if seed < 0:
        raise UserError(f"--seed {seed} is negative: choose 0 or more")
    for folder in folders:
        if (out / folder).exists():
            raise UserError(f"{out / folder} exists already: choose another --out or remove it")
    if out.is_dir() and not is_synthetic(out) and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds other files, which would be marked as synthetic: choose another --out")
    with naming_file(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        hidden = temporary_name(out / "data")
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            hidden.mkdir()
            yield hidden
            mark_synthetic(out)
            for path in sorted(hidden.iterdir(), key=lambda path: path.name in folders):
                os.replace(path, out / path.name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
