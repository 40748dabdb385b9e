"""Which network a weight file holds, so that `--init FILE` determines the architecture."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision

from core.errors import UserError
from encoders.card import read_card
from encoders.formats import State, layouts, read_weights
from encoders.names import VIDEO_ENCODERS, is_video

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
    """None where the file does not say it."""


def identify(path: Path) -> Identity | None:
    """Tell the architecture from a card beside the file, or else from the tensors in it.

    Args:
        path: an encoder file or its folder, a trained U-Net of `segment`, or a file of other software.

    Returns:
        None if it is not known; loading then tells whether the file fits the requested encoder.
    """
    path = path / "encoder.safetensors" if path.is_dir() else path
    if not path.is_file():
        return None
    try:
        if card := read_card(path):
            return Identity(card.architecture, card.norm)
        if path.name == "model.safetensors" and (path.parent / "model.json").is_file():
            model = json.loads((path.parent / "model.json").read_text())
            return Identity(model["encoder"], model["norm"])
        payload = read_weights(path)
    except (UserError, ValueError, KeyError, TypeError):
        return None  # the same file is read again to load it, and then the error is reported
    names = [name for name in (payload.get("arch"), *CANDIDATES) if isinstance(name, str)]
    fitting = [name for layout in layouts(payload) for name in names if _fits(layout.state, name)]
    # a smaller network's tensors may be among those of a larger one
    return Identity(max(fitting, key=lambda name: len(_shapes(name))), None) if fitting else None


def _fits(state: State, name: str) -> bool:
    """Whether the tensors are those of a network, its classifier and the number of input channels apart."""
    shapes = _shapes(name)
    start = {key: 2 if key in ("conv1.weight", "stem.0.weight") else 0 for key in shapes}
    return bool(shapes) and all(
        key in state and state[key].shape[start[key] :] == shape[start[key] :] for key, shape in shapes.items()
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
    return {key: value.shape for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
