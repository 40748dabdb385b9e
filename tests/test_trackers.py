"""Copies of a run in MLflow and Weights & Biases: what they get, once, and that they never cost the run."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import run_module

from core.errors import UserError
from core.subjects import pseudonyms
from data.sources import AcdcSource
from engine.config import RunSettings
from engine.run_folder import RunFolder
from engine.trackers import TensorBoard, parameters
from segment.config import SegmentConfig

COLUMNS = ["step", "loss", "dice"]


class FakeWandB(SimpleNamespace):
    """The calls of wandb's module that a run makes; runs are kept in `runs`, their rows as (step, metrics)."""

    def __init__(self) -> None:
        super().__init__(runs=[], broken=False)

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        if self.broken:
            raise ConnectionError("no server")
        run = SimpleNamespace(id=options["id"] or f"id{len(self.runs)}", options=options, rows=[], summary={})
        self.runs.append(run)

        def add(metrics, step):
            if self.broken:
                raise ConnectionError("no server\nand a second line")
            run.rows.append((step, metrics))

        run.log, run.finish = add, lambda exit_code: setattr(run, "ended", exit_code)
        return run


@pytest.fixture
def wandb(monkeypatch) -> FakeWandB:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def train(path: Path, steps: range, first_step: int = 0, **settings) -> None:
    """A run that logs some steps; it is finished if it has six, or had them before."""
    with RunFolder(path, RunSettings(resume=path.exists(), **settings)) as run:
        run.open_metrics(COLUMNS, first_step)
        for step in steps:
            run.record({"step": step, "loss": 1 / step} | ({"dice": 0.5} if step == 4 else {}))
        if 6 in (*steps, first_step):
            run.write_result({"dice": {"mean": 0.75, "a (b)": 0.5}, "steps": 6, "init": "random", "warnings": ["p1"]})


def test_wandb_gets_settings_metrics_and_scores_and_nothing_else(tmp_path, wandb):
    train(tmp_path / "mine", range(1, 7), track="wandb", seed=3)
    (run,) = wandb.runs
    assert (run.options["name"], run.options["dir"]) == ("mine", str(tmp_path / "mine"))
    assert run.options["mode"] == "offline"
    assert run.options["config"].items() >= {"seed": 3, "micro_batch_size": None}.items()
    assert run.options["config"].keys() == json.loads((tmp_path / "mine/config.json").read_text()).keys()
    assert run.options["settings"]["console"] == "off"
    assert [step for step, _ in run.rows] == [1, 2, 3, 4, 5, 6]
    assert run.rows[3] == (4, {"loss": 0.25, "dice": 0.5})
    scores = {"result/dice.mean": 0.75, "result/dice.a (b)": 0.5, "result/steps": 6.0, "result/warnings": 1.0}
    assert run.summary == scores
    assert run.ended == 0
    assert not (tmp_path / "mine/tensorboard").exists()


