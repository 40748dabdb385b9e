"""Warnings about the images that a network segments: colours, pixel sizes, planes, one value, nothing found."""

import logging

import numpy as np

from core.wording import count_of
from data.readers.geometry import is_oblique, plane
from data.readers.images import Volume, read_shape
from segment.model import ModelCard

log = logging.getLogger("fewslice")


class Doubts:
    """Counts images that a network reads in another way than their owner may expect.

    Args:
        card: card of the network.
    """

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._images = self._grey = self._constant = self._without_pixel_size = self._without_volume = self._turned = 0
        self._empty = 0

    def add(self, volume: Volume, stack: np.ndarray, stated: tuple[bool, bool], labels: np.ndarray) -> None:
        """Add an image.

        Args:
            volume: the image.
            stack: (frames, slices, rows, columns), file units, or (1, slices, channels, rows, columns).
            stated: of `data.readers.geometry.known_spacing`.
            labels: predicted class indices of any shape.
        """
        channels = np.moveaxis(stack, 2, 0) if stack.ndim == 5 else [stack]
        self._images += 1
        is_constant = all(channel.min() == channel.max() for channel in channels)
        self._constant += is_constant
        if volume.stack.shape[1] > 1:  # not single slices, many of which hold nothing
            self._empty += not is_constant and not labels.any()
        is_grey = stack.ndim == 4 and (self._card.channels is None or self._card.numbered_channels)
        self._grey += is_grey and volume.header is None and read_shape(volume.path).colours
        if self._card.plane is not None and volume.shape.affine is not None and not is_oblique(volume.shape):
            self._turned += plane(volume.shape) != self._card.plane
        self._without_pixel_size += not stated[0]
        self._without_volume += not all(stated)

    def warn(self) -> None:
        """Log one line for each kind of image that was found."""
        of_images = f"of {count_of(self._images, 'image')}"
        if self._grey:
            log.warning(f"colours are read as grey in {self._grey} {of_images}")
        if self._without_pixel_size and self._card.spacing_mm is not None:
            log.warning(
                f"no pixel size is stated in {self._without_pixel_size} {of_images}: pixels of 1 mm are assumed, and "
                f"resampled to the model's {self._card.spacing_mm:g} mm; if they are others, pass NIfTI files that "
                "state them, or train with --spacing-mm None"
            )
        if self._turned:
            log.warning(
                f"slices in another plane than the {self._card.plane} ones that the model was trained on: "
                f"{self._turned} {of_images}; expect little of these"
            )
        if self._empty:
            log.warning(f"nothing was found in {self._empty} {of_images}")
        if self._constant:
            be, them = ("is", "it") if self._constant == 1 else ("are", "them")
            log.warning(f"{count_of(self._constant, 'image')} {be} constant: nothing can be found in {them}")
        if self._without_volume:
            log.info(
                f"no voxel size is stated in {self._without_volume} {of_images}: volumes.csv has their voxels_CLASS in "
                "place of volume_ml_CLASS"
            )
