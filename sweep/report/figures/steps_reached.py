"""Share of runs that have reached the common reference score, against training steps."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sweep.analysis.convergence import LEVEL, Runs, share_reached, steps_to
from sweep.report.figures.style import INK, NARROW, PAPER, WIDE, Styles, legend, size_panels


def steps_reached(runs: Runs, styles: Styles, *, unit: str, width: int = WIDE) -> Figure:
    """Share of runs that have reached `LEVEL` of the common reference, against steps (Kaplan-Meier).

    If some runs never reach it, the curve stays below 100 % and ends in a hollow marker at the last step.
    """
    steps, reached = steps_to(runs, LEVEL)
    end, row = runs.steps[-1], 190 if width > NARROW else 165
    with size_panels(runs.labels, unit, width, row=row, rest=78, ylabel="runs that reached it") as (figure, panels):
        for axis, size in panels:
            for p, name in enumerate(runs.pipelines):
                present = ~np.isnan(steps[p, size])
                if not present.any():
                    continue
                x, share = share_reached(steps[p, size, present], reached[p, size, present])
                lift = 0.014 * (p - (len(runs.pipelines) - 1) / 2)  # so that coinciding lines stay visible
                last = share[-1] if len(share) else 0.0
                across, up = np.concatenate([[0], x, [end]]), np.concatenate([[0], share, [last]]) + lift
                axis.step(across, 100 * up, where="post", color=styles[name].light, linewidth=2)
                if not reached[p, size, present].all():
                    (mark,) = axis.plot(end, 100 * up[-1], styles[name].marker, color=styles[name].light, clip_on=False)
                    mark.set(markerfacecolor=PAPER, markersize=6.5, markeredgewidth=1.5)
            axis.set(xlim=(0, 1.03 * end), ylim=(-6, 106))
            axis.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
        figure.supxlabel("training step", color=INK)
        label = "some runs never reach it"
        legend(figure, styles, width, [Line2D([], [], color=INK, marker="o", mfc=PAPER, markersize=6.5, label=label)])
    return figure
