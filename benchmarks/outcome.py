"""What a benchmark found, held against its target."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from benchmarks.rounds import Ratio


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    benchmark: str
    """open, views, step, evaluation, study, scale or gpu."""
    what: str
    """E.g. "open again, 100 subjects"."""
    against: str
    """E.g. "reference loader"."""
    target: str
    """As the reader sees it, e.g. ">= 30x"; empty when there is none."""
    value: str
    """As the reader sees it, e.g. "41x [38, 44]"."""
    met: bool | None
    """None without a target."""
    why: str = ""
    """When a target is missed: by how much and why."""
    ratio: Ratio | None = None
    """For the plot; None where the value is no ratio."""
    at_least: float | None = None
    """The target of that ratio."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Rows for the table, and the raw figures for the JSON."""

    rows: list[Row]
    details: dict[str, Any] = field(default_factory=dict)


def faster(benchmark: str, what: str, against: str, ratio: Ratio, at_least: float | None = None) -> Row:
    """The row of a speed-up: met when the median of the rounds' ratios reaches the target."""
    missed = at_least is not None and ratio.median < at_least
    return Row(
        benchmark=benchmark,
        what=what,
        against=against,
        target="" if at_least is None else f">= {at_least:g}x",
        value=f"{ratio.median:.3g}x [{ratio.low:.3g}, {ratio.high:.3g}]",
        met=None if at_least is None else not missed,
        why=f"{100 * (1 - ratio.median / at_least):.0f} % short" if at_least and missed else "",
        ratio=ratio,
        at_least=at_least,
    )


def outcome_of(name: str, *, rounds: int, quick: bool) -> Outcome:
    """Import a benchmark by its name and run it."""
    outcome: Outcome = import_module(f"benchmarks.{name}").run(rounds=rounds, quick=quick)
    return outcome
