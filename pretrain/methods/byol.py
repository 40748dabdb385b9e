"""BYOL (bootstrap your own latent): two views, an online and a target network, no negatives (Grill et al. 2020)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.norm import Norm, replace_norm
from engine.ema import update_average


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Projector or predictor: linear, batch norm, ReLU, linear; initialised as in Kalapos and Gyires-Toth 2022."""
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for layer in (first, last):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), last)


class Byol(nn.Module):
    """The online network (encoder, projector, predictor) and its target (encoder, projector).

    Args:
        encoder: (N, channels, H, W) or (N, channels, T, H, W) -> (N, features).
        features: width of the encoder's output.
        projector_hidden, predictor_hidden, outputs: widths of the heads.
        norm: normalisation of the heads.

    Calling it returns the loss of one micro-batch, so that Fabric's DDP wraps the whole forward pass.
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        *,
        projector_hidden: int = 4096,
        predictor_hidden: int = 8192,
        outputs: int = 256,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = replace_norm(mlp(features, projector_hidden, outputs), norm)
        self.predictor = replace_norm(mlp(outputs, predictor_hidden, outputs), norm)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.batch_statistics = norm == "batch"
        self._projections: list[Tensor] = []
        self._moved = True

    def forward(self, views: Tensor) -> Tensor:
        """The symmetric loss, summed over both directions and averaged over samples.

        Args:
            views: (N, 2, channels, H, W), or of clips (N, 2, channels, T, H, W).
        """
        predictions, projections = self.networks(views)
        if self._moved:  # the first micro-batch of a step: forget the projections of the step before
            self._projections.clear()
        self._projections += projections
        self._moved = False
        return regression_loss(predictions[0], projections[1]) + regression_loss(predictions[1], projections[0])

    def networks(self, views: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The online network's predictions and the target network's projections of both views, (N, outputs) each."""
        first, second = views[:, 0], views[:, 1]
        # Under batch norm each view goes through the networks by itself, as merging the views would merge their
        # statistics. A single sample has no statistics: its two views must share theirs.
        if self.batch_statistics and len(views) > 1:
            predictions = [self._predict(first), self._predict(second)]
            with torch.no_grad():  # stop-gradient: the target network moves by averaging alone
                projections = [self._target(first), self._target(second)]
        else:
            both = torch.cat([first, second])
            predictions = list(self._predict(both).chunk(2))
            with torch.no_grad():
                projections = list(self._target(both).chunk(2))
        return predictions, projections

    @property
    def last_projections(self) -> Tensor:
        """Target projections of all micro-batches of the last step, (2N, outputs), for the collapse metrics: those of
        one micro-batch may come from one sample, whose two views are alike without any collapse."""
        return torch.cat(self._projections)

    def _predict(self, view: Tensor) -> Tensor:
        return self.predictor(self.projector(self.encoder(view)))

    def _target(self, view: Tensor) -> Tensor:
        return self.target_projector(self.target_encoder(view))

    def move_target(self, tau: float) -> None:
        """Move the target towards the online network; call it once after each optimiser step that was taken."""
        self._moved = True
        update_average(self.target_encoder.parameters(), self.encoder.parameters(), tau)
        update_average(self.target_projector.parameters(), self.projector.parameters(), tau)


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Mean over the batch of 2 - 2 cos(prediction, projection), both (N, D); 0 aligned, 4 opposed.

    Computed in fp32 whatever the precision of the networks. Source: Grill et al. 2020, eq. 2.
    """
    cosine = F.cosine_similarity(prediction.float(), projection.float(), dim=1)
    return (2 - 2 * cosine).mean()
