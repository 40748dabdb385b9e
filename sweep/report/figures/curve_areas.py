"""Area under the validation curve of each run."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import gaussian_kde

from sweep.analysis.convergence import Runs, cell_areas
from sweep.report.figures.style import INK, WIDE, Style, Styles, size_panels

VIOLIN_FROM = 5
"""Least number of runs for a violin."""


def curve_areas(runs: Runs, styles: Styles, *, score: str, unit: str, width: int = WIDE) -> Figure:
    """Area under each validation curve, ordered by median: every run, and a violin where there are enough runs.

    Source: Kalapos and Gyires-Toth 2022, figure 3b.
    """
    areas, row = cell_areas(runs), 44 + 25 * len(runs.pipelines)
    with size_panels(runs.labels, unit, width, row=row, rest=40, share=False) as (figure, panels):
        for axis, size in panels:
            by_name = {name: areas[p, size][~np.isnan(areas[p, size])] for p, name in enumerate(runs.pipelines)}
            ordered = sorted(
                filter(lambda name: len(by_name[name]), by_name), key=lambda name: np.median(by_name[name])
            )
            for place, name in enumerate(ordered):
                _violin(axis, place, by_name[name], styles[name])
            axis.set_yticks(range(len(ordered)), ordered)
            axis.set_ylim(-0.6, max(len(ordered), 1) - 0.4)
            axis.tick_params(axis="y", length=0)
            axis.grid(visible=False, axis="y")
            axis.xaxis.set_major_locator(MaxNLocator(4))
        figure.supxlabel(f"mean validation {score} over the whole training", color=INK)
    return figure


def _violin(axis: Axes, place: float, values: np.ndarray, style: Style) -> None:
    if len(values) >= VIOLIN_FROM and np.ptp(values) > 1e-9:
        spread = gaussian_kde(values)
        x = np.linspace(values.min() - 0.15 * np.ptp(values), values.max() + 0.15 * np.ptp(values), 80)
        half = 0.4 * spread(x) / spread(x).max()
        axis.fill_between(x, place - half, place + half, color=style.light, alpha=0.22, linewidth=0)
    axis.plot(values, np.full(len(values), place), style.marker, color=style.light, markersize=4.5, alpha=0.8)
    axis.plot([np.median(values)] * 2, [place - 0.32, place + 0.32], color=style.light, linewidth=2.2)
