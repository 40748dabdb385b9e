import numpy as np
import pandas as pd
import pytest
from scipy.stats import CensoredData, ecdf

from sweep.analysis.convergence import (
    Runs,
    cell_areas,
    curve_areas,
    median_steps,
    runs_from,
    share_reached,
    speedups,
    steps,
    steps_to,
)

# Remission of leukaemia in weeks, 6-mercaptopurine against placebo (Freireich et al. 1963), the worked example of
# Cox and Oakes 1984, Analysis of Survival Data, table 1.1 and section 4.2; 0: censored.
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
SURVIVAL = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_kaplan_meier_textbook_example():
    x, share = share_reached(np.array(TREATED), np.array(RELAPSED, bool))
    survival = dict(zip(x.tolist(), 1 - share, strict=True))
    assert {week: survival[week] for week in SURVIVAL} == pytest.approx(SURVIVAL, abs=5e-4)


def test_kaplan_meier_median_textbook_example():
    assert median_steps(np.array(TREATED), np.array(RELAPSED, bool), np.ones((1, 21))) == [23]
    assert median_steps(np.array(PLACEBO), np.ones(21, bool), np.ones((1, 21))) == [8]


def test_weighted_median_is_scipys_of_repeated_runs():
    rng = np.random.default_rng(0)
    times, reached = rng.integers(1, 12, 9).astype(float), rng.random(9) < 0.6
    weights = rng.multinomial(9, np.full(9, 1 / 9), 60)
    for counts, median in zip(weights, median_steps(times, reached, weights), strict=True):
        t, event = np.repeat(times, counts), np.repeat(reached, counts)
        survival = ecdf(CensoredData(uncensored=t[event], right=t[~event])).sf
        half = survival.quantiles[survival.probabilities <= 0.5 + 1e-9]
        assert median == (half[0] if len(half) else np.inf)


def test_nothing_reached_has_no_median():
    times, reached = np.array([5.0, 5.0, 3.0]), np.array([False, False, True])
    assert median_steps(times, reached, np.ones((1, 3))) == [np.inf]
    assert np.isnan(median_steps(times, reached, np.zeros((1, 3))))
    x, share = share_reached(times[:2], reached[:2])
    assert x.tolist() == [5]
    assert share.tolist() == [0]


def test_runs_that_miss_a_fold_are_left_out():
    """Its fold is a hard one, without which the mean would be over other patients."""
    rows = [
        {"pipeline": pipeline, "labels": 5, "subset_seed": seed, "seed": seed, "pretrain_seed": 0, "fold": fold}
        | {"pretrain_epochs": None, "step": step, "score": score * (1 - 0.5 * fold)}
        for pipeline, seed, fold in (
            ("a", 0, 0),
            ("a", 0, 1),
            ("b", 0, 0),
            ("a", 1, 0),
            ("a", 1, 1),
            ("b", 1, 0),
            ("b", 1, 1),
        )
        for step, score in ((10, 0.4), (20, 0.8))
    ]
    runs = runs_from(pd.DataFrame(rows))
    assert np.isnan(runs.scores[1, 0, 0]).all()  # of the first seed, b lacks the second fold
    np.testing.assert_allclose(runs.scores[:, 0, 1], [[0.3, 0.6]] * 2)
    np.testing.assert_allclose(runs.reference, [0.6])


def test_the_distance_of_validations_is_that_of_the_size_with_the_largest():
    scores = np.full((1, 2, 1, 9), np.nan)
    scores[0, 0, 0, [0, 2, 4, 6]] = 1  # steps 3, 6, 9, 12
    scores[0, 1, 0, [1, 3, 5, 7, 8]] = 1  # 5, 7, 10, 15, 20
    settings = {"pipelines": ("a",), "labels": np.array([2, 4]), "seeds": ((0, 0),)}
    runs = Runs(**settings, steps=np.array([3.0, 5, 6, 7, 9, 10, 12, 15, 20]), scores=scores)
    assert runs.spacing == 5


def table() -> pd.DataFrame:
    """One size, two seeds, validations at 10, 20, 30, 40; b's second run ends early."""
    scores = {
        ("a", 0): [0.50, 0.72, 0.76, 0.80],
        ("a", 1): [0.70, 0.77, 0.79, 0.80],
        ("b", 0): [0.40, 0.60, 0.73, 0.74],
        ("b", 1): [0.40, 0.50, 0.60],
    }
    return pd.DataFrame(
        {"pipeline": pipeline, "pretrain_epochs": np.nan, "pretrain_seed": 0, "fraction": 0.5, "labels": 7}
        | {"subset_seed": seed, "seed": seed, "step": 10 * (place + 1), "score": score, "loss": 0.0}
        for (pipeline, seed), curve in scores.items()
        for place, score in enumerate(curve)
    )


