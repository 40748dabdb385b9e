from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

from core.errors import UserError
from sweep.analysis.bootstrap import bootstrap, interval, resampled, resampled_seeds
from sweep.analysis.scores import Scores, scores_from
from sweep.analysis.statistics import areas, by_size, decided, holm, oriented, pairs, primary, two_sided
from sweep.analysis.tables import analyse


def scores(values: np.ndarray, **fields) -> Scores:
    """Scores from an array (pipelines, sizes, seeds, patients); sizes are 1, 2, 4, ..."""
    defaults = {
        "pipelines": tuple("abcd"[: len(values)]),
        "labels": 2 ** np.arange(values.shape[1]),
        "seeds": tuple((seed, seed) for seed in range(values.shape[2])),
        "patients": tuple(map(str, range(values.shape[-1]))),
        "values": np.asarray(values, float),
    }
    return Scores(**{**defaults, **fields})


def simulated(rng: np.random.Generator, seeds: int = 10, patients: int = 20, pipelines: int = 1) -> np.ndarray:
    """Values at one size, mean 0.7: patients, seeds and their interaction vary."""
    noise = rng.normal(0, 0.06, (1, 1, 1, patients)) + rng.normal(0, 0.03, (pipelines, 1, seeds, 1))
    return 0.7 + noise + rng.normal(0, 0.04, (pipelines, 1, seeds, patients))


def test_cells_are_means_over_the_scored_patients():
    values = np.array([[[[0.2, 0.4, 0.9], [0.5, np.nan, 0.7], [np.nan] * 3]]])
    study = scores(values)
    np.testing.assert_allclose(study.cells()[0, 0], [0.5, 0.6, np.nan])
    np.testing.assert_allclose(study.cells(np.array([[2, 1, 0]]))[0, 0, 0], [0.8 / 3, 0.5, np.nan])


def test_cells_are_weighted_aucs_as_in_sklearn():
    rng = np.random.default_rng(0)
    truth = (rng.random(40) < 0.4).astype(int)
    values = rng.integers(0, 12, (2, 3, 2, 40)) / 12 + 0.0  # many ties
    values[1, 2, 1, :5] = np.nan
    study = scores(values, truth=truth)
    weights = np.vstack([np.ones(40), rng.multinomial(40, np.full(40, 1 / 40), 4)])
    cells = study.cells(weights)
    assert cells.shape == (5, 2, 3, 2)
    for draw, place in ((0, (0, 0, 0)), (1, (0, 1, 1)), (4, (1, 0, 0)), (0, (1, 2, 1)), (3, (1, 2, 1))):
        scored = ~np.isnan(values[place])
        expected = roc_auc_score(truth[scored], values[place][scored], sample_weight=weights[draw][scored])
        assert cells[draw][place] == pytest.approx(expected)
    assert np.isnan(study.cells(truth[None].astype(float))).all()  # a draw of positive exams only


def test_exams_of_one_patient_are_drawn_together():
    """Four copies of each exam under the name of its patient say no more than one."""
    rng = np.random.default_rng(0)
    truth, values = np.arange(40) % 2, rng.normal(0, 1, (1, 1, 3, 40))
    values += 0.8 * truth
    names = tuple(f"p{k}" for k in range(40))
    single = by_size(bootstrap(scores(values, truth=truth, patients=names), 500)).iloc[0]
    four = {"patients": tuple(f"{name}-{k}" for name in names for k in range(4)), "truth": truth.repeat(4)}
    copies = scores(values.repeat(4, axis=-1), **four, subjects=tuple(np.repeat(names, 4)))
    assert by_size(bootstrap(copies, 500)).iloc[0][["mean", "low", "high"]].tolist() == pytest.approx(
        single[["mean", "low", "high"]].tolist()
    )
    rows = pd.DataFrame({"pipeline": "random", "pretrain_epochs": None, "pretrain_seed": 0, "labels": 2, "seed": 0,
                         "subset_seed": 0, "exam": ["y", "x"], "subject": ["a", "b"], "label": [1, 0],
                         "probability": [0.9, 0.1]})  # fmt: skip
    assert scores_from(rows).subjects == ("b", "a")
    assert scores_from(rows.drop(columns="subject")).subjects is None


