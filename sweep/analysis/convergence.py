"""How fast runs learn: steps to a common reference score, speed-ups between pipelines, areas under validation curves.

All intervals resample seeds and pretraining seeds, with the draws of `sweep.analysis.bootstrap`; validation scores are
not stored by patient. A step is that of the first validation with the score, so its resolution is the distance between
validations.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import CensoredData, ecdf

from sweep.analysis.bootstrap import estimate, resampled_pretrainings, resampled_seeds
from sweep.analysis.scores import dense, longest_pretraining, nan_mean, pretraining_axis, repeat_single, replicates

LEVELS = (0.9, 0.95, 0.98)
"""Shares of the reference score."""
LEVEL = 0.95
"""The one of `LEVELS` that the report's summary and figure use."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Validation curves of all cells of a study."""

    pipelines: tuple[str, ...]
    labels: np.ndarray
    """(sizes,) ascending."""
    seeds: tuple[tuple[int, int], ...]
    """(subset seed, seed) of each replicate."""
    pretrainings: int = 1
    """Number of pretraining seeds."""
    steps: np.ndarray
    """(validations,) optimiser steps, ascending."""
    scores: np.ndarray
    """(pipelines, sizes, runs, validations), the runs being those of the first seed with each pretraining seed, of the
    second seed, and so on; NaN where a run is missing or was not validated."""

    @cached_property
    def repeated(self) -> "Runs":
        """The curves, those of a pipeline with one encoder at all pretraining seeds, see `repeat_single`."""
        shape = (*self.scores.shape[:2], len(self.seeds), self.pretrainings, len(self.steps))
        return replace(self, scores=repeat_single(self.scores.reshape(shape)).reshape(self.scores.shape))

    def weights(self, draws: int, seed: int) -> np.ndarray:
        """(1 + draws, runs) weight of each run, the product of those of its seed and of its pretraining seed."""
        by_seed = resampled_seeds(self.seeds, draws, seed)
        by_pretraining = resampled_pretrainings(self.pretrainings, draws, seed)
        return (by_seed[:, :, None] * by_pretraining[:, None]).reshape(len(by_seed), -1)

    def any_pretraining(self, runs: np.ndarray) -> np.ndarray:
        """(seeds,) whether any run of each seed is among `runs` (runs,)."""
        return np.asarray(runs.reshape(-1, self.pretrainings).any(axis=1))

    @property
    def final(self) -> np.ndarray:
        """(pipelines, sizes, runs) score at the last step validated."""
        place = (~np.isnan(self.scores) * np.arange(len(self.steps))).argmax(axis=-1)
        return np.take_along_axis(self.scores, place[..., None], axis=-1)[..., 0]

    @property
    def spacing(self) -> float:
        """Steps between two validations, the median of a size; of several sizes the largest."""
        validated = (~np.isnan(self.scores)).any(axis=(0, 2))
        gaps = [np.median(np.diff(np.append(0, self.steps[of_size]))) for of_size in validated if of_size.any()]
        return float(max(gaps, default=np.nan))

    @property
    def reference(self) -> np.ndarray:
        """(sizes,) common reference: the best pipeline's final score, mean over seeds; the same in every draw."""
        means = nan_mean(self.final, np.ones(self.scores.shape[2]))
        return np.where(np.isnan(means), -np.inf, means).max(axis=0)


def runs_from(curves: pd.DataFrame) -> Runs:
    """Validation curves from the rows of `curves.parquet`."""
    rows = _of_all_folds(longest_pretraining(curves))
    groups = [rows["pipeline"], rows["labels"], replicates(rows), rows["pretrain_seed"], rows["step"]]
    (pipelines, labels, seeds, _, steps), scores = dense(rows["score"].groupby(groups, sort=False).mean())
    scores = pretraining_axis(scores)
    return Runs(
        pipelines=tuple(pipelines),
        labels=np.array(labels),
        seeds=tuple(seeds),
        pretrainings=scores.shape[3],
        steps=np.array(steps, float),
        scores=scores.reshape(*scores.shape[:2], -1, len(steps)),
    )


