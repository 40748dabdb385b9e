"""Exponential moving average of a network: BYOL's target (Grill et al. 2020, eq. 1) and averaged weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def cosine_tau(step: int, steps: int, base: float = 0.99) -> float:
    """Decay rate of the average in optimiser step `step` (0-based) of `steps`: from `base` at step 0 to near 1.

    Counts optimiser steps, never micro-steps. Source: Grill et al. 2020, section 3.3.
    """
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2


@torch.no_grad()
def update_average(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- tau * target + (1 - tau) * online, in place.

    For BYOL, pass parameters only: the target network runs in training mode, so its batch norms gather running
    statistics of their own activations. For an average that is only evaluated, pass the running statistics as well.
    """
    torch._foreach_lerp_(list(target), list(online), 1 - tau)