def test_the_mode_of_wandb_is_the_users(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    train(tmp_path / "a", range(1, 2), track="wandb")
    assert wandb.runs[0].options["mode"] == "online"


def test_a_resumed_run_is_the_same_one_and_sends_each_step_once(tmp_path, wandb):
    train(tmp_path / "a", range(1, 6), track="wandb")
    assert wandb.runs[0].ended == 1
    train(tmp_path / "a", range(4, 7), 3, track="wandb")  # its checkpoint was of step 3
    first, second = wandb.runs
    assert second.id == first.id
    assert [step for run in wandb.runs for step, _ in run.rows] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_is_tracked_late_sends_its_earlier_rows(tmp_path, wandb):
    train(tmp_path / "a", range(1, 6), track="none")
    assert not (tmp_path / "a/tensorboard").exists()
    train(tmp_path / "a", range(4, 7), 3, track="wandb")
    assert [step for step, _ in wandb.runs[0].rows] == [1, 2, 3, 4, 5, 6]


def test_overwriting_a_run_starts_a_new_one(tmp_path, wandb):
    train(tmp_path / "a", range(1, 6), track="wandb")
    RunFolder(tmp_path / "a", RunSettings(track="wandb", overwrite=True)).close()
    assert wandb.runs[1].options["id"] is None


def test_a_tracker_that_fails_costs_one_warning_and_is_brought_up_to_date_later(tmp_path, wandb, caplog):
    with caplog.at_level(logging.WARNING, "fewslice"), RunFolder(tmp_path, RunSettings(track="wandb")) as run:
        run.open_metrics(COLUMNS, 0)
        for step in range(1, 6):
            wandb.broken = step >= 3
            run.record({"step": step, "loss": 0.5})
        run.write_result({"dice": 0.5})
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith("--track wandb failed (ConnectionError: no server) and gets nothing more")
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 6
    assert (tmp_path / "result.json").exists()
    wandb.broken = False
    with RunFolder(tmp_path, RunSettings(track="wandb", resume=True)) as run:
        run.open_metrics(COLUMNS, 5)
        run.write_result({"dice": 0.5})
    assert [step for each in wandb.runs for step, _ in each.rows] == [1, 2, 3, 4, 5]
    assert wandb.runs[1].summary["result/dice"] == 0.5


def test_a_tracker_that_cannot_be_reached_is_refused_before_training(tmp_path, wandb):
    wandb.broken = True
    with pytest.raises(UserError, match=r"--track wandb: no run could be opened there \(ConnectionError: no server\)"):
        RunFolder(tmp_path, RunSettings(track="wandb"))
    wandb.broken = False
    RunFolder(tmp_path, RunSettings(track="wandb", resume=True)).close()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_ends_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--track {name} needs the package {name} .*pip install 'fewslice\[{name}\]'"):
        RunFolder(tmp_path / "run", RunSettings(track=name))
    assert not (tmp_path / "run").exists()
    RunFolder(tmp_path / "run", RunSettings(track=name), main=False).close()  # the first process alone tracks


def test_the_command_line_refuses_a_missing_package(tiny_acdc, tmp_path, monkeypatch, capsys, no_stale_handlers):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    line = ["--data-root", tiny_acdc, "--out", tmp_path / "run", "--encoder", "test_resnet", "--image-size", "32"]
    with pytest.raises(SystemExit) as ended:
        run_module("segment", [*line, "--steps", "1", "--device", "cpu", "--track", "mlflow"], monkeypatch)
    assert ended.value.code == 2
    assert "error: --track mlflow needs the package mlflow" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_each_step_once(tmp_path):
    """Of a run that was resumed at step 20, whose row is kept, and of one that began again at 0."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, second, expected in (("resumed", 20, [10, 20, 30]), ("again", 0, [10, 20, 30])):
        for first, logged in ((0, [10, 20, 25]), (second, [step for step in (10, 20, 30) if step > second])):
            board = TensorBoard(tmp_path / name)
            board.start([], first)
            for step in logged:
                board.log({"step": step, "dice": float(step + first)})
            board.close()
        events = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("dice")] == expected


def test_anonymous_hides_the_names_of_files_in_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Smith.csv").touch()
    config = SegmentConfig(
        data=AcdcSource(data_root=tmp_path / "Smith", split="Smith.csv"),
        init="Smith/encoder.safetensors",
        labelled_list=Path("Smith.csv"),
        out=tmp_path / "Smith",
    )
    shown = parameters(config)
    assert shown["data.data_root"] == str(tmp_path / "Smith")
    assert shown["augmentation.jitter"] == 0.2
    hidden = parameters(replace(config, anonymous=True))
    assert "Smith" not in json.dumps(hidden)
    assert hidden["data.data_root"] == pseudonyms()(str(tmp_path / "Smith"))
    assert {name for name in hidden if hidden[name] != shown[name]} == {
        *("anonymous", "data.data_root", "data.split", "init", "labelled_list", "out")
    }
    assert parameters(SegmentConfig(init="hf-hub:timm/a", anonymous=True))["init"] == "hf-hub:timm/a"


def test_a_folder_of_an_earlier_version_is_resumed(tmp_path):
    """Its configuration has no `track`."""
    RunFolder(tmp_path, RunSettings()).close()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.pop("track") == "tensorboard"
    (tmp_path / "config.json").write_text(json.dumps(saved))
    RunFolder(tmp_path, RunSettings(resume=True)).close()


@pytest.fixture
def client(monkeypatch):
    """Opens the database of a run folder with MLflow's own client."""
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return lambda folder: mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


@pytest.mark.slow
def test_mlflow_keeps_a_database_in_the_run_folder(tmp_path, client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "überlang # 100 % run"
    train(folder, range(1, 6), track="mlflow")
    train(folder, range(4, 7), 3, track="mlflow")
    train(folder, range(0), 6, track="mlflow")  # of a finished run, nothing is repeated
    assert {each.name for each in tmp_path.iterdir()} == {folder.name}
    with pytest.raises(UserError, match=r"holds a \?, at which its address would end; choose another --out"):
        RunFolder(tmp_path / "why?", RunSettings(track="mlflow"))
    reader = client(folder)
    (run,) = reader.search_runs([reader.get_experiment_by_name("fewslice").experiment_id])
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= {"seed": "0", "track": "mlflow"}.items()
    history = reader.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(step, 1 / step) for step in range(1, 7)]
    assert [each.step for each in reader.get_metric_history(run.info.run_id, "dice")] == [4]
    assert run.data.metrics["result/dice.mean"] == 0.75
    assert run.data.metrics["result/dice.a _b_"] == 0.5
    assert len(reader.get_metric_history(run.info.run_id, "result/dice.mean")) == 1


@pytest.mark.slow
def test_another_database_of_mlflow_gets_a_new_run(tmp_path, client, monkeypatch):
    train(tmp_path / "run", range(1, 4), track="mlflow")
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other/mlflow.db'}")
    train(tmp_path / "run", range(4, 7), 3, track="mlflow")
    reader = client(tmp_path / "other")
    (run,) = reader.search_runs([reader.get_experiment_by_name("fewslice").experiment_id])
    assert [each.step for each in reader.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_folder_named_wandb_is_no_package(tmp_path, monkeypatch):
    """Python takes a folder on its path for a module, and runs leave one of that name."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(each for each in sys.path if "site-packages" not in each)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="--track wandb needs the package wandb"):
        RunFolder(tmp_path / "run", RunSettings(track="wandb"))
