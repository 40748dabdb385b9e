"""`~` is the home folder in every path, and paths that are not there are named."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import tyro

import classify.config
import classify.predict
import pretrain.config
import segment.config
import segment.evaluate
import segment.predict
import sweep.study.config
from core.errors import UserError
from data.inspect import Inspect
from data.sources import ExamsSource, FolderSource
from engine.command_line import parse
from segment.config import PRESETS, SegmentConfig


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


KINDS = [
    segment.predict.Predict,
    segment.evaluate.Evaluate,
    classify.predict.Predict,
    Inspect,
    FolderSource,
    ExamsSource,
    SegmentConfig,
    pretrain.config.PretrainConfig,
    classify.config.ClassifyConfig,
    sweep.study.config.SweepConfig,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_path_of_every_command(kind, home):
    paths = [f.name for f in fields(kind) if "Path" in str(f.type)]
    assert paths
    others = {"selection": "next"} if kind is SegmentConfig else {}  # without it there is no --selection-run
    suffix = "html" if kind is Inspect else "png"
    settings = kind(**{name: Path(f"~/{name}.{suffix}") for name in paths}, **others)
    for name in paths:
        path = home / f"{name}.{suffix}"
        assert getattr(settings, name) in (path, (path,)), name


def test_text_that_may_be_a_path(home):
    assert SegmentConfig(init="~/encoder.safetensors").init == f"{home}/encoder.safetensors"
    assert pretrain.config.PretrainConfig(generalist="~/photos").generalist == f"{home}/photos"
    study = sweep.study.config.SweepConfig(pipelines=("random", "generalist=~/a.safetensors"))
    assert study.pipelines == ("random", f"generalist={home}/a.safetensors")
    assert FolderSource(subject_pattern="a~/b").subject_pattern == "a~/b"


@pytest.mark.slow
def test_command_lines_and_configuration_files(home):
    predict = tyro.cli(segment.predict.Predict, args=["--run=~/run", "--input=~/in", "--output=~"])
    assert (predict.run, predict.input, predict.output) == ((home / "run",), home / "in", home)
    Path("run.yaml").write_text("out: ~/runs/a\ndata:\n  dataset: folder\n  data_root: ~/d\n  splits_file: ~/s.json\n")
    cfg = parse(lambda early: PRESETS, "", ["--config", "run.yaml", "--init=~/e.safetensors"])
    assert (cfg.out, cfg.init) == (home / "runs/a", f"{home}/e.safetensors")
    assert (cfg.data.data_root, cfg.data.splits_file) == (home / "d", home / "s.json")


def test_the_home_of_nobody_is_refused():
    with pytest.raises(UserError, match="there is no home folder ~nobody-here"):
        FolderSource(data_root=Path("~nobody-here/d"))
    Path("~draft").mkdir()
    assert FolderSource(data_root=Path("~draft")).data_root == Path("~draft")


def test_saved_configurations_hold_the_expanded_path(home):
    from engine.config import saved

    assert json.loads(json.dumps(saved(SegmentConfig(out=Path("~/runs/b")))))["out"] == f"{home}/runs/b"
