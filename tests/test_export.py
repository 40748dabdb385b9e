"""Each export is loaded by the library that it is for, and gives what the run's network gives."""

import json

import huggingface_hub
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from conftest import assert_close
from safetensors.torch import load_file
from test_weights import lively, save
from torch import nn

import encoders.export.graph
from classify.model import ModelCard as ExamCard
from classify.model import build_classifier
from core.errors import UserError
from data.preprocessing import mean_and_std, preprocess
from encoders.build import build_encoder
from encoders.export.__main__ import Export, run
from encoders.export.graph import RawImages
from engine.model_file import save_model
from segment.inference import segment_stack
from segment.model import ModelCard, build_segmenter

LINEAGE = [
    {"stage": "generalist", "source": "timm resnet18.a1_in1k", "data": {"name": "timm a1_in1k", "hash": None}},
    {"stage": "specialist", "method": "byol", "data": {"name": "acdc", "slices": 70}, "steps": 9, "image_size": 64}
    | {"subjects": {"salt": "s", "subjects": {"pool": "0123456789abcdef"}}},
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    encoder = lively("resnet18")
    save(encoder, folder, lineage=LINEAGE)
    return folder, encoder


def segmentation_run(folder, encoder="test_resnet", decoder="unet", **settings):
    torch.manual_seed(0)
    network = build_segmenter(encoder, 3, decoder=decoder)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"normalisation": "image", "statistics": (0.0, 1.0), "spacing_mm": None, "dataset": "hearts 0f", **settings}
    card = ModelCard(
        encoder=encoder, decoder=decoder, norm="batch", classes=["background", "LV", "RV"], init="random", **facts
    )
    save_model(network, folder, card)
    (folder / "config.json").write_text(json.dumps({"image_size": 64}))
    result = {"dice": {"mean": 0.8125}, "patients": 7, "steps": 40, "labelled_slices": 12}
    (folder / "result.json").write_text(json.dumps(result))
    return network.eval(), card


@pytest.mark.slow
def test_timm(pretrained, tmp_path):
    folder, encoder = pretrained
    out = run(Export(run=folder, format="timm", out=tmp_path / "timm"))
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    plain = timm.create_model("resnet18", in_chans=1, num_classes=0)
    plain.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    images = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        assert_close(theirs(images), encoder(images))
        assert_close(plain.eval()(images), encoder(images))


@pytest.mark.slow
def test_timm_of_a_transformer_with_other_patches(tmp_path):
    network, _ = segmentation_run(tmp_path / "run", "eva02_tiny_patch14_224", "dpt")
    out = run(Export(run=tmp_path / "run", format="timm"))
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        assert_close(theirs.forward_features(images), network.encoder.model.forward_features(images))


