"""Figures of a binary classifier with their uncertainty, and paired tests between two classifiers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata

Z = float(norm.ppf(0.975))
"""Of a two-sided 95 % interval."""


def summarise(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
    """All figures of one classifier on one set of exams.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.
        threshold: exams at or above it are called positive.

    Returns:
        exams, positive, auc, accuracy, sensitivity and specificity (each value, low, high: 95 % intervals by
        DeLong and Wilson), confusion, brier, calibration_error; see the functions below.
    """
    confusion = confusion_matrix(labels, probabilities >= threshold)
    tp, fp, fn, tn = confusion.values()
    return {
        "exams": len(labels),
        "positive": tp + fn,
        "auc": auc_with_interval(labels, probabilities),
        "accuracy": proportion(tp + tn, len(labels)),
        "sensitivity": proportion(tp, tp + fn),
        "specificity": proportion(tn, tn + fp),
        "confusion": confusion,
        "brier": brier_score(labels, probabilities),
        "calibration_error": calibration_error(labels, probabilities),
    }


def confusion_matrix(labels: np.ndarray, called: np.ndarray) -> dict[str, int]:
    """Counts of true and false positives and negatives, in the order tp, fp, fn, tn."""
    positive, called = labels == 1, np.asarray(called, bool)
    return {
        "tp": int((positive & called).sum()),
        "fp": int((~positive & called).sum()),
        "fn": int((positive & ~called).sum()),
        "tn": int((~positive & ~called).sum()),
    }


def proportion(successes: int, trials: int) -> dict[str, float]:
    """A proportion as value, low, high: Wilson's score interval, 95 %.

    Source: Wilson 1927; recommended by Newcombe 1998, Statistics in Medicine 17:857.
    """
    low, high = wilson(successes, trials)
    return {"value": successes / trials, "low": low, "high": high}


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 %."""
    p, n = successes / trials, trials
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def auc_with_interval(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve as value, low, high: DeLong's interval, 95 %, cut to [0, 1].

    DeLong's variance is 0 where the classes are perfectly separated, which a small set does not prove: then the
    interval is Wilson's for as many exams as the rarer class has.
    """
    areas, covariance = delong(labels, scores[None])
    auc, error = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    low, high = auc - Z * error, auc + Z * error
    if error < 1e-12:
        low, high = wilson(auc * (n := int(np.bincount(labels.astype(int), minlength=2).min())), n)
    return {"value": auc, "low": max(0.0, low), "high": min(1.0, high)}


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curves of several classifiers of the same exams, and their covariance.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (classifiers, n), higher means rather 1; ties count one half.

    Returns:
        (classifiers,) and (classifiers, classifiers).

    Source: DeLong et al. 1988, Biometrics 44:837, by midranks as in Sun and Xu 2014, IEEE SPL 21:1389.
    """
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise ValueError(f"an ROC curve needs both classes: {m} positive and {n} negative exams")
    ranks = rankdata(scores, axis=1)
    # Share of the negatives that lie below each positive, and of the positives that lie above each negative.
    below = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / n
    above = 1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m
    covariance = _covariance(below) / m + _covariance(above) / n
    return below.mean(axis=1), covariance


def _covariance(components: np.ndarray) -> np.ndarray:
    """Sample covariance between rows; 0 where a row has one value only."""
    count = components.shape[1]
    centred = components - components.mean(axis=1, keepdims=True)
    return centred @ centred.T / max(1, count - 1)


@dataclass(frozen=True, kw_only=True)
class AucDifference:
    """Difference of two areas under the ROC curve on the same exams, with its 95 % interval and two-sided p.

    z and p are NaN where both curves are without variance, a perfect one against a constant one.
    """

    value: float
    low: float
    high: float
    z: float
    p: float


def delong_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> AucDifference:
    """DeLong's paired test of `first` against `second`, scores (n,) of the same exams."""
    areas, covariance = delong(labels, np.stack([first, second]))
    difference = float(areas[0] - areas[1])
    error = float(np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    z = difference / error if error > 1e-12 else 0.0 if abs(difference) < 1e-12 else float("nan")
    return AucDifference(
        value=difference,
        low=difference - Z * error,
        high=difference + Z * error,
        z=z,
        p=float(2 * norm.sf(abs(z))),
    )


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """McNemar's exact test: do two classifiers err equally often on the same exams?

    Args:
        labels: (n,) 0 or 1.
        first: (n,) classes called by one.
        second: (n,) classes called by the other.

    Returns:
        first_only_right and second_only_right (exams), and the two-sided p of the binomial test between them.
    """
    right, other = first == labels, second == labels
    b, c = int((right & ~other).sum()), int((~right & other).sum())
    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    return {"first_only_right": b, "second_only_right": c, "p": p}


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared difference between probability and label; 0 is best, 0.25 what 0.5 for all gives."""
    return float(np.mean((probabilities - labels) ** 2))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean distance of predicted and observed frequency over bins, weighted by exams.

    Source: Naeini et al. 2015, AAAI, for the probability of class 1 in bins of equal width.
    """
    rows = calibration_bins(labels, probabilities, bins)
    return float(sum(count * abs(said - seen) for said, seen, count in rows) / len(labels))


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean probability, share of class 1, exams) of each bin of equal width that holds any exam."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    return [
        (float(probabilities[own].mean()), float(labels[own].mean()), int(own.sum()))
        for own in (place == k for k in range(bins))
        if own.any()
    ]


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold of the largest sensitivity + specificity; of equals the one nearest to 0.5.

    It lies half-way between two neighbouring probabilities, so that no exam sits on it.

    Source: Youden 1950, Cancer 3:32.
    """
    values = np.unique(probabilities)
    candidates = (values[1:] + values[:-1]) / 2
    if not len(candidates):
        return 0.5
    called = probabilities[None] >= candidates[:, None]
    index = called[:, labels == 1].mean(axis=1) - called[:, labels == 0].mean(axis=1)
    best = candidates[index >= index.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(1 - specificity, sensitivity) at every threshold, from (0, 0) to (1, 1)."""
    levels = np.unique(scores)[::-1]
    called = scores[None] >= levels[:, None]
    rates = [np.r_[0.0, called[:, labels == label].mean(axis=1)] for label in (0, 1)]
    return rates[0], rates[1]
