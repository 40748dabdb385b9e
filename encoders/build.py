"""Build networks by name: 2D encoders of timm, the same applied to the frames of a clip, video networks, and U-Nets."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, is_grad_enabled, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from core.errors import UserError
from encoders.names import is_video
from encoders.norm import Norm, replace_norm
from encoders.stem import Stem, use_small_stem


def build_encoder(name: str, in_channels: int = 1, norm: Norm = "batch", stem: Stem = "standard") -> nn.Module:
    """Build a randomly initialised encoder: (N, in_channels, H, W) -> (N, feature_width).

    Args:
        name: a convolutional network of timm ("resnet50", "resnet50.a1_in1k") that segmentation_models'
            ``tu-`` encoders take too.
        in_channels: channels of the images.
        norm: see ``replace_norm``.
        stem: see ``encoders.stem.Stem``; "small" is for ResNets.

    Raises:
        UserError: see ``require_encoder`` and ``use_small_stem``.
    """
    require_encoder(name)
    encoder = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0)
    if stem == "small":
        use_small_stem(encoder, name)
    return replace_norm(encoder, norm)


def require_encoder(name: str) -> None:
    """Raise UserError unless this is a timm model with a pyramid of feature maps, for images of any size."""
    require_name(name)
    if why := _unsuitable(name):
        raise UserError(f"encoder {name!r} {why}; take a convolutional network such as resnet18 or resnet50.")


def require_name(name: str) -> None:
    """Raise UserError unless this is a timm model; the nearest names are listed."""
    if is_video(name):
        raise UserError(f"encoder {name!r} takes clips of exams, not single images; choose resnet18 or resnet50.")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        choices = f"the nearest names are {', '.join(near)}" if near else "see timm.list_models()"
        raise UserError(f"encoder {name!r} is not a model of timm; {choices}.")


@cache
def require_image_size(name: str, norm: Norm, size: int, frames: int | None = None) -> None:
    """Raise a UserError unless an encoder takes square images, or clips of so many frames, of some size in pixels."""
    if frames is None:
        require_forward(lambda: build_encoder(name, norm=norm), name, (2, 1, size, size))
    else:
        require_forward(lambda: build_clip_encoder(name, norm), name, (2, 1, frames, size, size))


def require_forward(build: Callable[[], nn.Module], name: str, *shapes: tuple[int, ...]) -> None:
    """Raise a UserError unless a network takes inputs of some shapes in training; no weights are kept or changed.

    Args:
        build: builds the network, with any weights.
        name: name of its encoder, for the message.
        shapes: shapes of batches, such as (2, 1, 224, 224).
    """
    try:
        with torch.device("meta"):  # shapes alone: no memory, hardly any time
            _run_forward(build(), *shapes)
    except UserError:
        raise
    except Exception:  # of any type: of the network, or of a step that needs values
        with torch.random.fork_rng(devices=[]):
            network = build()
        for shape in shapes:
            try:
                _run_forward(network, shape)
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0].strip()
                raise UserError(
                    f"encoder {name!r} cannot be used for images of {shape[-2]} x {shape[-1]} pixels ({reason}), "
                    "which occur here; pass another, such as --encoder resnet18"
                ) from None


def _run_forward(network: nn.Module, *shapes: tuple[int, ...]) -> None:
    with torch.no_grad():
        for shape in shapes:
            network.train()(torch.zeros(shape))


def build_clip_encoder(
    name: str, norm: Norm = "batch", checkpoint_activations: bool = False, in_channels: int = 1
) -> "MaxPoolFrames | VideoEncoder":
    """Build a randomly initialised encoder of clips: (N, in_channels, T, H, W) -> (N, feature_width).

    Args:
        name: a video network of ``VIDEO_ENCODERS``, or any network of ``build_encoder``, applied to each frame.
        norm: see ``replace_norm``.
        checkpoint_activations: see ``recompute_activations``.
        in_channels: channels of the frames.
    """
    encoder: MaxPoolFrames | VideoEncoder
    if is_video(name):
        encoder = replace_norm(VideoEncoder(name, in_channels), norm)
    else:
        encoder = MaxPoolFrames(build_encoder(name, in_channels, norm))
    if checkpoint_activations:
        recompute_activations(encoder)
    return encoder


def build_unet(encoder: str, classes: int, norm: Norm = "batch", in_channels: int = 1) -> nn.Module:
    """Build SMP's U-Net: (N, in_channels, H, W) -> logits (N, classes, H, W).

    It has nearest upsampling and two convolutions per stage.

    Random weights from torch's global generator: the decoder's depend on the seed alone, whatever the encoder is
    loaded with afterwards, so that runs of one seed pair up.

    Raises:
        UserError: if `encoder` is no convolutional network of timm with feature maps; the nearest names are listed.
    """
    require_encoder(encoder)
    unet = smp.Unet(
        encoder_name=f"tu-{encoder}",
        encoder_weights=None,
        in_channels=in_channels,
        classes=classes,
        decoder_use_norm=True,
    )
    return replace_norm(unet, norm)


@cache
def require_unet(encoder: str, norm: Norm, *sizes: tuple[int, int]) -> None:
    """Raise a UserError unless a U-Net can be built on an encoder and takes images of some sizes (rows, columns)."""
    require_forward(lambda: build_unet(encoder, 2, norm), encoder, *((2, 1, *size) for size in sizes))


def feature_width(encoder: nn.Module) -> int:
    """Length of an image's feature vector, which may differ from the channels of the last feature map (MobileNetV3)."""
    width: Any = getattr(encoder, "head_hidden_size", None) or encoder.num_features
    return int(width)


