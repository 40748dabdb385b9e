"""Validation score during training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sweep.report.figures.style import (
    INK,
    NARROW,
    WIDE,
    Styles,
    column_count,
    drawing,
    legend,
    mean_curve,
    panels,
    selected,
)


def validation_curves(curves: pd.DataFrame, styles: Styles, *, score: str, unit: str, width: int = WIDE) -> Figure:
    """Validation score against the optimiser step: mean and standard deviation over seeds, a panel for each size.

    Args:
        curves: pipeline, labels, step, score; a row for each run and validation.

    Source: Kalapos and Gyires-Toth 2022, figure 3a.
    """
    sizes = sorted(set(curves["labels"]))
    sizes = [sizes[place] for place in selected(sizes)]
    columns = column_count(len(sizes), width)
    with drawing(width, 70 + (205 if width > NARROW else 165) * -(-len(sizes) // columns)) as figure:
        for index, (axis, size) in enumerate(panels(figure, sizes, columns, share=True)):
            for name in styles:
                rows = curves[(curves["labels"] == size) & (curves["pipeline"] == name)]
                over = rows.groupby("step")["score"].agg(["mean", "std"])
                mean_curve(axis, over, styles[name])
            axis.set_title(f"{size} {unit}", loc="left")
            axis.set_xlim(left=0)
            if index % columns == 0:
                axis.set_ylabel(f"validation {score}")
        figure.supxlabel("training step", color=INK)
        legend(figure, styles, width, [Patch(facecolor=INK, alpha=0.15, label="± 1 SD over seeds")])
    return figure
