import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import run_killed_after_step
from safetensors.torch import load_file

import pretrain.stages
import pretrain.train
from core.errors import UserError
from data.augmentation import Augmentation
from data.slices import Slices, load_dataset
from data.sources import AcdcSource
from encoders.build import build_encoder
from encoders.card import EncoderCard, read_card
from encoders.weights import load_weights
from engine.command_line import parse
from engine.config import read_config
from engine.sampler import StepSampler
from pretrain.__main__ import main
from pretrain.config import PRESETS, PretrainConfig, presets_for
from pretrain.exam_presets import EXAM_PRESETS
from pretrain.methods.build import build_method, widths
from pretrain.methods.byol import Byol
from pretrain.probe import Probe
from pretrain.stages import run

POOL = 30  # slices of the training patients 3-6, with and without labels
pytestmark = pytest.mark.usefixtures("one_thread", "no_stale_handlers")


def tiny(root: Path | None, out: Path, **settings) -> PretrainConfig:
    few = {
        "encoder": "test_resnet",
        "image_size": 32,
        "generalist_images": 9,
        "generalist_epochs": 1,
        "batch_size": 8,
        "projector_hidden": 64,
        "predictor_hidden": 64,
        "projection": 32,
        "steps": 3,
        "device": "cpu",
        "checkpoint_every": 2,
        "log_every": 1,
    }
    return PretrainConfig(data=AcdcSource(data_root=root), out=out, **(few | settings))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> bytes:
    return (folder / "encoder.safetensors").read_bytes()


def card_of(folder: Path) -> EncoderCard:
    card = read_card(folder / "encoder.safetensors")
    assert card is not None
    return card


@pytest.fixture(scope="module")
def hierarchical(tiny_acdc, tmp_path_factory) -> tuple[PretrainConfig, dict]:
    """9 natural images, one step; 30 slices."""
    cfg = tiny(
        tiny_acdc,
        tmp_path_factory.mktemp("run") / "a",
        keep_epochs=(0, 1, 2, 9),
        steps=8,
        probe_every=4,
        export="online",
    )
    return cfg, run(cfg)


@pytest.mark.slow
def test_hierarchical_writes_both_stages(hierarchical):
    cfg, result = hierarchical
    out = cfg.run_folder
    assert json.loads((out / "result.json").read_text()) == result
    assert {"encoder.safetensors", "encoder.json", "config.json", "metrics.csv", "train.log", "checkpoint.pt"} <= {
        file.name for file in out.iterdir()
    }
    assert "python -m segment --labelled-fraction 0.02 --init" in (out / "report.html").read_text()
    assert (result["stage"], result["images"], result["steps"]) == ("hierarchical", POOL, 8)
    assert read_config(PretrainConfig, out / "config.json") == cfg
    natural = json.loads((out / "generalist" / "result.json").read_text())
    assert (natural["stage"], natural["images"], natural["steps"]) == ("generalist", 9, 1)
    assert not list(out.rglob("*.part*"))


@pytest.mark.slow
def test_a_finished_run_that_was_moved_or_lost_its_encoder(hierarchical, tmp_path):
    cfg, result = hierarchical
    moved = tmp_path / "moved"
    shutil.copytree(cfg.run_folder, moved)
    resumed = replace(cfg, out=moved, resume=True)
    assert run(resumed) == {**result, "encoder": str(moved / "encoder.safetensors")}
    (moved / "encoder.safetensors").unlink()
    assert run(resumed)["probe_jaccard"] == result["probe_jaccard"]
    assert weights(moved) == weights(cfg.run_folder)
    assert {"crop_towards", "positives"} & {*card_of(moved).lineage[0]} == set()  # natural images have neither
    (moved / "encoder.safetensors").unlink()
    (moved / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"has lost encoder\.safetensors and its checkpoint; start again"):
        run(resumed)


@pytest.mark.slow
def test_the_lineage_names_every_stage_from_the_first(hierarchical):
    cfg, _ = hierarchical
    card = card_of(cfg.run_folder)
    assert [(stage["stage"], stage["data"]["name"], stage["steps"]) for stage in card.lineage] == [
        ("generalist", "procedural", 1),
        ("hierarchical", "acdc", 8),
    ]
    assert card.network == "online"
    assert card.lineage[1]["data"]["images"] == POOL
    assert {"augmentation", "versions", "seed", "batch_size"} <= card.lineage[1].keys()


