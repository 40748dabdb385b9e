"""Pictures of a classifier's scores: ROC and calibration."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from classify.statistics import auc_with_interval, calibration_bins, calibration_error, interval_text, proportion
from core.files import save_figure
from engine.learning_curve import BLUE, RED

NAMES = {"val": "inner validation", "test": "test"}
"""Names of the splits in figures and tables."""


def roc_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, threshold: float) -> None:
    """Draw the ROC curve of each split with its area and 95 % interval, and the operating point of the threshold.

    Args:
        curves: split -> labels (n,) and probabilities (n,).
        path: file to write; its suffix determines the format.
        threshold: threshold of the operating point.
    """
    figure = Figure(figsize=(5, 5), layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for split, (labels, scores) in curves.items():
        colour, style = (RED, "-") if split == "test" else (BLUE, "--")
        text = f"{NAMES[split]}: AUC {interval_text(auc_with_interval(labels, scores))}"
        rates = roc_curve(labels, scores, drop_intermediate=False)[:2]
        axis.plot(*rates, style, color=colour, linewidth=1.8, label=text)
        false, true = (float(np.mean(scores[labels == label] >= threshold)) for label in (0, 1))
        axis.plot(false, true, "o", color=colour, markersize=7, markeredgecolor="black")
    axis.plot([], [], "o", color="white", markeredgecolor="black", label=f"threshold {threshold:.3f}")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    _tidy(axis)
    save_figure(path, figure, dpi=200)


def calibration_figure(labels: np.ndarray, probabilities: np.ndarray, path: Path, split: str) -> None:
    """Draw observed against predicted frequency, with 95 % intervals (Wilson) and the exams of each bin.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,).
        path: file to write; its suffix determines the format.
        split: split of the exams, for the title.
    """
    figure = Figure(figsize=(5, 5.5), layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for predicted, observed, count in calibration_bins(labels, probabilities):
        interval = proportion(round(observed * count), count)
        upper.plot([predicted, predicted], [interval["low"], interval["high"]], color=RED, linewidth=1.2)
        upper.plot(predicted, observed, "o", color=RED, markersize=6)
        upper.annotate(str(count), (predicted, observed), xytext=(5, 3), textcoords="offset points", fontsize=8)
    error = calibration_error(labels, probabilities)
    upper.set(ylabel="observed frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.set_title(f"{NAMES[split]}: calibration error {error:.3f}, exams beside the points", fontsize=10)
    edges = np.linspace(0, 1, 21)
    lower.hist([probabilities[labels == k] for k in (0, 1)], edges, stacked=True, color=[BLUE, RED], label=["0", "1"])
    lower.legend(title="label", frameon=False, fontsize=8, title_fontsize=8, ncols=2)
    lower.set(xlabel="predicted probability", ylabel="exams")
    for axis in (upper, lower):
        _tidy(axis)
    save_figure(path, figure, dpi=200)


def _tidy(axis: Axes) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
