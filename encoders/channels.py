"""Adapt a pretrained first convolution to another number of input channels."""

from timm.models import adapt_input_conv
from torch import Tensor


def adapt_channels(weight: Tensor, in_channels: int, base_channels: int | None = None) -> Tensor:
    """Adapt the weight of a first convolution to another number of input channels.

    To one channel the weights are summed, so a grey image gives what the image replicated to all of the
    old channels gave. To k channels they are repeated, cut to k and scaled by old / k, which keeps the
    same equality for a replicated grey image whenever the old channels divide k.

    Args:
        weight: (out, in, height, width), or (out, in, time, height, width).
        in_channels: channels of the images at hand.
        base_channels: channels of the images it was trained on, by default ``in``; fewer in stems that fold space
            into depth.

    Returns:
        The weight with in_channels in place of in, the same tensor where nothing changes.

    Source: timm's ``adapt_input_conv``.
    """
    flat = weight.flatten(2, -2)  # timm knows two dimensions; time joins the height
    adapted: Tensor = adapt_input_conv(in_channels, flat, base_channels or weight.shape[1])
    return weight if adapted is flat else adapted.unflatten(2, weight.shape[2:-1])
