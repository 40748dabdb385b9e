"""Exponential moving average of a network: BYOL's target (Grill et al. 2020, eq. 1) and averaged weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def cosine_tau(step: int, steps: int, base: float = 0.99) -> float:
    """Decay rate of the average in optimiser step `step` (0-based) of `steps`: `base` at first, near 1 at last.

    Counts optimiser steps, never micro-steps. Source: Grill et al. 2020, section 3.3.
    """
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2


@torch.no_grad()
def update_average(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- tau * target + (1 - tau) * online, in place.

    For BYOL, parameters only: its target network sees the views in training mode, so the running statistics of its
    batch norms are already those of its own activations. An average that is only evaluated needs those as well.
    """
    torch._foreach_lerp_(list(target), list(online), 1 - tau)
