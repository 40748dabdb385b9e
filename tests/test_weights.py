import argparse
import json
import logging
import os
import sys
import types

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from conftest import assert_close
from safetensors.torch import save_file
from torch import nn

from core.errors import UserError
from encoders.build import build_encoder
from encoders.card import EncoderCard, read_card, say_normalisation, versions
from encoders.identify import Identity, identify
from encoders.names import VIDEO_ENCODERS
from encoders.norm import replace_norm
from encoders.weights import load_into_unet, load_weights, save_encoder

LINEAGE = [
    {
        "stage": "specialist",
        "source": "random",
        "data": {"name": "acdc", "hash": "0f"},
        "steps": 10,
        "versions": versions(),
    }
]


def lively(name: str = "resnet18", in_channels: int = 1, seed: int = 0) -> nn.Module:
    """An encoder in eval mode in which every tensor matters: another one gives very different features."""
    torch.manual_seed(seed)
    encoder = build_encoder(name, in_channels)
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder.eval()


def save(encoder: nn.Module, where, name: str = "resnet18", **changes):
    settings = {
        "name": name,
        "in_channels": 1,
        "network": "target",
        "normalisation": {"kind": "z-score per image"},
        "norm": "batch",
        "lineage": LINEAGE,
    }
    return save_encoder(encoder, where, **(settings | changes))


def load(path, name: str = "resnet18", in_channels: int = 1):
    encoder = build_encoder(name, in_channels)
    report = load_weights(encoder, path, name=name, in_channels=in_channels)
    return encoder.eval(), report


def unet(name: str, in_channels: int = 1) -> nn.Module:
    return smp.Unet(f"tu-{name}", encoder_weights=None, in_channels=in_channels, classes=4).eval()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(one(images), other(images))


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


def test_a_saved_encoder_and_its_card_are_loaded_unchanged(tmp_path, caplog):
    encoder = lively()
    path = save(encoder, tmp_path / "run")
    assert sorted(file.name for file in path.parent.iterdir()) == ["encoder.json", "encoder.safetensors"]
    with caplog.at_level(logging.INFO, "fewslice"):
        loaded, report = load(path.parent)
    assert_same(encoder, loaded)
    assert (report.matched, report.missing, report.unexpected) == (120, [], [])
    assert "120 matched, 0 missing, 0 unexpected" in caplog.text
    assert report.lineage == LINEAGE
    assert report.card.network == "target"
    assert report.card == read_card(path)
    assert save(encoder, tmp_path / "other.safetensors") == tmp_path / "other.safetensors"


def test_plain_timm_loads_our_file(tmp_path):
    encoder = lively()
    path = save(encoder, tmp_path)
    assert_same(encoder, timm.create_model("resnet18", in_chans=1, num_classes=0, checkpoint_path=path).eval())
    frozen = save(replace_norm(lively(), "frozen"), tmp_path, norm="frozen")
    assert_same(encoder, timm.create_model("resnet18", in_chans=1, num_classes=0, checkpoint_path=frozen).eval())


def test_plain_segmentation_models_loads_our_file(tmp_path):
    encoder = lively()
    path = save(encoder, tmp_path)
    model = smp.create_model("unet", encoder_name="tu-resnet18", encoder_weights=None, in_channels=1, classes=4)
    timm.models.load_checkpoint(model.encoder.model, path, strict=True)
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(model.eval().encoder(images)[-1], encoder.forward_features(images))


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("resnet18", []),
        ("resnet50", []),
        ("efficientnet_b0", ["bn2.weight", "conv_head.weight"]),
        ("mobilenetv3_small_100", ["conv_head.weight"]),
        ("regnety_002", []),
        ("convnext_atto", ["head.norm.weight"]),
        ("hrnet_w18_small", ["final_layer.0.weight"]),
    ],
)
@pytest.mark.slow
def test_unet_gets_the_encoder(tmp_path, name, unused):
    encoder = lively(name)
    path = save(encoder, tmp_path, name)
    model = unet(name)
    report = load_into_unet(model, path, name)
    assert report.missing == []
    assert report.matched == len(model.encoder.state_dict())
    assert set(unused) <= set(report.unexpected)
    assert bool(unused) == bool(report.unexpected)
    # As timm does it: the whole network is loaded first and then reduced to its feature maps.
    overlay = {"file": str(path), "hf_hub_id": None, "url": "", "num_classes": 0}
    settings = {
        "in_chans": 1,
        "features_only": True,
        "out_indices": model.encoder.model.feature_info.out_indices,
    }
    timms = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings).eval()
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for ours, reference in zip(model.encoder.model(images), timms(images), strict=True):
            assert_close(ours, reference)
    # And back: the encoder of a U-Net exports under timm's names.
    back = save(model.encoder, tmp_path / "back", name, network="segmentation")
    other = unet(name)
    load_into_unet(other, back, name)
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[key])


