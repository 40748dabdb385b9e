"""The error as a function of the number of labels: fits, bends, back-tests, and what the next label is worth.

The curve is `error = alpha + eta * labels^-gamma`: alpha is what no number of labels removes. No one shape fits all
learning curves (Viering and Loog 2021, arXiv:2103.10948), so it is compared with two others, and every study tests
how its own fits forecast (`backtest`).

Sources: Hestness et al. 2017, arXiv:1712.00409; Hoiem et al. 2021, arXiv:2010.11029.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sweep.statistics import Bootstrap, gaps, interval, measured

OFFSET_POWER_LAW = "offset power law"
MODELS = (OFFSET_POWER_LAW, "power law", "exponential")
REACH = 4.0
"""A curve is drawn, and labels are valued, up to so many times the largest size measured."""
HORIZON = 100.0
"""Beyond so many times the largest size measured a target counts as never reached."""
SPREAD = 100.0
"""An interval whose ends differ by more than this factor says nothing."""
SUPPORT = 7.0
"""AICc difference from which one of two models is preferred, the other has "considerably less" support: Burnham and
Anderson 2002, section 2.6. Of straight simulated curves one in 25 then seems to bend."""
PRIOR = 4.0
"""Weight, in degrees of freedom, of the variance pooled over sizes beside a size's own."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model fitted to one pipeline, on the data (row 0) and on every draw."""

    pipeline: str
    model: str
    labels: np.ndarray
    """(sizes,) that it was fitted on."""
    alpha: np.ndarray
    """(1 + draws,) error that no number of labels removes, at least 0."""
    eta: np.ndarray
    """(1 + draws,) at least 0."""
    gamma: np.ndarray
    """(1 + draws,) the exponent; per label in the exponential."""
    aicc: float
    note: str

    @property
    def fitted(self) -> bool:
        """Whether there were sizes enough for a fit."""
        return bool(np.isfinite(self.gamma[0]))

    def error(self, labels: Sequence[float] | np.ndarray) -> np.ndarray:
        """(1 + draws, labels) error at each number of labels."""
        return self.alpha[:, None] + self.eta[:, None] * basis(
            self.model, np.asarray(labels, float), self.gamma[:, None]
        )

    def needed(self, error: float) -> np.ndarray:
        """(1 + draws,) labels at which an offset power law has come down to `error`; infinite where it never does."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            labels = ((error - self.alpha) / self.eta) ** (-1 / self.gamma)
        never = (self.alpha >= error) | (labels > HORIZON * self.labels[-1])
        return np.where(np.isnan(self.alpha), np.nan, np.where(never, np.inf, labels))


def basis(model: str, labels: np.ndarray, gamma: np.ndarray | float) -> np.ndarray:
    """What eta multiplies: labels^-gamma, or exp(-gamma * labels)."""
    return np.exp(-gamma * labels) if model == "exponential" else labels**-gamma


def fit(boot: Bootstrap, model: str = OFFSET_POWER_LAW, largest: float = np.inf) -> list[Curve]:
    """Fit a model to each pipeline's mean errors, weighted by their precision over seeds.

    Args:
        boot: scores and draws.
        model: one of `MODELS`.
        largest: larger sizes are left out.

    Returns:
        A curve for each pipeline; all NaN, with a note that says why, where fewer than 3 sizes have a score. An offset
        power law that an exponential beats by `SUPPORT` says so: the error then falls ever faster in log-log, which
        no power law does.
    """
    curves = []
    for p, pipeline in enumerate(boot.scores.pipelines):
        sizes = measured(boot, p)
        sizes = sizes[boot.scores.labels[sizes] <= largest]
        labels, note = boot.scores.labels[sizes].astype(float), gaps(boot, p)
        errors, cells = 1 - boot.means[:, p, sizes], 1 - boot.cells[0, p, sizes]
        curve = _fitted(pipeline, model, labels, errors, cells, note)
        if model == OFFSET_POWER_LAW and curve.fitted:
            rival = _fitted(pipeline, "exponential", labels, errors[:1], cells, "")
            doubts = [
                (curve.eta[0] == 0, "no fall of the error with labels is seen"),
                (
                    curve.aicc - rival.aicc >= SUPPORT,
                    f"an exponential fits better (AICc lower by {curve.aicc - rival.aicc:.0f}), so forecasts by the "
                    "power law are doubtful",
                ),
            ]
            curve = replace(curve, note="; ".join([note] * bool(note) + [words for doubt, words in doubts if doubt]))
        curves.append(curve)
    return curves


def _fitted(pipeline: str, model: str, labels: np.ndarray, errors: np.ndarray, cells: np.ndarray, note: str) -> Curve:
    """Fit one pipeline: labels (sizes,), mean errors (draws, sizes), observed errors of cells (sizes, seeds)."""
    alpha, eta, gamma = np.full((3, len(errors)), np.nan)
    criterion = np.nan
    if len(labels) < 3:
        note = f"scores at {len(labels)} sizes: a fit needs 3 or more"
    else:
        variance = seed_variance(cells)
        alpha, eta, gamma = fit_errors(model, labels, errors, (~np.isnan(cells)).sum(axis=1) / variance)
        expected = alpha[0] + eta[0] * basis(model, labels, gamma[0])
        criterion = aicc((cells - expected[:, None]) / np.sqrt(variance)[:, None], 3 if model == "power law" else 4)
    return Curve(
        pipeline=pipeline, model=model, labels=labels, alpha=alpha, eta=eta, gamma=gamma, aicc=criterion, note=note
    )


def fit_errors(model: str, labels: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares of `alpha + eta * basis(gamma)` with alpha, eta >= 0, all draws at once.

    For a given gamma the other two follow in closed form (variable projection: Golub and Pereyra 1973), so gamma
    alone is searched: on a grid, then on ever finer ones around each draw's best.

    Args:
        model: one of `MODELS`; the power law has alpha = 0.
        labels: (sizes,).
        errors: (draws, sizes).
        weights: (sizes,).

    Returns:
        (3, draws): alpha, eta, gamma; NaN for draws that lack a size.
    """
    low, high = (0.02, 4.0) if model != "exponential" else (0.02 / labels[-1], 5 / labels[0])
    grid = np.geomspace(low, high, 48)
    gamma = np.broadcast_to(grid, (len(errors), len(grid)))
    step = grid[1] / grid[0]
    for _ in range(6):
        alpha, eta, loss = _project(basis(model, labels, gamma[:, :, None]), errors[:, None], weights, model)
        best = np.where(np.isnan(loss), np.inf, loss).argmin(axis=1)[:, None]
        alpha, eta, centre = (np.take_along_axis(values, best, axis=1) for values in (alpha, eta, gamma))
        gamma = np.clip(centre * step ** np.linspace(-1, 1, 9), low, high)
        step = step**0.25
    parameters = np.stack([alpha, eta, centre])[:, :, 0]
    return np.where(np.isnan(errors).any(axis=1), np.nan, parameters)


