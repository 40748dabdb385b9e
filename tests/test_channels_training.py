"""Several channels in training, prediction and studies: first convolution, cards, refusals, a run on two channels."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_study, run_here
from made_up_channels import case, colours, nnunet, save, write_png_folder
from PIL import Image
from safetensors.torch import load_file

import encoders.weights
import segment.training
from annotate.first import First
from annotate.first import run as run_first
from annotate.next import Next
from annotate.next import run as run_next
from core.errors import SomeFilesFailed, UserError
from core.tables import read_table
from data.augmentation import Augmentation
from data.inspect import Inspect
from data.inspect import run as inspect
from data.sources import FolderSource, open_slices
from encoders.build import build_encoder
from encoders.card import read_card
from encoders.decoders import build_segmenter
from encoders.export.runs import open_run
from encoders.weights import load_into_unet, load_weights, save_encoder
from engine.command_line import parse
from engine.config import plain, read_config
from pretrain.config import PretrainConfig
from pretrain.config import presets_for as pretrain_presets
from pretrain.stages import run as pretrain
from segment.config import PRESETS, SegmentConfig
from segment.model import load_unet
from segment.predict import Predict
from segment.predict import run as predict

FACTS = {"network": "target", "normalisation": {"kind": "z-score", "over": "channel"}, "norm": "batch"}


def encoder_file(folder: Path, trained: int, **entry) -> Path:
    torch.manual_seed(trained)
    stage = {"stage": "specialist", "data": {"name": "x", "hash": None}, **entry}
    network = build_encoder("test_resnet", trained)
    return save_encoder(network, folder, name="test_resnet", in_channels=trained, lineage=[stage], **FACTS)


def first_weight(network) -> torch.Tensor:
    return next(value for key, value in network.state_dict().items() if value.ndim == 4)


def test_first_convolution_of_colours_and_of_grey_becomes_one_of_several(tmp_path):
    colour, grey = (encoder_file(tmp_path / str(n), n) for n in (3, 1))
    first = "conv1.0.weight"
    of_colours, of_grey = load_file(colour)[first], load_file(grey)[first]
    for channels, wanted in (
        (1, of_colours.sum(dim=1, keepdim=True)),
        (2, of_colours[:, :2] * 1.5),
        (3, of_colours),
        (4, of_colours[:, [0, 1, 2, 0]] * 0.75),
    ):
        network = build_encoder("test_resnet", channels)
        report = load_weights(network, colour, name="test_resnet", in_channels=channels)
        torch.testing.assert_close(network.state_dict()[first], wanted)
        how = {2: "3 to 2 channels by repetition, scaled by 3 / 2", 4: "3 to 4 channels by repetition, scaled by 3 / 4"}
        assert report.lineage[-1].get("first_convolution") == how.get(channels)
    unet = build_segmenter("test_resnet", 2, in_channels=2)
    load_into_unet(unet, grey, "test_resnet")
    torch.testing.assert_close(first_weight(unet), of_grey.repeat(1, 2, 1, 1) / 2)  # a grey image gives what it gave
    dpt = build_segmenter("test_vit", 2, decoder="dpt", in_channels=2)
    network = build_vit(1)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    load_into_unet(dpt, tmp_path / "vit.pth", "test_vit")
    assert first_weight(dpt).shape[1] == 2


def build_vit(channels: int):
    import timm

    return timm.create_model("test_vit", in_chans=channels, num_classes=0)


def test_imagenet_weights_are_adapted_once_and_say_so(monkeypatch):
    torch.manual_seed(0)
    pretrained = build_encoder("test_resnet", 3).state_dict()

    def weights(name, channels):
        assert channels == 3
        return pretrained, {"stage": "generalist", "source": "timm"}

    monkeypatch.setattr(encoders.weights, "timm_weights", weights)
    network = build_encoder("test_resnet", 2)
    report = load_weights(network, "imagenet", name="test_resnet", in_channels=2)
    torch.testing.assert_close(network.state_dict()["conv1.0.weight"], pretrained["conv1.0.weight"][:, :2] * 1.5)
    assert report.lineage[0]["first_convolution"] == "3 to 2 channels by repetition, scaled by 3 / 2"


@pytest.mark.parametrize(("trained", "entry", "channels"), [(2, {}, 1), (2, {}, 3), (3, {"channels": [0, 1, 2]}, 1)])
def test_an_encoder_of_other_channels_is_refused(tmp_path, trained, entry, channels):
    file = encoder_file(tmp_path, trained, **entry)
    sentence = f"was trained on images of {trained} channels and those here have {channels}"
    with pytest.raises(UserError, match=sentence):
        load_weights(build_encoder("test_resnet", channels), file, name="test_resnet", in_channels=channels)
    with pytest.raises(UserError, match=sentence):
        load_into_unet(build_segmenter("test_resnet", 2, in_channels=channels), file, "test_resnet")
    with pytest.raises(UserError, match=r"several channels .* are not exported"):
        open_run(file)


def config(root: Path, out: Path, **settings) -> SegmentConfig:
    source = FolderSource(data_root=root, channels=settings.pop("channels", (0, 1)))
    small = {
        "encoder": "test_resnet",
        "image_size": 32,
        "steps": 2,
        "batch_size": 4,
        "evaluate_every": 2,
        "log_every": 1,
    }
    training = {"augmentation": Augmentation(crop="fixed", foreground=0.5, affine=0.5), "device": "cpu"}
    return SegmentConfig(data=source, out=out, loss="jaccard+ce", **(small | training | settings))


def pretraining(root: Path, out: Path, **settings) -> PretrainConfig:
    source = FolderSource(data_root=root, channels=settings.pop("channels", (0, 1)))
    small = {"encoder": "test_resnet", "image_size": 32, "steps": 2, "batch_size": 4, "log_every": 1, "device": "cpu"}
    heads = {"projector_hidden": 16, "predictor_hidden": 16, "projection": 8, "warmup_epochs": 0}
    return PretrainConfig(data=source, out=out, **(small | heads | {"stage": "specialist"} | settings))


def test_the_configuration_keeps_its_channels(tmp_path):
    several, single = config(tmp_path, tmp_path / "run"), config(tmp_path, tmp_path / "run", channels=1)
    assert (plain(several)["data"]["channels"], plain(single)["data"]["channels"]) == ([0, 1], 1)
    for cfg in (several, single):
        (tmp_path / "config.json").write_text(json.dumps(plain(cfg)))
        assert read_config(SegmentConfig, tmp_path / "config.json") == cfg


@pytest.mark.slow
def test_two_channels_from_pretraining_to_prediction(tmp_path, caplog, monkeypatch):
    root = nnunet(tmp_path / "set")
    cfg = pretraining(root, tmp_path / "encoder", probe_every=2, positives="slice", crop_towards="centre")
    encoder = Path(pretrain(cfg)["encoder"])
    card = read_card(encoder)
    assert (card.in_channels, card.normalisation["over"], card.lineage[-1]["channels"]) == (2, "channel", [0, 1])

    run = tmp_path / "run"
    splits = tmp_path / "encoder/splits.json"
    settings = {"init": str(encoder), "normalisation": "dataset", "flip_tta": True}
    with caplog.at_level(logging.WARNING, "fewslice"):
        segment.training.run(config(root, run, **settings))
    assert not [record for record in caplog.records if "channels" in record.message]
    unet, model = load_unet(run)
    assert (model.channels, model.in_channels, model.numbered_channels) == ((0, 1), 2, True)
    assert np.shape(model.statistics) == (2, 2)
    assert first_weight(unet).shape[1] == 2
    assert (run / "predictions.png").is_file()
    assert "The images show channel 0, the first that was chosen." in (run / "report.html").read_text()
    assert splits.is_file()

    # from files as from the store
    new = tmp_path / "new"
    for name, seed in (("a", 40), ("b", 41)):
        for number, values in enumerate(case(seed)[:2]):
            save(new / f"{name}_{number:04d}.nii.gz", values)
    (new / "b_0001.nii.gz").unlink()
    with pytest.raises(SomeFilesFailed, match=r"b_0000\.nii\.gz is of a case that has no channel 1"):
        predict(Predict(run=run, input=new, output=tmp_path / "out", device="cpu"))
    from segment.inference import segment_stack

    first, second, _ = case(40)
    stack = np.stack([first.astype("f4"), second]).transpose(3, 0, 2, 1)
    wanted = segment_stack(unet, stack, (1.5, 1.5), model)
    written = nib.load(tmp_path / "out/a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, wanted)
    assert written.shape == (40, 36, 2)
    alone = Predict(run=run, input=new / "a_0001.nii.gz", output=tmp_path / "alone", device="cpu")
    predict(alone)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "alone/a_0001.nii.gz").dataobj).T, wanted)
    with pytest.raises(SomeFilesFailed, match=r"b_0000\.nii\.gz has one channel, and channel 1 of the chosen 0 1"):
        predict(replace(alone, input=new / "b_0000.nii.gz"))

    caplog.clear()
    monkeypatch.setattr(segment.training, "_card", lambda *_: 1 / 0)  # weights are loaded by then
    with caplog.at_level(logging.WARNING, "fewslice"), pytest.raises(ZeroDivisionError):
        segment.training.run(config(root, tmp_path / "swapped", channels=(1, 0), init=str(encoder)))
    (said,) = [record.message for record in caplog.records if "channels" in record.message]
    assert said.startswith("the weights were trained on the channels 0 1 of their data and get the channels 1 0 here")

    for refused in (encoder, run / "model.safetensors"):
        with pytest.raises(UserError, match="was trained on images of 2 channels and those here have 1"):
            segment.training.run(config(root, tmp_path / "grey", channels=0, init=str(refused)))
    with pytest.raises(UserError, match=r"several channels .* are not exported"):
        open_run(run)
    with pytest.raises(UserError, match=r"^python -m annotate takes one channel"):
        run_next(Next(run=run, out=tmp_path / "plan"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["specialist", "hierarchical"])
def test_two_channels_from_hidden_patches_to_pseudo_labels(tmp_path, stage):
    """The whole U-Net is pretrained on both channels; its teacher sees both of unlabelled slices."""
    root = nnunet(tmp_path / "set")
    natural = {"generalist_images": 8, "generalist_epochs": 1}
    heads = {"projector_hidden": None, "predictor_hidden": 8192, "projection": None}
    cfg = pretraining(root, tmp_path / "unet", method="masked", stage=stage, **natural, **heads)
    pretrain(cfg)
    card = read_card(tmp_path / "unet/unet.safetensors")
    assert (card.part, card.in_channels, card.lineage[-1]["channels"]) == ("unet", 2, [0, 1])

    settings = {"unlabelled": True, "confidence": 0.0, "labelled_fraction": 0.2, "figures": False}
    start = str(tmp_path / "unet")
    segment.training.run(config(root, tmp_path / "run", init=start, **settings))
    _, model = load_unet(tmp_path / "run")
    assert model.in_channels == 2
    assert model.unlabelled.slices > 0
    with pytest.raises(UserError, match="takes images of 2 channels and the images here are grey images"):
        segment.training.run(config(root, tmp_path / "grey", channels=0, init=start, **settings))


@pytest.mark.slow
def test_colour_images_are_trained_on_and_predicted(tmp_path):
    root = write_png_folder(tmp_path / "set", cases=8)
    cfg = config(root, tmp_path / "run", channels=(0, 1, 2), augmentation=Augmentation(crop="resized"), steps=1)
    cfg = replace(cfg, figures=False)
    segment.training.run(cfg)
    unet, model = load_unet(tmp_path / "run")
    assert (model.channels, model.numbered_channels, first_weight(unet).shape[1]) == ((0, 1, 2), False, 3)
    (tmp_path / "new").mkdir()
    Image.fromarray(colours(50)).save(tmp_path / "new/x.png")
    Image.fromarray(colours(51)[..., 0]).save(tmp_path / "new/grey.png")
    with pytest.raises(SomeFilesFailed, match=r"grey\.png has one channel, and channel 2 of the chosen 0 1 2"):
        predict(Predict(run=tmp_path / "run", input=tmp_path / "new", output=tmp_path / "out", device="cpu"))
    assert np.asarray(Image.open(tmp_path / "out/x.png")).shape == (24, 20)


@pytest.mark.slow
def test_grey_natural_images_start_several_channels(tmp_path):
    root = nnunet(tmp_path / "set", cases=4)
    cfg = pretraining(root, tmp_path / "run", stage="hierarchical", generalist_images=8, generalist_epochs=1, steps=1)
    pretrain(cfg)
    assert read_card(tmp_path / "run/generalist/encoder.safetensors").in_channels == 1
    card = read_card(tmp_path / "run/encoder.safetensors")
    assert card.in_channels == 2
    assert card.lineage[0]["first_convolution"] == "1 to 2 channels by repetition, scaled by 1 / 2"


def test_what_takes_one_channel_refuses_several_before_any_work(tmp_path, monkeypatch):
    root, out, source = tmp_path / "absent", tmp_path / "out", FolderSource(data_root=tmp_path, channels=(0, 1))
    sentence = "{} one channel, and --channels 0 1 names several: name one"
    with pytest.raises(UserError, match=sentence.format("^--cache-on-device yes takes")):
        pretraining(root, out, cache_on_device="yes")
    with pytest.raises(UserError, match=r"--augmentation\.colour 0\.5 is for --dataset images"):
        config(root, out, augmentation=Augmentation(colour=0.5))
    with pytest.raises(UserError, match=sentence.format("^python -m annotate takes")):
        run_first(First(data=source, out=out))
    monkeypatch.setattr("data.sources.holds_dicom", lambda folder: True)
    for reading in (
        lambda: open_slices(source),
        lambda: inspect(Inspect(dataset="folder", data_root=tmp_path, channels=(0, 1))),
    ):
        with pytest.raises(UserError, match=sentence.format("holds DICOM files, which have")):
            reading()


@pytest.mark.slow
def test_the_command_line_takes_several_channels_of_folders_alone(tmp_path):
    def parsed(*arguments):
        return parse(lambda flags: PRESETS, "", ["--data-root", str(tmp_path), *arguments])

    assert parsed("--dataset", "folder", "--channels", "2", "0", "--seed", "3").data.channels == (2, 0)
    assert parsed("--dataset", "folder", "--channels", "2").data.channels == 2
    assert parsed("--dataset", "folder").data.channels is None
    with pytest.raises(UserError, match="--channels 0 goes with --dataset folder, not with acdc"):
        parsed("--channels", "0", "1")
    with pytest.raises(UserError, match="--channels 0 goes with --dataset folder, not with exams"):
        parse(pretrain_presets, "", ["--dataset", "exams", "--data-root", str(tmp_path), "--channels", "0", "1"])


@pytest.mark.slow
def test_a_study_of_two_channels(tmp_path):
    source = FolderSource(data_root=nnunet(tmp_path / "set", cases=10), channels=(0, 1))
    cfg = make_study(tmp_path, tmp_path / "study", data=source, fractions=(0.5,), seeds=(0,))
    run_here(cfg)
    assert len(read_table(tmp_path / "study/results.csv")) == 2
    (card,) = (tmp_path / "study").rglob("encoder.json")
    assert json.loads(card.read_text())["in_channels"] == 2