def volumes() -> pd.DataFrame:
    """Two pipelines, sizes 2 and 8 (all), one seed pair, patients P and Q of two volumes each."""
    rows = []
    for pipeline, pretrained in (("random", (0,)), ("hierarchical", (0, 1))):
        for labels, pretrain_seed, epochs in ((n, p, e) for n in (2, 8) for p in pretrained for e in (1, 5)):
            for subject, phase in (("P", "ED"), ("P", "ES"), ("Q", "ED"), ("Q", "ES")):
                low = 0.1 * (subject == "Q") + 0.2 * (phase == "ES") + 0.3 * (pretrain_seed == 1)
                row = {"cell": f"{pipeline}{labels}", "pipeline": pipeline, "pretrain_seed": pretrain_seed}
                row |= {"pretrain_epochs": np.nan if pipeline == "random" else epochs, "fraction": labels / 8}
                row |= {"labels": labels, "subset_seed": 3, "seed": 4, "subject": subject, "phase": phase}
                row |= {"dice_RV": 0.9 - low, "dice_LV": 0.8 - low, "jaccard_RV": 0.5, "jaccard_LV": 0.3}
                row |= {"labelled_subjects": 1 if labels == 2 else 5}
                if pipeline == "hierarchical" and epochs == 1:
                    row |= {"dice_RV": 0.0, "dice_LV": 0.0}
                rows.append(row)
    table = pd.DataFrame(rows)
    table.loc[(table["subject"] == "P") & (table["phase"] == "ES"), "dice_LV"] = np.nan
    return table


def test_scores_from_volumes():
    study = scores_from(volumes())
    assert study.pipelines == ("random", "hierarchical")  # as they come
    assert study.labels.tolist() == [2, 8]
    assert study.seeds == ((3, 4),)
    assert study.patients == ("P", "Q")
    # P: RV (0.9 + 0.7) / 2, LV 0.8 alone. Q: RV (0.8 + 0.6) / 2, LV (0.7 + 0.5) / 2. The second pretraining: 0.3 less.
    for size in (0, 1):
        np.testing.assert_allclose(study.of_patients(0, size), [[0.8, 0.65]] * 2)  # random has one encoder
        np.testing.assert_allclose(study.of_patients(1, size), [[0.8, 0.65], [0.5, 0.35]])  # of 5 epochs, not of 1
    np.testing.assert_allclose(study.cells()[:, 0, 0], [0.725, 0.575])  # means over pretraining seeds
    np.testing.assert_allclose(scores_from(volumes(), "jaccard").cells(), 0.4)


def test_folds_of_one_seed_make_one_replicate_in_which_every_patient_is_scored_once():
    rows = volumes()
    folds = rows.assign(fold=(rows["subject"] == rows["subject"].iloc[0]).astype(int))
    shuffled = folds.sort_values("fold", kind="stable")  # fold by fold, as the cells of a study are collected
    np.testing.assert_array_equal(scores_from(shuffled).values, scores_from(rows).values)
    assert scores_from(shuffled).seeds == scores_from(rows).seeds


def test_scores_from_exams_average_aucs_and_not_probabilities():
    first, second = [0.9, 0.4, 0.5, 0.1], [0.4, 0.9, 0.1, 0.5]  # each AUC 0.75, their mean's 1
    rows = [
        {"pipeline": pipeline, "pretrain_epochs": np.nan, "pretrain_seed": seed, "fraction": 0.5, "labels": 10}
        | {"subset_seed": 0, "seed": 0, "exam": f"{exam:04d}", "label": int(exam < 2), "probability": p}
        for pipeline, seed, chances in (("specialist", 0, first), ("specialist", 1, second), ("random", 0, first))
        for exam, p in enumerate(chances)
    ]
    study = scores_from(pd.DataFrame(rows))
    assert study.of_patients(0, 0).tolist() == [first, second]
    np.testing.assert_allclose(study.cells(), 0.75)
    np.testing.assert_allclose(study.matched("specialist", "random").cells(), 0.75)  # random has one pretraining seed


def test_pipelines_without_a_pretraining_seed_add_none():
    """The random start's seed 0 is no pretraining seed beside 3 and 4, nor beside 3 alone."""
    rows = volumes()
    rows["pretrain_seed"] = rows["pretrain_seed"].where(rows["pipeline"] == "random", rows["pretrain_seed"] + 3)
    study, expected = scores_from(rows), scores_from(volumes())
    assert study.pretrainings == 2
    np.testing.assert_array_equal(study.cells(), expected.cells())
    np.testing.assert_array_equal(bootstrap(study, 50).means, bootstrap(expected, 50).means)
    alone = scores_from(rows[rows["pretrain_seed"] < 4])
    assert alone.pretrainings == 1
    np.testing.assert_allclose(alone.cells()[:, 0, 0], [0.725, 0.725])


