"""Figures of a study. Sizes are in CSS pixels: a wide one for a screen and the files, a narrow one for a phone."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from scipy.stats import gaussian_kde

from sweep.convergence import Runs, cell_areas, share_reached, steps_to
from sweep.statistics import Scores

T = TypeVar("T")

WIDE, NARROW = 860, 360
"""Widths in pixels."""
INK, MUTED, GRID, PAPER = "#1c2126", "#5f6870", "#dcdad3", "#fefefd"
"""Of text, second thoughts, lines and ground; no data has these colours, so that a page can put its own in place."""
LEVEL = 0.95
"""Share of the common reference score whose steps are drawn."""
VIOLIN_FROM = 5
"""Runs that a violin needs; the shape of fewer is made up."""
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


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a pipeline is drawn, everywhere."""

    light: str
    """Colour on a light ground, #rrggbb."""
    dark: str
    """Colour on a dark ground."""
    marker: str


def looks(pipelines: Sequence[str]) -> dict[str, Look]:
    """A fixed look for each pipeline: the first of a stage has the stage's, others take the next of a list.

    Source: Okabe and Ito, "Color Universal Design" (2008), brightened for dark grounds.
    """
    free, found = iter(OTHERS * (1 + len(pipelines) // len(OTHERS))), {}
    taken: set[str] = set()
    for pipeline in sorted(pipelines, key=lambda name: "=" in name):  # the plain name has its stage's look
        stage = pipeline.partition("=")[0]
        light, dark, marker = STAGES[stage] if stage in STAGES and stage not in taken else next(free)
        taken.add(stage)
        found[pipeline] = Look(light=light, dark=dark, marker=marker)
    return {pipeline: found[pipeline] for pipeline in pipelines}


def selected(labels: Sequence[int] | np.ndarray, count: int = 6) -> list[int]:
    """Positions of at most `count` sizes, the smallest and the largest among them, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, len(labels) - 1, min(count, len(labels)))})


# ---- error against labels


def error_by_labels(
    scores: Scores,
    bands: pd.DataFrame,
    backtest: pd.DataFrame,
    look: Mapping[str, Look],
    *,
    score: str,
    unit: str,
    width: int = WIDE,
) -> Figure:
    """Error against labels, both logarithmic: a box of seeds for each pipeline and size, the fit and its band.

    Boxes stand at the true number of labels, moved aside just enough to be told apart. A cross is what the fit on the
    smaller sizes alone foretold for a size, with its 95 % interval.

    Args:
        scores: of the study.
        bands: of `sweep.learning_curves.bands`.
        backtest: of `sweep.learning_curves.backtest`; of each size the forecast from the one before is drawn.
        look: of each pipeline.
        score: name of the score.
        unit: what labels count, in the plural.
        width: in pixels.

    Source: SEG figure 4.
    """
    errors, labels = 1 - scores.cells(), scores.labels.astype(float)
    foretold = backtest.sort_values("fitted_on").drop_duplicates(["pipeline", "labels"], keep="last")
    with _drawing(width, 480 if width > NARROW else 430) as figure:
        axis = figure.subplots()
        axis.set(xscale="log", yscale="log", xlabel=f"labelled {unit}", ylabel=f"error (1 − {score})")
        fitted = set(bands["pipeline"])
        reach = bands["labels"].max() if len(bands) else labels[-1]
        aside = _aside(labels, reach, len(scores.pipelines))
        # those that stand in for a bigger one come last: lines lie over bands, boxes over lines
        for pipeline in scores.pipelines:
            for name in (False, True):
                _band(axis, bands[(bands["pipeline"] == pipeline) & (bands["extrapolated"] == name)], look[pipeline])
            _fit_line(axis, bands[bands["pipeline"] == pipeline], look[pipeline])
        for p, pipeline in enumerate(scores.pipelines):
            places = labels * 10 ** (aside * (p - (len(scores.pipelines) - 1) / 2))
            if pipeline not in fitted:
                _mean_line(axis, places, errors[p], look[pipeline])
            for place, values in zip(places, errors[p], strict=True):
                _box(axis, place, values[~np.isnan(values)], look[pipeline], aside)
            _foretold(axis, labels, places, foretold[foretold["pipeline"] == pipeline], look[pipeline])

        seen = np.concatenate([errors[np.isfinite(errors)], bands["error"], foretold["predicted"].dropna()])
        seen = np.append(seen[seen > 1e-4], [] if (seen > 1e-4).any() else [1e-3, 1e-2])
        pad = 1.03 * (seen.max() / seen.min()) ** 0.08
        axis.set_ylim(seen.min() / pad, min(1.05, seen.max() * pad))
        axis.set_xlim(labels[0] / 10 ** (3 * aside + 0.03), max(reach, labels[-1] * 10 ** (3 * aside)))
        _score_ticks(axis.yaxis, axis.get_ylim())
        _size_ticks(axis, labels, width)
        if len(bands):
            axis.axvline(labels[-1] * 10 ** (2.6 * aside), color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
            axis.text(
                *(0.985, 0.975, "extrapolated"),
                transform=axis.transAxes,
                ha="right",
                va="top",
                color=MUTED,
                style="italic",
            )
        extra: list[Line2D | Patch] = []
        if len(bands):
            extra += [
                Line2D([], [], color=INK, linewidth=1.8, label="fit"),
                Patch(facecolor=INK, alpha=0.15, label="95 % band"),
            ]
        if foretold["predicted"].notna().any():
            extra.append(_cross("foretold from smaller sizes"))
        _legend(figure, look, width, extra)
    return figure


def _aside(labels: np.ndarray, reach: float, pipelines: int) -> float:
    """How far apart two pipelines' boxes of one size stand, in powers of ten."""
    span = np.log10(reach / labels[0]) or 1.0
    gap = np.diff(np.log10(labels)).min() if len(labels) > 1 else span
    return float(min(0.013 * span, 0.8 * gap / pipelines))


def _band(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    if len(rows) and rows["low"].notna().any():
        faint = 0.07 if rows["extrapolated"].iloc[0] else 0.15
        low, high = np.maximum(rows["low"], 1e-6), rows["high"]
        axis.fill_between(rows["labels"], low, high, color=look.light, alpha=faint, linewidth=0)


def _fit_line(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    beyond = rows["extrapolated"].astype(bool)
    for part, style in ((rows[~beyond], "-"), (rows[beyond | beyond.shift(-1, fill_value=False)], (0, (4, 3)))):
        axis.plot(part["labels"], part["error"], color=look.light, linewidth=1.8, linestyle=style)


def _mean_line(axis: Axes, places: np.ndarray, errors: np.ndarray, look: Look) -> None:
    there = ~np.isnan(errors).all(axis=1)
    axis.plot(places[there], np.nanmean(errors[there], axis=1), color=look.light, linewidth=1, alpha=0.7)


def _box(axis: Axes, place: float, values: np.ndarray, look: Look, aside: float) -> None:
    """Whiskers to the extremes, and every seed as a point."""
    if len(values) > 1:
        line = {"color": look.light, "linewidth": 1.2}
        axis.boxplot(
            [values],
            positions=[place],
            widths=[place * (10 ** (0.36 * aside) - 10 ** (-0.36 * aside))],
            whis=(0, 100),
            manage_ticks=False,
            patch_artist=True,
            showcaps=False,
            boxprops={"facecolor": PAPER, "edgecolor": look.light, "linewidth": 1.2},
            medianprops=line | {"linewidth": 2},
            whiskerprops=line,
            zorder=3,
        )
    axis.plot(np.full(len(values), place), values, look.marker, color=look.light, markersize=3, alpha=0.75, zorder=4)


def _foretold(axis: Axes, labels: np.ndarray, places: np.ndarray, rows: pd.DataFrame, look: Look) -> None:
    for row in rows.to_dict("records"):
        place, ends = float(places[labels == row["labels"]][0]), [max(row["low"], 1e-6), row["high"]]
        axis.plot([place, place], ends, color=look.light, linewidth=0.9, linestyle=":", zorder=5)
        axis.plot(place, row["predicted"], "x", color=look.light, markersize=7, markeredgewidth=1.8, zorder=5)


def _cross(label: str) -> Line2D:
    return Line2D([], [], color=INK, marker="x", linestyle=":", linewidth=0.9, markersize=7, label=label)


def forecasts(backtest: pd.DataFrame, look: Mapping[str, Look], *, width: int = WIDE) -> Figure | None:
    """The back-test: every forecast of a larger size's error from smaller sizes, against what was then observed.

    Args:
        backtest: of `sweep.learning_curves.backtest`.
        look: of each pipeline.
        width: in pixels.

    Returns:
        A panel for each pipeline; None where there is no forecast.
    """
    rows = backtest.dropna(subset=["predicted", "observed"])
    names = [name for name in look if (rows["pipeline"] == name).any()]
    if not names:
        return None
    low = max(1e-3, 0.8 * rows[["predicted", "observed"]].to_numpy().min())
    high = 1.25 * rows[["predicted", "observed"]].to_numpy().max()
    columns = 2 if width <= NARROW else 3 if len(names) in (5, 6) else 4
    with _drawing(width, 60 + (215 if width > NARROW else 180) * -(-len(names) // columns)) as figure:
        for axis, name in _panels(figure, names, columns, share=True):
            axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), box_aspect=1)
            axis.plot([low, high], [low, high], color=MUTED, linewidth=0.9)
            own, colour = rows[rows["pipeline"] == name], look[name].light
            for row in own.to_dict("records"):
                observed, ends = row["observed"], [max(row["low"], 1e-6), row["high"]]
                axis.plot([observed, observed], ends, color=colour, linewidth=1.2, alpha=0.6)
                axis.plot(
                    *(observed, row["predicted"], look[name].marker),
                    color=colour,
                    markerfacecolor=colour if row["inside"] else PAPER,
                    markersize=5.5,
                    markeredgewidth=1.4,
                )
            known = own[own["low"].notna()]
            held = f"{int(known['inside'].sum())} of {len(known)} inside" if len(known) else "no interval"
            axis.set_title(f"{name}\n{held}", loc="left")
            for side in (axis.xaxis, axis.yaxis):
                _score_ticks(side, (low, high), 3)
        figure.supxlabel("error observed", color=INK)
        figure.supylabel("error foretold", color=INK)
    return figure


# ---- differences


def differences(
    pairs: pd.DataFrame, primary: pd.DataFrame, look: Mapping[str, Look], *, score: str, unit: str, width: int = WIDE
) -> Figure | None:
    """Forest plot of the paired differences: a panel for each pair, a row for each size, a diamond for all sizes.

    A marker is filled, in the colour of the better pipeline, where the difference is `decided`.

    Args:
        pairs: of `oriented(sweep.statistics.pairs)`.
        primary: of `oriented(sweep.statistics.primary)`.
        look: of each pipeline.
        score: name of the score.
        unit: what labels count, in the plural.
        width: in pixels.

    Returns:
        None where there is one pipeline alone.
    """
    names = list(dict.fromkeys(zip(pairs["pipeline"], pairs["baseline"], strict=True)))
    if not names:
        return None
    sizes = sorted(set(pairs["labels"]))
    columns = min(len(names), 3 if width > NARROW else 1)
    ends = pd.concat([pairs[["difference", "low", "high"]], primary[["difference", "low", "high"]]]).to_numpy(float)
    reach = 1.12 * max(np.nanmax(np.abs(ends), initial=0), 1e-3)
    height = (54 + 17 * (len(sizes) + 1)) * -(-len(names) // columns) + 40
    with _drawing(width, height) as figure:
        for index, (axis, (name, baseline)) in enumerate(_panels(figure, names, columns, share=True)):
            axis.axvline(0, color=MUTED, linewidth=1)
            own = pairs[(pairs["pipeline"] == name) & (pairs["baseline"] == baseline)].set_index("labels")
            for place, labels in enumerate(sizes):
                if labels in own.index:
                    _interval_row(axis, place, own.loc[labels].to_dict(), look[name], look[baseline], "o", 5)
            whole = primary[(primary["pipeline"] == name) & (primary["baseline"] == baseline)]
            axis.axhspan(len(sizes) - 0.5, len(sizes) + 0.6, color=GRID, alpha=0.45, linewidth=0)
            for row in whole.to_dict("records"):
                _interval_row(axis, len(sizes), row, look[name], look[baseline], "D", 7)
            axis.set(ylim=(len(sizes) + 0.6, -0.6), xlim=(-reach, reach))
            axis.set_yticks(range(len(sizes) + 1), [*map(str, sizes), "all sizes"])
            axis.tick_params(axis="y", length=0)
            axis.grid(visible=False, axis="y")
            axis.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
            axis.xaxis.set_major_formatter(
                FuncFormatter(lambda x, _: f"{x:+.2g}".replace("-", "−") if abs(x) > 1e-9 else "0")
            )
            axis.set_title(f"{name} − {baseline}", loc="left")
            if index % columns == 0:
                axis.set_ylabel(unit)
        figure.supxlabel(f"difference in {score}: right of 0 the first named is better", color=INK)
    return figure


def oriented(table: pd.DataFrame, pipelines: Sequence[str]) -> pd.DataFrame:
    """Differences turned so that the pipeline that comes later in the study is compared with the earlier one.

    Args:
        table: of `sweep.statistics.pairs` (first less second of the score) or `primary` (of the area under the error).
        pipelines: of the study, in its order.

    Returns:
        pipeline, baseline, difference (of the score; above 0 the pipeline is better), low, high, and the other columns;
        "improvement" is the pipeline's.
    """
    table = table.copy()
    order = {name: place for place, name in enumerate(pipelines)}
    if "area_difference" in table:  # of errors, so the score's has the other sign
        table["difference"] = -table.pop("area_difference")
        table["low"], table["high"] = -table["high"], -table["low"]
    turn = np.array([order[a] < order[b] for a, b in zip(table["first"], table["second"], strict=True)], bool)
    first, second = table.pop("first"), table.pop("second")
    table.insert(0, "pipeline", second.where(turn, first))
    table.insert(1, "baseline", first.where(turn, second))
    low, high = table["low"].copy(), table["high"].copy()
    table["difference"] = table["difference"].where(~turn, -table["difference"])
    table["low"], table["high"] = low.where(~turn, -high), high.where(~turn, -low)
    if "improvement" in table:
        low, high = table["improvement_low"].copy(), table["improvement_high"].copy()
        table["improvement"] = table["improvement"].where(~turn, 1 - table["improvement"])
        table["improvement_low"], table["improvement_high"] = low.where(~turn, 1 - high), high.where(~turn, 1 - low)
    return table


def decided(row: Mapping[Any, Any], nothing: float = 0) -> bool:
    """Whether a row's interval leaves out the value that means no effect, and Holm's correction, if any, lets it."""
    return bool((row["low"] > nothing or row["high"] < nothing) and not row.get("p_holm", 0) >= 0.05)


def _interval_row(
    axis: Axes, place: int, row: Mapping[Any, Any], own: Look, other: Look, marker: str, size: float
) -> None:
    low, high, value = float(row["low"]), float(row["high"]), float(row["difference"])
    is_decided = decided(row)
    colour = (own if value > 0 else other).light if is_decided else MUTED
    axis.plot([low, high], [place, place], color=colour, linewidth=1.8 if is_decided else 1.2, solid_capstyle="round")
    fill = colour if is_decided else PAPER
    axis.plot(value, place, marker, color=colour, markerfacecolor=fill, markersize=size, markeredgewidth=1.3)


# ---- learning


def validation_curves(
    curves: pd.DataFrame, look: Mapping[str, Look], *, score: str, unit: str, width: int = WIDE
) -> Figure:
    """Validation score against the optimiser step: mean and standard deviation over seeds, a panel for each size.

    Args:
        curves: pipeline, labels, step, score; a row for each run and validation.
        look: of each pipeline.
        score: name of the score.
        unit: what labels count, in the plural.
        width: in pixels.

    Source: SEG figure 3a.
    """
    sizes = sorted(set(curves["labels"]))
    sizes = [sizes[place] for place in selected(sizes)]
    columns = _columns(len(sizes), width)
    with _drawing(width, 70 + (205 if width > NARROW else 165) * -(-len(sizes) // columns)) as figure:
        for index, (axis, size) in enumerate(_panels(figure, sizes, columns, share=True)):
            for name in look:
                rows = curves[(curves["labels"] == size) & (curves["pipeline"] == name)]
                over = rows.groupby("step")["score"].agg(["mean", "std"])
                _curve(axis, over, look[name])
            axis.set_title(f"{size} {unit}", loc="left")
            axis.set_xlim(left=0)
            if index % columns == 0:
                axis.set_ylabel(f"validation {score}")
        figure.supxlabel("training step", color=INK)
        _legend(figure, look, width, [Patch(facecolor=INK, alpha=0.15, label="± 1 SD over seeds")])
    return figure


def _curve(axis: Axes, over: pd.DataFrame, look: Look, alpha: float = 1.0, label: str | None = None) -> None:
    """Mean with a band of one standard deviation, where there is one."""
    if over["std"].notna().any():
        low, high = over["mean"] - over["std"], over["mean"] + over["std"]
        axis.fill_between(over.index, low, high, color=look.light, alpha=0.15 * alpha, linewidth=0)
    axis.plot(
        over.index, over["mean"], color=look.light, linewidth=1.8, alpha=alpha, label=label,
        marker=look.marker, markersize=3.5, markevery=max(1, len(over) // 8),
    )  # fmt: skip


def curve_areas(runs: Runs, look: Mapping[str, Look], *, score: str, unit: str, width: int = WIDE) -> Figure:
    """Area under each validation curve, ordered by median: violins where there are runs enough, and every run.

    Args:
        runs: validation curves.
        look: of each pipeline.
        score: name of the score.
        unit: what labels count, in the plural.
        width: in pixels.

    Source: SEG figure 3b.
    """
    areas = cell_areas(runs)
    sizes = selected(runs.labels)
    columns = _columns(len(sizes), width)
    height = 44 + 25 * len(runs.pipelines)
    with _drawing(width, 40 + height * -(-len(sizes) // columns)) as figure:
        for axis, size in _panels(figure, sizes, columns):
            values = {name: areas[p, size][~np.isnan(areas[p, size])] for p, name in enumerate(runs.pipelines)}
            shown = sorted(
                (name for name in values if len(values[name])), key=lambda name: float(np.median(values[name]))
            )
            for place, name in enumerate(shown):
                _violin(axis, place, values[name], look[name])
            axis.set_yticks(range(len(shown)), shown)
            axis.set_ylim(-0.6, max(len(shown), 1) - 0.4)
            axis.tick_params(axis="y", length=0)
            axis.grid(visible=False, axis="y")
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.set_title(f"{runs.labels[size]} {unit}", loc="left")
        figure.supxlabel(f"mean validation {score} over the whole training", color=INK)
    return figure


def _violin(axis: Axes, place: float, values: np.ndarray, look: Look) -> None:
    if len(values) >= VIOLIN_FROM and np.ptp(values) > 1e-9:
        spread = gaussian_kde(values)
        x = np.linspace(values.min() - 0.15 * np.ptp(values), values.max() + 0.15 * np.ptp(values), 80)
        half = 0.4 * spread(x) / spread(x).max()
        axis.fill_between(x, place - half, place + half, color=look.light, alpha=0.22, linewidth=0)
    axis.plot(values, np.full(len(values), place), look.marker, color=look.light, markersize=4.5, alpha=0.8)
    axis.plot([np.median(values)] * 2, [place - 0.32, place + 0.32], color=look.light, linewidth=2.2)


def steps_reached(runs: Runs, look: Mapping[str, Look], *, unit: str, width: int = WIDE) -> Figure:
    """Share of runs that have reached `LEVEL` of the common reference, against steps (Kaplan-Meier).

    A run that never gets there keeps its curve below 100 %: the curve ends at the last step, with a circle.

    Args:
        runs: validation curves.
        look: of each pipeline.
        unit: what labels count, in the plural.
        width: in pixels.
    """
    steps, reached = steps_to(runs, LEVEL)
    sizes = selected(runs.labels)
    columns = _columns(len(sizes), width)
    end = runs.steps[-1]
    with _drawing(width, 78 + (190 if width > NARROW else 165) * -(-len(sizes) // columns)) as figure:
        for index, (axis, size) in enumerate(_panels(figure, sizes, columns, share=True)):
            for p, name in enumerate(runs.pipelines):
                there = ~np.isnan(steps[p, size])
                if not there.any():
                    continue
                x, share = share_reached(steps[p, size, there], reached[p, size, there])
                lift = 0.014 * (p - (len(runs.pipelines) - 1) / 2)  # lines that coincide stay visible
                last = share[-1] if len(share) else 0.0
                across, up = np.concatenate([[0], x, [end]]), np.concatenate([[0], share, [last]]) + lift
                axis.step(across, 100 * up, where="post", color=look[name].light, linewidth=2)
                if not reached[p, size, there].all():
                    (mark,) = axis.plot(end, 100 * up[-1], look[name].marker, color=look[name].light, clip_on=False)
                    mark.set(markerfacecolor=PAPER, markersize=6.5, markeredgewidth=1.5)
            axis.set(xlim=(0, 1.03 * end), ylim=(-6, 106))
            axis.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
            axis.set_title(f"{runs.labels[size]} {unit}", loc="left")
            if index % columns == 0:
                axis.set_ylabel("runs there")
        figure.supxlabel("training step", color=INK)
        never = Line2D(
            [], [], color=INK, marker="o", markerfacecolor=PAPER, markersize=6.5, label="some never get there"
        )
        _legend(figure, look, width, [never])
    return figure


def pretraining(
    curves: pd.DataFrame,
    results: pd.DataFrame,
    look: Mapping[str, Look],
    *,
    measure: str,
    score: str,
    unit: str,
    width: int = WIDE,
) -> Figure | None:
    """What longer pretraining gives: validation curves at the largest size, and the final score against epochs.

    Args:
        curves: pipeline, pretrain_epochs, labels, step, score.
        results: pipeline, pretrain_epochs, labels and `measure`, of one split.
        look: of each pipeline.
        measure: column of the results.
        score: its name.
        unit: what labels count, in the plural.
        width: in pixels.

    Returns:
        None unless some pipeline was pretrained for several numbers of epochs.

    Source: SEG figure 6.
    """
    epochs = results.groupby("pipeline")["pretrain_epochs"].nunique()
    names = [name for name in look if epochs.get(name, 0) > 1]
    if not names:
        return None
    largest = curves["labels"].max()
    columns = 2 if width > NARROW else 1
    panels = [(name, kind) for name in names for kind in ("curves", "final")]
    with _drawing(width, 30 + (250 if width > NARROW else 220) * len(panels) // columns) as figure:
        for axis, (name, kind) in _panels(figure, panels, columns):
            if kind == "curves":
                rows = curves[(curves["pipeline"] == name) & (curves["labels"] == largest)]
                groups = list(rows.groupby("pretrain_epochs"))
                for (count, own), strength in zip(groups, np.linspace(0.25, 1, len(groups)), strict=True):
                    _curve(axis, own.groupby("step")["score"].agg(["mean", "std"]), look[name], strength, f"{count:g}")
                axis.set(xlabel="training step", ylabel=f"validation {score}")
                axis.set_xlim(left=0)
                axis.set_title(f"{name}, {largest} {unit}", loc="left")
                axis.legend(title="epochs of pretraining", ncols=2, loc="lower right", title_fontsize="small")
                continue
            rows = results[results["pipeline"] == name]
            sizes = sorted(set(rows["labels"]))
            for size, strength in zip(sizes, np.linspace(0.3, 1, len(sizes)), strict=True):
                over = rows[rows["labels"] == size].groupby("pretrain_epochs")[measure].agg(["mean", "std"])
                _curve(axis, over, look[name], strength)
                axis.annotate(f"{size}", (over.index[-1], over["mean"].iloc[-1]), (6, -4), textcoords="offset points")
            axis.set_xscale("symlog", linthresh=1)
            counts = sorted(set(rows["pretrain_epochs"].dropna()))
            axis.set_xticks(counts, [f"{count:g}" for count in counts])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set(xlabel="epochs of domain pretraining", ylabel=score)
            axis.set_title(f"{name}, by labelled {unit}", loc="left")
    return figure


# ---- in common


@contextmanager
def _drawing(width: int, height: float) -> Iterator[Figure]:
    """An empty figure of that many pixels, with the house's lines and letters while it is drawn."""
    size = 12 if width > NARROW else 11
    with mpl.rc_context(
        {
            "font.size": size,
            "axes.titlesize": size,
            "axes.titleweight": "bold",
            "axes.labelsize": size,
            "figure.labelsize": size,
            "xtick.labelsize": size - 1,
            "ytick.labelsize": size - 1,
            "legend.fontsize": size - 1,
            "legend.frameon": False,
            "legend.handlelength": 1.6,
            "legend.columnspacing": 1.4,
            "text.color": INK,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.linewidth": 0.8,
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "figure.constrained_layout.h_pad": 5 / 72,
            "figure.constrained_layout.w_pad": 5 / 72,
        }
    ):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor=PAPER)
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what is where is settled: both files come out alike, and sooner


def _panels(figure: Figure, entries: Sequence[T], columns: int, *, share: bool = False) -> Iterator[tuple[Axes, T]]:
    """An axis for each entry, row by row."""
    rows = -(-len(entries) // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for place, axis in enumerate(axes[: len(entries)]):
        axis.tick_params(
            labelbottom=place + columns >= len(entries) or not share, labelleft=not share or place % columns == 0
        )
    for axis in axes[len(entries) :]:
        axis.set_axis_off()
    yield from zip(axes, entries, strict=False)


def _columns(panels: int, width: int) -> int:
    if width <= NARROW:
        return 1
    return {4: 2}.get(panels, min(panels, 3))


def _legend(figure: Figure, look: Mapping[str, Look], width: int, extra: Sequence[Line2D | Patch] = ()) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=own.light, marker=own.marker, linewidth=1.8, markersize=5.5, label=name)
        for name, own in look.items()
    ]
    handles += extra
    columns = len(handles) if width > NARROW else 2
    if width > NARROW and sum(len(str(handle.get_label())) + 6 for handle in handles) > 115:
        columns = -(-len(handles) // 2)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def _score_ticks(side: Axis, limits: tuple[float, float], least: int = 4) -> None:
    """Plain numbers on a logarithmic axis of errors, at least so many of them where it spans little."""
    low, high = limits
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), tuple(np.arange(1, 10, 0.5))):
        ticks = [m * 10.0**e for e in range(-4, 1) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) >= least:
            break
    side.set_major_locator(FixedLocator(ticks))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    side.set_minor_locator(NullLocator())


def _size_ticks(axis: Axes, labels: np.ndarray, width: int) -> None:
    """The sizes measured as ticks; those that would run into the next have no number."""
    low, high = axis.get_xlim()
    room = (34 if width > NARROW else 30) / (width - 70)  # of a number of four digits
    places = np.log(labels / low) / np.log(high / low)
    kept = [len(labels) - 1]
    for place in range(len(labels) - 2, -1, -1):
        if places[kept[-1]] - places[place] >= room:
            kept.append(place)
    axis.xaxis.set_major_locator(FixedLocator([float(labels[place]) for place in sorted(kept)]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axis.xaxis.set_minor_locator(FixedLocator(labels.tolist()))
    axis.xaxis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG, its text as text, the same every time."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def save(figure: Figure, path: Path) -> str:
    """Write the figure as PATH.svg and PATH.png; the SVG is returned as well."""
    svg = to_svg(figure, path.name)
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=150)
    return svg
