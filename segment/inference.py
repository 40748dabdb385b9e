"""Segment whole slices, large ones by overlapping windows; label maps lie on the grid of the files."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from data.preprocessing import (
    LARGE_SLICE,
    Statistics,
    is_large,
    narrow,
    preprocess,
    reflected,
    resampled_size,
    statistics_of,
)
from segment.model import STRIDE, ModelCard
from segment.windows import probabilities_by_row, seen_size

PIXELS_PER_FORWARD = LARGE_SLICE
"""Bound on the memory of one forward: 16 slices of 512 x 512."""
Part = tuple[slice, slice]
"""Slices and rows of a stack."""


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
    back. Its probabilities are resampled to the original grid before the class is chosen. Of a large slice (see
    `data.preprocessing.is_large`) that holds for windows of it, see `segment.windows`.

    Args:
        unet: network in evaluation mode.
        stack: (slices, rows, columns), file units, or (slices, channels, rows, columns).
        spacing: (row_mm, column_mm).
        card: card of the network: preprocessing, test-time augmentation and post-processing.
        batch: slices per forward, fewer if they are large.

    Returns:
        (slices, rows, columns) uint8 class indices; with the card's `keep_largest_component`, only the largest
        connected component of the foreground (all classes together, face neighbours).

    Raises:
        UserError: if the slices are too large, or cannot be resampled.
    """
    volume = np.empty((len(stack), *stack.shape[-2:]), np.uint8)
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
) -> Iterator[tuple[Part, list[Tensor]]]:
    """Class probabilities of a stack of slices, a few slices, or a few rows of a large slice, at a time.

    Those of a whole volume may exceed the memory.

    Args:
        members: networks in evaluation mode with their cards, of the same classes and pixel size.
        stack: (slices, rows, columns), file units, or (slices, channels, rows, columns).
        spacing: (row_mm, column_mm).
        batch: slices per forward, fewer if they are large.

    Yields:
        The slices and rows, and their probabilities (slices, classes, rows, columns) by each member, on the grid of
        the stack.

    Raises:
        UserError: if the slices are too large, or cannot be resampled.
    """
    shape = stack.shape[-2:]
    narrowed = narrow(stack)
    seen = resampled_size(shape, spacing, members[0][1].spacing_mm)
    if is_large(shape) or is_large(seen):
        for k, image in enumerate(narrowed):
            of_members = [_probabilities_by_row(*member, image, spacing, seen) for member in members]
            for rows in zip(*of_members, strict=True):  # the same rows of each member
                first, probabilities = rows[0][0], [each for _, each in rows]
                yield (slice(k, k + 1), slice(first, first + probabilities[0].shape[2])), probabilities
        return
    batch = max(1, min(batch, PIXELS_PER_FORWARD // max(math.prod(shape), math.prod(seen))))
    for first in range(0, len(stack), batch):
        images = narrowed[first : first + batch]
        part = slice(first, first + len(images)), slice(0, shape[0])
        yield part, [_probabilities(*member, images, spacing) for member in members]


def _probabilities_by_row(
    unet: nn.Module, card: ModelCard, image: np.ndarray, spacing: tuple[float, float], seen: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities of a slice in file units, which the network sees in the size `seen`, some rows at a time."""
    device = next(unet.parameters()).device
    statistics = _statistics(image, card)
    # Without resampling rows are z-scored as they are read: the whole slice in float32 would take four times its file.
    prepared = None if card.spacing_mm is None else preprocess(image, statistics, spacing, card.spacing_mm)

    def read(first: int, end: int) -> Tensor:
        part = (..., slice(first, end), slice(None))
        rows = preprocess(image[part], statistics, spacing, None) if prepared is None else prepared[part]
        return torch.from_numpy(rows.reshape(1, -1, *rows.shape[-2:])).to(device)

    return probabilities_by_row(lambda x: _mean_of_flips(unet, card, x), read, seen, image.shape[-2:])


def _probabilities(unet: nn.Module, card: ModelCard, images: np.ndarray, spacing: tuple[float, float]) -> Tensor:
    """(n, rows, columns) or (n, channels, rows, columns) in file units -> (n, classes, rows, columns)."""
    shape = images.shape[-2:]
    prepared = np.stack([_prepare(image, spacing, card) for image in images])
    x = torch.from_numpy(prepared).to(next(unet.parameters()).device)
    probabilities = _mean_of_flips(unet, card, x)
    if probabilities.shape[2:] != shape:
        probabilities = F.interpolate(probabilities, size=shape, mode="bilinear", align_corners=False)
    return probabilities


def _mean_of_flips(unet: nn.Module, card: ModelCard, x: Tensor) -> Tensor:
    """(N, channels, H, W) -> probabilities (N, classes, H, W), the mean with flipped images if the card says so."""
    probabilities = class_probabilities(unet, x)
    if card.flip_tta:
        probabilities = (probabilities + class_probabilities(unet, x.flip(3)).flip(3)) / 2
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
        image: (rows, columns) or (channels, rows, columns), file units.
        spacing: (row_mm, column_mm).
        card: card of the network.

    Returns:
        (classes,) in nats, NaN for a class that is predicted nowhere; at 0, in place of the background, the mean over
        all pixels.
    """
    if is_large(image.shape[-2:]):
        return _uncertainty_by_row(unet, image, spacing, card)
    x = torch.from_numpy(_prepare(narrow(image[None])[0], spacing, card)[None])
    probabilities = class_probabilities(unet, x.to(next(unet.parameters()).device))
    entropy, predicted = entropy_of(probabilities)[0], probabilities[0].max(dim=0).indices
    of_classes = [entropy[predicted == label].mean().item() for label in range(1, len(card.classes))]
    return np.array([entropy.mean().item(), *of_classes])


def _uncertainty_by_row(
    unet: nn.Module, image: np.ndarray, spacing: tuple[float, float], card: ModelCard
) -> np.ndarray:
    """`uncertainty_by_class` of a large slice."""
    total, pixels = np.zeros(len(card.classes)), np.zeros(len(card.classes))
    for _, (probabilities,) in probabilities_by_part([(unet, card)], image[None], spacing):
        entropy, predicted = entropy_of(probabilities).ravel(), probabilities.max(dim=1).indices.ravel()
        total += torch.bincount(predicted, entropy.double(), minlength=len(total)).cpu().numpy()
        pixels += torch.bincount(predicted, minlength=len(total)).cpu().numpy()
    total[0], pixels[0] = total.sum(), pixels.sum()
    return np.divide(total, pixels, out=np.full(len(total), np.nan), where=pixels > 0)


def padded_sizes(table: pd.DataFrame, spacing_mm: float | None) -> list[tuple[int, int]]:
    """Sizes (rows, columns) in which a network sees the slices of a store's table, the eight smallest."""
    sizes = set()
    for *shape, row_mm, column_mm in table[["rows", "columns", "row_mm", "column_mm"]].drop_duplicates().to_numpy():
        scales = (1, 1) if spacing_mm is None else (row_mm / spacing_mm, column_mm / spacing_mm)
        rows, columns = (max(1, round(n * scale)) for n, scale in zip(shape, scales, strict=True))
        rows, columns = seen_size((rows, columns))
        sizes.add((rows + sum(_to_stride(rows)), columns + sum(_to_stride(columns))))
    return sorted(sizes)[:8]


def largest_component(labels: np.ndarray) -> np.ndarray:
    """Label map in which all foreground outside its largest connected component becomes background.

    The largest is that with the largest geometric mean of the voxels (plus one) of each class. With several classes,
    all of a heart's outweigh a larger patch of one, as networks with few labels find elsewhere in the chest.
    """
    components, count = ndimage.label(labels > 0)
    if count < 2:
        return labels
    values = int(labels.max()) + 1
    voxels = np.zeros((count + 1) * values, np.int64)
    for part, classes in zip(components, labels, strict=True):  # cells take eight bytes a voxel
        cells = part.ravel().astype(np.intp)
        cells *= values
        cells += classes.ravel()
        voxels += np.bincount(cells, minlength=len(voxels))
    sizes = np.log1p(voxels.reshape(-1, values)[1:, 1:]).sum(axis=1)
    return np.where(components == 1 + sizes.argmax(), labels, labels.dtype.type(0))


def _prepare(image: np.ndarray, spacing: tuple[float, float], card: ModelCard) -> np.ndarray:
    """(rows, columns) or (channels, rows, columns) in file units -> (channels, rows, columns), what a network sees."""
    prepared = preprocess(image, _statistics(image, card), spacing, card.spacing_mm)
    return prepared.reshape(-1, *prepared.shape[-2:])


def _statistics(image: np.ndarray, card: ModelCard) -> Statistics:
    """Mean and standard deviation that z-score an image, or each of its channels."""
    return statistics_of(np.ascontiguousarray(image)) if card.normalisation == "image" else card.statistics


def class_probabilities(unet: nn.Module, x: Tensor) -> Tensor:
    """(N, channels, H, W) -> softmax (N, classes, H, W); slices are padded to the stride as in training."""
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
