"""Masked image modelling of the whole U-Net, and the file that carries it to segment."""

import copy
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import segment.training
from core.errors import UserError
from data.sources import AcdcSource, ImagesSource, MrnetSource
from encoders.build import build_encoder, build_unet
from encoders.card import UNET, read_card, read_lineage, unet_source
from encoders.identify import Identity, identify
from encoders.weights import load_into_unet, load_weights, save_unet
from engine.command_line import parse
from engine.run_folder import RunFolder
from engine.sampler import Sample, StepSampler
from pretrain.config import PretrainConfig, presets_for
from pretrain.methods.masked import Masked, MaskedImages, draw_mask, reconstruction_loss
from pretrain.stages import run
from segment.config import SegmentConfig
from segment.model import load_unet

pytestmark = pytest.mark.usefixtures("one_thread", "no_stale_handlers")


class Noise(torch.utils.data.Dataset):
    """Single views that depend on the sample's seed alone."""

    def __getitems__(self, samples: list[Sample]) -> Tensor:
        return torch.stack([torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(s)) for _, s in samples])


def build(norm: str = "group", **settings) -> Masked:
    torch.manual_seed(0)
    return Masked(build_unet("test_resnet", 1, norm), **({"patch": 4} | settings))


def tiny(root: Path | None, out: Path, **settings) -> PretrainConfig:
    few = {"method": "masked", "stage": "specialist", "encoder": "test_resnet", "image_size": 32, "batch_size": 8}
    few |= {"steps": 4, "device": "cpu", "checkpoint_every": 2, "log_every": 1}
    return PretrainConfig(data=AcdcSource(data_root=root), out=out, **(few | settings))


def tiny_segment(root: Path, out: Path, init: Path, **settings) -> SegmentConfig:
    few = {"encoder": "test_resnet", "image_size": 32, "steps": 1, "batch_size": 4, "evaluate_every": 1, "log_every": 1}
    return SegmentConfig(data=AcdcSource(data_root=root), out=out, init=str(init), figures=False, **(few | settings))


@pytest.fixture(scope="module")
def pretrained(tiny_acdc, tmp_path_factory) -> tuple[PretrainConfig, dict]:
    cfg = tiny(tiny_acdc, tmp_path_factory.mktemp("masked") / "run", probe_every=2, checkpoint_activations=True)
    return cfg, run(cfg)


@pytest.mark.slow
def test_a_finished_run_that_lost_its_unet_writes_it_again(pretrained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(pretrained[0].run_folder, moved)
    kept = (moved / UNET).read_bytes()
    (moved / UNET).unlink()
    run(replace(pretrained[0], out=moved, resume=True))
    assert (moved / UNET).read_bytes() == kept
    (moved / UNET).unlink()
    (moved / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"has lost unet\.safetensors and its checkpoint; start again"):
        run(replace(pretrained[0], out=moved, resume=True))


def test_the_loss_by_hand():
    """The mean over an image's hidden pixels, then over images: 2 of 4 hidden, then 1 of 4."""
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 5.0]]]])
    output = torch.tensor([[[[0.0, 9.0], [9.0, 1.0]]], [[[9.0, 9.0], [9.0, 1.0]]]])
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[0.0, 0.0], [0.0, 1.0]]]])
    loss = reconstruction_loss(output.bfloat16(), images, masks)
    assert loss.item() == ((1 + 9) / 2 + 16) / 2
    assert loss.dtype == torch.float32


