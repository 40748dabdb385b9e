"""Names of norms, decoders and the 3D encoders, in a separate file that does not import torch, which takes seconds."""

from typing import Literal

Norm = Literal["batch", "group", "group+ws", "frozen"]
"""Normalisation layers of a network, see `encoders.norm.replace_norm`."""
Decoder = Literal["unet", "dpt"]
"""Decoder of a segmentation network, see `encoders.decoders`."""
VIDEO_ENCODERS = ("r3d_18", "mc3_18", "r2plus1d_18")
"""torchvision's video ResNets."""

HUB = "hf-hub:"
"""Beginning of initial weights that are a repository of the Hugging Face hub, as in timm: hf-hub:timm/NAME."""
NO_FILES = ("random", "imagenet", "kinetics")
"""Initial weights that are not a file."""


def is_file(source: object) -> bool:
    """Whether initial weights are a file or folder, not random, a download by name or a repository of the hub."""
    return str(source) not in NO_FILES and not str(source).startswith(HUB)


def is_video(name: str) -> bool:
    """Whether an encoder is three-dimensional and takes clips; all others take images."""
    return name in VIDEO_ENCODERS
