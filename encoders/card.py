"""The card of a weight file: the JSON file beside `encoder.safetensors` or `unet.safetensors` describes the weights."""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import UserError, first_violation
from core.hashes import sha256
from encoders.names import is_file
from encoders.norm import Norm
from encoders.stem import Stem

log = logging.getLogger("fewslice")

MODEL = "model.safetensors"
"""Name of the weights of a trained U-Net or classifier, whose card `engine.model_file` defines."""
UNET = "unet.safetensors"
"""Name of the encoder and decoder of a pretrained U-Net."""

Network = Literal["target", "online", "masked", "segmentation", "supervised", "foreign"]


class EncoderCard(BaseModel):
    """Content of `encoder.json` and `unet.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # cards of version 0.1 have fields that nothing reads

    format: Literal["fewslice-encoder-1"] = "fewslice-encoder-1"
    architecture: str
    """timm's name of the network, or torchvision's of a video network."""
    in_channels: int
    norm: Norm
    stem: Stem = "standard"
    """Stem of a ResNet; cards before version 0.2 have none, as there was only the standard one."""
    network: Network
    """BYOL's target (moving average) or online network, a U-Net of masked image modelling, one of segmentation, a
    classifier of images, or a network that was not trained here."""
    part: Literal["encoder", "unet"] = "encoder"
    """What the file holds: an encoder, or the encoder and the decoder of a U-Net."""
    normalisation: dict[str, Any]
    """How the training images were normalised: `over` says over what intensities were z-scored, "image", "channel"
    (each of several by itself) or "exam"."""
    lineage: list[dict[str, Any]]
    """Every training stage from the first: stage, source, data (name, hash), steps, versions, and of stages on scans
    subjects, a `core.subjects.SubjectRecord`; where several channels were chosen, `channels`; and `first_convolution`
    if that was adapted to several."""
    sha256: str | None = None
    """Digest of the safetensors file."""


def read_card(path: str | Path) -> EncoderCard | None:
    """Read the card beside a safetensors file; None if there is none.

    Raises:
        UserError: if the JSON file is not a card of this format, or belongs to other weights.
    """
    path, file = Path(path), Path(path).with_suffix(".json")
    if path.suffix != ".safetensors" or path.name == MODEL or not file.is_file():
        return None
    try:
        card = EncoderCard.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{file} is not the card of an encoder ({first_violation(error)}); restore it, or move it away "
            f"to load {path.name} as a foreign file."
        ) from None
    if card.sha256 not in (None, sha256(path)):
        raise UserError(f"{file} describes other weights than {path.name} holds (sha256 differs); export again.")
    return card


def norm_of_model(source: str | Path) -> Norm | None:
    """The norm of a trained U-Net or classifier, as the card beside it says; None for other files."""
    card = _card_of_model(Path(source).expanduser()) if is_file(source) else None
    return card.norm if card else None


def _card_of_model(path: Path) -> "_LineageOfModel | None":
    """What the card beside a `MODEL` says of its lineage; None without one. A UserError if it is damaged."""
    file = path.with_suffix(".json")
    if path.name != MODEL or not file.is_file():
        return None
    try:
        return _LineageOfModel.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} is not the card of a model ({first_violation(error)}); train it again") from None


def read_lineage(source: str | Path) -> list[dict[str, Any]]:
    """The training stages of a file of weights, as far as the card beside it names them.

    A trained U-Net or classifier is the last stage of its lineage, with the subjects it was trained and scored on.

    Args:
        source: any source of `encoders.weights.load_weights`; downloads and files without a card have no stages.

    Raises:
        UserError: if the card is damaged.
    """
    if not is_file(source):
        return []
    path = Path(source).expanduser()
    path = path / "encoder.safetensors" if path.is_dir() else path
    if path.name != MODEL:
        card = read_card(path)
        return card.lineage if card else []
    if (model := _card_of_model(path)) is None:
        return []
    last: dict[str, Any] = {"stage": "supervised", "data": {"name": model.dataset}}
    last |= {"channels": model.channels} if isinstance(model.channels, list) else {}
    return [*model.lineage, last | ({"subjects": model.subjects} if model.subjects else {})]


class _LineageOfModel(BaseModel):
    """The part of `engine.model_file.ModelCard` that a lineage is made of, and the norm."""

    dataset: str
    norm: Norm | None = None
    lineage: list[dict[str, Any]] = []
    subjects: dict[str, Any] | None = None
    channels: int | list[int] | None = None


def unet_source(source: str | Path) -> str | Path:
    """The U-Net file of a run folder that holds one; any other source of weights as it is."""
    file = Path(source).expanduser() / UNET
    return file if is_file(source) and file.is_file() else source


def require_channels(source: str | Path, channels: int, what: str) -> None:
    """Raise a UserError if the card of an encoder file says that it takes images of another number of channels.

    Args:
        source: any source of `encoders.weights.load_weights`; those without a card are adapted when they are loaded.
        channels: channels of the images.
        what: name of the images in the message.
    """
    if not is_file(source):
        return
    path = Path(source).expanduser()
    card = read_card(path / "encoder.safetensors" if path.is_dir() else path)
    if card and card.in_channels != channels:
        kinds = {1: "grey images (one channel)", 3: "RGB images (three channels)"}
        trained, now = (kinds.get(n, f"images of {n} channels") for n in (card.in_channels, channels))
        raise UserError(f"{source} takes {trained} and {what} are {now}: pass an encoder that was pretrained on such")


def say_channels(lineage: Sequence[Mapping[str, Any]], channels: Sequence[int]) -> None:
    """Log a warning if weights were trained on other channels than the chosen ones, or in another order."""
    trained = next((stage["channels"] for stage in reversed(lineage) if "channels" in stage), None)
    if trained is not None and channels and [*trained] != [*channels]:
        message = "the weights were trained on the channels %s of their data and get the channels %s here: %s"
        before, now = (" ".join(map(str, numbers)) for numbers in (trained, channels))
        log.warning(message, before, now, "make sure that these are of the same kinds in the same order")


def say_normalisation(card: EncoderCard | None, over: str) -> None:
    """Log one line if an encoder was trained on images that were normalised in another way than those of this run.

    Args:
        card: the encoder file's card; None for foreign files, whose normalisation is unknown.
        over: over what this run z-scores intensities: one "image", each "channel" of it, one "exam" or the whole
            "dataset".
    """
    if card and card.in_channels == 1 and over == "channel":
        over = "image"  # the same for a grey image
    trained_over = card.normalisation.get("over", over) if card else over
    if trained_over != over:
        message = "the encoder was trained on pixels z-scored over each %s; this run does so over the %s"
        log.info(message, trained_over, over)


PACKAGES = ("fewslice", "torch", "timm", "segmentation-models-pytorch")
"""The packages that affect a training stage's result."""


def versions() -> dict[str, str]:
    """Versions of `PACKAGES`, for the result of a run and the entry of a stage in the lineage."""
    return {package: version(package) for package in PACKAGES}
