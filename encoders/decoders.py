"""Segmentation networks: an encoder of timm with the decoder that suits it, a U-Net's or that of DPT."""

from functools import cache
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from core.errors import UserError
from encoders.build import build_unet, require_forward, require_name, require_unet
from encoders.names import Decoder
from encoders.norm import Norm, replace_norm

PATCHES = (8, 16, 32)
"""Sides of patches, in pixels, whose maps DPT turns into a pyramid; transformers of other patches get those of 16."""
WIDTHS = (
    (384, (48, 96, 192, 384), 64),
    (768, (96, 192, 384, 768), 128),
)
"""Up to which width of a transformer the decoder has which intermediate and fusion channels; wider ones get those of
the DPT paper. Source: Yang et al. 2024, Depth Anything V2, whose decoders grow with the transformer in this way."""
AFTER_FEATURES = ("norm", "fc_norm", "attn_pool", "head")
"""Parts of a transformer that come after the features that DPT reads."""


def build_segmenter(
    encoder: str, classes: int, norm: Norm = "batch", decoder: Decoder = "unet", in_channels: int = 1
) -> nn.Module:
    """Build a segmentation network with random weights: (N, in_channels, H, W) -> logits (N, classes, H, W).

    H and W are multiples of 32. The network has the parts `encoder`, `decoder` and `segmentation_head`.

    Raises:
        UserError: if the encoder is no model of timm, or the decoder does not suit it.
    """
    require_decoder(encoder, decoder)
    return (build_dpt if decoder == "dpt" else build_unet)(encoder, classes, norm, in_channels)


def require_segmenter(encoder: str, norm: Norm, decoder: Decoder, *sizes: tuple[int, int]) -> None:
    """Raise a UserError unless a decoder suits an encoder and the network takes images of sizes (rows, columns)."""
    require_decoder(encoder, decoder)
    if decoder == "dpt":
        _require_dpt(encoder, norm, *sizes)
    else:
        require_unet(encoder, norm, *sizes)


def require_decoder(encoder: str, decoder: Decoder) -> None:
    """Raise a UserError unless a decoder suits an encoder; the message names the one that does."""
    require_name(encoder)
    transformer = vit_settings(encoder) is not None
    if decoder == "unet" and transformer:
        raise UserError(
            f"encoder {encoder!r} is a vision transformer, whose feature maps all have one size, and a U-Net needs a "
            "pyramid of them: pass --decoder dpt"
        )
    if decoder == "dpt" and not transformer:
        raise UserError(
            "--decoder dpt is for plain vision transformers of timm, such as vit_small_patch16_dinov3, and "
            f"{encoder!r} is none: pass --decoder unet"
        )


@cache
def _require_dpt(encoder: str, norm: Norm, *sizes: tuple[int, int]) -> None:
    require_forward(lambda: build_dpt(encoder, 2, norm), encoder, *((2, 1, *size) for size in sizes))


def build_dpt(encoder: str, classes: int, norm: Norm = "batch", in_channels: int = 1) -> nn.Module:
    """Build SMP's DPT on a vision transformer: (N, in_channels, H, W) -> logits (N, classes, H, W).

    H and W are multiples of 32.

    Position embeddings keep the size of the published weights and are interpolated to each image's grid of patches.
    Layers of the transformer after its last block stay as they are: no feature that DPT reads passes them.

    Source: Ranftl et al. 2021, Vision transformers for dense prediction.

    Raises:
        UserError: if the encoder is no vision transformer of timm.
    """
    require_decoder(encoder, "dpt")
    settings: Any = vit_settings(encoder)
    width, has_tokens = _width_and_tokens(encoder)
    sizes = ((channels, fusion) for most, channels, fusion in WIDTHS if width <= most)
    channels, fusion = next(sizes, ((256, 512, 1024, 1024), 256))
    dpt = smp.DPT(
        encoder_name=f"tu-{encoder}",
        encoder_weights=None,
        decoder_readout="cat" if has_tokens else "ignore",
        decoder_intermediate_channels=channels,
        decoder_fusion_channels=fusion,
        in_channels=in_channels,
        classes=classes,
        num_classes=0,
        **settings,
    )
    for part in AFTER_FEATURES:  # without a gradient, which several processes would wait for
        if isinstance(module := getattr(dpt.encoder.model, part, None), nn.Module):
            module.requires_grad_(False)
    return replace_norm(dpt, norm)


@cache
def vit_settings(name: str) -> dict[str, Any] | None:
    """Arguments with which `timm.create_model` builds a vision transformer for DPT; None for other networks.

    `dynamic_img_size` lets it take images of any grid of patches. Patches of 14 pixels, as in DINOv2, become 16, and
    the number of position embeddings stays that of the weights, which `encoders.weights` resamples to the patches.
    """
    network = _on_meta(name)
    kinds = (timm.models.VisionTransformer, timm.models.eva.Eva)
    if not isinstance(network, kinds) or type(network.patch_embed) is not PatchEmbed:
        return None
    rows, columns = network.patch_embed.patch_size
    if rows == columns and rows in PATCHES:
        return {"dynamic_img_size": True}
    grid: Any = network.patch_embed.grid_size
    return {"dynamic_img_size": True, "patch_size": 16, "img_size": (16 * grid[0], 16 * grid[1])}


def _width_and_tokens(name: str) -> tuple[int, bool]:
    """Width of a vision transformer, and whether it has tokens beside those of patches."""
    network: Any = _on_meta(name)
    return network.embed_dim, network.num_prefix_tokens > 0


@cache
def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)
