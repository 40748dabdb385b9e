import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from classify.statistics import (
    auc_with_interval,
    calibration_bins,
    calibration_error,
    confusion_counts,
    delong,
    delong_test,
    mcnemar,
    proportion,
    summarise,
    youden_threshold,
)

# DeLong, DeLong and Clarke-Pearson 1988, the paper's own example: ovarian cancer and intestinal obstruction.
# Albumin, total protein, K-G score, outcome; the 43 patients with all three tests.
OVARIAN = """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
    3.8 5.7  5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
    2.3 4.4  6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
    3.1 6.6  6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
    3.7 6.1  5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
    3.3 5.7  6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


@pytest.fixture(scope="module")
def ovarian() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    assert len(table) == 43
    scores = {"albumin": table[:, 0], "protein": table[:, 1], "kg": -table[:, 2]}
    return table[:, 3].astype(int), scores


# As SAS/STAT prints them for these data (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves").
@pytest.mark.parametrize(
    ("name", "auc", "error", "low", "high"),
    [
        ("albumin", 0.7366, 0.0927, 0.5549, 0.9182),
        ("protein", 0.6478, 0.1000, 0.4518, 0.8439),
        ("kg", 0.7258, 0.1028, 0.5243, 0.9273),
    ],
)
def test_delong_interval_as_published(ovarian, name, auc, error, low, high):
    labels, scores = ovarian
    areas, covariance = delong(labels, scores[name][None])
    assert areas[0] == pytest.approx(auc, abs=5e-5)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(error, abs=5e-5)
    assert auc_with_interval(labels, scores[name]) == pytest.approx({"value": auc, "low": low, "high": high}, abs=6e-5)


@pytest.mark.parametrize(
    ("name", "difference", "chi2", "p"), [("albumin", 0.0108, 0.0127, 0.9102), ("protein", -0.0780, 0.5554, 0.4561)]
)
def test_delong_test_as_published(ovarian, name, difference, chi2, p):
    labels, scores = ovarian
    test = delong_test(labels, scores[name], scores["kg"])
    assert test["value"] == pytest.approx(difference, abs=5e-5)
    assert test["z"] ** 2 == pytest.approx(chi2, abs=1e-4)
    assert test["p"] == pytest.approx(p, abs=1e-4)
    assert (test["low"] + test["high"]) / 2 == pytest.approx(test["value"])


def direct(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong 1988, equations 3 to 6, pair by pair."""
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    pairs = np.where(
        positive[:, :, None] > negative[:, None], 1.0, np.where(positive[:, :, None] == negative[:, None], 0.5, 0.0)
    )
    s10, s01 = np.atleast_2d(np.cov(pairs.mean(2))), np.atleast_2d(np.cov(pairs.mean(1)))
    return pairs.mean((1, 2)), s10 / positive.shape[1] + s01 / negative.shape[1]


@pytest.mark.parametrize("levels", [4, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_delong_equals_the_direct_computation(levels, seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(0, 2, 40)]
    scores = rng.integers(0, levels, (3, len(labels))) + 0.4 * levels * labels
    areas, covariance = delong(labels, scores)
    expected = direct(labels, scores)
    np.testing.assert_allclose(areas, expected[0], atol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], atol=1e-12)
    np.testing.assert_allclose(areas, [roc_auc_score(labels, row) for row in scores])


def test_delong_by_hand():
    # Two positives (0.8, 0.4), two negatives (0.6, 0.2): three pairs of four in order.
    labels, scores = np.array([1, 1, 0, 0]), np.array([0.8, 0.4, 0.6, 0.2])
    areas, covariance = delong(labels, scores[None])
    assert areas[0] == 0.75
    # Components (1, 1/2) of either class: variance 1/8 each, over 2 exams each.
    assert covariance[0, 0] == pytest.approx(1 / 8 / 2 + 1 / 8 / 2)


def test_the_same_classifier_does_not_differ_from_itself():
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.9, 0.4, 0.3, 0.8])
    assert delong_test(labels, scores, scores) == {"value": 0, "low": 0, "high": 0, "z": 0, "p": 1}


def test_one_class_has_no_curve():
    with pytest.raises(ValueError, match="both classes: 3 positive and 0 negative"):
        delong(np.ones(3), np.zeros((1, 3)))


