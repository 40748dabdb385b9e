import json
import math
import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_module
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD

import engine.supervised
import segment.training
import sweep.study.config
from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.leakage import record_splits
from data.readers.label_maps import IGNORED
from data.reserved_split import with_splits
from data.samples.slices import AugmentedSlices
from data.samples.unlabelled import BOX_AREA, CELLS, STRONG, Pool, WithUnlabelled, draw_box, weak_view
from data.slices import WHOLE, Dataset, Slices, load_dataset
from data.sources import AcdcSource
from data.splits import inner_splits, labelled_subset, unlabelled_pool
from engine.devices import make_fabric
from engine.run_folder import RunFolder
from segment.__main__ import main
from segment.config import PRESETS, SegmentConfig
from segment.loss_of_sums import SampleSums, loss_of_sums
from segment.pseudo_labels import PseudoLabels, Rules, looks
from segment.training import run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tiny_acdc) -> Dataset:
    return load_dataset("acdc", tiny_acdc)


def tiny(root: Path, out: Path, **settings) -> SegmentConfig:
    few = {
        "encoder": "test_resnet",
        "image_size": 32,
        "augmentation": Augmentation(crop="fixed", foreground=1.0, jitter=0.5),
        "steps": 6,
        "batch_size": 2,
        "lr": 1e-3,
        "loss": "jaccard+ce",
        "evaluate_every": 6,
        "checkpoint_every": 3,
        "log_every": 2,
        "figures": False,
        "labelled_fraction": 0.05,  # one slice of one subject
        "unlabelled": True,
        "confidence": 0.4,
    }
    return SegmentConfig(data=AcdcSource(data_root=root), out=out, **(few | settings))


def metrics_of(cfg: SegmentConfig) -> pd.DataFrame:
    return pd.read_csv(cfg.run_folder / "metrics.csv").drop(columns="samples_per_second")


# The pool


@pytest.mark.parametrize("kind", ["all", "annotated"])
def test_the_pool_never_holds_a_validation_or_test_subject(dataset, kind):
    inner = with_splits(dataset, inner_splits(dataset))
    counts = []
    for data in (dataset, inner):
        drawn = labelled_subset(data.table, 0.2)
        pool = data.table.iloc[positions := unlabelled_pool(data.table, drawn, kind)]
        assert {*pool["subject"]} <= {subject for subject, split in data.splits.items() if split == "train"}
        assert not {*positions} & {*drawn}
        assert kind == "all" or pool["labelled"].all()
        counts.append(len(pool))
    # 24 labelled training slices without the five drawn, and six of a cine without labels; 18 and four in the inner one
    assert counts[0] == {"all": 25, "annotated": 19}[kind]
    assert counts[1] < counts[0]


def test_scans_of_any_folder_without_label_maps(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for k in range(5):
        values = np.random.default_rng(k if k < 4 else 1).integers(0, 900, (20, 18, 3)).astype(np.int16)
        for folder, array, count in (("images", values, 5), ("labels", (values > 600).astype(np.uint8), 2)):
            if k < count:
                image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8, 1]))
                image.to_filename(tmp_path / folder / f"case{k}.nii.gz")
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["case0", "case2", "case3", "case4"], "val": ["case1"]}))
    data = load_dataset("folder", tmp_path)
    positions = segment.training._unlabelled(SegmentConfig(), data, labelled_subset(data.table, 1.0))
    # case4 has the image of case1, which validates
    assert data.table["subject"].iloc[positions].value_counts().to_dict() == {"case2": 3, "case3": 3}
    weak, strong = (Augmenter(weak_view(Augmentation()), 32), Augmenter(STRONG, 32))  # resized crops
    pool = Pool(Slices(store=data.store, positions=positions), weak, strong, 1.0, np.zeros(6, bool))
    assert [tuple(part.shape) for part in pool.views(3)] == [(2, 1, 32, 32), (1, 32, 32), (32, 32), (32, 32)]


