"""Pretraining on images with classes: presets, channels, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import timm
import torch
from conftest import run_module
from test_class_images import write_classes

from core.errors import UserError
from data.sources import ImagesSource
from encoders.weights import load_weights
from engine.command_line import parse
from pretrain.config import PretrainConfig, presets_for
from pretrain.image_presets import demo, thesis
from pretrain.stages import run


def test_preset_of_the_thesis():
    """Ray 2022, section 3.3: SimCLR, 200 epochs, Adam, 0.001."""
    cfg = parse(
        presets_for, "", ["--dataset", "images", "--data-root", "X", "--imbalance", "0.01", "--recipe", "thesis"]
    )
    assert (cfg.method, cfg.epochs, cfg.optimiser, cfg.lr) == ("simclr", 200, "adam", 1e-3)
    assert (cfg.encoder, cfg.stem, cfg.image_size, cfg.stage) == ("resnet18", "small", 32, "specialist")
    assert (cfg.data.imbalance, str(cfg.data.data_root)) == (0.01, "X")
    assert cfg.peak_lr(given_start=False) == 1e-3
    # Chen et al. 2020, appendix A, strength 0.5: contrast, saturation 0.4, hue 0.1, in 80 %; grey in 20 %; area, flip
    views = cfg.augmentation
    assert (views.colour, views.contrast, views.saturation, views.hue, views.grey) == (0.8, 0.4, 0.4, 0.1, 0.2)
    assert (views.area, views.flip, views.blur) == ((0.08, 1.0), 0.5, 0.0)
    assert replace(thesis(), data=cfg.data) == cfg


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("images") / "rgb", [6, 5], size=16)


def tiny(root, out, **settings):
    data = ImagesSource(data_root=root)
    defaults = {"steps": 2, "batch_size": 4, "projector_hidden": 16, "projection": 8, "device": "cpu", "out": out}
    return replace(demo(), data=data, **(defaults | settings))


@pytest.fixture(scope="module")
def pretrained(rgb, tmp_path_factory):
    """The run folder of an encoder of RGB images with the small stem."""
    out = tmp_path_factory.mktemp("images") / "run"
    run(tiny(rgb, out, stem="small"))
    return out


@pytest.mark.slow
def test_encoder_of_rgb_images(pretrained):
    card = json.loads((pretrained / "encoder.json").read_text())
    assert (card["in_channels"], card["stem"], card["lineage"][0]["method"]) == (3, "small", "simclr")
    assert card["lineage"][0]["data"] | {"hash": ""} == {
        "name": "rgb",
        "hash": "",
        "images": 11,
        "classes": ["a", "b"],
        "by_class": [6, 5],
    }


@pytest.mark.slow
def test_encoder_loads_in_plain_timm(rgb, tmp_path):
    run(tiny(rgb, tmp_path / "run"))
    file = tmp_path / "run/encoder.safetensors"
    network = timm.create_model("resnet10t", in_chans=3, num_classes=0, checkpoint_path=str(file))
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    ours = timm.create_model("resnet10t", in_chans=3, num_classes=0)
    assert not load_weights(ours, file, name="resnet10t", in_channels=3).unexpected


@pytest.mark.slow
def test_training_images_among_the_test_images_are_a_warning(tmp_path):
    root = write_classes(tmp_path / "rgb", [4, 4], size=16)
    shutil.copyfile(root / "train/a/001.png", root / "test/b/000.png")
    run(tiny(root, tmp_path / "run"))
    warning = "scores may be too high: 1 of 4 test images are training images under another name: train/a/001.png and "
    assert json.loads((tmp_path / "run/result.json").read_text())["warnings"] == [warning + "test/b/000.png"]
    assert warning in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("pretrain", "--method masked", "--method masked takes single images, not clips of exams"),
        ("pretrain", "--method simclr --export target", "--export target: simclr has no target network"),
        ("pretrain", "--encoder nosuch", "encoder 'nosuch' is not a model of timm"),
        ("classify", "--encoder nosuch", "encoder 'nosuch' is not a model of timm"),
    ],
)
def test_mistakes_are_found_before_synthetic_exams_are_made(module, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.phantoms.knee.demo_knee_root", None)  # it takes tens of seconds
    with pytest.raises(SystemExit):
        run_module(module, ["--dataset", "mrnet", *flags.split(), "--out", str(tmp_path / "out")], monkeypatch)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_channels_and_stems_must_agree(rgb, pretrained, tmp_path):
    start = {"stage": "hierarchical", "generalist": str(pretrained / "encoder.safetensors")}
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"takes RGB images \(three channels\) and the images here are grey"):
        run(tiny(None, out, stem="small", **start))
    with pytest.raises(UserError, match="has the small stem and the network here the standard one: pass --stem small"):
        run(tiny(rgb, out, **start))
    with pytest.raises(UserError, match=r"are RGB and those of --generalist procedural grey: pass --stage specialist"):
        run(tiny(rgb, out, stage="hierarchical"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlabelled_splits": "all"}, "--unlabelled-splits all: of images with classes only training images"),
        ({"probe_every": 5}, "--probe-every is for slices"),
        ({"cache_on_device": "yes"}, "--cache-on-device yes is for slices"),
    ],
)
def test_settings_of_slices_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(data=ImagesSource(), **settings)


def test_views_of_slices_have_no_stem_for_clips():
    from data.sources import MrnetSource

    with pytest.raises(UserError, match="--stem small is for single images"):
        PretrainConfig(data=MrnetSource(), stem="small", stage="specialist")