@pytest.mark.slow
def test_metrics_of_every_step(hierarchical, caplog):
    cfg, result = hierarchical
    table = rows(cfg.run_folder)
    assert [int(row["step"]) for row in table] == list(range(1, 9))
    assert all(0 < float(row["loss"]) < 8 for row in table)
    assert all(float(row["projection_std"]) > 0.1 and float(row["effective_rank"]) > 1 for row in table)
    assert [bool(row["probe_jaccard"]) for row in table] == [False, False, False, True] * 2
    assert result["probe_jaccard"] == float(table[-1]["probe_jaccard"])
    assert float(table[3]["epoch"]) == 1  # 30 slices in batches of 8, 8, 8, 6


@pytest.mark.slow
def test_epochs_are_kept(hierarchical):
    """Epoch 0 is the generalist itself, whichever network is exported; the last is the result."""
    cfg, _ = hierarchical
    out = cfg.run_folder
    assert sorted(folder.name for folder in out.glob("epoch-*")) == ["epoch-0", "epoch-1", "epoch-2"]
    assert "--keep-epochs 9 lie beyond" in (out / "train.log").read_text()
    started, natural = (
        load_file(out / "epoch-0" / "encoder.safetensors"),
        load_file(out / "generalist" / "encoder.safetensors"),
    )
    assert all(torch.equal(started[key], natural[key]) for key in natural)
    assert weights(out / "epoch-2") == weights(out)
    assert weights(out / "epoch-1") not in (weights(out), weights(out / "epoch-0"))
    kept = [card_of(out / f"epoch-{k}").lineage[-1]["steps"] for k in (0, 1, 2)]
    assert kept == [0, 4, 8]


@pytest.mark.slow
def test_an_exported_encoder_loads_again(hierarchical):
    cfg, _ = hierarchical
    encoder = build_encoder("test_resnet")
    report = load_weights(encoder, cfg.run_folder, name="test_resnet", in_channels=1)
    assert not report.missing
    assert not report.unexpected
    assert encoder(torch.randn(2, 1, 32, 32)).shape == (2, encoder.num_features)


@pytest.mark.slow
def test_target_and_online_differ_and_one_seed_gives_one_encoder(tiny_acdc, tmp_path, hierarchical):
    cfg, _ = hierarchical
    source = str(cfg.run_folder / "generalist")  # a run's folder does for its file
    target = tiny(tiny_acdc, tmp_path / "target", generalist=source)
    again = tiny(tiny_acdc, tmp_path / "again", generalist=source)
    online = tiny(tiny_acdc, tmp_path / "online", generalist=source, export="online")
    other = tiny(tiny_acdc, tmp_path / "other", generalist=source, seed=1)
    for each in (target, again, online, other):
        run(each)
    assert weights(target.out) == weights(again.out)
    assert len({weights(each.out) for each in (target, online, other)}) == 3
    assert not (target.out / "generalist").exists()


def test_the_pool_is_of_training_patients(tiny_acdc, tmp_path):
    """Every slice of patients 3-6, labelled or not, and none of 1 (test) and 2 (validation), unless asked for."""
    dataset = load_dataset("acdc", tiny_acdc)
    for pool, numbers, count in (("train", (3, 4, 5, 6), POOL), ("all", (1, 2, 3, 4, 5, 6), POOL + 12)):
        cfg = tiny(tiny_acdc, tmp_path, unlabelled_splits=pool)
        images = pretrain.stages._target(cfg, torch.device("cpu"))[0].samples.images
        table = dataset.table.iloc[images.positions]
        assert set(table["subject"]) == {f"patient{number:03d}" for number in numbers}
        assert len(table) == count
        assert (~table["labelled"]).sum() == 6


@pytest.mark.slow
def test_specialist_sees_target_images_only(tiny_acdc, tmp_path, caplog):
    cfg = tiny(tiny_acdc, tmp_path / "run", stage="specialist", steps=None, epochs=0.5, micro_batch_size=3)
    result = run(cfg)
    assert result["steps"] == 2  # half of four batches
    card = card_of(cfg.run_folder)
    assert [stage["stage"] for stage in card.lineage] == ["specialist"]
    assert card.network == "target"
    assert "batch norm sees 3 samples at a time" in caplog.text


