"""Contestants taken in turn, A B C A B C ..., and the ratios of their rates round by round.

A shared machine drifts from one minute to the next, and hits whoever is running: a ratio within one round does not
mind. The first round warms up and is not counted.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Clock = Literal["cpu", "wall"]
"""Processor time of this process, for one pinned thread; time on the wall, for all that runs beside itself."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster one contestant is than another: per-round ratios."""

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
    """Units per second of every contestant in every counted round."""

    unit: str
    rates: Mapping[str, list[float]]

    def ratio(self, ours: str, theirs: str) -> Ratio:
        """How many times the rate of `theirs` that of `ours` is, round by round."""
        return Ratio.of([a / b for a, b in zip(self.rates[ours], self.rates[theirs], strict=True)])

    def median(self, name: str) -> float:
        """Median rate of a contestant."""
        return statistics.median(self.rates[name])


def take_turns(
    contestants: Mapping[str, Callable[[], int]],
    *,
    unit: str,
    rounds: int = 7,
    clock: Clock = "cpu",
    before: Callable[[], object] = lambda: None,
) -> Rates:
    """Run all contestants in every round; each call returns the number of units it did.

    `before` is called ahead of every run and not timed.
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
