"""Segment whole slices, without cropping; label maps lie on the grid of the files."""

import math

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
    device = next(unet.parameters()).device
    narrowed = narrow(stack)
    pixels = max(math.prod(stack.shape[1:]), math.prod(resampled_size(stack.shape[1:], spacing, card.spacing_mm)))
    batch = max(1, min(batch, PIXELS_PER_FORWARD // pixels))
    labels = []
    for first in range(0, len(stack), batch):
        images = [_prepare(image, spacing, card) for image in narrowed[first : first + batch]]
        x = torch.from_numpy(np.stack(images)[:, None]).to(device)
        probabilities = class_probabilities(unet, x)
        if card.flip_tta:
            probabilities = (probabilities + class_probabilities(unet, x.flip(3)).flip(3)) / 2
        if probabilities.shape[2:] != stack.shape[1:]:
            probabilities = F.interpolate(probabilities, size=stack.shape[1:], mode="bilinear", align_corners=False)
        most_probable = probabilities.max(dim=1).indices  # on a CPU a tenth of the time of argmax
        labels.append(most_probable.to(torch.uint8).cpu().numpy())
    volume = np.concatenate(labels)
    return largest_component(volume) if card.keep_largest_component else volume


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
    probabilities = class_probabilities(unet, x.to(next(unet.parameters()).device))[0]
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=0)
    predicted = probabilities.max(dim=0).indices
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
    sizes = np.bincount(components.ravel())
    return np.where(components == 1 + sizes[1:].argmax(), labels, 0).astype(labels.dtype)


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
