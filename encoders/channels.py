"""Adapt a pretrained first convolution to another number of input channels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor

from core.errors import UserError


def adapt_channels(weight: Tensor, in_channels: int, base_channels: int | None = None) -> Tensor:
    """Adapt the weight of a first convolution to another number of input channels.

    For one channel the weights are summed, so that a grey image gives the same result as the image replicated to all
    old channels did. For k channels they are repeated, cut to k and scaled by old / k; a replicated grey image then
    gives the same result if the number of old channels divides k.

    Args:
        weight: (out, in, height, width), or (out, in, time, height, width).
        in_channels: channels of the new images.
        base_channels: channels of the images it was trained on; None: ``in``. In stems that rearrange blocks of pixels
            into channels, ``in`` is a multiple of it.

    Returns:
        The adapted weight; the same tensor if nothing changes.

    Raises:
        UserError: for several channels, if the stem rearranges blocks of pixels into channels.

    Source: timm's ``adapt_input_conv``.
    """
    flat = weight.flatten(2, -2)  # timm knows two dimensions; time joins the height
    try:
        adapted: Tensor = adapt_input_conv(in_channels, flat, base_channels or weight.shape[1])
    except NotImplementedError:
        raise UserError(
            f"the first layer of this encoder rearranges pixels and cannot be adapted to {in_channels} channels: take "
            "another encoder, such as resnet18"
        ) from None
    return weight if adapted is flat else adapted.unflatten(2, weight.shape[2:-1])


def how_adapted(trained: int, channels: int) -> str:
    """What `adapt_channels` does for several channels, in words."""
    return f"{trained} to {channels} channels by repetition, scaled by {trained} / {channels}"


def require_adaptable(
    source: str | Path, trained: int, channels: int, lineage: Sequence[Mapping[str, Any]], *, foreign: bool
) -> None:
    """Raise a UserError if weights for images of some channels mean nothing for images of another number.

    Weights for grey images treat every channel as such, those for colours are the usual start for any images. Channels
    that were chosen by `--channels` are kinds of images, which neither their sum nor other channels continue.

    Args:
        source: name of the weights.
        trained: channels that they were trained on.
        channels: another number of channels.
        lineage: training stages of the weights; those on chosen channels name them.
        foreign: whether they were trained by other software, whose weights for any channels are summed for grey images.
    """
    colours = trained == 3 and not any("channels" in stage for stage in lineage)
    if not (trained == 1 or colours or (foreign and channels == 1)):
        raise UserError(
            f"{source} was trained on images of {trained} channels and those here have {channels}, for which its first "
            "convolution cannot be adapted: pass weights trained on the same channels, on grey or on RGB images"
        )