def test_hidden_pixels_alone_carry_gradient_and_are_not_seen():
    masked = build(share=0.5)
    samples = masked.samples(Noise()).__getitems__([Sample(0, 1), Sample(0, 2)])
    images, masks = samples[:, :1], samples[:, 1:]
    outputs: list[Tensor] = []

    def keep(head: nn.Module, inputs: Tensor, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    masked.unet.segmentation_head.register_forward_hook(keep)
    masked(samples).backward()
    gradient = outputs[0].grad
    assert gradient is not None
    assert torch.equal(gradient != 0, masks == 1)
    assert all(parameter.grad is not None for parameter in masked.parameters())
    masked(torch.cat([images + masks * 100, masks], dim=1))
    assert torch.equal(outputs[0], outputs[1])


def test_masks_hide_their_share_of_whole_patches():
    mask = draw_mask(64, 8, 0.75, seed=3)
    grid = mask.reshape(8, 8, 8, 8).mean((1, 3))
    assert {*grid.ravel()} == {0, 1}
    assert grid.sum() == 48
    assert mask.dtype == np.float32
    assert not np.array_equal(mask, draw_mask(64, 8, 0.75, seed=4))
    assert draw_mask(50, 16, 0.75, seed=0).shape == (50, 50)  # the last of 4 x 4 patches are cut
    assert [draw_mask(2, 1, share, seed=0).sum() for share in (0.01, 0.99)] == [1, 3]


def test_all_channels_are_hidden_at_the_same_places():
    class TwoChannels(Noise):
        def __getitems__(self, samples: list[Sample]) -> Tensor:
            return torch.cat([super(TwoChannels, self).__getitems__(samples) * scale for scale in (1, -2)], dim=1)

    torch.manual_seed(0)
    masked = Masked(build_unet("test_resnet", 2, "group", 2), patch=4)
    samples = masked.samples(TwoChannels()).__getitems__([Sample(0, 7), Sample(1, 8)])
    assert samples.shape == (2, 3, 32, 32)
    seen: list[Tensor] = []
    masked.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    masked(samples)
    hidden = samples[:, 2:].bool().expand(-1, 2, -1, -1)
    assert (seen[0][hidden] == 0).all()
    assert torch.equal(seen[0][~hidden], samples[:, :2][~hidden])
    errors = torch.zeros(1, 2, 2, 2)
    errors[0, 0, 0, 0], errors[0, 1, 0, 0], errors[0, 1, 1, 1] = 3, 1, 100  # the last one is not hidden
    hides = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert reconstruction_loss(errors, torch.zeros_like(errors), hides).item() == (9 + 1) / 4


def test_a_mask_follows_from_the_samples_own_seed():
    data = MaskedImages(Noise(), 8, 0.75)
    together = data.__getitems__([Sample(0, 7), Sample(1, 8), Sample(2, 9)])
    assert together.shape == (3, 2, 32, 32)
    assert torch.equal(together[1], data[Sample(5, 8)])
    assert together[1, 1].sum() == 12 * 8 * 8


@pytest.mark.slow
def test_accumulated_equals_whole_without_batch_statistics():
    """A batch of 6 in one part, or in micro-batches of 4 and 2, in float64; patches are cut: images weigh the same."""
    gradients = []
    for micro in (6, 4):
        masked = build(patch=5).double()
        sampler = StepSampler(count=6, batch_size=6, micro_batch_size=micro)
        data = masked.samples(Noise())
        for samples, weight in sampler.micro_batches(0):
            (masked(data.__getitems__(samples).double()) * weight).backward()
        gradients.append([parameter.grad for parameter in masked.parameters()])
    for whole, accumulated in zip(*gradients, strict=True):
        # the loss is computed in float32, exact to 1e-7 of gradients of about 1
        torch.testing.assert_close(accumulated, whole, rtol=0, atol=1e-6)


def test_batch_norm_statistics_are_those_of_images_without_masks():
    """Compared with one batch through a copy whose statistics are replaced, not averaged, in every layer."""
    masked = build("batch")
    for seed in range(3):
        masked(masked.samples(Noise()).__getitems__([Sample(0, seed * 10 + k) for k in range(8)]))
    images = Noise().__getitems__([Sample(0, seed) for seed in range(8)])
    expected, before = copy.deepcopy(masked.unet), copy.deepcopy(masked.state_dict())
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    expected.train()(images)
    state = torch.get_rng_state()
    masked.prepare_export(iter([images, images, images[:1]]))  # the smaller one would weigh as much as the others
    assert torch.equal(state, torch.get_rng_state())
    assert masked.training
    after = masked.state_dict()
    for name, buffer in expected.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(after[f"encoder.{name}"], buffer, rtol=1e-5, atol=1e-6)  # of two equal batches
            assert not torch.equal(after[f"encoder.{name}"], before[f"encoder.{name}"])
    first, norm = masked.unet.encoder.model.conv1(images), masked.unet.encoder.model.bn1
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, first.var((0, 2, 3)))
    assert all(torch.equal(after[name], before[name]) for name, _ in masked.named_parameters())


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_other_norms_keep_what_they_have(norm):
    masked = build(norm)
    before = copy.deepcopy(masked.state_dict())
    masked.prepare_export(iter([torch.randn(4, 1, 32, 32)]))
    assert all(torch.equal(before[name], value) for name, value in masked.state_dict().items())


