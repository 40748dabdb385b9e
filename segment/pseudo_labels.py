"""Pseudo-labels: a moving average of the network labels unlabelled slices, and the network learns these labels.

In each step as many unlabelled samples as labelled ones go through the network in one batch. The teacher (`average`, in
evaluation mode) labels the weak view of each; pixels of which it is less sure than `confidence` are ignored; the others
the network has to predict from the strong view, under the loss that labelled slices have.

Sources: FixMatch (Sohn et al. 2020) for hard labels above a threshold; mean teacher (Tarvainen and Valpola 2017) for
the average; UniMatch (Yang et al. 2023) for both in segmentation. docs/methods.md, "Pseudo-labels", has what differs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from data.readers.label_maps import IGNORED
from data.samples.unlabelled import Pool
from engine.loop import Metrics
from engine.supervised import Supervised
from segment.inference import class_probabilities
from segment.loss_of_sums import SampleSums
from segment.windows import probabilities_by_row

COLUMNS = ("confident_share", "teacher_agreement", "pseudo_label_dice")
"""Metrics of pseudo-labels, of all steps since the row before, see `PseudoLabels.metrics`."""
LOOKS = (0.1, 0.2, 0.4, 0.8)
"""Shares of the steps after which the teacher looks at whole slices, to find where their foreground lies."""
MOST_SLICES = 1024
"""Slices that it looks at each time at most, if they are not more than a tenth of the samples of the run."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How pseudo-labels are chosen and weighed."""

    classes: int
    """Number of classes, the background included."""
    loss: Callable[[Tensor], Tensor]
    """`segment.loss_of_sums.loss_of_sums`: the loss of labelled and of pseudo-labelled slices."""
    confidence: float
    """Least probability of a pseudo-label."""
    weight: float
    """Final weight of the pseudo-labels' loss."""
    ramp: tuple[int, int]
    """Optimiser steps between which the weight rises from 0 to it."""
    looks: tuple[int, ...]
    """Optimiser steps before which the teacher looks at whole slices; () where crops do not depend on foreground."""
    slices_per_look: int
    """Slices that it looks at each time."""
    seed: int
    """Seed of the run."""


