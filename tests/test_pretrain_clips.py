import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import assert_close
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

import pretrain.stages
from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.samples.slices import TwoViews
from data.slices import PartOf, whole
from data.sources import AcdcSource, MrnetSource
from encoders.build import build_clip_encoder, build_encoder
from encoders.card import read_card
from encoders.norm import replace_norm
from encoders.weights import load_weights
from engine.command_line import parse
from engine.config import RunSettings, plain
from engine.ema import cosine_tau
from engine.loop import Training, train
from engine.optimisers import lars
from engine.run_folder import RunFolder
from engine.sampler import Sample, StepSampler
from pretrain.__main__ import main
from pretrain.config import PretrainConfig, presets_for
from pretrain.methods.build import widths
from pretrain.methods.byol import Byol
from pretrain.stages import run

pytestmark = pytest.mark.usefixtures("one_thread", "no_stale_handlers")
TRAIN, TEST = 10, 3


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    """Ten training and three validation exams in the MRNet layout, no csv: pretraining needs none."""
    root = tmp_path_factory.mktemp("mrnet")
    rng = np.random.default_rng(0)
    for half, first, count in (("train", 0, TRAIN), ("valid", 1130, TEST)):
        folder = root / half / "sagittal"
        folder.mkdir(parents=True)
        for case in range(first, first + count):
            frames = rng.normal(100, 20, (int(rng.integers(4, 9)), 40, 40))
            frames[:, 5 + case % 10 : 30, 10:30] += 80
            np.save(folder / f"{case:04d}.npy", frames.clip(0, 255).astype(np.uint8))
    return root


def tiny(root: Path, out: Path, **settings) -> PretrainConfig:
    few = {
        "stage": "specialist",
        "encoder": "test_resnet",
        "clip_frames": 4,
        "image_size": 32,
        "generalist_images": 9,
        "generalist_epochs": 1,
        "batch_size": 8,
        "micro_batch_size": 2,
        "projector_hidden": 64,
        "predictor_hidden": 64,
        "projection": 32,
        "steps": 2,
        "device": "cpu",
        "log_every": 1,
    }
    return PretrainConfig(**({"data": MrnetSource(data_root=root), "out": out} | few | settings))


class TinyVideo(nn.Module):
    """Two 3D convolutions and their mean: (N, 1, T, H, W) -> (N, 8)."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 8, 3, 2, 1), nn.BatchNorm3d(8)]
        self.layers = nn.Sequential(*layers)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips).relu().mean(dim=(2, 3, 4))


class Noise(Dataset):
    """Two clips that depend on the sample's item and seed alone, in float64."""

    def __init__(self, frames: int, size: int) -> None:
        self.shape = (2, 1, frames, size, size)

    def __getitem__(self, draw: Sample) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * draw.item + draw.seed % 1000)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def byol_of(name: str, norm: str) -> Byol:
    torch.manual_seed(0)
    encoder = replace_norm(TinyVideo(), norm) if name == "tiny" else build_clip_encoder(name, norm)
    return Byol(encoder, encoder.num_features, projector_hidden=32, predictor_hidden=32, outputs=8, norm=norm).double()