class MaxPoolFrames(nn.Module):
    """A 2D encoder over all frames, the maximum of their feature maps, and the 2D encoder's own pooling.

    It adds no weights: its file is the 2D encoder's file. For a clip of one frame it returns what the 2D encoder
    returns for that frame.

    Source: Ray 2022, BYOLMed2D; Bien et al. 2018, MRNet.
    """

    def __init__(self, frame_encoder: nn.Module) -> None:
        super().__init__()
        self.frame_encoder = frame_encoder
        self.num_features = feature_width(frame_encoder)

    def feature_maps(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features, H / stride, W / stride), the maximum over frames."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        maps: Tensor = self.frame_encoder.forward_features(frames)  # type: ignore[operator]
        return maps.unflatten(0, (clips.shape[0], -1)).amax(dim=1)  # not len(), which a traced graph would fix

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features)."""
        # Global average pooling and any layers that the network has after it.
        return self.frame_encoder.forward_head(self.feature_maps(clips))  # type: ignore[operator]


class VideoEncoder(nn.Module):
    """A video ResNet of torchvision (``VIDEO_ENCODERS``) without its classifier, with torchvision's key names.

    Source: Tran et al. 2018, A closer look at spatiotemporal convolutions.
    """

    def __init__(self, name: str, in_channels: int = 1) -> None:
        super().__init__()
        network = torchvision.models.get_model(name, weights=None)
        self.num_features: int = network.fc.in_features
        self.stem: nn.Sequential = network.stem
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(network, f"layer{k}") for k in range(1, 5))
        old: Any = self.stem[0]
        sizes = (old.out_channels, old.kernel_size, old.stride, old.padding)
        self.stem[0] = nn.Conv3d(in_channels, *sizes, bias=old.bias is not None)
        nn.init.kaiming_normal_(self.stem[0].weight, mode="fan_out", nonlinearity="relu")

    def feature_maps(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features, T', H / 16, W / 16); T' is T / 8, in mc3_18 T."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clips)))))

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features), the average over time and space."""
        return self.feature_maps(clips).mean(dim=(2, 3, 4))


def recompute_activations(encoder: nn.Module) -> None:
    """Checkpoint activations, in place: each residual block stores its input and is recomputed in the backward pass.

    Gradients, running statistics and names of tensors do not change; training takes about a third more arithmetic.
    Copies of the encoder (BYOL's target) stay independent of it.

    Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    for block in list(_blocks(encoder)):
        block.__class__ = _recomputed_class(type(block))  # type: ignore[arg-type]


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The residual blocks, or whole stages in networks whose stages are not sequences of blocks."""
    for child in network.children():
        if isinstance(child, nn.Sequential) or hasattr(child, "forward_features"):
            yield from _blocks(child)
        elif len(list(child.children())) and len(list(child.parameters())):
            yield child


class _Recomputed(nn.Module):
    def forward(self, *inputs: Any, **settings: Any) -> Any:
        if not is_grad_enabled():
            return super().forward(*inputs, **settings)
        return checkpoint(
            super().forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), frozen_statistics(self)),
            **settings,
        )


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Normalise without updating running statistics: the first forward pass has updated them already."""
    norms = [norm for norm in network.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # that of several GPUs asserts that there is a counter: it gets one of its own
        counter = torch.tensor(0) if isinstance(norm, nn.SyncBatchNorm) else None
        norm.momentum, norm.num_batches_tracked = 0.0, counter
    try:
        yield
    finally:  # torch ends the recomputation by an exception, once it has all the tensors it needs
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


@cache
def _recomputed_class(block: type) -> type:
    return type(f"Recomputed{block.__name__}", (_Recomputed, block), {})


@cache
def _unsuitable(name: str) -> str:
    """Why a U-Net cannot be built on this timm model; empty when it can."""
    if (timm.get_pretrained_cfg(name, allow_unregistered=True) or timm.models.PretrainedCfg()).fixed_input_size:
        return "takes images of one size only (a transformer)"
    try:
        with torch.device("meta"):
            reductions = timm.create_model(name, features_only=True).feature_info.reduction()
    except Exception:  # models without feature maps raise errors of many types
        return "has no feature maps"
    # The three pyramids that segmentation_models accepts: from full, half or quarter resolution down.
    if reductions not in [[first * 2**i for i in range(len(reductions))] for first in (1, 2, 4)]:
        return f"has feature maps of strides {reductions}, which are no pyramid"
    return ""
