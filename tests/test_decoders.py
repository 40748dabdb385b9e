"""DPT on vision transformers: refusals, weights of other patches, training, resuming and prediction."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_segment import same_weights, tiny
from torch import nn

import engine.run_folder
from core.errors import UserError
from encoders.decoders import build_segmenter, require_segmenter, vit_settings
from encoders.patches import resample_patches
from encoders.weights import load_into_unet
from segment.inference import segment_stack
from segment.model import ModelCard, load_unet
from segment.predict import Predict
from segment.predict import run as predict
from segment.training import run

pytestmark = pytest.mark.usefixtures("one_thread")
VIT = {"encoder": "test_vit", "decoder": "dpt"}


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        ("test_vit", "unet", r"'test_vit' is a vision transformer, .* pass --decoder dpt"),
        ("test_resnet", "dpt", r"'test_resnet' is none: pass --decoder unet"),
        ("test_vat", "dpt", r"'test_vat' is not a model of timm; the nearest names are test_vit"),
        ("swin_tiny_patch4_window7_224", "dpt", "is none: pass --decoder unet"),
    ],
)
def test_a_decoder_that_does_not_suit_the_encoder(encoder, decoder, message):
    for check in (
        lambda: build_segmenter(encoder, 2, "batch", decoder),
        lambda: require_segmenter(encoder, "batch", decoder),
    ):
        with pytest.raises(UserError, match=message):
            check()


@pytest.mark.slow
def test_sizes_that_prediction_pads_to():
    require_segmenter("test_vit", "batch", "dpt", (32, 32), (96, 64))
    with pytest.raises(UserError, match="cannot be used for images of 48 x 64 pixels"):  # why STRIDE is not 16
        require_segmenter("test_vit", "batch", "dpt", (48, 64))


@pytest.mark.slow
def test_convnext_has_a_pyramid():
    require_segmenter("convnext_atto", "batch", "unet", (32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "vit_small_patch16_lingbot"])
def test_the_transformers_of_today_take_slices_of_any_size(name):
    require_segmenter(name, "batch", "dpt", (32, 64))


def test_patches_become_patches_that_dpt_takes():
    assert vit_settings("vit_small_patch14_dinov2") == {
        "dynamic_img_size": True,
        "patch_size": 16,
        "img_size": (592, 592),  # 37 patches, as in the published weights
    }
    assert vit_settings("vit_small_patch16_dinov3") == {"dynamic_img_size": True}
    assert vit_settings("resnet18") is None


def test_resampled_patches_see_the_resized_image():
    """FlexiViT: the new weights give a patch that was resized to their size what the old ones gave the patch."""
    old = torch.randn(3, 1, 14, 14, dtype=torch.float64).float()
    new = resample_patches({"patch_embed.proj.weight": old}, {"patch_embed.proj.weight": torch.empty(3, 1, 16, 16)})
    patch = torch.randn(1, 1, 14, 14)
    resized = nn.functional.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    ours = nn.functional.conv2d(resized, new["patch_embed.proj.weight"])
    torch.testing.assert_close(ours, nn.functional.conv2d(patch, old), rtol=1e-3, atol=1e-3)


def test_positions_keep_their_tokens():
    old, wanted = torch.randn(1, 1 + 9, 4), torch.empty(1, 1 + 16, 4)
    new = resample_patches({"pos_embed": old}, {"pos_embed": wanted})["pos_embed"]
    assert new.shape == wanted.shape
    assert torch.equal(new[:, 0], old[:, 0])


@pytest.mark.slow
def test_weights_of_patches_of_14_pixels_load_in_grey(tmp_path):
    file = tmp_path / "model.safetensors"
    theirs = timm.create_model("eva02_tiny_patch14_224", num_classes=10)
    save_file(theirs.state_dict(), file)
    network = build_segmenter("eva02_tiny_patch14_224", 2, decoder="dpt")
    report = load_into_unet(network, file, "eva02_tiny_patch14_224")
    ours = network.encoder.model
    assert ours.patch_embed.proj.weight.shape == (192, 1, 16, 16)
    assert torch.equal(ours.blocks[3].attn.proj.weight, theirs.blocks[3].attn.proj.weight)
    assert torch.equal(ours.pos_embed, theirs.pos_embed)
    assert report.unexpected == ["head.bias", "head.weight"]
    assert network.eval()(torch.zeros(1, 1, 64, 32)).shape == (1, 2, 64, 32)


def test_no_parameter_is_trained_without_a_gradient():
    network = build_segmenter("test_vit", 2, decoder="dpt")
    network(torch.randn(2, 1, 64, 64)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not network.encoder.model.norm.weight.requires_grad


@pytest.fixture(scope="module")
def trained(tiny_acdc, tmp_path_factory):
    out = tmp_path_factory.mktemp("dpt") / "run"
    return tiny(tiny_acdc, out, **VIT, steps=2, checkpoint_every=1), run(tiny(tiny_acdc, out, **VIT, steps=2))


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    cfg = replace(trained[0], out=tmp_path / "run")
    record = engine.run_folder.RunFolder.record

    def interrupted(self, row):
        record(self, row)
        if row["step"] == 2:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(engine.run_folder.RunFolder, "record", interrupted)
        with pytest.raises(ZeroDivisionError):
            run(cfg)
    assert (cfg.out / "checkpoint.pt").exists()
    run(replace(cfg, resume=True))
    assert same_weights(cfg.out, trained[0].out)


@pytest.mark.slow
def test_slices_of_any_size_are_predicted(trained, tiny_acdc, tmp_path):
    network, card = load_unet(trained[0].out)
    assert card.decoder == "dpt"
    stack = np.random.default_rng(0).normal(size=(2, 37, 70))
    assert segment_stack(network, stack, (1.5, 1.5), card).shape == stack.shape
    table = predict(
        Predict(
            run=trained[0].out,
            input=tiny_acdc / "training/patient001/patient001_frame01.nii.gz",
            output=tmp_path / "masks",
            device="cpu",
        )
    )
    assert nib.load(table["file"][0]).shape == (64, 56, 3)


def test_a_card_without_a_decoder_is_that_of_a_unet(trained):
    content = json.loads((trained[0].out / "model.json").read_text())
    assert content.pop("decoder") == "dpt"
    assert ModelCard.model_validate(content).decoder == "unet"
