"""Score a classifier on the exams of a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader

from classify.figures import calibration_figure, roc_figure
from classify.model import ModelCard
from classify.statistics import auc_with_interval, summarise
from core.files import write_csv
from data.readers.exams import ExamSet
from data.samples.clips import WholeClips

BATCH = 8
"""Clips of one forward."""


@torch.no_grad()
def probabilities(
    classifier: nn.Module, exams: ExamSet, positions: np.ndarray, card: ModelCard, draws: int, workers: int = 0
) -> np.ndarray:
    """Probability of class 1 in each of several clips of each exam: (exams, draws). The classifier's mode is restored.

    Clips are not augmented; only their frames are drawn at random, by `card.test_seed`.
    """
    clips = WholeClips(exams, positions, card.image_size, card.clip_frames, draws, card.test_seed)
    loader = DataLoader(
        clips,
        batch_size=max(1, BATCH // draws),
        num_workers=workers,
        generator=torch.Generator(),  # otherwise it would draw from torch's global one, which training uses
    )
    device = next(classifier.parameters()).device
    training = classifier.training
    classifier.eval()
    logits = [
        classifier(part.to(device)).double().cpu() for batch in loader for part in batch.flatten(0, 1).split(BATCH)
    ]
    classifier.train(training)
    return torch.cat(logits).sigmoid().numpy().reshape(len(positions), draws)


def validate(
    classifier: nn.Module, exams: ExamSet, positions: np.ndarray, card: ModelCard, workers: int = 0
) -> dict[str, float]:
    """AUC, accuracy at 0.5 and loss on one clip per exam, cheap enough to follow training with."""
    scores, labels = probabilities(classifier, exams, positions, card, 1, workers)[:, 0], exams.labels[positions]
    loss = binary_cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels.astype(float)))
    return {
        "validation_auc": auc_with_interval(labels, scores)["value"],
        "validation_accuracy": float(np.mean((scores >= 0.5) == labels)),
        "validation_loss": float(loss),
    }


def score_table(exams: ExamSet, positions: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Rows of `per_exam.csv`, without the call at the threshold.

    Args:
        exams: the data set.
        positions: rows of the scored exams in `exams.table`.
        scores: (scored exams, draws), from `probabilities`.

    Returns:
        exam, subject, split, label, probability (mean over draws), single_draw (that of the first draw), spread
        (standard deviation over draws).
    """
    table = exams.table.iloc[positions][["exam", "subject", "split", "label"]].reset_index(drop=True)
    return table.assign(probability=scores.mean(axis=1), single_draw=scores[:, 0], spread=scores.std(axis=1))


def write_scores(table: pd.DataFrame, threshold: float, folder: Path) -> dict[str, Any]:
    """Write `per_exam.csv`, `roc.png` and `calibration.png`.

    Args:
        table: rows of `score_table`, of one or two splits.
        threshold: exams at or above it are called positive.
        folder: the run folder.

    Returns:
        split -> `statistics.summarise` of the mean probabilities; in it as `single_draw`, that of one clip per exam.
    """
    table = table.assign(called=(table["probability"] >= threshold).astype(int))
    write_csv(folder / "per_exam.csv", table, float_format="%.9g")
    curves, result = {}, {}
    for split in ("val", "test"):
        rows = table[table["split"] == split]
        if len(rows):
            labels, mean, single = (rows[column].to_numpy() for column in ("label", "probability", "single_draw"))
            result[split] = summarise(labels, mean, threshold) | {"single_draw": summarise(labels, single, threshold)}
            curves[split] = (labels, mean)
    roc_figure(curves, folder / "roc.png", threshold)
    split = "test" if "test" in curves else "val"
    calibration_figure(*curves[split], folder / "calibration.png", split)
    return result


def highest(table: pd.DataFrame, count: int) -> Sequence[str]:
    """Names of the exams of highest probability, of the test split if it was scored, else of the validation split."""
    split = "test" if (table["split"] == "test").any() else "val"
    rows = table[table["split"] == split].sort_values("probability", ascending=False, kind="stable")
    return rows["exam"].tolist()[:count]
