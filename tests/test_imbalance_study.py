"""The study of class imbalance: its plan, its statistics by hand, its report, and its runs on tiny images."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_class_images import write_classes

from core.errors import UserError
from data.sources import ImagesSource, open_images
from engine.command_line import parse
from sweep.analysis.imbalance import analyse, relative_gap, thirds, weighted_mean, weights_by_class
from sweep.imbalance import run as study
from sweep.imbalance.config import PRESETS, ImbalanceConfig, demo, thesis
from sweep.report.__main__ import main as rebuild
from sweep.report.imbalance import report
from sweep.study.config import presets_for
from sweep.study.jobs import run_job

METHODS = ("byol", "supervised")


def test_gap_by_hand():
    """0.8 of which 0.6 is left: a quarter is lost."""
    assert relative_gap(np.array([0.8]), np.array([0.6]))[0] == pytest.approx(0.25)
    assert math.isnan(relative_gap(np.array([0.0]), np.array([0.5]))[0])


def test_weighted_mean_by_hand():
    """Two seeds with 1 and 0.5 right; the second draw takes the second seed twice and the first image twice."""
    correct = np.array([[1, 1], [1, 0]], np.float32)
    drawn = weighted_mean(correct, np.array([[1.0, 1], [0, 2]]), np.array([[1.0, 1], [2, 0]]))
    assert drawn.tolist() == [0.75, 1.0]
    assert np.isnan(weighted_mean(correct[:1], np.ones((2, 1)), np.ones((2, 2)))).tolist() == [False, True]


def test_each_class_counts_the_same_in_every_draw():
    """One image of class 0 and three of class 1: the mean of the classes' means, not of the images."""
    weights = weights_by_class(np.array([1, 0, 1, 1]), 200, np.random.default_rng(0))
    assert weights[0] == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])
    assert weights[:, 1] == pytest.approx(1)
    assert weights[:, [0, 2, 3]].sum(axis=1) == pytest.approx(1)
    assert np.ptp(weights[:, 0]) > 0
    correct = np.array([[1, 0, 1, 1]], np.float32)
    assert weighted_mean(correct, np.ones((201, 1)), weights)[0] == pytest.approx(0.5)  # 0.75 over images


def test_thirds_of_ten_classes():
    assert {name: part.tolist() for name, part in thirds(range(10, 0, -1)).items()} == {
        "frequent": [0, 1, 2, 3],
        "medium": [4, 5, 6],
        "rare": [7, 8, 9],
    }


def made_up(folder, wrong, seeds=(0, 1, 2)):
    """A finished study of three classes with 40 test images each; `wrong` gives, by method and set, how many of the
    last class are wrong in every seed."""
    cells = [
        {"name": f"cells/{m}-{s}-seed{seed}", "method": m, "set": s, "ratio": 0.1, "images": 30, "seed": seed}
        for m in METHODS
        for s in ("balanced", "long-tailed")
        for seed in seeds
    ]
    labels = np.repeat([0, 1, 2], 40)
    for cell in cells:
        place = folder / cell["name"]
        place.mkdir(parents=True)
        predicted = labels.copy()
        predicted[80 : 80 + wrong[cell["method"], cell["set"]]] = 0
        table = pd.DataFrame({"file": [f"{k}.png" for k in range(120)], "label": labels, "predicted": predicted})
        table.to_csv(place / "per_image.csv", index=False)
        (place / "result.json").write_text("{}")
    plan = {"task": "imbalance", "dataset": "digits", "classes": ["a", "b", "<c>"], "test_images": 120}
    plan |= {"methods": METHODS, "ratios": [0.1], "seeds": seeds, "counts": {"0.1": [20, 6, 2]}, "cells": cells}
    (folder / "plan.json").write_text(json.dumps(plan))
    from engine.config import saved

    (folder / "study.json").write_text(json.dumps(saved(replace(demo(), out=folder)), default=str))
    return folder


WRONG = {("byol", "balanced"): 0, ("byol", "long-tailed"): 12} | {
    ("supervised", "balanced"): 0,
    ("supervised", "long-tailed"): 36,
}


