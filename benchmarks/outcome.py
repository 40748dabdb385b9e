"""Results of a benchmark, compared with its targets."""

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from benchmarks.rounds import Ratio


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table of results."""

    benchmark: str = ""
    """Name of the benchmark, set by `outcome_of`."""
    what: str
    """E.g. "open again, 100 subjects"."""
    value: str
    """Displayed value, e.g. "41x [38, 44]"."""
    against: str = ""
    """E.g. "reference loader"."""
    target: str = ""
    """Displayed target, e.g. ">= 30x"; empty if there is none."""
    met: bool | None = None
    """Whether the target was met; None without a target."""
    why: str = ""
    """If the target was missed: by how much, and the reason."""
    ratio: Ratio | None = None
    """Ratio to plot; None if the value is not a ratio."""
    at_least: float | None = None
    """Target of the ratio to plot."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Rows of the table, and the raw numbers for the JSON file by name."""

    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row, name: str, numbers: Any) -> None:
        """Append a row and its raw numbers."""
        self.rows.append(row)
        self.details[name] = numbers


def faster(what: str, against: str, ratio: Ratio, at_least: float | None = None, *, because: str = "") -> Row:
    """Row of a speed-up: met if the median ratio over rounds reaches the target; `because` says why it was missed."""
    missed = at_least is not None and ratio.median < at_least
    short = f"{100 * (1 - ratio.median / at_least):.0f} % short" if at_least and missed else ""
    return Row(
        what=what, against=against, ratio=ratio, at_least=at_least,
        value=f"{ratio.median:.3g}x [{ratio.low:.3g}, {ratio.high:.3g}]",
        target="" if at_least is None else f">= {at_least:g}x", met=None if at_least is None else not missed,
        why=f"{short}: {because}" if short and because else short,
    )  # fmt: skip


def outcome_of(name: str, *, rounds: int, quick: bool) -> Outcome:
    """Import a benchmark by its name and run it."""
    outcome: Outcome = import_module(f"benchmarks.{name}").run(rounds=rounds, quick=quick)
    return replace(outcome, rows=[replace(row, benchmark=name) for row in outcome.rows])