def test_one_image_alone_is_trained_on_under_batch_norm():
    """Its deepest feature map is one pixel, of which batch norm can make no statistics."""
    masked = build("batch")
    masked(masked.samples(Noise()).__getitems__([Sample(0, 1)])).backward()
    masked.prepare_export(iter([torch.randn(1, 1, 32, 32)]))
    assert all(value.isfinite().all() for value in masked.state_dict().values())


@pytest.mark.slow
def test_a_run_writes_encoder_and_unet(pretrained):
    cfg, result = pretrained
    folder = cfg.run_folder
    unet, encoder = load_file(folder / "unet.safetensors"), load_file(folder / "encoder.safetensors")
    assert {key.split(".")[0] for key in unet} == {"encoder", "decoder"}
    card, of_encoder = read_card(folder / "unet.safetensors"), read_card(folder / "encoder.safetensors")
    assert card is not None
    assert of_encoder is not None
    assert (card.part, of_encoder.part, card.architecture, card.norm) == ("unet", "encoder", "test_resnet", "batch")
    assert card.lineage == of_encoder.lineage == read_lineage(folder / "unet.safetensors")
    (stage,) = card.lineage
    assert (stage["method"], stage["mask_share"], stage["mask_patch"]) == ("masked", 0.75, 4)
    assert stage["subjects"]["subjects"]["pool"]
    assert "second_augmentation" not in stage
    timms = timm.create_model(
        "test_resnet", in_chans=1, num_classes=0, checkpoint_path=str(folder / "encoder.safetensors")
    ).state_dict()
    assert all(torch.equal(timms[key], value) for key, value in encoder.items())
    assert identify(folder / "unet.safetensors") == identify(folder) == Identity("test_resnet", "batch", "standard")
    assert result["learning_rate"] == 1e-3
    assert result["unet"] == str(folder / "unet.safetensors")
    assert result["probe_jaccard"] >= 0


@pytest.mark.slow
def test_collapse_and_moving_average_do_not_apply(pretrained):
    cfg, result = pretrained
    absent = {"projection_std", "effective_rank", "start_share"}
    with (cfg.run_folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["probe_jaccard"]) for row in rows] == [False, True] * 2
    assert not absent & (rows[0].keys() | result.keys() | read_lineage(cfg.run_folder)[0].keys())
    assert "initial weights are left" not in (cfg.run_folder / "train.log").read_text()


