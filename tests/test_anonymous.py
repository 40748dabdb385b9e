"""No names in encoders and models, and with --anonymous none in tables, figures and reports."""

import json
import socket

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import make_study, run_here

import segment.scoring
from classify.explain import explain_exams
from core.subjects import anonymised, pseudonyms, salted_all
from core.tables import read_table
from data.readers.exams import load_mrnet
from data.readers.images import read_volume, write_label_map
from data.slices import load_dataset
from data.sources import AcdcSource
from data.splits import save_splits
from engine.model_file import name_of_init
from engine.run_folder import RunFolder
from segment.config import SegmentConfig
from segment.evaluate import Evaluate
from segment.evaluate import run as evaluate
from segment.run_page import _cases
from segment.scoring import labelled_volumes, score_split


def test_codes_keep_suffixes_and_hide_names():
    code = pseudonyms()
    assert code("Müller_Jan.nii.gz") == pseudonyms()("Müller_Jan.nii.gz")
    assert code("Müller_Jan.nii.gz").endswith(".nii.gz")
    assert "ller" not in code("Müller_Jan.nii.gz")
    assert code("p1") != code("p2")
    assert code("") == ""
    assert code("J.Smith") == code("J.Smith").removesuffix(".Smith")


def test_codes_need_the_secret_key(tmp_path, monkeypatch):
    before = pseudonyms()("p1")
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path))
    assert pseudonyms()("p1") != before


def test_columns_that_name_patients_are_replaced():
    table = pd.DataFrame({"subject": ["p1", "p2"], "file": ["p1.png", "p2.png"], "exam": [1, 2], "dice": [0.5, 1.0]})
    hidden = anonymised(table)
    assert hidden["dice"].tolist() == [0.5, 1.0]
    assert hidden[["subject", "file", "exam"]].map(lambda code: code.startswith("anonymous-")).all(axis=None)
    assert table["subject"].tolist() == ["p1", "p2"]


def test_salted_hashes_differ_with_the_salt():
    assert salted_all(["a", "b", "a", ""], "x") == salted_all(["b", "a"], "x") != salted_all(["b", "a"], "y")
    assert salted_all(["b\udcff"], "x")  # a file name that is not UTF-8


def test_splits_without_names(tmp_path):
    save_splits(tmp_path / "splits.json", {"p1": "train", "p2": "val"}, anonymous=True)
    assert json.loads((tmp_path / "splits.json").read_text())["train"] == [pseudonyms()("p1")]