def _project(
    shape: np.ndarray, errors: np.ndarray, weights: np.ndarray, model: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best alpha and eta for given bases (..., sizes), and the weighted sum of squares.

    Errors and bases are positive, so at most one of the two is below 0 without the bounds; with that one at 0 the
    other's optimum is at least 0, and so is the solution.
    """
    weights = weights / weights.sum()
    mean_error, mean_shape = errors @ weights, shape @ weights
    centred = (shape - mean_shape[..., None]) * weights
    with np.errstate(invalid="ignore", divide="ignore"):
        eta = np.maximum(0, (centred * errors).sum(-1) / (centred * shape).sum(-1))
        alpha = mean_error - eta * mean_shape
        through_0 = (alpha < 0) | (model == "power law")
        eta = np.where(through_0, (shape * errors) @ weights / (shape**2 @ weights), eta)
    alpha = np.where(through_0, 0, alpha)
    return alpha, eta, (errors - alpha[..., None] - eta[..., None] * shape) ** 2 @ weights


def seed_variance(cells: np.ndarray) -> np.ndarray:
    """Variance over seeds at each size, drawn towards that of all sizes as few seeds know it badly.

    (PRIOR * pooled + df * own) / (PRIOR + df), with df = seeds - 1; all 1 where no size varies.

    Args:
        cells: (sizes, seeds), NaN where missing.

    Source: Smyth 2004, Statistical Applications in Genetics 3:3, eq. for the moderated variance.
    """
    there = ~np.isnan(cells)
    df = there.sum(axis=1) - 1
    centred = np.where(there, cells, 0) - (np.where(there, cells, 0).sum(axis=1) / (df + 1))[:, None]
    squares = (there * centred**2).sum(axis=1)
    if squares.sum() < 1e-18:
        return np.ones(len(cells))
    return (PRIOR * squares.sum() / df.sum() + squares) / (PRIOR + df)


def aicc(residuals: np.ndarray, parameters: int) -> float:
    """Akaike's criterion corrected for small samples, of a least-squares fit to the cells; smaller is better.

    n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1), with n the residuals that are there and k the parameters, the
    residual variance included. NaN where n < k + 2.

    Source: Burnham and Anderson 2002, Model Selection and Multimodel Inference, section 2.4.
    """
    values = residuals[~np.isnan(residuals)]
    n, k = len(values), parameters
    if n < k + 2:
        return float("nan")
    spread = max(float(np.mean(values**2)), 1e-18)
    return float(n * np.log(spread) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


# ---- tables


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
                draws = getattr(curve, name)
                low, high = interval(draws)
                row |= {name: draws[0], f"{name}_low": float(low), f"{name}_high": float(high)}
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
            error = curve.error(labels)
            low, high = interval(error)
            table = {"pipeline": curve.pipeline, "labels": labels, "error": error[0], "low": low, "high": high}
            tables.append(pd.DataFrame({**table, "extrapolated": labels > curve.labels[-1] * (1 + 1e-9)}))
    columns = ["pipeline", "labels", "error", "low", "high", "extrapolated"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def bends(boot: Bootstrap, points: int = 61) -> pd.DataFrame:
    """Where the power law stops: two straight pieces of log error over log labels, against one.

    Args:
        boot: scores and draws.
        points: places tried for the bend, from the second to the last but one size, equally spaced in log.

    Returns:
        pipeline, labels (at which the pieces meet), low, high, slope_before, slope_after, delta_aicc (of one piece
        less that of two: from `SUPPORT` on there is a bend), holds (where a power law holds: a sentence), note.
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
    """The columns labels to holds of `bends` from mean errors (draws, sizes) and those of cells (sizes, seeds)."""
    place, logs = np.log(labels), _log(errors)
    deviation = np.sqrt(seed_variance(cells)) / np.exp(logs[0])  # of the logarithm, to first order
    weights = (~np.isnan(cells)).sum(axis=1) / deviation**2
    at = np.linspace(place[1], place[-2], points)
    one = np.stack([np.ones_like(place), place], axis=1)
    two = np.stack([np.column_stack([one, np.maximum(0, place - bend)]) for bend in at])
    line, _ = _straight(one[None], logs[:1], weights)
    pieces, loss = _straight(two, logs, weights)
    best = loss.argmin(axis=1)
    low, high = interval(np.where(np.isnan(logs).any(axis=1), np.nan, np.exp(at[best])))
    _, before, turn = piece = pieces[0, best[0]]
    single, double = (
        aicc((_log(cells) - fitted[:, None]) / deviation[:, None], parameters)
        for fitted, parameters in ((one @ line[0, 0], 3), (two[best[0]] @ piece, 5))
    )
    row = {"labels": np.exp(at[best[0]]), "low": float(low), "high": float(high)}
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
            "these scores show no bend"
        )
    between = "" if np.isnan(bend["low"]) else f" (95 % interval {bend['low']:.0f} to {bend['high']:.0f})"
    return (
        f"the power law bends at {bend['labels']:.0f} labels{between}: error ~ labels^{bend['slope_before']:.2f} "
        f"before, labels^{bend['slope_after']:.2f} after"
    )


