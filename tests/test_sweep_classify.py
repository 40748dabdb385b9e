"""A study of classifiers from the command line to the report, on a few tiny exams."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import sweep.__main__
from classify.config import ClassifyConfig
from classify.training import prepare
from core.errors import UserError
from data.sources import MrnetSource, open_exams

SETTINGS = """--recipe demo --task classify --pipelines random hierarchical --fractions 0.2 1 --seeds 0 1 --processes 1
--threads 1 --device cpu --test
--pretrain.encoder test_resnet --pretrain.image-size 32 --pretrain.steps 2 --pretrain.batch-size 4
--pretrain.clip-frames 2 --pretrain.generalist-images 9 --pretrain.generalist-epochs 1
--classify.encoder test_resnet --classify.image-size 32 --classify.clip-frames 2 --classify.test-clips 1
--classify.steps 4 --classify.evaluate-every 2 --classify.batch-size 4"""


@pytest.mark.slow
def test_a_study_of_exams_end_to_end(tiny_knees, tmp_path, monkeypatch, no_stale_handlers, forked_workers):
    out = tmp_path / "study"
    monkeypatch.setattr(sys, "argv", ["sweep", *SETTINGS.split(), "--data-root", str(tiny_knees), "--out", str(out)])
    sweep.__main__.main()

    results = pd.read_csv(out / "results.csv")
    assert set(results["pipeline"]) == {"random", "hierarchical"}
    assert set(results["labels"]) == {5, 27}  # 20 % and all of the exams that are not kept for validation
    assert results.groupby("split").size().to_dict() == {"test": 8, "val": 8}
    exams = pd.read_csv(out / "per_exam.csv", dtype={"exam": str})
    assert exams.query("split == 'test'").groupby("cell")["exam"].nunique().eq(12).all()
    for (cell, split), rows in exams.groupby(["cell", "split"]):
        row = results[(results["cell"] == cell) & (results["split"] == split)]
        assert row["auc"].item() == pytest.approx(roc_auc_score(rows["label"], rows["probability"]))
    # one seed draws the same labelled exams whatever the pipeline, a larger size holds the smaller one
    cells = {path.name: path for path in (out / "cells").iterdir()}
    labelled = {name: set(pd.read_csv(path / "labelled_exams.csv")["exam"]) for name, path in cells.items()}
    assert labelled["random-n5-seed0"] == labelled["hierarchical-n5-seed0"] < labelled["random-n27-seed0"]
    assert labelled["random-n5-seed0"] != labelled["random-n5-seed1"]

    (encoder,) = (out / "encoders").glob("*hierarchical*/encoder.json")
    stages = [stage["stage"] for stage in json.loads(encoder.read_text())["lineage"]]
    assert stages == ["generalist", "hierarchical"]
    model = json.loads((cells["hierarchical-n5-seed0"] / "result.json").read_text())
    assert model["init"].endswith("encoder.safetensors")
    assert (model["steps"], model["epochs"]) == (4, None)
    table = pd.read_csv(out / "statistics" / "by_size.csv")
    assert np.isfinite(table["mean"]).all()
    assert "AUC" in (out / "report.html").read_text()


def test_rates_are_tried_on_training_exams_alone(tiny_knees):
    """Of the 27 training exams 9 validate, as many of each class as in proportion; the others are not scored."""
    data = MrnetSource(data_root=tiny_knees)
    settings = {"encoder": "test_resnet", "image_size": 32, "clip_frames": 2, "data": data}
    exams, _, card = prepare(ClassifyConfig(**settings, inner_split=True, test=False))
    whole = open_exams(data, labelled=True)
    inner = exams.positions("val")
    assert {*exams.positions("train"), *inner} == {*whole.positions("train")}
    assert (len(inner), exams.labels[inner].sum()) == (9, 3)
    assert len(card.subjects["subjects"]["train"].split()) == 18
    with pytest.raises(UserError, match="--inner-split goes without a score of the test split"):
        ClassifyConfig(**settings, inner_split=True)
