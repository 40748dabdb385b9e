"""Ensembles of U-Nets: mean probabilities, entropy and agreement."""

import json
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from core.errors import UserError
from data.readers.file_search import search_files
from data.readers.images import read_volume
from data.sources import AcdcSource
from engine.model_file import save_model
from segment.agreement import CheckAgreement, relation
from segment.agreement import run as check
from segment.ensemble import Agreement, Ensemble, load_ensemble, mean_agreement
from segment.inference import largest_component, segment_stack
from segment.map_places import refuse_image_folders
from segment.model import ModelCard, build_unet
from segment.predict import Predict, run

CLASSES = ["background", "a", "b"]


def card(**settings) -> ModelCard:
    about = {"encoder": "test_resnet", "norm": "batch", "classes": CLASSES, "dataset": "", "init": "random"}
    return ModelCard(**(about | {"normalisation": "image", "statistics": (0, 1), "spacing_mm": 1.0} | settings))


class Constant(nn.Module):
    """The same class probabilities everywhere."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log().reshape(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1, *x.shape[2:])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two U-Nets of different random weights."""
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp(f"run{seed}"))
        torch.manual_seed(seed)
        save_model(build_unet("test_resnet", 3), folders[-1], card())
    return folders


@pytest.fixture
def scan(tmp_path) -> Path:
    values = np.random.default_rng(0).normal(300, 100, (40, 36, 3)).astype("int16")
    image = nib.Nifti1Image(values, np.diag([1.5, 1.5, 10, 1]))
    (tmp_path / "in").mkdir()
    image.to_filename(tmp_path / "in/scan.nii.gz")
    return tmp_path / "in/scan.nii.gz"


def test_mean_probabilities_and_entropy_by_hand():
    members = [(Constant(0.6, 0.4, 1e-6), card()), (Constant(0.1, 0.9, 1e-6), card())]
    stack = np.random.default_rng(0).normal(size=(2, 12, 10))
    prediction = Ensemble(members=members).segment(stack, (1.0, 1.0), entropy=True)
    assert (prediction.labels == 1).all()  # 0.35 and 0.65
    expected = -(0.35 * math.log(0.35) + 0.65 * math.log(0.65))
    np.testing.assert_allclose(prediction.entropy, expected, atol=1e-4)
    assert prediction.entropy.dtype == np.float32
    assert prediction.agreement["a"] == 0  # one member predicts it everywhere, the other nowhere
    assert math.isnan(prediction.agreement["b"])
    assert mean_agreement(prediction.agreement) == 0
    alone = Ensemble(members=members[:1]).segment(stack, (1.0, 1.0))
    assert (alone.labels == 0).all()
    assert alone.entropy is None
    assert alone.agreement == {}
    assert math.isnan(mean_agreement(alone.agreement))


def test_agreement_is_the_mean_dice_of_the_pairs():
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 3, (4, 6, 5)).astype(np.uint8) for _ in range(3)]
    agreement = Agreement(classes=CLASSES, members=3)
    for part in (slice(0, 1), slice(1, 4)):  # part by part, as in prediction
        agreement.add([each[part] for each in maps])
    for label, name in ((1, "a"), (2, "b")):
        masks = [each == label for each in maps]
        pairs = [(0, 1), (0, 2), (1, 2)]
        dice = [2 * (masks[i] & masks[j]).sum() / (masks[i].sum() + masks[j].sum()) for i, j in pairs]
        assert agreement.dice()[name] == pytest.approx(np.mean(dice))