class PseudoLabels(Supervised):
    """A network, its teacher and their loss: the forward pass of a training step with unlabelled samples.

    All that training adds to the networks (the number of steps, where foreground lies, sums for the metrics) are
    buffers, so that it is saved and resumed with them.
    """

    steps: Tensor
    """Real optimiser steps taken."""
    tally: Tensor
    """Pixels by class, (5, classes), since the last call of `metrics`: those of confident pseudo-labels; those of them
    that the network predicts, too; and where a hidden label is known, those of both, of the pseudo-label, of the label.
    """
    samples: Tensor
    """Unlabelled samples since the last call of `metrics`."""
    foreground: Tensor
    """`data.samples.unlabelled.Pool.foreground`."""

    def __init__(self, network: nn.Module, pool: Pool, rules: Rules, fabric: Fabric) -> None:
        super().__init__(network, SampleSums(), averaged=True)
        assert self.average is not None
        self.average.eval()
        self.pool, self.rules, self.fabric = pool, rules, fabric
        self.batch_loss = self.loss_of_batch
        self.renewed_at = rules.looks
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tally", torch.zeros(5, rules.classes, dtype=torch.float64))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))
        self.register_buffer("foreground", torch.from_numpy(pool.foreground.copy()))

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The sums of each pair of samples, of which `loss_of_batch` makes the loss.

        Args:
            batch: image (N, C, S, S) and label (N, S, S) of labelled samples; weak (N, 2, C, S, S), strong (N, C, S,
                S), box (N, S, S) and hidden (N, S, S) of unlabelled ones, as `Pool.views` returns them.

        Returns:
            (N, 3, 4, classes): `SampleSums` of the labelled sample and of the unlabelled one, and what `_observed`
            counts, which has no part in the loss.
        """
        image, label, weak, strong, box, hidden = batch
        pseudo = self.pseudo_labels(weak)
        target = torch.where(box, pseudo[:, 1], pseudo[:, 0])
        # one pass for both, so that batch norm sees them together
        images = torch.cat([image, strong]).contiguous(memory_format=torch.channels_last)
        logits = self.logits(images)
        # the loss in fp32 whatever the network's precision, or in fp64
        labelled, unlabelled = logits.to(torch.promote_types(logits.dtype, torch.float32)).chunk(2)
        observed = self._observed(unlabelled.detach(), target, pseudo[:, 0], hidden).to(unlabelled.dtype)
        return torch.stack([self.loss(labelled, label), self.loss(unlabelled, target), observed], dim=1)

    @torch.no_grad()
    def pseudo_labels(self, weak: Tensor) -> Tensor:
        """Weak views (N, 2, C, S, S) -> the teacher's class of each pixel (N, 2, S, S), or `IGNORED`."""
        images = weak.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        probability, classes = self.average(images).float().softmax(dim=1).max(dim=1)  # type: ignore[misc]
        return classes.masked_fill_(probability < self.rules.confidence, IGNORED).unflatten(0, (-1, 2))

    @torch.no_grad()
    def _observed(self, logits: Tensor, target: Tensor, pseudo: Tensor, hidden: Tensor) -> Tensor:
        """Pixels by class, (N, 4, classes): see the last four of `tally`.

        The first compares the network with its targets, the others the teacher with labels that no one trains on.
        """
        known = (pseudo != IGNORED) & (hidden != IGNORED)
        counted = [
            (target, (target != IGNORED) & (logits.max(dim=1).indices == target)),
            (pseudo, known & (pseudo == hidden)),
            (pseudo, known),
            (hidden.long(), known),
        ]
        return torch.stack([_pixels_by_class(*each, self.rules.classes) for each in counted], dim=1)

    def loss_of_batch(self, sums: Tensor) -> Tensor:
        """The loss of an effective batch: (N, 3, 4, classes), what `forward` gives for all of its samples -> scalar."""
        labelled, unlabelled, observed = sums.unbind(dim=1)
        with torch.no_grad():
            self.tally += torch.cat([unlabelled[:, 2:3], observed], dim=1).sum(dim=0, dtype=torch.float64)
            self.samples += len(sums)
        # on the device: reading the number of steps would wait for it
        first, last = self.rules.ramp
        share = ((self.steps + 1 - first) / max(1, last - first)).clamp(0, 1)
        # the curve of Laine and Aila 2017, temporal ensembling
        weight = self.rules.weight * torch.exp(-5 * (1 - share) ** 2) * (self.steps >= first)
        # As in FixMatch, whose mean is over all pixels, the ignored ones included: a teacher that is sure of few pixels
        # has little say.
        confident = unlabelled[:, 2].sum() / (len(sums) * self.pool.weak.size**2)
        return self.rules.loss(labelled) + (weight * confident).to(sums.dtype) * self.rules.loss(unlabelled)

    def move_average(self, decay: float) -> None:
        """Move the teacher after an optimiser step."""
        super().move_average(decay)
        self.steps += 1

    def metrics(self) -> Metrics:
        """Metrics of the pseudo-labels since the last call.

        Returns:
            confident_share: share of pixels, in [0, 1], whose pseudo-label is confident enough to be learned.
            teacher_agreement: share of those for which the network, on the strong view, predicts the pseudo-label.
            pseudo_label_dice: Dice of those in the weak views with hidden labels, the mean over the classes but the
                background that occur in either; missing if no slice of the pool has labels.
        """
        confident, agreeing, common, pseudo, hidden = self.tally.cpu().clone()
        pixels = int(self.samples) * self.pool.weak.size**2
        self.tally.zero_()
        self.samples.zero_()
        metrics = {"confident_share": float(confident.sum()) / max(1, pixels)}
        if confident.any():
            metrics["teacher_agreement"] = float(agreeing.sum() / confident.sum())
        if (occurs := (pseudo + hidden)[1:] > 0).any():
            dice = 2 * common / (pseudo + hidden)
            metrics["pseudo_label_dice"] = float(dice[1:][occurs].mean())
        return metrics

    @torch.no_grad()
    def renew(self, step: int) -> None:
        """Find out, at the steps of `Rules.looks`, where the foreground of unlabelled slices lies, and crop by it."""
        self.pool.foreground[:] = self.foreground.cpu().numpy()  # after a resume it is that of the checkpoint
        if step in self.rules.looks:
            found = None
            if self.fabric.global_rank == 0:
                found = self.pool.find_foreground(self._predict, self.rules.slices_per_look, (self.rules.seed, step))
            found = self.fabric.broadcast(found)
            self.foreground.copy_(torch.from_numpy(found))
            self.pool.foreground[:] = found

    def _predict(self, image: np.ndarray) -> Tensor:
        """The teacher's classes, (rows, columns), of a whole slice (rows, columns) or (channels, rows, columns)."""
        weight, shape = next(self.kept.parameters()), image.shape[-2:]
        channels = image.reshape(1, -1, *shape)
        rows = probabilities_by_row(
            lambda x: class_probabilities(self.kept, x.to(weight.dtype)),
            lambda first, end: torch.from_numpy(channels[:, :, first:end]).to(weight.device),
            shape,
            shape,
        )
        return torch.cat([probabilities[0].max(dim=0).indices for _, probabilities in rows])


def _pixels_by_class(labels: Tensor, where: Tensor, classes: int) -> Tensor:
    """Number of pixels of each class in (N, S, S) class indices, of those where `where` is True: (N, classes)."""
    return (F.one_hot(labels * where, classes) * where[..., None]).sum(dim=(1, 2))


def looks(steps: int) -> tuple[int, ...]:
    """The steps of `LOOKS` in a run of `steps` optimiser steps, those before the first one left out."""
    return tuple(sorted({round(share * steps) for share in LOOKS} - {0}))