def one_epoch(byol: Byol, folder: Path, samples: Noise, batch: int, micro: int, steps: int, tau: float) -> None:
    """The loop of pretraining, with its optimiser and its average."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    model, optimiser = fabric.setup(byol, lars(byol, lr=0.2, weight_decay=1e-5))
    sampler = StepSampler(count=batch, batch_size=batch, micro_batch_size=micro)
    train(
        Training(
            fabric=fabric,
            run=RunFolder(folder, RunSettings()),
            model=model,
            optimiser=optimiser,
            sampler=sampler,
            samples=samples,
            data="noise",
            steps=steps,
            learning_rate=lambda step: 0.2,
            after_step=lambda step: byol.move_target(tau),
        )
    )


@pytest.mark.parametrize("norm", ["group", "frozen"])
@pytest.mark.parametrize(
    ("name", "batch", "frames", "size", "steps"), [("tiny", 256, 4, 6, 3), ("test_resnet", 8, 2, 32, 1)]
)
@pytest.mark.slow
def test_micro_batches_of_four_give_the_update_of_one_large_batch(name, batch, frames, size, steps, norm, tmp_path):
    """Manna et al. 2022, section 3: 4 clips x 64 accumulation steps = 256, for encoder, heads and target."""
    states = []
    for micro in (4, batch):
        byol = byol_of(name, norm)
        one_epoch(byol, tmp_path / str(micro), Noise(frames, size), batch, micro, steps, tau=0.9)
        states.append(byol.state_dict())
    begun = byol_of(name, norm).state_dict()
    assert any((states[0][key] - value).abs().max() > 1e-4 for key, value in begun.items())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.slow
def test_r3d_18_accumulates_exactly():
    """Gradients of the real network, in float64: two backwards of two clips and one of four."""
    views = torch.stack([Noise(2, 16)[Sample(k, 0)] for k in range(4)])
    gradients = []
    for micro in (2, 4):
        byol = byol_of("r3d_18", "group")
        for part in views.split(micro):
            (byol(part) * len(part) / len(views)).backward()
        gradients.append([p.grad for p in (*byol.encoder.parameters(), *byol.predictor.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, tolerance=1e-5)


def test_the_average_moves_once_after_64_micro_batches(tmp_path):
    byol = byol_of("tiny", "group")
    start = [parameter.clone() for parameter in byol.target_encoder.parameters()]
    seen: list[int] = []
    byol.register_forward_hook(lambda *_: seen.append(all(map(torch.equal, byol.target_encoder.parameters(), start))))
    one_epoch(byol, tmp_path, Noise(4, 6), batch=256, micro=4, steps=1, tau=0.996)
    assert seen == [True] * 64  # the target does not move within the batch
    pairs = zip(start, byol.target_encoder.parameters(), byol.encoder.parameters(), strict=True)
    for before, target, online in pairs:
        torch.testing.assert_close(target, 0.996 * before + 0.004 * online)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.slow
def test_tau_follows_optimiser_steps(knees, tmp_path, monkeypatch, schedule):
    """Ten exams in batches of 8 and 2, micro-batches of 2: four forwards, one average, one forward, one average."""
    events: list[float] = []
    forward, move = Byol.forward, Byol.move_target
    monkeypatch.setattr(Byol, "forward", lambda self, views: (events.append(-1), forward(self, views))[1])
    monkeypatch.setattr(Byol, "move_target", lambda self, tau: (events.append(tau), move(self, tau))[1])
    run(tiny(knees, tmp_path / "run", steps=4, tau=0.9, tau_schedule=schedule))
    taus = [0.9] * 4 if schedule == "constant" else [cosine_tau(step, 4, 0.9) for step in (0, 1, 2, 3)]
    assert events == [
        event for forwards, tau in zip((4, 1, 4, 1), taus, strict=True) for event in [-1] * forwards + [tau]
    ]


@pytest.mark.slow
def test_a_3d_encoder_is_pretrained_on_exams(knees, tmp_path):
    cfg = tiny(knees, tmp_path / "run", encoder="r3d_18", micro_batch_size=4, steps=1, checkpoint_activations=True)
    result = run(cfg)
    assert (result["exams"], result["steps"]) == (TRAIN, 1)
    assert "exams_per_second" in result
    card = read_card(result["encoder"])
    assert (card.architecture, card.network) == ("r3d_18", "target")
    assert card.normalisation == {"kind": "z-score", "over": "exam"}
    (stage,) = card.lineage
    assert (stage["stage"], stage["plane"], stage["clip_frames"]) == ("specialist", "sagittal", 4)
    assert stage["data"]["exams"] == TRAIN
    load_weights(build_clip_encoder("r3d_18"), result["encoder"], name="r3d_18", in_channels=1)
    text = (tmp_path / "run" / "train.log").read_text()
    assert "batch norm sees 4 samples at a time" in text


@pytest.mark.slow
def test_hierarchical_pretraining_of_the_max_pool_model(knees, tmp_path):
    """A 2D encoder learns from images, then from clips; its file stays a 2D encoder's."""
    cfg = tiny(knees, tmp_path / "run", stage="hierarchical", keep_epochs=(0,), norm="frozen")
    result = run(cfg)
    first, last = read_card(tmp_path / "run/generalist/encoder.safetensors"), read_card(result["encoder"])
    assert first.normalisation["over"] == "image"
    assert (last.architecture, last.normalisation["over"]) == ("test_resnet", "exam")
    stages = [(stage["stage"], stage["data"]["name"]) for stage in last.lineage]
    assert stages == [("generalist", "procedural"), ("hierarchical", "mrnet")]
    begun, natural = (load_file(tmp_path / "run" / name / "encoder.safetensors") for name in ("epoch-0", "generalist"))
    assert all(torch.equal(begun[key], natural[key]) for key in natural)
    timm.create_model("test_resnet", in_chans=1, num_classes=0, checkpoint_path=result["encoder"])
    load_weights(build_encoder("test_resnet"), result["encoder"], name="test_resnet", in_channels=1)