def multipliers(boot: Bootstrap) -> pd.DataFrame:
    """How many times fewer labels a pipeline needs to equal another at n labels.

    n / n', where the pipeline's error first comes down to the baseline's error at n when n' labels are used; between
    the sizes measured log error is straight over log labels, and beyond them nothing is said.

    Returns:
        pipeline, baseline, labels (n), multiplier (above 1: labels saved), low, high (0 and infinite where open), bound
        (">=": better than the baseline already with the fewest labels; "<=": not as good with the most), note.
    """
    tables = []
    for pair, both in boot.pairs.items():
        for own, other in ((0, 1), (1, 0)):
            sizes = measured(both, own)
            if not len(sizes):
                continue
            labels = boot.scores.labels[sizes].astype(float)
            table = pd.DataFrame({"pipeline": pair[own], "baseline": pair[other], "labels": boot.scores.labels[sizes]})
            with np.errstate(divide="ignore"):
                saved = labels / equal_labels(labels, *(1 - both.means[:, k, sizes] for k in (own, other)))
            point, (low, high) = saved[0], interval(saved)
            at_least, at_most = labels / labels[0], labels / labels[-1]  # all that the ends of a curve can say
            table["multiplier"] = np.select([point == np.inf, point == 0], [at_least, at_most], point)
            table["low"], table["high"] = np.where(low == np.inf, at_least, low), np.where(high == 0, at_most, high)
            table["bound"] = np.select([point == np.inf, point == 0], [">=", "<="], "")
            table["note"] = gaps(both, own)
            tables.append(table)
    columns = ["pipeline", "baseline", "labels", "multiplier", "low", "high", "bound", "note"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def equal_labels(labels: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Labels at which one error curve first comes down to another's at each size.

    Args:
        labels: (sizes,).
        own: (draws, sizes) errors, interpolated in log-log.
        other: (draws, sizes) errors to be equalled.

    Returns:
        (draws, sizes); 0 where already the first of `own` is as low, infinite where none is, NaN where a size lacks.
    """
    place, target = np.log(labels), _log(other)
    lowest = np.minimum.accumulate(_log(own), axis=1)
    reached = lowest[:, None, :] <= target[:, :, None] + 1e-12  # (draws, target, size)
    after = np.clip(reached.argmax(axis=2), min(1, len(labels) - 1), None)
    above, below = (np.take_along_axis(lowest, index, axis=1) for index in (after - 1, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip((above - target) / (above - below), 0, 1)
    equal = np.exp(place[after - 1] + share * (place[after] - place[after - 1]))
    at_once = lowest[:, :1] < target - 1e-12
    equal = np.select([at_once, ~reached.any(axis=2)], [0.0, np.inf], equal)
    return np.where(np.isnan(own).any(axis=1, keepdims=True) | np.isnan(other), np.nan, equal)


def backtest(boot: Bootstrap, seed: int = 0) -> pd.DataFrame:
    """How well the smaller sizes forecast the larger ones: the first 3, 4, ... sizes fitted, each larger one predicted.

    low and high hold the mean of as many seeds as were run: the fit's draws with that mean's own noise over seeds.

    Returns:
        pipeline, fitted_on (largest size used), labels, observed and predicted error, low, high, inside.
    """
    rng = np.random.default_rng([seed, 2])
    rows: list[dict[str, object]] = []
    for last in boot.scores.labels[2:-1]:
        for p, curve in enumerate(fit(boot, largest=last)):
            if not curve.fitted or curve.labels[-1] != last:
                continue
            sizes = measured(boot, p)
            noise = np.sqrt(seed_variance(1 - boot.cells[0, p, sizes]) / boot.replicates[p, sizes])
            for s, deviation in zip(sizes, noise, strict=True):
                if (labels := boot.scores.labels[s]) > last:
                    predicted = curve.error([labels])[:, 0]
                    low, high = interval(predicted + deviation * rng.standard_normal(len(predicted)))
                    observed = 1 - boot.means[0, p, s]
                    row = {"pipeline": curve.pipeline, "fitted_on": last, "labels": labels, "observed": observed}
                    row |= {"predicted": predicted[0], "low": float(low), "high": float(high)}
                    rows.append({**row, "inside": bool(low <= observed <= high)})
    columns = ["pipeline", "fitted_on", "labels", "observed", "predicted", "low", "high", "inside"]
    rows.sort(key=lambda row: boot.scores.pipelines.index(str(row["pipeline"])))
    return pd.DataFrame(rows, columns=columns)


# ---- forecasts


def labels_needed(curves: Sequence[Curve], target: float, unit: str = "labels") -> pd.DataFrame:
    """How many labels each pipeline needs to score `target`, by its offset power law.

    Args:
        curves: of `fit`.
        target: score, in (0, 1).
        unit: what labels count, for the sentence.

    Returns:
        pipeline, labels, low, high (infinite: not reached within `HORIZON` times the largest size; a number at or
        below the smallest size is that size), extrapolated, refused, answer (a sentence, with the reason of a refusal).
    """
    rows = []
    for curve in curves:
        row = {"pipeline": curve.pipeline, "labels": np.nan, "low": np.nan, "high": np.nan, "extrapolated": False}
        if curve.fitted:
            smallest, largest = curve.labels[0], curve.labels[-1]
            needed = np.maximum(curve.needed(1 - target), smallest)
            low, high = interval(needed)
            row |= {
                "labels": needed[0],
                "low": float(low),
                "high": float(high),
                "extrapolated": bool(needed[0] > largest),
            }
        refusal = _refusal(curve, row)
        answer = refusal or _needed(curve, row, unit) + _doubt(curve)
        rows.append({**row, "refused": bool(refusal), "answer": f"{curve.pipeline}: {answer}"})
    return pd.DataFrame(rows)


def _refusal(curve: Curve, row: dict) -> str:
    """Why the labels needed for a target cannot be said, or nothing."""
    if not curve.fitted:
        return f"no forecast, {curve.note}"
    low, high = row["low"], row["high"]
    if np.isnan(low):  # the number is given, without an interval
        return ""
    if high == np.inf and low <= curve.labels[0]:
        return (
            "no forecast: the interval spans everything, from the smallest size measured to never; "
            "more seeds, patients or sizes would narrow it"
        )
    if low < np.inf and low * SPREAD < high < np.inf:
        return f"no forecast: the interval, {_round(low)} to {_round(high)}, is wider than a factor of {SPREAD:.0f}"
    return ""


def _needed(curve: Curve, row: dict, unit: str) -> str:
    """The labels needed, in words."""
    smallest, largest = curve.labels[0], curve.labels[-1]
    low, high = row["low"], row["high"]
    if np.isnan(low):
        between = " (no interval)"
    elif low == np.inf:
        between = " (hardly any draw reaches it)"
    elif high == np.inf:
        between = f" (95 % interval from {_round(low)}; its upper end is not reached)"
    else:
        between = f" (95 % interval {_round(low)} to {_round(high)})"
    if row["labels"] == np.inf:
        there = 1 - curve.error([HORIZON * largest])[0, 0]
        return f"not reached within {HORIZON:.0f} times the largest size{between}; there the curve is at {there:.3f}"
    if row["labels"] <= smallest:
        return f"{_round(smallest)} {unit} or fewer{between}"
    beyond = f", beyond the largest size measured, {_round(largest)}" if row["extrapolated"] else ""
    return f"{_round(row['labels'])} {unit}{between}{beyond}"


def next_labels(curves: Sequence[Curve], at: float, more: float = 10, unit: str = "labels") -> pd.DataFrame:
    """What `more` labels are worth to somebody who has `at`, by the offset power law.

    Args:
        curves: of `fit`.
        at: labels used now, from the smallest size measured up.
        more: labels to come; the sum may be `REACH` times the largest size measured.
        unit: what labels count, for the sentence.

    Returns:
        pipeline, labels, more, score (at `labels`), gain, low, high (of the gain), extrapolated, refused, answer.
    """
    rows = []
    for curve in curves:
        row: dict[str, object] = {"pipeline": curve.pipeline, "labels": at, "more": more}
        row |= {**dict.fromkeys(("score", "gain", "low", "high"), np.nan), "extrapolated": False}
        if not curve.fitted:
            refusal = f"no forecast, {curve.note}"
        elif at < curve.labels[0]:
            refusal = f"no forecast: {at:g} is below the smallest size measured, {_round(curve.labels[0])}"
        elif at + more > REACH * curve.labels[-1]:
            refusal = (
                f"no forecast: {at:g} + {more:g} is more than {REACH:g} times the largest size measured, "
                f"{_round(curve.labels[-1])}"
            )
        else:
            refusal = ""
            errors = curve.error([at, at + more])
            gain = errors[:, 0] - errors[:, 1]
            low, high = interval(gain)
            row |= {"score": 1 - errors[0, 0], "gain": gain[0], "low": float(low), "high": float(high)}
            row["extrapolated"] = bool(at + more > curve.labels[-1])
            between = " (no interval)" if np.isnan(low) else f" (95 % interval {low:.4f} to {high:.4f})"
            answer = f"at {at:g} {unit} (score {row['score']:.3f}) the next {more:g} are worth {gain[0]:.4f}{between}"
            answer += _doubt(curve)
        rows.append({**row, "refused": bool(refusal), "answer": f"{curve.pipeline}: {refusal or answer}"})
    return pd.DataFrame(rows)


def _doubt(curve: Curve) -> str:
    return f"; {curve.note}" if curve.note else ""


def _round(labels: float) -> str:
    """A number of labels in words: two digits of what is below 10, whole above."""
    return f"{labels:.2g}" if labels < 10 else f"{labels:.0f}"