def test_bootstrap_resamples_have_the_variance_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, 4.5, 9.0])
    weights = resampled(5, 40_000, np.random.default_rng(0))
    assert (weights[0] == 1).all()
    means = weights[1:] @ values / 5
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)
    assert means.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.03)  # not 4 / 5 of it


def test_crossed_seeds_are_drawn_independently():
    seeds = tuple((subset, seed) for subset in (5, 6, 7) for seed in (1, 2, 3, 4))
    weights = resampled_seeds(seeds, 50).reshape(51, 3, 4)
    subset, initial = weights.sum(axis=2) / 4, weights.sum(axis=1) / 3
    np.testing.assert_allclose(weights, subset[:, :, None] * initial[:, None, :])
    assert (subset == 0).any()
    assert (initial == 0).any()
    paired = resampled_seeds(((5, 5), (6, 6), (7, 7)), 50)
    np.testing.assert_allclose(paired.sum(axis=1), 3)


def test_interval_takes_ranks_and_keeps_infinities():
    draws = np.r_[-7.0, np.random.default_rng(0).permutation(np.arange(1, 2000))]
    assert interval(draws) == (50, 1950)  # row 0 is the estimate
    assert interval(np.where(draws > 1960, np.inf, draws)) == (50, 1950)  # 2 %
    assert interval(np.where(draws > 1940, np.inf, draws)) == (50, np.inf)  # 3 %
    assert np.isnan(interval(np.where(draws > 500, np.nan, draws))).all()


def test_bootstrap_repeats_and_starts_with_the_data():
    study = scores(simulated(np.random.default_rng(1), pipelines=2))
    first, again, other = (bootstrap(study, 100, seed).means for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first[1:] != other[1:]).any()
    np.testing.assert_allclose(first[0], study.cells().mean(axis=-1))


@pytest.mark.slow
def test_bootstrap_intervals_cover():
    covered = []
    for study in range(200):
        low, high = interval(bootstrap(scores(simulated(np.random.default_rng([study, 1]))), 500).means)
        covered.append(low[0, 0] <= 0.7 <= high[0, 0])
    assert 0.88 <= np.mean(covered) <= 0.99


def several_pretrainings(rng: np.random.Generator, pretrainings: int = 5) -> Scores:
    """A random start and a pretrained one, both 0.7 on average; the pretrained one varies with its pretraining."""
    start, pretrained = simulated(rng, seeds=6, patients=10, pipelines=2)[:, :, :, None].repeat(pretrainings, axis=3)
    pretrained = pretrained + rng.normal(0, 0.1, (1, 1, pretrainings, 1))
    return scores(np.stack([start, pretrained + rng.normal(0, 0.02, pretrained.shape)]))


def test_intervals_cover_the_variance_of_pretraining():
    covered, without = [], []
    for study in range(100):
        boot = bootstrap(several_pretrainings(np.random.default_rng([study, 3])), 200)
        table = pairs(boot).iloc[0]
        covered.append(table["low"] <= 0 <= table["high"])
        fixed = replace(boot, pretrain_weights=np.ones_like(boot.pretrain_weights))
        table = pairs(fixed).iloc[0]
        without.append(table["low"] <= 0 <= table["high"])
    assert np.mean(without) < 0.7  # as before, the pretraining seeds averaged
    assert np.mean(covered) >= 0.85  # percentile intervals of five values are slightly narrow


def test_one_encoder_adds_no_variance_of_pretraining():
    boot = bootstrap(several_pretrainings(np.random.default_rng(0)), 200)
    np.testing.assert_allclose(boot.pretrain_weights.sum(axis=1), 5)
    assert (boot.pretrain_weights[1:] != 1).any()
    start = scores(boot.scores.of_patients(0, 0).reshape(1, 1, 6, 5, 10)[:, :, :, 0])
    alone = replace(boot, scores=start, pretrain_weights=np.ones((201, 1)))
    np.testing.assert_allclose(boot.means[:, 0], alone.means[:, 0])


