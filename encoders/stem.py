"""Stems of ResNets: the standard one for photographs, and a small one for images of 32 pixels."""

from typing import Any, Literal

import timm
from torch import nn

from core.errors import UserError

Stem = Literal["standard", "small"]
"""standard: the stem of the network, which shrinks images four times; small: 3 x 3 convolutions of stride 1 and no
max-pooling, which keeps their size (He et al. 2016, section 4.2; Chen et al. 2020, SimCLR, appendix B.9)."""


def use_small_stem(encoder: nn.Module, name: str) -> nn.Module:
    """Give a ResNet of timm the small stem, in place, with new random weights; the names of its tensors stay.

    Raises:
        UserError: if the network is no ResNet.
    """
    if not isinstance(encoder, timm.models.ResNet):
        raise UserError(f"encoder {name!r} has no small stem: pass a ResNet such as resnet18, or --stem standard")
    resnet: Any = encoder
    first: Any = (
        resnet.conv1[0] if isinstance(resnet.conv1, nn.Sequential) else resnet.conv1
    )  # three convolutions, or one
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(resnet.conv1, nn.Sequential):
        resnet.conv1[0] = small
    else:
        resnet.conv1 = small
    resnet.maxpool = nn.Identity()
    return encoder


def stem_of(encoder: nn.Module) -> Stem:
    """The stem of an encoder."""
    is_small = isinstance(encoder, timm.models.ResNet) and isinstance(encoder.maxpool, nn.Identity)
    return "small" if is_small else "standard"
