"""Checkpoints and models that have changed since they were written are refused; those without digest are read."""

import json

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import nn

from core.errors import UserError
from engine.checkpoint import DIGEST_SIZE, MARK, read_checkpoint, write_checkpoint
from engine.model_file import ModelCard, load_model, read_json_card, save_model, write_card


def flip(path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_a_flipped_bit_in_a_checkpoint(tmp_path, share):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 3, "model": torch.zeros(2000)})
    flip(path, share)
    with pytest.raises(UserError, match=r"cannot read .*checkpoint\.pt.*--overwrite"):
        read_checkpoint(path)


def test_a_checkpoint_without_digest_is_read(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 3})
    path.write_bytes(path.read_bytes()[: -len(MARK) - DIGEST_SIZE])
    assert read_checkpoint(path) == {"step": 3}


@pytest.mark.parametrize("content", [b"", b"text", b"<html></html>", b"PK\x03\x04 cut", b"\0" * 500])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the checkpoint") as refused:
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert "\n" not in str(refused.value)


def network(card: BaseModel | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))


def card() -> ModelCard:
    return ModelCard(encoder="test_resnet", norm="batch", dataset="a", init="random")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_a_flipped_bit_in_the_weights_of_a_model(tmp_path, share):
    save_model(network(), tmp_path, card())
    flip(tmp_path / "model.safetensors", share)
    with pytest.raises(UserError, match=r"model"):
        load_model(tmp_path, ModelCard, network)


def test_a_changed_card_is_refused_unless_its_digest_is_removed(tmp_path):
    save_model(network(), tmp_path, card())
    path = tmp_path / "model.json"
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(UserError, match=r"model\.json has changed"):
        load_model(tmp_path, ModelCard, network)
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert load_model(tmp_path, ModelCard, network)[1].dataset == "b"


def test_models_without_digest_are_read(tmp_path):
    save_model(network(), tmp_path, card())
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    content = json.loads((tmp_path / "model.json").read_text())
    del content["sha256"]
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert load_model(tmp_path, ModelCard, network)[1] == card()


@pytest.mark.parametrize("content", [b"", b"[1]", b"<html>", b"\xff\xfe", b"{}"])
def test_a_file_that_is_no_card(tmp_path, content):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the model"):
        read_json_card(tmp_path / "model.json", ModelCard)


def test_a_card_with_odd_numbers_keeps_its_digest(tmp_path):
    class Numbers(BaseModel):
        values: list[float]

    numbers = Numbers(values=[0.1, 1e-300, float("inf"), -0.0])
    write_card(tmp_path / "model.json", numbers)
    assert read_json_card(tmp_path / "model.json", Numbers) == numbers
