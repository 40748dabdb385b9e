"""Share of runs that have reached the common reference score, against training steps."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sweep.analysis.convergence import LEVEL, Runs, share_reached, steps_to
from sweep.report.figures.style import INK, NARROW, PAPER, WIDE, Styles, column_count, drawing, legend, panels, selected


def steps_reached(runs: Runs, styles: Styles, *, unit: str, width: int = WIDE) -> Figure:
    """Share of runs that have reached `LEVEL` of the common reference, against steps (Kaplan-Meier).

    If some runs never reach it, the curve stays below 100 % and ends in a hollow marker at the last step.

    Args:
        runs: validation curves.
    """
    steps, reached = steps_to(runs, LEVEL)
    sizes = selected(runs.labels)
    columns = column_count(len(sizes), width)
    end = runs.steps[-1]
    with drawing(width, 78 + (190 if width > NARROW else 165) * -(-len(sizes) // columns)) as figure:
        for index, (axis, size) in enumerate(panels(figure, sizes, columns, share=True)):
            for p, name in enumerate(runs.pipelines):
                present = ~np.isnan(steps[p, size])
                if not present.any():
                    continue
                x, share = share_reached(steps[p, size, present], reached[p, size, present])
                lift = 0.014 * (p - (len(runs.pipelines) - 1) / 2)  # lines that coincide stay visible
                last = share[-1] if len(share) else 0.0
                across, up = np.concatenate([[0], x, [end]]), np.concatenate([[0], share, [last]]) + lift
                axis.step(across, 100 * up, where="post", color=styles[name].light, linewidth=2)
                if not reached[p, size, present].all():
                    (mark,) = axis.plot(end, 100 * up[-1], styles[name].marker, color=styles[name].light, clip_on=False)
                    mark.set(markerfacecolor=PAPER, markersize=6.5, markeredgewidth=1.5)
            axis.set(xlim=(0, 1.03 * end), ylim=(-6, 106))
            axis.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
            axis.set_title(f"{runs.labels[size]} {unit}", loc="left")
            if index % columns == 0:
                axis.set_ylabel("runs that reached it")
        figure.supxlabel("training step", color=INK)
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": PAPER, "markersize": 6.5}
        legend(figure, styles, width, [Line2D([], [], color=INK, label="some runs never reach it", **hollow)])
    return figure
