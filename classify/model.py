"""The classifier, and the files in which a trained one is kept."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import UserError
from encoders.clip import Clip, build_clip_encoder
from encoders.norm import Norm
from engine.run import write_json


class ModelCard(BaseModel):
    """What must be known to use a trained classifier: `model.json` beside `model.safetensors`."""

    encoder: str
    clip: Literal["maxpool2d"] | None
    norm: Norm
    image_size: int
    clip_frames: int
    test_clips: int
    test_seed: int
    threshold: float = 0.5
    task: str
    plane: str
    """"" where there is none."""
    dataset: str
    init: str
    lineage: list[dict[str, Any]] = []


class Combination(BaseModel):
    """Several planes in one run: `model.json` of the folder that holds a run per plane.

    The logit is `intercept` + the sum over planes of weight times the log-odds of the plane's probability.
    """

    planes: list[str]
    weights: list[float]
    intercept: float
    threshold: float

    def probability(self, by_plane: list[float]) -> float:
        """Probability of one exam from those of its planes, in the order of `planes`."""
        logit = self.intercept + sum(w * log_odds(p) for w, p in zip(self.weights, by_plane, strict=True))
        return 1 / (1 + math.exp(-logit))


def log_odds(probability: float) -> float:
    """Logit of a probability, which is first kept 1e-6 away from 0 and 1."""
    kept = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(kept / (1 - kept))


class Classifier(nn.Module):
    """An encoder of clips and one linear layer: (N, 1, T, H, W) -> logits (N,).

    Args:
        encoder: from `build_clip_encoder`.
        probe: the encoder is not trained: it stays in evaluation mode and gets no gradient.
    """

    def __init__(self, encoder: nn.Module, *, probe: bool = False) -> None:
        super().__init__()
        width: Any = encoder.num_features
        self.encoder, self.head, self.probe = encoder, nn.Linear(width, 1), probe
        encoder.requires_grad_(not probe)
        self.train()  # puts an encoder that is not trained into evaluation mode from the first step on

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode, but for an encoder that is not trained."""
        super().train(mode)
        if self.probe:
            self.encoder.eval()
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 1, T, H, W), z-scored, -> logits (N,)."""
        return self.head(self.encoder(clips))[:, 0]


def build_classifier(
    encoder: str, clip: Clip | None, norm: Norm, *, probe: bool = False, checkpoint_activations: bool = False
) -> Classifier:
    """A classifier of random weights, from torch's global generator.

    Raises:
        UserError: when there is no such encoder.
    """
    return Classifier(build_clip_encoder(encoder, clip, norm, checkpoint_activations), probe=probe)


def save_classifier(classifier: nn.Module, folder: Path, card: ModelCard) -> None:
    """Write `model.safetensors` and `model.json` into `folder`, each whole or not at all."""
    partial = folder / ".model.safetensors.partial"
    save_file({name: value.contiguous() for name, value in classifier.state_dict().items()}, partial)
    partial.replace(folder / "model.safetensors")
    write_json(folder / "model.json", card.model_dump())


def load_classifier(folder: Path) -> tuple[Classifier, ModelCard]:
    """Read back what `save_classifier` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: when the folder holds no finished model, or its files do not belong together.
    """
    file, sidecar = folder / "model.safetensors", folder / "model.json"
    for path in (file, sidecar):
        if not path.is_file():
            raise UserError(f"{folder} holds no trained model ({path.name} is missing); give a finished --run")
    try:
        card = ModelCard.model_validate_json(sidecar.read_text())
        with torch.random.fork_rng(devices=[]):
            classifier = build_classifier(card.encoder, card.clip, card.norm)
        classifier.load_state_dict(load_file(file))
    except (ValidationError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read the model in {folder} ({reason}); train it again") from error
    classifier.eval()
    return classifier, card


def load_run(folder: Path) -> tuple[list[tuple[Classifier, ModelCard]], Combination | None]:
    """The classifiers of a run: one, or one per plane with what combines them.

    Raises:
        UserError: as `load_classifier`.
    """
    sidecar = folder / "model.json"
    if (folder / "model.safetensors").exists() or not sidecar.is_file():
        return [load_classifier(folder)], None
    try:
        combination = Combination.model_validate_json(sidecar.read_text())
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read the model in {folder} ({reason}); train it again") from error
    return [load_classifier(folder / plane) for plane in combination.planes], combination
