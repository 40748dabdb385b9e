"""The U-Net, and the one file in which a trained one is kept."""

from pathlib import Path
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data.errors import UserError
from data.samples import Normalisation
from encoders.build import require_encoder
from encoders.norm import Norm, replace_norm
from engine.run import write_json

STRIDE = 32
"""Input sides must be multiples of this: five halvings."""


class ModelCard(BaseModel):
    """What must be known to use a trained U-Net: `model.json` beside `model.safetensors`."""

    encoder: str
    norm: Norm
    classes: list[str]
    """Background first."""
    normalisation: Normalisation
    statistics: tuple[float, float]
    """Mean and standard deviation used when `normalisation` is "dataset"."""
    spacing_mm: float | None
    """Pixel size the network was trained at; None: the file's own."""
    mirror: bool = False
    """Average each prediction with that of the mirrored slice."""
    one_piece: bool = False
    """Keep only the largest connected piece of foreground in a volume."""
    dataset: str
    init: str
    lineage: list[dict[str, Any]] = []


def build_unet(encoder: str, classes: int, norm: Norm = "batch") -> nn.Module:
    """SMP's U-Net: (N, 1, H, W) -> logits (N, classes, H, W); nearest upsampling, two convolutions per stage.

    Random weights from torch's global generator: the decoder's depend on the seed alone, whatever the encoder
    is loaded with afterwards, so that runs of one seed pair up.

    Raises:
        UserError: when `encoder` is no timm CNN with feature maps; the nearest names are listed.
    """
    require_encoder(encoder)
    unet = smp.Unet(
        encoder_name=f"tu-{encoder}",
        encoder_weights=None,
        in_channels=1,
        classes=classes,
        decoder_use_norm=True,
    )
    return replace_norm(unet, norm)


def save_unet(unet: nn.Module, folder: Path, card: ModelCard) -> None:
    """Write `model.safetensors` and `model.json` into `folder`, each whole or not at all."""
    partial = folder / ".model.safetensors.partial"
    save_file({name: value.contiguous() for name, value in unet.state_dict().items()}, partial)
    partial.replace(folder / "model.safetensors")
    write_json(folder / "model.json", card.model_dump())


def load_unet(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Read back what `save_unet` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: when the folder holds no finished model, or its files do not belong together.
    """
    file, sidecar = folder / "model.safetensors", folder / "model.json"
    for path in (file, sidecar):
        if not path.is_file():
            raise UserError(f"{folder} holds no trained model ({path.name} is missing); give a finished --run")
    try:
        card = ModelCard.model_validate_json(sidecar.read_text())
        unet = build_unet(card.encoder, len(card.classes), card.norm)
        unet.load_state_dict(load_file(file))
    except (ValidationError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read the model in {folder} ({reason}); train it again") from error
    return unet.eval(), card


def jaccard_loss(name: Literal["jaccard", "jaccard+ce"]) -> nn.Module:
    """SMP's multiclass Jaccard loss on logits, or its sum with cross-entropy; (N, C, H, W), (N, H, W) -> scalar.

    A class that no pixel of the batch carries adds nothing to the Jaccard part (SMP's rule); cross-entropy still
    punishes predicting it.
    """
    jaccard = smp.losses.JaccardLoss(mode="multiclass")
    return jaccard if name == "jaccard" else _Sum(jaccard, nn.CrossEntropyLoss())


class _Sum(nn.Module):
    def __init__(self, *losses: nn.Module) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(logits, target) for loss in self.losses]).sum()
