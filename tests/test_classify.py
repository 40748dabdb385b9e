import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import exam_frames, run_killed_after_step
from sklearn.linear_model import LogisticRegression
from torch import nn

import classify.compare
import classify.predict
import classify.training
import engine.supervised
from classify import planes
from classify.__main__ import main
from classify.compare import Compare
from classify.config import PRESETS, ClassifyConfig, presets_for
from classify.explain import _attribution, heat_maps
from classify.model import Classifier, Combination, build_classifier, load_classifier, log_odds
from classify.predict import Predict
from classify.scoring import probabilities, validate
from classify.statistics import interval_text, summarise, youden_threshold
from classify.training import decay, oversampled, run
from core.errors import UserError
from data.augmentation import Augmentation
from data.readers.exams import load_mrnet
from data.samples.clips import draw_frames, whole_clips
from data.sources import ExamsSource, MrnetSource
from encoders.build import build_clip_encoder
from encoders.weights import save_encoder
from engine.command_line import parse
from engine.config import plain, read_config

FIGURES = ("auc", "accuracy", "sensitivity", "specificity")
PLANES = ("sagittal", "coronal")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def knees(tiny_knees) -> Path:
    return tiny_knees


def tiny(root: Path, out: Path, **settings) -> ClassifyConfig:
    few = {
        "encoder": "test_resnet",
        "image_size": 32,
        "clip_frames": 4,
        "augmentation": Augmentation(area=(0.8, 1.0), jitter=0),
        "epochs": 2,
        "batch_size": 8,
        "lr": 1e-3,
        "test_clips": 3,
        "checkpoint_every": 3,
        "log_every": 1,
    }
    return ClassifyConfig(**({"data": MrnetSource(data_root=root), "out": out} | few | settings))


@pytest.fixture(scope="module")
def finished(knees, tmp_path_factory) -> tuple[ClassifyConfig, dict]:
    """A run that is long enough to learn the bright squares."""
    cfg = tiny(knees, tmp_path_factory.mktemp("run") / "a", epochs=8, lr=2e-3, explain=2)
    return cfg, run(cfg)


@pytest.mark.slow
def test_result(finished):
    cfg, result = finished
    folder = cfg.run_folder
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["test"]["auc"]["value"] > 0.8
    assert (result["train"], result["test"]["exams"], result["test"]["positive"]) == (
        {"exams": 27, "positive": 9},
        12,
        5,
    )
    for split in ("val", "test"):
        for figure in (result[split], result[split]["single_draw"]):
            for name in FIGURES:
                assert 0 <= figure[name]["low"] <= figure[name]["value"] <= figure[name]["high"] <= 1
            assert sum(figure["confusion"].values()) == figure["exams"]
            assert 0 <= figure["calibration_error"] <= 1
            assert 0 <= figure["brier"] <= 1
    for name in ("roc.png", "calibration.png", "learning_curve.png", "model.safetensors", "splits.json"):
        assert (folder / name).stat().st_size > 0
    page = (folder / "report.html").read_text()
    assert f"AUC {interval_text(result['test']['auc'])} on 12 exams" in page
    assert page.count("data:image/png;base64,") == 2
    assert len(list((folder / "explain").glob("valid-*.png"))) == 2


@pytest.mark.slow
def test_per_exam_holds_what_the_result_says(finished):
    cfg, result = finished
    table = pd.read_csv(cfg.run_folder / "per_exam.csv")
    threshold = result["threshold"]["value"]
    assert table["split"].value_counts().to_dict() == {"test": 12, "val": 3}
    for split, rows in table.groupby("split"):
        expected = summarise(rows["label"].to_numpy(), rows["probability"].to_numpy(), threshold)
        assert all(result[split][name] == pytest.approx(expected[name]) for name in (*FIGURES, "confusion", "brier"))
        single = summarise(rows["label"].to_numpy(), rows["single_draw"].to_numpy(), threshold)
        assert result[split]["single_draw"]["auc"] == pytest.approx(single["auc"])
    assert (table["called"] == (table["probability"] >= threshold)).all()
    assert (table["spread"] > 0).any()
    splits = json.loads((cfg.run_folder / "splits.json").read_text())
    assert set(table.loc[table["split"] == "val", "subject"]) == set(splits["val"])


