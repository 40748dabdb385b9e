"""Weights of the Hugging Face hub: fetched once, adapted to grey images, recorded under their own name."""

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from conftest import assert_close
from safetensors.torch import save_file

from core.errors import UserError
from encoders.build import build_encoder
from encoders.card import read_lineage
from encoders.hub import missing_download
from encoders.identify import Identity, identify_repository
from encoders.weights import load_weights
from engine.command_line import parse
from engine.model_file import name_of_init
from segment.config import PRESETS, SegmentConfig

SOURCE = "hf-hub:timm/resnet10t.c3_in1k"


@pytest.fixture
def no_connection(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **settings: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def test_weights_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    file = tmp_path / "snapshots" / "0f1e" / "model.safetensors"
    file.parent.mkdir(parents=True)
    theirs = timm.create_model("resnet10t", num_classes=10).eval()
    save_file(theirs.state_dict(), file)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *args, **settings: asked.append((args, settings)) or str(file)
    )
    encoder = build_encoder("resnet10t").eval()
    report = load_weights(encoder, SOURCE + "@v1", name="resnet10t", in_channels=1)
    assert asked == [(("timm/resnet10t.c3_in1k", "model.safetensors"), {"revision": "v1"})]
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(encoder.forward_features(images), theirs.forward_features(images.repeat(1, 3, 1, 1)))
    (stage,) = report.lineage
    assert (stage["source"], stage["data"]["name"], stage["revision"]) == (SOURCE + "@v1", "timm c3_in1k", "0f1e")
    with pytest.raises(UserError, match="does not hold a resnet18"):
        load_weights(build_encoder("resnet18"), SOURCE, name="resnet18", in_channels=1)


def test_without_a_connection_the_file_and_its_place_are_named(no_connection):
    with pytest.raises(UserError, match="could not be fetched") as raised:
        load_weights(build_encoder("resnet10t"), SOURCE, name="resnet10t", in_channels=1)
    message = str(raised.value)
    assert "download https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors" in message
    assert f"pass its path in place of {SOURCE}, with --encoder" in message
    assert "resolve/main/model.safetensors" in missing_download(SOURCE, "resnet10t", "--pretrain.generalist FILE")


def test_other_weights_are_never_called_imagenet():
    with pytest.raises(UserError, match=r"were not trained on ImageNet \(their tag is lvd142m\): pass hf-hub:timm/vit"):
        load_weights(torch.nn.Identity(), "imagenet", name="vit_small_patch14_dinov2", in_channels=1)


def test_a_repository_is_no_file():
    assert read_lineage(SOURCE) == []
    assert name_of_init(SOURCE) == SOURCE
    assert SegmentConfig(init=SOURCE).run_folder == Path("runs/segment-resnet10t.c3_in1k-1-seed0")


def test_the_name_of_a_repository_of_timm_determines_the_encoder():
    assert identify_repository(SOURCE + "@v1") == Identity("resnet10t", None)
    assert identify_repository("hf-hub:someone/weights") is None
    cfg = parse(lambda flags: PRESETS, "", ["--init", SOURCE])
    assert (cfg.encoder, cfg.init) == ("resnet10t", SOURCE)