def test_one_network_predicts_as_alone(runs):
    ensemble = load_ensemble(runs[:1], torch.device("cpu"))
    stack = np.random.default_rng(0).normal(size=(3, 40, 30)).astype(np.float32)
    unet, own = ensemble.members[0]
    np.testing.assert_array_equal(ensemble.segment(stack, (1, 1)).labels, segment_stack(unet, stack, (1, 1), own))
    assert load_ensemble(runs[:1], torch.device("cpu"), "yes").card.flip_tta
    assert not load_ensemble(runs[:1], torch.device("cpu"), "no").card.flip_tta


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"classes": ["background", "b", "a"]}, "classes"),
        ({"spacing_mm": 2.0}, "pixel size"),
        ({"normalisation": "dataset"}, "normalisation"),
        ({"channels": 1}, "channel"),
        ({"keep_largest_component": True}, "rule for connected components"),
    ],
)
def test_runs_that_cannot_be_combined(runs, tmp_path, changes, what):
    shutil.copytree(runs[1], tmp_path / "other")
    content = json.loads((tmp_path / "other/model.json").read_text())
    del content["sha256"]
    (tmp_path / "other/model.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=f"cannot be combined: they differ in .*{what}"):
        load_ensemble([runs[0], tmp_path / "other"], torch.device("cpu"))


def test_a_run_named_twice(runs):
    with pytest.raises(UserError, match="a run is named twice"):
        load_ensemble([runs[0], runs[0]], torch.device("cpu"))


@pytest.mark.slow
def test_predictions_of_an_ensemble(runs, scan, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (33, 41), dtype=np.uint8)).save(scan.parent / "b.png")
    extra = {"uncertainty": tmp_path / "maps", "contact_sheet": tmp_path / "sheet.png"}
    table = run(Predict(run=tuple(runs), input=scan.parent, output=tmp_path / "out", device="cpu", **extra))
    saved = pd.read_csv(tmp_path / "out/volumes.csv")
    columns = ["predicted_dice", "predicted_dice_a", "predicted_dice_b", "mean_entropy_nats"]
    assert list(saved)[-4:] == columns
    np.testing.assert_allclose(saved[columns], table[columns], rtol=1e-5)
    assert table["predicted_dice"].between(0, 1).all()
    entropy = nib.load(tmp_path / "maps/scan.nii.gz")
    assert entropy.get_data_dtype() == np.float32
    np.testing.assert_array_equal(entropy.affine, nib.load(scan).affine)
    values = np.asarray(entropy.dataobj)
    assert values.shape == (40, 36, 3)
    assert 0 <= values.min() < values.max() <= math.log(3) + 1e-5
    of_scan = table[table["file"].str.endswith("scan.nii.gz")]["mean_entropy_nats"].item()
    assert of_scan == pytest.approx(values.mean(), rel=1e-5)
    page = np.asarray(Image.open(tmp_path / "maps/b.png.tif"))
    assert page.shape == (33, 41)
    assert page.dtype == np.float32
    assert Image.open(tmp_path / "sheet.png").size[1] > 100
    # the maps lie on the voxels that they belong to: the least certain voxel of the first slice by hand
    ensemble, volume = load_ensemble(runs, torch.device("cpu")), read_volume(scan)
    again = ensemble.segment(volume.stack[0], volume.shape.slice_spacing[:2], entropy=True)
    np.testing.assert_allclose(np.moveaxis(values, (0, 1, 2), (2, 1, 0)), again.entropy, rtol=1e-5)
    run(Predict(run=tuple(runs), input=scan.parent, output=tmp_path / "out", device="cpu", **extra))  # again
    # later commands count neither maps nor sheets as images
    listed = pd.read_csv(tmp_path / "maps/uncertainty.csv")
    assert list(listed) == ["file", "subject", "phase", "frame", "mean_entropy_nats"]
    assert listed["mean_entropy_nats"].tolist() == saved["mean_entropy_nats"].tolist()
    search = search_files(tmp_path)
    assert {file.parent.name for file in search.files} == {"in", tmp_path.name}
    assert {folder.name for folder in search.outputs} == {"maps", "out"}
    refuse_image_folders(tmp_path / "maps", tmp_path / "another.png")


def test_places_of_maps_and_sheets(runs, scan, tmp_path):
    out = tmp_path / "out"
    for extra in ({"uncertainty": out / "maps"}, {"contact_sheet": scan.parent / "sheet.png"}, {"uncertainty": out}):
        with pytest.raises(UserError, match="would be taken for an image or a mask: choose another place"):
            Predict(run=tuple(runs), input=scan.parent, output=out, **extra)
    with pytest.raises(UserError, match=r"must end in \.png"):
        Predict(run=tuple(runs), input=scan, output=out, contact_sheet=tmp_path / "sheet.jpg")
    (tmp_path / "sheet.png").write_text("someone's")
    with pytest.raises(UserError, match=r"sheet\.png exists and was not written by this command"):
        run(Predict(run=runs[0], input=scan, output=out, device="cpu", contact_sheet=tmp_path / "sheet.png"))
    assert (tmp_path / "sheet.png").read_text() == "someone's"


