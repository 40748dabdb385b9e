"""Contestants run in turn, A B C A B C ..., and compared round by round.

The speed of a shared machine changes from minute to minute; ratios within one round are hardly affected. The first
round warms up and is not counted.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Clock = Literal["cpu", "wall"]
"""cpu: processor time of this process, for one pinned thread; wall: wall time, for parallel code."""


@dataclass(frozen=True)
class Ratio:
    """Speed-up of one contestant over another: median and range over rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(values: list[float]) -> "Ratio":
        """Median and range of the ratios of all rounds."""
        return Ratio(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Rates:
    """Units per second of each contestant in each counted round."""

    unit: str
    rates: Mapping[str, list[float]]

    def ratio(self, ours: str, theirs: str) -> Ratio:
        """Rate of `ours` divided by that of `theirs`, over rounds."""
        return Ratio.of([a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True)])

    def median(self, name: str) -> float:
        """Median rate of a contestant."""
        return statistics.median(self.rates[name])


def counted(units: int, function: Callable[..., object], *arguments: Any) -> Callable[[], int]:
    """A contestant: it calls a function that processes this number of units."""

    def turn() -> int:
        function(*arguments)
        return units

    return turn


def take_turns(
    contestants: Mapping[str, Callable[[], int]], *, unit: str, rounds: int = 7, clock: Clock = "cpu",
    before: Callable[[], object] = lambda: None,
) -> Rates:  # fmt: skip
    """Run all contestants in every round; each call returns the number of units that it processed.

    `before` is called before each run and is not timed.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            before()
            gc.collect()
            began = now()
            units = run()
            if turn:
                rates[name].append(units / (now() - began))
    return Rates(unit, rates)