def test_steps_to_a_common_reference():
    runs = runs_from(table())
    assert runs.scores.shape == (2, 1, 2, 4)
    np.testing.assert_allclose(runs.final[:, 0], [[0.8, 0.8], [0.74, 0.6]])
    assert runs.reference == pytest.approx(0.8)  # of a, for both
    taken, reached = steps_to(runs, 0.9)  # 0.72
    np.testing.assert_array_equal(taken[:, 0], [[20, 20], [30, 30]])
    np.testing.assert_array_equal(reached[:, 0], [[True, True], [True, False]])
    taken, reached = steps_to(runs, 0.95)  # 0.76
    np.testing.assert_array_equal(taken[:, 0], [[30, 20], [40, 30]])
    np.testing.assert_array_equal(reached[:, 0], [[True, True], [False, False]])


def test_steps_table():
    rows = steps(runs_from(table()), draws=200).set_index(["pipeline", "level"])
    assert rows.loc[("a", 0.9), ["median", "low", "high", "reached", "runs"]].tolist() == [20, 20, 20, 2, 2]
    assert rows.loc[("a", 0.95), ["median", "low", "high"]].tolist() == [20, 20, 30]
    # b: one of two runs reaches 0.72 at 30, where the other, censored, is still at risk.
    assert rows.loc[("b", 0.9), ["median", "low", "high", "reached"]].tolist() == [30, 30, np.inf, 1]
    assert np.isnan(rows.loc[("b", 0.98), "median"])
    assert rows.loc[("b", 0.98), ["low", "high"]].tolist() == [40, np.inf]
    assert rows.loc[("b", 0.98), "reached"] == 0
    assert rows["reference"].tolist() == pytest.approx([0.8] * 6)


def runs_of(steps_a: list[float], steps_b: list[float], last: int = 100) -> Runs:
    """Runs that jump from 0 to 1 at given steps; beyond `last` never."""
    grid = np.arange(1, last + 1, dtype=float)
    scores = np.array([[[grid >= step for step in row]] for row in (steps_a, steps_b)], float)
    scores[..., -1] = np.maximum(scores[..., -1], 0)
    seeds = tuple((s, s) for s in range(len(steps_a)))
    return Runs(pipelines=("a", "b"), labels=np.array([4]), seeds=seeds, steps=grid, scores=scores)


def test_speedup_is_the_geometric_mean_of_paired_ratios():
    row = speedups(runs_of([10, 20, 5], [20, 10, 80]), draws=300).iloc[0]
    assert row["ratio"] == pytest.approx((2 * 0.5 * 16) ** (1 / 3))
    assert 0.5 <= row["low"] < row["ratio"] < row["high"] <= 16
    assert row["bound"] == ""
    same = speedups(runs_of([10, 20, 5], [40, 80, 20]), draws=300).iloc[0]
    assert same[["ratio", "low", "high"]].tolist() == pytest.approx([4, 4, 4])  # paired: runs differ, ratios do not


def test_speedup_is_bounded_by_runs_that_end():
    row = speedups(runs_of([10, 20, 25], [20, 999, 100]), draws=300).iloc[0]
    assert row["ratio"] == pytest.approx((2 * 5 * 4) ** (1 / 3))  # the second counts with its last step, 100
    assert (row["bound"], row["high"]) == (">=", np.inf)
    assert row["low"] == pytest.approx(2)
    back = speedups(runs_of([20, 999, 100], [10, 20, 25]), draws=300).iloc[0]
    assert back["ratio"] == pytest.approx((2 * 5 * 4) ** (-1 / 3))
    assert (back["bound"], back["low"]) == ("<=", 0)


def test_speedup_that_cannot_be_known():
    row = speedups(runs_of([10, 999, 10], [999, 10, 10]), draws=50).iloc[0]
    assert np.isnan(row["ratio"])
    assert "each pipeline fails" in row["note"]
    row = speedups(runs_of([10, 999, 20], [20, 999, 40]), draws=50).iloc[0]
    assert row["ratio"] == pytest.approx(2)
    assert row["note"] == "1 of 3 pairs left out: neither run reached the level"


