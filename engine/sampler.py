"""The samples of each optimiser step, on each device and in each micro-batch.

They are a pure function of (seed, step), without state to save or restore. A run that resumes at step k, or uses other
devices or other micro-batches, sees the same samples with the same random augmentation.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch.utils.data
from lightning_fabric import Fabric

from engine.config import RunSettings


class Sample(NamedTuple):
    """One sample of an optimiser step: the item's index and the seed of its random augmentation."""

    item: int
    seed: int


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True, kw_only=True)
class StepSampler:
    """The samples of each optimiser step.

    The effective batch of a step is shared out over `devices`, and each share is cut into micro-batches of at most
    `micro_batch_size` samples.
    """

    count: int
    """Number of items."""
    batch_size: int
    """Effective batch: samples of one optimiser step over all devices."""
    micro_batch_size: int
    """Samples of one backward pass on one device."""
    seed: int = 0
    wrap: bool = False
    """False: an epoch ends with a smaller batch, or with a larger one where the smaller would hold less than a quarter
    of a batch: a step of full size on a few samples would follow their noise (pretraining). True: every batch is full
    and continues into the next permutation, so that runs on 3 and on 1,000 slices take the same number of steps of the
    same size (segmentation)."""
    device: int = 0
    """Rank of this device."""
    devices: int = 1

    def __post_init__(self) -> None:
        if min(self.count, self.batch_size, self.micro_batch_size, self.devices) < 1:
            raise ValueError(f"count, batch_size, micro_batch_size and devices must be at least 1: {self}")

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every item is seen once (the smaller last one included)."""
        return -(-self.count // self.batch_size) - (self.merged > 0)

    @cached_property
    def merged(self) -> int:
        """Items of the last batch of each epoch that are added to the batch before, too few for one of their own."""
        rest = self.count % self.batch_size
        return rest if not self.wrap and rest < self.batch_size / 4 and self.count > self.batch_size else 0

    def batch(self, step: int) -> list[Sample]:
        """The effective batch of one step, in order."""
        if self.wrap:
            positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        else:
            epoch, nth = divmod(step, self.steps_per_epoch)
            first, end = epoch * self.count + nth * self.batch_size, (epoch + 1) * self.count
            last = nth == self.steps_per_epoch - 1
            positions = range(first, end if last else first + self.batch_size)
        samples = []
        for position in positions:
            epoch, place = divmod(position, self.count)
            item = _permutation(self.count, self.seed, epoch)[place]
            seed = np.random.SeedSequence((self.seed, position)).generate_state(1)[0]
            samples.append(Sample(int(item), int(seed)))
        return samples

    def micro_steps(self, step: int) -> int:
        """Number of micro-batches of one step, the same on every device."""
        return len(self.micro_batches(step))

    def micro_batches(self, step: int) -> list[tuple[list[Sample], float]]:
        """This device's micro-batches of one step, each with its weight in the step's loss.

        The weights make the gradient the mean over the samples really in the batch, whatever the sizes: a micro-batch
        of m samples weighs m / len(batch), times `devices` because DDP averages over devices. A device without
        samples left repeats one with weight 0, to take part in the exchange of gradients.
        """
        batch = self.batch(step)
        share = batch[self.device :: self.devices]
        largest_share = math.ceil(len(batch) / self.devices)
        size = self.micro_batch_size
        if len(batch) > self.batch_size:  # in equal parts, or batch norm would see the few that were added alone
            size = math.ceil(largest_share / math.ceil(largest_share / size))
        micro_batches = []
        for first in range(0, largest_share, size):
            samples = share[first : first + size]
            weight = len(samples) * self.devices / len(batch)
            micro_batches.append((samples or batch[:1], weight))
        return micro_batches


def sampler_of(
    settings: RunSettings, fabric: Fabric, count: int, batch_size: int, *, wrap: bool = False
) -> StepSampler:
    """The sampler of this process, for a run's seed and micro-batch size; the rest as in `StepSampler`."""
    share = math.ceil(batch_size / fabric.world_size)
    return StepSampler(
        count=count,
        batch_size=batch_size,
        micro_batch_size=min(settings.micro_batch_size or share, share),
        seed=settings.seed,
        wrap=wrap,
        device=fabric.global_rank,
        devices=fabric.world_size,
    )


class MicroBatchSampler(torch.utils.data.Sampler[list[Sample]]):
    """All micro-batches of steps `first` to `last - 1` in one pass, for a DataLoader's `batch_sampler`.

    One pass covers the whole run, so that worker processes do not restart between epochs.
    """

    def __init__(self, sampler: StepSampler, first: int, last: int) -> None:
        self.sampler, self.first, self.last = sampler, first, last

    def __iter__(self) -> Iterator[list[Sample]]:
        for step in range(self.first, self.last):
            for samples, _ in self.sampler.micro_batches(step):
                yield samples
