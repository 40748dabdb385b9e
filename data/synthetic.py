"""The mark of synthetic data sets: a file in their root. Results on them are reported as synthetic."""

from pathlib import Path

from core.files import write_text

SYNTHETIC = "SYNTHETIC.txt"


def mark_synthetic(root: Path) -> None:
    """Leave the mark in a data set's folder, which is created if absent."""
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / SYNTHETIC, "Synthetic images by fewslice: scores reached on them say nothing about patients.\n")


def is_synthetic(root: Path) -> bool:
    """Whether a data set is marked, in its folder or in the one above (the root may be ACDC's training/)."""
    return any((folder / SYNTHETIC).is_file() for folder in (root, root.parent))