@pytest.mark.slow
def test_the_threshold_is_chosen_on_the_inner_validation(finished):
    cfg, result = finished
    rows = pd.read_csv(cfg.run_folder / "per_exam.csv").query("split == 'val'")
    expected = youden_threshold(rows["label"].to_numpy(), rows["probability"].to_numpy())
    assert result["threshold"]["value"] == pytest.approx(expected)
    assert result["threshold"]["source"] == "Youden's index on the inner validation (3 exams, 1 positive)"
    assert load_classifier(cfg.run_folder)[1].threshold == result["threshold"]["value"]


@pytest.mark.slow
def test_the_best_weights_are_kept(finished, knees):
    cfg, result = finished
    metrics = pd.read_csv(cfg.run_folder / "metrics.csv").dropna(subset=["validation_auc"])
    assert len(metrics) == cfg.epochs
    best = metrics.sort_values(["validation_auc", "validation_loss"], ascending=[False, True], kind="stable").iloc[0]
    assert result["kept"]["step"] == best["step"]
    assert result["kept"]["validation_auc"] == best["validation_auc"]
    exams = load_mrnet(knees)
    classifier, card = load_classifier(cfg.run_folder)
    again = validate(classifier, exams, exams.positions("val"), card)
    assert again["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-4)


@pytest.mark.slow
def test_without_test_nothing_of_it_is_scored(knees, tmp_path):
    result = run(tiny(knees, tmp_path / "a", epochs=1, test=False, threshold="fixed", select="last", explain=1))
    assert "test" not in result
    assert result["threshold"] == {"value": 0.5, "source": "fixed"}
    table = pd.read_csv(tmp_path / "a/per_exam.csv")
    assert set(table["split"]) == {"val"}
    assert len(list((tmp_path / "a/explain").glob("train-*.png"))) == 1


@pytest.mark.slow
def test_every_labelled_fraction_takes_the_same_steps(knees, tmp_path):
    results, labelled = [], []
    for fraction, subset_seed in ((0.2, 5), (0.6, 5), (0.2, 6)):
        own = {"labelled_fraction": fraction, "subset_seed": subset_seed, "steps": 5, "evaluate_every": 2}
        cfg = tiny(knees, tmp_path / f"{fraction}-{subset_seed}", test=False, **own)
        results.append(run(cfg))
        labelled.append(set(pd.read_csv(cfg.run_folder / "labelled_exams.csv", dtype=str)["exam"]))
        metrics = pd.read_csv(cfg.run_folder / "metrics.csv")
        assert metrics["step"].tolist() == [1, 2, 3, 4, 5]
        assert metrics.dropna(subset=["validation_auc"])["step"].tolist() == [2, 4, 5]
    assert [result["train"] for result in results] == [
        {"exams": 5, "positive": 2},
        {"exams": 16, "positive": 5},
        {"exams": 5, "positive": 2},
    ]
    assert labelled[0] < labelled[1]
    assert labelled[0] != labelled[2]


@pytest.mark.slow
def test_repeats_bit_for_bit_and_by_seed(knees, tmp_path):
    runs = [
        tiny(knees, tmp_path / name, epochs=1, seed=seed, test=False) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for cfg in runs:
        run(cfg)
    weights = [(cfg.run_folder / "model.safetensors").read_bytes() for cfg in runs]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert read_config(ClassifyConfig, tmp_path / "a/config.json") == ClassifyConfig(
        **(vars(runs[0]) | {"resume": False, "overwrite": False})
    )


@pytest.mark.slow
def test_killed_and_resumed(knees, tmp_path):
    whole, killed = (tiny(knees, tmp_path / name, epochs=3, checkpoint_every=2) for name in "ab")
    run(whole)
    (tmp_path / "config.json").write_text(json.dumps(plain(killed)))
    run_killed_after_step("classify", "--config", tmp_path / "config.json", step=9)  # the last checkpoint is of step 8
    assert not (tmp_path / "b/result.json").exists()
    result = run(tiny(knees, tmp_path / "b", epochs=3, checkpoint_every=2, resume=True))
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert result["test"] == json.loads((tmp_path / "a/result.json").read_text())["test"]


# Parts


def test_oversampling_by_hand():
    positions, labels = np.arange(10, 17), np.array([0, 1, 0, 0, 1, 0, 0])
    drawn = oversampled(positions, labels, seed=3)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == positions.tolist()
    # five of class 0, two of class 1: three more of these, one each and one of them by chance
    assert counts[labels == 0].tolist() == [1] * 5
    assert sorted(counts[labels == 1].tolist()) == [2, 3]
    np.testing.assert_array_equal(drawn, oversampled(positions, labels, seed=3))
    assert len({tuple(oversampled(positions, labels, seed)) for seed in range(9)}) == 2
    even = np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(oversampled(np.arange(4), even, 0), np.arange(4))


def test_schedules_by_hand():
    # 10 epochs of 5 steps: times 0.1 from epoch 6 on, and again from epoch 8 on.
    milestones = [decay("milestones")(step, 50, 5) for step in range(50)]
    assert milestones == pytest.approx([1.0] * 30 + [0.1] * 10 + [0.01] * 10)
    exponential = [decay("exponential")(step, 50, 5) for step in range(50)]
    assert exponential == pytest.approx([0.98 ** (step // 5) for step in range(50)])
    cosine = [decay("cosine")(step, 50, 5) for step in range(50)]
    assert cosine[4] == 1
    assert cosine[-1] < 0.01


@pytest.mark.parametrize("epochs", [30, 50, 100])
def test_the_milestones_of_the_papers(epochs):
    """18 and 24 of 30 epochs in Ray 2022."""
    factors = [decay("milestones")(epoch, epochs, 1) for epoch in range(epochs)]
    assert [factors.count(pytest.approx(0.1**k)) for k in range(3)] == [0.6 * epochs, 0.2 * epochs, 0.2 * epochs]


def test_recipes():
    paper = PRESETS["paper"]()
    assert (paper.encoder, paper.clip_frames, paper.image_size, paper.lr) == ("r3d_18", 16, 224, 1e-4)
    assert (paper.schedule, paper.oversample, paper.select, paper.test_clips) == ("milestones", True, "auc", 8)
    ray = parse(presets_for, "", ["--recipe", "paper-2d", "--norm", "frozen"])
    assert (ray.encoder, ray.batch_size, ray.epochs, ray.lr, ray.norm) == ("resnet18", 1, 30, 1e-4, "frozen")
    factors = [decay(ray.schedule)(epoch, ray.epochs, 1) for epoch in range(ray.epochs)]
    assert factors == pytest.approx([1] * 18 + [0.1] * 6 + [0.01] * 6)
    for recipe in PRESETS.values():
        assert recipe().test
    for arguments, encoder, size in (([], "resnet18", 64), (["--encoder", "r3d_18"], "r3d_18", 32)):
        demo = parse(presets_for, "", arguments)
        assert (demo.encoder, demo.image_size) == (encoder, size)


@pytest.mark.slow
def test_a_linear_probe_moves_the_head_alone(knees, tmp_path):
    encoder = build_clip_encoder("test_resnet")
    file = save_encoder(
        encoder, tmp_path / "encoder", name="test_resnet", in_channels=1, network="target", normalisation={},
        norm="batch", lineage=[{"stage": "specialist"}],
    )  # fmt: skip
    run(tiny(knees, tmp_path / "a", epochs=1, linear_probe=True, init=str(file), test=False))
    classifier, card = load_classifier(tmp_path / "a")
    assert card.lineage == [{"stage": "specialist"}]
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(classifier.encoder.state_dict()[name], value, rtol=0, atol=0)
    torch.manual_seed(0)
    assert not torch.equal(classifier.head.weight, build_classifier("test_resnet", "batch").head.weight)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_file(knees, tmp_path):
    encoder = build_clip_encoder("test_resnet")
    file = save_encoder(
        encoder, tmp_path / "encoder", name="test_resnet", in_channels=1, network="target", normalisation={},
        norm="batch", lineage=[],
    )  # fmt: skip
    run(tiny(knees, tmp_path / "a", epochs=1, init=str(file.parent), lr=1e-12, norm="frozen", test=False))
    classifier, _ = load_classifier(tmp_path / "a")
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(classifier.encoder.state_dict()[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_frozen_norms_keep_their_statistics(knees, tmp_path):
    few = {"epochs": 1, "labelled_fraction": 0.2, "checkpoint_every": 0, "test": False}
    run(tiny(knees, tmp_path / "a", batch_size=1, norm="frozen", **few))
    statistics = {n: b for n, b in load_classifier(tmp_path / "a")[0].named_buffers() if n.endswith("running_var")}
    assert statistics
    assert all((value == 1).all() for value in statistics.values())


@pytest.mark.slow
def test_the_moving_average_is_kept(knees, tmp_path, monkeypatch):
    """Parameters and running statistics: the decay is 1/11, 2/12, 3/13, then --ema-decay."""
    expected: dict = {}
    steps = []

    class Followed(engine.supervised.Supervised):
        def move_average(self, decay):
            super().move_average(decay)
            steps.append(decay)
            now = {key: value.double() for key, value in self.network.state_dict().items()}
            start = expected or {key: value.double() for key, value in self.start.items()}
            expected.update({key: decay * start[key] + (1 - decay) * now[key] for key in now})

        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self.start = {key: value.clone() for key, value in self.network.state_dict().items()}

    monkeypatch.setattr(engine.supervised, "Supervised", Followed)
    run(tiny(knees, tmp_path / "a", epochs=1, ema_decay=0.25, select="last", test=False))
    assert steps[:4] == pytest.approx([1 / 11, 2 / 12, 3 / 13, 0.25])
    saved = load_classifier(tmp_path / "a")[0].state_dict()
    for key, value in saved.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow
def test_a_3d_encoder_runs(knees, tmp_path):
    few = {"encoder": "r3d_18", "epochs": 1, "batch_size": 24, "micro_batch_size": 12, "test_clips": 1}
    result = run(tiny(knees, tmp_path / "a", **few, explain=1, checkpoint_every=0))
    assert result["test"]["exams"] == 12
    assert result["test"]["single_draw"]["auc"] == result["test"]["auc"]


@pytest.mark.slow
def test_probabilities_do_not_depend_on_batching(finished, knees):
    cfg, _ = finished
    exams = load_mrnet(knees)
    classifier, card = load_classifier(cfg.run_folder)
    positions = exams.positions("test")
    three, one = (probabilities(classifier, exams, positions, card, draws) for draws in (3, 1))
    np.testing.assert_allclose(three[:, :1], one, rtol=1e-4)
    i = positions[4]
    clips = whole_clips(exams.frames(i), exams.statistics(i), 32, 4, 3, card.test_seed)
    with torch.no_grad():
        np.testing.assert_allclose(classifier(clips).sigmoid(), three[4], rtol=1e-4)


# Explanations


class Brightness(nn.Module):
    """Two feature maps at half the resolution: the bright places of the image, and a constant."""

    num_features = 2

    def forward_features(self, frames):
        bright = nn.functional.avg_pool2d(frames.clamp(min=0), 2)
        return torch.cat([bright, torch.ones_like(bright)], dim=1)

    def forward_head(self, maps):
        return maps.mean(dim=(2, 3))


@pytest.fixture
def seeing() -> Classifier:
    """A classifier whose logit is the mean brightness, less one."""
    from encoders.build import MaxPoolFrames

    classifier = Classifier(MaxPoolFrames(Brightness())).eval()
    with torch.no_grad():
        classifier.head.weight.copy_(torch.tensor([[1.0, 0.0]]))
        classifier.head.bias.fill_(-1.0)
    return classifier


@pytest.mark.parametrize("name", ["test_resnet", "r3d_18"])
def test_the_attribution_sums_to_the_logit(name):
    torch.manual_seed(0)
    classifier = build_classifier(name, "batch").eval()
    clip = torch.randn(1, 1, 8, 32, 32)
    attribution, logit = _attribution(classifier, clip)
    assert logit == pytest.approx(classifier(clip)[0].item(), abs=1e-4)
    assert attribution.sum().item() == pytest.approx((logit - classifier.head.bias[0]).item(), abs=1e-4)


@pytest.mark.slow
def test_the_heat_lies_on_the_frame_and_place_that_matter(seeing, finished):
    _, card = load_classifier(finished[0].run_folder)
    frames = np.random.default_rng(0).integers(0, 20, (6, 32, 32)).astype(np.float32)
    frames[2, 8:16, 20:28] = 200
    heat, probability = heat_maps(seeing, card, frames, (20.0, 20.0))
    assert heat.shape == (6, 32, 32)
    assert heat.sum(axis=(1, 2)).argmax() == 2
    assert heat[2, 8:16, 20:28].sum() > 0.8 * heat[2].sum()
    logits = []
    for d in range(card.test_clips):
        shown = draw_frames(6, card.clip_frames, np.random.default_rng((card.test_seed, d)))
        logits.append(64 * 9 / 1024 - 1 if 2 in shown else -1.0)
    assert probability == pytest.approx(np.mean([1 / (1 + math.exp(-x)) for x in logits]), abs=1e-6)


# Predicting


@pytest.mark.slow
def test_predictions_are_those_of_the_run(finished, knees, tmp_path):
    cfg, result = finished
    out = tmp_path / "deep/scores.csv"
    table = classify.predict.run(Predict(run=cfg.run_folder, input=knees / "valid", output=out, device="cpu"))
    scored = pd.read_csv(cfg.run_folder / "per_exam.csv").query("split == 'test'")
    # only the run's plane
    assert table["exam"].tolist() == [f"sagittal/{exam[6:]}.npy" for exam in scored["exam"]]
    np.testing.assert_allclose(table["probability"], scored["probability"], rtol=1e-3)
    assert table["called"].tolist() == scored["called"].tolist()
    assert (table["threshold"] == result["threshold"]["value"]).all()
    assert pd.read_csv(out)["exam"].tolist() == table["exam"].tolist()


@pytest.mark.slow
def test_a_table_of_labels_is_not_replaced_by_predictions(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n")
    with pytest.raises(UserError, match="no table of predictions"):
        classify.predict.run(Predict(run=tmp_path, input=tmp_path, output=tmp_path / "labels.csv", device="cpu"))


@pytest.mark.slow
def test_predicting_one_file_nifti_and_explanations(finished, tmp_path, capsys):
    cfg, _ = finished
    frames = exam_frames(1, np.random.default_rng(5))
    np.save(tmp_path / "one.npy", frames)
    volume = nib.Nifti1Image(frames.transpose(2, 1, 0), np.diag([1, 1, 4, 1.0]))
    volume.to_filename(tmp_path / "one.nii.gz")
    few = {"run": cfg.run_folder, "output": tmp_path / "p.csv", "device": "cpu"}
    first = classify.predict.run(Predict(input=tmp_path / "one.npy", **few))
    second = classify.predict.run(Predict(input=tmp_path / "one.nii.gz", explain=tmp_path / "why", **few))
    assert first["probability"].item() == pytest.approx(second["probability"].item(), rel=1e-4)
    assert [file.name for file in (tmp_path / "why").iterdir()] == ["one.nii.gz-sagittal.png"]
    assert "written:" in capsys.readouterr().out


@pytest.mark.slow
def test_one_bad_file_does_not_stop_the_others(finished, tmp_path):
    cfg, _ = finished
    good, folder = exam_frames(0, np.random.default_rng(1)), tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", good)
    np.save(folder / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "c.npy", good[:1])
    with pytest.raises(UserError, match=r"2 of 3 failed, the other 1 are done:\n.*b\.npy holds Python objects"):
        classify.predict.run(Predict(run=cfg.run_folder, input=folder, output=tmp_path / "p.csv", device="cpu"))
    assert pd.read_csv(tmp_path / "p.csv")["exam"].tolist() == ["a.npy"]


@pytest.mark.slow
def test_mistakes_in_the_paths(finished, tmp_path):
    cfg, _ = finished

    def predict(run_folder: Path, source: Path, output: Path = tmp_path / "p.csv") -> None:
        classify.predict.run(Predict(run=run_folder, input=source, output=output, device="cpu"))

    np.save(tmp_path / "one.npy", exam_frames(1, np.random.default_rng(5)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nowhere does not exist; --input takes an exam or a folder"):
        predict(cfg.run_folder, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"empty holds no exam \(\.npy, .*\); pass a file or a folder"):
        predict(cfg.run_folder, tmp_path / "empty")
    with pytest.raises(UserError, match=r"one\.npy is not the name of a \.csv file: pass one to write"):
        predict(cfg.run_folder, tmp_path / "one.npy", tmp_path / "one.npy")
    with pytest.raises(UserError, match=r"empty holds no trained model \(model\.safetensors is missing\)"):
        predict(tmp_path / "empty", tmp_path / "one.npy")
    assert not (tmp_path / "p.csv").exists()


# Several planes


@pytest.fixture(scope="module")
def both(knees, tmp_path_factory) -> tuple[ClassifyConfig, dict]:
    cfg = tiny(knees, tmp_path_factory.mktemp("planes") / "a", planes=PLANES, epochs=1)
    return cfg, planes.run(cfg)


@pytest.mark.slow
def test_planes_are_combined_by_logistic_regression(both):
    cfg, result = both
    tables = [pd.read_csv(cfg.run_folder / plane / "per_exam.csv") for plane in PLANES]
    assert tables[0]["exam"].tolist() == tables[1]["exam"].tolist()
    odds = np.log([table["probability"] / (1 - table["probability"]) for table in tables]).T
    val, labels = tables[0]["split"] == "val", tables[0]["label"]
    expected = LogisticRegression().fit(odds[val], labels[val]).predict_proba(odds)[:, 1]
    combined = pd.read_csv(cfg.run_folder / "per_exam.csv").set_index("exam").loc[tables[0]["exam"]]
    np.testing.assert_allclose(combined["probability"], expected, rtol=1e-4)
    assert json.loads((cfg.run_folder / "result.json").read_text()) == result
    assert set(result["by_plane"]) == set(result["weights"]) == set(PLANES)
    for plane in PLANES:
        own = json.loads((cfg.run_folder / plane / "result.json").read_text())
        assert (own["plane"], own["test"]) == (plane, result["by_plane"][plane]["test"])
    assert (cfg.run_folder / "roc.png").exists()


@pytest.mark.slow
def test_predicting_from_several_planes(both, knees, tmp_path):
    cfg, _ = both
    table = classify.predict.run(
        Predict(run=cfg.run_folder, input=knees / "valid", output=tmp_path / "p.csv", device="cpu")
    )
    scored = pd.read_csv(cfg.run_folder / "per_exam.csv").query("split == 'test'")
    assert table["exam"].tolist() == [f"{exam[6:]}.npy" for exam in scored["exam"]]
    np.testing.assert_allclose(table["probability"], scored["probability"], rtol=1e-3)
    for plane in PLANES:
        assert f"probability_{plane}" in table
    (tmp_path / "half/sagittal").mkdir(parents=True)
    np.save(tmp_path / "half/sagittal/1130.npy", exam_frames(0, np.random.default_rng(0)))
    half = Predict(run=cfg.run_folder, input=tmp_path / "half", output=tmp_path / "q.csv", device="cpu")
    with pytest.raises(UserError, match=r"exam 1130\.npy has no file of the plane coronal; a run of several planes"):
        classify.predict.run(half)
    assert not (tmp_path / "q.csv").exists()
    for folder in ("twice/a/sagittal", "twice/sagittal/a"):
        (tmp_path / folder).mkdir(parents=True)
        np.save(tmp_path / folder / "1130.npy", exam_frames(0, np.random.default_rng(0)))
    twice = Predict(run=cfg.run_folder, input=tmp_path / "twice", output=tmp_path / "q.csv", device="cpu")
    with pytest.raises(UserError, match=r"1130\.npy are two files of one exam and plane; keep one of them"):
        classify.predict.run(twice)


def test_combination_by_hand():
    combination = Combination(planes=["a", "b"], weights=[1.0, 2.0], intercept=-1.0, threshold=0.5)
    assert combination.probability([0.5, 0.5]) == pytest.approx(1 / (1 + math.e))
    assert combination.probability([0.8, 0.2]) == pytest.approx(1 / (1 + math.exp(1 - math.log(4) + 2 * math.log(4))))
    assert math.isfinite(log_odds(0.0))
    assert math.isfinite(log_odds(1.0))


# Comparing


def scores(folder: Path, probability: list[float], **columns) -> Path:
    folder.mkdir()
    labels = [1, 1, 1, 0, 0, 0]
    table = pd.DataFrame({"exam": list("abcdef"), "split": "test", "label": labels, "probability": probability})
    table.assign(called=(table["probability"] >= 0.5).astype(int), **columns).to_csv(folder / "per_exam.csv")
    return folder


def test_comparison_by_hand(tmp_path, capsys):
    first = scores(tmp_path / "first", [0.9, 0.8, 0.6, 0.1, 0.2, 0.3])
    second = scores(tmp_path / "second", [0.9, 0.4, 0.3, 0.6, 0.2, 0.1])
    # the order of the rows does not matter
    pd.read_csv(second / "per_exam.csv").iloc[::-1].to_csv(second / "per_exam.csv", index=False)
    result = classify.compare.run(Compare(runs=(first, second)))
    assert (result["exams"], result["positive"]) == (6, 3)
    assert [auc["value"] for auc in result["auc"]] == pytest.approx([1.0, 7 / 9])
    assert result["difference"]["value"] == pytest.approx(2 / 9)
    assert result["accuracy"] == pytest.approx([1.0, 0.5])
    assert result["mcnemar"] == {"first_only_right": 3, "second_only_right": 0, "p": pytest.approx(0.25)}
    assert "McNemar's exact p = 0.25" in capsys.readouterr().out


def test_other_exams_are_not_compared(tmp_path):
    values = [0.9, 0.8, 0.6, 0.1, 0.2, 0.3]
    first = scores(tmp_path / "first", values)
    renamed = scores(tmp_path / "renamed", values, exam=list("abcxyz"))
    with pytest.raises(UserError, match=r"were not scored on the same exams: d and 5 more .* same data and split seed"):
        classify.compare.run(Compare(runs=(first, renamed)))
    relabelled = scores(tmp_path / "relabelled", values, label=[1, 1, 0, 0, 0, 0])
    with pytest.raises(UserError, match=r"label exam c differently; compare runs of one task"):
        classify.compare.run(Compare(runs=(first, relabelled)))
    with pytest.raises(UserError, match=r"has no val exams of both classes; choose the other --split"):
        classify.compare.run(Compare(runs=(first, first), split="val"))
    with pytest.raises(UserError, match=r"holds no per_exam\.csv; pass a finished run"):
        classify.compare.run(Compare(runs=(first, tmp_path)))
    (tmp_path / "per_exam.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"per_exam\.csv has no column .exam.; it is not the table of a classifier run"):
        classify.compare.run(Compare(runs=(first, tmp_path)))


# Bad input: one sentence, exit code 2, nothing written


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder; return its error message."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def refused(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["classify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        assert not list(work.iterdir())
        return " ".join(capsys.readouterr().err.split())

    return refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--epochs 0", "--epochs 0: must be above 0"),
        ("--batch-size -1", "--batch-size -1: must be above 0"),
        ("--test-clips 0", "--test-clips 0: must be above 0"),
        ("--lr nan", "--lr nan: must be above 0"),
        ("--explain -1", "--explain -1: must be 0 or more"),
        ("--seed -1", "--seed -1: must be 0 or more"),
        ("--image-size 16", "--image-size 16: must be at least 32"),
        ("--clip-frames 1", "--clip-frames 1: must be at least 2"),
        ("--labels a.csv", "--labels a.csv goes with --dataset exams, not with mrnet"),
        ("--dataset exams", "--dataset exams needs --labels FILE.csv with the columns path,label"),
        ("--planes sagittal", "pass two or more different planes, or one with --plane"),
        ("--planes axial axial", "pass two or more different planes"),
        ("--dataset exams --labels a.csv --planes axial coronal", "--planes axial coronal goes with --dataset mrnet"),
        ("--augmentation.flip 2", "--augmentation.flip 2.0: must lie in [0, 1]"),
        ("--recipe nonsense", "there is no such preset; choose demo, default, paper"),
        ("--task menisci", "choose acl"),
        ("--plane axial", "choose coronal, sagittal"),
        ("--planes sagittal axial", "choose coronal, sagittal"),
        ("--encoder resnet81", "encoder 'resnet81' is not a model of timm"),
        ("--init missing.pth", "missing.pth"),
        ("--encoder test_resnet --init kinetics", "test_resnet has no Kinetics-400 weights"),
        ("--init imagenet", "r3d_18 has no ImageNet weights"),
    ],
)
def test_setting(refused, flags, sentence, knees):
    assert sentence in refused("--data-root", knees, *flags.split())


def damaged(root: Path, tmp_path: Path) -> Path:
    """A copy of the data set for a test to damage."""
    copy = tmp_path / "copy"
    for file in root.rglob("*.*"):
        target = copy / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return copy


DAMAGES = {
    "missing exam": (lambda root: (root / "train/sagittal/0003.npy").unlink(), "0003"),
    "label 2": (lambda root: (root / "train-acl.csv").write_text("0000,2\n"), "the label '2'"),
    "rank": (lambda root: np.save(root / "train/sagittal/0003.npy", np.zeros((4, 4))), "0003.npy has the shape (4, 4)"),
    "objects": (lambda root: np.save(root / "train/sagittal/0003.npy", np.array([{}])), "holds Python objects"),
    "NaN": (lambda root: np.save(root / "valid/sagittal/1131.npy", np.full((3, 4, 4), np.nan)), "1131.npy holds NaN"),
    "one frame": (
        lambda root: np.save(root / "valid/sagittal/1131.npy", np.ones((1, 4, 4))),
        "an exam needs at least 2",
    ),
    "one class": (
        lambda root: (root / "valid-acl.csv").write_text("".join(f"{k},0\n" for k in range(1130, 1142))),
        "the test split of mrnet acl sagittal",
    ),
    "no test": (lambda root: (root / "valid-acl.csv").unlink(), "leave them out with --no-test"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(refused, damage, knees, tmp_path):
    root = damaged(knees, tmp_path)
    do, sentence = DAMAGES[damage]
    do(root)
    assert sentence in refused("--data-root", root, "--encoder", "test_resnet", "--image-size", 32)


@pytest.mark.slow
def test_an_earlier_run_is_kept(finished, capsys):
    cfg, _ = finished
    before = (cfg.run_folder / "result.json").read_bytes()
    with pytest.raises(UserError, match="holds an earlier run; continue it with --resume, replace it with --overwrite"):
        run(cfg)
    assert (cfg.run_folder / "result.json").read_bytes() == before
    scored = (cfg.run_folder / "per_exam.csv").read_bytes()
    run(replace(cfg, resume=True, test=False))  # what was scored of the test exams stays
    assert (cfg.run_folder / "per_exam.csv").read_bytes() == scored
    assert json.loads((cfg.run_folder / "result.json").read_text())["test"] == json.loads(before)["test"]


@pytest.mark.slow
def test_the_command_line_prints_the_figures(knees, tmp_path, monkeypatch, capsys):
    cfg = tiny(knees, tmp_path / "a", epochs=1)
    (tmp_path / "config.json").write_text(json.dumps(plain(cfg)))
    monkeypatch.setattr(sys, "argv", ["classify", "--config", str(tmp_path / "config.json")])
    main()
    output = capsys.readouterr().out
    for text in ("AUC", "sensitivity", "Brier score", "Youden's index", "python -m classify.predict --run"):
        assert text in output
    assert "synthetic data" not in output


@pytest.mark.slow
def test_exams_of_nifti_files(tmp_path):
    rows = ["path,label,split"]
    for k in range(16):
        label, split = k % 2, ("train", "train", "val", "test")[k // 4]
        frames = exam_frames(label, np.random.default_rng(k))
        nib.Nifti1Image(frames.transpose(2, 1, 0), np.diag([1, 1, 4, 1.0])).to_filename(tmp_path / f"{k}.nii.gz")
        rows.append(f"{k}.nii.gz,{label},{split}")
    (tmp_path / "hearts.csv").write_text("\n".join(rows) + "\n")
    result = run(tiny(tmp_path, tmp_path / "a", data=ExamsSource(labels=tmp_path / "hearts.csv"), epochs=1))
    assert (result["task"], result["plane"], result["train"]["exams"]) == ("hearts", "", 8)
    assert ClassifyConfig(data=ExamsSource(labels=Path("x/hearts.csv"))).run_folder == Path(
        "runs/classify-hearts-r3d_18-random-seed0"
    )
