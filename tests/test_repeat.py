"""A run is repeated from its `config.json`, and its failing step from its last checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fault_commands import CLASSIFY, PRETRAIN, SEGMENT, write_folder, write_knees
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def command(*arguments: str | Path) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("module", "settings"), [("segment", SEGMENT), ("pretrain", PRETRAIN), ("classify", CLASSIFY)])
def test_a_run_is_repeated_bit_for_bit(tmp_path, module, settings):
    (write_knees if module == "classify" else write_folder)(tmp_path / "data")
    first, second = tmp_path / "first", tmp_path / "second"
    done = command(module, *settings, "--data-root", tmp_path / "data", "--out", first)
    assert done.returncode == 0, done.stderr
    done = command(module, "--config", first / "config.json", "--out", second)
    assert done.returncode == 0, done.stderr
    weights = "encoder.safetensors" if module == "pretrain" else "model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    varying = {"seconds", "images_per_second", "exams_per_second", "encoder"}
    assert {k: v for k, v in results[0].items() if k not in varying} == {
        k: v for k, v in results[1].items() if k not in varying
    }
    assert results[0]["data_digest"]
    assert results[0]["versions"].keys() >= {"torch", "fewslice"}


def test_a_step_whose_loss_is_not_finite_is_repeated(tmp_path):
    write_folder(tmp_path / "data")
    run = tmp_path / "run"
    done = command(
        "segment", *SEGMENT, "--data-root", tmp_path / "data", "--out", run, "--lr", "1e6", "--weight-decay", "1e5"
    )
    assert done.returncode == 2
    assert "the loss became" in done.stderr
    assert "python -m engine.replay" in done.stderr
    failure = json.loads((run / "failure.json").read_text())
    assert not (run / "model.safetensors").exists()
    assert len(failure["micro_batches"][0]) == 4
    before = sorted(run.iterdir())
    done = command("engine.replay", run)
    assert done.returncode == 0, done.stderr
    assert f"reproduced: the loss is {failure['loss']} at optimiser step {failure['step']}" in done.stdout
    assert sorted(run.iterdir()) == before
    (run / "failure.json").unlink()
    assert command("engine.replay", run).returncode == 2
