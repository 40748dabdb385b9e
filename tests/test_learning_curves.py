from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit, least_squares

from sweep.analysis.bootstrap import Bootstrap, bootstrap, interval
from sweep.analysis.curve_fitting import MODELS, aicc, fit, fit_errors, seed_variance
from sweep.analysis.forecasts import labels_needed, next_labels
from sweep.analysis.learning_curves import backtest, bands, bends, equal_labels, fits, multipliers
from sweep.analysis.scores import Scores

SIZES = (2, 4, 8, 16, 32, 64, 128)


def law(n: float) -> float:
    """The curve of most simulated studies."""
    return 0.08 + 0.6 * n**-0.5


def study(
    *curves: Callable[[float], float],
    sizes: tuple[int, ...] = SIZES,
    seeds: int = 10,
    patients: int = 20,
    noise: float = 1.0,
    seed: int = 0,
    draws: int = 300,
) -> Bootstrap:
    """A bootstrapped study whose expected errors are the curves; patients, seeds and their interaction vary."""
    rng = np.random.default_rng([seed, 11])
    errors = np.array([[curve(n) for n in sizes] for curve in curves])[:, :, None, None]
    shape = (len(curves), len(sizes), seeds, 1)
    shrinking = (np.array(sizes) / sizes[0])[:, None, None] ** -0.3
    errors = errors + noise * rng.normal(0, 0.03, patients) + noise * shrinking * rng.normal(0, 0.02, shape)
    errors = errors + noise * rng.normal(0, 0.04, (*shape[:3], patients))
    scores = Scores(
        pipelines=("a", "b", "c")[: len(curves)],
        labels=np.array(sizes),
        seeds=tuple((s, s) for s in range(seeds)),
        patients=tuple(map(str, range(patients))),
        values=1 - errors,
    )
    return bootstrap(scores, draws)


def inside(draws: np.ndarray, truth: float) -> bool:
    low, high = interval(draws)
    return bool(low - 1e-9 <= truth <= high + 1e-9)


# ---- fits


@pytest.mark.parametrize(
    ("model", "alpha", "eta", "gamma"),
    [
        ("offset power law", 0.1, 0.7, 0.45),
        ("power law", 0.0, 0.8, 0.2),
        ("offset power law", 0.0, 0.8, 0.2),
        ("exponential", 0.15, 0.5, 0.04),
    ],
)
def test_fit_finds_the_exact_curve(model, alpha, eta, gamma):
    labels = np.array(SIZES, float)
    shape = np.exp(-gamma * labels) if model == "exponential" else labels**-gamma
    parameters = fit_errors(model, labels, (alpha + eta * shape)[None], np.ones(len(labels)))
    np.testing.assert_allclose(parameters[:, 0], [alpha, eta, gamma], rtol=2e-3, atol=2e-4)


def test_fit_is_that_of_scipy():
    rng = np.random.default_rng(0)
    labels, deviation = np.array(SIZES, float), np.array([0.04, 0.03, 0.02, 0.02, 0.01, 0.01, 0.005])
    errors = law(labels) + deviation * rng.normal(size=(20, len(labels)))
    fitted = fit_errors("offset power law", labels, errors, 1 / deviation**2)
    for draw, row in zip(errors, fitted.T, strict=True):
        expected, _ = curve_fit(
            lambda n, alpha, eta, gamma: alpha + eta * n**-gamma,
            labels,
            draw,
            p0=row,
            sigma=deviation,
            bounds=([0, 0, 0.02], [1, 10, 4]),
        )
        np.testing.assert_allclose(row, expected, rtol=2e-2, atol=2e-3)


def test_fit_keeps_its_bounds():
    labels = np.array([1.0, 2, 4, 8, 16])
    errors = np.array([[0.9, 0.85, 0.7, 0.4, 0.1], [0.2, 0.25, 0.3, 0.35, 0.4]])  # ever steeper; rising
    alpha, eta, gamma = fit_errors("offset power law", labels, errors, np.ones(5))
    assert alpha[0] == 0
    best = least_squares(lambda x: x[0] * labels ** -x[1] - errors[0], [0.9, 0.5])  # the pure power law
    np.testing.assert_allclose([eta[0], gamma[0]], best.x, rtol=1e-2)
    assert (alpha[1], eta[1]) == (pytest.approx(0.3), 0)


