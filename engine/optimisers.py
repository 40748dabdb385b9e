"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

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
    weights, others = _weights_and_others(modules.parameters())
    groups = [
        {"params": weights, "weight_decay": weight_decay, "always_adapt": True},
        {"params": others, "weight_decay": 0.0, "always_adapt": False},
    ]
    return Lars(groups, lr=lr, momentum=0.9, trust_coeff=trust_coefficient, trust_clip=True, foreach=True)


def adamw(
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    scaled: bool,
    encoder: nn.Module | None = None,
    encoder_lr_factor: float = 1.0,
    layers: Mapping[nn.Parameter, float] | None = None,
) -> optim.Optimizer:
    """AdamW without a loop over parameters, on the CPU as well; biases and norms are not decayed.

    Args:
        network: all modules to train; parameters that require no gradient are left out.
        lr: peak learning rate.
        weight_decay: decoupled, for weights with two or more dimensions.
        scaled: gradients are scaled (fp16), which Fabric cannot clip under a fused optimiser.
        encoder: the part of the network with its own learning rate.
        encoder_lr_factor: factor on the encoder's learning rate, `lr_scale` of its parameter groups.
        layers: further factors on single parameters of the encoder, see `encoders.layers`; others have factor 1.

    Source: Loshchilov and Hutter 2019, Decoupled weight decay regularization. No decay on biases and norms: He et al.
    2019, Bag of tricks for image classification, section 3.1.
    """
    of_encoder = set(encoder.parameters()) if encoder is not None else set()
    parts = [([p for p in network.parameters() if p not in of_encoder], 1.0)]
    further = {p: (layers or {}).get(p, 1.0) for p in network.parameters() if p in of_encoder}
    for factor in sorted({*further.values()}):
        parts.append(([p for p, own in further.items() if own == factor], encoder_lr_factor * factor))
    groups: list[dict[str, Any]] = []
    for parameters, factor in parts:
        weights, others = _weights_and_others(parameters)
        groups += [
            {"params": weights, "lr_scale": factor, "weight_decay": weight_decay},
            {"params": others, "lr_scale": factor, "weight_decay": 0.0},
        ]
    return optim.AdamW([group for group in groups if group["params"]], lr=lr, foreach=scaled, fused=not scaled)


def set_learning_rate(optimiser: optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times the group's `lr_scale` if it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _weights_and_others(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters with two or more dimensions, and the biases, scales and shifts."""
    trained = [p for p in parameters if p.requires_grad]
    return [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate at optimiser step `step` (0-based): linear to 1, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


PERIODS = 5
"""Decays of a periodic schedule."""


def warmup_periodic_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate at optimiser step `step` (0-based): linear to 1, then `PERIODS` cosines from 1 to 0.

    Source: Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts.
    """
    if step < warmup:
        return (step + 1) / warmup
    length = max(1, steps - warmup)  # of all periods; multiplied out, so that each starts at exactly 1
    return (1 + math.cos(math.pi * ((step - warmup) * PERIODS % length) / length)) / 2
