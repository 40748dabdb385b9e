"""Replace batch norm by group norm or frozen batch norm, which do not use batch statistics."""

from functools import cache
from typing import TypeVar

from timm.layers import BatchNormAct2d, GroupNormAct
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from encoders.names import Norm as Norm

Module = TypeVar("Module", bound=nn.Module)


def replace_norm(module: Module, norm: Norm) -> Module:
    """Replace every batch normalisation (1D, 2D, 3D) below ``module``, in place.

    Args:
        module: any network; if it is itself a batch normalisation, its replacement is returned.
        norm: "batch" changes nothing; "group" replaces by GroupNorm with the same scale and shift; "group+ws" also
            standardises the weights of the convolutions, see ``standardise_weights``; "frozen" keeps the running
            statistics fixed, in training too. Scale and shift stay trainable and their keys in the state dict the
            same. Weights may be loaded before or after.
    """
    if norm == "group+ws":
        standardise_weights(module)
        norm = "group"
    if norm == "batch":
        return module
    if isinstance(module, _BatchNorm):
        return _group(module) if norm == "group" else _freeze(module)  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, replace_norm(child, norm))
    return module


def norm_of(network: nn.Module) -> Norm | None:
    """The norm of a network; None if it has neither batch norm nor group norm."""
    kinds = {type(module) for module in network.modules()}
    if any(issubclass(kind, _Standardised) for kind in kinds):
        return "group+ws"
    if any(issubclass(kind, _Frozen) for kind in kinds):
        return "frozen"
    if any(issubclass(kind, _BatchNorm) for kind in kinds):
        return "batch"
    return "group" if any(issubclass(kind, nn.GroupNorm) for kind in kinds) else None


def standardise_weights(network: nn.Module) -> None:
    """Let every convolution without a bias use its weights standardised, in place.

    Over each output channel the weights that are used have mean 0 and variance 1, as in timm's ``StdConv2d``; those
    that are trained and saved stay as they are. A convolution without a bias has a norm after it, which takes up the
    scale; others, such as a segmentation head, keep their weights.

    Source: Qiao et al. 2019, Micro-batch training with batch-channel normalization and weight standardization.
    Richemond et al. 2020 train BYOL without batch statistics in this way, with group norm.
    """
    for module in network.modules():
        if isinstance(module, _ConvNd) and module.bias is None and not isinstance(module, _Standardised):
            module.__class__ = _standardised_class(type(module))  # type: ignore[arg-type]


class _Standardised(nn.Module):
    @property
    def weight(self) -> Tensor:
        """The standardised weights. The trained ones are where torch keeps parameters, so that a state dict, an
        optimiser and a copy see them."""
        trained = self._parameters["weight"]
        assert trained is not None
        flat = trained.reshape(1, len(trained), -1)
        return batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(trained)


@cache
def _standardised_class(convolution: type) -> type:
    return type(f"Standardised{convolution.__name__}", (_Standardised, convolution), {})


def _group(batch: _BatchNorm) -> nn.GroupNorm:
    channels = batch.num_features
    # At least two channels per group: the variance of one would be zero over a vector or a 1 x 1 map.
    groups = max((g for g in range(1, min(32, channels // 2) + 1) if channels % g == 0), default=1)
    if isinstance(batch, BatchNormAct2d):
        group = GroupNormAct(channels, groups, eps=batch.eps, affine=batch.affine)
        group.drop, group.act = batch.drop, batch.act
    else:
        group = nn.GroupNorm(groups, channels, eps=batch.eps, affine=batch.affine)
    if batch.affine:
        group.weight, group.bias = batch.weight, batch.bias
    return group.train(batch.training)


def _freeze(batch: _BatchNorm) -> _BatchNorm:
    # timm's and torchvision's frozen norms also freeze scale and shift, and are 2D only.
    if not isinstance(batch, _Frozen):
        batch.__class__ = _frozen_class(type(batch))  # type: ignore[arg-type]
    return batch.eval()


class _Frozen(nn.Module):
    def train(self, mode: bool = True) -> "_Frozen":
        return super().train(False)


@cache
def _frozen_class(norm: type) -> type:
    return type(f"Frozen{norm.__name__}", (_Frozen, norm), {})