def test_fit_skips_draws_that_lack_a_size():
    errors = np.array([[0.5, 0.4, 0.3], [0.5, np.nan, 0.3]])
    parameters = fit_errors("offset power law", np.array([1.0, 2, 4]), errors, np.ones(3))
    assert np.isfinite(parameters[:, 0]).all()
    assert np.isnan(parameters[:, 1]).all()


@pytest.mark.slow
def test_known_power_law_is_recovered_in_90_of_100_studies():
    gamma, held_out = 0, 0
    for seed in range(100):
        (curve,) = fit(study(law, seed=seed))
        gamma += inside(curve.gamma, 0.5)
        held_out += inside(curve.error([256])[:, 0], law(256))
    assert gamma >= 90
    assert held_out >= 90


def test_intervals_are_narrow_enough_to_be_useful():
    (curve,) = fit(study(law))
    low, high = interval(curve.gamma)
    assert high - low < 0.3
    low, high = interval(curve.error([256])[:, 0])
    assert high - low < 0.06


def test_seed_variance_is_drawn_to_the_pooled():
    cells = np.array([[0.0, 2.0], [1.0, 1.0], [3.0, np.nan]])  # squares 2, 0 and none; pooled 2 / 2
    np.testing.assert_allclose(seed_variance(cells), [(4 + 2) / 5, 4 / 5, 1])
    np.testing.assert_allclose(seed_variance(np.ones((3, 4))), 1)


def test_aicc_worked_example():
    # n = 4, mean square 0.25, k = 2: 4 ln 0.25 + 4 + 12 / 1.
    assert aicc(np.array([[0.5, -0.5], [0.5, -0.5], [np.nan, np.nan]]), 2) == pytest.approx(4 * np.log(0.25) + 16)
    assert np.isnan(aicc(np.ones(4), 3))


def test_fits_choose_the_model_that_made_the_data():
    curves = (law, lambda n: 0.7 * n**-0.3, lambda n: 0.15 + 0.5 * np.exp(-0.05 * n))
    table = fits(study(*curves))
    assert len(table) == 3 * len(MODELS)
    best = table[table["best"]].set_index("pipeline")["model"]
    assert best.to_dict() == {"a": "offset power law", "b": "power law", "c": "exponential"}
    assert (table["gamma_low"] <= table["gamma"]).all()
    assert (table["gamma"] <= table["gamma_high"]).all()
    doubted = table[(table["pipeline"] == "c") & (table["model"] == "offset power law")]["note"].item()
    assert "an exponential fits better" in doubted


def test_two_sizes_are_no_curve():
    boot = study(law, sizes=(2, 4))
    assert set(fits(boot)["note"]) == {"scores at 2 sizes: a fit needs 3 or more"}
    assert fits(boot)[["alpha", "gamma", "gamma_low", "aicc"]].isna().all(axis=None)
    assert not fits(boot)["best"].any()
    assert bands(fit(boot)).empty
    assert backtest(boot).empty
    assert bends(boot)["note"].item() == "scores at 2 sizes: a bend needs 4 or more"
    needed = labels_needed(fit(boot), 0.8).iloc[0]
    assert needed["refused"]
    assert needed["answer"] == "a: no forecast, scores at 2 sizes: a fit needs 3 or more"


def test_bands_reach_four_times_the_largest_size():
    (curve,) = fit(study(law))
    table = bands([curve])
    assert table["labels"].iloc[[0, -1]].tolist() == pytest.approx([2, 512])
    assert (table["extrapolated"] == (table["labels"] > 128.0001)).all()
    assert (table["low"] <= table["error"]).all()
    assert (table["error"] <= table["high"]).all()
    width = table["high"] - table["low"]
    assert width.iloc[-1] > width.min() * 1.2  # less is known outside


# ---- bends


def bent(n: float) -> float:
    """Slopes -0.1 and -0.45 that meet at 40 labels."""
    return 0.7 * n**-0.1 * min(1, (n / 40) ** -0.35)


def test_a_bend_is_found():
    table = bends(study(bent, lambda n: 0.7 * n**-0.3, sizes=(1, 3, 7, 15, 30, 75, 150, 300, 749))).set_index(
        "pipeline"
    )
    assert table.loc["a", "low"] <= 40 <= table.loc["a", "high"]
    assert table.loc["a", ["slope_before", "slope_after"]].tolist() == pytest.approx([-0.1, -0.45], abs=0.04)
    assert table.loc["a", "holds"].startswith("the power law bends at ")
    assert table.loc["b", "delta_aicc"] < 7
    assert "no bend is seen" in table.loc["b", "holds"]


