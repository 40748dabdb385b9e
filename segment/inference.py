"""Segment whole slices, without cropping; label maps lie on the grid of the files."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from data.preprocessing import mean_and_std, narrow, preprocess, reflected, resampled_size
from segment.model import STRIDE, ModelCard

PIXELS_PER_FORWARD = 2**22
"""Bound on the memory of one forward: 16 slices of 512 x 512."""


@torch.no_grad()
def segment_stack(
    unet: nn.Module,
    stack: np.ndarray,
    spacing: tuple[float, float],
    card: ModelCard,
    *,
    batch: int = 16,
) -> np.ndarray:
    """Label maps of slices that share a grid.

    Each slice is z-scored and resampled as in training, padded to a multiple of the stride, segmented whole and cropped
    back. Its probabilities are resampled to the original grid before the class is chosen.

    Args:
        unet: network in evaluation mode.
        stack: (slices, rows, columns), file units.
        spacing: (row_mm, column_mm).
        card: card of the network: preprocessing, test-time augmentation and post-processing.
        batch: slices per forward, fewer if they are large.

    Returns:
        (slices, rows, columns) uint8 class indices; with the card's `keep_largest_component`, only the largest
        connected component of the foreground (all classes together, face neighbours).

    Raises:
        UserError: if the slices are too large, or cannot be resampled.
    """
    volume = np.empty(stack.shape, np.uint8)
    for part, (probabilities,) in probabilities_by_part([(unet, card)], stack, spacing, batch=batch):
        volume[part] = most_probable(probabilities)
    return largest_component(volume) if card.keep_largest_component else volume


@torch.no_grad()
def probabilities_by_part(
    members: Sequence[tuple[nn.Module, ModelCard]],
    stack: np.ndarray,
    spacing: tuple[float, float],
    *,
    batch: int = 16,
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Class probabilities of a stack of slices, a few slices at a time: those of a whole volume may exceed the memory.

    Args:
        members: networks in evaluation mode with their cards, of the same classes and pixel size.
        stack: (slices, rows, columns), file units.
        spacing: (row_mm, column_mm).
        batch: slices per forward, fewer if they are large.

    Yields:
        The slices, and their probabilities (n, classes, rows, columns) by each member, on the grid of the stack.

    Raises:
        UserError: if the slices are too large, or cannot be resampled.
    """
    shape = stack.shape[1:]
    narrowed = narrow(stack)
    pixels = max(math.prod(shape), math.prod(resampled_size(shape, spacing, members[0][1].spacing_mm)))
    batch = max(1, min(batch, PIXELS_PER_FORWARD // pixels))
    for first in range(0, len(stack), batch):
        images = narrowed[first : first + batch]
        yield slice(first, first + len(images)), [_probabilities(*member, images, spacing) for member in members]


def _probabilities(unet: nn.Module, card: ModelCard, images: np.ndarray, spacing: tuple[float, float]) -> Tensor:
    """(n, rows, columns) in file units -> (n, classes, rows, columns)."""
    prepared = np.stack([_prepare(image, spacing, card) for image in images])[:, None]
    x = torch.from_numpy(prepared).to(next(unet.parameters()).device)
    probabilities = class_probabilities(unet, x)
    if card.flip_tta:
        probabilities = (probabilities + class_probabilities(unet, x.flip(3)).flip(3)) / 2
    if probabilities.shape[2:] != images.shape[1:]:
        probabilities = F.interpolate(probabilities, size=images.shape[1:], mode="bilinear", align_corners=False)
    return probabilities


def most_probable(probabilities: Tensor) -> np.ndarray:
    """(n, classes, rows, columns) -> (n, rows, columns) uint8 class indices."""
    indices = probabilities.max(dim=1).indices  # on a CPU a tenth of the time of argmax
    return indices.to(torch.uint8).cpu().numpy()


def entropy_of(probabilities: Tensor) -> Tensor:
    """Entropy over the classes (dimension 1) in nats: from 0, certain, to the logarithm of the number of classes."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=1)


@torch.no_grad()
def uncertainty_by_class(
    unet: nn.Module, image: np.ndarray, spacing: tuple[float, float], card: ModelCard
) -> np.ndarray:
    """Mean predictive entropy of the pixels that are predicted as each class.

    Args:
        unet: network in evaluation mode.
        image: (rows, columns), file units.
        spacing: (row_mm, column_mm).
        card: card of the network.

    Returns:
        (classes,) in nats, NaN for a class that is predicted nowhere; at 0, in place of the background, the mean over
        all pixels.
    """
    x = torch.from_numpy(_prepare(narrow(image[None])[0], spacing, card)[None, None])
    probabilities = class_probabilities(unet, x.to(next(unet.parameters()).device))
    entropy, predicted = entropy_of(probabilities)[0], probabilities[0].max(dim=0).indices
    of_classes = [entropy[predicted == label].mean().item() for label in range(1, len(card.classes))]
    return np.array([entropy.mean().item(), *of_classes])


def padded_sizes(table: pd.DataFrame, spacing_mm: float | None) -> list[tuple[int, int]]:
    """Sizes (rows, columns) in which a network sees the slices of a store's table whole, the eight smallest."""
    sizes = set()
    for *shape, row_mm, column_mm in table[["rows", "columns", "row_mm", "column_mm"]].drop_duplicates().to_numpy():
        scales = (1, 1) if spacing_mm is None else (row_mm / spacing_mm, column_mm / spacing_mm)
        rows, columns = (max(1, round(n * scale)) for n, scale in zip(shape, scales, strict=True))
        sizes.add((rows + sum(_to_stride(rows)), columns + sum(_to_stride(columns))))
    return sorted(sizes)[:8]


def largest_component(labels: np.ndarray) -> np.ndarray:
    """Label map in which all foreground outside its largest connected component becomes background."""
    components, count = ndimage.label(labels > 0)
    if count < 2:
        return labels
    sizes = np.zeros(count + 1, np.int64)
    for part in components:  # of the whole volume, bincount would make a copy of eight bytes a voxel
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    return np.where(components == 1 + sizes[1:].argmax(), labels, labels.dtype.type(0))


def _prepare(image: np.ndarray, spacing: tuple[float, float], card: ModelCard) -> np.ndarray:
    image = np.ascontiguousarray(image)
    statistics = mean_and_std(image) if card.normalisation == "image" else card.statistics
    return preprocess(image, statistics, spacing, card.spacing_mm)


def class_probabilities(unet: nn.Module, x: Tensor) -> Tensor:
    """(N, 1, H, W) -> softmax (N, classes, H, W); slices are padded to the stride as in training."""
    height, width = x.shape[2:]
    (top, bottom), (left, right) = _to_stride(height), _to_stride(width)
    rows, columns = (
        torch.from_numpy(reflected(*n)).to(x.device) for n in ((height, top, bottom), (width, left, right))
    )
    padded = x[:, :, rows[:, None], columns]
    logits = unet(padded.contiguous(memory_format=torch.channels_last)).float()
    return logits[:, :, top : top + height, left : left + width].contiguous().softmax(dim=1)


def _to_stride(size: int) -> tuple[int, int]:
    missing = -size % STRIDE
    return missing // 2, missing - missing // 2