@pytest.mark.slow
def test_recomputed_activations_leave_the_run_as_it_was(knees, tmp_path):
    files = []
    for checkpoint in (False, True):
        cfg = tiny(knees, tmp_path / str(checkpoint), checkpoint_activations=checkpoint)
        files.append(load_file(run(cfg)["encoder"]))
    for key, value in files[0].items():
        assert torch.equal(files[1][key], value), key


@pytest.mark.slow
def test_a_run_out_of_memory_continues_with_recomputed_activations(knees, tmp_path, monkeypatch):
    whole = load_file(run(tiny(knees, tmp_path / "whole"))["encoder"])
    move = Byol.move_target

    def fail(self: Byol, tau: float) -> None:
        if tau > 0.7:  # 0.5, then 0.75 in the second step, after the first was saved
            raise MemoryError
        move(self, tau)

    cfg = tiny(knees, tmp_path / "run", checkpoint_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(Byol, "move_target", fail)
        with pytest.raises(MemoryError):
            run(cfg)
    result = run(tiny(knees, tmp_path / "run", checkpoint_activations=True, resume=True))
    assert all(torch.equal(whole[key], value) for key, value in load_file(result["encoder"]).items())


def test_the_pool_holds_no_test_exams_unless_asked_for(knees, tmp_path):
    for pool, count in (("train", TRAIN), ("all", TRAIN + TEST)):
        cfg = tiny(knees, tmp_path, unlabelled_splits=pool)
        assert pretrain.stages._target(cfg, torch.device("cpu"))[0].count == count


def test_the_papers_numbers_for_exams():
    """Manna et al. 2022 and Ray 2022."""
    arguments = ["--recipe", "paper", "--dataset", "mrnet"]
    cfg = parse(presets_for, "", arguments)
    assert (cfg.encoder, cfg.stage, cfg.data.plane, cfg.clip_frames, cfg.image_size) == (
        *("r3d_18", "specialist", "sagittal"),
        *(16, 224),
    )
    assert (cfg.lr, cfg.batch_size, cfg.micro_batch_size, cfg.epochs, cfg.warmup_epochs) == (0.2, 256, 4, 200, 0)
    assert (cfg.tau, cfg.tau_schedule) == (None, "constant")  # the papers give no decay rate
    assert (widths(cfg, 512), cfg.predictor_hidden) == ((4096, 256), 4096)
    # Ray 2022, table 5.1; saturation, hue and grey do nothing in one channel
    first = Augmentation(area=(0.08, 1.0), bicubic=True, flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, blur=1.0)
    assert (cfg.augmentation, cfg.second_augmentation) == (first, replace(first, blur=0.1, solarise=0.2))


def test_a_long_command_line():
    line = (
        "--dataset mrnet --plane sagittal --encoder r3d_18 --micro-batch-size 4 --batch-size 256 --stage specialist "
        "--data-root knees"
    )
    cfg = parse(presets_for, "", line.split())
    assert (cfg.encoder, cfg.micro_batch_size, cfg.batch_size, cfg.data.data_root) == ("r3d_18", 4, 256, Path("knees"))
    line = "--dataset=exams --encoder resnet18 --labels a.csv"
    cfg = parse(presets_for, "", line.split())
    assert (cfg.data.dataset, cfg.data.labels, cfg.steps) == ("exams", Path("a.csv"), 8)  # the demo's
    assert parse(presets_for, "", []).data.dataset == "acdc"
    line = "--dataset mrnet --encoder r3d_18"
    demo = parse(presets_for, "", line.split())
    assert (demo.encoder, demo.image_size, demo.steps) == ("r3d_18", 32, 2)  # smaller, as its steps cost more


def test_a_saved_configuration_replays(tmp_path):
    arguments = ["--recipe", "paper", "--dataset", "mrnet", "--encoder", "resnet18"]
    cfg = parse(presets_for, "", arguments)
    (tmp_path / "config.json").write_text(json.dumps(plain(cfg)))
    again = ["--config", str(tmp_path / "config.json")]
    assert parse(presets_for, "", again) == cfg


def test_the_command_line(knees, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    settings = "--encoder test_resnet --clip-frames 2 --image-size 32 --steps 1 --batch-size 4 --device cpu"
    line = f"pretrain --recipe demo --dataset mrnet --data-root {knees} {settings} --out {out}"
    monkeypatch.setattr("sys.argv", line.split())
    main()
    output = capsys.readouterr().out
    next_command = f"python -m classify --encoder test_resnet --plane sagittal --init {out}/encoder.safetensors"
    assert f"next:    {next_command}" in output
    with (out / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe_every": 5}, "--probe-every needs labelled slices"),
        ({"clip_frames": 0}, "--clip-frames 0: must be above 0"),
        ({"second_blur": 1.5}, r"--second-blur 1.5: must lie in \[0, 1\]"),
        ({"second_solarise": float("nan")}, "--second-solarise nan"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(**({"data": MrnetSource()} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "r3d_18", "data": AcdcSource()}, "'r3d_18' takes clips of exams, not single images"),
        ({"encoder": "r3d_18", "stage": "hierarchical"}, "--generalist procedural: r3d_18 takes clips"),
        ({"encoder": "r3d_18", "stage": "generalist", "generalist": "imagenet"}, "r3d_18 has no ImageNet weights"),
        ({"stage": "hierarchical", "generalist": "kinetics"}, "test_resnet has no Kinetics-400 weights"),
    ],
)
def test_encoders_that_cannot_do_it_are_refused_before_anything_is_written(knees, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run(tiny(knees, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_the_second_view_may_have_another_augmentation():
    """The first view blurs, the second solarises: Ray 2022, table 5.1, for images as for clips."""

    class One:
        channels = 1

        def __len__(self) -> int:
            return 1

        def raw(self, k: int, part: PartOf = whole) -> tuple[np.ndarray, tuple[float, float]]:
            return np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32), (0.0, 1.0)

    cfg = PretrainConfig(augmentation=Augmentation(area=(1.0, 1.0), flip=0, jitter=0, blur=1.0), second_blur=0.0)
    sharp = Augmenter(Augmentation(area=(1.0, 1.0), flip=0, jitter=0), 32)
    blurred, second = TwoViews(One(), Augmenter(cfg.augmentation, 32), Augmenter(cfg.second_augmentation, 32))[
        Sample(0, 1)
    ]
    expected = sharp(One().raw(0)[0], (1 + 2**31) % 2**32)[0]
    np.testing.assert_array_equal(second[0].numpy(), expected)
    assert blurred.std() < 0.95 * second.std()


def test_collapse_is_judged_over_the_effective_batch():
    """The two views of one sample are alike; those of the whole batch are not."""
    byol = byol_of("tiny", "group")
    views = torch.stack([Noise(4, 6)[Sample(k, 0)] for k in range(5)])
    for part in views.split(2):
        byol(part)
    assert byol.last_projections.shape == (10, 8)
    byol.move_target(0.9)
    byol(views[:1])
    assert byol.last_projections.shape == (2, 8)
