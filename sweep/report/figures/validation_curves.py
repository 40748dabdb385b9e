"""Validation score during training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sweep.report.figures.style import INK, NARROW, WIDE, Styles, legend, mean_curve, size_panels


def validation_curves(curves: pd.DataFrame, styles: Styles, *, score: str, unit: str, width: int = WIDE) -> Figure:
    """Validation score against the optimiser step: mean and standard deviation over seeds, a panel for each size.

    Args:
        curves: columns pipeline, labels, step and score; a row for each run and validation.

    Source: Kalapos and Gyires-Toth 2022, figure 3a.
    """
    labels, row = sorted(set(curves["labels"])), 205 if width > NARROW else 165
    with size_panels(labels, unit, width, row=row, rest=70, ylabel=f"validation {score}") as (figure, panels):
        for axis, size in panels:
            for name in styles:
                rows = curves[(curves["labels"] == labels[size]) & (curves["pipeline"] == name)]
                over = rows.groupby("step")["score"].agg(["mean", "std"])
                mean_curve(axis, over, styles[name])
            axis.set_xlim(left=0)
        figure.supxlabel("training step", color=INK)
        legend(figure, styles, width, [Patch(facecolor=INK, alpha=0.15, label="± 1 SD over seeds")])
    return figure
