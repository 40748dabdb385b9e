"""The classifier of exams, its card, and the combination of several planes."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, model_validator
from torch import Tensor, nn

from data.readers.geometry import SliceAxis
from encoders.build import build_clip_encoder
from encoders.norm import Norm
from engine import model_file


class ModelCard(model_file.ModelCard):
    """What must be known to use a trained classifier: `model.json` beside `model.safetensors`."""

    image_size: Annotated[int, Field(ge=1, le=2**14)]
    clip_frames: Annotated[int, Field(ge=1, le=2**14)]
    test_clips: Annotated[int, Field(ge=1, le=2**14)]
    test_seed: Annotated[int, Field(ge=0)]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    task: str
    plane: str
    """Empty for exams without planes."""
    slice_axis: SliceAxis = "auto"
    """How the axis across the slices of NIfTI exams is chosen, see `data.readers.geometry.slice_axis`."""


class Combination(BaseModel):
    """Logistic regression on the classifiers of several planes: `model.json` of the folder with a run per plane.

    The logit is `intercept` plus the sum over planes of weight times the log-odds of the plane's probability.
    """

    planes: Annotated[list[Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]], Field(min_length=1)]
    weights: list[FiniteFloat]
    intercept: FiniteFloat
    threshold: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _has_a_weight_per_plane(self) -> "Combination":
        if len(self.weights) != len(self.planes):
            raise ValueError(f"{len(self.weights)} weights for {len(self.planes)} planes")
        return self

    def probability(self, by_plane: list[float]) -> float:
        """Probability of one exam from those of its planes, in the order of `planes`."""
        logit = self.intercept + sum(w * log_odds(p) for w, p in zip(self.weights, by_plane, strict=True))
        return 1 / (1 + math.exp(-logit))


def log_odds(probability: float) -> float:
    """Logit of a probability, which is first clamped to [1e-6, 1 - 1e-6]."""
    clamped = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(clamped / (1 - clamped))


class Classifier(nn.Module):
    """An encoder of clips and a linear layer: (N, 1, T, H, W) -> logits (N,).

    Args:
        encoder: network from `build_clip_encoder`.
        probe: linear probe: the encoder is not trained, stays in evaluation mode and gets no gradient.
    """

    def __init__(self, encoder: nn.Module, *, probe: bool = False) -> None:
        super().__init__()
        width: Any = encoder.num_features
        self.encoder, self.head, self.probe = encoder, nn.Linear(width, 1), probe
        encoder.requires_grad_(not probe)
        self.train()  # puts an encoder that is not trained into evaluation mode before the first step

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode; an encoder that is not trained stays in evaluation mode."""
        super().train(mode)
        if self.probe:
            self.encoder.eval()
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 1, T, H, W), z-scored, -> logits (N,)."""
        return self.head(self.encoder(clips))[:, 0]


def build_classifier(
    encoder: str, norm: Norm, *, probe: bool = False, checkpoint_activations: bool = False
) -> Classifier:
    """Build a classifier with random weights from torch's global generator.

    Raises:
        UserError: if there is no such encoder.
    """
    return Classifier(build_clip_encoder(encoder, norm, checkpoint_activations), probe=probe)


def load_classifier(folder: Path) -> tuple[Classifier, ModelCard]:
    """Read a trained classifier and its card from a run folder, in evaluation mode on the CPU.

    Raises:
        UserError: if the folder holds no finished model, or its files do not belong together.
    """
    return model_file.load_model(folder, ModelCard, lambda card: build_classifier(card.encoder, card.norm))


def load_run(folder: Path) -> tuple[list[tuple[Classifier, ModelCard]], Combination | None]:
    """The classifiers of a run with their cards: one, or one per plane and their combination.

    Raises:
        UserError: as `load_classifier`.
    """
    sidecar = folder / "model.json"
    if (folder / "model.safetensors").exists() or not sidecar.is_file():
        return [load_classifier(folder)], None
    combination: Combination = model_file.read_json_card(sidecar, Combination)
    return [load_classifier(folder / plane) for plane in combination.planes], combination
