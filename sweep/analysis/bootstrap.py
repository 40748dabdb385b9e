"""The joint bootstrap: every interval of a study comes from the same draws of seeds, pretraining seeds and patients.

An error is 1 - score. Each draw resamples the three factors for all pipelines and sizes at once, so everything stays
paired. An array of draws holds the estimate from the data themselves in row 0, and the bootstrap in the others.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from core.errors import UserError
from core.resampling import interval as interval
from core.resampling import resampled as resampled
from sweep.analysis.scores import Scores, nan_mean

MOST_DRAWS = 100_000
"""More resamples take gigabytes and change no interval visibly."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Scores, and the weights of every seed, pretraining seed and patient in each draw; row 0 weights each by 1."""

    scores: Scores
    seed_weights: np.ndarray
    """(1 + draws, seeds)."""
    pretrain_weights: np.ndarray
    """(1 + draws, pretraining seeds); all 1 where there is one."""
    patient_weights: np.ndarray
    """(1 + draws, patients)."""

    @cached_property
    def cells(self) -> np.ndarray:
        """(1 + draws, pipelines, sizes, seeds) scores."""
        return self.scores.cells(self.patient_weights, self.pretrain_weights)

    @cached_property
    def replicates(self) -> np.ndarray:
        """(pipelines, sizes) seeds that have a score."""
        return (~np.isnan(self.cells[0])).sum(axis=-1)

    def over_seeds(self, cells: np.ndarray) -> np.ndarray:
        """Mean over seeds of (1 + draws, ..., seeds); with fewer than two seeds all rows but row 0 are NaN."""
        means = nan_mean(cells, self.seed_weights.reshape(len(cells), *[1] * (cells.ndim - 2), -1))
        means[1:, (~np.isnan(cells[0])).sum(axis=-1) < 2] = np.nan
        return means

    @cached_property
    def means(self) -> np.ndarray:
        """(1 + draws, pipelines, sizes) mean scores over seeds."""
        return self.over_seeds(self.cells)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], "Bootstrap"]:
        """The same draws for each pair of pipelines, on the cells and patients that both have."""
        return {
            pair: replace(self, scores=self.scores.matched(*pair)) for pair in combinations(self.scores.pipelines, 2)
        }


def require_resamples(draws: int, seed: int) -> None:
    """Raise a UserError unless the number of resamples and the random seed of the bootstrap are sensible."""
    if not 100 <= draws <= MOST_DRAWS or seed < 0:
        limits = f"--draws takes 100 to {MOST_DRAWS:,}, --seed 0 or more"
        raise UserError(f"--draws {draws} --seed {seed}: {limits}")


def bootstrap(scores: Scores, draws: int = 2000, seed: int = 0) -> Bootstrap:
    """Resample seeds, pretraining seeds and patients of a study, each with replacement and independently of the others.

    The exams of one patient are drawn together.

    Source: Owen 2007, The pigeonhole bootstrap, for crossed factors. The intervals are slightly
    too wide where the interaction is large.
    """
    subjects = [*dict.fromkeys(scores.subjects or scores.patients)]
    of_subjects = resampled(len(subjects), draws, np.random.default_rng([seed, 1]))
    place = {subject: k for k, subject in enumerate(subjects)}
    patients = of_subjects[:, [place[subject] for subject in scores.subjects or scores.patients]]
    return Bootstrap(
        scores=scores,
        seed_weights=resampled_seeds(scores.seeds, draws, seed),
        pretrain_weights=resampled_pretrainings(scores.pretrainings, draws, seed),
        patient_weights=patients,
    )


def resampled_seeds(seeds: tuple[tuple[int, int], ...], draws: int, seed: int = 0) -> np.ndarray:
    """(1 + draws, seeds) weight of each replicate; crossed subset seeds and seeds are drawn independently."""
    rng = np.random.default_rng([seed, 0])
    factors = [list(dict.fromkeys(factor)) for factor in zip(*seeds, strict=True)]
    if len(seeds) <= max(map(len, factors)):
        return resampled(len(seeds), draws, rng)
    subset, initial = (resampled(len(factor), draws, rng) for factor in factors)
    places = [[factors[0].index(a) for a, _ in seeds], [factors[1].index(b) for _, b in seeds]]
    return subset[:, places[0]] * initial[:, places[1]]


def resampled_pretrainings(count: int, draws: int, seed: int = 0) -> np.ndarray:
    """(1 + draws, count) weight of each of `count` pretraining seeds."""
    return resampled(count, draws, np.random.default_rng([seed, 3]))


def estimate(name: str, draws: np.ndarray, prefix: str = "") -> dict[str, Any]:
    """A number from its draws as columns of a table: the estimate (row 0) as `name`, its interval as low and high."""
    low, high = interval(draws)
    return {name: draws[0], f"{prefix}low": low[()], f"{prefix}high": high[()]}  # a number where draws has one axis


def measured(boot: Bootstrap, pipeline: int) -> np.ndarray:
    """Positions of the sizes at which a pipeline has a score."""
    return np.flatnonzero(boot.replicates[pipeline])


def gaps(boot: Bootstrap, pipeline: int, size: int | None = None) -> str:
    """A note on missing scores at one size, or at all sizes; empty if none is missing."""
    sizes = range(len(boot.scores.labels)) if size is None else [size]
    counts = {int(boot.scores.labels[s]): int(boot.replicates[pipeline, s]) for s in sizes}
    none = [str(labels) for labels, count in counts.items() if count == 0]
    single = [str(labels) for labels, count in counts.items() if count == 1]
    notes = [f"no score at {', '.join(none)} labels"] if none else []
    if single:
        where = "" if len(single) == len(boot.scores.labels) else f" at {', '.join(single)} labels"
        notes.append(f"one seed{where}, so no interval")
    return "; ".join(notes)
