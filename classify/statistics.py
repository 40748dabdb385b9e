"""Scores of a binary classifier with their uncertainty, and paired tests between two classifiers."""

from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, confusion_matrix

Z = float(norm.ppf(0.975))
"""Quantile of the normal distribution for a two-sided 95 % interval."""


def summarise(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
    """All scores of one classifier on one set of exams.

    Args:
        labels: (n,) 0 or 1, both present.
        probabilities: (n,) of class 1.
        threshold: exams at or above it are called positive.

    Returns:
        exams, positive, auc, accuracy, sensitivity and specificity (each value, low, high: 95 % intervals by
        DeLong and Wilson), confusion, brier (mean squared difference of probability and label), calibration_error.
    """
    confusion = confusion_counts(labels, probabilities >= threshold)
    tp, fp, fn, tn = (confusion[name] for name in ("tp", "fp", "fn", "tn"))
    return {
        "exams": len(labels),
        "positive": tp + fn,
        "auc": auc_with_interval(labels, probabilities),
        "accuracy": proportion(tp + tn, len(labels)),
        "sensitivity": proportion(tp, tp + fn),
        "specificity": proportion(tn, tn + fp),
        "confusion": confusion,
        "brier": float(brier_score_loss(labels, probabilities)),
        "calibration_error": calibration_error(labels, probabilities),
    }


def confusion_counts(labels: np.ndarray, called: np.ndarray) -> dict[str, int]:
    """Counts of true and false positives and negatives: tp, fp, fn, tn."""
    tn, fp, fn, tp = confusion_matrix(labels, called, labels=[0, 1]).ravel().tolist()
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def proportion(successes: int, trials: int) -> dict[str, float]:
    """A proportion as value, low, high: Wilson's score interval, 95 %.

    Source: Wilson 1927; recommended by Newcombe 1998, Statistics in Medicine 17:857.
    """
    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return {"value": successes / trials, "low": float(interval.low), "high": float(interval.high)}


def mean_proportion(successes: np.ndarray, trials: np.ndarray) -> dict[str, float]:
    """The mean of the proportions of several classes as value, low, high: Wilson's score interval, 95 %.

    The interval is that of as many trials as the mean is worth, C^2 / (1/n_1 + ... + 1/n_C); where all classes have as
    many trials, mean and interval are those of `proportion` of all trials.

    Args:
        successes: (classes,) counts.
        trials: (classes,) counts, each above 0.

    Source: Wilson 1927; effective sample size of Kish 1965, Survey Sampling, section 11.7.
    """
    value, size = float(np.mean(successes / trials)), len(trials) ** 2 / float(np.sum(1 / trials))
    centre, square = value + Z**2 / (2 * size), Z * np.sqrt(value * (1 - value) / size + Z**2 / (4 * size**2))
    low, high = ((centre + sign * square) / (1 + Z**2 / size) for sign in (-1, 1))
    return {"value": value, "low": max(0.0, float(low)), "high": min(1.0, float(high))}


def interval_text(score: dict[str, float]) -> str:
    """A value and its 95 % interval."""
    return f"{score['value']:.3f} ({score['low']:.3f}-{score['high']:.3f})"


def auc_with_interval(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve as value, low, high: DeLong's interval, 95 %, cut to [0, 1].

    DeLong's variance is 0 if the scores separate the classes perfectly, but a small set of exams does not prove that:
    the interval then is Wilson's for as many exams as the rarer class has.
    """
    areas, covariance = delong(labels, scores[None])
    auc, error = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    low, high = auc - Z * error, auc + Z * error
    if error < 1e-12:
        rarer = int(np.bincount(labels.astype(int), minlength=2).min())
        return proportion(round(auc * rarer), rarer) | {"value": auc}
    return {"value": auc, "low": max(0.0, low), "high": min(1.0, high)}


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curves of several classifiers of the same exams, and their covariance.

    Args:
        labels: (n,) 0 or 1, both present.
        scores: (classifiers, n), higher for class 1; ties count one half.

    Returns:
        Areas (classifiers,) and covariance (classifiers, classifiers).

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


def delong_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """DeLong's paired test of two classifiers by their scores (n,) of the same exams.

    Returns:
        value (area of `first` less that of `second`), low and high (95 % interval), z, and the two-sided p. z and p are
        NaN if neither area has variance, as of a perfect classifier against a constant one.
    """
    areas, covariance = delong(labels, np.stack([first, second]))
    difference = float(areas[0] - areas[1])
    error = float(np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    z = difference / error if error > 1e-12 else 0.0 if abs(difference) < 1e-12 else float("nan")
    low, high, p = difference - Z * error, difference + Z * error, float(2 * norm.sf(abs(z)))
    return {"value": difference, "low": low, "high": high, "z": z, "p": p}


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """McNemar's exact test: do two classifiers err equally often on the same exams?

    Args:
        labels: (n,) 0 or 1.
        first: (n,) classes that the first classifier calls.
        second: (n,) classes that the second classifier calls.

    Returns:
        first_only_right and second_only_right (exams), and the two-sided p of the binomial test between them.
    """
    first_right, second_right = first == labels, second == labels
    b, c = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    return {"first_only_right": b, "second_only_right": c, "p": p}


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean distance of predicted and observed frequency over bins, weighted by exams.

    Source: Naeini et al. 2015, AAAI, for the probability of class 1 in bins of equal width.
    """
    rows = calibration_bins(labels, probabilities, bins)
    return float(sum(count * abs(predicted - observed) for predicted, observed, count in rows) / len(labels))


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean probability, share of class 1, number of exams) of each bin of equal width that is not empty."""
    observed, predicted = calibration_curve(labels, probabilities, n_bins=bins)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities))
    return list(zip(predicted.tolist(), observed.tolist(), counts[counts > 0].tolist(), strict=True))


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold of the largest sensitivity + specificity; of equally good ones the nearest to 0.5.

    It lies half-way between two neighbouring probabilities, so that no exam lies on it.

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
