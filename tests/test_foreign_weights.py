"""Weight files of any origin: found behind any prefix, checked before use, and never run."""

import io
import json
import logging
import pickle
import zipfile

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from conftest import assert_close
from safetensors.torch import save_file
from torch import nn

from core.errors import UserError
from encoders.build import build_encoder
from encoders.identify import Identity, identify
from encoders.weights import load_into_unet, load_weights
from segment.model import build_unet

NAME = "test_resnet"


def some_slow(names, fast: int) -> list:
    """The names as parameters of a test, all but the first ones marked as slow."""
    return [name if k < fast else pytest.param(name, marks=pytest.mark.slow) for k, name in enumerate(names)]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build_encoder(NAME).state_dict()


def load(path, name: str = NAME) -> nn.Module:
    encoder = build_encoder(name)
    load_weights(encoder, path, name=name, in_channels=1)
    return encoder.eval()


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


CHAINS = {
    "Lightning around DataParallel": lambda s: {"state_dict": prefixed(s, "model.module.encoder.")},
    "student's backbone": lambda s: {"state_dict": prefixed(s, "student.backbone.")},
    "compiled inside": lambda s: prefixed({k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()}, "net."),
    "sharded": lambda s: {"model": prefixed(s, "_fsdp_wrapped_module.encoder._fsdp_wrapped_module.")},
    "nested deeply": lambda s: {"checkpoint": {"run": {"state_dict": {"net": prefixed(s, "a.b.c.d.")}}}},
    "EMA": lambda s: {"model": {k: v * 0 for k, v in s.items()}, "model_ema": s},
    "Lightning's EMA": lambda s: {
        "state_dict": prefixed({k: v * 0 for k, v in s.items()}, "net.") | prefixed(s, "ema.module.")
    },
    "MoCo": lambda s: prefixed({k: v * 0 for k, v in s.items()}, "encoder_k.") | prefixed(s, "encoder_q."),
    "beside an optimiser": lambda s: {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "weights": s},
}


@pytest.mark.parametrize("chain", some_slow(CHAINS, 4))
def test_an_encoder_is_found_behind_any_prefix(tmp_path, state, chain):
    torch.save(CHAINS[chain](state), tmp_path / "a.pth")
    for key, value in load(tmp_path / "a.pth").state_dict().items():
        assert torch.equal(value, state[key]), key


def test_of_two_equal_networks_one_is_loaded_and_said(tmp_path, state, caplog):
    torch.save(prefixed(state, "left.") | prefixed({k: v * 0 for k, v in state.items()}, "right."), tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, "fewslice"):
        encoder = load(tmp_path / "a.pth")
    assert torch.equal(encoder.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert "several networks of this kind: left. is loaded, not right." in caplog.text


@pytest.mark.parametrize("prefix", some_slow(["model.", "module.", "net."], 1))
def test_wrappers_around_a_unet_of_segmentation_models(tmp_path, prefix):
    unet = smp.Unet("resnet18", encoder_weights=None)
    torch.save({"state_dict": prefixed(unet.state_dict(), prefix)}, tmp_path / "a.ckpt")
    ours = build_unet("resnet18", 2)
    load_into_unet(ours, tmp_path / "a.ckpt", "resnet18")
    assert torch.equal(ours.encoder.model.layer4[1].conv2.weight, unet.encoder.layer4[1].conv2.weight)


UNETS = ("convnext_atto", "vgg11_bn", "regnety_002", "mobilenetv3_small_100", "efficientnet_b0", "pvt_v2_b0")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrapper"), [(NAME, "model.module."), *((name, "") for name in (NAME, *UNETS))])
def test_a_trained_unet_starts_another_and_a_pretraining(tmp_path, name, wrapper):
    torch.manual_seed(0)
    unet = build_unet(name, 2)
    (tmp_path / "model.json").write_text(json.dumps({"encoder": name, "norm": "batch", "dataset": "x"}))
    tensors = prefixed(unet.state_dict(), wrapper)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "model.safetensors")
    assert identify(tmp_path / "model.safetensors") == Identity(name, "batch")
    other = build_unet(name, 3)
    load_into_unet(other, tmp_path / "model.safetensors", name)
    for key, value in unet.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[key]), key
    encoder = load(tmp_path / "model.safetensors", name)
    images = torch.randn(1, 1, 64, 64)
    if name == NAME:
        with torch.no_grad():
            assert_close(encoder.forward_features(images), unet.eval().encoder(images)[-1])