@pytest.mark.slow
def test_intervals_of_differences_cover_and_are_paired():
    covered, narrower = [], []
    for study in range(100):
        boot = bootstrap(scores(simulated(np.random.default_rng([study, 2]), pipelines=2)), 300)
        table = pairs(boot).iloc[0]
        covered.append(table["low"] <= 0 <= table["high"])
        low, high = interval(boot.means[:, 0])
        narrower.append(table["high"] - table["low"] < 1.2 * (high[0] - low[0]))
    assert np.mean(covered) >= 0.88
    assert np.mean(narrower) > 0.9  # unpaired it would be 1.4 times as wide, as patients would count twice


def test_by_size():
    values = np.array([[[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]], [[0.5] * 4, [np.nan] * 4], [[np.nan] * 4] * 2]])
    table = by_size(bootstrap(scores(values), 200))
    assert table["seeds"].tolist() == [2, 1, 0]
    assert table["patients"].tolist() == [4, 4, 0]
    np.testing.assert_allclose(table["mean"], [0.45, 0.5, np.nan])
    np.testing.assert_allclose(table["iqm"], [0.45, 0.5, np.nan])
    np.testing.assert_allclose(table["sd"], [0.4 / np.sqrt(2), np.nan, np.nan])
    assert table["low"].iloc[0] < 0.45 < table["high"].iloc[0]
    assert table[["low", "high"]].iloc[1:].isna().all(axis=None)
    assert table["note"].tolist() == ["", "one seed at 2 labels, so no interval", "no score at 4 labels"]


def test_interquartile_mean_is_not_moved_by_a_failure():
    values = np.array([[[[0.0, 0.7, 0.8, 0.9]]]])
    assert by_size(bootstrap(scores(values), 50))["iqm"].iloc[0] == pytest.approx(0.75)