def test_too_few_scores_show_neither_a_bend_nor_none():
    row = bends(study(bent, sizes=(3, 15, 75, 300), seeds=1)).iloc[0]
    assert np.isnan(row["delta_aicc"])
    assert row["holds"] == "too few scores to tell one power law from two"


def test_straight_curves_seldom_bend():
    found = [bends(study(lambda n: 0.7 * n**-0.3, seed=seed, draws=10))["delta_aicc"].item() >= 7 for seed in range(40)]
    assert np.mean(found) <= 0.1


# ---- multipliers


def test_a_quarter_of_the_labels_is_a_multiplier_of_four():
    table = multipliers(study(lambda n: 0.9 * (4 * n) ** -0.3, lambda n: 0.9 * n**-0.3, noise=0)).set_index("labels")
    saved = table[table["pipeline"] == "a"]
    assert saved["multiplier"].tolist() == pytest.approx([1, 2, 4, 4, 4, 4, 4])
    assert saved["bound"].tolist() == [">=", ">=", "", "", "", "", ""]  # at 2 labels a is as good as b at 8
    cost = table[table["pipeline"] == "b"]
    assert cost["multiplier"].tolist() == pytest.approx([0.25] * 5 + [0.5, 1])
    assert cost["bound"].tolist() == ["", "", "", "", "", "<=", "<="]
    assert (cost["baseline"] == "a").all()


def test_multiplier_intervals_cover_and_are_open_where_bounded():
    covered = []
    for seed in range(40):
        boot = study(lambda n: 0.9 * (4 * n) ** -0.3, lambda n: 0.9 * n**-0.3, seed=seed, seeds=5)
        row = multipliers(boot).query("pipeline == 'a' and labels == 32").iloc[0]
        covered.append(row["low"] <= 4 <= row["high"])
    assert np.mean(covered) >= 0.85
    first = multipliers(boot).query("labels == 2").set_index("pipeline")
    assert first.loc["a", ["multiplier", "low", "high"]].tolist() == pytest.approx([1, 1, np.inf])
    assert first.loc["a", "bound"] == ">="
    last = multipliers(boot).query("labels == 128").set_index("pipeline")
    assert last.loc["b", ["multiplier", "low", "high"]].tolist() == pytest.approx([1, 0, 1])
    assert last.loc["b", "bound"] == "<="


def test_a_pipeline_saves_no_labels_of_itself():
    """A plateau on which noise makes a smaller size the best."""
    for errors in ((0.3, 0.3, 0.2, 0.22, 0.21, 0.25, 0.2), (0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)):
        curve = dict(zip(SIZES, errors, strict=True)).__getitem__
        table = multipliers(study(curve, curve, noise=0))
        assert table["multiplier"].tolist() == pytest.approx([1] * 14)
        assert table["bound"].eq("").all()


def test_a_loss_at_the_end_of_the_sizes_is_decided():
    table = multipliers(study(lambda n: 0.9 * n**-0.3, lambda n: 0.5 * n**-0.3)).set_index(["pipeline", "labels"])
    last, first = table.loc[("a", 128)], table.loc[("b", 2)]
    assert last["high"] < 1 < first["low"]
    assert (last["bound"], first["bound"]) == ("<=", ">=")
    assert [last["multiplier"], first["multiplier"]] == pytest.approx([1, 1])


def test_equal_labels():
    labels = np.array([1.0, 4, 16])
    first, second = np.array([[0.8, 0.4, 0.5]]), np.array([[0.9, np.sqrt(0.32), 0.3]])
    # 0.9: already below at 1. sqrt(0.8 * 0.4): half-way in logarithms, at 2. 0.3: never.
    np.testing.assert_allclose(equal_labels(labels, first, second), [[0, 2, np.inf]])
    np.testing.assert_allclose(equal_labels(labels, first, first), [[1, 4, 4 - 4 / 3 + 4 / 3 - 4 + 2.56889]], atol=0.3)
    flat = np.array([[0.3, 0.3, 0.2]])
    np.testing.assert_allclose(equal_labels(labels, flat, flat), [[1, 1, 16]])
    assert np.isnan(equal_labels(labels, np.array([[0.8, np.nan, 0.5]]), second)).all()


