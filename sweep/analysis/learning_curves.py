"""Tables of a study's learning curves: fits, bands, bends, labels saved and back-tests of the forecasts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sweep.analysis.bootstrap import Bootstrap, estimate, gaps, interval, measured
from sweep.analysis.curve_fitting import MODELS, SUPPORT, Curve, aicc, fit, seed_variance

REACH = 4.0
"""Extrapolate at most this many times beyond the largest measured size."""


def fits(boot: Bootstrap) -> pd.DataFrame:
    """Every model fitted to every pipeline.

    Returns:
        pipeline, model, alpha, alpha_low, alpha_high, the same of eta and gamma, aicc, best (of the pipeline's
        models, by AICc), note.
    """
    rows = []
    for curves in zip(*(fit(boot, model) for model in MODELS), strict=True):
        least = np.nanmin([np.inf, *(curve.aicc for curve in curves)])
        for curve in curves:
            row: dict[str, object] = {"pipeline": curve.pipeline, "model": curve.model}
            for name in ("alpha", "eta", "gamma"):
                row |= estimate(name, getattr(curve, name), f"{name}_")
            rows.append({**row, "aicc": curve.aicc, "best": curve.aicc == least, "note": curve.note})
    return pd.DataFrame(rows)


def bands(curves: Sequence[Curve], points: int = 61) -> pd.DataFrame:
    """Fitted curves with their intervals, from the smallest size to `REACH` times the largest.

    Returns:
        pipeline, labels (`points` of them, equally spaced in log), error, low, high, extrapolated; no rows for a
        pipeline that was not fitted.
    """
    tables = []
    for curve in curves:
        if curve.fitted:
            labels = np.geomspace(curve.labels[0], REACH * curve.labels[-1], points)
            table = {"pipeline": curve.pipeline, "labels": labels, **estimate("error", curve.error(labels))}
            tables.append(pd.DataFrame({**table, "extrapolated": labels > curve.labels[-1] * (1 + 1e-9)}))
    columns = ["pipeline", "labels", "error", "low", "high", "extrapolated"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def bends(boot: Bootstrap, points: int = 61) -> pd.DataFrame:
    """Where the power law changes: two straight pieces of log error over log labels, compared with one.

    Args:
        points: number of positions tried for the bend, from the second to the last but one size, equally spaced in log.

    Returns:
        pipeline, labels (at which the pieces meet), low, high, slope_before, slope_after, delta_aicc (AICc of one
        piece less that of two: a bend is reported from `SUPPORT` on), holds (a sentence on where a power law holds),
        note.
        Each piece holds at least two sizes, so 4 are needed.
    """
    rows = []
    for p, pipeline in enumerate(boot.scores.pipelines):
        sizes = measured(boot, p)
        row: dict[str, object] = {**dict.fromkeys(BENDS, np.nan), "pipeline": pipeline, "holds": ""}
        if len(sizes) < 4:
            row["note"] = f"scores at {len(sizes)} sizes: a bend needs 4 or more"
        else:
            errors, cells = 1 - boot.means[:, p, sizes], 1 - boot.cells[0, p, sizes]
            row |= {**_bend(boot.scores.labels[sizes], errors, cells, points), "note": gaps(boot, p)}
        rows.append(row)
    return pd.DataFrame(rows, columns=BENDS)


BENDS = ["pipeline", "labels", "low", "high", "slope_before", "slope_after", "delta_aicc", "holds", "note"]


def _bend(labels: np.ndarray, errors: np.ndarray, cells: np.ndarray, points: int) -> dict[str, object]:
    """The columns labels to holds of `bends` from mean errors (draws, sizes) and errors of cells (sizes, seeds)."""
    place, logs = np.log(labels), _log(errors)
    deviation = np.sqrt(seed_variance(cells)) / np.exp(logs[0])  # standard deviation of the logarithm, to first order
    weights = (~np.isnan(cells)).sum(axis=1) / deviation**2
    at = np.linspace(place[1], place[-2], points)
    one = np.stack([np.ones_like(place), place], axis=1)
    two = np.stack([np.column_stack([one, np.maximum(0, place - bend)]) for bend in at])
    line, _ = _straight(one[None], logs[:1], weights)
    pieces, loss = _straight(two, logs, weights)
    best = loss.argmin(axis=1)
    _, before, turn = piece = pieces[0, best[0]]
    single, double = (
        aicc((_log(cells) - fitted[:, None]) / deviation[:, None], parameters)
        for fitted, parameters in ((one @ line[0, 0], 3), (two[best[0]] @ piece, 5))
    )
    row = estimate("labels", np.where(np.isnan(logs).any(axis=1), np.nan, np.exp(at[best])))
    row |= {"slope_before": before, "slope_after": before + turn, "delta_aicc": single - double}
    return {**row, "holds": _holds(row, labels, line[0, 0, 1])}


def _log(errors: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(errors, 1e-6))


def _straight(designs: np.ndarray, logs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of logs (draws, sizes) on designs (designs, sizes, k): coefficients, sums of squares."""
    root = np.sqrt(weights / weights.sum())
    solve = np.linalg.pinv(designs * root[:, None])
    coefficients = np.einsum("gks,ds->dgk", solve, logs * root)
    residuals = logs[:, None] - np.einsum("gsk,dgk->dgs", designs, coefficients)
    return coefficients, (residuals * root) ** 2 @ np.ones(len(root))