@pytest.mark.slow
def test_all_but_the_output_layer_travels(pretrained):
    folder = pretrained[0].run_folder
    saved = load_file(folder / "unet.safetensors")
    for source in (folder / "unet.safetensors", folder):
        torch.manual_seed(1)
        fresh = build_unet("test_resnet", 4)
        loaded = copy.deepcopy(fresh)
        report = load_into_unet(loaded, source, "test_resnet")
        assert (report.matched, report.missing, report.unexpected) == (len(saved), [], [])
        for key, value in loaded.state_dict().items():
            output = key.startswith("segmentation_head.")
            assert torch.equal(value, fresh.state_dict()[key] if output else saved[key]), key
    encoder_alone = copy.deepcopy(fresh)
    load_into_unet(encoder_alone, folder / "encoder.safetensors", "test_resnet")
    states = [network.state_dict() for network in (encoder_alone, fresh, loaded)]
    assert all(
        torch.equal(states[0][k], states[1 if k.startswith("decoder") else 2][k]) for k in states[0] if "_head" not in k
    )
    classifier = build_encoder("test_resnet")  # others take the encoder from the file
    load_weights(classifier, folder / "unet.safetensors", name="test_resnet", in_channels=1)
    assert torch.equal(classifier.state_dict()["layer1.0.conv1.weight"], saved["encoder.model.layer1.0.conv1.weight"])


@pytest.mark.slow
def test_a_unet_that_does_not_fit_is_refused(pretrained, tmp_path):
    folder = pretrained[0].run_folder
    with pytest.raises(UserError, match=r"unet\.safetensors holds a test_resnet, not a resnet18"):
        load_into_unet(build_unet("resnet18", 4), folder, "resnet18")
    group = build_unet("test_resnet", 4, "group")
    before = copy.deepcopy(group.state_dict())
    with pytest.raises(UserError, match=r"is a U-Net with batch norm, this one has group norm: pass --norm batch"):
        load_into_unet(group, folder, "test_resnet")
    assert all(torch.equal(value, before[key]) for key, value in group.state_dict().items())
    facts = {"network": "online", "normalisation": {}, "lineage": []}
    path = save_unet(group, tmp_path / "group", name="test_resnet", in_channels=1, norm="group", **facts)
    with pytest.raises(UserError, match="with group norm, this one has batch norm: pass --norm group"):
        load_into_unet(build_unet("test_resnet", 4), path, "test_resnet")
    load_into_unet(build_unet("test_resnet", 4, "group"), path, "test_resnet")
    tensors = load_file(path)
    tensors.pop("decoder.blocks.0.conv1.0.weight")
    save_file(tensors, path)
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": None}))
    with pytest.raises(UserError, match=r"does not hold the network .* \(decoder\.blocks\.0\.conv1\.0\.weight\)"):
        load_into_unet(build_unet("test_resnet", 4, "group"), path, "test_resnet")


@pytest.mark.slow
def test_segment_starts_from_the_unet_of_a_run_folder(pretrained, tiny_acdc, tmp_path, monkeypatch):
    """At a learning rate of almost 0 the saved model still has the pretrained encoder and decoder."""
    folder = pretrained[0].run_folder
    cfg = tiny_segment(tiny_acdc, tmp_path / "a", folder, lr=1e-12, norm="frozen")
    segment.training.run(cfg)
    model, card = load_unet(cfg.run_folder)
    assert card.init.startswith("unet.safetensors sha256 ")
    assert [stage["method"] for stage in card.lineage] == ["masked"]
    groups = torch.load(cfg.run_folder / "checkpoint.pt")["optimiser"]["param_groups"]
    rates = [(group["lr_scale"], len(group["params"])) for group in groups]
    assert [rate for rate, _ in rates] == [1.0, 1.0, 0.1, 0.1]  # output layer, and encoder with decoder
    assert [count for _, count in rates][:2] == [1, 1]
    saved = load_file(folder / "unet.safetensors")
    for key, value in model.state_dict().items():
        if "segmentation_head" not in key:
            torch.testing.assert_close(value, saved[key], rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="pass --norm batch, or as --init the encoder"):
        segment.training.run(replace(cfg, norm="group", out=tmp_path / "b"))
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_leaking_subjects_are_found_through_the_unet_file(tiny_acdc, tmp_path):
    leaking = tiny(tiny_acdc, tmp_path / "all", unlabelled_splits="all", steps=1)
    run(leaking)
    cfg = tiny_segment(tiny_acdc, tmp_path / "a", leaking.run_folder / "unet.safetensors")
    with pytest.raises(UserError, match=r"unet\.safetensors was trained on 1 validation and 1 test subjects"):
        segment.training.run(cfg)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bytes(pretrained, tmp_path, monkeypatch):
    cfg, result = pretrained
    stopped = replace(cfg, out=tmp_path / "stopped")
    record = RunFolder.record

    def fail(self: RunFolder, row: dict) -> None:
        record(self, row)
        if row["step"] == 3:
            raise OSError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", fail)
        with pytest.raises(OSError, match="stopped here"):
            run(stopped)
    assert not (stopped.run_folder / "unet.safetensors").exists()
    resumed = run(replace(stopped, resume=True))
    assert resumed["probe_jaccard"] == result["probe_jaccard"]
    for name in ("unet.safetensors", "encoder.safetensors"):
        assert (stopped.run_folder / name).read_bytes() == (cfg.run_folder / name).read_bytes()