@pytest.mark.slow
def test_an_empty_pool_is_one_sentence(tiny_acdc, tmp_path, monkeypatch, capsys, no_stale_handlers):
    cfg = tiny(tiny_acdc, tmp_path / "a", labelled_fraction=1.0, unlabelled_pool="annotated")
    options = ["--unlabelled", "--unlabelled-pool", "annotated", "--labelled-fraction", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["segment", f"--data-root={tiny_acdc}", f"--out={cfg.out}", *options])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "have no label map that is not used to learn from; add scans" in " ".join(capsys.readouterr().err.split())
    assert not cfg.run_folder.exists()


def test_the_pool_is_in_the_record_of_subjects(dataset):
    drawn = labelled_subset(dataset.table, 0.05)
    pool = unlabelled_pool(dataset.table, drawn, "all")
    subjects = record_splits(dataset, drawn, pool)["subjects"]
    assert {use: len(names.split()) for use, names in subjects.items()} == {"train": 1, "val": 1, "test": 1, "pool": 4}
    assert "pool" not in record_splits(dataset, drawn)["subjects"]


# Samples


def pool_of(dataset: Dataset, *, mixing: float = 0.0, size: int = 32, has_labels: bool = True) -> Pool:
    positions = unlabelled_pool(dataset.table, labelled_subset(dataset.table, 0.05), "all")
    augmentation = Augmentation(crop="fixed", foreground=1.0, affine=0.5, jitter=1.0)
    labelled = dataset.table["labelled"].to_numpy(bool)[positions] & has_labels
    weak, strong = Augmenter(weak_view(augmentation), size), Augmenter(STRONG, size)
    return Pool(Slices(store=dataset.store, positions=positions), weak, strong, mixing, labelled)


def test_labelled_samples_are_those_of_a_run_without_unlabelled_ones(dataset):
    slices = Slices(store=dataset.store, positions=labelled_subset(dataset.table, 0.2))
    labelled = AugmentedSlices(slices, Augmenter(Augmentation(crop="fixed", foreground=1.0), 32))
    samples = WithUnlabelled(labelled, pool_of(dataset))
    for sample in ((0, 5), (3, 2**32 - 1)):
        assert all(map(torch.equal, samples[sample][:2], labelled[sample]))
    assert [tuple(part.shape) for part in samples[0, 5][2:]] == [(2, 1, 32, 32), (1, 32, 32), (32, 32), (32, 32)]


def test_all_channels_go_through_the_same_draws(dataset):
    """Two equal channels stay equal in the weak and the strong view, box included, and the teacher sees both."""

    class Twice(Slices):
        def image(self, k, part=WHOLE):
            return np.stack([super().image(k, part)] * 2)

    pool = pool_of(dataset, mixing=1.0)
    pool = replace(pool, slices=Twice(store=dataset.store, positions=pool.slices.positions))
    weak, strong, box, hidden = pool.views(5)
    assert (weak.shape, strong.shape, box.shape, hidden.shape) == ((2, 2, 32, 32), (2, 32, 32), (32, 32), (32, 32))
    assert torch.equal(weak[:, 0], weak[:, 1])
    assert torch.equal(strong[0], strong[1])
    seen: list[np.ndarray] = []

    def predict(image: np.ndarray) -> Tensor:
        seen.append(image)
        return torch.zeros(image.shape[-2:], dtype=torch.int64)

    pool.find_foreground(predict, 1, (0, 1))
    assert seen[0].ndim == 3


def test_hidden_labels_change_nothing_but_the_metric(dataset):
    with_labels, without = pool_of(dataset, mixing=0.5), pool_of(dataset, mixing=0.5, has_labels=False)
    known = 0
    for seed in range(12):
        *views, hidden = with_labels.views(seed)
        *same, unknown = without.views(seed)
        assert all(map(torch.equal, views, same))
        assert (unknown == IGNORED).all()
        known += int((hidden != IGNORED).any())
    assert 0 < known < 12  # slices of the cine have none


def test_cutmix_shows_the_partner_within_the_box(dataset):
    mixed = 0
    for seed in range(12):
        plain, pool = pool_of(dataset).views(seed), pool_of(dataset, mixing=1.0)
        weak, strong, box, _ = pool.views(seed)
        assert torch.equal(plain[0][0], weak[0])
        assert torch.equal(plain[0][0], plain[0][1])  # without CutMix the partner is the slice itself
        assert not plain[2].any()
        assert torch.equal(strong[0][~box], plain[1][0][~box])
        mixed += int(not torch.equal(strong[0][box], plain[1][0][box]))
        assert torch.equal(pool.views(seed)[1], strong)
    assert mixed >= 11


