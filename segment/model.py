"""The card and the losses of a segmentation network, which `encoders.decoders` builds."""

from pathlib import Path
from typing import Annotated, Literal

import segmentation_models_pytorch as smp
import torch
from pydantic import AliasChoices, BaseModel, Field, FiniteFloat, field_validator
from torch import nn

from data.readers.channels import Channels, several
from data.readers.geometry import Plane, SliceAxis
from data.readers.label_maps import IGNORED, check_class_names
from data.slices import Normalisation
from encoders.build import build_unet as build_unet
from encoders.decoders import build_segmenter as build_segmenter
from encoders.decoders import require_segmenter as require_segmenter
from encoders.names import Decoder
from engine import model_file

STRIDE = 32
"""Input sides must be multiples of this: five halvings in a U-Net; in DPT the coarsest of four maps has this stride."""


Moments = tuple[FiniteFloat, Annotated[FiniteFloat, Field(ge=0)]]
"""Mean and standard deviation."""


class UnlabelledSlices(BaseModel):
    """The pool of unlabelled slices of a run; `subjects` of the card holds hashes of their subjects."""

    pool: Literal["all", "annotated"]
    """See `segment.config.SegmentConfig.unlabelled_pool`."""
    slices: int
    subjects: int


class ModelCard(model_file.ModelCard):
    """What must be known to use a trained network: `model.json` beside `model.safetensors`."""

    decoder: Decoder = "unet"
    """Decoder of the network; cards before version 0.2 have none, as there were only U-Nets."""
    classes: Annotated[list[str], Field(min_length=2, max_length=256)]
    """Class names, background first."""
    normalisation: Normalisation
    statistics: Moments | tuple[Moments, ...]
    """Mean and standard deviation, in file units, or those of each of several channels; used if `normalisation` is
    "dataset"."""
    spacing_mm: Annotated[float, Field(ge=1e-3, le=1e3)] | None
    """Pixel size in mm that slices are resampled to; None: they are not resampled."""
    flip_tta: bool = Field(default=False, validation_alias=AliasChoices("flip_tta", "mirror"))
    """Average each prediction with that of the left-right flipped slice."""
    channels: Channels = None
    """Number of the channel that was trained on, or of several in their order, see `data.sources.FolderSource`; None:
    the first, or all frames."""
    numbered_channels: bool = False
    """Whether each channel of an image was a file of its own, case_0000 of case."""
    keep_largest_component: bool = Field(
        default=False, validation_alias=AliasChoices("keep_largest_component", "one_piece")
    )
    """Keep only the largest connected component of the foreground in a volume, see `segment.inference`."""
    unlabelled: UnlabelledSlices | None = None
    """The slices that pseudo-labels were learned from; None: only labelled ones were trained on."""
    slice_axis: SliceAxis = "auto"
    """How the axis across the slices is chosen, see `data.readers.geometry.slice_axis`."""
    plane: Plane | None = None
    """See `data.readers.geometry.common_plane`: that of the training slices."""

    @property
    def in_channels(self) -> int:
        """Number of channels that the network gets."""
        return len(several(self.channels)) or 1

    @field_validator("classes")
    @classmethod
    def _have_names_of_their_kind(cls, classes: list[str]) -> list[str]:
        check_class_names(classes[1:], "the model")
        return classes


def load_unet(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Read a trained network and its card from a run folder, in evaluation mode on the CPU.

    Raises:
        UserError: if the folder holds no finished model, or its files do not belong together.
    """
    return model_file.load_model(
        folder,
        ModelCard,
        lambda card: build_segmenter(card.encoder, len(card.classes), card.norm, card.decoder, card.in_channels),
    )


def segmentation_loss(name: Literal["jaccard", "jaccard+ce"], *, ignores: bool = False) -> nn.Module:
    """SMP's multiclass Jaccard loss on logits, or its sum with cross-entropy; (N, C, H, W), (N, H, W) -> scalar.

    A class that no pixel of the batch carries adds nothing to the Jaccard part (SMP's rule); cross-entropy still
    penalises predicting it. With `ignores`, pixels that are `IGNORED` in the target add nothing to either.
    """
    jaccard = smp.losses.JaccardLoss(mode="multiclass", ignore_index=IGNORED if ignores else None)
    return jaccard if name == "jaccard" else _Sum(jaccard, _CrossEntropy() if ignores else nn.CrossEntropyLoss())


class _CrossEntropy(nn.Module):
    """Mean cross-entropy over the pixels that are not ignored; 0, not NaN as in torch, where all are."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        total = nn.functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return total / (target != IGNORED).sum().clamp_min(1)


class _Sum(nn.Module):
    def __init__(self, *losses: nn.Module) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(logits, target) for loss in self.losses]).sum()
