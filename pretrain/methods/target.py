"""Methods with a target network: a moving average of the trained one (Grill et al. 2020; He et al. 2020)."""

import copy

import torch
from torch import Tensor, nn

from encoders.norm import Norm
from engine.ema import Decay, update_average
from pretrain.methods.heads import mlp
from pretrain.methods.method import Exported, Method


class TargetMethod(Method):
    """An online network (encoder, projector) and its target.

    Args:
        encoder: see `Method`.
        features: width of the encoder's output.
        projector_hidden, outputs: widths of the projector.
        norm: normalisation of the heads.
        decay: decay rates of the target's moving average.
    """

    def __init__(
        self, encoder: nn.Module, features: int, *, projector_hidden: int, outputs: int, norm: Norm, decay: Decay
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(features, projector_hidden, outputs, norm=norm)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.batch_statistics = norm == "batch"
        self.decay = decay
        self.resolved = {"tau": decay.tau}

    def after_step(self, step: int) -> None:
        """Move the target, once per optimiser step whatever the accumulation."""
        self.move_target(self.decay(step - 1))

    def move_target(self, tau: float) -> None:
        """Move the target towards the online network; call it, or `after_step`, once per optimiser step."""
        self._step_ended = True
        update_average(self.target_encoder.parameters(), self.encoder.parameters(), tau)
        update_average(self.target_projector.parameters(), self.projector.parameters(), tau)

    def encoder_to_export(self, network: Exported) -> nn.Module:
        """The target's encoder or the online one."""
        return self.target_encoder if network == "target" else self.encoder

    def start_share(self, network: Exported, step: int) -> float:
        """Share of the stage's initial weights that the target still holds."""
        return self.decay.start_share(step) if network == "target" else 0.0

    @torch.no_grad()
    def _target(self, view: Tensor) -> Tensor:
        """Projections of the target, without gradient: it moves by averaging alone."""
        return self.target_projector(self.target_encoder(view))
