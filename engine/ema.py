"""Exponential moving average of a network: BYOL's target (Grill et al. 2020, eq. 1) and averaged weights."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import Literal

import torch
from torch import Tensor


def cosine_tau(step: int, steps: int, base: float = 0.99) -> float:
    """Decay rate of the average in optimiser step `step` (0-based) of `steps`: from `base` at step 0 to near 1.

    Counts optimiser steps, never micro-steps. Source: Grill et al. 2020, section 3.3.
    """
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2


Schedule = Literal["cosine", "constant"]
LEFT = 0.01
"""Largest share of its start that an average may still hold after a run, if its decay rate is not given."""


def chosen_tau(steps: int, schedule: Schedule, largest: float) -> float:
    """The largest decay rate up to `largest` with which at most 1 % of the start is left after `steps` steps.

    It is never below 0.5, so that the average lags behind the network in the shortest run as well; runs of fewer than
    19 steps (cosine) or 7 (constant) keep more than 1 % therefore. docs/methods.md, "Short runs keep their start".
    """
    # under the cosine about exp(-(1 - tau) * steps / 2) of the start is left, so 1 % at 1 - tau = 9.2 / steps
    tau = 1 - 9.2 / steps if schedule == "cosine" else LEFT ** (1 / steps)
    return max(0.5, min(largest, tau))


@dataclass(frozen=True)
class Decay:
    """Decay rates of a moving average over a run."""

    tau: float
    """Decay rate of the first step, in [0, 1)."""
    steps: int = 1
    """Optimiser steps of the schedule."""
    schedule: Schedule = "constant"
    """cosine: the decay rate rises from `tau` to 1 at the last step."""

    def __call__(self, step: int) -> float:
        """Decay rate of optimiser step `step`, 0-based."""
        return cosine_tau(step, self.steps, self.tau) if self.schedule == "cosine" else self.tau

    def start_share(self, step: int) -> float:
        """Share, in [0, 1], of its start that the average still holds after `step` steps: the product of their
        rates."""
        return self._shares[step] if step <= self.steps else self.tau**step

    @cached_property
    def _shares(self) -> list[float]:
        return list(accumulate(map(self, range(self.steps)), mul, initial=1.0))


@torch.no_grad()
def update_average(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- tau * target + (1 - tau) * online, in place.

    For BYOL, pass parameters only: the target network runs in training mode, so its batch norms gather running
    statistics of their own activations. For an average that is only evaluated, pass the running statistics as well.
    """
    if tensors := list(target):  # a network with group norm has no running statistics
        torch._foreach_lerp_(tensors, list(online), 1 - tau)
