"""Resampling with replacement, and the intervals that it gives."""

import numpy as np


def resampled(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + draws, count) weight of each of `count` items; 1 in row 0.

    A draw takes count - 1 items with replacement, not `count`: the variance of a mean is then unbiased; with `count`
    it would be a third too small for three seeds.

    Source: McCarthy and Snowden 1985; Rao and Wu 1988, JASA 83:231.
    """
    size = max(1, count - 1)
    drawn = rng.multinomial(size, np.full(count, 1 / count), draws) * (count / size)
    return np.vstack([np.ones((1, count)), drawn])


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval along the first axis, excluding row 0 (the estimate).

    Draws that are NaN are skipped; where half of them are, the interval is NaN. Infinite draws count, so an end is
    infinite where more than 2.5 % of the draws are.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    ordered = np.sort(draws[1:], axis=0)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=0, keepdims=True)
    rank = np.floor(0.025 * (count + 1)).astype(int)
    low, high = (
        np.take_along_axis(ordered, np.clip(place, 0, len(ordered) - 1), axis=0)[0]
        for place in (rank - 1, count - rank)
    )
    enough = (count[0] > len(ordered) / 2) & (rank[0] > 0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def mean_with_interval(values: np.ndarray, draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """Mean of the values of patients and its 95 % interval over patients, as in a study: value, low and high.

    Args:
        values: (patients,), NaN for those without a value.
        draws: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Returns:
        NaN as low and high with fewer than two values, and as value without any.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    value = float(known.mean())
    if len(known) < 2:
        return {"value": value, "low": float("nan"), "high": float("nan")}
    weights = resampled(len(known), draws, np.random.default_rng([seed, 1]))
    low, high = interval(weights @ known / weights.sum(axis=1))
    return {"value": value, "low": float(low), "high": float(high)}