def wrap_sequential(state: dict) -> dict:
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {".".join([names[key.split(".")[0]], *key.split(".")[1:]]): value for key, value in state.items()}


# From (the state that must be taken, a state that must not be) to the content of a file.
LAYOUTS = {
    "torchvision": lambda s, o: s | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)},
    "BYOL-PyTorch": lambda s, o: {"epoch": 1, "target_backbone": prefixed(s, "module.")},
    "solo-learn": lambda s, o: {
        "state_dict": prefixed(o, "backbone.") | prefixed(s, "momentum_backbone.") | {"projector.0.bias": torch.ones(2)}
    },
    "old solo-learn": lambda s, o: {"state_dict": prefixed(s, "encoder.")},
    "lightly": lambda s, o: {"state_dict": prefixed(wrap_sequential(s), "backbone.")},
    "lightly DINO": lambda s, o: {"state_dict": prefixed(o, "student_backbone.") | prefixed(s, "teacher_backbone.")},
    "lightly backbone": lambda s, o: wrap_sequential(s),
    "lightly-train": lambda s, o: {"model": s},
    "MoCo": lambda s, o: {"state_dict": prefixed(s, "module.encoder_q.") | prefixed(o, "module.encoder_k.")},
    "MoCo v3": lambda s, o: {
        "state_dict": prefixed(s, "module.base_encoder.") | prefixed(o, "module.momentum_encoder.")
    },
    "DINO": lambda s, o: {"student": prefixed(o, "module.backbone."), "teacher": prefixed(s, "backbone.")},
    "VISSL": lambda s, o: {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": prefixed(s, "_feature_blocks."), "heads": {"0.bias": torch.ones(3)}}}
        }
    },
    "timm with EMA": lambda s, o: {"arch": "resnet18", "state_dict": o, "state_dict_ema": s},
    "segmentation_models": lambda s, o: prefixed(s, "encoder.model.") | {"decoder.x": torch.ones(1)},
    "compiled": lambda s, o: {"state_dict": prefixed(s, "_orig_mod.")},
    "without batch counters": lambda s, o: {k: v for k, v in s.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.slow
def test_foreign_layouts(tmp_path, layout):
    encoder = lively()
    content = LAYOUTS[layout](encoder.state_dict(), lively(seed=1).state_dict())
    torch.save(content, tmp_path / "foreign.pth")
    loaded, report = load(tmp_path / "foreign.pth")
    assert_same(encoder, loaded)
    assert all(key.endswith("num_batches_tracked") for key in report.missing)
    assert report.matched + len(report.missing) == 120
    (stage,) = report.lineage
    assert stage["stage"] == "foreign"
    assert stage["source"] == "foreign.pth"
    assert len(stage["sha256"]) == 64
    load_into_unet(unet("resnet18"), tmp_path / "foreign.pth", "resnet18")


def test_torchvision_network_in_half_precision_loads_into_one_channel(tmp_path):
    torch.manual_seed(0)
    original = torchvision.models.resnet18().half()
    torch.save(original.state_dict(), tmp_path / "r18.pth")
    encoder, report = load(tmp_path / "r18.pth")
    assert report.unexpected == ["fc.bias", "fc.weight"]
    assert encoder.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(encoder.conv1.weight, original.conv1.weight.float().sum(1, keepdim=True))
    original.fc = nn.Identity()
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = original.float().eval()(grey.repeat(1, 3, 1, 1))
        assert_close(encoder(grey), expected)
        model = unet("resnet18")
        load_into_unet(model, tmp_path / "r18.pth", "resnet18")
        assert_close(model.encoder(grey)[-1].mean((2, 3)), expected)


def test_a_file_of_one_channel_loads_into_three(tmp_path):
    encoder = lively()
    colour, _ = load(save(encoder, tmp_path), in_channels=3)
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert_close(colour(grey.repeat(1, 3, 1, 1)), encoder(grey))


@pytest.mark.slow
def test_another_architecture_is_refused_and_nothing_changes(tmp_path):
    path = save(lively("resnet34"), tmp_path, "resnet34")
    with pytest.raises(UserError, match="holds a resnet34, not a resnet18"):
        load(path)
    torch.save({"arch": "resnet50", "state_dict": build_encoder("resnet50").state_dict()}, tmp_path / "r50.pth")
    shapes = r"says it is a resnet50.*layer1.0.conv1.weight: \(64, 64, 1, 1\) in the file, \(64, 64, 3, 3\) in"
    with pytest.raises(UserError, match=shapes):
        load(tmp_path / "r50.pth")
    state = lively().state_dict()
    del state["layer4.1.conv2.weight"], state["layer1.0.bn1.bias"]
    torch.save(state, tmp_path / "part.pth")
    encoder = lively(seed=1)
    with pytest.raises(UserError, match=r"lacks 2 of its 120 tensors \(layer1.0.bn1.bias, layer4.1.conv2.weight\)"):
        load_weights(encoder, tmp_path / "part.pth", name="resnet18", in_channels=1)
    assert_same(encoder, lively(seed=1))


@pytest.mark.slow
def test_norms_travel(tmp_path):
    group = replace_norm(lively(), "group")
    path = save(group, tmp_path, norm="group")
    with pytest.raises(UserError, match="group normalisation"):
        load(path)
    encoder = build_encoder("resnet18", norm="group")
    load_weights(encoder, path, name="resnet18", in_channels=1)
    assert_same(group, encoder.eval())
    # Scale and shift of a batch-normalised file fit group normalisation too; its statistics have no place.
    report = load_weights(encoder, save(lively(), tmp_path), name="resnet18", in_channels=1)
    assert {key.split(".")[-1] for key in report.unexpected} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": lively().state_dict(), "extra": Code()}
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil.pth holds Python objects beside its tensors"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_settings_beside_the_weights_are_not_in_the_way(tmp_path, monkeypatch):
    # Lightning's hyperparameters: a class that need not be installed where the file is read.
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.utilities", types.ModuleType("pytorch_lightning.utilities"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    encoder = lively()
    settings = {"hyper_parameters": module.AttributeDict(lr=0.1), "args": argparse.Namespace(seed=1)}
    torch.save(settings | {"state_dict": prefixed(encoder.state_dict(), "backbone.")}, tmp_path / "solo.ckpt")
    monkeypatch.undo()
    assert_same(encoder, load(tmp_path / "solo.ckpt")[0])


@pytest.mark.parametrize(
    "content", [b"", b"just some text, longer than nine bytes", b"PK\x03\x04 broken", b"12345678{"]
)
def test_files_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x.pth is neither a safetensors file nor a torch file"):
        load(tmp_path / "x.pth")


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no encoder file"):
        load(tmp_path / "nowhere.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list, not a state dict"):
        load(tmp_path / "list.pth")
    state = lively().state_dict()
    save_file(state | {"conv1.weight": state["conv1.weight"] * torch.nan}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"not finite \(conv1.weight\)"):
        load(tmp_path / "nan.safetensors")


@pytest.mark.slow
def test_the_card_is_checked(tmp_path):
    path = save(lively(), tmp_path)
    card = json.loads((tmp_path / "encoder.json").read_text())
    save_file(lively(seed=1).state_dict(), path)
    with pytest.raises(UserError, match=r"describes other weights than encoder.safetensors"):
        load(path)
    (tmp_path / "encoder.json").write_text(json.dumps(card | {"network": "both"}))
    with pytest.raises(UserError, match=r"encoder.json is not the card of an encoder \(network: Input should be"):
        load(path)
    (tmp_path / "encoder.json").unlink()
    assert load(path)[1].lineage[0]["stage"] == "foreign"


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    path = save(lively(), tmp_path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("core.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(lively(seed=1), tmp_path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_imagenet_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"ImageNet weights of resnet18 could not be fetched.*pass a file instead"):
        load("imagenet")


@pytest.mark.parametrize(("over", "said"), [("image", False), ("exam", True), (None, False)])
def test_another_normalisation_is_said_in_one_line(tmp_path, caplog, over, said):
    """A card that does not name its own, as those of other versions, is not compared."""
    save(build_encoder("resnet10t"), tmp_path, name="resnet10t", normalisation={"over": over} if over else {})
    caplog.set_level(logging.INFO, "fewslice")
    say_normalisation(read_card(tmp_path / "encoder.safetensors"), "image")
    expected = ["the encoder was trained on pixels z-scored over each exam; this run does so over the image"]
    assert [record.getMessage() for record in caplog.records] == expected * said
    assert not {"spacing_mm", "image_size"} & set(EncoderCard.model_fields)  # which nothing read


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["group", "group+ws"])
def test_files_without_batch_norm_load_in_plain_timm(tmp_path, trained):
    torch.manual_seed(0)
    ours = build_encoder("resnet18", norm=trained)
    path = save(ours, tmp_path, norm=trained)
    assert identify(path) == Identity("resnet18", trained, "standard")
    settings = {"in_chans": 1, "num_classes": 0, "norm_layer": timm.layers.GroupNorm}
    theirs = timm.create_model("resnet18", **settings, checkpoint_path=str(path))
    if trained == "group+ws":
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__, module.eps = timm.layers.StdConv2d, 1e-6
    assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "norm", "message"),
    [
        ("batch", "group", "trained with batch norm and gives other features with --norm group"),
        ("batch", "group+ws", "trained with batch norm and gives other features with --norm group+ws"),
        ("frozen", "group", "trained with batch norm and gives other features with --norm group"),
        ("group", "group+ws", "trained with group norm and gives other features with --norm group+ws"),
        ("batch", "frozen", ""),
        ("frozen", "batch", ""),
        ("group", "group", ""),
    ],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_weights_of_another_norm_are_warned_of(tmp_path, caplog, trained, norm, message, foreign):
    path = save(build_encoder("resnet10t", norm=trained), tmp_path, name="resnet10t", norm=trained)
    if foreign:
        path.with_suffix(".json").unlink()
        message = message if trained != "group" else ""  # which then is not known
    load_weights(build_encoder("resnet10t", norm=norm), path, name="resnet10t", in_channels=1)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(message)
    assert not message or message in warnings[0]


@pytest.mark.parametrize("of_model", [False, True])
@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_standardised_weights_need_the_same_norm(tmp_path, norm, of_model):
    path = save(build_encoder("resnet10t", norm="group+ws"), tmp_path, name="resnet10t", norm="group+ws")
    if of_model:  # the card of a trained U-Net says it as well
        path.with_suffix(".json").unlink()
        path = path.rename(tmp_path / "model.safetensors")
        path.with_suffix(".json").write_text('{"dataset": "a", "norm": "group+ws"}')
    with pytest.raises(UserError, match=r"weight standardisation: pass --norm group\+ws"):
        load_weights(build_encoder("resnet10t", norm=norm), path, name="resnet10t", in_channels=1)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet10t", "timm resnet10t.c3_in1k"),
        ("tf_efficientnet_b0.ns_jft_in1k", "timm tf_efficientnet_b0.ns_jft_in1k"),  # not of ImageNet alone
    ],
)
def test_weights_of_the_hub_are_recorded_by_their_tag(monkeypatch, name, source):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **settings: create(*args, **settings | {"pretrained": False})
    )
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: "a file")
    report = load_weights(build_encoder(name), "imagenet", name=name, in_channels=1)
    tag = source.partition(".")[2]
    assert [{key: stage[key] for key in ("source", "data", "weights")} for stage in report.lineage] == [
        {"source": source, "data": {"name": f"timm {tag}", "hash": None}, "weights": source.replace("timm ", "timm/")}
    ]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_architecture_is_told_from_every_layout(tmp_path, layout):
    torch.save(LAYOUTS[layout](lively().state_dict(), lively(seed=1).state_dict()), tmp_path / "foreign.pth")
    assert identify(tmp_path / "foreign.pth") == Identity("resnet18", None)


@pytest.mark.slow
def test_the_published_byol_file_is_a_resnet50(tmp_path):
    state = prefixed(build_encoder("resnet50", in_channels=3).state_dict(), "module.")
    torch.save({"epoch": 1, "target_backbone": state}, tmp_path / "resnet50_byol_imagenet2012.pth.tar")
    assert identify(tmp_path / "resnet50_byol_imagenet2012.pth.tar") == Identity("resnet50", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEO_ENCODERS)
def test_video_files_of_torchvision_are_identified(tmp_path, name):
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "video.pth")
    assert identify(tmp_path / "video.pth") == Identity(name, None)


def test_our_card_tells_architecture_and_norm(tmp_path):
    save(replace_norm(lively(), "group"), tmp_path, norm="group")
    assert identify(tmp_path) == Identity("resnet18", "group", "standard")
    assert identify(tmp_path / "nowhere.pth") is None
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    assert identify(tmp_path / "other.pth") is None