# ---- back-test


@pytest.mark.slow
def test_backtest_predicts_the_larger_sizes():
    tables = [backtest(study(law, seed=seed)) for seed in range(20)]
    table = pd.concat(tables)
    assert len(tables[0]) == 4 + 3 + 2 + 1  # fitted on 3, 4, 5 and 6 of 7 sizes
    assert (table["labels"] > table["fitted_on"]).all()
    assert table["inside"].mean() >= 0.85
    near = table[table["fitted_on"] == 64]
    assert (near["predicted"] - near["observed"]).abs().mean() < 0.01
    assert (near["high"] - near["low"]).max() < 0.1  # and not by being empty of content
    assert (table["inside"] == table["observed"].between(table["low"], table["high"])).all()


def test_backtest_allows_for_the_noise_of_what_it_predicts():
    boot = study(law, seeds=4, patients=500, draws=2000)
    row = backtest(boot).query("fitted_on == 64").iloc[0]
    low, high = interval(fit(boot, largest=64)[0].error([128])[:, 0])
    cells = 1 - boot.cells[0, 0]
    noise = np.sqrt(seed_variance(cells)[-1] / 4)
    expected = np.hypot(high - low, 2 * 1.96 * noise)
    assert expected > 1.1 * (high - low)
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.06)


def test_patients_who_differ_do_not_widen_the_backtest():
    """The same patients score what is fitted and what is predicted."""
    boot = study(law, seeds=5)
    means = boot.scores.cells()[..., None].repeat(20, axis=-1)
    difference = np.random.default_rng(1).normal(0, 0.1, 20)
    alike, differing = (
        replace(boot.scores, values=means + each) for each in (0 * difference, difference - difference.mean())
    )
    tables = [backtest(bootstrap(scores, 300)) for scores in (alike, differing)]
    pd.testing.assert_frame_equal(*tables)


def test_backtest_shows_a_law_that_fails():
    table = backtest(study(bent, sizes=(1, 3, 7, 15, 30, 75, 150, 300, 749)))
    assert not table[table["fitted_on"] <= 30].query("labels >= 300")["inside"].any()


def test_a_saturating_curve_is_not_extrapolated_through_its_floor():
    for seed in range(10):
        boot = study(lambda n: 0.2 + 0.6 * n**-1.0, seed=seed)
        (curve,) = fit(boot)
        assert interval(curve.error([512])[:, 0])[0] > 0.15
        predicted = backtest(boot).query("fitted_on == 32")
        assert predicted["predicted"].min() > 0.15
        needed = labels_needed([curve], 0.9).iloc[0]
        assert needed["labels"] == np.inf
        assert "not reached within 100 times the largest size (" in needed["answer"]
        assert float(needed["answer"].rpartition(" ")[2]) == pytest.approx(0.8, abs=0.03)


# ---- forecasts


def test_labels_needed_of_a_known_curve():
    curves = fit(study(law, lambda n: 0.9 * law(n)))
    table = labels_needed(curves, 0.85, "patients")
    expected = [((0.15 - 0.08) / 0.6) ** -2, ((0.15 / 0.9 - 0.08) / 0.6) ** -2]  # 73.5 and 47.9
    assert table["labels"].tolist() == pytest.approx(expected, rel=0.35)
    assert (table["low"] <= expected).all()
    assert (expected <= table["high"]).all()
    assert not table["refused"].any()
    assert not table["extrapolated"].any()
    assert " patients (95 % interval " in table["answer"][0]
    sooner = labels_needed(curves, 0.8)
    assert (sooner["labels"] < table["labels"]).all()


def test_labels_needed_beyond_the_sizes_measured():
    row = labels_needed(fit(study(law)), 1 - law(200)).iloc[0]
    assert row["extrapolated"]
    assert row["low"] <= 200 <= row["high"]
    assert "beyond the largest measured size, 128" in row["answer"]


def test_labels_needed_for_what_the_smallest_size_gives():
    row = labels_needed(fit(study(law)), 0.3).iloc[0]
    assert (row["labels"], row["low"], row["high"]) == (2, 2, 2)
    assert row["answer"].startswith("a: 2 labels or fewer")


