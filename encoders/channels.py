"""Adapt a pretrained first convolution to another number of input channels."""

from timm.models import adapt_input_conv
from torch import Tensor


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

    Source: timm's ``adapt_input_conv``.
    """
    flat = weight.flatten(2, -2)  # timm knows two dimensions; time joins the height
    adapted: Tensor = adapt_input_conv(in_channels, flat, base_channels or weight.shape[1])
    return weight if adapted is flat else adapted.unflatten(2, weight.shape[2:-1])