@pytest.mark.slow
def test_crops_towards_motion_and_positives_of_other_phases(tiny_acdc, tmp_path):
    settings = {"stage": "specialist", "steps": 1}
    plain = run(tiny(tiny_acdc, tmp_path / "plain", **settings))
    moving = run(tiny(tiny_acdc, tmp_path / "moving", crop_towards="motion", positives="phase", **settings))
    assert moving["images"] == plain["images"] == POOL
    assert rows(tmp_path / "moving")[0]["loss"] != rows(tmp_path / "plain")[0]["loss"]


@pytest.mark.slow
def test_specialist_under_group_norm_accumulates_exactly(tiny_acdc, tmp_path, in_float64):
    """The whole stage, LARS and both networks: 30 slices in batches of 21 and 9, whole or in micro-batches of 5."""
    states = []
    for micro in (None, 5):
        settings = {
            "stage": "specialist",
            "encoder": "resnet10t",  # of the tests' smaller network, step 3 differs by 1e-4: a kink, it seems
            "norm": "group",
            "batch_size": 21,
            "micro_batch_size": micro,
            "steps": 3,
        }
        cfg = tiny(tiny_acdc, tmp_path / str(micro), **settings)
        run(cfg)
        states.append(load_file(cfg.run_folder / "encoder.safetensors"))
    for key, value in states[0].items():
        # the loss alone is computed in float32, whose rounding the gradients carry on
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_generalist_adopts_a_file(tmp_path, hierarchical):
    source = hierarchical[0].run_folder / "generalist" / "encoder.safetensors"
    cfg = tiny(None, tmp_path / "run", stage="generalist", generalist=str(source))
    assert run(cfg)["steps"] == 0
    adopted, source_weights = load_file(cfg.run_folder / "encoder.safetensors"), load_file(source)
    assert all(torch.equal(adopted[key], source_weights[key]) for key in source_weights)
    card = card_of(cfg.run_folder)
    assert [stage["stage"] for stage in card.lineage] == ["generalist"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images"), [("paper", 20_000), ("default", 1_498), ("exam paper", 1_017), ("exam default", 1_017)]
)
@pytest.mark.parametrize("stage", ["generalist", "specialist", "hierarchical"])
def test_presets_leave_at_most_one_percent_of_their_start(name, images, stage):
    """On the papers' pools: all training slices of ACDC, or the training exams of MRNet; `default` on labelled ones."""
    presets = EXAM_PRESETS if name.startswith("exam") else PRESETS
    cfg = replace(presets[name.split()[-1]](), stage=stage, projector_hidden=8, predictor_hidden=8, projection=8)
    epochs, images = (cfg.generalist_epochs, 20_000) if stage == "generalist" else (cfg.target_epochs, images)
    steps = round(epochs * StepSampler(count=images, batch_size=cfg.batch_size, micro_batch_size=1).steps_per_epoch)
    method = build_method(cfg, build_encoder("test_resnet"), steps=steps, count=images)
    assert method.start_share(method.exports[0], steps) <= 0.0101
    assert method.start_share("online", steps) == 0


@pytest.mark.slow
def test_a_given_start_has_its_own_rate(tiny_acdc, tmp_path, hierarchical):
    """A tenth of the rate from random weights, for the second stage, a file and downloaded weights alike."""
    cfg, result = hierarchical
    natural = json.loads((cfg.run_folder / "generalist" / "result.json").read_text())
    assert (natural["learning_rate"], result["learning_rate"]) == pytest.approx((0.5 * 8 / 256, 0.05 * 8 / 256))
    assert max(float(row["learning_rate"]) for row in rows(cfg.run_folder)) == pytest.approx(0.05 * 8 / 256)
    exams, paper = EXAM_PRESETS["default"](), PRESETS["paper"]()
    assert (exams.peak_lr(False), exams.peak_lr(True)) == pytest.approx((0.2 * 64 / 256, 0.02 * 64 / 256))
    assert paper.peak_lr(True) == paper.peak_lr(False) == 0.25
    assert replace(PRESETS["default"](), optimiser="adam").peak_lr(False) == 1e-3


@pytest.mark.slow
def test_the_share_of_the_start_is_said(tiny_acdc, tmp_path, caplog):
    """In the metrics, the result and the card; a warning from 5 % on; the online network holds none."""
    short = run(tiny(tiny_acdc, tmp_path / "short", stage="specialist", tau=0.9, steps=2, keep_epochs=(0,)))
    share = 0.9 * 0.95
    assert short["start_share"] == pytest.approx(share)
    assert short["tau"] == 0.9
    assert [float(row["start_share"]) for row in rows(tmp_path / "short")] == pytest.approx([0.9, share])
    for folder, expected in (("", share), ("epoch-0", 1.0)):
        stage = card_of(tmp_path / "short" / folder).lineage[-1]
        assert (stage["start_share"], stage["method"]) == (pytest.approx(expected), "byol")
    assert "will hold 86% of the weights that this stage starts from" in caplog.text
    caplog.clear()
    online = run(tiny(tiny_acdc, tmp_path / "online", stage="specialist", export="online", steps=1))
    assert online["start_share"] == 0
    assert "starts from" not in caplog.text


