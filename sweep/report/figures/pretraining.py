"""Effect of the length of pretraining."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sweep.report.figures.style import NARROW, WIDE, Styles, drawing, mean_curve, panels


def pretraining(
    curves: pd.DataFrame,
    results: pd.DataFrame,
    styles: Styles,
    *,
    measure: str,
    score: str,
    unit: str,
    width: int = WIDE,
) -> Figure | None:
    """Effect of the length of pretraining: validation curves at the largest size, and the final score against epochs.

    Args:
        curves: columns pipeline, pretrain_epochs, labels, step and score.
        results: columns pipeline, pretrain_epochs, labels and that named by `measure`, of one split.

    Returns:
        None unless some pipeline was pretrained for several numbers of epochs.

    Source: Kalapos and Gyires-Toth 2022, figure 6.
    """
    epochs = results.groupby("pipeline")["pretrain_epochs"].nunique()
    names = [name for name in styles if epochs.get(name, 0) > 1]
    if not names:
        return None
    largest = curves["labels"].max()
    columns = 2 if width > NARROW else 1
    entries = [(name, kind) for name in names for kind in ("curves", "final")]
    with drawing(width, 30 + (250 if width > NARROW else 220) * len(entries) // columns) as figure:
        for axis, (name, kind) in panels(figure, entries, columns):
            if kind == "curves":
                rows = curves[(curves["pipeline"] == name) & (curves["labels"] == largest)]
                groups = list(rows.groupby("pretrain_epochs"))
                for (count, runs), strength in zip(groups, np.linspace(0.25, 1, len(groups)), strict=True):
                    over = runs.groupby("step")["score"].agg(["mean", "std"])
                    mean_curve(axis, over, styles[name], strength, f"{count:g}")
                axis.set(xlabel="training step", ylabel=f"validation {score}")
                axis.set_xlim(left=0)
                axis.set_title(f"{name}, {largest} {unit}", loc="left")
                axis.legend(title="epochs of pretraining", ncols=2, loc="lower right", title_fontsize="small")
                continue
            rows = results[results["pipeline"] == name]
            sizes = sorted(set(rows["labels"]))
            for size, strength in zip(sizes, np.linspace(0.3, 1, len(sizes)), strict=True):
                over = rows[rows["labels"] == size].groupby("pretrain_epochs")[measure].agg(["mean", "std"])
                mean_curve(axis, over, styles[name], strength)
                axis.annotate(f"{size}", (over.index[-1], over["mean"].iloc[-1]), (6, -4), textcoords="offset points")
            axis.set_xscale("symlog", linthresh=1)
            counts = sorted(set(rows["pretrain_epochs"].dropna()))
            axis.set_xticks(counts, [f"{count:g}" for count in counts])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set(xlabel="epochs of domain pretraining", ylabel=score)
            axis.set_title(f"{name}, by labelled {unit}", loc="left")
    return figure
