"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Iterable

from timm.optim import Lars
from torch import nn, optim


def lars(modules: nn.Module, *, lr: float, weight_decay: float, trust_coefficient: float = 0.02) -> optim.Optimizer:
    """LARS with momentum 0.9; biases and norms get neither decay nor the layer-wise rate.

    The layer-wise rate is clipped at the plain one (`clip_lr` of solo-learn, LARC).

    Args:
        modules: all modules to train.
        lr: peak learning rate, already scaled to the effective batch.
        weight_decay: for weights with two or more dimensions.
        trust_coefficient: eta in the paper.

    Source: You et al. 2017, Large batch training of convolutional networks.
    """
    parameters = [p for p in modules.parameters() if p.requires_grad]
    weights = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": weight_decay, "always_adapt": True},
        {"params": others, "weight_decay": 0.0, "always_adapt": False},
    ]
    return Lars(groups, lr=lr, momentum=0.9, trust_coeff=trust_coefficient, trust_clip=True, foreach=True)


def adamw(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, scaled: bool) -> optim.Optimizer:
    """AdamW in one pass over the parameters, on the CPU as well.

    Args:
        parameters: all parameters to train.
        lr: peak learning rate.
        weight_decay: decoupled.
        scaled: gradients are scaled (fp16), which Fabric cannot clip under a fused optimiser.

    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization.
    """
    return optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, foreach=scaled, fused=not scaled)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate at optimiser step `step` (0-based): linear to 1, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
