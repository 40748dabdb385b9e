"""Forecasts from fitted learning curves: labels needed for a score, and the gain from further labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweep.analysis.bootstrap import estimate
from sweep.analysis.curve_fitting import HORIZON, Curve
from sweep.analysis.learning_curves import REACH

SPREAD = 100.0
"""No forecast is given if the ends of its interval differ by more than this factor."""
MISFIT = 0.03
"""A fit that differs by more than this from the mean score measured at the largest size makes forecasts doubtful."""


def labels_needed(curves: Sequence[Curve], target: float, unit: str = "labels") -> pd.DataFrame:
    """How many labels each pipeline needs to score `target`, by its offset power law.

    Args:
        curves: of `fit`.
        target: score, in (0, 1).
        unit: what the labels are, in the plural, for the sentence.

    Returns:
        pipeline, labels, low, high (infinite: not reached within `HORIZON` times the largest size; a number at or
        below the smallest size is that size), extrapolated, refused, answer (a sentence, with the reason of a refusal).
    """
    rows = []
    for curve in curves:
        row: dict[str, Any] = {"pipeline": curve.pipeline, **dict.fromkeys(("labels", "low", "high"), np.nan)}
        row["extrapolated"] = False
        if curve.fitted:
            row |= estimate("labels", np.maximum(curve.needed(1 - target), curve.labels[0]))
            row["extrapolated"] = bool(row["labels"] > curve.labels[-1])
        refusal = _refusal(curve, row)
        answer = refusal or _needed(curve, row, unit) + _doubt(curve)
        rows.append({**row, "refused": bool(refusal), "answer": f"{curve.pipeline}: {answer}"})
    return pd.DataFrame(rows)


def _refusal(curve: Curve, row: dict) -> str:
    """Why the labels needed for a target cannot be predicted; empty if they can."""
    if not curve.fitted:
        return f"no forecast, {curve.note}"
    low, high = row["low"], row["high"]
    if np.isnan(low):  # a number without an interval is reported as such
        return ""
    if high == np.inf and low <= curve.labels[0]:
        reason = "reaches from the smallest measured size to never; more seeds, patients or sizes would narrow it"
        return f"no forecast: the interval {reason}"
    if low < np.inf and low * SPREAD < high < np.inf:
        ends = f"{_round(low)} to {_round(high)}"
        return f"no forecast: the ends of the interval, {ends}, differ by more than a factor of {SPREAD:.0f}"
    return ""


def _needed(curve: Curve, row: dict, unit: str) -> str:
    """The labels needed, in words."""
    smallest, largest = curve.labels[0], curve.labels[-1]
    low, high = row["low"], row["high"]
    if np.isnan(low):
        between = " (no interval)"
    elif low == np.inf:
        between = " (almost no bootstrap draw reaches it)"
    elif high == np.inf:
        between = f" (95 % interval from {_round(low)}; no upper end)"
    else:
        between = f" (95 % interval {_round(low)} to {_round(high)})"
    if row["labels"] == np.inf:
        score_there = f"the predicted score there is {1 - curve.error([HORIZON * largest])[0, 0]:.3f}"
        return f"not reached within {HORIZON:.0f} times the largest size{between}; {score_there}"
    if row["labels"] <= smallest:
        return f"{_round(smallest)} {unit} or fewer{between}"
    beyond = f", beyond the largest measured size, {_round(largest)}" if row["extrapolated"] else ""
    return f"{_round(row['labels'])} {unit}{between}{beyond}"


def next_labels(curves: Sequence[Curve], at: float, more: float = 10, unit: str = "labels") -> pd.DataFrame:
    """Gain in score from `more` labels beyond `at`, by the offset power law.

    Args:
        curves: of `fit`.
        at: number of labels used now, at least the smallest measured size.
        more: number of labels to add; the sum may be at most `REACH` times the largest measured size.
        unit: what the labels are, in the plural, for the sentence.

    Returns:
        pipeline, labels, more, score (of the fit at `labels`), measured (mean score there, NaN where `labels` is no
        size of the study), gain, low, high (of the gain), extrapolated, refused, answer.
    """
    rows = []
    for curve in curves:
        row: dict[str, Any] = {"pipeline": curve.pipeline, "labels": at, "more": more}
        row |= {**dict.fromkeys(("score", "measured", "gain", "low", "high"), np.nan), "extrapolated": False}
        if not curve.fitted:
            refusal = f"no forecast, {curve.note}"
        elif at < curve.labels[0]:
            refusal = f"no forecast: {at:g} is below the smallest measured size, {_round(curve.labels[0])}"
        elif at + more > REACH * curve.labels[-1]:
            refusal = (
                f"no forecast: {at:g} + {more:g} is more than {REACH:g} times the largest measured size, "
                f"{_round(curve.labels[-1])}"
            )
        else:
            refusal = ""
            errors = curve.error([at, at + more])
            row |= {"score": 1 - errors[0, 0], **estimate("gain", errors[:, 0] - errors[:, 1])}
            row["extrapolated"] = bool(at + more > curve.labels[-1])
            scores = f"fit {row['score']:.3f}"
            if at in curve.labels:
                row["measured"] = 1 - curve.errors[curve.labels == at][0]
                scores = f"measured {row['measured']:.3f}, {scores}"
            between = f" (95 % interval {row['low']:.4f} to {row['high']:.4f})"
            between = " (no interval)" if np.isnan(row["low"]) else between
            answer = (
                f"at {at:g} {unit} ({scores}) the next {more:g} raise the score by "
                f"{row['gain']:.4f}{between}{_doubt(curve)}"
            )
        rows.append({**row, "refused": bool(refusal), "answer": f"{curve.pipeline}: {refusal or answer}"})
    return pd.DataFrame(rows)


def _doubt(curve: Curve) -> str:
    """What makes the forecasts of a curve doubtful, to follow an answer; empty if nothing does."""
    note = f"; {curve.note}" if curve.note else ""
    measured, fitted = 1 - curve.errors[-1], 1 - curve.error(curve.labels[-1:])[0, 0]
    if abs(fitted - measured) <= MISFIT:
        return note
    where = f"at the largest measured size, {_round(curve.labels[-1])}"
    return f"{note}. Doubtful: {where}, the fit gives {fitted:.3f} and the measured score is {measured:.3f}"


def _round(labels: float) -> str:
    """A number of labels as text: two digits below 10, whole numbers above."""
    return f"{labels:.2g}" if labels < 10 else f"{labels:.0f}"
