"""What all self-supervised methods have in common: the interface between a method and the stage that trains it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from encoders.weights import save_encoder

Exported = Literal["target", "online"]
"""Network whose encoder is written: a moving average of the trained one, or the trained one itself."""


class Method(nn.Module):
    """A self-supervised method: its networks, its loss and what moves after an optimiser step.

    Calling it with the samples of one micro-batch returns their mean loss, so that Fabric's DDP wraps the whole forward
    pass. Loop, accumulation, augmentation, probe and export are shared by all methods; a subclass defines `networks`
    and `forward`, and calls `remember` with the projections that the collapse monitor looks at.

    Args:
        encoder: (N, channels, H, W) or (N, channels, T, H, W) -> (N, features); or a U-Net, see `trains`.
    """

    views: ClassVar[Literal[1, 2]] = 2
    """2: samples are pairs of augmented views, (N, 2, channels, H, W) or, of clips, (N, 2, channels, T, H, W). 1: they
    are single augmented images, (N, channels, H, W)."""
    on_clips: ClassVar[bool] = True
    """Whether the method takes clips of exams as well as images."""
    exports: ClassVar[tuple[Exported, ...]] = ("online",)
    """Networks whose encoder can be written, the default first."""
    trains: ClassVar[Literal["encoder", "unet"]] = "encoder"
    """What the method is built around: an encoder, or a U-Net with one output channel, `encoders.build.build_unet`."""
    metrics: ClassVar[tuple[str, ...]] = ("projection_std", "effective_rank", "start_share")
    """Metrics that apply to the method."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.resolved: dict[str, Any] = {}
        """Settings whose value followed from other settings or the data, for the log, the card and the result."""
        self._projections: list[Tensor] = []
        self._step_ended = True

    def samples(self, views: TorchDataset[Tensor]) -> TorchDataset[Tensor]:
        """What the method trains on, made from augmented views."""
        return views

    def forward(self, samples: Tensor) -> Tensor:
        """Mean loss of one micro-batch, in fp32 whatever the precision of the networks."""
        raise NotImplementedError

    def networks(self, samples: Tensor) -> Any:
        """All networks of a forward pass, tensors in, tensors out; a separate method so that it can be compiled."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Move what is not trained by gradients; called with the number of steps taken, after each real step."""
        self._step_ended = True

    def encoder_to_export(self, network: Exported) -> nn.Module:
        """The encoder that the probe follows and that is written."""
        return self.encoder

    def start_share(self, network: Exported, step: int) -> float:
        """Share, in [0, 1], of the stage's initial weights that the moving average still holds after `step` steps; 0
        for networks that are trained themselves."""
        return 0.0

    def prepare_export(self, batches: Iterator[Tensor]) -> None:
        """Called in all processes, before each export and probe, with the views of one epoch in batches, drawn only as
        far as they are used."""

    def save(self, folder: Path, network: Exported, **facts: Any) -> None:
        """Write `encoder.safetensors` and its card; a method with more to hand over writes that as well.

        Args:
            folder: made if absent.
            network: network whose encoder is written.
            facts: the other arguments of `encoders.weights.save_encoder`.
        """
        save_encoder(self.encoder_to_export(network), folder, network=network, **facts)

    def remember(self, projections: Tensor) -> None:
        """Keep the projections (N, D) of one micro-batch of trained networks until the next step."""
        if self._step_ended:  # the first micro-batch of a step: forget the projections of the step before
            self._projections.clear()
        self._projections.append(projections.detach())
        self._step_ended = False

    @property
    def last_projections(self) -> Tensor | None:
        """Projections of all micro-batches of the last step, (samples, D), for the collapse metrics; None if the method
        has none. Those of one micro-batch may come from one sample, whose views are alike without any collapse."""
        return torch.cat(self._projections) if self._projections else None
