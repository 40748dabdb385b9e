"""The layers of an encoder from the first to the last, for learning rates that decay towards the first."""

from functools import cache
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from core.errors import UserError
from encoders.names import is_video
from encoders.weights import timm_names


def layer_factors(encoder: nn.Module, name: str, decay: float) -> dict[nn.Parameter, float]:
    """A factor on the learning rate of each parameter of an encoder: `decay` to the power of its depth.

    Depth is counted in blocks, as timm groups them, from the head that follows the encoder (depth 0, factor 1), so that
    the last block has factor `decay` and the stem the smallest one.

    Args:
        encoder: from `build_encoder` or `build_clip_encoder`, or the `encoder` of a segmentation network.
        name: name of the encoder.
        decay: in (0, 1]; 1 gives every parameter factor 1.

    Source: Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT.

    Raises:
        UserError: if timm does not group the layers of this network.
    """
    network: Any = getattr(encoder, "frame_encoder", getattr(encoder, "model", encoder))
    layers = _video_layers(network) if is_video(name) else _timm_layers(name)
    names = {key: key for key in network.state_dict()} if is_video(name) else timm_names(network, name)
    last = max(layers.values())
    return {parameter: decay ** (last - layers.get(names[key], last)) for key, parameter in network.named_parameters()}


@cache
def _timm_layers(name: str) -> dict[str, int]:
    """The layer of each parameter of timm's network with a classifier, which is the last layer."""
    with torch.device("meta"):
        network: Any = timm.create_model(name, num_classes=1)
    if not hasattr(network, "group_matcher"):
        raise UserError(f"--layer-decay: timm does not say what the layers of {name} are; leave it out")
    return dict(group_parameters(network, network.group_matcher(coarse=False), reverse=True))


def _video_layers(network: nn.Module) -> dict[str, int]:
    """The stem is layer 0, the four stages are 1 to 4, and the head, which the encoder lacks, is 5."""
    order = ("stem", "layer1", "layer2", "layer3", "layer4")
    return {key: order.index(key.split(".")[0]) for key, _ in network.named_parameters()} | {"head": len(order)}