def test_a_perfect_separation_of_few_is_not_certain():
    labels, scores = np.r_[np.ones(4, int), np.zeros(30, int)], np.r_[np.ones(4), np.zeros(30)]
    auc = auc_with_interval(labels, scores)
    assert auc == {"value": 1.0, "low": pytest.approx(proportion(4, 4)["low"]), "high": 1.0}
    assert auc["low"] == pytest.approx(0.5101, abs=1e-4)
    assert auc_with_interval(labels, -scores)["high"] == pytest.approx(1 - 0.5101, abs=1e-4)


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, trials, low, high):
    interval = proportion(successes, trials)
    assert (interval["low"], interval["high"]) == pytest.approx((low, high), abs=5e-5)


def test_mcnemar_as_published():
    """Bishop, Fienberg and Holland 1975: 121 and 59 discordant pairs; statsmodels and R give 4.434e-06."""
    labels = np.zeros(314, int)
    first = np.r_[np.zeros(101), np.zeros(121), np.ones(59), np.ones(33)]
    second = np.r_[np.zeros(101), np.ones(121), np.zeros(59), np.ones(33)]
    result = mcnemar(labels, first, second)
    assert (result["first_only_right"], result["second_only_right"]) == (121, 59)
    assert result["p"] == pytest.approx(4.434e-06, rel=1e-3)


def test_mcnemar_by_hand():
    labels = np.array([1, 1, 1, 1, 0, 0])
    first, second = np.array([1, 1, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 0, 0])
    # Three pairs for one side, one for the other: 2 * (1 + 4) / 16.
    assert mcnemar(labels, first, second) == {"first_only_right": 3, "second_only_right": 1, "p": pytest.approx(5 / 8)}
    assert mcnemar(labels, first, first)["p"] == 1


def test_calibration_by_hand():
    labels = np.array([0, 1, 1, 1, 0])
    probabilities = np.array([0.1, 0.1, 0.8, 0.9, 1.0])
    # Halves: 0.1 said and 1/2 seen of two exams, 0.9 said and 2/3 seen of three.
    expected = [(0.1, 0.5, 2), (0.9, 2 / 3, 3)]
    assert calibration_bins(labels, probabilities, bins=2) == [pytest.approx(row) for row in expected]
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx((2 * 0.4 + 3 * (0.9 - 2 / 3)) / 5)
    # Tenths: a probability on the edge of two bins belongs to the lower one.
    assert [row[2] for row in calibration_bins(labels, probabilities)] == [2, 1, 1, 1]


def test_calibrated_probabilities_have_no_error():
    probabilities = np.repeat([0.25, 0.75], 4)
    assert calibration_error(np.array([0, 0, 0, 1, 1, 1, 1, 0]), probabilities) == 0


def test_youden_by_hand():
    labels, probabilities = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.7, 0.6, 0.9])
    # Above 0.2 and 0.6: sensitivity 1, specificity 2/3; above 0.7 and 0.9: 1/2 and 1.
    assert youden_threshold(labels, probabilities) == pytest.approx(0.4)
    assert youden_threshold(np.array([0, 1]), np.array([0.1, 0.2])) == pytest.approx(0.15)
    assert youden_threshold(np.array([0, 1]), np.array([0.3, 0.3])) == 0.5


def test_summary_by_hand():
    labels, probabilities = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.3, 0.5, 0.2, 0.1])
    summary = summarise(labels, probabilities, 0.5)
    assert summary["confusion"] == {"tp": 1, "fp": 1, "fn": 1, "tn": 2}
    assert confusion_counts(labels, probabilities >= 0.95) == {"tp": 0, "fp": 0, "fn": 2, "tn": 3}
    values = {name: summary[name]["value"] for name in ("auc", "accuracy", "sensitivity", "specificity")}
    assert values == pytest.approx({"auc": 5 / 6, "accuracy": 3 / 5, "sensitivity": 1 / 2, "specificity": 2 / 3})
    assert (summary["exams"], summary["positive"]) == (5, 2)
    assert summary["brier"] == pytest.approx((0.01 + 0.49 + 0.25 + 0.04 + 0.01) / 5)