def test_maps_and_sheets_do_not_lie_among_images(runs, scan, tmp_path):
    """Of a third folder, neither input nor output: the next command would count them as images of that data set."""
    others = tmp_path / "set/images"
    others.mkdir(parents=True)
    shutil.copy(scan, others / "p1.nii.gz")
    call = {"run": runs[0], "input": scan, "output": tmp_path / "out", "device": "cpu"}
    for extra, where in (
        ({"uncertainty": others}, r"images, which holds images \(p1\.nii\.gz\)"),
        ({"uncertainty": tmp_path / "set"}, r"set, which holds images \(images/p1\.nii\.gz\)"),
        ({"contact_sheet": others / "sheet.png"}, r"images, which holds images \(p1\.nii\.gz\)"),
    ):
        with pytest.raises(UserError, match=where):
            run(Predict(**call, **extra))
    assert [file.name for file in tmp_path.rglob("set/images/*")] == ["p1.nii.gz"]
    assert not (tmp_path / "out").exists()
    (others / "uncertainty.csv").write_text("not,ours\n")
    with pytest.raises(UserError, match="choose a folder without images"):
        refuse_image_folders(others, None)


def test_the_largest_component_is_counted_slice_by_slice():
    labels = np.zeros((3, 6, 6), np.uint8)
    labels[0, :2, :2], labels[:, 4, 3:6] = 1, 2
    kept = largest_component(labels)
    assert kept.dtype == np.uint8
    assert kept.sum() == 2 * 9
    assert kept[0, :2, :2].sum() == 0


def test_the_component_of_all_classes_outweighs_a_larger_patch_of_one():
    """A heart of 2, 3 and 4 voxels of its classes, (3 * 4 * 5) ** (1 / 3) = 3.9, against 50 voxels of one: 3.7."""
    labels = np.zeros((1, 12, 12), np.uint8)
    labels[0, 0, :9] = (1, 1, 2, 2, 2, 3, 3, 3, 3)
    labels[0, 2:7, :10] = 1
    heart = np.where(np.arange(12)[:, None] == 0, labels, 0)
    np.testing.assert_array_equal(largest_component(labels), heart)
    labels[0, 7] = 1  # 62 voxels: 63 ** (1 / 3) = 4.0
    np.testing.assert_array_equal(largest_component(labels), labels - heart)


def test_relation_by_hand():
    values = relation(pd.Series([0.9, 0.8, 0.5, np.nan]), pd.Series([0.8, 0.9, 0.4, 0.7]))
    assert values["volumes"] == 3
    assert values["mean_error"] == pytest.approx((0.1 - 0.1 + 0.1) / 3)
    assert values["mean_absolute_error"] == pytest.approx(0.1)
    assert values["spearman"] == pytest.approx(0.5)
    assert values["pearson"] == pytest.approx(np.corrcoef([0.9, 0.8, 0.5], [0.8, 0.9, 0.4])[0, 1])
    few = relation(pd.Series([0.9, np.nan]), pd.Series([0.8, 0.9]))
    assert few["volumes"] == 1
    assert few["pearson"] is None
    assert relation(pd.Series([0.5] * 4), pd.Series([0.1, 0.2, 0.3, 0.4]))["spearman"] is None


def test_a_check_takes_several_runs(runs):
    with pytest.raises(UserError, match="takes two runs or more"):
        check(CheckAgreement(run=(runs[0],)))


@pytest.mark.slow
def test_predicted_dice_is_checked_on_the_validation_split(tiny_acdc, tmp_path, capsys):
    from segment.config import SegmentConfig
    from segment.training import run as train

    few = {"encoder": "test_resnet", "image_size": 32, "steps": 2, "batch_size": 4, "device": "cpu", "figures": False}
    folders = tuple(tmp_path / f"run{seed}" for seed in (0, 1))
    for seed, folder in enumerate(folders):
        train(SegmentConfig(data=AcdcSource(data_root=tiny_acdc), out=folder, seed=seed, **few))
    result = check(CheckAgreement(run=folders, out=tmp_path / "check", device="cpu"))
    assert (result["volumes"], result["patients"]) == (2, 1)
    rows = pd.read_csv(tmp_path / "check/agreement.csv")
    assert rows["subject"].unique().tolist() == ["patient002"]
    mean = result["classes"]["mean"]
    assert mean["pearson"] is None  # of two volumes
    errors = (rows["predicted_dice_mean"] - rows["dice_mean"]).dropna()
    assert mean["mean_error"] == pytest.approx(errors.mean(), abs=1e-5)
    assert "predicted and true Dice of 2 validation volumes of 1 patient" in capsys.readouterr().out
    train(SegmentConfig(data=AcdcSource(data_root=tiny_acdc), out=tmp_path / "inner", inner_split=True, **few))
    with pytest.raises(UserError, match="different validation subjects"):
        check(CheckAgreement(run=(folders[0], tmp_path / "inner"), device="cpu"))