def test_speedup_intervals_cover():
    rng, covered = np.random.default_rng(0), []
    for _ in range(60):
        hard = rng.lognormal(0, 0.5, 8)  # of a seed, for both pipelines
        first, second = (k * hard * rng.lognormal(0, 0.2, 8) for k in (10, 30))
        row = speedups(runs_of(first.tolist(), second.tolist(), 400), draws=200).iloc[0]
        covered.append(row["low"] * 0.98 <= 3 <= row["high"] * 1.02)  # steps are whole
    assert np.mean(covered) >= 0.85


def test_curve_areas():
    runs = runs_from(table())
    first = (0.61 + 0.74 + 0.78) / 3  # trapezoids of equal width
    np.testing.assert_allclose(cell_areas(runs)[0, 0], [first, (0.735 + 0.78 + 0.795) / 3])
    np.testing.assert_allclose(cell_areas(runs)[1, 0, 1], (0.45 + 0.55) / 2)
    rows = curve_areas(runs, draws=200)
    assert rows["area"][0] == pytest.approx((first + 0.77) / 2)
    assert rows["low"][0] == pytest.approx(first)  # the lesser of two seeds
    assert rows["high"][0] == pytest.approx(0.77)


def test_pretraining_seeds_are_resampled_and_the_longest_pretraining_counts():
    """a has two encoders and b one: intervals of a hold both, b counts its runs once and has no such variance."""
    rows = table().query("pipeline == 'a'")
    short, other = rows.assign(pretrain_epochs=1, score=0.0), rows.assign(pretrain_epochs=5, pretrain_seed=1, score=0.4)
    alone = table().query("pipeline == 'b'").assign(pretrain_seed=7)
    runs = runs_from(pd.concat([short, rows.assign(pretrain_epochs=5), other, alone]))
    np.testing.assert_allclose(runs.scores[0, 0, :2], [[0.50, 0.72, 0.76, 0.80], [0.4] * 4])
    assert runs.pretrainings == 2
    assert np.isnan(runs.scores[1, 0, 1::2]).all()  # what figures draw
    areas = curve_areas(runs, draws=200).set_index("pipeline")
    without = curve_areas(runs_from(alone), draws=200).iloc[0]
    assert areas.loc["b", ["area", "low", "high"]].tolist() == pytest.approx(without[["area", "low", "high"]].tolist())
    assert areas.loc["a", "low"] == pytest.approx(0.4)  # a draw of the second pretraining alone
    counts = steps(runs, draws=50).set_index(["pipeline", "level"])["runs"]
    assert (counts["a", 0.9], counts["b", 0.9]) == (4, 2)


def test_missing_runs_leave_gaps_only():
    rows = table().query("pipeline == 'a' or seed == 0")
    more = rows.query("pipeline == 'a'").assign(labels=14)
    runs = runs_from(pd.concat([rows, more]))
    found = steps(runs, draws=50).set_index(["pipeline", "labels", "level"])
    assert found.loc[("b", 7, 0.9), ["median", "runs", "note"]].tolist() == [30, 1, "one seed, so no interval"]
    assert np.isnan(found.loc[("b", 7, 0.9), "low"])
    assert found.loc[("b", 14, 0.9), ["runs", "note"]].tolist() == [0, "no run"]
    ratios = speedups(runs, draws=50).set_index(["labels", "level"])
    assert ratios.loc[(7, 0.9), "ratio"] == pytest.approx(30 / 20)
    assert ratios.loc[(14, 0.9), "note"] == "no run"
    areas = curve_areas(runs, draws=50).set_index(["pipeline", "labels"])
    assert np.isnan(areas.loc[("b", 14), "area"])


def test_one_usable_pair_has_no_interval():
    """Both runs of the second seed fail, the second pipeline's of the first seed too: a bound, without an interval."""
    scores = np.array([[[[0.5, 1.0], [0.1, 0.2]]], [[[0.1, 0.5], [0.1, 0.2]]]])  # (pipelines, size, seeds, steps)
    key = {"labels": 7, "pretrain_seed": 0, "pretrain_epochs": np.nan}
    rows = [
        key | {"pipeline": "ab"[p], "subset_seed": r, "seed": r, "step": 10 * (k + 1), "score": score}
        for (p, _, r, k), score in np.ndenumerate(scores)
    ]
    curves = pd.DataFrame(rows)
    row = speedups(runs_from(curves), draws=50).query("level == 0.9").iloc[0]
    assert (row["first"], row["second"]) == ("a", "b")
    assert row["bound"] == ">="
    assert np.isnan([row["low"], row["high"]]).all()
