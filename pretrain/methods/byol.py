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
        projections, predictions, targets = self.networks(views)
        # Collapse is watched on the online network: the target lags behind it.
        self.remember(torch.cat(projections))
        return regression_loss(predictions[0], targets[1]) + regression_loss(predictions[1], targets[0])

    def networks(self, views: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The online network's projections and predictions and the target network's projections of both views, (N,
        outputs) each."""
        first, second = views[:, 0], views[:, 1]
        # Under batch norm each view goes through the networks by itself, as merging the views would merge their
        # statistics. A single sample has no statistics: its two views must share theirs.
        if self.batch_statistics and len(views) > 1:
            online = [self._online(first), self._online(second)]
            targets = [self._target(first), self._target(second)]
        else:
            both = torch.cat([first, second])
            online = list(zip(*(outputs.chunk(2) for outputs in self._online(both)), strict=True))
            targets = list(self._target(both).chunk(2))
        return [projection for projection, _ in online], [prediction for _, prediction in online], targets

    def _online(self, view: Tensor) -> tuple[Tensor, ...]:
        projection = self.projector(self.encoder(view))
        return projection, self.predictor(projection)


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Mean over the batch of 2 - 2 cos(prediction, projection), both (N, D); 0 aligned, 4 opposed.

    Computed in fp32 whatever the precision of the networks. Source: Grill et al. 2020, eq. 2.
    """
    cosine = F.cosine_similarity(prediction.float(), projection.float(), dim=1)
    return (2 - 2 * cosine).mean()