def test_tables_by_hand(tmp_path):
    """Of 120 images 12 and 36 are wrong after the long tail: gaps of 10 and 30 %, a difference of -20 points."""
    tables = analyse(made_up(tmp_path, WRONG), draws=500)
    gaps = tables["gaps"].set_index("method")
    assert gaps["gap"].tolist() == pytest.approx([0.1, 0.3])
    row = tables["differences"].iloc[0]
    assert (row["method"], row["baseline"], row["difference"]) == ("byol", "supervised", pytest.approx(-0.2))
    # the wrong images of byol are among those of supervised: the difference is that of 24 of the 40 images of one class
    # of three, and its standard error over images is sqrt(0.6 * 0.4 / 40) / 3 = 0.0258
    assert row["low"] == pytest.approx(-0.2 - 1.96 * 0.0258, abs=0.015)
    assert row["high"] == pytest.approx(-0.2 + 1.96 * 0.0258, abs=0.015)
    accuracy = tables["accuracy"].set_index(["method", "set"])
    row = accuracy.loc[("supervised", "long-tailed")]
    assert [row["accuracy"], row["frequent"], row["rare"]] == pytest.approx([0.7, 1.0, 0.1])
    assert (tables["per_class"]["training_images"].unique() == [20, 6, 2]).all()


def test_the_supervised_network_with_its_own_head(tmp_path):
    """Its predictions lie beside its encoder: here those of the balanced set are right and half of the others wrong."""
    made_up(tmp_path, WRONG)
    for kind, wrong in (("balanced", 0), ("long-tailed", 60)):
        for seed in range(3):
            place = tmp_path / f"encoders/supervised-{kind}-seed{seed}"
            place.mkdir(parents=True)
            table = pd.read_csv(tmp_path / f"cells/supervised-{kind}-seed{seed}/per_image.csv")
            table["predicted"] = table["label"] + (np.arange(120) < wrong)
            table.to_csv(place / "per_image.csv", index=False)
    gaps = analyse(tmp_path, draws=100)["gaps"].set_index("method")["gap"]
    assert gaps["supervised, own head"] == pytest.approx(0.5)
    assert gaps["supervised"] == pytest.approx(0.3)


def test_one_seed_has_no_interval(tmp_path):
    tables = analyse(made_up(tmp_path, WRONG, seeds=(4,)), draws=100)
    assert tables["gaps"]["low"].isna().all()
    assert tables["gaps"]["gap"].tolist() == pytest.approx([0.1, 0.3])


