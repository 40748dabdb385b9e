"""Encoders of clips, the frames of an exam in order: a 2D one with a maximum over frames, or a 3D one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torchvision
from torch import Tensor, is_grad_enabled, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from data.errors import UserError
from encoders.build import build_encoder, feature_width
from encoders.norm import Norm, replace_norm
from encoders.video import VIDEO_ENCODERS

Clip = Literal["maxpool2d"]


def build_clip_encoder(
    name: str,
    clip: Clip | None = None,
    norm: Norm = "batch",
    checkpoint_activations: bool = False,
    in_channels: int = 1,
) -> "MaxPoolFrames | VideoEncoder":
    """Build a randomly initialised encoder of clips: (N, in_channels, T, H, W) -> (N, feature_width).

    Args:
        name: a video network of ``VIDEO_ENCODERS``, or any network of ``build_encoder``, which sees frame by
            frame.
        clip: how a 2D network makes a clip of its frames; None: the only way there is, "maxpool2d".
        norm: see ``replace_norm``.
        checkpoint_activations: see ``recompute_activations``.
        in_channels: channels of the frames.

    Raises:
        UserError: if there is no such network, or a video network is asked to pool its frames.
    """
    encoder: MaxPoolFrames | VideoEncoder
    if name not in VIDEO_ENCODERS:
        encoder = MaxPoolFrames(build_encoder(name, in_channels, norm))
    elif clip is not None:
        raise UserError(f"encoder {name!r} sees a clip as a whole: drop --clip {clip}, or take resnet18.")
    else:
        encoder = replace_norm(VideoEncoder(name, in_channels), norm)
    if checkpoint_activations:
        recompute_activations(encoder)
    return encoder


class MaxPoolFrames(nn.Module):
    """A 2D encoder over all frames, the maximum of their feature maps, and the 2D encoder's own pooling.

    It has no weights of its own: its file is the 2D encoder's file. A clip of one frame gives what the 2D
    encoder gives for that frame.

    Args:
        frame_encoder: from ``build_encoder``.

    Source: METHODS, section 5 (BYOLMed2D); Bien et al. 2018, MRNet.
    """

    def __init__(self, frame_encoder: nn.Module) -> None:
        super().__init__()
        self.frame_encoder = frame_encoder
        self.num_features = feature_width(frame_encoder)

    def feature_maps(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features, H / stride, W / stride), the maximum over frames."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        maps: Tensor = self.frame_encoder.forward_features(frames)  # type: ignore[operator]
        return maps.unflatten(0, (len(clips), -1)).amax(dim=1)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features)."""
        # Global average pooling, with whatever layers the network puts after it.
        return self.frame_encoder.forward_head(self.feature_maps(clips))  # type: ignore[operator]


class VideoEncoder(nn.Module):
    """A video ResNet of torchvision without its classifier, in torchvision's own key names.

    Args:
        name: one of ``VIDEO_ENCODERS``.
        in_channels: channels of the frames.

    Source: Tran et al. 2018, A closer look at spatiotemporal convolutions.
    """

    def __init__(self, name: str, in_channels: int = 1) -> None:
        super().__init__()
        network = torchvision.models.get_model(name, weights=None)
        self.num_features: int = network.fc.in_features
        self.stem: nn.Sequential = network.stem
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(network, f"layer{k}") for k in range(1, 5))
        old: Any = self.stem[0]
        self.stem[0] = nn.Conv3d(
            in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
        )
        nn.init.kaiming_normal_(self.stem[0].weight, mode="fan_out", nonlinearity="relu")

    def feature_maps(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features, T', H / 16, W / 16); T' is T / 8, in mc3_18 T."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clips)))))

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, channels, T, H, W) -> (N, features), the average over time and space."""
        return self.feature_maps(clips).mean(dim=(2, 3, 4))


def recompute_activations(encoder: nn.Module) -> None:
    """Let every residual block keep its input alone and compute the rest again in the backward pass, in place.

    Gradients and running statistics stay what they were, for about a third more arithmetic; names of tensors
    too. Copies of the encoder (BYOL's target) stay independent of it.

    Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    for block in list(_blocks(encoder)):
        block.__class__ = _recomputed_class(type(block))  # type: ignore[arg-type]


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The largest parts that are no mere sequence: residual blocks, or whole stages where these are classes."""
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
            context_fn=lambda: (nullcontext(), _statistics_unmoved(self)),
            **settings,
        )


@contextmanager
def _statistics_unmoved(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise as ever but leave their running statistics: the first pass has moved them."""
    norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:  # the backward pass leaves the block by an exception, once it has all it needs
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


@cache
def _recomputed_class(block: type) -> type:
    return type(f"Recomputed{block.__name__}", (_Recomputed, block), {})
