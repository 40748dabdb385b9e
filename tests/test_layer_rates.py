"""Frozen encoders, and learning rates that decay towards the first layers."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from test_segment import tiny
from torch import nn

from core.errors import UserError
from encoders.build import build_clip_encoder, build_unet
from encoders.decoders import build_segmenter
from encoders.freeze import freeze
from encoders.layers import layer_factors
from engine.optimisers import adamw, set_learning_rate
from segment.config import SegmentConfig
from segment.training import run

pytestmark = pytest.mark.usefixtures("one_thread")


def factors(encoder: nn.Module, name: str) -> dict[str, float]:
    by_parameter = layer_factors(encoder, name, 0.5)
    return {key: by_parameter[parameter] for key, parameter in encoder.named_parameters()}


def test_the_layers_of_a_resnet_with_four_blocks():
    of_unet = factors(build_unet("test_resnet", 2).encoder, "test_resnet")
    assert of_unet["model.conv1.0.weight"] == 0.5**5
    assert of_unet["model.layer1.0.conv1.weight"] == 0.5**4
    assert of_unet["model.layer4.0.bn2.bias"] == 0.5
    of_clips = factors(build_clip_encoder("test_resnet"), "test_resnet")
    assert of_clips["frame_encoder.layer4.0.bn2.bias"] == 0.5


def test_the_layers_of_a_transformer_and_of_a_video_network():
    dpt = factors(build_segmenter("test_vit", 2, decoder="dpt").encoder, "test_vit")
    blocks = 1 + max(int(key.split(".")[2]) for key in dpt if key.startswith("model.blocks"))
    assert dpt["model.patch_embed.proj.weight"] == dpt["model.pos_embed"] == 0.5 ** (blocks + 1)
    assert dpt[f"model.blocks.{blocks - 1}.attn.qkv.weight"] == 0.5
    video = factors(build_clip_encoder("r3d_18"), "r3d_18")
    assert video["stem.0.weight"] == 0.5**5
    assert video["layer4.1.conv2.1.bias"] == 0.5


def test_every_layer_gets_its_rate():
    unet = build_unet("test_resnet", 2)
    settings = {"lr": 1.0, "weight_decay": 0.1, "scaled": False}
    layers = layer_factors(unet.encoder, "test_resnet", 0.5)
    optimiser = adamw(unet, **settings, encoder=unet.encoder, encoder_lr_factor=0.1, layers=layers)
    set_learning_rate(optimiser, 2.0)
    rates = {parameter: group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    assert len(rates) == len(list(unet.parameters()))
    assert rates[unet.segmentation_head[0].weight] == 2.0
    assert rates[unet.encoder.model.conv1[0].weight] == pytest.approx(2 * 0.1 * 0.5**5)
    decays = {group["weight_decay"] for group in optimiser.param_groups for p in group["params"] if p.ndim == 1}
    assert decays == {0.0}


@pytest.mark.parametrize("decay", [0, 1.5, -0.5, float("nan")])
def test_impossible_decays(decay):
    with pytest.raises(UserError, match=r"--layer-decay .*: must lie in \(0, 1\]"):
        SegmentConfig(layer_decay=decay)


def test_a_frozen_part_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    outer = nn.ModuleDict({"encoder": network, "head": nn.BatchNorm2d(2)})
    freeze(network)
    freeze(network)
    names, before = list(outer.state_dict()), copy.deepcopy(network.state_dict())
    copied = copy.deepcopy(outer)
    for each in (outer, copied):
        each.train()
        each["head"](each["encoder"](torch.randn(4, 1, 8, 8)))
        assert all(torch.equal(each["encoder"].state_dict()[key], value) for key, value in before.items())
        assert each["head"].num_batches_tracked == 1
        assert list(each.state_dict()) == names


@pytest.mark.slow
def test_a_run_with_a_frozen_encoder(tiny_acdc, tmp_path, caplog):
    torch.manual_seed(0)
    before = build_unet("test_resnet", 4).state_dict()
    cfg = tiny(tiny_acdc, tmp_path / "run", encoder_lr_factor=0.0, layer_decay=0.9, weight_decay=0.1, steps=2)
    assert run(cfg)["encoder_lr_factor"] == 0
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("encoder."))
    assert not torch.equal(after["decoder.blocks.0.conv1.0.weight"], before["decoder.blocks.0.conv1.0.weight"])
    assert "frozen: it is not trained" in caplog.text