@pytest.mark.slow
def test_layers_after_the_last_feature_map_are_named(tmp_path, caplog):
    unet = build_unet("mobilenetv3_small_050", 2)
    save_file(unet.state_dict(), tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING, "fewslice"):
        load(tmp_path / "a.safetensors", "mobilenetv3_small_050")
    assert "has no layers after the last feature map (conv_head.bias, conv_head.weight)" in caplog.text


PAIRS = {
    "vgg11_bn": "vgg11_bn",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
    "regnety_004": "regnet_y_400mf",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_files_of_torchvision(tmp_path, name):
    torch.manual_seed(0)
    network = torchvision.models.get_model(PAIRS[name], weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.01, 1)
    torch.save(network.eval().state_dict(), tmp_path / "a.pth")
    encoder = load(tmp_path / "a.pth", name)
    features: list[torch.Tensor] = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        network(grey.repeat(1, 3, 1, 1))
        # MobileNetV3's batch norms add 0.001 to the variance in torchvision, 0.00001 in timm
        assert_close(encoder(grey), features[0], tolerance=1e-4)
    unet = build_unet(name, 2)
    load_into_unet(unet, tmp_path / "a.pth", name)
    if name != "vgg11_bn":  # its last feature map comes before the pooling
        with torch.no_grad():
            assert unet.encoder.eval()(grey)[-1].isfinite().all()


FIRST, INNER = "conv1.0.weight", "layer1.0.conv1.weight"
BAD = {
    "0D": (FIRST, lambda v: torch.tensor(1.0), r"holds 1 of other shapes \(conv1.0.weight: \(\) in the file"),
    "1D": (FIRST, lambda v: v.flatten(), "holds 1 of other shapes"),
    "3D": (FIRST, lambda v: v[:, :, None].repeat(1, 1, 3, 1, 1), "holds 1 of other shapes"),
    "no channel": (FIRST, lambda v: v[:, :0], "holds 1 of other shapes"),
    "other order": (FIRST, lambda v: v.repeat(1, 4, 1, 1).movedim(1, -1), "holds 1 of other shapes"),
    "10^9 channels": (FIRST, lambda v: v.expand(-1, 10**9, -1, -1), "holds 1 of other shapes"),
    "meta": (FIRST, lambda v: v.to("meta"), f"{FIRST} is a meta tensor, which cannot be loaded; save"),
    "sparse": (INNER, lambda v: v.to_sparse(), f"{INNER} is a sparse tensor"),
    "complex": (INNER, lambda v: v.to(torch.complex64), f"{INNER} is a torch.complex64 tensor"),
    "integers": (INNER, lambda v: v.to(torch.int8), f"{INNER} is a torch.int8 tensor"),
    "8-bit floats": (INNER, lambda v: v.to(torch.float8_e4m3fn), f"{INNER} is a torch.float8_e4m3fn tensor"),
    "quantised": (INNER, lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "is a torch.qint8 tensor"),
    "too large": (INNER, lambda v: v.double() + 1e300, rf"not finite \({INNER}\)"),
    "NaN": (INNER, lambda v: v * torch.nan, rf"not finite \({INNER}\)"),
    "negative variance": ("bn1.running_var", lambda v: -v, r"negative variances \(bn1.running_var\)"),
    "complex counter": ("bn1.num_batches_tracked", lambda v: v + 1j, "is a torch.complex64 tensor"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about sparse and quantised tensors
@pytest.mark.parametrize("case", some_slow(BAD, 8))
def test_tensors_that_are_no_weights_are_refused(tmp_path, state, case):
    key, change, message = BAD[case]
    torch.save(state | {key: change(state[key])}, tmp_path / "a.pth")
    identify(tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_become_float32(tmp_path, state, kind):
    torch.save({k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth").state_dict()
    assert loaded[INNER].dtype == torch.float32
    assert_close(loaded[INNER], state[INNER], tolerance=1e-2)


def safetensors_of(header: object, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(16)


def zip_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


HUGE = {"conv1.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 16]}}
FILES = {
    "empty": (b"", "is neither a safetensors file nor a torch file of tensors"),
    "HTML": (b"<!doctype html><html>", "is neither"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is neither"),
    "huge header": (safetensors_of(b"{" + b" " * 50, 10**12), "its header has more than"),
    "huge tensor": (safetensors_of(HUGE), "is neither .*invalid shape"),
    "deep header": (safetensors_of(b'{"a":' * 5000 + b"1" + b"}" * 5000), "is neither .*recursion limit"),
    "zip bomb": (zip_of(**{"a/data.pkl": bytes(10**7)}), "would unpack to 10000000 bytes"),
    "zip slip": (zip_of(**{"../../evil": bytes(range(200))}), "is neither"),
    "pickle of a function": (pickle.dumps(print), "holds Python objects beside its tensors"),
    "pickle of a huge tensor": (b"\x80\x02ctorch\nFloatTensor\n(J\xff\xff\xff\x7ftR.", "is neither"),
    "cut pickle": (pickle.dumps({"a": [1.5] * 100}, protocol=2)[:60], "is neither"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights_are_refused(tmp_path, case):
    content, message = FILES[case]
    (tmp_path / "a.pth").write_bytes(content)
    assert identify(tmp_path / "a.pth") is None
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.pth")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.pth"]


@pytest.mark.slow
def test_mappings_in_each_other_are_read_once(tmp_path):
    inner: dict = {}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    inner["self"] = inner
    torch.save(inner, tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not hold a test_resnet: it lacks"):
        load(tmp_path / "a.pth")


def test_a_folder_names_the_file_to_pass(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"no encoder file .*encoder.safetensors; pass .*model.safetensors"):
        load(tmp_path)


@pytest.mark.slow
def test_the_advice_is_true(tmp_path):
    torch.save({"net." + k: v for k, v in build_encoder("resnet18").state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="it holds a resnet18: pass --encoder resnet18"):
        load(tmp_path / "a.pth", "resnet34")
    load(tmp_path / "a.pth", "resnet18")
    torch.save(build_encoder(NAME, norm="group").state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="trained without batch normalisation: pass --norm group"):
        load(tmp_path / "a.pth")
    load_weights(build_encoder(NAME, norm="group"), tmp_path / "a.pth", name=NAME, in_channels=1)


CARD = {
    "encoder": NAME,
    "norm": "batch",
    "dataset": "x",
    "init": "random",
    "classes": ["background", "organ"],
    "normalisation": "image",
    "statistics": [0.0, 1.0],
    "spacing_mm": 1.5,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("spacing_mm", value) for value in (0, -1, 1e-9, 1e30, float("nan"), float("inf"), "wide")),
        *(("classes", value) for value in ([], ["background"], ["c"] * 300, 10**9)),
        *(("statistics", value) for value in ([0, -1], [float("nan"), 1], [1])),
        ("norm", "layer"),
        ("encoder", "no such network"),
        ("encoder", ["resnet18"]),
    ],
)
def test_cards_with_absurd_values_are_refused(tmp_path, field, value):
    from segment.model import load_unet

    (tmp_path / "model.safetensors").write_bytes(safetensors_of({}))
    (tmp_path / "model.json").write_text(json.dumps(CARD | {field: value}))
    with pytest.raises(UserError, match="cannot read the model in"):
        load_unet(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[" * 5000, b"\xff\xfe{}", b"[]", b"{}"])
def test_files_that_are_no_cards_are_refused(tmp_path, content):
    from classify.model import load_run

    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the model in"):
        load_run(tmp_path)


def test_planes_stay_in_their_folder(tmp_path):
    from classify.model import load_run

    card = {"planes": ["../../elsewhere"], "weights": [1.0], "intercept": 0.0, "threshold": 0.5}
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"cannot read the model in .*planes\.0"):
        load_run(tmp_path)


@pytest.mark.slow
def test_models_are_checked_like_encoders(tmp_path):
    from segment.model import load_unet

    (tmp_path / "model.json").write_text(json.dumps(CARD))
    tensors = {key: value.contiguous() for key, value in build_unet(NAME, 2).state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    load_unet(tmp_path)
    weight = tensors.pop("segmentation_head.0.weight")
    for changed, message in (
        ({}, r"does not hold the network .*segmentation_head.0.weight"),
        ({"segmentation_head.0.weight": weight[:1]}, "does not hold the network"),
        ({"segmentation_head.0.weight": weight * torch.nan}, "not finite"),
        ({"segmentation_head.0.weight": weight.to(torch.complex64)}, "complex64"),
    ):
        save_file(tensors | changed, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=rf"cannot read the model in .*{message}.*; train it again"):
            load_unet(tmp_path)