def _holds(bend: dict, labels: np.ndarray, slope: float) -> str:
    """Where the power law holds, in words."""
    if np.isnan(bend["delta_aicc"]):
        return "too few scores to tell one power law from two"
    if not bend["delta_aicc"] >= SUPPORT:
        return (
            f"one power law, error ~ labels^{slope:.2f}, describes all sizes from {labels[0]} to {labels[-1]}; "
            "no bend is seen"
        )
    between = "" if np.isnan(bend["low"]) else f" (95 % interval {bend['low']:.0f} to {bend['high']:.0f})"
    return (
        f"the power law bends at {bend['labels']:.0f} labels{between}: error ~ labels^{bend['slope_before']:.2f} "
        f"before, labels^{bend['slope_after']:.2f} after"
    )


def multipliers(boot: Bootstrap) -> pd.DataFrame:
    """How many times fewer labels a pipeline needs to equal another at n labels.

    The smallest number of labels with which the baseline reaches its least error up to n, over that with which the
    pipeline does: both the smallest, or a plateau, where noise makes some size the best, would save labels of itself.
    Between the measured sizes log error is interpolated linearly over log labels; nothing is extrapolated.

    Returns:
        pipeline, baseline, labels (n), multiplier (above 1: labels saved), low, high (0 and infinite where open), bound
        (">=": better than the baseline already with the fewest labels; "<=": not as good with the most), note.
    """
    tables = []
    for pair, both in boot.pairs.items():
        for k, baseline in ((0, 1), (1, 0)):
            sizes = measured(both, k)
            if not len(sizes):
                continue
            labels = boot.scores.labels[sizes].astype(float)
            table = pd.DataFrame({"pipeline": pair[k], "baseline": pair[baseline], "labels": boot.scores.labels[sizes]})
            own, target = (1 - both.means[:, index, sizes] for index in (k, baseline))
            target = np.minimum.accumulate(target, axis=1)
            needed = equal_labels(labels, target, target)
            with np.errstate(divide="ignore"):
                saved = needed / equal_labels(labels, own, target)
            point, (low, high) = saved[0], interval(saved)
            # The bounds that the two ends of a curve give, which the multiplier is truly above or below.
            at_least, at_most = np.nextafter(needed[0] / labels[0], np.inf), np.nextafter(needed[0] / labels[-1], 0)
            table["multiplier"] = np.select([point == np.inf, point == 0], [at_least, at_most], point)
            table["low"], table["high"] = np.where(low == np.inf, at_least, low), np.where(high == 0, at_most, high)
            table["bound"] = np.select([point == np.inf, point == 0], [">=", "<="], "")
            table["note"] = gaps(both, k)
            tables.append(table)
    columns = ["pipeline", "baseline", "labels", "multiplier", "low", "high", "bound", "note"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def equal_labels(labels: np.ndarray, errors: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Smallest number of labels at which one error curve equals another's error at each size.

    Args:
        labels: (sizes,).
        errors: (draws, sizes) of the curve searched, interpolated in log-log.
        other: (draws, sizes) errors to equal.

    Returns:
        (draws, sizes); 0 where the first of `errors` is already as low, infinite where none is, NaN where a size is
        missing.
    """
    place, target = np.log(labels), _log(other)
    lowest = np.minimum.accumulate(_log(errors), axis=1)
    reached = lowest[:, None, :] <= target[:, :, None] + 1e-12  # (draws, target, size)
    after = np.clip(reached.argmax(axis=2), min(1, len(labels) - 1), None)
    above, below = (np.take_along_axis(lowest, index, axis=1) for index in (after - 1, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip((above - target) / (above - below), 0, 1)
    equal = np.exp(place[after - 1] + share * (place[after] - place[after - 1]))
    below_first = lowest[:, :1] < target - 1e-12
    conditions = [below_first, reached[:, :, 0], ~reached.any(axis=2)]
    equal = np.select(conditions, [0.0, labels[0], np.inf], equal)
    return np.where(np.isnan(errors).any(axis=1, keepdims=True) | np.isnan(other), np.nan, equal)


def backtest(boot: Bootstrap, seed: int = 0) -> pd.DataFrame:
    """Test of the forecasts: fit the first 3, 4, ... sizes and predict the error at each larger one.

    low and high are an interval for the mean of the seeds that were run: the fit's draws of seeds, plus the noise of
    that mean. Patients are not drawn, as the same ones score both sides.

    Returns:
        pipeline, fitted_on (largest size used), labels, observed and predicted error, low, high, inside.
    """
    rng = np.random.default_rng([seed, 2])
    boot = replace(boot, patient_weights=np.ones_like(boot.patient_weights))
    rows: list[dict[str, Any]] = []
    for last in boot.scores.labels[2:-1]:
        for p, curve in enumerate(fit(boot, largest=last)):
            if not curve.fitted or curve.labels[-1] != last:
                continue
            sizes = measured(boot, p)
            noise = np.sqrt(seed_variance(1 - boot.cells[0, p, sizes]) / boot.replicates[p, sizes])
            for s, deviation in zip(sizes, noise, strict=True):
                if (labels := boot.scores.labels[s]) > last:
                    predicted = curve.error([labels])[:, 0]
                    noisy = predicted + deviation * rng.standard_normal(len(predicted))
                    row = {"pipeline": curve.pipeline, "fitted_on": last, "labels": labels}
                    row |= {"observed": 1 - boot.means[0, p, s], **estimate("predicted", noisy)}
                    row |= {"predicted": predicted[0], "inside": bool(row["low"] <= row["observed"] <= row["high"])}
                    rows.append(row)
    columns = ["pipeline", "fitted_on", "labels", "observed", "predicted", "low", "high", "inside"]
    rows.sort(key=lambda row: boot.scores.pipelines.index(str(row["pipeline"])))
    return pd.DataFrame(rows, columns=columns)
