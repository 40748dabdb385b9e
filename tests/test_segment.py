import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_close, run_killed_after_step
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD

import engine.supervised
import segment.training
from classify.config import PRESETS as CLASSIFIERS
from classify.config import ClassifyConfig
from core.errors import UserError
from data.augmentation import Augmentation
from data.slices import load_dataset
from data.sources import AcdcSource
from data.splits import save_splits
from encoders.build import build_encoder
from encoders.weights import load_into_unet, save_encoder
from engine.config import plain, read_config
from engine.model_file import save_model
from segment.__main__ import main
from segment.components import is_one_component
from segment.config import PRESETS, SegmentConfig
from segment.inference import segment_stack
from segment.loss_of_sums import SampleSums, loss_of_sums
from segment.metrics import dice_per_class
from segment.model import ModelCard, build_unet, load_unet, segmentation_loss
from segment.scoring import labelled_volumes, predict_split, score_split, split_scores
from segment.training import run

CLASSES = ["background", "RV", "MYO", "LV"]
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(root: Path, out: Path, **settings) -> SegmentConfig:
    few = {
        "encoder": "test_resnet",
        "image_size": 32,
        "augmentation": Augmentation(crop="fixed", foreground=1.0, jitter=0.5),
        "steps": 4,
        "batch_size": 4,
        "lr": 1e-3,
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "figures": False,
    }
    return SegmentConfig(data=AcdcSource(data_root=root), out=out, **(few | settings))


def same_weights(a: Path, b: Path) -> bool:
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tiny_acdc, tmp_path_factory) -> tuple[SegmentConfig, dict]:
    """A run that is long enough to learn the blobs, with the test split."""
    cfg = tiny(
        tiny_acdc,
        tmp_path_factory.mktemp("run") / "a",
        steps=60,
        batch_size=8,
        lr=3e-3,
        evaluate_every=30,
        loss="jaccard+ce",
        test=True,
        figures=True,
    )
    return cfg, run(cfg)


@pytest.mark.slow
def test_result(finished):
    cfg, result = finished
    assert json.loads((cfg.run_folder / "result.json").read_text()) == result
    assert result.items() >= {"split": "val", "init": "random", "steps": 60, "seed": 0, "synthetic": False}.items()
    assert (result["labelled_slices"], result["labelled_subjects"]) == (24, 4)
    assert (result["patients"], result["volumes"]) == (1, 2)
    for measure in ("dice", "jaccard", "hd95_mm", "assd_mm"):
        assert list(result[measure]) == ["mean", "RV", "MYO", "LV"]
    assert set(result["not_counted"]) == {"both_empty", "one_empty"}
    assert result["dice"]["mean"] > 0.5  # it learns
    assert 0 < result["slice_jaccard"] <= 1
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0


@pytest.mark.slow
def test_files_of_a_run(finished):
    folder = finished[0].run_folder
    pictures = ("report.html", "learning_curve.png", "predictions.png", "test/predictions.png")
    for name in ("config.json", "metrics.csv", "per_volume.csv", "model.json", "model.safetensors", *pictures):
        assert (folder / name).stat().st_size > 0, name
    labelled = pd.read_csv(folder / "labelled_slices.csv")
    assert list(labelled) == ["subject", "group", "phase", "frame", "slice", "file"]
    assert len(labelled) == 24
    splits = json.loads((folder / "splits.json").read_text())
    assert splits == {
        "train": [f"patient{n:03d}" for n in (3, 4, 5, 6)],
        "val": ["patient002"],
        "test": ["patient001"],
    }
    rows = pd.read_csv(folder / "per_volume.csv")
    assert rows[["subject", "phase", "frame"]].to_numpy().tolist() == [["patient002", "ED", 1], ["patient002", "ES", 3]]


@pytest.mark.slow
def test_the_test_split_is_scored_when_asked(finished, tiny_acdc, tmp_path):
    cfg, result = finished
    assert result["test"]["volumes"] == 2
    assert set(pd.read_csv(cfg.run_folder / "test/per_volume.csv")["subject"]) == {"patient001"}
    plain_run = tiny(tiny_acdc, tmp_path / "a", steps=1)
    assert "test" not in run(plain_run)
    assert not (plain_run.run_folder / "test").exists()


