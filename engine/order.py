"""Which samples every optimiser step sees, on every device and in every micro-batch.

The order is a pure function of (seed, step): nothing to save, nothing to restore. A run that resumes at step
k, or runs on other devices or other micro-batches, sees the very samples and views it would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One sample of one step: which item, and the seed of its random view."""

    item: int
    seed: int


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The samples of each optimiser step.

    A window is the effective batch of one step; it is shared out over `devices`, and each share is cut into
    micro-batches of at most `micro` samples.
    """

    count: int
    """Number of items."""
    batch: int
    """Effective batch: samples of one optimiser step over all devices."""
    micro: int
    """Samples of one backward on one device."""
    seed: int = 0
    wrap: bool = False
    """False: an epoch ends with a shorter window (pretraining). True: every window is full and runs on into the
    next permutation, so that runs on 3 and on 1,000 slices take the same steps of the same size (segmentation)."""
    device: int = 0
    devices: int = 1

    def __post_init__(self) -> None:
        if min(self.count, self.batch, self.micro, self.devices) < 1:
            raise ValueError(f"count, batch, micro and devices must be at least 1: {self}")

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every item is seen once (the short last one included)."""
        return -(-self.count // self.batch)

    def window(self, step: int) -> list[Draw]:
        """The effective batch of one step, in order."""
        if self.wrap:
            positions = range(step * self.batch, (step + 1) * self.batch)
        else:
            epoch, nth = divmod(step, self.steps_per_epoch)
            first = epoch * self.count + nth * self.batch
            positions = range(first, min(first + self.batch, (epoch + 1) * self.count))
        draws = []
        for position in positions:
            epoch, place = divmod(position, self.count)
            index = _permutation(self.count, self.seed, epoch)[place]
            view_seed = np.random.SeedSequence((self.seed, position)).generate_state(1)[0]
            draws.append(Draw(int(index), int(view_seed)))
        return draws

    def micro_steps(self, step: int) -> int:
        """Number of micro-batches of one step, the same on every device."""
        return -(-self._largest_share(len(self.window(step))) // self.micro)

    def micro_batches(self, step: int) -> list[tuple[list[Draw], float]]:
        """This device's micro-batches of one step, each with its weight in the step's loss.

        The weights make the gradient the mean over the samples really in the window, whatever the sizes:
        a micro-batch of m samples weighs m / window, times `devices` because DDP averages over devices. A
        device with no sample left repeats one at weight 0, to take part in the exchange of gradients.
        """
        window = self.window(step)
        share = window[self.device :: self.devices]
        parts = -(-self._largest_share(len(window)) // self.micro)
        batches = []
        for k in range(parts):
            draws = share[k * self.micro : (k + 1) * self.micro]
            weight = len(draws) * self.devices / len(window)
            batches.append((draws or window[:1], weight))
        return batches

    def _largest_share(self, window: int) -> int:
        return -(-window // self.devices)


class MicroBatches(Sampler[list[Draw]]):
    """All micro-batches of steps `first` to `last - 1`, one after the other, for a DataLoader's `batch_sampler`.

    One endless-looking pass: worker processes live for the whole run, nothing restarts between epochs.
    """

    def __init__(self, order: Order, first: int, last: int) -> None:
        self.order, self.first, self.last = order, first, last

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first, self.last):
            for draws, _ in self.order.micro_batches(step):
                yield draws
