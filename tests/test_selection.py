"""`segment --selection`, and the rules as a dimension of a study."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_study, run_here, run_module

from classify.config import ClassifyConfig
from core.errors import UserError
from core.files import write_json
from data.augmentation import Augmentation
from data.slices import Dataset
from data.sources import AcdcSource, open_slices
from encoders.build import build_encoder
from encoders.weights import save_encoder
from engine.config import read_config, saved
from pretrain.config import PretrainConfig
from segment.config import SegmentConfig
from segment.model import load_unet
from segment.selection import labelled_rows
from segment.training import run
from sweep.report.settings_table import what_was_run
from sweep.report.study_folder import read_study
from sweep.study.config import SweepConfig
from sweep.study.grid import plan

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
KEYS = ["file", "slice"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    facts = {"norm": "batch", "network": "target", "normalisation": {"over": "image"}, "lineage": []}
    return save_encoder(build_encoder("test_resnet"), folder, name="test_resnet", in_channels=1, **facts)


def settings(root: Path, **changes) -> SegmentConfig:
    few = {
        "encoder": "test_resnet",
        "image_size": 32,
        "steps": 2,
        "batch_size": 4,
        "evaluate_every": 2,
        "figures": False,
    }
    few |= {"augmentation": Augmentation(crop="fixed", foreground=1.0), "labelled_fraction": 0.25, "subset_seed": 5}
    return SegmentConfig(data=AcdcSource(data_root=root), **(few | changes))


def chosen(cfg: SegmentConfig, dataset: Dataset | None = None) -> pd.DataFrame:
    dataset = dataset or open_slices(cfg.data)
    rows = labelled_rows(cfg, dataset, CPU)
    assert (np.diff(rows) > 0).all()
    table = dataset.table.iloc[rows]
    assert set(table["split"]) == {"train"}
    assert table["labelled"].all()
    return table


def test_every_rule_gives_as_many_slices_that_train(tiny_acdc, encoder):
    random = chosen(settings(tiny_acdc))
    foreground = chosen(settings(tiny_acdc, selection="foreground"))
    first = chosen(settings(tiny_acdc, selection="first", init=str(encoder)))
    assert len(random) == len(foreground) == len(first) == 6
    assert {*first.index} != {*random.index}
    again = chosen(settings(tiny_acdc, selection="first", init=str(encoder)))
    assert list(again.index) == list(first.index)


def test_foreground_aware_draws_go_to_slices_with_foreground(tiny_acdc):
    dataset = open_slices(AcdcSource(data_root=tiny_acdc))
    train = np.flatnonzero((dataset.table["split"] == "train") & dataset.table["labelled"])
    values = dataset.table["label_values"].to_numpy(object, copy=True)
    values[train] = "0"
    values[train[::6]] = "0 2"
    sparse = replace(dataset, table=dataset.table.assign(label_values=values))
    counts = {
        rule: sum(
            (chosen(settings(tiny_acdc, selection=rule, subset_seed=seed), sparse)["label_values"] == "0 2").sum()
            for seed in range(20)
        )
        for rule in ("random", "foreground")
    }
    assert counts["foreground"] > counts["random"] + 10


@pytest.mark.slow
def test_first_takes_one_volume_of_each_subject_middle_slices_included(tiny_acdc, encoder):
    table = chosen(settings(tiny_acdc, selection="first", init=str(encoder), labelled_fraction=1 / 24))
    (row,) = table.itertuples()
    dataset = open_slices(AcdcSource(data_root=tiny_acdc))
    volume = dataset.table[dataset.table["file"] == row.file]
    assert row.slice == len(volume) // 2
    most = chosen(settings(tiny_acdc, selection="first", init=str(encoder), labelled_fraction=0.5))
    assert most.groupby("subject")["file"].nunique().eq(1).all()
    with pytest.raises(UserError, match=r"one volume of each training subject, 12 slices in all: ask for"):
        chosen(settings(tiny_acdc, selection="first", init=str(encoder), labelled_fraction=1.0))


@pytest.mark.slow
def test_next_keeps_the_labels_of_its_run_and_adds_what_that_is_unsure_of(tiny_acdc, tmp_path):
    cfg = settings(tiny_acdc, out=tmp_path / "run", selection="foreground")
    run(cfg)
    before = pd.read_csv(tmp_path / "run/labelled_slices.csv")[KEYS]
    following = settings(tiny_acdc, selection="next", selection_run=tmp_path / "run", labelled_fraction=0.5)
    after = chosen(following)
    assert len(after) == 12
    assert len(after[KEYS].merge(before)) == len(before) == 6
    with pytest.raises(UserError, match=r"trained on 6 slices, more than the 2 that are wanted"):
        chosen(replace(following, labelled_fraction=0.1))
    with pytest.raises(UserError, match="is no finished run of python -m segment"):
        chosen(replace(following, selection_run=tmp_path))
    dataset = open_slices(cfg.data)
    swapped = dataset.table["split"].replace({"train": "val", "val": "train"})
    with pytest.raises(UserError, match="pass a run on the same data and split"):
        chosen(following, replace(dataset, table=dataset.table.assign(split=swapped)))


def finished(folder: Path, cfg: object, labelled: pd.DataFrame | None = None) -> Path:
    """A run folder as far as a choice looks into it before it loads the network."""
    folder.mkdir()
    write_json(folder / "config.json", saved(cfg))
    write_json(folder / "result.json", {})
    if labelled is not None:
        labelled[["file", "frame", "slice"]].to_csv(folder / "labelled_slices.csv", index=False)
    return folder


def test_next_without_a_slice_to_choose(tiny_acdc, tmp_path, monkeypatch, capsys):
    cfg = settings(tiny_acdc)
    dataset = open_slices(cfg.data)
    train = dataset.table.iloc[dataset.positions("train", labelled=True)]
    every = finished(tmp_path / "every", cfg, train)
    flags = ["--data-root", tiny_acdc, "--selection", "next", "--selection-run", every, "--labelled-fraction", 1]
    flags += ["--out", tmp_path / "out", "--encoder", "test_resnet", "--image-size", 32, "--device", "cpu"]
    flags += ["--batch-size", 4, "--steps", 1, "--no-figures"]
    some = train[["file", "frame", "slice"]].iloc[:3]
    some.to_csv(tmp_path / "list.csv", index=False)
    listed = ["--labelled-list", tmp_path / "list.csv", "--selection-run", finished(tmp_path / "some", cfg, some)]
    for more, count, which in (([], 24, ""), (listed, 3, f" that --labelled-list {tmp_path / 'list.csv'} names")):
        with pytest.raises(SystemExit) as end:
            run_module("segment", [*flags, *more], monkeypatch)
        assert end.value.code == 2
        sentence = rf"^error: .*was trained on all {count} labelled training slices of {tiny_acdc}{which}: none is left"
        assert re.search(sentence, capsys.readouterr().err)
    few = finished(tmp_path / "few", cfg, train.iloc[:6])
    with pytest.raises(UserError, match=r"trained on 6 slices, as many as the 6 that are wanted: raise --labelled-f"):
        chosen(settings(tiny_acdc, selection="next", selection_run=few))


def test_the_run_to_go_on_from_is_one_of_segment(tiny_acdc, tmp_path):
    other = {"pretrain": PretrainConfig(), "classify": ClassifyConfig(), "sweep": SweepConfig()}
    for command, cfg in other.items():
        run_folder = finished(tmp_path / command, cfg)
        sentence = rf"config\.json is of a run of python -m {command}: pass one of python -m segment$"
        with pytest.raises(UserError, match=sentence):
            chosen(settings(tiny_acdc, selection="next", selection_run=run_folder))
    with pytest.raises(
        UserError, match=r"config\.json is of a run of python -m segment: pass one of python -m pretrain$"
    ):
        read_config(PretrainConfig, finished(tmp_path / "own", settings(tiny_acdc)) / "config.json")
    study = finished(tmp_path / "study", SweepConfig(label_unit="patient")) / "config.json"
    assert read_config(SweepConfig, study).label_unit == "patient"
    (tmp_path / "encoder.safetensors").touch()
    with pytest.raises(UserError, match=r"it is a run of python -m pretrain: pass a run that was trained on labels"):
        load_unet(tmp_path)


def test_few_unknown_settings_are_named(tmp_path):
    for count, names in (
        (3, "setting_0, setting_1, setting_2$"),
        (20, "setting_0, setting_1, setting_10 and 17 more$"),
    ):
        write_json(tmp_path / "a.json", {f"setting_{k}": 0 for k in range(count)})
        with pytest.raises(UserError, match=f"is not a SegmentConfig: it has no setting {names}"):
            read_config(SegmentConfig, tmp_path / "a.json")


def test_a_study_with_one_size_has_none_to_go_on_from(tiny_acdc):
    with pytest.raises(UserError, match="--selection next goes on from the size before, and the study has one size"):
        plan(SweepConfig(selection=("foreground", "next"), sizes=(3,)), 24)


def test_settings_that_do_not_go_together():
    with pytest.raises(UserError, match="--selection next goes on from a run"):
        SegmentConfig(selection="next")
    with pytest.raises(UserError, match="--selection next goes on from a run"):
        SegmentConfig(selection_run=Path("run"))
    with pytest.raises(UserError, match="--selection first goes by the view of a pretrained encoder"):
        SegmentConfig(selection="first")
    with pytest.raises(UserError, match="--selection foreground chooses slices"):
        SegmentConfig(selection="foreground", label_unit="patient")
    with pytest.raises(UserError, match="--selection-round 3 2"):
        SegmentConfig(selection_round=(3, 2))


@pytest.mark.slow
def test_a_study_of_rules(tiny_acdc, tmp_path):
    rules = ("random", "foreground", "next")
    cfg = make_study(tiny_acdc, tmp_path / "out", pipelines=("random",), seeds=(0,), selection=rules)
    run_here(cfg)
    results = pd.read_csv(cfg.out / "results.csv")
    assert list(results["pipeline"].unique()) == ["random", "random+foreground", "random+next"]
    assert results.groupby("labels")["labelled_slices"].nunique().eq(1).all()
    labelled = {
        name: set(map(tuple, pd.read_csv(cfg.out / f"cells/random{name}-seed0/labelled_slices.csv")[KEYS].to_numpy()))
        for name in ("+foreground-n2", "+next-n2", "+next-n12")
    }
    assert labelled["+foreground-n2"] == labelled["+next-n2"] < labelled["+next-n12"]
    assert [file.parent.name for file in cfg.out.glob("cells/*/model.safetensors")] == ["random+next-n2-seed0"]
    study = read_study(cfg.out, draws=50)
    assert (study.facts.pipelines, study.facts.selections) == (tuple(results["pipeline"].unique()), 3)
    assert what_was_run(study)["Pipelines"] == "random, random+foreground, random+next"