def test_boxes_lie_within_the_view():
    rng = np.random.default_rng(0)
    boxes = [draw_box(rng, 50) for _ in range(300)]
    assert all(0 <= side.start < side.stop <= 50 for box in boxes for side in box)
    areas = np.array([math.prod(side.stop - side.start for side in box) for box in boxes]) / 50**2
    assert areas.max() < BOX_AREA[1] + 0.02
    assert areas.min() > BOX_AREA[0] - 0.01
    assert areas.mean() == pytest.approx(np.mean(BOX_AREA), abs=0.03)


def test_crops_are_drawn_where_the_teacher_saw_foreground(dataset):
    """The lower right corner of every slice, once it was seen there; one frame speaks for all of a cine."""
    pool = pool_of(dataset, size=32)
    asked: list[np.ndarray] = []

    def predict(image: np.ndarray) -> Tensor:
        asked.append(image)
        classes = torch.zeros(image.shape, dtype=torch.int64)
        classes[-2:, -2:] = 3
        return classes

    assert not pool.foreground.any()
    before = [pool.views(seed)[0] for seed in range(4)]
    found = pool.find_foreground(predict, 100, (0, 1))
    # four subjects with three slices each, in frames 1 and 3 and for one of them in two more of a cine
    assert len(asked) == len(found) == len(np.unique(pool.places)) == 12
    assert np.unpackbits(found, axis=1).reshape(-1, CELLS, CELLS)[:, -1, -1].all()
    assert len(pool.slices) > 12
    assert pool.find_foreground(predict, 3, (0, 1)).any(axis=1).sum() == 3
    pool.foreground[:] = found
    after = [pool.views(seed)[0] for seed in range(4)]
    assert not all(map(torch.equal, before, after))
    still = replace(pool, weak=Augmenter(Augmentation(crop="fixed", foreground=1.0, flip=0.0, jitter=0.0), 32))
    still.foreground[:] = found
    image = still.slices.image(0)  # 56 x 64 pixels, the last cell from row 54 and column 62 on
    windows = [image[top : top + 32, left : left + 32] for top in (23, 24) for left in (31, 32)]
    for seed in range(5):
        assert any(np.array_equal(still._weak(0, seed)[0], window) for window in windows)


# The loss


class Scores(nn.Module):
    """Logits that are the image's channel times the classes' numbers, and a parameter to train."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([0.0, 1.0, -1.0]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


def pseudo_labels(**rules) -> PseudoLabels:
    pool = object.__new__(Pool)
    object.__setattr__(pool, "weak", Augmenter(Augmentation(crop="fixed"), 2))
    pool.__dict__["foreground"] = np.zeros((1, CELLS * CELLS // 8), np.uint8)
    defaults = {"classes": 3, "loss": loss_of_sums("jaccard+ce"), "confidence": 0.95, "weight": 2.0, "ramp": (2, 6)}
    defaults |= {"looks": (), "slices_per_look": 1, "seed": 0}
    return PseudoLabels(Scores(), pool, Rules(**(defaults | rules)), make_fabric("cpu"))


def test_foreground_of_an_earlier_look_is_kept_by_a_resume_at_a_look():
    """Six places, two of which the teacher looks at each time: an interrupted run knows the same four."""

    def begun() -> PseudoLabels:
        network = pseudo_labels(looks=(2, 4), slices_per_look=2)
        foreground = np.zeros((6, CELLS * CELLS // 8), np.uint8)

        def find(predict, most, seed):
            found = network.pool.foreground.copy()
            found[seed[1] : seed[1] + most] = 255  # other places at each look
            return found

        network.pool.__dict__.update(foreground=foreground, find_foreground=find)
        network.foreground = torch.from_numpy(foreground.copy())
        return network

    whole, resumed = begun(), begun()
    whole.renew(2)
    resumed.load_state_dict(whole.state_dict())
    for network in (whole, resumed):
        network.renew(4)
        assert network.pool.foreground[:, 0].tolist() == [0, 0, 255, 255, 255, 255]
        assert network.foreground.equal(torch.from_numpy(network.pool.foreground))


def batch_by_hand() -> tuple[Tensor, ...]:
    """One labelled sample and one unlabelled one of 2 x 2 pixels; the teacher is sure from 3 on (e^3 / (e^3 + 1 + e^-3)
    = 0.95033), and the right column of the strong view is the partner's."""
    weak = torch.tensor([[[4.0, -4.0], [2.9, 3.0]], [[4.0, 4.0], [4.0, 0.0]]])
    strong = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    box = torch.tensor([[False, True], [False, True]])
    hidden = torch.tensor([[1, 1], [1, 255]], dtype=torch.uint8)
    labelled = torch.tensor([[0.5, -2.0], [0.0, 3.0]]), torch.tensor([[1, 2], [0, 1]])
    return labelled[0][None, None], labelled[1][None], weak[None, :, None], strong[None, None], box[None], hidden[None]


