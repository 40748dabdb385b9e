"""2D convolutional encoders by their timm name."""

import difflib
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from data.errors import UserError
from encoders.norm import Norm, replace_norm
from encoders.video import VIDEO_ENCODERS


def build_encoder(name: str, in_channels: int = 1, norm: Norm = "batch") -> nn.Module:
    """Build a randomly initialised encoder: (N, in_channels, H, W) -> (N, feature_width).

    Args:
        name: a convolutional network of timm ("resnet50", "resnet50.a1_in1k") that segmentation_models'
            ``tu-`` encoders take too.
        in_channels: channels of the images.
        norm: see ``replace_norm``.

    Raises:
        UserError: if timm does not know the name, or the network has no pyramid of feature maps, or takes
            images of one size only.
    """
    require_encoder(name)
    encoder = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0)
    return replace_norm(encoder, norm)


def require_encoder(name: str) -> None:
    """Raise UserError, with the nearest names, unless a U-Net can be built on this timm model."""
    if name in VIDEO_ENCODERS:
        raise UserError(f"encoder {name!r} takes clips of exams, not single images; take resnet18 or resnet50.")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        choices = f"the nearest names are {', '.join(near)}" if near else "see timm.list_models()"
        raise UserError(f"encoder {name!r} is not a model of timm; {choices}.")
    if why := _unsuitable(name):
        raise UserError(f"encoder {name!r} {why}; take a convolutional network such as resnet18 or resnet50.")


def feature_width(encoder: nn.Module) -> int:
    """Return the width of the vector per image (in MobileNetV3 more than the last feature map has)."""
    width: Any = getattr(encoder, "head_hidden_size", None) or encoder.num_features
    return int(width)


@cache
def _unsuitable(name: str) -> str:
    """Why a U-Net cannot be built on this timm model; empty when it can."""
    if (timm.get_pretrained_cfg(name, allow_unregistered=True) or timm.models.PretrainedCfg()).fixed_input_size:
        return "takes images of one size only (a transformer)"
    try:
        with torch.device("meta"):
            reductions = timm.create_model(name, features_only=True).feature_info.reduction()
    except Exception:  # whatever a model without feature maps raises
        return "has no feature maps"
    # The three pyramids that segmentation_models accepts: from full, half or quarter resolution down.
    if reductions not in [[first * 2**i for i in range(len(reductions))] for first in (1, 2, 4)]:
        return f"has feature maps of strides {reductions}, which are no pyramid"
    return ""
