"""The losses of `segment.model.segmentation_loss` from sums over each sample, for batches that are computed in parts.

The Jaccard loss is no mean over samples: intersections and unions are of the whole effective batch. They are sums over
its samples, wherever and whenever these are computed.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.readers.label_maps import IGNORED

SMALLEST_UNION = 1e-7
"""Unions are clamped to this, as in segmentation_models' loss."""


class SampleSums(nn.Module):
    """Sums over the pixels of each sample: logits (N, C, H, W), target (N, H, W) -> (N, 4, C).

    For each class: probability inside the class (soft intersection), probability everywhere, pixels of the class, and
    cross-entropy of its pixels. Pixels that are `IGNORED` in the target add nothing.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sums, in the logits' precision."""
        valid = (target != IGNORED)[:, None]
        inside = F.one_hot(target * valid[:, 0], logits.shape[1]).movedim(3, 1) * valid
        log_probability = logits.log_softmax(dim=1)
        probability = log_probability.exp()
        of_pixels = [probability * inside, probability * valid, inside, -log_probability * inside]
        return torch.stack([values.to(logits.dtype).sum(dim=(2, 3)) for values in of_pixels], dim=1)


def loss_of_sums(name: Literal["jaccard", "jaccard+ce"]) -> Callable[[Tensor], Tensor]:
    """The loss of an effective batch from the `SampleSums` of all its samples: (N, 4, C) -> scalar."""

    def loss(sums: Tensor) -> Tensor:
        intersection, predicted, true, entropy = sums.sum(dim=0)
        union = predicted + true - intersection
        # A class that no pixel of the batch carries adds nothing.
        jaccard = ((1 - intersection / union.clamp_min(SMALLEST_UNION)) * (true > 0)).mean()
        return jaccard if name == "jaccard" else jaccard + entropy.sum() / true.sum().clamp_min(1)

    return loss