@pytest.mark.slow
def test_validation_during_training_is_the_score_of_the_result(finished):
    cfg, result = finished
    curve = pd.read_csv(cfg.run_folder / "metrics.csv").dropna(subset="validation_dice")
    assert curve["step"].tolist() == [30, 60]
    assert curve["validation_dice"].iloc[-1] == pytest.approx(result["dice"]["mean"], abs=1e-12)


@pytest.mark.slow
def test_one_seed_one_result(tiny_acdc, tmp_path):
    a, b, other = (tiny(tiny_acdc, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    results = [run(cfg) for cfg in (a, b, other)]
    assert same_weights(a.run_folder, b.run_folder)
    assert results[0]["dice"] == results[1]["dice"]
    for name in ("labelled_slices.csv", "per_volume.csv"):
        assert (a.run_folder / name).read_bytes() == (b.run_folder / name).read_bytes()
    assert not same_weights(a.run_folder, other.run_folder)


class Stop(Exception):
    """Raised in place of training."""


@pytest.mark.slow
def test_runs_of_one_seed_differ_in_their_encoder_alone(tiny_acdc, tmp_path, monkeypatch):
    torch.manual_seed(9)
    encoder = build_encoder("test_resnet")
    about = {"normalisation": {}, "norm": "batch", "lineage": [{"stage": "specialist"}]}
    save_encoder(encoder, tmp_path / "enc_file", name="test_resnet", in_channels=1, network="target", **about)
    seen = []

    def stop(cfg, fabric, run, unet, pretrained, card, dataset, positions, pool):
        seen.append(({key: value.clone() for key, value in unet.state_dict().items()}, positions, card))
        raise Stop

    monkeypatch.setattr(segment.training, "_fit", stop)
    for name, init in (("a", "random"), ("b", str(tmp_path / "enc_file"))):
        with pytest.raises(Stop):
            run(tiny(tiny_acdc, tmp_path / name, init=init, labelled_fraction=0.3))
    (random, positions, _), (loaded, same_positions, card) = seen
    np.testing.assert_array_equal(positions, same_positions)
    differing = {key for key, value in random.items() if not torch.equal(value, loaded[key])}
    assert differing
    assert all(key.startswith("encoder.") for key in differing)
    torch.testing.assert_close(loaded["encoder.model.conv1.0.weight"], encoder.state_dict()["conv1.0.weight"])
    assert card.lineage == [{"stage": "specialist"}]


@pytest.mark.slow
def test_a_pretrained_encoder_trains_at_a_tenth_of_the_rate(tiny_acdc, tmp_path, caplog):
    """The first step of Adam moves each parameter by its learning rate at most, and some by just that."""
    torch.manual_seed(9)
    about = {"normalisation": {"over": "image"}, "norm": "batch", "lineage": [{"stage": "specialist"}]}
    file = save_encoder(
        build_encoder("test_resnet"), tmp_path, name="test_resnet", in_channels=1, network="target", **about
    )
    before = build_unet("test_resnet", 4)
    load_into_unet(before, file, "test_resnet")
    cfg = tiny(tiny_acdc, tmp_path / "a", init=str(file), steps=1, warmup=0.0)
    caplog.set_level("INFO", "fewslice")
    assert run(cfg)["encoder_lr_factor"] == 0.1
    assert "learning rate 0.0001, 0.1 of the other layers'" in caplog.text
    after = load_unet(cfg.run_folder)[0]
    torch.manual_seed(cfg.seed)
    decoder = build_unet("test_resnet", 4).decoder  # before training: it depends on the seed alone
    for old, new, rate in ((before.encoder, after.encoder, 1e-4), (decoder, after.decoder, 1e-3)):
        moved = max((a - b).abs().max().item() for a, b in zip(old.parameters(), new.parameters(), strict=True))
        assert moved == pytest.approx(rate, rel=0.01)


def test_the_factor_of_the_encoders_rate():
    factors = {
        "random": SegmentConfig(),
        "pretrained": SegmentConfig(init="imagenet"),
        "chosen": SegmentConfig(init="imagenet", encoder_lr_factor=0.3),
        "paper": replace(PRESETS["paper"](), init="imagenet"),
        "classifier": ClassifyConfig(init="kinetics"),
        "classifier of the paper": replace(CLASSIFIERS["paper"](), init="kinetics"),
        "probe": ClassifyConfig(init="kinetics", linear_probe=True),
    }
    assert [cfg.factor_of_encoder_lr for cfg in factors.values()] == [1, 0.1, 0.3, 1, 0.1, 1, 0]
    with pytest.raises(UserError, match=r"--encoder-lr-factor -1: must be 0 or more"):
        SegmentConfig(encoder_lr_factor=-1)


def test_the_schedule_is_chosen(tiny_acdc, tmp_path, monkeypatch):
    rates = {}

    def stop(*_, learning_rate, **__):
        rates[schedule] = [learning_rate(step) for step in range(40)]
        raise Stop

    monkeypatch.setattr(segment.training, "fit", stop)
    for schedule in ("cosine", "periodic"):
        with pytest.raises(Stop):
            run(tiny(tiny_acdc, tmp_path / schedule, schedule=schedule, steps=40, warmup=0.0))
    assert [rates[schedule].count(1e-3) for schedule in rates] == [1, 5]


def test_whether_organs_are_one_piece():
    """Of the slices with foreground; ignored pixels are none."""
    one, two, ignored = np.zeros((3, 8, 8), np.uint8)
    one[2:4] = 1
    two[[1, 5]] = 2
    ignored[1], ignored[5] = 1, 255
    stored = [one, two, ignored, np.zeros((8, 8), np.uint8)]
    decided = [
        is_one_component(*slices_of(stored, positions))
        for positions in ([0, 2, 3], [0] * 99 + [1], [0] * 98 + [1], [3])
    ]
    assert decided == [True, True, False, False]


def slices_of(stored: list[np.ndarray], drawn: list[int], slices: list[int] | None = None):
    """A data set of the label maps drawn, and its rows: slices of one volume, or each of a volume of its own."""
    table = pd.DataFrame(
        {"file": "a" if slices else range(len(drawn)), "frame": 1, "slice": slices or [0] * len(drawn)}
    )
    label = [stored[each] for each in drawn].__getitem__
    return SimpleNamespace(table=table, store=SimpleNamespace(label=label)), np.arange(len(drawn))


def test_whether_a_pair_of_organs_is_one_piece():
    """Each slice shows one of them: the volume tells, if the slices between are labelled."""
    organ, empty, other = np.zeros((3, 8, 8), np.uint8)
    organ[2:5], other[6:] = 1, 1
    stored = [organ, empty, other]
    assert not is_one_component(*slices_of(stored, [0, 0, 1, 0], [0, 1, 2, 3]))
    assert not is_one_component(*slices_of(stored, [0, 2], [0, 1]))  # they do not touch
    assert is_one_component(*slices_of(stored, [0, 0, 1], [0, 1, 2]))
    assert is_one_component(*slices_of(stored, [0, 2], [0, 2]))  # nobody has labelled what is between
    assert is_one_component(*slices_of(stored, [0, 1, 1], [3, 4, 6]))
    assert not is_one_component(*slices_of(stored, [0, 1, 0], [3, 4, 6]))


def test_the_brightness_of_the_papers_code():
    """A fifth of 255 grey levels, in standard deviations (84.66 grey levels) of their slices."""
    assert PRESETS["paper"]().augmentation.brightness == pytest.approx(0.2 * 255 / 84.66, abs=0.005)


@pytest.mark.slow
def test_every_fraction_takes_the_same_steps(tiny_acdc, tmp_path):
    rows = []
    for fraction, slices in ((0.001, 1), (1.0, 24)):
        cfg = tiny(tiny_acdc, tmp_path / str(fraction), labelled_fraction=fraction, steps=3)
        assert run(cfg)["labelled_slices"] == slices == len(pd.read_csv(cfg.run_folder / "labelled_slices.csv"))
        rows.append(pd.read_csv(cfg.run_folder / "metrics.csv"))
    for column in ("step", "learning_rate"):
        assert rows[0][column].tolist() == rows[1][column].tolist()
    assert rows[0]["step"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("select", "kept"), [("best", 4), ("last", 6)])
@pytest.mark.slow
def test_select(tiny_acdc, tmp_path, monkeypatch, select, kept):
    scores, weights = {2: 0.1, 4: 0.9, 6: 0.3}, {}

    def seen(unet, *others):
        weights[2 * len(weights) + 2] = {key: value.clone() for key, value in unet.state_dict().items()}
        return predict_split(unet, *others)

    monkeypatch.setattr(segment.training, "predict_split", seen)
    monkeypatch.setattr(segment.training, "split_scores", lambda *_: {"dice": scores[2 * len(weights)], "jaccard": 0})
    cfg = tiny(tiny_acdc, tmp_path / "a", steps=6, select=select)
    run(cfg)
    saved = load_file(cfg.run_folder / "model.safetensors")
    assert len(weights) == 3  # the kept network's predictions are scored, not made again
    assert [step for step in weights if all(torch.equal(weights[step][key], saved[key]) for key in saved)] == [kept]
    note = json.loads((cfg.run_folder / "kept.json").read_text())
    assert note == {"validation_dice": scores[kept], "validation_jaccard": 0, "step": kept, "selected_by": cfg.select}


@pytest.mark.slow
def test_a_saved_configuration_runs_again(finished, tiny_acdc, tmp_path, monkeypatch, capsys):
    first = tiny(tiny_acdc, tmp_path / "a_1", steps=2, spacing_mm=2.0, normalisation="dataset", flip_tta=True)
    run(replace(first, overwrite=True))
    saved = tmp_path / "a_1/config.json"
    assert read_config(SegmentConfig, saved) == first  # it does not ask to overwrite what it made
    monkeypatch.setattr(sys, "argv", ["segment", "--config", str(saved), f"--out={tmp_path / 'b_2'}"])
    main()
    assert same_weights(tmp_path / "a_1", tmp_path / "b_2")
    assert f"python -m segment.predict --run {tmp_path / 'b_2'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_splits(tiny_acdc, tmp_path):
    """Finished or not; nothing of the finished one is replaced."""
    file = tmp_path / "splits.json"
    splits = {f"patient00{n}": {1: "test", 2: "val"}.get(n, "train") for n in range(1, 7)}
    save_splits(file, splits)
    source = AcdcSource(data_root=tiny_acdc, split=str(file))
    cfg = replace(tiny(tiny_acdc, tmp_path / "run", steps=1, evaluate_every=1, checkpoint_every=1), data=source)
    run(cfg)
    written = (cfg.run_folder / "labelled_slices.csv").read_bytes(), (cfg.run_folder / "result.json").read_bytes()
    save_splits(file, splits | {"patient002": "train", "patient003": "val"})
    message = "was trained on other data, labels or splits"
    with pytest.raises(UserError, match=message):
        run(replace(cfg, resume=True))
    (cfg.run_folder / "checkpoint.pt").rename(tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=message):
        run(replace(cfg, resume=True))
    assert written == tuple((cfg.run_folder / name).read_bytes() for name in ("labelled_slices.csv", "result.json"))
    (tmp_path / "checkpoint.pt").rename(cfg.run_folder / "checkpoint.pt")
    (cfg.run_folder / "result.json").unlink()
    with pytest.raises(UserError, match=message):
        run(replace(cfg, resume=True))


@pytest.mark.slow
def test_killed_and_resumed(tiny_acdc, tmp_path, monkeypatch):
    whole, killed = (tiny(tiny_acdc, tmp_path / name, steps=10, checkpoint_every=3, ema_decay=0.9) for name in "ab")
    run(whole)
    (tmp_path / "config.json").write_text(json.dumps(plain(killed)))
    options = ["--config", str(tmp_path / "config.json")]
    run_killed_after_step("segment", *options, step=5)
    assert not (killed.run_folder / "result.json").exists()

    monkeypatch.setattr(sys, "argv", ["segment", *options, "--resume"])
    main()
    assert same_weights(whole.run_folder, killed.run_folder)
    columns = ["step", "loss", "validation_dice", "validation_jaccard"]
    curves = [pd.read_csv(cfg.run_folder / "metrics.csv")[columns] for cfg in (whole, killed)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)


# Loss


def test_jaccard_loss_by_hand():
    """2 x 2 pixels, classes 0 0 1 1, probability of class 1: 0, 1/2, 1, 1/2.

    Class 0: intersection 1 + 1/2, union 2 + 2 - 3/2: 3/5. Class 1 the same. Loss 2/5.
    """
    probability = torch.tensor([[0.0, 0.5], [1.0, 0.5]])
    logits = torch.stack([1 - probability, probability]).clamp_min(1e-12).log()[None]
    target = torch.tensor([[[0, 0], [1, 1]]])
    loss = segmentation_loss("jaccard")(logits, target)
    assert loss.item() == pytest.approx(0.4, abs=1e-6)
    entropy = (0 + np.log(2) + 0 + np.log(2)) / 4
    assert segmentation_loss("jaccard+ce")(logits, target).item() == pytest.approx(0.4 + entropy, abs=1e-6)


def test_jaccard_loss_of_a_class_absent_from_the_batch():
    """All pixels class 0, predicted as 1: class 0 scores 0, class 1 adds nothing though predicted, and counts as
    a class in the mean."""
    target = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.stack([torch.full((2, 2), -50.0), torch.full((2, 2), 50.0)])[None].requires_grad_()
    loss = segmentation_loss("jaccard")(logits, target)
    assert loss.item() == pytest.approx(0.5, abs=1e-6)
    # Over the batch, not per sample: present in one sample is present.
    pair = torch.cat([logits, logits]), torch.cat([target, target + 1])
    assert segmentation_loss("jaccard")(*pair).item() == pytest.approx((1 + 1 / 2) / 2, abs=1e-6)


@pytest.mark.parametrize("name", ["jaccard", "jaccard+ce"])
@pytest.mark.parametrize("ignores", [False, True])
def test_the_loss_of_sums_is_the_loss_of_the_whole_batch(name, ignores):
    """In value and gradient, with a class (3) that no pixel carries and one (2) in half of the samples only."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 2, (4, 8, 8), generator=generator)
    target[2:, :4] = 2
    if ignores:
        target[:, :, 5:] = 255
        target[1] = 255
    whole = segmentation_loss(name, ignores=ignores)(logits, target)
    sums = torch.cat([SampleSums()(*part) for part in zip(logits.split(2), target.split(2), strict=True)])
    assert sums.shape == (4, 4, 4)
    parts = loss_of_sums(name)(sums)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (parts, whole)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    halves = [segmentation_loss(name, ignores=ignores)(logits[k : k + 2], target[k : k + 2]) for k in (0, 2)]
    assert abs(sum(halves) / 2 - whole) > 0.01  # which the mean of the parts' losses is not


@pytest.mark.slow
def test_accumulated_equals_one_large_batch(tiny_acdc, tmp_path, monkeypatch, in_float64):
    """8 samples at once, and as 3, 3 and 2, without batch statistics."""
    predict = segment.training.predict_split  # of float32 images
    monkeypatch.setattr(segment.training, "predict_split", lambda unet, *a: predict(deepcopy(unet).float(), *a))
    # Adam would scale the rounding errors of gradients that are zero up to its learning rate.
    monkeypatch.setattr(engine.supervised, "adamw", lambda network, lr, **_: SGD(network.parameters(), lr=lr))
    settings = {"batch_size": 8, "norm": "group", "loss": "jaccard+ce", "steps": 3, "lr": 0.1}
    whole, parts = (
        tiny(tiny_acdc, tmp_path / str(micro), micro_batch_size=micro, **settings | {"evaluate_every": 3})
        for micro in (None, 3)
    )
    for cfg in (whole, parts):
        run(cfg)
    expected, accumulated = (load_file(cfg.run_folder / "model.safetensors") for cfg in (whole, parts))
    for key, value in expected.items():
        torch.testing.assert_close(accumulated[key], value, rtol=0, atol=1e-8, msg=key)
    losses = [pd.read_csv(cfg.run_folder / "metrics.csv")["loss"] for cfg in (whole, parts)]
    np.testing.assert_allclose(*losses, atol=1e-6)  # noted in six digits


# From slices to label maps


class Fake(nn.Module):
    """Scores that are a function of the padded input alone."""

    def __init__(self, scores) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scores, self.shapes = scores, []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return self.scores(x)


def threshold(x: Tensor) -> Tensor:
    """Class 1 where the z-scored image is above its mean."""
    return torch.cat([-x, x], dim=1) * 100


def card(**settings) -> ModelCard:
    about = {"encoder": "test_resnet", "norm": "batch", "classes": ["background", "x"], "dataset": "", "init": "random"}
    return ModelCard(**(about | {"normalisation": "image", "statistics": (0, 1), "spacing_mm": None} | settings))


def disc(rows: int, columns: int, spacing: tuple[float, float], radius_mm: float) -> np.ndarray:
    y, x = (np.arange(n) - (n - 1) / 2 for n in (rows, columns))
    return (np.hypot(y[:, None] * spacing[0] + 3, x * spacing[1] - 5) < radius_mm).astype(np.uint8)


@pytest.mark.parametrize(("rows", "columns"), [(31, 33), (32, 64), (1, 45), (97, 50)])
def test_padding_is_cut_back_exactly(rows, columns):
    stack = np.random.default_rng(0).integers(-500, 3000, (5, rows, columns)).astype(np.int16)
    fake = Fake(threshold)
    labels = segment_stack(fake, stack, (1.0, 1.0), card(), batch=2)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, stack > stack.mean(axis=(1, 2), keepdims=True))
    assert [shape[0] for shape in fake.shapes] == [2, 2, 1]
    assert {shape[2:] for shape in fake.shapes} == {(rows + -rows % 32, columns + -columns % 32)}


def test_fast_inference_equals_plain_inference():
    """Slice by slice, probabilities as they come, argmax: batches, memory formats and `max` change nothing.

    Quantised scores make ties, of which the first class wins in both. Rounding may move single pixels.
    """
    torch.manual_seed(0)
    unet = build_unet("test_resnet", 4).eval()
    stack = np.random.default_rng(0).integers(0, 900, (3, 40, 70)).astype(np.int16)
    for scores in (unet, lambda x: (unet(x) * 4).round()):
        expected = []
        for image in stack:
            z = (image - image.mean()) / image.std()
            padded = np.pad(z, ((12, 12), (13, 13)), mode="reflect").astype(np.float32)  # to 64 x 96
            with torch.no_grad():
                logits = scores(torch.from_numpy(padded)[None, None])
            expected.append(logits.softmax(dim=1).argmax(dim=1)[0, 12:52, 13:83].numpy())
        predicted = segment_stack(Fake(scores).eval(), stack, (1.0, 1.0), card(classes=["background", "a", "b", "c"]))
        assert len(np.unique(expected)) > 1
        assert np.mean(predicted != np.stack(expected)) < 1e-3


def test_the_data_sets_statistics():
    stack = np.array([[[10, 20, 30]], [[40, 50, 60]]], np.uint8)
    seen = card(normalisation="dataset", statistics=(45.0, 9.0))
    labels = segment_stack(Fake(threshold), stack, (1.0, 1.0), seen)
    assert labels.tolist() == [[[0, 0, 0]], [[0, 1, 1]]]


def test_a_constant_slice_becomes_zero():
    labels = segment_stack(Fake(lambda x: torch.cat([x, x + 1], dim=1)), np.full((1, 8, 8), 7), (1.0, 1.0), card())
    assert (labels == 1).all()


@pytest.mark.parametrize("spacing", [(1.4, 1.4), (0.7, 1.6)])
@pytest.mark.parametrize("to_mm", [1.0, 2.0])
def test_resampled_and_back(spacing, to_mm):
    """A disc off the centre is predicted at its place and size on the grid of the file."""
    mask = disc(91, 77, spacing, radius_mm=20)
    fake = Fake(lambda x: torch.cat([-x, x], dim=1))
    half = card(spacing_mm=to_mm, normalisation="dataset", statistics=(450, 450))  # 0 and 900 become -1 and 1
    labels = segment_stack(fake, mask[None] * 900.0, spacing, half)[0]
    assert labels.shape == mask.shape
    height = round(91 * spacing[0] / to_mm)
    assert fake.shapes[0][2] == height + -height % 32
    assert dice_per_class(labels, mask, ["background", "x"])["x"] > 0.97
    for axis in (0, 1):
        centres = [np.nonzero(image)[axis].mean() * spacing[axis] for image in (labels, mask)]
        assert centres[0] == pytest.approx(centres[1], abs=0.1)


def test_predictions_of_flipped_slices_are_averaged():
    """Probability of class 1 from left to right 0.9 0.9 0.4 0.1; mirrored and averaged 0.5 0.65 0.65 0.5."""
    wanted = torch.zeros(32)
    wanted[14:18] = torch.tensor([0.9, 0.9, 0.4, 0.1])

    def scores(x: Tensor) -> Tensor:
        p = wanted.expand(len(x), 1, 32, 32).clamp(1e-6, 1 - 1e-6)
        return torch.cat([1 - p, p], dim=1).log()

    stack = np.random.default_rng(0).random((1, 1, 4))
    labels = [segment_stack(Fake(scores), stack, (1.0, 1.0), card(flip_tta=mirror))[0, 0] for mirror in (False, True)]
    assert labels[0].tolist() == [1, 1, 0, 0]
    assert labels[1].tolist()[1:3] == [1, 1]
    noise = np.random.default_rng(0).integers(0, 99, (2, 30, 35))
    pair = [segment_stack(Fake(threshold), noise, (1.0, 1.0), card(flip_tta=mirror)) for mirror in (False, True)]
    np.testing.assert_array_equal(*pair)  # mirrored back onto the same pixels


def blobs(x: Tensor) -> Tensor:
    """Classes by intensity, so that most of the fixture's pixels are right, and never the LV of small hearts."""
    levels = torch.tensor([-0.2, 1.8, -1.2, 3.0], device=x.device).view(1, 4, 1, 1)
    return -100 * (x - levels) ** 2


@pytest.mark.slow
def test_validation_scores_are_the_summarys(tiny_acdc, tmp_path):
    dataset = load_dataset("acdc", tiny_acdc)
    fake, own = Fake(blobs), card(classes=CLASSES)
    predictions = predict_split(fake, own, dataset, "val")
    summary = score_split(predictions, dataset, "val", tmp_path)
    assert 0.2 < summary["dice"]["mean"] < 1
    means = {name: summary[name]["mean"] for name in ("dice", "jaccard")}
    assert split_scores(predictions, dataset, "val") == pytest.approx(means, abs=1e-12)
    assert fake.training  # as training goes on after it


def test_dice_per_class():
    prediction, reference = np.array([1, 1, 2, 0, 0]), np.array([1, 0, 2, 2, 0])
    scores = dice_per_class(prediction, reference, CLASSES)
    assert scores["RV"] == pytest.approx(2 / 3)
    assert scores["MYO"] == pytest.approx(2 / 3)
    assert np.isnan(scores["LV"])


def test_labelled_volumes_are_whole(tiny_acdc):
    dataset = load_dataset("acdc", tiny_acdc)
    volumes = list(labelled_volumes(dataset, "train"))
    assert [(v.subject, v.phase, v.frame) for v in volumes] == [
        (f"patient{n:03d}", phase, frame) for n in (3, 4, 5, 6) for phase, frame in (("ED", 1), ("ES", 3))
    ]
    assert {v.image.shape for v in volumes} == {(3, 56, 64)}
    assert {v.spacing for v in volumes} == {(10.0, 1.5, 1.5)}
    areas = [(volumes[0].reference[z] == 3).sum() for z in range(3)]
    assert areas == sorted(areas, reverse=True)  # slices in order: the fixture's hearts taper


@pytest.mark.slow
def test_a_saved_unet_comes_back(tmp_path):
    torch.manual_seed(0)
    unet = build_unet("test_resnet", 4, "group")
    own = card(classes=CLASSES, norm="group", spacing_mm=1.5, flip_tta=True, statistics=(3.5, 2.25))
    save_model(unet, tmp_path, own)
    loaded, read = load_unet(tmp_path)
    assert read == own
    assert not loaded.training
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(loaded(x), unet.eval()(x))


def test_the_papers_unet():
    """Kalapos and Gyires-Toth 2022, section 4.1: 23 and 9 million parameters; exactly, at one channel."""
    with torch.device("meta"):
        unet = build_unet("resnet50", 4)
    counts = [sum(p.numel() for p in part.parameters()) for part in (unet.encoder, unet.decoder)]
    assert counts == [23_501_760, 9_012_928]
