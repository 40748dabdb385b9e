"""Names of norms, decoders and the 3D encoders, in a separate file that does not import torch, which takes seconds."""

from typing import Literal

Norm = Literal["batch", "group", "group+ws", "frozen"]
"""Normalisation layers of a network, see `encoders.norm.replace_norm`."""
Decoder = Literal["unet", "dpt"]
"""Decoder of a segmentation network, see `encoders.decoders`."""
VIDEO_ENCODERS = ("r3d_18", "mc3_18", "r2plus1d_18")
"""torchvision's video ResNets."""


def is_video(name: str) -> bool:
    """Whether an encoder is three-dimensional and takes clips; all others take images."""
    return name in VIDEO_ENCODERS
