"""A warning where a network segments subjects that it was trained on: their scores are no test."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.duplicates import fingerprint_of_channels
from data.leakage import records, subjects_trained_on
from data.readers.discovery import mask_name
from data.readers.images import stem
from data.readers.subjects import subjects_by_name
from segment.model import ModelCard

log = logging.getLogger("fewslice")


class TrainedOn:
    """Collects the images that networks segment, and compares them with the records in the networks' cards.

    Args:
        cards: the networks' cards; those of version 0.1 have no record, and nothing is said about them.

    Raises:
        UserError: if a record is damaged.
    """

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        stages = [stage for card in cards for stage in (*card.lineage, {"subjects": card.subjects})]
        self._records = list(records(stages, "--run"))
        self._images: list[tuple[str, str]] = []
        self._names: dict[str, None] = {}

    def add(self, subject: str, file: Path, image: np.ndarray) -> None:
        """Add a frame of an image.

        Args:
            subject: its subject; the name of the file if that is all that is known.
            file: its path below the folder of images.
            image: (slices, rows, columns), file units, or (slices, channels, rows, columns).
        """
        if subject == stem(file):
            subject = mask_name(file).as_posix()
            self._names[subject] = None
        channels = [image] if image.ndim == 3 else np.moveaxis(image, 1, 0)
        self._images.append((subject, fingerprint_of_channels(channels) if self._records else ""))

    def warn(self) -> None:
        """Log one warning that counts the subjects that were trained on, if there are any."""
        by_name = dict(zip(self._names, subjects_by_name([*self._names]), strict=True))
        images = [(by_name.get(name, name), digest) for name, digest in self._images]
        total = len({subject for subject, _ in images})
        if count := len(subjects_trained_on(images, self._records)):
            were = "was" if count == 1 else "were"
            log.warning(f"{count} of {total} subjects of the input {were} trained on: scores on them are no test")