@pytest.mark.slow
def test_a_stage_that_is_cut_short_keeps_its_schedule(tiny_acdc, tmp_path, hierarchical):
    """Stopping after one of two epochs gives, bit for bit, the encoder that the whole stage has after one epoch."""
    cfg, _ = hierarchical
    source = str(cfg.run_folder / "generalist" / "encoder.safetensors")
    cut = replace(cfg, out=tmp_path / "cut", generalist=source, keep_epochs=(), probe_every=0, stop_after_epochs=1.0)
    result = run(cut)
    assert (result["steps"], len(rows(cut.run_folder))) == (4, 4)
    whole = load_file(cfg.run_folder / "epoch-1" / "encoder.safetensors")
    assert all(torch.equal(whole[k], v) for k, v in load_file(cut.run_folder / "encoder.safetensors").items())
    text = (cut.run_folder / "train.log").read_text()
    assert "stopping after 4 of the schedule's 8 steps" in text


@pytest.mark.slow
def test_a_specialist_shorter_than_the_papers_says_so(tiny_acdc, tmp_path, caplog):
    caplog.set_level("INFO", "fewslice")
    run(tiny(tiny_acdc, tmp_path / "run", stage="specialist", steps=None, epochs=0.25, batch_size=29, optimiser="adam"))
    assert "specialist for 0.25 epochs (400 in Kalapos and Gyires-Toth 2022)" in caplog.text
    assert "the last 1 samples of each epoch, less than a quarter of a batch, join the batch before" in caplog.text


def test_a_loss_that_is_no_number_is_named_by_its_step(tiny_acdc, tmp_path, monkeypatch):
    """The error comes before the collapse scores are computed, which fail on NaN."""
    monkeypatch.setattr(Byol, "forward", lambda self, views: self.projector[0].weight.sum() / 0 * 0)
    with pytest.raises(UserError, match="became nan at optimiser step 1"):
        run(tiny(tiny_acdc, tmp_path / "run", stage="specialist"))


def test_collapse_is_warned_of(tiny_acdc, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pretrain.train, "FLOOR", 2.0)
    run(tiny(tiny_acdc, tmp_path / "run", stage="specialist", steps=1))
    assert "step 1: the projections' standard deviation is" in caplog.text
    assert "collapsing" in caplog.text


def test_the_probe_tells_a_good_encoder_from_a_blind_one(tiny_acdc):
    probe = Probe(load_dataset("acdc", tiny_acdc), size=64)
    torch.manual_seed(0)
    encoder = build_encoder("test_resnet")
    score = probe(encoder, torch.device("cpu"))
    assert encoder.training
    with torch.no_grad():
        next(encoder.parameters()).zero_()  # every image looks the same
    assert score > probe(encoder, torch.device("cpu")) + 0.1


def test_the_probe_averages_what_it_shrinks(tiny_acdc):
    dataset = load_dataset("acdc", tiny_acdc)
    images, _ = Probe(dataset, size=32).splits["train"]
    first = Slices(store=dataset.store, positions=dataset.positions("train", labelled=True)[:1]).image(0)
    assert first.shape == (56, 64)
    np.testing.assert_allclose(images[0, 0], cv2.resize(first, (32, 32), interpolation=cv2.INTER_AREA), atol=1e-6)