def _of_all_folds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that every fold of the study has: a mean over fewer folds would be one over other patients."""
    if "fold" not in rows:
        return rows
    run = ["pipeline", "labels", "subset_seed", "seed", "pretrain_seed"]
    folds = rows.groupby(run, dropna=False)["fold"].transform("nunique")
    return rows[folds == rows["fold"].nunique()]


def steps_to(runs: Runs, level: float) -> tuple[np.ndarray, np.ndarray]:
    """First validated step at which each run scores `level` times the common reference of its size.

    Returns:
        (pipelines, sizes, runs) steps, the last one validated where the run never does (right-censored), NaN where
        it is missing; and whether it does.
    """
    above = runs.scores >= level * runs.reference[:, None, None] - 1e-12
    reached = np.asarray(above.any(axis=-1))
    last = np.where(np.isnan(runs.scores), -1, runs.steps).max(axis=-1)
    return np.where(reached, runs.steps[above.argmax(axis=-1)], np.where(last < 0, np.nan, last)), reached


def share_reached(steps: np.ndarray, reached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan-Meier estimate of the share of runs that have reached a score, against steps.

    Args:
        steps: (runs,) step at which it was reached, or the last step of the run.
        reached: (runs,) whether it was reached.

    Returns:
        Steps, ascending, and the share from each of them on.

    Source: Kaplan and Meier 1958, JASA 53:457; `scipy.stats.ecdf`.
    """
    curve = ecdf(CensoredData(uncensored=steps[reached], right=steps[~reached])).cdf
    return curve.quantiles, curve.probabilities