@pytest.mark.slow
def test_torchvision_takes_grey_images_three_times(pretrained, tmp_path):
    folder, encoder = pretrained
    out = run(Export(run=folder, format="torchvision", out=tmp_path / "out"))
    theirs = torchvision.models.resnet18(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(theirs.eval()(images.repeat(1, 3, 1, 1)), encoder(images))


@pytest.mark.slow
def test_smp_of_an_encoder(pretrained, tmp_path):
    folder, encoder = pretrained
    out = run(Export(run=folder, format="smp", out=tmp_path / "out"))
    unet = smp.Unet("tu-resnet18", encoder_weights=None, in_channels=1).eval()
    unet.encoder.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(unet.encoder(images)[-1], encoder.forward_features(images))


@pytest.mark.parametrize(
    ("encoder", "decoder"), [("test_resnet", "unet"), pytest.param("test_vit", "dpt", marks=pytest.mark.slow)]
)
def test_smp_of_a_segmentation_run(tmp_path, encoder, decoder):
    network, _ = segmentation_run(tmp_path / "run", encoder, decoder)
    out = run(Export(run=tmp_path / "run", format="smp"))
    assert out == tmp_path / "run" / "export-smp"
    images = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        assert_close(smp.from_pretrained(out).eval()(images), network(images))
    assert "fewslice" in (out / "README.md").read_text()  # not SMP's own


@pytest.mark.slow
def test_torchscript_of_dpt(tmp_path):
    network, _ = segmentation_run(tmp_path / "run", "test_vit", "dpt")
    out = run(Export(run=tmp_path / "run", format="torchscript"))
    text = (out / "README.md").read_text()
    shape = (64, 64) if "64 x 64 pixels only" in text else (32, 96)
    images = torch.randn(1, 1, *shape)
    with torch.no_grad():
        assert_close(torch.jit.load(out / "model.pt")(images), network(images))


@pytest.mark.slow
def test_a_graph_that_normalises_takes_slices_as_they_are_in_files(tmp_path):
    network, card = segmentation_run(tmp_path / "run")
    out = run(Export(run=tmp_path / "run", format="torchscript", merge_normalisation=True))
    graph = torch.jit.load(out / "model.pt")
    rng = np.random.default_rng(0)
    for shape in ((37, 70), (64, 33), (20, 90)):
        raw = rng.integers(0, 3000, shape, dtype=np.int16)
        labels = graph(torch.from_numpy(raw)[None, None].float()).argmax(dim=1)[0]
        assert np.array_equal(labels, segment_stack(network, raw[None], (1.0, 1.0), card)[0])


@pytest.mark.parametrize("statistics", [None, (300.0, 80.0), (300.0, 0.0)])
def test_the_z_score_in_a_graph_is_that_of_training(statistics):
    graph = RawImages(nn.Identity(), statistics, None)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 3000, (40, 50)).astype(np.float32), np.full((40, 50), 700.1, np.float32)]
    images += [rng.normal(-1e4, 10, (40, 50)).astype(np.float32)]
    ours = graph(torch.from_numpy(np.stack(images))[:, None])[:, 0].numpy()
    for image, normalised in zip(images, ours, strict=True):
        expected = preprocess(image, statistics or mean_and_std(image), (1, 1), None)
        np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_of_exams(tmp_path):
    classifier = build_classifier("test_resnet", "batch").eval()
    facts = {"image_size": 32, "clip_frames": 3, "test_clips": 1, "test_seed": 0, "task": "acl", "plane": ""}
    card = ExamCard(encoder="test_resnet", norm="batch", dataset="knees 0f", init="random", **facts)
    save_model(classifier, tmp_path, card)
    auc = {"value": 0.75, "low": 0.5, "high": 0.9}
    (tmp_path / "result.json").write_text(json.dumps({"val": {"auc": auc, "exams": 30}}))
    out = run(Export(run=tmp_path, format="torchscript"))
    clips = torch.randn(1, 1, 3, 32, 32)
    with torch.no_grad():
        assert_close(torch.jit.load(out / "model.pt")(clips), classifier(clips))
    assert "0.750 (95 % interval 0.500 to 0.900)" in (out / "README.md").read_text()
    with pytest.raises(UserError, match="z-scored over their whole exam"):
        run(Export(run=tmp_path, format="torchscript", merge_normalisation=True, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_onnx(tmp_path):
    import onnxruntime

    network, card = segmentation_run(tmp_path / "run")
    out = run(Export(run=tmp_path / "run", format="onnx", merge_normalisation=True))
    session = onnxruntime.InferenceSession(out / "model.onnx")
    raw = np.random.default_rng(0).integers(0, 3000, (1, 37, 70), dtype=np.int16)
    (logits,) = session.run(None, {"images": raw[None].astype(np.float32)})
    assert np.array_equal(logits.argmax(axis=1), segment_stack(network, raw, (1.0, 1.0), card))
    assert "any height and width;" in (out / "README.md").read_text()


def test_onnx_without_its_packages(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders.export.graph, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(UserError, match=r"needs onnxscript: install the extra with `uv sync --extra onnx`"):
        run(Export(run=pretrained[0], format="onnx", out=tmp_path / "out"))


@pytest.mark.slow
def test_the_card_of_a_pretraining_run(pretrained, tmp_path):
    out = run(Export(run=pretrained[0], format="timm", out=tmp_path / "out", name="hearts"))
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.license) == ("timm", "unknown")
    assert "| specialist | byol | acdc, 70 slices | 9 |" in card.text
    assert "| generalist |  | timm a1_in1k (weights: timm resnet18.a1_in1k) |  |" in card.text
    assert "The licence is for you to set" in card.text
    assert "0123456789abcdef" not in card.content


def test_the_card_of_a_segmentation_run(tmp_path):
    segmentation_run(tmp_path / "run", spacing_mm=1.5, normalisation="dataset", statistics=(300.0, 80.0))
    out = run(Export(run=tmp_path / "run", format="smp"))
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert "Classes: 0 background, 1 LV, 2 RV." in card.text
    assert "| Dice | val | 0.812 | 7 patients |" in card.text
    assert "resampled to square pixels of 1.5 mm" in card.text
    assert "(intensity - 300) / 80" in card.text
    assert card.data.eval_results[0].metric_value == 0.8125


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "timm", "merge_normalisation": True}, "is for --format onnx and torchscript: timm holds weights"),
        ({"format": "timm", "run": "nothing"}, "nothing does not exist; pass the folder of a finished run"),
        ({"format": "timm", "run": "empty"}, "empty holds no trained network"),
        ({"format": "timm", "run": "group"}, "builds test_resnet with batch norm, and this one has --norm group"),
        ({"format": "timm", "run": "small"}, "timm has no test_resnet with the small stem"),
        ({"format": "torchvision", "run": "tiny"}, "torchvision has no network with the tensors of test_resnet"),
        ({"format": "timm", "run": "foreign/a.safetensors"}, "has no card"),
        ({"format": "timm", "run": "tiny", "out": "full"}, "exists and is not empty"),
    ],
)
def test_what_cannot_be_exported(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "foreign/a.safetensors").touch()
    for name, changes in {"tiny": {}, "group": {"norm": "group"}, "small": {"stem": "small"}}.items():
        if settings.get("run", "tiny") == name:
            save(build_encoder("test_resnet", **changes), name, "test_resnet", norm=changes.get("norm", "batch"))
    paths = {key: tmp_path.__class__(value) for key, value in settings.items() if key in ("run", "out")}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        run(Export(**{"run": tmp_path.__class__("tiny"), **settings, **paths}))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_card_that_has_changed_is_refused(tmp_path):
    segmentation_run(tmp_path)
    file = tmp_path / "model.json"
    file.write_text(file.read_text().replace('"LV"', '"RA"'))
    with pytest.raises(UserError, match=r"model\.json has changed since it was written"):
        run(Export(run=tmp_path, format="smp"))
