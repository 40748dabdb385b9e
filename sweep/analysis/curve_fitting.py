"""The error as a function of the number of labels: models and their fit.

The curve is `error = alpha + eta * labels^-gamma`: alpha is the error that no number of labels removes. No one shape
fits all learning curves (Viering and Loog 2021, arXiv:2103.10948), so it is compared with two others, and every study
tests how its own fits forecast (`sweep.analysis.learning_curves.backtest`).

Sources: Hestness et al. 2017, arXiv:1712.00409; Hoiem et al. 2021, arXiv:2010.11029.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sweep.analysis.bootstrap import Bootstrap, gaps, measured

OFFSET_POWER_LAW = "offset power law"
MODELS = (OFFSET_POWER_LAW, "power law", "exponential")
HORIZON = 100.0
"""A target that takes more than this many times the largest measured size counts as never reached."""
SUPPORT = 7.0
"""AICc difference from which one of two models is preferred, because the other has "considerably less" support (Burnham
and Anderson 2002, section 2.6). With it, one in 25 simulated power laws is reported to bend."""
PRIOR = 4.0
"""Weight of the variance pooled over sizes relative to each size's own variance, in degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model fitted to one pipeline: to the data (row 0) and to every draw."""

    pipeline: str
    model: str
    labels: np.ndarray
    """(sizes,) numbers of labels that it was fitted to."""
    errors: np.ndarray
    """(sizes,) mean errors measured there."""
    alpha: np.ndarray
    """(1 + draws,) error that no number of labels removes, at least 0."""
    eta: np.ndarray
    """(1 + draws,) factor of the falling part, at least 0."""
    gamma: np.ndarray
    """(1 + draws,) the exponent; per label in the exponential."""
    aicc: float
    note: str

    @property
    def fitted(self) -> bool:
        """Whether there were enough sizes for a fit."""
        return bool(np.isfinite(self.gamma[0]))

    def error(self, labels: Sequence[float] | np.ndarray) -> np.ndarray:
        """(1 + draws, labels) error at each number of labels."""
        falling = basis(self.model, np.asarray(labels, float), self.gamma[:, None])
        return self.alpha[:, None] + self.eta[:, None] * falling

    def needed(self, error: float) -> np.ndarray:
        """(1 + draws,) labels at which an offset power law reaches `error`; infinite where it never does."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            labels = ((error - self.alpha) / self.eta) ** (-1 / self.gamma)
        never = (self.alpha >= error) | (labels > HORIZON * self.labels[-1])
        return np.where(np.isnan(self.alpha), np.nan, np.where(never, np.inf, labels))


def basis(model: str, labels: np.ndarray, gamma: np.ndarray | float) -> np.ndarray:
    """Falling part of the curve, which eta multiplies: labels^-gamma, or exp(-gamma * labels)."""
    return np.exp(-gamma * labels) if model == "exponential" else labels**-gamma


def fit(boot: Bootstrap, model: str = OFFSET_POWER_LAW, largest: float = np.inf) -> list[Curve]:
    """Fit a model to each pipeline's mean errors, weighted by their precision over seeds.

    Args:
        model: one of `MODELS`.
        largest: ignore larger sizes.

    Returns:
        A curve for each pipeline; all NaN, with a note of the reason, where fewer than 3 sizes have a score. The note
        of an offset power law also says if an exponential is better by `SUPPORT`: the error then falls ever faster in
        log-log, as no power law does.
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
            notes = [note] if note else []
            if curve.eta[0] == 0:
                notes.append("the error does not fall with more labels")
            if (lead := curve.aicc - rival.aicc) >= SUPPORT:
                better = f"an exponential fits better (AICc lower by {lead:.0f})"
                notes.append(f"{better}, so forecasts by the power law are doubtful")
            curve = replace(curve, note="; ".join(notes))
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
        pipeline=pipeline,
        model=model,
        labels=labels,
        errors=errors[0],
        alpha=alpha,
        eta=eta,
        gamma=gamma,
        aicc=criterion,
        note=note,
    )


def fit_errors(model: str, labels: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares of `alpha + eta * basis(gamma)` with alpha, eta >= 0, all draws at once.

    For a given gamma the other two follow in closed form (variable projection: Golub and Pereyra 1973), so only gamma
    is searched: on a grid, then on finer and finer grids around each draw's best.

    Args:
        model: one of `MODELS`; the power law has alpha = 0.
        labels: (sizes,).
        errors: (draws, sizes).
        weights: (sizes,).

    Returns:
        (3, draws): alpha, eta, gamma; NaN for draws in which a size is missing.
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

    Errors and bases are positive, so at most one of the two would be negative without the bounds; with that one set
    to 0 the optimum of the other is at least 0, which is the solution.
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
    """Variance over seeds at each size, shrunk towards that of all sizes, because few seeds estimate it badly.

    (PRIOR * pooled + df * variance of the size) / (PRIOR + df), with df = seeds - 1; all 1 where no size varies.

    Args:
        cells: (sizes, seeds), NaN where missing.

    Source: Smyth 2004, Statistical Applications in Genetics 3:3, eq. for the moderated variance.
    """
    present = ~np.isnan(cells)
    df = present.sum(axis=1) - 1
    centred = np.where(present, cells, 0) - (np.where(present, cells, 0).sum(axis=1) / (df + 1))[:, None]
    squares = (present * centred**2).sum(axis=1)
    if squares.sum() < 1e-18:
        return np.ones(len(cells))
    return (PRIOR * squares.sum() / df.sum() + squares) / (PRIOR + df)


def aicc(residuals: np.ndarray, parameters: int) -> float:
    """Akaike's criterion corrected for small samples, of a least-squares fit to the cells; smaller is better.

    n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1), with n the number of residuals, ignoring NaN, and k that of
    parameters, including the residual variance. NaN where n < k + 2.

    Source: Burnham and Anderson 2002, Model Selection and Multimodel Inference, section 2.4.
    """
    values = residuals[~np.isnan(residuals)]
    n, k = len(values), parameters
    if n < k + 2:
        return float("nan")
    spread = max(float(np.mean(values**2)), 1e-18)
    return float(n * np.log(spread) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
