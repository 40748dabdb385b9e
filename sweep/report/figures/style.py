"""Colours, markers, axes and legends that all figures of a study share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from core.drawing import GRID as GRID
from core.drawing import INK as INK
from core.drawing import MUTED as MUTED
from core.drawing import NARROW as NARROW
from core.drawing import PAPER as PAPER
from core.drawing import WIDE as WIDE
from core.drawing import Style as Style
from core.drawing import Styles as Styles
from core.drawing import drawing as drawing
from core.drawing import to_svg as to_svg
from core.files import save_figure, write_text

T = TypeVar("T")
STAGES = {
    "random": ("#6b7480", "#a5aeb8", "o"),
    "generalist": ("#0072b2", "#4da6e8", "s"),
    "specialist": ("#d55e00", "#f2a134", "^"),
    "hierarchical": ("#009e73", "#2fc99b", "D"),
}
OTHERS = (
    ("#cc79a7", "#e39cc4", "v"),
    ("#8a7a00", "#f0e442", "P"),
    ("#56b4e9", "#a8e0ff", "X"),
    ("#7f3c8d", "#b98ae0", "p"),
)


def pipeline_styles(pipelines: Sequence[str]) -> dict[str, Style]:
    """Fixed style of each pipeline: that of its stage for the first of a stage, for others the next of a list.

    Source: Okabe and Ito, "Color Universal Design" (2008), brightened for dark backgrounds.
    """
    free, styles = iter(OTHERS * (1 + len(pipelines) // len(OTHERS))), {}
    taken: set[str] = set()
    for pipeline in sorted(pipelines, key=lambda name: "=" in name):  # a name without source goes first
        stage = pipeline.partition("=")[0]
        light, dark, marker = STAGES[stage] if stage in STAGES and stage not in taken else next(free)
        taken.add(stage)
        styles[pipeline] = Style(light=light, dark=dark, marker=marker)
    return {pipeline: styles[pipeline] for pipeline in pipelines}


def selected(labels: Sequence[int] | np.ndarray, count: int = 6) -> list[int]:
    """Positions of at most `count` sizes, the smallest and the largest among them, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, len(labels) - 1, min(count, len(labels)))})


def panels(
    figure: Figure, entries: Sequence[T], columns: int, *, share: bool = False, ylabel: str = ""
) -> Iterator[tuple[Axes, T]]:
    """Pairs of an axis and an entry, row by row; `ylabel` stands at the first of each row."""
    rows = -(-len(entries) // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for place, axis in enumerate(axes[: len(entries)]):
        axis.tick_params(
            labelbottom=place + columns >= len(entries) or not share, labelleft=not share or place % columns == 0
        )
        if place % columns == 0:
            axis.set_ylabel(ylabel)
    for axis in axes[len(entries) :]:
        axis.set_axis_off()
    yield from zip(axes, entries, strict=False)


@contextmanager
def size_panels(
    labels: Sequence[int] | np.ndarray,
    unit: str,
    width: int,
    *,
    row: int,
    rest: int,
    share: bool = True,
    ylabel: str = "",
) -> Iterator[tuple[Figure, list[tuple[Axes, int]]]]:
    """A figure with a panel for each of the `selected` sizes, as pairs of an axis and the position of the size.

    `row` is the height of a row of panels and `rest` that of everything else, in pixels.
    """
    sizes = selected(labels)
    columns = 1 if width <= NARROW else {4: 2}.get(len(sizes), min(len(sizes), 3))
    with drawing(width, rest + row * -(-len(sizes) // columns)) as figure:
        axes = list(panels(figure, sizes, columns, share=share, ylabel=ylabel))
        for axis, size in axes:
            axis.set_title(f"{labels[size]} {unit}", loc="left")
        yield figure, axes


def legend(figure: Figure, styles: Styles, width: int, extra: Sequence[Line2D | Patch] = ()) -> None:
    """Draw a legend of all pipelines, followed by the `extra` handles, above the panels."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=style.light, marker=style.marker, linewidth=1.8, markersize=5.5, label=name)
        for name, style in styles.items()
    ]
    handles += extra
    columns = len(handles) if width > NARROW else 2
    if width > NARROW and sum(len(str(handle.get_label())) + 6 for handle in handles) > 115:
        columns = -(-len(handles) // 2)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def mean_curve(axis: Axes, over: pd.DataFrame, style: Style, alpha: float = 1.0, label: str | None = None) -> None:
    """Draw a mean (index: x) with a band of one standard deviation, if it has one."""
    if over["std"].notna().any():
        low, high = over["mean"] - over["std"], over["mean"] + over["std"]
        axis.fill_between(over.index, low, high, color=style.light, alpha=0.15 * alpha, linewidth=0)
    axis.plot(
        over.index, over["mean"], color=style.light, linewidth=1.8, alpha=alpha, label=label,
        marker=style.marker, markersize=3.5, markevery=max(1, len(over) // 8),
    )  # fmt: skip


def error_ticks(side: Axis, limits: tuple[float, float], least: int = 4) -> None:
    """Label a logarithmic axis of errors with plain numbers, if possible with at least `least` of them."""
    low, high = limits
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), tuple(np.arange(1, 10, 0.5))):
        ticks = [m * 10.0**e for e in range(-4, 1) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) >= least:
            break
    side.set_major_locator(FixedLocator(ticks))
    side.set_major_formatter(lambda value, _: f"{value:.3g}")
    side.set_minor_locator(NullLocator())


def save(figure: Figure, path: Path) -> str:
    """Write the figure to PATH.svg and PATH.png, and return the SVG."""
    svg = to_svg(figure, path.name)
    write_text(path.with_suffix(".svg"), svg)
    save_figure(path.with_suffix(".png"), figure, dpi=150)
    return svg
