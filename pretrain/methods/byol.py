"""BYOL (bootstrap your own latent): two views, an online and a target network, no negatives (Grill et al. 2020)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.norm import Norm
from engine.ema import Decay
from pretrain.methods.heads import mlp
from pretrain.methods.method import Exported
from pretrain.methods.target import TargetMethod

Outputs = list[tuple[Tensor, ...]]
"""Outputs of a network for the first and for the second view."""


class Byol(TargetMethod):
    """The online network (encoder, projector, predictor) and its target (encoder, projector).

    Args:
        encoder: (N, channels, H, W) or (N, channels, T, H, W) -> (N, features).
        features: width of the encoder's output.
        projector_hidden, predictor_hidden, outputs: widths of the heads.
        norm: normalisation of the heads.
        decay: decay rates of the target's moving average; None: 0.99.
    """

    exports: ClassVar[tuple[Exported, ...]] = ("target", "online")

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        *,
        projector_hidden: int = 4096,
        predictor_hidden: int = 8192,
        outputs: int = 256,
        norm: Norm = "batch",
        decay: Decay | None = None,
    ) -> None:
        decay = decay or Decay(0.99)
        super().__init__(encoder, features, projector_hidden=projector_hidden, outputs=outputs, norm=norm, decay=decay)
        self.predictor = mlp(outputs, predictor_hidden, outputs, norm=norm)

    def forward(self, views: Tensor) -> Tensor:
        """The symmetric loss, summed over both directions and averaged over samples.

        Args:
            views: (N, 2, channels, H, W), or of clips (N, 2, channels, T, H, W).
        """
        return self.view_loss(*self.networks(views))

    def view_loss(self, online: Outputs, targets: Outputs) -> Tensor:
        """The symmetric loss of what `networks` returns."""
        (first, first_prediction, *_), (second, second_prediction, *_) = online
        # Collapse is watched on the online network: the target lags behind it.
        self.remember(torch.cat([first, second]))
        there = regression_loss(first_prediction, targets[1][0])
        return there + regression_loss(second_prediction, targets[0][0])

    def networks(self, views: Tensor) -> tuple[Outputs, Outputs]:
        """Of both views the online network's projections and predictions, and the target network's projections, (N,
        outputs) each."""
        first, second = views[:, 0], views[:, 1]
        # Under batch norm each view goes through the networks by itself, as merging the views would merge their
        # statistics. A single sample has no statistics: its two views must share theirs.
        if self.batch_statistics and len(views) > 1:
            return [self._online(first), self._online(second)], [self._targets(first), self._targets(second)]
        both = torch.cat([first, second])
        return _of_each_view(self._online(both)), _of_each_view(self._targets(both))

    def _online(self, view: Tensor) -> tuple[Tensor, ...]:
        projection = self.projector(self.encoder(view))
        return projection, self.predictor(projection)

    def _targets(self, view: Tensor) -> tuple[Tensor, ...]:
        return (self._target(view),)


def _of_each_view(outputs: tuple[Tensor, ...]) -> Outputs:
    """The outputs for both views, which went through the networks at once, by view."""
    return list(zip(*(output.chunk(2) for output in outputs), strict=True))


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Mean over the batch of 2 - 2 cos(prediction, projection), both (N, D); 0 aligned, 4 opposed.

    Computed in fp32 whatever the precision of the networks. Source: Grill et al. 2020, eq. 2.
    """
    cosine = F.cosine_similarity(prediction.float(), projection.float(), dim=1)
    return (2 - 2 * cosine).mean()
