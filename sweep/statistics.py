"""What the scores of a sweep say: means, paired differences and areas, with intervals from one joint bootstrap.

An error is 1 - score. Every interval is the 95 % percentile interval of the same draws, each of which resamples
seeds and then patients for all pipelines and sizes at once, so everything stays paired. An array of draws has
the data as they are in row 0, the estimate, and the bootstrap in the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import trim_mean


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of all cells of a study on one split."""

    pipelines: tuple[str, ...]
    """In the order of the study."""
    labels: np.ndarray
    """(sizes,) ascending: how many labels were used."""
    seeds: tuple[tuple[int, int], ...]
    """(subset seed, seed) of each replicate."""
    patients: tuple[str, ...]
    """Those scored; exams where `truth` is given."""
    values: np.ndarray
    """(pipelines, sizes, seeds, patients): a patient's score, or an exam's probability; NaN where missing.
    Probabilities of several pretraining seeds: (pipelines, sizes, seeds, pretraining seeds, patients)."""
    truth: np.ndarray | None = None
    """(patients,) 0 or 1: then a cell's score is the AUC of its probabilities, else its mean over patients."""
    training_patients: np.ndarray | None = None
    """(sizes,) patients that the labels come from; NaN where all seeds train on the same labels. None: `labels`."""

    def cells(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Score of each cell, (pipelines, sizes, seeds), NaN where it has none.

        Args:
            weights: (draws, patients) how often each patient counts; the result is then (draws, pipelines, ...).
        """
        if weights is None:
            return self.cells(np.ones((1, len(self.patients))))[0]
        rows = self.values.reshape(-1, len(self.patients))
        scores = _means(rows, weights) if self.truth is None else _areas_under_roc(rows, self.truth == 1, weights)
        scores = scores.reshape(len(weights), *self.values.shape[:-1])
        return nan_mean(scores, np.ones(scores.shape[-1])) if scores.ndim == 5 else scores

    def of_patients(self, pipeline: int, size: int) -> np.ndarray:
        """(replicates, patients) values at one pipeline and size."""
        return self.values[pipeline, size].reshape(-1, len(self.patients))

    def matched(self, first: str, second: str) -> "Scores":
        """The scores of two pipelines, each patient of each cell only where both have it."""
        values = self.values[[self.pipelines.index(first), self.pipelines.index(second)]]
        there = ~np.isnan(values)
        if values.ndim == 5:  # a pipeline without pretraining has but one of these
            there = there.any(axis=3, keepdims=True)
        return replace(self, pipelines=(first, second), values=np.where(there.all(axis=0), values, np.nan))


def _means(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the patients that are there: rows (cells, patients) -> (draws, cells)."""
    there = ~np.isnan(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.where(there, rows, 0).T) / (weights @ there.T)


def _areas_under_roc(rows: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted AUC: rows (cells, exams) -> (draws, cells); NaN in draws that lack a class.

    The share of pairs of a positive and a negative exam that are in the right order, ties one half, each pair
    counted as often as the draw holds it (Mann and Whitney 1947).
    """
    areas = []
    for row in rows:
        w1, w0 = ((weights * ~np.isnan(row))[:, own] for own in (positive, ~positive))
        order = (1 + np.sign(np.nan_to_num(row[positive, None] - row[None, ~positive]))) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            areas.append(((w1 @ order) * w0).sum(axis=1) / (w1.sum(axis=1) * w0.sum(axis=1)))
    return np.stack(areas, axis=1)


def nan_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the last axis of what is there; NaN where nothing is, or has no weight."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(there, values, 0) * weights).sum(axis=-1) / (there * weights).sum(axis=-1)


def scores_from(rows: pd.DataFrame, measure: str = "dice") -> Scores:
    """Scores from the rows of one split of a study's table of volumes or exams.

    A patient's score is the mean over volumes per class, then over the classes counted; pretraining seeds are
    averaged (for exams the AUCs are, not the probabilities, whose mean would be an ensemble). Of several lengths
    of pretraining only a pipeline's longest counts.

    Args:
        rows: pipeline, pretrain_epochs, pretrain_seed, fraction, labels, subset_seed, seed, and either subject and
            {measure}_CLASS, or exam, label and probability. Where there is a column labelled_subjects it gives
            `training_patients`.
        measure: "dice" or "jaccard"; nothing else counts for exams.
    """
    rows = longest_pretraining(rows)
    cell = [rows["pipeline"], rows["labels"], replicates(rows)]
    exams = "probability" in rows
    if exams:
        several = len(set(rows["pretrain_seed"])) > 1
        groups = [*cell, *([rows["pretrain_seed"]] if several else []), rows["exam"].astype(str)]
        values = rows["probability"].groupby(groups, sort=False).mean()
    else:
        classes = [name for name in rows if str(name).startswith(f"{measure}_")]
        per_class = rows[classes].groupby([*cell, rows["pretrain_seed"], rows["subject"].astype(str)], sort=False)
        values = per_class.mean().mean(axis=1).groupby(level=[0, 1, 2, 4], sort=False).mean()
    (pipelines, labels, seeds, *_, patients), array = dense(values)
    training = rows.get("labelled_subjects", rows["labels"]).where(rows["fraction"] < 1)
    return Scores(
        pipelines=tuple(pipelines),
        labels=np.array(labels),
        seeds=tuple(seeds),
        patients=tuple(patients),
        values=array,
        truth=rows.groupby(rows["exam"].astype(str))["label"].first()[patients].to_numpy() if exams else None,
        training_patients=training.groupby(rows["labels"]).mean()[labels].to_numpy(float),
    )


def longest_pretraining(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of each pipeline's largest pretrain_epochs; all of a pipeline that has none."""
    epochs = rows["pretrain_epochs"].astype(float)  # Parquet keeps a column of nothing but None as it is
    longest = epochs.groupby(rows["pipeline"]).transform("max")
    return rows[longest.isna() | (epochs == longest)]


def replicates(rows: pd.DataFrame) -> pd.Series:
    """(subset seed, seed) of each row."""
    return pd.Series(list(zip(rows["subset_seed"], rows["seed"], strict=True)), index=rows.index, dtype=object)


def dense(values: pd.Series) -> tuple[list[list], np.ndarray]:
    """A series with several index levels as an array with an axis for each, NaN where it has no row.

    Returns:
        The entries of each axis, pipelines (the first) as they come and the others ascending; the array.
    """
    columns = [values.index.get_level_values(level) for level in range(values.index.nlevels)]
    axes = [list(dict.fromkeys(columns[0])), *(sorted(set(column)) for column in columns[1:])]
    array = np.full([len(axis) for axis in axes], np.nan)
    places = [{entry: place for place, entry in enumerate(axis)} for axis in axes]
    array[tuple([place[entry] for entry in column] for place, column in zip(places, columns, strict=True))] = values
    return axes, array


# ---- the joint bootstrap


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Scores and how often each draw counts each seed and patient; row 0 counts each once."""

    scores: Scores
    seed_weights: np.ndarray
    """(1 + draws, seeds)."""
    patient_weights: np.ndarray
    """(1 + draws, patients)."""

    @cached_property
    def cells(self) -> np.ndarray:
        """(1 + draws, pipelines, sizes, seeds) scores."""
        return self.scores.cells(self.patient_weights)

    @cached_property
    def replicates(self) -> np.ndarray:
        """(pipelines, sizes) seeds that have a score."""
        return (~np.isnan(self.cells[0])).sum(axis=-1)

    def over_seeds(self, cells: np.ndarray) -> np.ndarray:
        """Mean over seeds of (1 + draws, ..., seeds); no draws, only row 0, where fewer than two seeds are there."""
        means = nan_mean(cells, self.seed_weights.reshape(len(cells), *[1] * (cells.ndim - 2), -1))
        means[1:, (~np.isnan(cells[0])).sum(axis=-1) < 2] = np.nan
        return means

    @cached_property
    def means(self) -> np.ndarray:
        """(1 + draws, pipelines, sizes) mean scores over seeds."""
        return self.over_seeds(self.cells)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], "Bootstrap"]:
        """The same draws for each two pipelines, with what both of them have."""
        return {
            pair: Bootstrap(
                scores=self.scores.matched(*pair), seed_weights=self.seed_weights, patient_weights=self.patient_weights
            )
            for pair in combinations(self.scores.pipelines, 2)
        }


def bootstrap(scores: Scores, draws: int = 2000, seed: int = 0) -> Bootstrap:
    """Resample seeds and patients of a study, each with replacement and independently of the other.

    Source: Owen 2007, The pigeonhole bootstrap, for crossed factors; a little wide where their interaction is large.
    """
    patients = resampled(len(scores.patients), draws, np.random.default_rng([seed, 1]))
    return Bootstrap(scores=scores, seed_weights=resampled_seeds(scores.seeds, draws, seed), patient_weights=patients)


def resampled_seeds(seeds: tuple[tuple[int, int], ...], draws: int, seed: int = 0) -> np.ndarray:
    """(1 + draws, seeds) how often each replicate counts; crossed subset seeds and seeds are drawn independently."""
    rng = np.random.default_rng([seed, 0])
    factors = [list(dict.fromkeys(factor)) for factor in zip(*seeds, strict=True)]
    if len(seeds) <= max(map(len, factors)):
        return resampled(len(seeds), draws, rng)
    subset, initial = (resampled(len(factor), draws, rng) for factor in factors)
    places = [[factors[0].index(a) for a, _ in seeds], [factors[1].index(b) for _, b in seeds]]
    return subset[:, places[0]] * initial[:, places[1]]


def resampled(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + draws, count) how often each of `count` things counts; in row 0 once each.

    A draw takes count - 1 of them with replacement, not `count`: the variance of a mean is then right, where it would
    be a third too small with three seeds.

    Source: McCarthy and Snowden 1985; Rao and Wu 1988, JASA 83:231.
    """
    size = max(1, count - 1)
    drawn = rng.multinomial(size, np.full(count, 1 / count), draws) * (count / size)
    return np.vstack([np.ones((1, count)), drawn])


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval along the first axis, row 0 left out.

    Draws that are NaN are skipped, and where half of them are there is no interval: NaN. Infinite draws count, so
    that an end is infinite where more than 2.5 % are.

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


# ---- tables


def by_size(boot: Bootstrap) -> pd.DataFrame:
    """Scores of each pipeline and size.

    Returns:
        pipeline, labels, seeds, patients, mean (over seeds), iqm (interquartile mean over all scores of seeds and
        patients; over those of seeds where a score is an AUC), sd (over seeds), low, high (of the mean), note.

    Source: Agarwal et al. 2021, rliable, for the interquartile mean.
    """
    low, high = interval(boot.means)
    rows = []
    for p, pipeline in enumerate(boot.scores.pipelines):
        for s, labels in enumerate(boot.scores.labels):
            values = boot.scores.of_patients(p, s)
            cells = _there(boot.cells[0, p, s])
            row = {
                "pipeline": pipeline,
                "labels": labels,
                "seeds": len(cells),
                "patients": int((~np.isnan(values)).any(axis=0).sum()),
                "mean": boot.means[0, p, s],
                "iqm": trim_mean(_there(values) if boot.scores.truth is None else cells, 0.25)
                if len(cells)
                else np.nan,
                "sd": cells.std(ddof=1) if len(cells) > 1 else np.nan,
                "low": low[p, s],
                "high": high[p, s],
                "note": gaps(boot, p, s),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def pairs(boot: Bootstrap) -> pd.DataFrame:
    """Paired differences of two pipelines at each size.

    Returns:
        first, second, labels, difference (score of first less second), low, high, improvement (share of the seeds
        in which first is better, ties one half), improvement_low, improvement_high, p_corrected (`nadeau_bengio`
        over the subsets of labels), note.

    Source: Agarwal et al. 2021, rliable, for the probability of improvement, here of matched seeds.
    """
    rows = []
    for (first, second), both in boot.pairs.items():
        cells = both.cells[:, 0] - both.cells[:, 1]
        difference = both.over_seeds(cells)
        improvement = both.over_seeds((1 + np.sign(np.round(cells, 12))) / 2)
        table = {
            "first": first,
            "second": second,
            "labels": boot.scores.labels,
            "difference": difference[0],
            **dict(zip(("low", "high"), interval(difference), strict=True)),
            "improvement": improvement[0],
            **dict(zip(("improvement_low", "improvement_high"), interval(improvement), strict=True)),
            "p_corrected": _corrected_p(both.scores, cells[0]),
            "note": [gaps(both, 0, s) for s in range(len(boot.scores.labels))],
        }
        rows.append(pd.DataFrame(table))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=PAIRS)


PAIRS = ("first", "second", "labels", "difference", "low", "high", "improvement", "improvement_low",
         "improvement_high", "p_corrected", "note")  # fmt: skip


def _corrected_p(scores: Scores, differences: np.ndarray) -> list[float]:
    """p of each size from differences (sizes, seeds)."""
    training = scores.labels if scores.training_patients is None else scores.training_patients
    means = [_over_subsets(scores, row) for row in differences]
    return [nadeau_bengio(mean, len(scores.patients) / n) for mean, n in zip(means, training, strict=True)]


def _over_subsets(scores: Scores, differences: np.ndarray) -> np.ndarray:
    """Differences (seeds,) averaged over the seeds of each subset of labels; what is missing is left out."""
    subset = np.array([subset for subset, _ in scores.seeds])
    return _there(nan_mean(differences, np.stack([subset == one for one in dict.fromkeys(subset.tolist())])))


def primary(boot: Bootstrap) -> pd.DataFrame:
    """The pre-declared endpoint: difference of the areas under the error curve over log2(labels), for each pair.

    p is the larger of two, that of the draws (`two_sided`) and that of a paired t test over the subsets of labels: with
    few seeds the first is too sure, while the second takes the patients for all there are.

    Returns:
        first, second, area_difference (first less second: below 0 first is better), low, high, p, p_holm (over all
        pairs), note.
    """
    rows = []
    for (first, second), both in boot.pairs.items():
        areas, note = _areas(both, 0)
        difference = areas - _areas(both, 1)[0]
        low, high = interval(difference)
        cells = both.cells[0, 1] - both.cells[0, 0]  # of errors, first less second
        sizes = measured(both, 0)
        over_seeds = _over_subsets(both.scores, _area(both.scores.labels[sizes], cells[sizes].T))
        p = np.fmax(two_sided(difference), nadeau_bengio(over_seeds, 0)) if np.isfinite(low) else np.nan
        row = {"first": first, "second": second, "area_difference": difference[0], "low": low, "high": high}
        rows.append({**row, "p": p, "note": note})
    table = pd.DataFrame(rows, columns=["first", "second", "area_difference", "low", "high", "p", "note"])
    table.insert(6, "p_holm", holm(table["p"].to_numpy(float)))
    return table.astype({"low": float, "high": float})


def areas(boot: Bootstrap) -> pd.DataFrame:
    """Area under the error curve of each pipeline over the sizes that it has: pipeline, area, low, high, note."""
    rows = []
    for p, pipeline in enumerate(boot.scores.pipelines):
        area, note = _areas(boot, p)
        low, high = interval(area)
        rows.append({"pipeline": pipeline, "area": area[0], "low": float(low), "high": float(high), "note": note})
    return pd.DataFrame(rows)


def _areas(boot: Bootstrap, pipeline: int) -> tuple[np.ndarray, str]:
    """(1 + draws,) areas of one pipeline over the sizes that it has, and a note on gaps."""
    sizes = measured(boot, pipeline)
    note = gaps(boot, pipeline) if len(sizes) > 1 else f"scores at {len(sizes)} sizes: an area needs 2 or more"
    return _area(boot.scores.labels[sizes], 1 - boot.means[:, pipeline, sizes]), note


def _area(labels: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Area under errors (..., sizes) over log2(labels), divided by its width; NaN with fewer than two sizes."""
    if len(labels) < 2:
        return np.full(errors.shape[:-1], np.nan)
    place = np.log2(labels)
    return np.trapezoid(errors, place) / (place[-1] - place[0])


def measured(boot: Bootstrap, pipeline: int) -> np.ndarray:
    """Positions of the sizes at which a pipeline has a score."""
    return np.flatnonzero(boot.replicates[pipeline])


def gaps(boot: Bootstrap, pipeline: int, size: int | None = None) -> str:
    """What is missing at one size, or at all: a sentence, or nothing."""
    sizes = range(len(boot.scores.labels)) if size is None else [size]
    counts = {int(boot.scores.labels[s]): int(boot.replicates[pipeline, s]) for s in sizes}
    none = [str(labels) for labels, count in counts.items() if count == 0]
    single = [str(labels) for labels, count in counts.items() if count == 1]
    notes = [f"no score at {', '.join(none)} labels"] if none else []
    if single:
        where = "" if len(single) == len(boot.scores.labels) else f" at {', '.join(single)} labels"
        notes.append(f"one seed{where}, so no interval")
    return "; ".join(notes)


def _there(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


# ---- tests


def two_sided(draws: np.ndarray) -> float:
    """Two-sided p of a difference: twice the share of the draws on the rarer side of 0; NaN without draws.

    It is below 0.05 where the 95 % percentile interval leaves out 0, and at least 2 / (1 + draws).

    Source: Efron and Tibshirani 1993, section 15.4; one is added to both counts as in Davison and Hinkley 1997, 4.2.
    """
    values = _there(draws[1:])
    if len(values) <= (len(draws) - 1) / 2:
        return float("nan")
    rarer = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1.0, 2 * (1 + rarer) / (1 + len(values))))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values corrected for the number of tests, in the same order; NaN is no test and stays NaN.

    The smallest is multiplied by m, the next by m - 1, and so on; none may be below the one before, or above 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    values = np.asarray(p, float)
    order = np.argsort(values)[: (count := int((~np.isnan(values)).sum()))]
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(count, 0, -1)))
    return corrected


def nadeau_bengio(differences: Sequence[float] | np.ndarray, ratio: float) -> float:
    """Two-sided p of the corrected resampled t test: does a difference differ from 0?

    t = mean / sqrt((1 / J + ratio) * variance), J - 1 degrees of freedom. Without `ratio` the test would take the
    J differences, whose training sets overlap, to be independent.

    Args:
        differences: (J,) one of each training set drawn.
        ratio: patients tested over patients trained on.

    Returns:
        p; NaN when there are fewer than two differences, they are all equal, or the ratio is NaN.

    Source: Nadeau and Bengio 2003, Machine Learning 52:239, section 3.
    """
    values = np.asarray(differences, float)
    if len(values) < 2 or (variance := values.var(ddof=1)) < 1e-24:
        return float("nan")
    t = values.mean() / np.sqrt((1 / len(values) + ratio) * variance)
    return float(2 * student.sf(abs(t), len(values) - 1))
