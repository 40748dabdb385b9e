"""A run is repeated from its `config.json`, and its failing step from its last checkpoint."""

import json

import pytest

from benchmarks.fault_commands import CLASSIFY, PRETRAIN, SEGMENT, write_folder, write_knees
from tests.conftest import run_module

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(
    ("module", "settings"),
    [("segment", [*SEGMENT, "--no-figures"]), ("pretrain", PRETRAIN), ("classify", CLASSIFY)],
)
def test_a_run_is_repeated_bit_for_bit(tmp_path, module, settings, monkeypatch):
    (write_knees if module == "classify" else write_folder)(tmp_path / "data")
    first, second = tmp_path / "first", tmp_path / "second"
    run_module(module, [*settings, "--data-root", tmp_path / "data", "--out", first], monkeypatch)
    run_module(module, ["--config", first / "config.json", "--out", second], monkeypatch)
    weights = "encoder.safetensors" if module == "pretrain" else "model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    varying = {"seconds", "images_per_second", "exams_per_second", "encoder"}
    assert {k: v for k, v in results[0].items() if k not in varying} == {
        k: v for k, v in results[1].items() if k not in varying
    }
    assert results[0]["data_digest"]
    assert results[0]["versions"].keys() >= {"torch", "fewslice"}


def test_a_step_whose_loss_is_not_finite_is_repeated(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "data")
    run = tmp_path / "run"
    diverging = [*SEGMENT, "--data-root", tmp_path / "data", "--out", run, "--lr", "1e6", "--weight-decay", "1e5"]
    with pytest.raises(SystemExit) as end:
        run_module("segment", diverging, monkeypatch)
    assert end.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "the loss became" in message
    assert "python -m engine.replay" in message
    failure = json.loads((run / "failure.json").read_text())
    assert not (run / "model.safetensors").exists()
    assert len(failure["micro_batches"][0]) == 4
    before = sorted(run.iterdir())
    run_module("engine.replay", [run], monkeypatch)
    assert f"reproduced: the loss is {failure['loss']} at optimiser step {failure['step']}" in capsys.readouterr().out
    assert sorted(run.iterdir()) == before
    (run / "failure.json").unlink()
    with pytest.raises(SystemExit) as end:
        run_module("engine.replay", [run], monkeypatch)
    assert end.value.code == 2


def test_an_inner_split_is_not_the_split_that_is_saved(tmp_path, monkeypatch):
    write_folder(tmp_path / "data")
    saved = {}
    for name, flags in (("whole", []), ("inner", ["--inner-split"])):
        run, file = tmp_path / name, tmp_path / f"{name}.json"
        asked = ["--data-root", tmp_path / "data", "--out", run, "--save-splits", file, "--no-figures", *flags]
        run_module("segment", [*SEGMENT, *asked], monkeypatch)
        saved[name] = json.loads(file.read_text())
    assert saved["inner"] == saved["whole"]
    assert json.loads((tmp_path / "inner/splits.json").read_text()) != saved["whole"]
