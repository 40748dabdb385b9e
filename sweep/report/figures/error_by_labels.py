"""Error against the number of labels, with the fitted learning curves."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter

from sweep.analysis.scores import Scores
from sweep.report.figures.style import INK, MUTED, NARROW, PAPER, WIDE, Style, Styles, drawing, error_ticks, legend


def error_by_labels(
    scores: Scores,
    bands: pd.DataFrame,
    backtest: pd.DataFrame,
    styles: Styles,
    *,
    score: str,
    unit: str,
    width: int = WIDE,
) -> Figure:
    """Error against labels, both logarithmic: a box of seeds for each pipeline and size, the fit and its band.

    Boxes stand at the true number of labels, shifted just enough to be distinguished. A cross is the prediction for a
    size by the fit to the smaller sizes, with its 95 % interval.

    Args:
        scores: scores of the study.
        bands: table of `sweep.analysis.learning_curves.bands`.
        backtest: table of `sweep.analysis.learning_curves.backtest`; of each size the last forecast is drawn.

    Source: Kalapos and Gyires-Toth 2022, figure 4.
    """
    errors, labels = 1 - scores.cells(), scores.labels.astype(float)
    predicted = backtest.sort_values("fitted_on").drop_duplicates(["pipeline", "labels"], keep="last")
    with drawing(width, 480 if width > NARROW else 430) as figure:
        axis = figure.subplots()
        axis.set(xscale="log", yscale="log", xlabel=f"labelled {unit}", ylabel=f"error (1 − {score})")
        fitted = set(bands["pipeline"])
        reach = bands["labels"].max() if len(bands) else labels[-1]
        shift = _box_distance(labels, reach, len(scores.pipelines))
        # in this order, so that lines lie over bands and boxes over lines
        for pipeline in scores.pipelines:
            rows = bands[bands["pipeline"] == pipeline]
            colour, beyond = styles[pipeline].light, rows["extrapolated"].astype(bool)
            for part, alpha in ((rows[~beyond], 0.15), (rows[beyond], 0.07)):
                if part["low"].notna().any():
                    low, high = np.maximum(part["low"], 1e-6), part["high"]
                    axis.fill_between(part["labels"], low, high, color=colour, alpha=alpha, linewidth=0)
            dashed = rows[beyond | beyond.shift(-1, fill_value=False)]
            for part, line in ((rows[~beyond], "-"), (dashed, (0, (4, 3)))):
                axis.plot(part["labels"], part["error"], color=colour, linewidth=1.8, linestyle=line)
        for p, pipeline in enumerate(scores.pipelines):
            places = labels * 10 ** (shift * (p - (len(scores.pipelines) - 1) / 2))
            if pipeline not in fitted:
                has = ~np.isnan(errors[p]).all(axis=1)
                means = np.nanmean(errors[p][has], axis=1)
                axis.plot(places[has], means, color=styles[pipeline].light, linewidth=1, alpha=0.7)
            for place, values in zip(places, errors[p], strict=True):
                _box(axis, place, values[~np.isnan(values)], styles[pipeline], shift)
            _prediction(axis, labels, places, predicted[predicted["pipeline"] == pipeline], styles[pipeline])

        seen = np.concatenate([errors[np.isfinite(errors)], bands["error"], predicted["predicted"].dropna()])
        seen = np.append(seen[seen > 1e-4], [] if (seen > 1e-4).any() else [1e-3, 1e-2])
        pad = 1.03 * (seen.max() / seen.min()) ** 0.08
        axis.set_ylim(seen.min() / pad, min(1.05, seen.max() * pad))
        axis.set_xlim(labels[0] / 10 ** (3 * shift + 0.03), max(reach, labels[-1] * 10 ** (3 * shift)))
        error_ticks(axis.yaxis, axis.get_ylim())
        _size_ticks(axis, labels, width)
        extra: list[Line2D | Patch] = []
        if len(bands):
            axis.axvline(labels[-1] * 10 ** (2.6 * shift), color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
            corner = 0.985, 0.975, "extrapolated"
            axis.text(*corner, color=MUTED, style="italic", transform=axis.transAxes, ha="right", va="top")
            extra += [Line2D([], [], color=INK, linewidth=1.8, label="fit")]
            extra += [Patch(facecolor=INK, alpha=0.15, label="95 % band")]
        if predicted["predicted"].notna().any():
            cross = Line2D([], [], color=INK, marker="x", linestyle=":", linewidth=0.9, markersize=7)
            cross.set_label("predicted from smaller sizes")
            extra += [cross]
        legend(figure, styles, width, extra)
    return figure


def _box_distance(labels: np.ndarray, reach: float, pipelines: int) -> float:
    """Distance between the boxes of two pipelines at one size, in powers of ten."""
    span = np.log10(reach / labels[0]) or 1.0
    gap = np.diff(np.log10(labels)).min() if len(labels) > 1 else span
    return float(min(0.013 * span, 0.8 * gap / pipelines))


def _box(axis: Axes, place: float, values: np.ndarray, style: Style, shift: float) -> None:
    """A box with whiskers to the extremes, and a point for every seed."""
    if len(values) > 1:
        line = {"color": style.light, "linewidth": 1.2}
        axis.boxplot(
            [values],
            positions=[place],
            widths=[place * (10 ** (0.36 * shift) - 10 ** (-0.36 * shift))],
            whis=(0, 100),
            manage_ticks=False,
            patch_artist=True,
            showcaps=False,
            boxprops={"facecolor": PAPER, "edgecolor": style.light, "linewidth": 1.2},
            medianprops=line | {"linewidth": 2},
            whiskerprops=line,
            zorder=3,
        )
    axis.plot(np.full(len(values), place), values, style.marker, color=style.light, markersize=3, alpha=0.75, zorder=4)


def _prediction(axis: Axes, labels: np.ndarray, places: np.ndarray, rows: pd.DataFrame, style: Style) -> None:
    for row in rows.to_dict("records"):
        place, ends = float(places[labels == row["labels"]][0]), [max(row["low"], 1e-6), row["high"]]
        axis.plot([place, place], ends, color=style.light, linewidth=0.9, linestyle=":", zorder=5)
        axis.plot(place, row["predicted"], "x", color=style.light, markersize=7, markeredgewidth=1.8, zorder=5)


def _size_ticks(axis: Axes, labels: np.ndarray, width: int) -> None:
    """A tick at each measured size, with a number unless it would overlap the next."""
    low, high = axis.get_xlim()
    room = (34 if width > NARROW else 30) / (width - 70)  # of a number of four digits
    places = np.log(labels / low) / np.log(high / low)
    kept = [len(labels) - 1]
    for place in range(len(labels) - 2, -1, -1):
        if places[kept[-1]] - places[place] >= room:
            kept.append(place)
    axis.xaxis.set_major_locator(FixedLocator([float(labels[place]) for place in sorted(kept)]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.xaxis.set_minor_locator(FixedLocator(labels.tolist()))
    axis.xaxis.set_minor_formatter(NullFormatter())
