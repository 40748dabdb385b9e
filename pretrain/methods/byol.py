"""BYOL (bootstrap your own latent): two views, an online and a target network, no negatives (Grill et al. 2020)."""

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.norm import Norm, replace_norm
from engine.ema import Decay, update_average
from pretrain.methods.method import Exported, Method


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Projector or predictor: linear, batch norm, ReLU, linear; initialised as in Kalapos and Gyires-Toth 2022."""
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for layer in (first, last):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), last)


class Byol(Method):
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
        super().__init__(encoder)
        self.projector = replace_norm(mlp(features, projector_hidden, outputs), norm)
        self.predictor = replace_norm(mlp(outputs, predictor_hidden, outputs), norm)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.batch_statistics = norm == "batch"
        self.decay = decay or Decay(0.99)
        self.resolved = {"tau": self.decay.tau}

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
            with torch.no_grad():  # stop-gradient: the target network moves by averaging alone
                targets = [self._target(first), self._target(second)]
        else:
            both = torch.cat([first, second])
            online = list(zip(*(outputs.chunk(2) for outputs in self._online(both)), strict=True))
            with torch.no_grad():
                targets = list(self._target(both).chunk(2))
        return [projection for projection, _ in online], [prediction for _, prediction in online], targets

    def _online(self, view: Tensor) -> tuple[Tensor, ...]:
        projection = self.projector(self.encoder(view))
        return projection, self.predictor(projection)

    def _target(self, view: Tensor) -> Tensor:
        return self.target_projector(self.target_encoder(view))

    def after_step(self, step: int) -> None:
        """Move the target, once per optimiser step whatever the accumulation."""
        super().after_step(step)
        self.move_target(self.decay(step - 1))

    def encoder_to_export(self, network: Exported) -> nn.Module:
        """The target's encoder or the online one."""
        return self.target_encoder if network == "target" else self.encoder

    def start_share(self, network: Exported, step: int) -> float:
        """Share of the stage's initial weights that the target still holds."""
        return self.decay.start_share(step) if network == "target" else 0.0

    def move_target(self, tau: float) -> None:
        """Move the target towards the online network; call it, or `after_step`, once per optimiser step."""
        self._step_ended = True
        update_average(self.target_encoder.parameters(), self.encoder.parameters(), tau)
        update_average(self.target_projector.parameters(), self.projector.parameters(), tau)


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Mean over the batch of 2 - 2 cos(prediction, projection), both (N, D); 0 aligned, 4 opposed.

    Computed in fp32 whatever the precision of the networks. Source: Grill et al. 2020, eq. 2.
    """
    cosine = F.cosine_similarity(prediction.float(), projection.float(), dim=1)
    return (2 - 2 * cosine).mean()