def median_steps(steps: np.ndarray, reached: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kaplan-Meier median: the first step at which at least half of the runs have reached the score, for many draws.

    Args:
        steps: (runs,) as in `share_reached`.
        reached: (runs,).
        weights: (draws, runs) weight of each run.

    Returns:
        (draws,); infinite where fewer than half reach, NaN where no run has weight.
    """
    times = np.unique(steps[reached])
    events = weights @ ((steps[:, None] == times) & reached[:, None])
    at_risk = weights @ (steps[:, None] >= times)
    survival = np.cumprod(1 - events / np.maximum(at_risk, 1e-12), axis=1)
    half = np.column_stack([survival <= 0.5 + 1e-9, np.ones(len(weights), bool)])
    return np.where(weights.sum(axis=1) > 0, np.append(times, np.inf)[half.argmax(axis=1)], np.nan)


def steps(runs: Runs, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Steps to `LEVELS` of the common reference.

    Returns:
        pipeline, labels, level, reference (score), median (Kaplan-Meier; NaN when not reached), low (at most the last
        step), high (infinite when not reached), reached (runs that do), runs, note.
    """
    weights, reference, whole = runs.weights(draws, seed), runs.reference, runs.repeated
    taken = {level: steps_to(whole, level) for level in LEVELS}
    made = ~np.isnan(runs.final)
    rows = []
    for (p, pipeline), (s, labels), level in product(enumerate(runs.pipelines), enumerate(runs.labels), LEVELS):
        step, reached = (values[p, s] for values in taken[level])
        present = ~np.isnan(step)
        medians = median_steps(step[present], reached[present], weights[:, present])
        seeds = runs.any_pretraining(present)
        row = {"pipeline": pipeline, "labels": labels, "level": level, "reference": reference[s]}
        row |= _estimate("median", medians, seeds)
        row["median"] = np.nan if medians[0] == np.inf else medians[0]
        if row["low"] == np.inf:  # all that is known is that the runs were too short
            row["low"] = float(step[present].max())
        row |= {"reached": int((reached & made[p, s]).sum()), "runs": int(made[p, s].sum())}
        rows.append({**row, "note": _gap(seeds)})
    return pd.DataFrame(rows)


def speedups(runs: Runs, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How many times fewer steps the first of two pipelines takes to a level, geometric mean over matched runs.

    Where one run of a pair never reaches the level, its last step is used, which bounds the ratio; a pair in which
    neither run does is left out.

    Returns:
        first, second, labels, level, ratio (steps of second over steps of first: above 1 first is faster), low, high
        (infinite or 0 where bounded), bound (">=": second did not reach in some pairs; "<=": first did not), note.
    """
    weights, whole = runs.weights(draws, seed), runs.repeated
    taken = {level: steps_to(whole, level) for level in LEVELS}
    rows = []
    for pair, (s, labels), level in product(
        combinations(range(len(runs.pipelines)), 2), enumerate(runs.labels), LEVELS
    ):
        step, reached = (values[list(pair), s] for values in taken[level])
        first, second = (runs.pipelines[p] for p in pair)
        row = {"first": first, "second": second, "labels": labels, "level": level}
        rows.append({**row, **_speedup(runs, step, reached, weights)})
    return pd.DataFrame(rows, columns=["first", "second", "labels", "level", "ratio", "low", "high", "bound", "note"])


def _speedup(runs: Runs, step: np.ndarray, reached: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """ratio, low, high, bound and note of `speedups` for the steps (2, runs) of two pipelines."""
    present = ~np.isnan(step).any(axis=0)
    use = present & reached.any(axis=0)
    first_fails, second_fails = (use & ~reached).any(axis=1)
    row: dict[str, Any] = {"ratio": np.nan, "low": np.nan, "high": np.nan, "bound": ""}
    row["note"] = _gap(runs.any_pretraining(present))
    if not use.any():
        return row | ({"note": "no run reached the level"} if present.any() else {})
    if first_fails and second_fails:
        return row | {"note": "each pipeline fails to reach the level in some runs, so the ratio is unknown"}
    logs = np.where(use, np.diff(np.log(np.maximum(step, 1)), axis=0)[0], np.nan)
    row |= _estimate("ratio", np.exp(nan_mean(logs, weights)), runs.any_pretraining(use))
    if not np.isnan(row["low"]):  # a single usable pair has no interval
        row |= ({"low": 0.0} if first_fails else {}) | ({"high": np.inf} if second_fails else {})
    if left_out := int((present & ~use).sum()):
        row["note"] = f"{left_out} of {present.sum()} pairs left out: neither run reached the level"
    return row | {"bound": "<=" if first_fails else ">=" if second_fails else ""}


def cell_areas(runs: Runs) -> np.ndarray:
    """(pipelines, sizes, runs) area under each validation curve over its width; NaN with fewer than two points."""
    present = ~np.isnan(runs.scores)
    areas = np.full(present.shape[:-1], np.nan)
    for place in zip(*np.nonzero(present.sum(axis=-1) > 1), strict=True):
        validated = present[place]
        x = runs.steps[validated]
        areas[place] = np.trapezoid(runs.scores[place][validated], x) / (x[-1] - x[0])
    return areas


def curve_areas(runs: Runs, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean area under the validation curve: pipeline, labels, area, low, high, note.

    The area is divided by the steps that the curve spans, so it is a mean score over training.
    """
    weights, areas = runs.weights(draws, seed), cell_areas(runs.repeated)
    rows = []
    for (p, pipeline), (s, labels) in product(enumerate(runs.pipelines), enumerate(runs.labels)):
        seeds = runs.any_pretraining(~np.isnan(areas[p, s]))
        row = {"pipeline": pipeline, "labels": labels, **_estimate("area", nan_mean(areas[p, s], weights), seeds)}
        rows.append({**row, "note": _gap(seeds)})
    return pd.DataFrame(rows)


def _estimate(name: str, draws: np.ndarray, seeds: np.ndarray) -> dict[str, float]:
    """A number with its interval, which is NaN unless two `seeds` (seeds,) or more have a run."""
    return estimate(name, draws) | ({"low": np.nan, "high": np.nan} if seeds.sum() < 2 else {})


def _gap(seeds: np.ndarray) -> str:
    """A note on too few `seeds` (seeds,) with a run; empty if there are two or more."""
    return {0: "no run", 1: "one seed, so no interval"}.get(int(seeds.sum()), "")
