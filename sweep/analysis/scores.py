"""Scores of a study as one array, read from its table of volumes or exams."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of all cells of a study on one split."""

    pipelines: tuple[str, ...]
    """In the order of the study."""
    labels: np.ndarray
    """(sizes,) numbers of labels used, ascending."""
    seeds: tuple[tuple[int, int], ...]
    """(subset seed, seed) of each replicate."""
    patients: tuple[str, ...]
    """Names of the patients scored, or of the exams if there is a `truth`."""
    values: np.ndarray
    """(pipelines, sizes, seeds, patients): a patient's score, or an exam's probability; NaN where missing. Of several
    pretraining seeds (pipelines, sizes, seeds, pretraining seeds, patients); a pipeline with one encoder has the same
    values at all of them."""
    subjects: tuple[str, ...] | None = None
    """Of exams the patient of each, several of whom may be one; None: `patients`."""
    truth: np.ndarray | None = None
    """(patients,) class 0 or 1 of each exam: a cell's score is then the AUC of its probabilities."""

    @property
    def pretrainings(self) -> int:
        """Number of pretraining seeds."""
        return self.values.shape[3] if self.values.ndim == 5 else 1

    def cells(self, weights: np.ndarray | None = None, pretrain_weights: np.ndarray | None = None) -> np.ndarray:
        """Score of each cell, (pipelines, sizes, seeds), a mean over pretraining seeds; NaN where it is missing.

        Args:
            weights: (draws, patients) how often each patient counts; the result is then (draws, pipelines, ...).
            pretrain_weights: (draws, pretraining seeds) the same of each pretraining seed; None: once.
        """
        if weights is None:
            return self.cells(np.ones((1, len(self.patients))))[0]
        rows = self.values.reshape(-1, len(self.patients))
        scores = _means(rows, weights) if self.truth is None else _areas_under_roc(rows, self.truth == 1, weights)
        scores = scores.reshape(len(weights), *self.values.shape[:-1])
        if scores.ndim == 4:
            return scores
        if pretrain_weights is None:
            pretrain_weights = np.ones((len(weights), self.pretrainings))
        return nan_mean(scores, pretrain_weights[:, None, None, None])

    def of_patients(self, pipeline: int, size: int) -> np.ndarray:
        """(replicates, patients) values at one pipeline and size, of all seeds and pretraining seeds."""
        return self.values[pipeline, size].reshape(-1, len(self.patients))

    def matched(self, first: str, second: str) -> "Scores":
        """The scores of two pipelines, with NaN for every patient of a cell that either of them lacks."""
        values = self.values[[self.pipelines.index(first), self.pipelines.index(second)]]
        present = ~np.isnan(values)
        return replace(self, pipelines=(first, second), values=np.where(present.all(axis=0), values, np.nan))


