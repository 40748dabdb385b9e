"""Score of each patient by each pipeline."""

import numpy as np
from matplotlib.figure import Figure

from sweep.analysis.scores import Scores, nan_mean
from sweep.report.figures.style import INK, MUTED, WIDE, Styles, size_panels


def patients(scores: Scores, styles: Styles, *, score: str, unit: str, width: int = WIDE) -> Figure | None:
    """A row of points for each pipeline: the score of each patient, a mean over seeds; the bar is the mean of a row.

    A line joins the points of one patient, so that a difference of means can be told apart into patients: many small
    gains, or one that failed. A cell that is missing leaves its seed out of the means of its pipeline.

    Args:
        scores: of the split that is reported.

    Returns:
        None for exams, whose score is one number for all of them.
    """
    if scores.truth is not None:
        return None
    row = 44 + 30 * len(scores.pipelines)
    with size_panels(scores.labels, unit, width, row=row, rest=40, share=True) as (figure, panels):
        for axis, size in panels:
            runs = [scores.of_patients(place, size).T for place in range(len(scores.pipelines))]
            values = np.stack([nan_mean(of_one, np.ones(of_one.shape[1])) for of_one in runs])
            means, places = nan_mean(values, np.ones(values.shape[1])), np.arange(len(values))
            axis.plot(values, places, color=MUTED, linewidth=0.6, alpha=0.45)
            for place, name in enumerate(scores.pipelines):
                style = styles[name]
                axis.plot(values[place], np.full(values.shape[1], place), style.marker, color=style.light, markersize=4)
                axis.plot([means[place]] * 2, [place - 0.32, place + 0.32], color=style.light, linewidth=2.2)
            axis.set_yticks(places, scores.pipelines)
            axis.set_ylim(len(places) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
            axis.grid(visible=False, axis="y")
        figure.supxlabel(f"{score} of a patient, mean over seeds", color=INK)
    return figure