@pytest.mark.slow
def test_report_says_who_loses_less(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sweep.report", str(made_up(tmp_path, WRONG)), "--draws", "200"])
    rebuild()
    page = (tmp_path / "report.html").read_text()
    assert 'byol</span> loses less than <span class="p"' in page
    assert "&lt;c&gt;" in page
    assert "<c>" not in page
    assert {file.name for file in (tmp_path / "statistics").iterdir()} == {
        f"{name}.csv" for name in ("accuracy", "gaps", "differences", "per_class")
    }
    assert (tmp_path / "figures/gaps.svg").is_file()
    assert str(tmp_path) not in page


@pytest.mark.slow
def test_report_of_an_unfinished_study(tmp_path):
    made_up(tmp_path, WRONG)
    (tmp_path / "cells/byol-balanced-seed1/result.json").unlink()
    assert analyse(tmp_path, draws=100)["gaps"]["seeds"].tolist() == [2, 2]
    page = report(tmp_path, draws=100).read_text()
    assert "1 of 12 runs are missing" in page
    assert "byol-balanced-seed1" in page
    for file in tmp_path.glob("cells/supervised-*/result.json"):
        file.unlink()
    with pytest.raises(UserError, match="has no seed whose runs are all finished"):
        report(tmp_path)


def test_plan_pairs_sets_of_one_size(tmp_path):
    cfg = replace(demo(), methods=METHODS, ratios=(0.1, 0.02), seeds=(0, 5), out=tmp_path)
    images = open_images(cfg.data)
    jobs = study.plan(cfg, images)
    assert len(jobs) == 2 * 2 * 2 * 2 * 2  # encoders and cells; ratios, seeds, sets, methods
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        if job.is_cell:
            encoder = next(each for each in jobs if each.name == job.needs[0])
            assert len(open_images(encoder.config.data).train) == job.key["images"]
            assert encoder.config.data.draw_seed == encoder.config.seed == job.key["seed"]
            assert (job.config.data.imbalance, job.config.data.total) == (1.0, None)
            assert job.config.encoder == encoder.config.encoder == "resnet10t"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratios": (0.1, 0.0)}, r"--ratios 0\.0: must lie in \(0, 1\)"),
        ({"ratios": (1.0,)}, r"--ratios 1\.0: must lie in \(0, 1\); the balanced set"),
        ({"ratios": (float("nan"),)}, "--ratios nan"),
        ({"ratios": ()}, "--ratios is empty"),
        ({"methods": ("dino",)}, "--methods dino: there is no such method; choose among byol"),
        ({"seeds": (0, 0)}, "--seeds 0 0: a value is repeated"),
        ({"seeds": (-1,)}, "--seeds -1: each must be 0 or more"),
        ({"processes": 0}, "--processes 0: must be 1 or more"),
        ({"data": ImagesSource(imbalance=0.1)}, r"--imbalance 0\.1 belongs to single runs: .* pass --ratios"),
        ({"data": ImagesSource(total=100)}, "--total 100 belongs to single runs"),
        ({"data": ImagesSource(draw_seed=3)}, "--draw-seed 3 belongs to single runs"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(UserError, match=message):
        ImbalanceConfig(**settings)


def test_settings_of_single_runs_are_refused():
    base = demo()
    with pytest.raises(UserError, match=r"--pretrain\.encoder resnet18 belongs to single runs: pass --encoder"):
        replace(base, pretrain=replace(base.pretrain, encoder="resnet18"))


@pytest.mark.slow
def test_command_line():
    line = ["--task", "imbalance", "--methods", "byol", "--ratios", "0.5", "--pretrain.steps", "3", "--seeds", "1", "2"]
    cfg = parse(presets_for, "", line)
    assert isinstance(cfg, ImbalanceConfig)
    assert (cfg.methods, cfg.ratios, cfg.seeds, cfg.pretrain.steps) == (("byol",), (0.5,), (1, 2), 3)
    whole = parse(presets_for, "", ["--task", "imbalance", "--data-root", "X", "--recipe", "thesis"])
    assert (whole.stem, whole.ratios, whole.pretrain.epochs, whole.pretrain.optimiser) == (
        "small",
        (0.01,),
        200,
        "adam",
    )
    assert str(whole.data.data_root) == "X"
    assert {"demo", "default", "thesis"} == set(PRESETS)
    assert thesis().pretrain.lr == 1e-3


def test_too_few_images_leave_nothing_behind(tmp_path):
    """The message names the flag of the study."""
    cfg = replace(demo(), methods=METHODS, ratios=(0.001,), out=tmp_path / "out")
    with pytest.raises(UserError, match=r"^--ratios 0.001: .* would keep none"):
        study.run(cfg)
    with pytest.raises(UserError, match=r"^--probe-images 5: 10 classes need at least 20 images"):
        study.run(replace(cfg, ratios=(0.1,), probe_images=5))
    root = write_classes(tmp_path / "few", [2, 2, 2])
    with pytest.raises(UserError, match=r"^--ratios 0.6 makes sets of 4 images: 3 classes need at least 6"):
        study.run(replace(cfg, ratios=(0.6,), data=ImagesSource(data_root=root)))
    assert not cfg.out.exists()


@pytest.mark.slow
def test_messages_name_the_flags_of_the_study():
    for flag in ("--pretrain.steps 0", "--probe.held-out 2.0", "--pretrain.augmentation.noise-sd 2.0 1.0"):
        with pytest.raises(UserError, match=f"^{flag}: must"):
            parse(presets_for, "", ["--task", "imbalance", *flag.split()])
    with pytest.raises(UserError, match=r"^--image-size 8: must be at least 32"):
        study.plan(replace(demo(), image_size=8), open_images(ImagesSource()))


def test_a_class_without_test_images_is_refused(tmp_path):
    """An accuracy over some of the classes is not that of the relative gap."""
    root = write_classes(tmp_path / "some", [12, 10, 9])
    for name in "bc":
        shutil.rmtree(root / "test" / name)
    cfg = replace(demo(), ratios=(0.4,), data=ImagesSource(data_root=root), out=tmp_path / "out")
    with pytest.raises(UserError, match=r"some holds no test images of b, c, .* put some into .*some/test/b and so on"):
        study.run(cfg)
    assert not cfg.out.exists()


def test_a_finished_study_without_a_class_has_no_gap(tmp_path):
    made_up(tmp_path, WRONG)
    for file in tmp_path.rglob("per_image.csv"):
        pd.read_csv(file).query("label > 0").to_csv(file, index=False)
    with pytest.raises(UserError, match="has no test images of a: a gap needs all classes"):
        analyse(tmp_path, draws=100)


@pytest.mark.slow
def test_classes_of_unequal_size_count_the_same(tmp_path):
    """Of 40, 40 and 10 test images the last 10 are wrong after the long tail: a third is lost, not a ninth."""
    made_up(tmp_path, WRONG | {("byol", "long-tailed"): 40})
    for file in tmp_path.rglob("per_image.csv"):
        pd.read_csv(file).iloc[:90].to_csv(file, index=False)
    tables = analyse(tmp_path, draws=100)
    assert tables["gaps"]["gap"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert tables["accuracy"].query("method == 'byol' and `set` == 'long-tailed'")["rare"].item() == 0
    page = report(tmp_path, draws=100).read_text()
    assert "10 to 40 of a class" in page
    assert "balanced test images" not in page


@pytest.mark.slow
def test_warnings_of_the_plan_are_in_the_report(tmp_path):
    made_up(tmp_path, WRONG)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"warnings": ["scores may be too high: x"]}))
    page = report(tmp_path, draws=100).read_text()
    assert "scores may be too high: x" in page
    assert "40 of each class" in page


