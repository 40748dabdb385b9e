"""The cost of the training loop around its steps: data, bookkeeping, and the time between two epochs."""

import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import FORK, pinned
from benchmarks.outcome import Outcome, Row, faster
from benchmarks.peers.networks import LR, TAU, Heads
from benchmarks.phantom import write_cines
from benchmarks.rounds import Rates
from benchmarks.training import Setting, make_encoder, our_byol, our_step, run_loop, training_slices, two_views
from engine.sampler import Sample


def loop_cost(setting: Setting, rounds: int, heads: Heads, folder: Path, outcome: Outcome) -> None:
    """Compare `engine.loop.train` on slices of a store, from the end of its first step to that of its last, with the
    same steps on one fixed batch in memory."""
    write_cines(folder / "acdc", 4, frames=4 if setting.size < 96 else 8)  # patients 1 and 2 do not train
    slices, key = training_slices("acdc", folder / "acdc")
    encoder, features = make_encoder(setting.encoder)
    byol, optimiser = our_byol(setting.layout(encoder), features, heads)
    steps = 5
    both = torch.stack([setting.images(), setting.images()], dim=1)

    def loop(number: int) -> float:
        ends: list[float] = []

        def after_step(step: int) -> None:
            byol.move_target(TAU)
            ends.append(time.process_time())

        run_loop(
            folder / f"loop-{number}", byol, optimiser, two_views(slices, setting.size), count=len(slices), data=key,
            batch_size=setting.batch, steps=steps, lr=LR, after_step=after_step,
        )  # fmt: skip
        return setting.batch * (steps - 1) / (ends[-1] - ends[0])

    def bare() -> float:
        began = time.process_time()
        for _ in range(steps - 1):
            our_step(byol, optimiser, byol.move_target, both)
        return setting.batch * (steps - 1) / (time.process_time() - began)

    rates: dict[str, list[float]] = {"loop": [], "step": []}
    with pinned():
        for number in range(rounds):  # the first step of each run of the loop warms up
            rates["loop"].append(loop(number))
            rates["step"].append(bare())
    ratio = Rates("samples/s", rates).ratio("loop", "step")
    why = f"data and bookkeeping cost {1 - ratio.median:.1%}"
    row = faster(f"loop / step, {setting}", "the same step on a fixed batch", ratio, 0.95, because=why)
    outcome.add(row, f"loop and step, {setting}, samples/s", rates)


class _Trivial(Dataset[Tensor]):
    """Samples that cost nothing."""

    def __len__(self) -> int:
        return 7 * 16

    def __getitem__(self, sample: Sample | int) -> Tensor:
        return torch.zeros(8)


class _Arrivals(nn.Module):
    """A network that costs nothing and records the time at which each batch reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.times: list[float] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        return self.layer(batch).mean()


def time_between_epochs(rounds: int, folder: Path, outcome: Outcome) -> None:
    """Measure the wall time from the end of an epoch's last step to the arrival of the next epoch's first batch.

    Both contestants have trivial samples and 7 batches per epoch: `engine.loop`, and a DataLoader that starts 8 new
    workers for every epoch, as the reference code does.
    """
    boundary, inside, fresh = [], [], []
    for number in range(rounds):
        gaps = _gaps_of_loop(folder / f"epochs-{number}", epochs=10)
        boundary += [gap for step, gap in gaps if step % 7 == 0]
        inside += [gap for step, gap in gaps if step % 7]
        fresh += _gaps_of_workers(epochs=3)
    ours, theirs = (1000 * statistics.median(gaps) for gaps in (boundary, fresh))
    value = f"{ours:.2g} ms [{1000 * min(boundary):.2g}, {1000 * max(boundary):.2g}]"
    value += f"; between steps {1000 * statistics.median(inside):.2g} ms"
    against = f"DataLoader with 8 fresh workers, {theirs:.0f} ms"
    what = "time between epochs of 7 steps"
    kinds = {"epochs": boundary, "steps": inside, "fresh workers": fresh}
    gaps_ms = {kind: [1000 * gap for gap in gaps] for kind, gaps in kinds.items()}
    row = Row(what=what, against=against, target="<= 5 ms", value=value, met=ours <= 5)
    outcome.add(row, "gaps, ms", gaps_ms)


def _gaps_of_loop(folder: Path, epochs: int) -> list[tuple[int, float]]:
    """Pairs of the number of steps taken and the seconds until the next batch reached the network."""
    samples, network, ends = _Trivial(), _Arrivals(), []
    run_loop(
        folder, network, optim.SGD(network.parameters(), lr=0.0), samples, count=len(samples), data="", batch_size=16,
        steps=7 * epochs, lr=0.0, after_step=lambda step: ends.append(time.perf_counter()),
    )  # fmt: skip
    gaps = [arrival - end for end, arrival in zip(ends[:-1], network.times[1:], strict=True)]
    return list(enumerate(gaps, start=1))


def _gaps_of_workers(epochs: int) -> list[float]:
    warnings.filterwarnings("ignore", message="This DataLoader will create 8 worker processes")
    # forked: spawned workers would import torch first, which those of a user's script do not
    loader = DataLoader(_Trivial(), batch_size=16, shuffle=True, num_workers=8, multiprocessing_context=FORK)
    starts, ends = [], []
    for _ in range(epochs + 1):
        times = [time.perf_counter() for _ in loader]
        starts.append(times[0])
        ends.append(times[-1])
    return [start - end for end, start in zip(ends[:-1], starts[1:], strict=True)]