def test_mistakes_name_the_way_out(tiny_acdc, tmp_path):
    out = tmp_path / "run"
    for settings, message in (
        ({"encoder": "resnet18x"}, r"'resnet18x' is not a model of timm; the nearest names are .*resnet18"),
        ({"generalist": str(tmp_path / "gone.pt")}, r"--generalist .*gone\.pt: no such file or folder"),
        ({"data_root": tmp_path / "nowhere"}, r"nowhere is not a folder"),
    ):
        root = settings.pop("data_root", tiny_acdc)
        with pytest.raises(UserError, match=message):
            run(tiny(root, out, **settings))
    assert not out.exists()  # refused before anything is written
    for settings, message in (
        ({"batch_size": 0}, "--batch-size 0: must be above 0"),
        ({"micro_batch_size": 0}, "--micro-batch-size 0: must be above 0"),
        ({"steps": 0}, "--steps 0: must be above 0"),
        ({"lr": float("nan")}, "--lr nan: must be above 0"),
        ({"tau": 1.0}, r"--tau 1\.0: must lie in \[0, 1\)"),
        ({"keep_epochs": (-1, 2)}, "--keep-epochs -1 2: each must be 0 or more"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"image_size": 16}, "--image-size 16: must be at least 32"),
    ):
        with pytest.raises(UserError, match=message):
            tiny(tiny_acdc, out, **settings)


def test_the_command_line_leaves_values_alone():
    cfg = parse(presets_for, "", ["--data_root=my_data/a_b", "--out=my_run/c_d", "--batch_size", "6"])
    assert (cfg.data.data_root, cfg.out, cfg.batch_size) == (Path("my_data/a_b"), Path("my_run/c_d"), 6)
    assert cfg.image_size == 128  # `default`, as there is data


def test_the_paper_recipe_is_the_papers():
    """Kalapos and Gyires-Toth 2022 and their code."""
    cfg = PRESETS["paper"]()
    heads = (widths(cfg, 2048)[0], cfg.predictor_hidden, widths(cfg, 2048)[1])
    assert (cfg.encoder, cfg.image_size, heads) == ("resnet50", 224, (4096, 8192, 256))
    assert (cfg.lr, cfg.batch_size, cfg.weight_decay, cfg.trust_coefficient, cfg.warmup_epochs) == (
        0.5,
        128,
        1e-5,
        0.02,
        10,
    )
    assert cfg.chosen_optimiser == "lars"
    assert (cfg.tau, cfg.tau_schedule, Byol.exports[0], cfg.norm, cfg.unlabelled_splits) == (
        0.99,
        "cosine",
        "target",
        "batch",
        "train",
    )
    assert cfg.target_epochs == 25
    assert PretrainConfig(stage="specialist").target_epochs == 400
    views = cfg.augmentation
    assert (views.crop, views.area, views.flip, views.jitter) == ("resized", (0.08, 1.0), 0.5, 0.8)
    assert (views.brightness, views.contrast, views.blur, views.solarise, views.affine) == (0.2, 0.2, 0, 0, 0)
    assert (views.gamma, views.bias_field, views.noise, views.antialias) == (0, 0, 0, False)
    assert (cfg.crop_towards, cfg.positives) == ("none", "same")


@pytest.mark.slow
def test_killed_and_resumed(tiny_acdc, tmp_path, monkeypatch, capsys):
    """SIGKILL in the second stage; --resume ends with the same bytes as an uninterrupted run."""
    whole = tiny(tiny_acdc, tmp_path / "whole", steps=14, checkpoint_every=3, micro_batch_size=5)
    run(whole)

    config = str(whole.run_folder / "config.json")
    arguments = ["--config", config, "--out", str(tmp_path / "killed")]
    run_killed_after_step("pretrain", *arguments, step=5)  # the first stage has one step
    assert len(rows(tmp_path / "killed")) < 14
    assert not (tmp_path / "killed" / "result.json").exists()

    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments, "--resume"])
    main()
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    columns = ("step", "learning_rate", "projection_std")
    a, b = ([[row[key] for key in columns] for row in rows(tmp_path / name)] for name in ("killed", "whole"))
    assert a == b
    output = capsys.readouterr().out
    assert f"encoder: {tmp_path / 'killed' / 'encoder.safetensors'}" in output
    assert "python -m segment" in output


@pytest.mark.slow
def test_views_made_on_the_device_train_alike(tiny_acdc, tmp_path):
    """On the CPU as device: the same random augmentation, so the same losses but for rounding."""
    for name in ("yes", "no"):
        run(tiny(tiny_acdc, tmp_path / name, stage="specialist", cache_on_device=name))
    losses = [[float(row["loss"]) for row in rows(tmp_path / name)] for name in ("yes", "no")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)


def test_views_that_must_stay_on_the_cpu(tiny_acdc, tmp_path):
    noisy = Augmentation(noise=0.5)
    with pytest.raises(UserError, match="--cache-on-device yes does not go with noise"):
        run(tiny(tiny_acdc, tmp_path / "a", stage="specialist", cache_on_device="yes", augmentation=noisy))
