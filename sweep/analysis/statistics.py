"""Tables of means, paired differences and areas under the error curve, and the tests of a difference.

An error is 1 - score. All intervals are 95 % percentile intervals of one joint bootstrap (`sweep.analysis.bootstrap`).
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import trim_mean, ttest_1samp

from sweep.analysis.bootstrap import Bootstrap, estimate, gaps, interval, measured
from sweep.analysis.scores import nan_mean


def by_size(boot: Bootstrap) -> pd.DataFrame:
    """Scores of each pipeline and size.

    Returns:
        pipeline, labels, seeds, patients, mean (over seeds), iqm (interquartile mean over all scores of seeds and
        patients; over those of seeds where a score is an AUC), sd (over seeds), low, high (of the mean), note.

    Source: Agarwal et al. 2021, rliable, for the interquartile mean.
    """
    low, high = interval(boot.means)
    rows = []
    for (p, pipeline), (s, labels) in product(enumerate(boot.scores.pipelines), enumerate(boot.scores.labels)):
        values, cells = boot.scores.of_patients(p, s), _not_nan(boot.cells[0, p, s])
        row = {
            "pipeline": pipeline,
            "labels": labels,
            "seeds": len(cells),
            "patients": int((~np.isnan(values)).any(axis=0).sum()),
            "mean": boot.means[0, p, s],
            "iqm": np.nan,
            "sd": cells.std(ddof=1) if len(cells) > 1 else np.nan,
        }
        if len(cells):
            row["iqm"] = trim_mean(_not_nan(values) if boot.scores.truth is None else cells, 0.25)
        rows.append(row | {"low": low[p, s], "high": high[p, s], "note": gaps(boot, p, s)})
    return pd.DataFrame(rows)


def pairs(boot: Bootstrap) -> pd.DataFrame:
    """Paired differences of two pipelines at each size.

    Returns:
        first, second, labels, difference (score of first less second), low, high, improvement (share of the seeds
        in which first is better, ties counting one half), improvement_low, improvement_high, note.

    Source: Agarwal et al. 2021, rliable, for the probability of improvement, here of matched seeds.
    """
    tables = []
    for (first, second), both in boot.pairs.items():
        cells = both.cells[:, 0] - both.cells[:, 1]
        columns = {
            "first": first,
            "second": second,
            "labels": boot.scores.labels,
            **estimate("difference", both.over_seeds(cells)),
            **estimate("improvement", both.over_seeds((1 + np.sign(np.round(cells, 12))) / 2), "improvement_"),
            "note": [gaps(both, 0, s) for s in range(len(boot.scores.labels))],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=PAIRS)


PAIRS = ("first", "second", "labels", "difference", "low", "high", "improvement", "improvement_low",
         "improvement_high", "note")  # fmt: skip


def gains(boot: Bootstrap) -> pd.DataFrame:
    """What labels are worth to each pipeline: its score at its largest size less that at its smallest.

    Returns:
        pipeline, fewest and most (labels), gain, low, high; a row for each pipeline with scores at two sizes or more.
        Seeds and patients are paired.
    """
    rows = []
    for p, pipeline in enumerate(boot.scores.pipelines):
        if len(sizes := measured(boot, p)) > 1:
            cells = boot.cells[:, p, sizes[-1]] - boot.cells[:, p, sizes[0]]
            fewest, most = (boot.scores.labels[s] for s in (sizes[0], sizes[-1]))
            rows.append(
                {"pipeline": pipeline, "fewest": fewest, "most": most} | estimate("gain", boot.over_seeds(cells))
            )
    return pd.DataFrame(rows, columns=["pipeline", "fewest", "most", "gain", "low", "high"])


def primary(boot: Bootstrap) -> pd.DataFrame:
    """The pre-declared endpoint: difference of the areas under the error curve over log2(labels), for each pair.

    p is the larger of two: that of the draws (`two_sided`), which is too small with few seeds, and that of a paired t
    test over the subsets of labels, which ignores that the patients are a sample.

    Returns:
        first, second, area_difference (first less second: below 0 first is better), low, high, p, p_holm (over all
        pairs), note.
    """
    rows = []
    for (first, second), both in boot.pairs.items():
        areas, note = _areas(both, 0)
        difference = areas - _areas(both, 1)[0]
        row = {"first": first, "second": second, **estimate("area_difference", difference)}
        cells = both.cells[0, 1] - both.cells[0, 0]  # of errors, first less second
        sizes = measured(both, 0)
        over_seeds = _area(both.scores.labels[sizes], cells[sizes].T)
        subsets = np.array([subset_seed for subset_seed, _ in both.scores.seeds])
        over_subsets = nan_mean(over_seeds, np.stack([subsets == one for one in dict.fromkeys(subsets.tolist())]))
        p = np.fmax(two_sided(difference), _t_test(over_subsets)) if np.isfinite(row["low"]) else np.nan
        rows.append({**row, "p": p, "note": note})
    table = pd.DataFrame(rows, columns=["first", "second", "area_difference", "low", "high", "p", "note"])
    table.insert(6, "p_holm", holm(table["p"].to_numpy(float)))
    return table.astype({"low": float, "high": float})


def areas(boot: Bootstrap) -> pd.DataFrame:
    """Area under the error curve of each pipeline over its measured sizes: pipeline, area, low, high, note."""
    by_pipeline = {pipeline: _areas(boot, p) for p, pipeline in enumerate(boot.scores.pipelines)}
    return pd.DataFrame(
        [{"pipeline": name, **estimate("area", area), "note": note} for name, (area, note) in by_pipeline.items()]
    )


def _areas(boot: Bootstrap, pipeline: int) -> tuple[np.ndarray, str]:
    """(1 + draws,) areas of one pipeline over its measured sizes, and a note on gaps."""
    sizes = measured(boot, pipeline)
    note = gaps(boot, pipeline) if len(sizes) > 1 else f"scores at {len(sizes)} sizes: an area needs 2 or more"
    return _area(boot.scores.labels[sizes], 1 - boot.means[:, pipeline, sizes]), note


def _area(labels: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Area under errors (..., sizes) over log2(labels), divided by its width; NaN with fewer than two sizes."""
    if len(labels) < 2:
        return np.full(errors.shape[:-1], np.nan)
    place = np.log2(labels)
    return np.trapezoid(errors, place) / (place[-1] - place[0])


