"""The warning where subjects of the input of a prediction were trained on."""

import shutil

import pytest
from test_leakage import CASES, cohort, opened, stage

from data.leakage import record_splits, records, subjects_trained_on
from data.slices import Dataset, load_dataset
from engine.model_file import save_model
from segment.model import ModelCard, build_unet
from segment.predict import Predict
from segment.predict import run as predict


def trained_on(images: Dataset, *stages: dict) -> set[str]:
    pairs = zip(images.images()["subject"], images.images()["digest"], strict=True)
    return subjects_trained_on(pairs, records(stages, "enc"))


def test_the_subjects_that_were_trained_on(tmp_path):
    """By their images under any name, by their names beside such an image, and never by names alone."""
    data = opened(cohort(tmp_path / "data", CASES))
    trained = stage(data, "case0", "case1", use="train"), stage(data, "case2")
    assert trained_on(data, *trained) == {"case0", "case1", "case2"}
    assert not trained_on(data, stage(data, "case3", use="val"), stage(data, "case4", use="test"), {"stage": "old"})
    renamed = opened(cohort(tmp_path / "renamed", ["p0", "p1", "p2", "p3"]), {"train": ["p0", "p1", "p2", "p3"]})
    assert trained_on(renamed, *trained) == {"p0", "p1", "p2"}
    others = opened(cohort(tmp_path / "others", CASES, seed=1))
    assert not trained_on(others, *trained)
    shutil.copy(data.root / "images/case1.nii.gz", others.root / "images/case1.nii.gz")
    assert trained_on(load_dataset("folder", others.root), *trained) == {"case0", "case1"}


@pytest.mark.slow
def test_a_prediction_warns_of_subjects_that_were_trained_on(tmp_path, caplog):
    """Two files of a subject count once; other images, and a model without a record, cause no warning."""
    names = [f"MR00{k}_s{side}" for k in range(4) for side in (0, 1)]
    data = opened(cohort(tmp_path / "data", names), {"train": ["MR000", "MR001"], "val": ["MR002"], "test": ["MR003"]})
    others = cohort(tmp_path / "others", names, seed=1)
    train = data.positions("train")
    for name, subjects in (("new", record_splits(data, train)), ("old", None)):
        card = ModelCard(
            **{"encoder": "test_resnet", "norm": "batch", "classes": ["background", "a"], "normalisation": "image"},
            **{"statistics": (0, 1), "spacing_mm": None, "dataset": "folder", "init": "random", "subjects": subjects},
        )
        (tmp_path / name).mkdir()
        save_model(build_unet("test_resnet", 2), tmp_path / name, card)
    for k, (run, source) in enumerate((("new", others), ("old", data.root), ("new", data.root))):
        assert "trained on" not in caplog.text
        predict(Predict(run=(tmp_path / run,), input=source, output=tmp_path / f"out{k}", device="cpu"))
    assert caplog.text.count("2 of 4 subjects of the input were trained on: scores on them are no test") == 1
