"""Identify the network in a weight file, so that `--init FILE` determines the architecture."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import timm
import torch
import torchvision

from core.errors import UserError
from core.text import read_json
from encoders.card import read_card
from encoders.formats import find_encoder, read_weights
from encoders.names import HUB, VIDEO_ENCODERS, is_video
from encoders.norm import Norm

CANDIDATES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *VIDEO_ENCODERS,
)
"""Networks that are recognised by the shapes of their tensors in files without a card."""


class Identity(NamedTuple):
    """The network in a file."""

    architecture: str
    norm: str | None
    """None if the file does not specify it."""
    stem: str | None = None
    """None if the file does not specify it."""


def identify(path: Path) -> Identity | None:
    """Identify a network by the card beside its file, or else by the names and shapes of its tensors.

    Args:
        path: an encoder file or its folder, a trained U-Net of `segment`, or a file of other software.

    Returns:
        None if the network is unknown or the file unreadable; loading then checks it against the requested encoder.
    """
    path = path / "encoder.safetensors" if path.is_dir() else path
    if not path.is_file():
        return None
    try:
        if card := read_card(path):
            return Identity(card.architecture, card.norm, card.stem)
        if path.name == "model.safetensors" and (path.parent / "model.json").is_file():
            return _of_model(path.parent / "model.json")
        return recognise(read_weights(path))
    except (UserError, ValueError):
        return None  # loading reads the file again and reports the error


def identify_repository(source: str) -> Identity | None:
    """The network that the name of a repository of timm on the hub begins with, such as hf-hub:timm/resnet18.a1_in1k.

    Nothing is downloaded; None if the name is none of timm's.
    """
    name = source.removeprefix(HUB).rsplit("/", 1)[-1].split("@")[0].split(".")[0]
    return Identity(name, None) if timm.is_model(name) else None


def recognise(payload: Mapping[str, Any]) -> Identity | None:
    """The network of ``CANDIDATES``, or the one that the file names, whose tensors all are in a file."""
    names = [name for name in (payload.get("arch"), *CANDIDATES) if isinstance(name, str)]
    fitting = [name for name in names if _fits(payload, name)]
    # the largest: all tensors of a smaller network may be among those of a larger one
    return Identity(max(fitting, key=lambda name: len(_shapes(name))), None) if fitting else None


def _of_model(path: Path) -> Identity | None:
    """The encoder that the card of a trained U-Net or classifier names."""
    model = read_json(path)
    encoder, norm = (model.get("encoder"), model.get("norm")) if isinstance(model, dict) else (None, None)
    if not isinstance(encoder, str) or norm not in get_args(Norm):
        return None
    return Identity(encoder, norm)


def _fits(payload: Mapping[str, Any], name: str) -> bool:
    """Whether a file holds a network's tensors, with any classifier and any number of input channels."""
    shapes = _shapes(name)
    state = find_encoder(payload, name, shapes).state
    skipped = {"conv1.weight": 2, "stem.0.weight": 2}  # output and input channels of the first convolution
    return bool(shapes) and all(
        key in state and state[key].shape[skipped.get(key, 0) :] == shape[skipped.get(key, 0) :]
        for key, shape in shapes.items()
    )


@cache
def _shapes(name: str) -> Mapping[str, Any]:
    """Shapes of the tensors of a network without its classifier; empty if there is no such network."""
    with torch.device("meta"):
        if is_video(name):
            network: Any = torchvision.models.get_model(name, weights=None)
            network.fc = torch.nn.Identity()
        elif timm.is_model(name):
            network = timm.create_model(name, num_classes=0)
        else:
            return {}
    return {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