@pytest.mark.slow
def test_scores_and_pictures_without_names(tiny_acdc, tmp_path, monkeypatch):
    data = load_dataset("acdc", tiny_acdc)
    titles: list[str] = []
    monkeypatch.setattr(segment.scoring, "prediction_panel", lambda cases, *_: titles.extend(c["title"] for c in cases))
    predictions = [volume.reference for volume in labelled_volumes(data, "val")]
    named = score_split(predictions, data, "val", tmp_path / "a")
    hidden = score_split(predictions, data, "val", tmp_path / "b", anonymous=True)
    assert named == hidden
    assert set(pd.read_csv(tmp_path / "b/per_volume.csv")["subject"]) == {pseudonyms()("patient002")}
    assert any("patient002" in title for title in titles[: len(titles) // 2])
    assert not any("patient" in title for title in titles[len(titles) // 2 :])


@pytest.mark.parametrize("anonymous", [False, True])
def test_two_files_of_a_subject_are_told_apart(tmp_path, anonymous):
    """In per_volume.csv, and on the page, which reads it; with --anonymous by codes."""
    for name in ("MR004_s0", "MR004_s1", "MR005_s0"):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            values = np.random.default_rng(len(folder)).integers(0, 2, (20, 18, 2)).astype(np.uint8)
            nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "splits.json").write_text('{"train": ["MR005"], "val": ["MR004"], "test": []}')
    data = load_dataset("folder", tmp_path)
    right, wrong = (volume.reference for volume in labelled_volumes(data, "val"))
    predictions = [right, wrong * 0]
    score_split(predictions, data, "val", tmp_path / "out", anonymous=anonymous)
    per_volume = read_table(tmp_path / "out/per_volume.csv")
    files = [f"images/MR004_s{k}.nii.gz" for k in (0, 1)]
    codes = [pseudonyms()(file) for file in files]
    assert per_volume["file"].tolist() == (codes if anonymous else files)
    titles = [case.title.split(", ")[0] for case in _cases(per_volume, data, "val", predictions)]
    names = [code.removesuffix(".nii.gz") for code in codes] if anonymous else ["MR004_s0", "MR004_s1"]
    assert titles == [f"worst: {names[1]}", f"best: {names[0]}"]


def test_montages_without_names(tiny_knees, tmp_path, monkeypatch):
    exams, drawn = load_mrnet(tiny_knees), []
    monkeypatch.setattr("classify.explain.montage", lambda *arguments: drawn.append(arguments[-2:]))
    card = type("Card", (), {"task": "acl", "plane": "sagittal"})
    explain_exams(None, card, exams, ["train/0001"], tmp_path / "heat", anonymous=True)
    ((title, path),) = drawn
    assert title.startswith(pseudonyms()("train/0001"))
    assert "0001" not in title.partition(":")[0].removeprefix(pseudonyms()("train/0001"))
    assert path.stem == pseudonyms()("train/0001")


@pytest.mark.slow
def test_evaluation_without_names(tmp_path, capsys):
    for name in ("prediction", "reference"):
        (tmp_path / name).mkdir()
        values = np.zeros((8, 8, 3), np.uint8)
        values[2:5, 2:5] = 1
        nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / name / "Smith.nii.gz")
    evaluate(Evaluate(prediction=tmp_path / "prediction", reference=tmp_path / "reference", anonymous=True))
    text = (tmp_path / "prediction/scores/per_volume.csv").read_text() + capsys.readouterr().out
    assert "Smith" not in text
    assert "anonymous-" in text


def test_masks_do_not_copy_what_names_the_patient(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (8, 7, 3)).astype(np.int16), np.eye(4))
    image.header["descrip"], image.header["db_name"], image.header["aux_file"] = b"Smith", b"Smith", b"Smith.txt"
    image.header["intent_name"] = b"Smith"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Smith, 1970-01-01"))
    image.to_filename(tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    write_label_map(tmp_path / "mask.nii", np.ones(volume.stack.shape, np.uint8), volume)
    assert b"Smith" not in (tmp_path / "mask.nii").read_bytes()
    assert b"Smith" in (tmp_path / "image.nii").read_bytes()
    assert len(volume.header.extensions) == 1  # the image in memory stays as it is
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii").affine, volume.affine)


def test_a_card_holds_the_name_and_digest_of_the_initial_weights(tmp_path):
    (tmp_path / "Smith").mkdir()
    file = tmp_path / "Smith/encoder.safetensors"
    file.write_bytes(b"weights")
    assert name_of_init(str(file)) == name_of_init(str(tmp_path / "Smith"))
    assert name_of_init(str(file)).startswith("encoder.safetensors sha256 9a129038")
    assert [name_of_init(name) for name in ("random", "imagenet")] == ["random", "imagenet"]


def test_event_files_do_not_name_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-7")
    with RunFolder(tmp_path / "run", SegmentConfig()) as run:
        run.open_metrics(["step", "loss"], 0)
        run.record({"step": 1, "loss": 0.5})
    (events,) = (tmp_path / "run/tensorboard").iterdir()
    assert "ward-7" not in events.name
    assert ".host." in events.name
    assert b"ward-7" not in events.read_bytes()
    assert socket.gethostname() == "ward-7"


@pytest.mark.slow
def test_no_name_in_a_run_or_its_predictions(tiny_acdc, tmp_path):
    from segment.predict import Predict
    from segment.predict import run as predict
    from segment.training import run

    few = {"encoder": "test_resnet", "image_size": 32, "steps": 1, "batch_size": 4, "device": "cpu", "figures": False}
    run(SegmentConfig(data=AcdcSource(data_root=tiny_acdc), out=tmp_path / "run", anonymous=True, test=True, **few))
    predict(Predict(run=tmp_path / "run", input=tiny_acdc, output=tmp_path / "out", anonymous=True))
    texts = [*tmp_path.rglob("*.csv"), *tmp_path.rglob("*.json")]
    names = {file.name for file in texts}
    assert {"labelled_slices.csv", "per_volume.csv", "splits.json", "volumes.csv", "model.json"} <= names
    for file in texts:
        assert "patient0" not in file.read_text(), file


@pytest.mark.slow
def test_no_name_in_a_study(tiny_acdc, tmp_path):
    from sweep.report.page import report

    cfg = make_study(tiny_acdc, tmp_path / "study", anonymous=True, pipelines=("random",), seeds=(0,))
    run_here(cfg)
    assert "patient0" not in report(cfg.out).read_text()
    for file in [*cfg.out.rglob("*.csv"), *cfg.out.glob("cells/*/splits.json")]:
        assert "patient0" not in file.read_text(), file
    codes = pd.concat([pd.read_csv(file)["subject"] for file in cfg.out.glob("cells/*/per_volume.csv")])
    assert len({*codes}) == 1  # one validation patient, of one code in all cells