@pytest.mark.slow
def test_a_study_of_tiny_images(tmp_path, monkeypatch):
    """RGB images, both methods, one seed; a second command finds all runs finished, other settings are refused."""
    root = write_classes(tmp_path / "rgb", [12, 10, 9], size=16)
    shutil.copyfile(root / "train/a/000.png", root / "test/b/000.png")

    def run_here(jobs, note, **_):
        for job in jobs:
            run_job(job)

    monkeypatch.setattr("sweep.study.local.run_locally", run_here)
    base = demo()
    cfg = replace(
        base,
        methods=METHODS,
        ratios=(0.4,),
        seeds=(3,),
        data=ImagesSource(data_root=root),
        out=tmp_path / "study",
        device="cpu",
        pretrain=replace(base.pretrain, steps=2, batch_size=8, projector_hidden=16),
        supervised=replace(base.supervised, steps=2, batch_size=8),
        probe=replace(base.probe, regularisation=(0.1,)),
    )
    page = study.run(cfg)
    warning = "1 of 6 test images are training images under another name: train/a/000.png and test/b/000.png"
    assert warning in page.read_text()
    assert "What does a long tail cost?" in page.read_text()
    rows = pd.read_csv(cfg.out / "results.csv")
    assert sorted(zip(rows["method"], rows["set"], strict=True)) == sorted(
        (m, s) for m in METHODS for s in ("balanced", "long-tailed")
    )
    assert rows["warnings"].str.endswith(warning).all()
    assert (rows["images"] == 9 + 5 + 3).all()  # int(9 * 0.4 ** (i / 2))
    assert rows.loc[rows["method"] == "supervised", "accuracy_of_head"].notna().all()
    card = json.loads((cfg.out / "encoders/byol-long-tailed-ratio0.4-seed3/encoder.json").read_text())
    assert card["in_channels"] == 3
    assert card["lineage"][0]["data"]["by_class"] == [9, 5, 3]
    monkeypatch.setattr("sweep.study.local.run_locally", None)
    assert study.run(cfg) == page
    with pytest.raises(UserError, match=r"holds a study of other settings \(ratios was \[0.4\] and is now \[0.5\]\)"):
        study.run(replace(cfg, ratios=(0.5,)))
