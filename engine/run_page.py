"""`report.html` of a run: scores, learning curves, cases, configuration and commands on one self-contained page.

The tasks say what is on it; the style is that of a study's report (`core.page`).
"""

import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from core.drawing import Style, drawing, inline_svg, to_svg
from core.files import write_text
from core.page import page_environment
from core.program import program
from core.tables import read_table
from engine.config import saved
from engine.run_folder import RunFolder

log = logging.getLogger("fewslice")

REPORT = "report.html"
HALF = 420
"""Width of a learning curve in pixels: two side by side on a screen, one on a phone."""
STYLES = {
    "first": Style(light="#0072b2", dark="#4da6e8", marker="o"),
    "second": Style(light="#d55e00", dark="#f2a134", marker="s"),
}
"""Colours of the lines of a learning curve (Okabe and Ito 2008, as in the report of a study)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page."""

    title: str
    text: str
    """What it holds, in a sentence."""
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """Number of columns, from the first, that are words: 1 or 2."""
    open: bool = False
    """Whether its rows are shown at first."""


@dataclass(frozen=True, kw_only=True)
class CasePage:
    """One slice of a case."""

    title: str
    pictures: Mapping[str, str]
    """Data address of each picture, by its name."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case to page through."""

    title: str
    pages: Sequence[CasePage]


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """What is on the page of a run, besides its configuration and the command that made it."""

    title: str
    lead: str
    notices: Sequence[str] = ()
    """Reasons for which the scores may mislead."""
    what_was_run: Mapping[str, str]
    tables: Sequence[Table] = ()
    curves: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Columns of `metrics.csv`, at most two, of each learning curve, by its name; those not there are left out."""
    cases: Sequence[Case] = ()
    cases_text: str = ""
    legend: Mapping[str, str] = field(default_factory=dict)
    """Colour of each class on the pictures, #rrggbb."""
    following: Mapping[str, str] = field(default_factory=dict)
    """Commands that come next, by what they do."""
    notes: Sequence[str] = ()
    """Sentences at the end of the page, on statistics for example."""


def write_run_page(run: RunFolder, config: Any, make: Callable[[], RunPage]) -> None:
    """Write `report.html` into a run folder; call it when the result is written.

    The result of a run is worth more than its page: whatever goes wrong is a warning, and no page of an earlier attempt
    stays behind.

    Args:
        run: the run folder; only the first process writes.
        config: the run's configuration.
        make: gathers what is on the page.
    """
    if not run.main:
        return
    try:
        write_text(run.path / REPORT, render(run.path, run.command, config, make()))
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning(f"{REPORT} could not be written ({reason}); the result of the run is complete without it")
        with suppress(OSError):
            (run.path / REPORT).unlink(missing_ok=True)


def render(folder: Path, command: str, config: Any, page: RunPage) -> str:
    """The page of a run as HTML.

    Args:
        folder: the run folder, with `metrics.csv`.
        command: name of the training command, "segment" for example.
        config: the run's configuration.
        page: everything else.
    """
    values = vars(page) | {
        "curves": dict(_curves(folder, page.curves)),
        "commands": dict(_commands(folder, command, page.following)),
        "settings": list(_settings(saved(config))),
        "styles": STYLES,
    }
    return page_environment(Path(__file__).parent).get_template("run_page.html.j2").render(values)


def command_that_runs(command: str) -> str | None:
    """The command line of this process; None if it is not that of the training command, as inside a study."""
    program = Path(sys.argv[0])
    if sys.argv[0] == f"fewslice {command}":
        return f"{sys.argv[0]} {shlex.join(sys.argv[1:])}"
    if (program.parent.name, program.name) == (command, "__main__.py"):
        return f"python -m {command} {shlex.join(sys.argv[1:])}"
    return None


def _commands(folder: Path, command: str, following: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if line := command_that_runs(command):
        yield "This run", line.strip()
    again = f"{program(command)} --config {shlex.quote(str(folder / 'config.json'))} --out NEW_FOLDER"
    yield "The same settings again", again
    yield from following.items()


def _settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and value of each setting, those of groups with a dot."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "not set" if value is None else str(value)


def _curves(folder: Path, wanted: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, Markup]]]:
    """Name of each learning curve and its SVG."""
    file = folder / "metrics.csv"
    metrics = read_table(file) if file.exists() else pd.DataFrame()  # none of weights that were not trained
    for number, (name, columns) in enumerate(wanted.items()):
        present = [column for column in columns if column in metrics and metrics[column].notna().any()]
        if present:
            yield name, {"half": _curve(metrics, name, present, f"curve{number}")}


def _curve(metrics: pd.DataFrame, name: str, columns: Sequence[str], identity: str) -> Markup:
    with drawing(HALF, 250) as figure:
        axis = figure.subplots()
        for column, style in zip(columns, STYLES.values(), strict=False):
            points = metrics[["step", column]].dropna()
            dense = len(points) > 40
            axis.plot(
                points["step"], points[column], color=style.light, alpha=0.3 if dense else 1, linewidth=1.8,
                marker="" if dense else style.marker, markersize=4, label="" if dense else _title(column),
            )  # fmt: skip
            if dense:  # the values of single steps are noisy
                smooth = points[column].ewm(span=max(2, len(points) // 50)).mean()
                axis.plot(points["step"], smooth, color=style.light, linewidth=1.8, label=_title(column))
        axis.set(xlabel="optimiser step", ylabel=name)
        axis.set_xlim(left=0)
        if len(columns) > 1:
            figure.legend(loc="outside upper left", ncols=2)
    return inline_svg(to_svg(figure, identity), identity, STYLES)


def _title(column: str) -> str:
    """A column of `metrics.csv` as words."""
    return column.replace("_", " ").replace("dice", "Dice").replace("jaccard", "Jaccard").replace("auc", "AUC")