def oriented(table: pd.DataFrame, pipelines: Sequence[str]) -> pd.DataFrame:
    """Orient differences so that the pipeline later in the study is compared with the earlier one (the baseline).

    Args:
        table: rows of `pairs` (first less second of the score) or `primary` (of the area under the error).
        pipelines: those of the table, the baselines first.

    Returns:
        pipeline, baseline, difference (of the score; above 0 the pipeline is better), low, high, and the other columns;
        "improvement" is then that of `pipeline`.
    """
    table = table.copy()
    if "area_difference" in table:  # a difference of errors: that of scores has the opposite sign
        table["difference"] = -table.pop("area_difference")
        table["low"], table["high"] = -table["high"], -table["low"]
    order = list(pipelines)
    swapped = np.array(
        [order.index(a) < order.index(b) for a, b in zip(table["first"], table["second"], strict=True)], bool
    )
    first, second = table.pop("first"), table.pop("second")
    table.insert(0, "pipeline", second.where(swapped, first))
    table.insert(1, "baseline", first.where(swapped, second))
    for name, prefix, whole in (("difference", "", 0), ("improvement", "improvement_", 1)):
        if name in table:
            turned = whole - table.loc[swapped, [name, f"{prefix}high", f"{prefix}low"]]
            table.loc[swapped, [name, f"{prefix}low", f"{prefix}high"]] = turned.to_numpy()
    return table


def decided(row: Mapping[Any, Any], no_effect: float = 0) -> bool:
    """Whether a row's interval excludes `no_effect` and its p value corrected by Holm, if any, is below 0.05."""
    return bool((row["low"] > no_effect or row["high"] < no_effect) and not row.get("p_holm", 0) >= 0.05)


def _not_nan(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


# ---- tests


def two_sided(draws: np.ndarray) -> float:
    """Two-sided p of a difference: twice the share of the draws on the rarer side of 0; NaN without draws.

    It is below 0.05 where the 95 % percentile interval excludes 0, and at least 2 / (1 + draws).

    Source: Efron and Tibshirani 1993, section 15.4; one is added to both counts as in Davison and Hinkley 1997, 4.2.
    """
    values = _not_nan(draws[1:])
    if len(values) <= (len(draws) - 1) / 2:
        return float("nan")
    rarer = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1.0, 2 * (1 + rarer) / (1 + len(values))))


def _t_test(differences: np.ndarray) -> float:
    """p of the t test that the mean is 0, ignoring NaN; NaN with fewer than two differences, or if all are equal."""
    values = _not_nan(differences)
    constant = len(values) < 2 or values.std(ddof=1) < 1e-12
    return float("nan") if constant else float(ttest_1samp(values, 0).pvalue)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values corrected for the number of tests, in the same order; NaN is not counted as a test and stays NaN.

    The smallest is multiplied by m, the next by m - 1, and so on; none is below the one before, or above 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    values = np.asarray(p, float)
    order = np.argsort(values)[: (count := int((~np.isnan(values)).sum()))]
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(count, 0, -1)))
    return corrected