@pytest.mark.slow
def test_the_decoder_travels_from_stage_to_stage(tiny_acdc, tmp_path):
    """Natural images, then scans: the second stage starts with encoder and decoder of the first."""
    cfg = tiny(tiny_acdc, tmp_path / "run", stage="hierarchical", generalist_images=9, generalist_epochs=1)
    cfg = replace(cfg, steps=1, keep_epochs=(0,))
    result = run(cfg)
    first, start = (load_file(cfg.run_folder / name / "unet.safetensors") for name in ("generalist", "epoch-0"))
    assert all(torch.equal(first[key], start[key]) for key in first if "running" not in key and "num_" not in key)
    assert not torch.equal(*(state["decoder.blocks.4.conv2.1.running_mean"] for state in (first, start)))
    assert [stage["stage"] for stage in read_lineage(unet_source(cfg.run_folder))] == ["generalist", "hierarchical"]
    assert result["learning_rate"] == pytest.approx(1e-4)  # a tenth, as the start is given


def test_mistakes_name_the_way_out(tmp_path):
    exams = PretrainConfig(
        method="masked", encoder="resnet18", data=MrnetSource(data_root=tmp_path), out=tmp_path / "a"
    )
    with pytest.raises(UserError, match="--method masked takes single images, not clips of exams"):
        run(exams)
    with pytest.raises(UserError, match="--method masked is for slices: leave it out with --dataset images"):
        run(PretrainConfig(method="masked", encoder="resnet18", data=ImagesSource(), out=tmp_path / "a"))
    with pytest.raises(UserError, match="--export target: masked has no target network"):
        run(tiny(tmp_path, tmp_path / "a", export="target"))
    for settings, message in (
        ({"mask_share": 1.0}, r"--mask-share 1\.0: must lie in \(0, 1\)"),
        ({"mask_patch": 32}, "--mask-patch 32: must be below --image-size 32"),
        ({"mask_patch": 0}, "--mask-patch 0: must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            tiny(tmp_path, tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()


def test_the_command_line():
    cfg = parse(presets_for, "", ["--method", "masked", "--recipe", "demo", "--image-size", "256"])
    assert (cfg.method, cfg.mask_share, cfg.patch, cfg.chosen_optimiser) == ("masked", 0.75, 32, "adam")
    assert replace(cfg, optimiser="lars").chosen_optimiser == "lars"
    assert replace(cfg, method="byol").chosen_optimiser == "lars"
    paper = parse(presets_for, "", ["--method", "masked", "--recipe", "paper"])
    assert (paper.image_size, paper.patch, paper.batch_size, paper.target_epochs) == (256, 32, 128, 100)
    assert (paper.peak_lr(False), paper.weight_decay) == (1e-3, 3e-5)  # not the 0.5 of BYOL's LARS
