"""The card of an encoder file: `encoder.json` beside `encoder.safetensors` describes the weights and their origin."""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import UserError
from core.hashes import sha256
from encoders.norm import Norm

log = logging.getLogger("fewslice")

Network = Literal["target", "online", "segmentation", "foreign"]


class EncoderCard(BaseModel):
    """Content of `encoder.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # cards of version 0.1 have fields that nothing reads

    format: Literal["fewslice-encoder-1"] = "fewslice-encoder-1"
    architecture: str
    """timm's name of the network, or torchvision's of a video network."""
    in_channels: int
    norm: Norm
    network: Network
    """BYOL's target (moving average) or online network, a U-Net's encoder, or one that was not trained here."""
    normalisation: dict[str, Any]
    """How the training images were normalised: `over` says over what intensities were z-scored, "image" or "exam"."""
    lineage: list[dict[str, Any]]
    """Every training stage from the first: stage, source, data (name, hash), steps, versions."""
    sha256: str | None = None
    """Digest of the safetensors file."""


def read_card(path: str | Path) -> EncoderCard | None:
    """Read the card beside a safetensors file; None if there is none.

    Raises:
        UserError: if the JSON file is not a card of this format, or belongs to other weights.
    """
    path, file = Path(path), Path(path).with_suffix(".json")
    if path.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        card = EncoderCard.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{file} is not the card of an encoder ({where}: {first['msg']}); restore it, or move it away "
            f"to load {path.name} as a foreign file."
        ) from None
    if card.sha256 not in (None, sha256(path)):
        raise UserError(f"{file} describes other weights than {path.name} holds (sha256 differs); export again.")
    return card


def say_normalisation(card: EncoderCard | None, over: str) -> None:
    """Log one line if an encoder was trained on images that were normalised in another way than those of this run.

    Args:
        card: the encoder file's card; None for foreign files, whose normalisation is unknown.
        over: over what this run z-scores intensities: one "image", one "exam" or the whole "dataset".
    """
    trained_over = card.normalisation.get("over", over) if card else over
    if trained_over != over:
        message = "the encoder was trained on pixels z-scored over each %s; this run does so over the %s"
        log.info(message, trained_over, over)


def versions() -> dict[str, str]:
    """Versions of the packages that affect a training stage's result, for its entry in the lineage."""
    return {package: version(package) for package in ("fewslice", "torch", "timm")}
