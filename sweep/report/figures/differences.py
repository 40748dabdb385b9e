"""Paired differences between pipelines, at each size and over all sizes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweep.analysis.statistics import decided
from sweep.report.figures.style import GRID, INK, MUTED, NARROW, PAPER, WIDE, Styles, drawing, panels


def differences(
    pairs: pd.DataFrame, primary: pd.DataFrame, styles: Styles, *, score: str, unit: str, width: int = WIDE
) -> Figure | None:
    """Forest plot of the paired differences: a panel for each pair, a row for each size, a diamond for all sizes.

    A marker is filled, in the colour of the better pipeline, where the difference is `decided`.

    Args:
        pairs: table `pairs` of the study, after `oriented`.
        primary: table `primary` of the study, after `oriented`.

    Returns:
        None if there is only one pipeline.
    """
    names = list(dict.fromkeys(zip(pairs["pipeline"], pairs["baseline"], strict=True)))
    if not names:
        return None
    sizes = sorted(set(pairs["labels"]))
    columns = min(len(names), 3 if width > NARROW else 1)
    ends = pd.concat([pairs[["difference", "low", "high"]], primary[["difference", "low", "high"]]]).to_numpy(float)
    reach = 1.12 * max(np.nanmax(np.abs(ends), initial=0), 1e-3)
    long = max(len(name + baseline) for name, baseline in names) > 31  # a line of more runs into the next panel
    joint = "\n− " if long else " − "
    height = (54 + 17 * (len(sizes) + 1 + long)) * -(-len(names) // columns) + 40
    with drawing(width, height) as figure:
        for axis, (name, baseline) in panels(figure, names, columns, share=True, ylabel=unit):
            axis.axvline(0, color=MUTED, linewidth=1)
            at_size, whole = (
                table[(table["pipeline"] == name) & (table["baseline"] == baseline)].to_dict("records")
                for table in (pairs, primary)
            )
            axis.axhspan(len(sizes) - 0.5, len(sizes) + 0.6, color=GRID, alpha=0.45, linewidth=0)
            rows = [(sizes.index(row["labels"]), row, "o", 5) for row in at_size]
            for place, row, marker, size in [*rows, *((len(sizes), row, "D", 7) for row in whole)]:
                better = styles[name if row["difference"] > 0 else baseline]
                colour, weight = (better.light, 1.8) if decided(row) else (MUTED, 1.2)
                fill = colour if decided(row) else PAPER
                axis.plot(
                    [row["low"], row["high"]], [place, place], color=colour, linewidth=weight, solid_capstyle="round"
                )
                (point,) = axis.plot(row["difference"], place, marker, color=colour, markersize=size)
                point.set(markerfacecolor=fill, markeredgewidth=1.3)
            axis.set(ylim=(len(sizes) + 0.6, -0.6), xlim=(-reach, reach))
            axis.set_yticks(range(len(sizes) + 1), [*map(str, sizes), "all sizes"])
            axis.tick_params(axis="y", length=0)
            axis.grid(visible=False, axis="y")
            axis.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:+.2g}".replace("-", "−") if abs(x) > 1e-9 else "0")
            axis.set_title(f"{name}{joint}{baseline}", loc="left")
        figure.supxlabel(f"difference in {score}: right of 0 the first pipeline is better", color=INK)
    return figure