def test_an_open_end_is_stated():
    # Below the floor of some draws, not of all.
    row = labels_needed(fit(study(lambda n: 0.1 + 0.6 * n**-0.8)), 1 - 0.115).iloc[0]
    assert row["high"] == np.inf
    assert 2 < row["low"] < 1000
    assert "no upper end" in row["answer"]
    assert not row["refused"]


def test_an_interval_that_spans_everything_is_refused():
    flat = fit(study(lambda n: 0.3, sizes=(2, 4, 8, 16), seeds=3, patients=5, noise=2, seed=1))
    row = labels_needed(flat, 0.7).iloc[0]
    assert (row["low"], row["high"]) == (2, np.inf)
    assert row["refused"]
    assert row["answer"].startswith("a: no forecast: the interval reaches from the smallest measured size to never")


def test_an_interval_wider_than_a_hundredfold_is_refused():
    slow = fit(study(lambda n: 0.6 * n**-0.03, sizes=(1, 10, 100, 1000, 10000), noise=2))
    row = labels_needed(slow, 1 - 0.6 * 300**-0.03).iloc[0]
    assert np.isfinite(row["high"])
    assert row["high"] > 100 * row["low"]
    assert row["refused"]
    assert "differ by more than a factor of 100" in row["answer"]


def test_one_seed_gives_a_number_and_no_interval():
    row = labels_needed(fit(study(law, seeds=1)), 0.85).iloc[0]
    assert np.isfinite(row["labels"])
    assert np.isnan(row["low"])
    assert not row["refused"]
    assert row["answer"].endswith("labels (no interval); one seed, so no interval")


def test_next_labels():
    curves = fit(study(law, draws=1000))
    row = next_labels(curves, 16, 10).iloc[0]
    worth = law(16) - law(26)
    assert row["gain"] == pytest.approx(worth, rel=0.15)
    assert row["low"] <= worth <= row["high"]
    assert row["score"] == pytest.approx(1 - law(16), abs=0.03)
    assert row["measured"] == 1 - curves[0].errors[SIZES.index(16)]
    assert row["answer"].startswith(f"a: at 16 labels (measured {row['measured']:.3f}, fit {row['score']:.3f}) the")
    assert "Doubtful" not in row["answer"]
    between = next_labels(curves, 20, 10).iloc[0]
    assert np.isnan(between["measured"])
    assert between["answer"].startswith(f"a: at 20 labels (fit {between['score']:.3f}) the")
    assert next_labels(curves, 64, 10)["gain"].item() < row["gain"] / 3
    assert not row["extrapolated"]
    assert next_labels(curves, 120, 10)["extrapolated"].item()


def test_a_fit_that_misses_the_largest_size_is_doubted():
    curves = fit(study(lambda n: 0.5 if n < 128 else 0.3, noise=0.1))  # a step, which no power law follows
    gain, needed = next_labels(curves, 128, 10).iloc[0], labels_needed(curves, 0.55).iloc[0]
    assert gain["measured"] == pytest.approx(0.7, abs=0.01)
    assert gain["score"] < 0.67
    numbers = f"the fit gives {gain['score']:.3f} and the measured score is {gain['measured']:.3f}"
    for row in (gain, needed):
        assert row["answer"].endswith(f". Doubtful: at the largest measured size, 128, {numbers}")


@pytest.mark.parametrize(
    ("at", "more", "reason"),
    [(1, 10, "1 is below the smallest measured size, 2"), (500, 13, "500 \\+ 13 is more than 4 times the largest")],
)
def test_next_labels_outside_what_was_measured(at, more, reason):
    row = next_labels(fit(study(law)), at, more).iloc[0]
    assert row["refused"]
    assert np.isnan(row["gain"])
    assert pd.Series([row["answer"]]).str.contains(reason).all()


def test_a_missing_size_leaves_a_gap_only():
    scores = study(law, law).scores
    scores.of_patients(0, 3)[:] = np.nan
    scores.of_patients(1, 0)[:4, :5] = np.nan
    again = bootstrap(scores, 300)
    curves = fit(again)
    assert len(curves[0].labels) == 6
    assert curves[0].note == "no score at 16 labels"
    assert all(inside(curve.gamma, 0.5) for curve in curves)
    assert 16 not in multipliers(again)["labels"].tolist()
    assert 16 not in backtest(again).query("pipeline == 'a'")["fitted_on"].tolist()
    assert bends(again)["labels"].notna().all()
