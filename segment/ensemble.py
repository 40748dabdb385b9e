"""Several U-Nets as one: the mean of their class probabilities, its entropy, and how far they agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from core.errors import UserError
from segment.inference import entropy_of, largest_component, most_probable, probabilities_by_part
from segment.model import ModelCard, load_unet

SAME = {
    "classes": "classes",
    "spacing_mm": "pixel size (--spacing-mm)",
    "normalisation": "normalisation",
    "channels": "channel",
    "numbered_channels": "kind of channels",
    "slice_axis": "slice axis",
    "keep_largest_component": "rule for connected components (--keep-largest-component)",
}
"""Fields of a card in which runs must agree to be combined, with their names for a message."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an ensemble predicts for a stack of slices."""

    labels: np.ndarray
    """(slices, rows, columns) uint8 class indices."""
    entropy: np.ndarray | None
    """(slices, rows, columns) float32: entropy of the mean class probabilities in nats, from 0 (certain) to the
    logarithm of the number of classes; None: not asked for."""
    agreement: dict[str, float]
    """Predicted Dice of each foreground class, see `Agreement`; empty for a single network."""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """U-Nets of the same classes and preprocessing, in evaluation mode on one device."""

    members: Sequence[tuple[nn.Module, ModelCard]]

    @property
    def card(self) -> ModelCard:
        """The card of the first member: all have the same classes and read images alike.

        Isotropic images are read in the plane of training only if it was the same for all.
        """
        first, planes = self.members[0][1], {card.plane for _, card in self.members}
        return first if len(planes) == 1 else first.model_copy(update={"plane": None})

    @torch.no_grad()
    def segment(self, stack: np.ndarray, spacing: tuple[float, float], *, entropy: bool = False) -> Prediction:
        """Segment slices that share a grid, a few at a time: no probabilities of a whole volume are held.

        Args:
            stack: (slices, rows, columns), file units, or (slices, channels, rows, columns).
            spacing: (row_mm, column_mm).
            entropy: whether to keep the entropy of each voxel.

        Raises:
            UserError: if the slices are too large, or cannot be resampled.
        """
        shape = (len(stack), *stack.shape[-2:])
        labels = np.empty(shape, np.uint8)
        uncertainty = np.empty(shape, np.float32) if entropy else None
        agreement = Agreement(classes=self.card.classes, members=len(self.members))
        for part, probabilities in probabilities_by_part(self.members, stack, spacing):
            mean = probabilities[0] if len(probabilities) == 1 else torch.stack(probabilities).mean(dim=0)
            labels[part] = most_probable(mean)
            if uncertainty is not None:
                uncertainty[part] = entropy_of(mean).cpu().numpy()
            if len(probabilities) > 1:
                agreement.add([most_probable(each) for each in probabilities])
        if self.card.keep_largest_component:
            labels = largest_component(labels)
        return Prediction(labels=labels, entropy=uncertainty, agreement=agreement.dice())


@dataclass(kw_only=True)
class Agreement:
    """Predicted Dice of a volume: the mean Dice between pairs of members, counted part by part.

    Members are compared before small components are removed, which takes the whole volume. The number predicts the
    Dice against a reference only as far as members err independently; `python -m segment.agreement` checks it.

    Source: Roy et al. 2019, Bayesian QuickNAT, NeuroImage 195:11 (pairwise Dice of samples of one network).
    """

    classes: Sequence[str]
    """Background first."""
    members: int
    voxels: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """Voxels of a class that two members have in common, by class and members; those of one member with itself."""

    def add(self, labels: Sequence[np.ndarray]) -> None:
        """Count the label maps, one of each member, of some slices."""
        for label in range(1, len(self.classes)):
            masks = [each == label for each in labels]
            for i, j in self._pairs(include_self=True):
                common = int(np.count_nonzero(masks[i] & masks[j]))
                self.voxels[label, i, j] = self.voxels.get((label, i, j), 0) + common

    def dice(self) -> dict[str, float]:
        """Predicted Dice by foreground class; NaN where no member predicts the class. Empty for a single member."""
        if self.members < 2:
            return {}
        result = {}
        for label, name in enumerate(self.classes[1:], start=1):
            values = []
            for i, j in self._pairs():
                total = self.voxels[label, i, i] + self.voxels[label, j, j]
                values += [2 * self.voxels[label, i, j] / total] if total else []
            result[name] = float(np.mean(values)) if values else float("nan")
        return result

    def _pairs(self, *, include_self: bool = False) -> Iterator[tuple[int, int]]:
        yield from combinations(range(self.members), 2)
        if include_self:
            yield from ((k, k) for k in range(self.members))


def load_ensemble(
    runs: Sequence[Path], device: torch.device, flip_tta: Literal["auto", "yes", "no"] = "auto"
) -> Ensemble:
    """The U-Nets of some run folders, in evaluation mode.

    Args:
        runs: run folders of `python -m segment`, one or more.
        device: where to compute.
        flip_tta: average each prediction with that of the left-right flipped slice; auto: as each model's card says.

    Raises:
        UserError: if a folder holds no finished model, is named twice, or the models cannot be combined.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError(f"--run {' '.join(map(str, runs))}: a run is named twice, which adds nothing: name it once")
    members = [load_unet(run) for run in runs]
    first = members[0][1]
    for run, (_, card) in zip(runs[1:], members[1:], strict=True):
        for name, what in SAME.items():
            here, there = getattr(first, name), getattr(card, name)
            if here != there:
                raise UserError(
                    f"{runs[0]} and {run} cannot be combined: they differ in {what} ({here} and {there}); "
                    "predict with each alone, or train one again with the other's setting"
                )
    if flip_tta != "auto":
        members = [(unet, card.model_copy(update={"flip_tta": flip_tta == "yes"})) for unet, card in members]
    return Ensemble(members=[(unet.to(device), card) for unet, card in members])


def mean_agreement(agreement: dict[str, float]) -> float:
    """The mean over the classes that any member predicts; NaN without one."""
    known = [value for value in agreement.values() if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