def test_pseudo_labels_by_hand():
    model, batch = pseudo_labels(), batch_by_hand()
    pseudo = model.pseudo_labels(batch[2])
    assert pseudo.tolist() == [[[[1, 2], [255, 1]], [[1, 1], [1, 255]]]]
    target = torch.tensor([[[1, 1], [255, 255]]])  # the partner's in the right column
    sums = model(batch)
    assert sums.shape == (1, 3, 4, 3)
    for part, (image, label) in enumerate(((batch[0], batch[1]), (batch[3], target))):
        torch.testing.assert_close(sums[:, part], SampleSums()(model.network(image), label))
    labelled, unlabelled = (loss_of_sums("jaccard+ce")(sums[:, k]) for k in (0, 1))
    for step, weight in ((0, 0.0), (1, 0.0), (2, 2 * math.exp(-5 * 0.75**2)), (5, 2.0), (9, 2.0)):
        model.steps.fill_(step)
        expected = labelled + weight * 2 / 4 * unlabelled  # two of four pixels have a pseudo-label
        torch.testing.assert_close(model.batch_loss(sums), expected)
    model.move_average(0.5)
    assert model.steps == 10
    assert model.average.training is False


def test_metrics_by_hand():
    """Of two targets, both 1, the network predicts one. Sure pseudo-labels with a known label: 1 for 1 and 2 for 1, so
    Dice of class 1 is 2/3 and of class 2 is 0."""
    model, batch = pseudo_labels(), batch_by_hand()
    for _ in range(2):
        model.batch_loss(model(batch))
    expected = {"confident_share": 2 / 4, "teacher_agreement": 1 / 2, "pseudo_label_dice": 1 / 3}
    assert model.metrics() == pytest.approx(expected)
    model.batch_loss(model((*batch[:5], torch.full_like(batch[5], IGNORED))))
    assert [*model.metrics()] == ["confident_share", "teacher_agreement"]  # no label to compare with
    unsure = pseudo_labels(confidence=1.0)
    unsure.batch_loss(unsure(batch)).backward()
    assert unsure.metrics() == {"confident_share": 0}
    assert unsure.network.factors.grad.isfinite().all()


