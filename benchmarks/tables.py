"""Results as a table, a plot and JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.markup import escape
from rich.table import Table

from benchmarks.outcome import Outcome, Row

matplotlib.use("Agg")

import matplotlib.pyplot as plt

HEADINGS = ("benchmark", "what", "against", "target", "value: median [range]", "met")
MET = {True: "yes", False: "no", None: ""}
COLOURS = {True: "tab:green", False: "tab:red", None: "tab:grey"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one benchmark that ran or failed."""

    name: str
    outcome: Outcome
    seconds: float
    load: tuple[float, float]
    """Load average of the machine before and after."""
    error: str = ""


def table(results: list[Result]) -> Table:
    """Table for the terminal."""
    lines = Table(*map(escape, HEADINGS), title="fewslice against other libraries")
    for row in _rows(results):
        lines.add_row(*map(escape, _cells(row)), style={True: "green", False: "red", None: ""}[row.met])
    return lines


def write(results: list[Result], machine: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write ``name.json``, ``name.md`` and, if there are ratios, ``name.svg``; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    content = {"machine": machine, "results": [asdict(result) for result in results]}
    files[0].write_text(json.dumps(content, indent=1) + "\n")
    files[1].write_text(_markdown(results, machine))
    rows = [row for row in _rows(results) if row.ratio]
    if rows:
        files.append(folder / f"{name}.svg")
        _plot(rows, files[-1])
    return files


def _rows(results: list[Result]) -> list[Row]:
    return [row for result in results for row in result.outcome.rows]


def _cells(row: Row) -> tuple[str, ...]:
    met = f"{MET[row.met]}: {row.why}" if row.why else MET[row.met]
    return row.benchmark, row.what, row.against, row.target, row.value, met


def _markdown(results: list[Result], machine: dict[str, Any]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, _rows(results))]
    loads = ", ".join(f"{r.name} {r.seconds:.0f} s (load {r.load[0]:g} to {r.load[1]:g})" for r in results)
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if value != "")
    escaped = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*escaped, "", f"{facts}; {loads}.", ""])


def _plot(rows: list[Row], file: Path) -> None:
    """Plot the speed-ups, one line per row, with the range as a bar and the target as a tick."""
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        assert row.ratio is not None
        axes.plot([row.ratio.low, row.ratio.high], [place, place], color=COLOURS[row.met], linewidth=5, alpha=0.4)
        axes.plot(row.ratio.median, place, "o", color=COLOURS[row.met], markersize=5)
        if row.at_least is not None:
            axes.plot(row.at_least, place, "|", color="black", markersize=13, markeredgewidth=1.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_yticks(range(len(rows)), [f"{row.what} | {row.against}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times faster: median (dot), range (bar), target (tick)")
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