def test_pairs_count_only_what_both_have():
    a = [[0.5, 0.7], [0.6, np.nan], [0.9, 0.9], [0.4, 0.4]]
    b = [[0.4, 0.6], [0.8, 0.2], [np.nan, np.nan], [0.4, 0.4]]
    table = pairs(bootstrap(scores(np.array([[a], [b]])), 200)).iloc[0]
    assert (table["first"], table["second"]) == ("a", "b")
    assert table["difference"] == pytest.approx((0.1 - 0.2 + 0) / 3)
    assert table["improvement"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert table["improvement_low"] >= 0
    assert table["improvement_high"] <= 1


def test_equal_pipelines_do_not_differ():
    boot = bootstrap(scores(simulated(np.random.default_rng(0)).repeat(2, axis=0)), 200)
    row = pairs(boot).iloc[0]
    expected = {"difference": 0, "low": 0, "high": 0, "improvement": 0.5}
    assert row[list(expected)].to_dict() == pytest.approx(expected, abs=1e-12)


def test_areas_and_primary_endpoint():
    # Errors 0.6, 0.4, 0.1 at 1, 2 and 8 labels: (0.5 * 1 + 0.25 * 2) / 3. The other is 0.1 better everywhere.
    curve = 1 - np.array([0.6, 0.4, 0.1])[None, :, None, None]
    noise = np.random.default_rng(0).normal(0, 0.01, (1, 3, 4, 6))
    noise -= noise.mean(axis=(2, 3), keepdims=True)
    values = np.concatenate([curve + noise, curve + noise + 0.1, curve + noise[:, :, ::-1] - 0.001])
    boot = bootstrap(scores(values, labels=np.array([1, 2, 8])), 500)
    table = areas(boot)
    np.testing.assert_allclose(table["area"], [1 / 3, 1 / 3 - 0.1, 1 / 3 + 0.001])
    assert (table["low"] < table["area"]).all()
    assert (table["area"] < table["high"]).all()
    endpoint = primary(boot)
    assert list(zip(endpoint["first"], endpoint["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    np.testing.assert_allclose(endpoint["area_difference"], [0.1, -0.001, -0.101])  # the smaller area is the better
    np.testing.assert_allclose(endpoint["p"], [2 / 501, endpoint["p"][1], 2 / 501])
    assert endpoint["p"][1] > 0.05
    np.testing.assert_allclose(endpoint["p_holm"], holm(endpoint["p"]))


def test_few_seeds_prove_little():
    # Both seeds and all patients favour b at both sizes, so every draw does; t with one degree of freedom knows better.
    differences = np.array([0.02, 0.06])
    values = np.stack([np.full((2, 2, 5), 0.5), 0.5 + differences[None, :, None].repeat(2, 0).repeat(5, 2)])
    row = primary(bootstrap(scores(values), 200)).iloc[0]
    assert row["area_difference"] == pytest.approx(0.04)
    assert row["low"] > 0
    assert row["p"] == pytest.approx(ttest_1samp(differences, 0).pvalue)  # 0.295


def test_missing_cells_leave_gaps_only():
    values = simulated(np.random.default_rng(0), pipelines=2).repeat(3, axis=1)
    values[0, 1] = np.nan  # a has nothing at 2 labels
    values[1, 2, 1:] = np.nan  # b has one seed at 4
    boot = bootstrap(scores(values), 200)
    table = areas(boot)
    assert table["area"].notna().all()
    assert table["low"].isna().tolist() == [False, True]
    assert table["note"].tolist() == ["no score at 2 labels", "one seed at 4 labels, so no interval"]
    row = primary(boot).iloc[0]
    assert np.isfinite(row["area_difference"])
    assert np.isnan(row["p"])
    assert row["note"] == "no score at 2 labels; one seed at 4 labels, so no interval"


def test_one_seed_has_no_interval():
    boot = bootstrap(scores(simulated(np.random.default_rng(0), seeds=1, pipelines=2)), 100)
    table = by_size(boot)
    assert table["mean"].notna().all()
    assert table[["low", "high", "sd"]].isna().all(axis=None)
    assert set(table["note"]) == {"one seed, so no interval"}
    assert pairs(boot)[["low", "high"]].isna().all(axis=None)


def test_one_pipeline_has_no_pairs():
    boot = bootstrap(scores(simulated(np.random.default_rng(0))), 100)
    assert pairs(boot).empty
    assert primary(boot).empty
    assert {"difference", "improvement"} <= set(pairs(boot))


def test_differences_are_turned_towards_the_later_pipeline():
    pairs = pd.DataFrame(
        {"first": ["b", "a"], "second": ["a", "c"], "labels": 5,
         "difference": [0.2, -0.1], "low": [0.1, -0.3], "high": [0.3, 0.1],
         "improvement": [1.0, 0.25], "improvement_low": [0.9, 0.0], "improvement_high": [1.0, 0.5]}
    )  # fmt: skip
    turned = oriented(pairs, ("a", "b", "c"))
    assert turned[["pipeline", "baseline"]].to_numpy().tolist() == [["b", "a"], ["c", "a"]]
    assert turned[["difference", "low", "high"]].to_numpy().tolist() == [[0.2, 0.1, 0.3], [0.1, -0.1, 0.3]]
    assert turned[["improvement", "improvement_low", "improvement_high"]].to_numpy().tolist() == [
        [1.0, 0.9, 1.0],
        [0.75, 0.5, 1.0],
    ]
    primary = pd.DataFrame({"first": ["a"], "second": ["b"], "area_difference": [0.2], "low": [0.1], "high": [0.4]})
    assert oriented(primary, ("a", "b"))[["difference", "low", "high"]].to_numpy().tolist() == [[0.2, 0.1, 0.4]]
    assert oriented(primary, ("b", "a"))[["difference", "low", "high"]].to_numpy().tolist() == [[-0.2, -0.4, -0.1]]
    assert pairs["difference"].tolist() == [0.2, -0.1]


def test_decided():
    assert decided({"low": 0.1, "high": 0.2})
    assert not decided({"low": 0.1, "high": 0.2, "p_holm": 0.06})
    assert not decided({"low": -0.1, "high": 0.2, "p_holm": 0.01})
    assert not decided({"low": np.nan, "high": np.nan})
    assert decided({"low": 1.1, "high": np.inf}, 1)
    assert not decided({"low": 0.9, "high": np.inf}, 1)


def test_two_sided_agrees_with_the_interval():
    draws = np.r_[0.0, np.arange(1, 2001) - 40.5]  # 40 of 2000 below 0
    assert two_sided(draws) == pytest.approx(2 * 41 / 2001)
    assert interval(draws)[0] > 0
    assert two_sided(draws - 20) > 0.05
    assert interval(draws - 20)[0] < 0
    assert two_sided(np.zeros(11)) == 1
    assert np.isnan(two_sided(np.full(11, np.nan)))


def test_holm_worked_example():
    # Wikipedia, "Holm-Bonferroni method", example: only H4 and H1 are rejected at 0.05.
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(
        holm([0.4, np.nan, 0.6]), [0.8, np.nan, 0.8]
    )  # two tests; the second not below the first
    assert holm([]).shape == (0,)


COLUMNS = {
    "by_size": "pipeline labels seeds patients mean iqm sd low high",
    "gains": "pipeline fewest most gain low high",
    "pairs": "first second labels difference low high improvement improvement_low improvement_high",
    "primary": "first second area_difference low high p p_holm",
    "areas": "pipeline area low high",
    "fits": "pipeline model alpha eta gamma alpha_low alpha_high eta_low eta_high gamma_low gamma_high aicc best note",
    "bands": "pipeline labels error low high extrapolated",
    "bends": "pipeline labels low high slope_before slope_after delta_aicc holds",
    "multipliers": "pipeline baseline labels multiplier low high bound",
    "backtest": "pipeline fitted_on labels observed predicted low high inside",
    "steps": "pipeline labels level reference median low high reached runs",
    "speedups": "first second labels level ratio low high bound",
    "curve_areas": "pipeline labels area low high",
}


def write_study(folder: Path, sizes: tuple[int, ...], seeds: int) -> Path:
    """A study of two pipelines on disk, as `python -m sweep` leaves it."""
    folder.mkdir()
    rng, cells, volumes, curves = np.random.default_rng(0), [], [], []
    for pipeline, labels, seed in ((p, n, s) for p in ("random", "specialist") for n in sizes for s in range(seeds)):
        score = 0.9 - (0.5 if pipeline == "random" else 0.3) * labels**-0.5
        key = {"cell": f"{pipeline}-{labels}-{seed}", "pipeline": pipeline, "pretrain_epochs": np.nan}
        key |= {"pretrain_seed": 0, "fraction": labels / 64, "labels": labels, "subset_seed": seed, "seed": seed}
        for split in ("val", "test"):
            cells.append({**key, "split": split, "labelled_subjects": labels, "dice": score})
            for subject in ("0001", "0002", "0003"):
                dice = score + rng.normal(0, 0.02) - 0.3 * (split == "val")
                volumes.append({**key, "split": split, "subject": subject, "phase": "ED", "dice_A": dice})
        curves += [{**key, "step": step, "score": score * (1 - 2**-step), "loss": 0.1} for step in range(1, 6)]
    pd.DataFrame(cells).to_csv(folder / "results.csv", index=False)
    pd.DataFrame(volumes).to_csv(folder / "per_volume.csv", index=False)
    pd.DataFrame(curves).assign(pretrain_epochs=None).to_parquet(folder / "curves.parquet")
    return folder


def test_analyse_writes_every_table(tmp_path):
    folder = write_study(tmp_path / "study", (2, 4, 8, 16, 64), 3)
    tables = analyse(folder, draws=200)
    assert list(tables) == list(COLUMNS)
    assert not {name: lacks for name in tables if (lacks := set(COLUMNS[name].split()) - set(tables[name]))}
    for name, table in tables.items():
        assert len(pd.read_csv(folder / "statistics" / f"{name}.csv")) == len(table) > 0, name
    # The test split is taken: validation was made 0.3 worse.
    assert tables["by_size"].query("pipeline == 'random' and labels == 4")["mean"].item() == pytest.approx(
        0.65, abs=0.03
    )
    first = (folder / "statistics" / "fits.csv").read_bytes()
    analyse(folder, draws=200)
    assert (folder / "statistics" / "fits.csv").read_bytes() == first


@pytest.mark.parametrize(("sizes", "seeds"), [((4,), 1), ((2, 4), 2), ((2, 4, 8), 1)])
def test_analyse_of_a_small_study(tmp_path, sizes, seeds):
    tables = analyse(write_study(tmp_path / "study", sizes, seeds), draws=50)
    assert list(tables) == list(COLUMNS)
    assert not {name: lacks for name in tables if (lacks := set(COLUMNS[name].split()) - set(tables[name]))}
    if len(sizes) < 3:
        assert tables["fits"]["gamma"].isna().all()
        assert set(tables["fits"]["note"]) == {f"scores at {len(sizes)} sizes: a fit needs 3 or more"}
    if seeds == 1:
        assert tables["by_size"]["low"].isna().all()
        assert tables["primary"]["p_holm"].isna().all()


def test_analyse_without_scores(tmp_path):
    with pytest.raises(UserError, match=r"per_volume\.csv: no such file"):
        analyse(tmp_path)
