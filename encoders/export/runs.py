"""The network of a finished run, and the facts that its export and its model card need."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from core.errors import UserError, first_violation
from core.text import read_json, read_text
from encoders.build import build_clip_encoder, build_encoder
from encoders.card import read_card
from encoders.decoders import build_segmenter
from encoders.digest import refuse_changed_card
from encoders.formats import read_weights
from encoders.names import Decoder, is_video
from encoders.norm import Norm
from encoders.stem import Stem
from encoders.weights import load_weights, load_whole

SIDE = 224
"""Side of images in pixels where a run does not say it."""
MOST_BYTES = 2**24
"""Bytes of a card that is read."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, in evaluation mode on the CPU."""

    kind: Literal["encoder", "segmenter", "classifier"]
    network: nn.Module
    """An encoder gives features, a segmenter logits (N, classes, H, W), a classifier of exams logits (N,)."""
    encoder: str
    in_channels: int = 1
    norm: Norm
    stem: Stem = "standard"
    decoder: Decoder = "unet"
    over: str
    """Over what intensities were z-scored: "image", "exam" or "dataset"."""
    statistics: tuple[float, float] | None = None
    """Mean and standard deviation if `over` is "dataset"."""
    spacing_mm: float | None = None
    classes: tuple[str, ...] = ()
    frames: int | None = None
    """Frames of a clip; None: the network takes images."""
    side: int = SIDE
    """Side of the training images in pixels."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The run's card and result, for the model card."""


class _Model(BaseModel):
    """The part of the cards of `segment` and `classify` (`model.json`) that an export needs."""

    model_config = ConfigDict(extra="ignore")

    encoder: str
    norm: Norm
    decoder: Decoder = "unet"
    classes: list[str] | None = None
    normalisation: Literal["image", "dataset"] = "image"
    statistics: tuple[float, float] | list[tuple[float, float]] | None = None
    spacing_mm: float | None = None
    clip_frames: int | None = None
    image_size: int | None = None
    dataset: str = "unknown"
    init: str = "unknown"
    lineage: list[dict[str, Any]] = []
    warnings: list[str] = []
    task: str = ""


def open_run(path: Path) -> Trained:
    """Load the network of a run folder of `pretrain`, `segment` or `classify`, or an encoder file with its card.

    Raises:
        UserError: if there is no trained network, or its files are damaged or do not belong together.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name != "model.safetensors":
        return _encoder(path)
    if (folder / "model.safetensors").is_file():
        return _model(folder)
    if (folder / "model.json").is_file():
        raise UserError(f"{folder} combines the classifiers of several planes: pass the folder of one of them")
    if (folder / "encoder.safetensors").is_file():
        return _encoder(folder / "encoder.safetensors")
    if not path.exists():
        raise UserError(f"{path} does not exist; pass the folder of a finished run")
    raise UserError(
        f"{path} holds no trained network; pass the folder of a finished run of pretrain, segment, classify"
    )


def _encoder(path: Path) -> Trained:
    card = read_card(path)
    if card is None:
        raise UserError(f"{path} has no card ({path.stem}.json) beside it: only networks of fewslice are exported")
    if card.part != "encoder":
        raise UserError(f"{path} holds a U-Net without its output layer: pass the encoder.safetensors beside it")
    over = str(card.normalisation.get("over", "image"))
    if over == "channel":
        raise UserError(f"{path} was trained on several channels (--channels): such encoders are not exported")
    clips = is_video(card.architecture)
    network = (
        build_clip_encoder(card.architecture, card.norm, in_channels=card.in_channels)
        if clips
        else build_encoder(card.architecture, card.in_channels, card.norm, card.stem)
    )
    load_weights(network, path, name=card.architecture, in_channels=card.in_channels)
    last: dict[str, Any] = card.lineage[-1] if card.lineage else {}
    return Trained(
        kind="encoder",
        network=network.eval(),
        encoder=card.architecture,
        in_channels=card.in_channels,
        norm=card.norm,
        stem=card.stem,
        over=over,
        frames=int(last.get("clip_frames", 16)) if clips else None,
        side=int(last.get("image_size", SIDE)),
        facts={"lineage": card.lineage, "network": card.network, "result": _result(path.parent)},
    )


def _model(folder: Path) -> Trained:
    sidecar, weights = folder / "model.json", folder / "model.safetensors"
    if not sidecar.is_file():
        raise UserError(f"{folder} holds no trained model (model.json is missing); pass a finished run")
    try:
        text = read_text(sidecar, MOST_BYTES)
        card, content = _Model.model_validate_json(text), json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = first_violation(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise UserError(f"cannot read the model in {folder} ({reason}); train it again") from None
    refuse_changed_card(sidecar, content)
    if isinstance(content.get("channels"), list):
        raise UserError(f"{folder} was trained on several channels (--channels): such networks are not exported")
    facts = card.model_dump() | {"result": _result(folder)}
    shared: dict[str, Any] = {"encoder": card.encoder, "norm": card.norm, "facts": facts}
    if card.classes is None:
        classifier = ExamClassifier(build_clip_encoder(card.encoder, card.norm))
        load_whole(classifier, read_weights(weights), weights)
        side = card.image_size or SIDE
        settings: dict[str, Any] = {
            "kind": "classifier",
            "over": "exam",
            "frames": card.clip_frames or 16,
            "side": side,
        }
        return Trained(network=classifier.eval(), **settings, **shared)
    segmenter = build_segmenter(card.encoder, len(card.classes), card.norm, card.decoder)
    load_whole(segmenter, read_weights(weights), weights)
    return Trained(
        kind="segmenter",
        network=segmenter.eval(),
        decoder=card.decoder,
        over=card.normalisation,
        statistics=card.statistics if isinstance(card.statistics, tuple) and card.normalisation == "dataset" else None,
        spacing_mm=card.spacing_mm,
        classes=tuple(card.classes),
        side=_side(folder),
        **shared,
    )


class ExamClassifier(nn.Module):
    """The network of `classify` with its names of tensors: clips (N, 1, T, H, W) -> logits (N,)."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.num_features, 1)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 1, T, H, W), z-scored over the exam, -> logits (N,)."""
        return self.head(self.encoder(clips))[:, 0]


def _result(folder: Path) -> dict[str, Any]:
    """The content of `result.json`; empty if there is none that can be read."""
    try:
        result = read_json(folder / "result.json")
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _side(folder: Path) -> int:
    """The side of a run's training images in pixels."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return SIDE
    side = config.get("image_size") if isinstance(config, dict) else None
    return side if isinstance(side, int) and 32 <= side <= 4096 else SIDE
