"""A picture of many predictions: `--contact-sheet` of `python -m segment.predict`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from core.files import write_atomically
from data.pictures import contact_sheet, draw_slice

SOFTWARE = "fewslice contact sheet"
"""Text of the PNG files that tells sheets from images."""
MOST = 60
"""Pictures on the sheet, which bounds its memory whatever the number of files."""
SIDE = 176
"""Longer side of a picture in pixels."""


class _Entry(NamedTuple):
    predicted_dice: float
    """1 where it is not known, so that the least certain come first."""
    number: int
    """Position in the order of the files."""
    name: str
    note: str
    picture: Image.Image


class ContactSheet:
    """The predictions of the lowest predicted Dice; of a single network, the first ones."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._seen = 0

    def add(
        self, file: Path, stack: np.ndarray, labels: np.ndarray, spacing: Sequence[float], predicted_dice: float
    ) -> None:
        """Draw the slice with the most predicted foreground.

        Args:
            file: name of the label map.
            stack: (frames, slices, rows, columns) image, file units.
            labels: label map of the same shape.
            spacing: (row_mm, column_mm).
            predicted_dice: of the first frame; NaN if it is not known.
        """
        known = not np.isnan(predicted_dice)
        rank = predicted_dice if known else 1.0
        self._seen += 1
        if len(self._entries) == MOST and rank >= self._entries[-1].predicted_dice:
            return
        areas = [np.count_nonzero(page) for frame in labels for page in frame]
        frame, page = divmod(int(np.argmax(areas)), labels.shape[1])
        aspect = spacing[0] / spacing[1]
        picture = draw_slice(stack[frame, page], labels[frame, page], aspect=aspect, side=SIDE)
        note = f" {predicted_dice:.2f}" if known else ""
        self._entries.append(_Entry(rank, self._seen, file.name, note, picture))
        self._entries = sorted(self._entries, key=lambda entry: entry[:2])[:MOST]

    def write(self, path: Path, naming: Callable[[str], str]) -> None:
        """Write the sheet as PNG; `naming` turns the name of a file into its caption."""
        captions = [naming(entry.name) + entry.note for entry in self._entries]
        sheet = contact_sheet([entry.picture for entry in self._entries], captions)
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = PngImagePlugin.PngInfo()
        mark.add_text("Software", SOFTWARE)
        write_atomically(path, lambda file: sheet.save(file, pnginfo=mark))


def is_contact_sheet(path: Path) -> bool:
    """Whether a file is a sheet that `ContactSheet` wrote."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, ValueError):
        return False
