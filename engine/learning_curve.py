"""Plot of losses and validation score over training."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from core.files import save_figure

BLUE, RED = "#0072B2", "#D55E00"  # of the palette of Okabe and Ito 2008, safe for colour-blind readers
NAMES = {"validation_dice": "validation Dice", "validation_auc": "validation AUC"}


def draw_learning_curve(metrics: pd.DataFrame, path: Path, *, score: str) -> None:
    """Draw losses and a validation score against the optimiser step, the best score marked.

    Args:
        metrics: rows of `metrics.csv`: `step`, `loss`, the score and perhaps `validation_loss`; NaN where a row has
            no such value (validation is rarer than training).
        path: file to write; its suffix gives the format.
        score: column of the validation score, higher is better.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 1, sharex=True)
    losses = metrics[["step", "loss"]].dropna()
    smooth = losses["loss"].ewm(span=max(2, len(losses) // 50)).mean()
    upper.plot(losses["step"], losses["loss"], color=BLUE, alpha=0.3, linewidth=1)
    upper.plot(losses["step"], smooth, color=BLUE, linewidth=1.8, label="training")
    scores = metrics.dropna(subset=[score])
    if "validation_loss" in metrics:
        upper.plot(scores["step"], scores["validation_loss"], color=RED, linewidth=1.5, label="validation")
        upper.legend(frameon=False, fontsize=9)
    upper.set_ylabel("loss")

    lower.plot(scores["step"], scores[score], color=RED, linewidth=1.8, marker="o", markersize=3)
    if len(scores):
        best = scores.iloc[int(scores[score].argmax())]
        lower.plot(best["step"], best[score], "o", color=RED, markersize=8, markeredgecolor="black")
        lower.set_title(f"best {best[score]:.3f} at step {best['step']:.0f}", loc="right", fontsize=9)
    lower.set(xlabel="optimiser step", ylabel=NAMES.get(score, score))
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure, dpi=200)
