"""Replace batch norm by group norm or frozen batch norm, which do not use batch statistics."""

from functools import cache
from typing import Literal, TypeVar

from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm = Literal["batch", "group", "frozen"]
Module = TypeVar("Module", bound=nn.Module)


def replace_norm(module: Module, norm: Norm) -> Module:
    """Replace every batch normalisation (1D, 2D, 3D) below ``module``, in place.

    Args:
        module: any network; if it is itself a batch normalisation, its replacement is returned.
        norm: "batch" changes nothing; "group" replaces by GroupNorm with the same scale and shift; "frozen" keeps the
            running statistics fixed, in training too. Scale and shift stay trainable and their keys in the state dict
            the same. Weights may be loaded before or after.
    """
    if norm == "batch":
        return module
    if isinstance(module, _BatchNorm):
        return _group(module) if norm == "group" else _freeze(module)  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, replace_norm(child, norm))
    return module


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