def test_looks_and_settings():
    assert looks(600) == (60, 120, 240, 480)
    assert looks(6) == (1, 2, 5)
    assert looks(1) == (1,)
    decays = [replace(PRESETS[name](), unlabelled=on).decay_of_average for name in ("demo", "default") for on in (0, 1)]
    assert decays == [0, 0.99, 0.99, 0.99]
    for name, value in (("confidence", 1.5), ("cutmix", -0.1)):
        with pytest.raises(UserError, match=rf"--{name} {value}: must lie in \[0, 1\]"):
            SegmentConfig(**{name: value})
    with pytest.raises(UserError, match=r"--unlabelled-ramp 0\.5 0\.2: must rise and lie in \[0, 1\]"):
        SegmentConfig(unlabelled_ramp=(0.5, 0.2))
    with pytest.raises(UserError, match=r"--unlabelled-weight -1: must be 0 or more"):
        SegmentConfig(unlabelled_weight=-1)


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        ("segment", "--confidence 0.9", "--confidence 0.9 is about unlabelled slices, .*: pass --unlabelled"),
        (
            "sweep",
            "--segment.unlabelled-ramp 0.1 0.2",
            r"--segment\.unlabelled-ramp 0.1 0.2 is about .*: add a pipeline",
        ),
    ],
)
def test_settings_that_nothing_would_use_are_refused(command, flags, sentence, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_module(command, flags.split(), monkeypatch)
    assert stop.value.code == 2
    assert re.search(sentence, " ".join(capsys.readouterr().err.split()))


def test_a_study_with_and_without_unlabelled_slices_takes_their_settings():
    study = sweep.study.config.demo()
    settings = replace(study.segment, confidence=0.9)
    assert replace(study, segment=settings, pipelines=("random", "random+unlabelled")).segment.confidence == 0.9


# Whole runs


class Stop(Exception):
    """Raised in the middle of training."""


@pytest.mark.slow
def test_resumed_bit_for_bit_with_worker_processes(tiny_acdc, tmp_path, monkeypatch):
    """With one labelled slice; stopped between two looks of the teacher, in other processes than the whole run."""
    whole, stopped = (tiny(tiny_acdc, tmp_path / name, workers=n) for name, n in (("a", 0), ("b", 1)))
    result = run(whole)
    record = RunFolder.record

    def stop(self: RunFolder, row: dict[str, float]) -> None:
        record(self, row)
        if row["step"] == 4:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", stop)
        with pytest.raises(Stop):
            run(stopped)
    run(replace(stopped, resume=True))
    weights = [(cfg.run_folder / "model.safetensors").read_bytes() for cfg in (whole, stopped)]
    assert weights[0] == weights[1]
    curves = [
        pd.read_csv(cfg.run_folder / "metrics.csv").drop(columns="samples_per_second") for cfg in (whole, stopped)
    ]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert curves[0]["step"].tolist() == [2, 4, 6]
    assert curves[0][["confident_share", "teacher_agreement", "pseudo_label_dice"]].notna().all(axis=None)
    state = torch.load(stopped.run_folder / "checkpoint.pt", weights_only=True)["model"]
    assert state["foreground"].any()
    assert state["steps"] == 6
    pool = {"pool": "all", "slices": 29, "subjects": 4}
    assert result["unlabelled"] == json.loads((whole.run_folder / "model.json").read_text())["unlabelled"] == pool
    assert len(result["subjects"]["subjects"]["pool"].split()) == 4


@pytest.mark.slow
def test_accumulated_equals_one_large_batch(tiny_acdc, tmp_path, monkeypatch, in_float64):
    """3 labelled and 3 unlabelled samples at once, and as 2 and 1 of each, without batch statistics."""
    predict = segment.training.predict_split  # of float32 images
    monkeypatch.setattr(segment.training, "predict_split", lambda unet, *a: predict(deepcopy(unet).float(), *a))
    # Adam would scale the rounding errors of gradients that are zero up to its learning rate.
    monkeypatch.setattr(engine.supervised, "adamw", lambda network, lr, **_: SGD(network.parameters(), lr=lr))
    settings = {"batch_size": 3, "norm": "group", "steps": 2, "lr": 0.1, "evaluate_every": 2, "log_every": 1}
    settings |= {"augmentation": Augmentation(crop="fixed", jitter=0.5), "cutmix": 1.0}
    configs = [tiny(tiny_acdc, tmp_path / str(n), micro_batch_size=n, **settings) for n in (None, 2)]
    for cfg in configs:
        run(cfg)
    expected, accumulated = (load_file(cfg.run_folder / "model.safetensors") for cfg in configs)
    for key, value in expected.items():
        torch.testing.assert_close(accumulated[key], value, rtol=0, atol=1e-8, msg=key)
    curves = [metrics_of(cfg) for cfg in configs]
    np.testing.assert_allclose(*curves, atol=1e-6)  # noted in six digits
    assert curves[0]["confident_share"].gt(0).all()
