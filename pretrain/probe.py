"""A linear probe on the labelled slices, to follow an encoder during pretraining in a second or two."""

from typing import Any

import cv2
import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import jaccard_score
from torch import nn

from data.readers.label_maps import IGNORED
from data.slices import Dataset, Slices

MOST_SLICES = 200
"""Largest number of labelled slices per split that a probe uses."""


class Probe:
    """Linear discriminant analysis from an encoder's features of stride 8 to the classes of the labelled slices.

    Fitted on training slices, scored on validation slices: the foreground Jaccard index on the feature grid,
    averaged over classes. It compares epochs of one run and is no segmentation score. The encoder is frozen.

    Args:
        dataset: data set with labelled slices in the train and val splits.
        size: side in pixels of the squares that the slices are resized to.
    """

    def __init__(self, dataset: Dataset, size: int = 128) -> None:
        self.splits = {split: _squares(dataset, split, size) for split in ("train", "val")}

    @torch.no_grad()
    def __call__(self, encoder: nn.Module, device: torch.device) -> float:
        """The probe's Jaccard index, in [0, 1]; NaN when a split has no labelled slice."""
        if any(len(images) == 0 for images, _ in self.splits.values()):
            return float("nan")
        was_training = encoder.training
        encoder.eval()
        features, labels = zip(*(self._features(encoder, device, split) for split in ("train", "val")), strict=True)
        encoder.train(was_training)
        if any(len(known) == 0 for known in labels):  # all pixels are ignored
            return float("nan")

        classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        classifier.fit(features[0].numpy(), labels[0].numpy())
        predicted, reference = classifier.predict(features[1].numpy()), labels[1].numpy()
        classes = [label for label in np.union1d(predicted, reference) if label]  # without the background, 0
        return float(jaccard_score(reference, predicted, labels=classes, average="macro")) if classes else float("nan")

    def _features(self, encoder: nn.Module, device: torch.device, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixels, features) and (pixels,) class indices on the grid of stride 8."""
        images, labels = self.splits[split]
        maps = []
        for batch in images.split(32):
            # timm's whole networks return their feature maps when asked, the encoder of a U-Net always does
            whole: Any = getattr(encoder, "forward_intermediates", None)
            pyramid = whole(batch.to(device), intermediates_only=True) if whole else encoder(batch.to(device))
            maps.append(next(m for m in pyramid if m.shape[-1] <= images.shape[-1] // 8).float().cpu())
        grid = torch.cat(maps)
        rows, columns = grid.shape[2:]
        small = [cv2.resize(label, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT) for label in labels]
        classes = torch.from_numpy(np.stack(small)).flatten().long()
        known = classes != IGNORED
        return grid.permute(0, 2, 3, 1).flatten(0, 2)[known], classes[known]


def _squares(dataset: Dataset, split: str, size: int) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Labelled slices (N, channels, size, size) evenly spread over a split, and their label maps in full size."""
    positions = dataset.positions(split, labelled=True)
    positions = positions[np.linspace(0, len(positions) - 1, min(len(positions), MOST_SLICES)).astype(int)]
    slices = Slices(store=dataset.store, positions=positions)
    images = [slices.square(k, size) for k in range(len(slices))]
    labels = [slices.label(k) for k in range(len(slices))]
    return torch.from_numpy(np.array(images, np.float32).reshape(-1, slices.channels, size, size)), labels