def _means(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over patients, ignoring NaN: rows (cells, patients) -> (draws, cells)."""
    present = ~np.isnan(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ np.where(present, rows, 0).T) / (weights @ present.T)


def _areas_under_roc(rows: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted AUC: rows (cells, exams) -> (draws, cells); NaN in draws that lack a class.

    The share of pairs of a positive and a negative exam that are ordered correctly, ties counting one half, each pair
    weighted by how often the draw holds it (Mann and Whitney 1947).
    """
    areas = []
    for row in rows:
        w1, w0 = ((weights * ~np.isnan(row))[:, of_class] for of_class in (positive, ~positive))
        order = (1 + np.sign(np.nan_to_num(row[positive, None] - row[None, ~positive]))) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            areas.append(((w1 @ order) * w0).sum(axis=1) / (w1.sum(axis=1) * w0.sum(axis=1)))
    return np.stack(areas, axis=1)


def nan_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the last axis, ignoring NaN; NaN if no value has positive weight."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.where(present, values, 0) * weights).sum(axis=-1) / (present * weights).sum(axis=-1)


def scores_from(rows: pd.DataFrame, measure: str = "dice") -> Scores:
    """Scores from the rows of one split of a study's table of volumes or exams.

    A patient's score is the mean over volumes per class, then over the classes counted. Of several lengths of
    pretraining only a pipeline's longest counts.

    Args:
        rows: pipeline, pretrain_epochs, pretrain_seed, labels, subset_seed, seed, and either subject and
            {measure}_CLASS, or exam, label and probability.
        measure: "dice" or "jaccard"; ignored for exams.
    """
    rows = longest_pretraining(rows)
    cell = [rows["pipeline"], rows["labels"], replicates(rows)]
    exams = "probability" in rows
    groups = [*cell, rows["pretrain_seed"], rows["exam" if exams else "subject"].astype(str)]
    if exams:
        values = rows["probability"].groupby(groups, sort=False).mean()
    else:
        classes = [name for name in rows if str(name).startswith(f"{measure}_")]
        values = rows[classes].groupby(groups, sort=False).mean().mean(axis=1)
    (pipelines, labels, seeds, _, patients), array = dense(values)
    array = repeat_single(pretraining_axis(array))
    array = array[:, :, :, 0] if array.shape[3] == 1 else array
    return Scores(
        pipelines=tuple(pipelines),
        labels=np.array(labels),
        seeds=tuple(seeds),
        patients=tuple(patients),
        values=array,
        subjects=tuple(rows.groupby(rows["exam"].astype(str))["subject"].first()[patients].astype(str))
        if exams and "subject" in rows
        else None,
        truth=rows.groupby(rows["exam"].astype(str))["label"].first()[patients].to_numpy() if exams else None,
    )


def pretraining_axis(values: np.ndarray) -> np.ndarray:
    """Values (pipelines, sizes, seeds, pretraining seeds, ...) with the seeds of pipelines that have several encoders.

    A random start and ready weights have no pretraining seed, only a number in its place: their values come first on
    the axis, which is of length 1 if no pipeline has several encoders.
    """
    used = _pretrainings(values)
    several = sorted({place for places in used if len(places) > 1 for place in places.tolist()}) or [0]
    aligned = values[:, :, :, several]  # a copy
    for p, places in enumerate(used):
        if len(places) == 1:
            aligned[p] = np.nan
            aligned[p, :, :, 0] = values[p, :, :, places[0]]
    return aligned


def repeat_single(values: np.ndarray) -> np.ndarray:
    """Values of `pretraining_axis`, those of pipelines with one encoder at all pretraining seeds.

    As constants they pair up with every pretraining of another pipeline, and add no variance of pretraining.
    """
    values = values.copy()
    for of_pipeline, places in zip(values, _pretrainings(values), strict=True):
        if len(places) == 1:
            of_pipeline[:] = of_pipeline[:, :, places]
    return values


def _pretrainings(values: np.ndarray) -> list[np.ndarray]:
    """Of each pipeline the places on the axis of pretraining seeds that hold a value."""
    others = tuple(axis for axis in range(1, values.ndim) if axis != 3)
    return [np.flatnonzero(present) for present in (~np.isnan(values)).any(axis=others)]


def longest_pretraining(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of each pipeline's largest pretrain_epochs; all rows of a pipeline without pretraining epochs."""
    epochs = rows["pretrain_epochs"].astype(float)  # Parquet keeps a column of only None as objects
    longest = epochs.groupby(rows["pipeline"]).transform("max")
    return rows[longest.isna() | (epochs == longest)]


def replicates(rows: pd.DataFrame) -> pd.Series:
    """Pair (subset seed, seed) of each row."""
    return pd.Series(list(zip(rows["subset_seed"], rows["seed"], strict=True)), index=rows.index, dtype=object)


def dense(values: pd.Series) -> tuple[list[list], np.ndarray]:
    """A series with several index levels as an array with an axis for each, NaN where it has no row.

    Returns:
        The entries of each axis, the first (pipelines) in order of appearance and the others ascending; the array.
    """
    columns = [values.index.get_level_values(level) for level in range(values.index.nlevels)]
    axes = [list(dict.fromkeys(columns[0])), *(sorted(set(column)) for column in columns[1:])]
    array = np.full([len(axis) for axis in axes], np.nan)
    places = [{entry: place for place, entry in enumerate(axis)} for axis in axes]
    array[tuple([place[entry] for entry in column] for place, column in zip(places, columns, strict=True))] = values
    return axes, array
