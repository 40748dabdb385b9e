"""Back-test of the forecasts: error predicted from smaller sizes against the error observed."""

import pandas as pd
from matplotlib.figure import Figure

from sweep.report.figures.style import INK, MUTED, NARROW, PAPER, WIDE, Styles, drawing, error_ticks, panels


def forecasts(backtest: pd.DataFrame, styles: Styles, *, width: int = WIDE) -> Figure | None:
    """The back-test: the error of each larger size predicted from smaller sizes, against the error observed.

    Args:
        backtest: table of `sweep.analysis.learning_curves.backtest`.

    Returns:
        A panel for each pipeline; None if there is no forecast.
    """
    rows = backtest.dropna(subset=["predicted", "observed"])
    names = [name for name in styles if (rows["pipeline"] == name).any()]
    if not names:
        return None
    low = max(1e-3, 0.8 * rows[["predicted", "observed"]].to_numpy().min())
    high = 1.25 * rows[["predicted", "observed"]].to_numpy().max()
    columns = 2 if width <= NARROW else 3 if len(names) in (5, 6) else 4
    where = "inside the interval" if width > NARROW else "inside"
    with drawing(width, 60 + (215 if width > NARROW else 180) * -(-len(names) // columns)) as figure:
        for axis, name in panels(figure, names, columns, share=True):
            axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), box_aspect=1)
            axis.plot([low, high], [low, high], color=MUTED, linewidth=0.9)
            predictions, colour = rows[rows["pipeline"] == name], styles[name].light
            for row in predictions.to_dict("records"):
                observed, ends = row["observed"], [max(row["low"], 1e-6), row["high"]]
                axis.plot([observed, observed], ends, color=colour, linewidth=1.2, alpha=0.6)
                axis.plot(
                    *(observed, row["predicted"], styles[name].marker),
                    color=colour,
                    markerfacecolor=colour if row["inside"] else PAPER,
                    markersize=5.5,
                    markeredgewidth=1.4,
                )
            known = predictions[predictions["low"].notna()]
            held = f"{int(known['inside'].sum())} of {len(known)} {where}" if len(known) else "no interval"
            axis.set_title(f"{name}\n{held}", loc="left")
            for side in (axis.xaxis, axis.yaxis):
                error_ticks(side, (low, high), 3)
        figure.supxlabel("error observed", color=INK)
        figure.supylabel("error predicted", color=INK)
    return figure
