"""The same image under two names: found by data.inspect, refused by training, left out of a pool."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.duplicates import check_duplicates, duplicate_findings, duplicates_of_other_splits, fingerprint
from data.inspect import inspect_dataset
from data.slices import Dataset, load_dataset
from data.sources import FolderSource
from pretrain.sources import target_slices
from segment.config import SegmentConfig
from segment.training import run as segment


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1])).to_filename(path)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, (20, 18, 3)).astype(np.int16)


def folder(root: Path, seeds: list[int], splits: dict[str, list[str]], labelled: int | None = None) -> Path:
    """Case k has the image of seed `seeds[k]`; the first `labelled` have label maps."""
    for k, seed in enumerate(seeds):
        write(root / f"images/case{k}.nii.gz", image(seed))
        if labelled is None or k < labelled:
            write(root / f"labels/case{k}.nii.gz", (image(seed) > 600).astype(np.uint8))
    (root / "labels").mkdir(exist_ok=True)
    if splits:
        (root / "splits.json").write_text(json.dumps(splits))
    return root


SPLITS = {"train": ["case0", "case1"], "val": ["case2"], "test": ["case3"]}


def opened(root: Path, seeds: list[int], **settings) -> Dataset:
    return load_dataset("folder", folder(root, seeds, SPLITS, **settings))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32", "float32", "float64"])
def test_equal_values_of_other_types_are_one_image(kind):
    values = np.random.default_rng(0).integers(0, 200, (5, 8, 9))
    assert fingerprint(values.astype(np.int16)) == fingerprint(values.astype(kind))


def test_the_middle_slice_identifies_a_volume():
    values = np.random.default_rng(0).integers(0, 200, (5, 8, 9))
    assert fingerprint(values) == fingerprint([values[2]])
    assert fingerprint(values) != fingerprint([values[1]])
    assert fingerprint(values) != fingerprint([values[2].reshape(9, 8)])


def test_constant_slices_identify_nobody():
    values = np.zeros((3, 4, 4))
    assert fingerprint(values) == ""
    values[2, 0, 0] = 1
    assert fingerprint(values) == fingerprint([values[2]]) != ""


@pytest.mark.parametrize("seeds", [[7, 1, 7, 3], [0, 1, 7, 7], [7, 1, 2, 7]], ids=["val", "val-test", "test"])
def test_training_refuses_twins_in_two_splits(tmp_path, seeds):
    data = opened(tmp_path, seeds)
    with pytest.raises(UserError, match=r"same image is in two splits .*images/case\d.nii.gz \(.*--allow-duplicates"):
        check_duplicates(data, test=True, allow=False)
    assert "1 images are in two splits under two names" in check_duplicates(data, test=True, allow=True)


@pytest.mark.slow
def test_twins_that_are_allowed_are_in_the_result(tmp_path):
    few = {"encoder": "test_resnet", "image_size": 32, "spacing_mm": None, "steps": 1, "batch_size": 2}
    data = FolderSource(data_root=folder(tmp_path / "data", [7, 1, 7, 3], SPLITS))
    cfg = SegmentConfig(data=data, out=tmp_path / "run", labelled_fraction=1.0, evaluate_every=1, figures=False, **few)
    with pytest.raises(UserError, match="the same image is in two splits under two names"):
        segment(cfg)
    result = segment(replace(cfg, allow_duplicates=True))
    assert "scores may be too high: 1 images are in two splits under two names" in result["warnings"]


def test_twins_in_a_test_split_that_is_not_scored_are_only_named(tmp_path, caplog):
    data = opened(tmp_path, [7, 1, 2, 7])
    assert check_duplicates(data, test=False, allow=False) is None
    assert "1 test images are in another split under another name (images/case0.nii.gz (train) and " in caplog.text


def test_twins_in_one_split_and_images_without_labels_do_not_matter(tmp_path):
    assert check_duplicates(opened(tmp_path / "a", [7, 7, 2, 3]), test=True, allow=False) is None
    twin_without_label = opened(tmp_path / "b", [0, 1, 2, 3, 2], labelled=4)
    assert check_duplicates(twin_without_label, test=True, allow=False) is None
    assert duplicates_of_other_splits(twin_without_label.images(), ["train"]) == {"case4"}  # no pool may hold it


@pytest.mark.parametrize(("splits", "count"), [(("train",), 6), (("train", "val", "test"), 15)])
def test_a_pool_leaves_out_the_duplicates_of_other_splits(tmp_path, splits, count, caplog):
    data = opened(tmp_path, [0, 1, 2, 3, 2], labelled=4)
    augmenters = (Augmenter(Augmentation(), 32),) * 2
    images = target_slices(data, splits, augmenters, torch.device("cpu"), "no")
    assert images.count == count
    assert ("1 subjects are left out" in caplog.text) == (count == 6)
    assert len(images.subjects["subjects"]["pool"].split()) == count / 3


def test_inspect_names_twins(tmp_path):
    report = inspect_dataset("folder", folder(tmp_path / "a", [7, 7, 3, 3], SPLITS))
    (warning,) = [each for each in report["warnings"] if "identical" in each["problem"]]
    (problem,) = [each for each in report["problems"] if "identical" in each["problem"]]
    assert warning["file"].endswith("images/case0.nii.gz")
    assert "of subject case0 (train) is identical to images/case1.nii.gz of subject case1 (train)" in warning["problem"]
    assert "case2 (val)" in problem["problem"]
    assert "case3 (test)" in problem["problem"]
    assert "two splits" in problem["problem"]


def test_inspect_names_a_pair_once(tmp_path):
    cine = np.stack([image(1), image(2)], axis=3)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.nii.gz", cine)
    findings = [each for each in inspect_dataset("folder", tmp_path)["warnings"] if "identical" in each["problem"]]
    assert len(findings) == 1
    assert "they share 2 images" in findings[0]["problem"]


def test_the_real_twins_are_found(real_acdc, tmp_path):
    """Patients 074 and 076 of ACDC are one patient, who trains under both names."""
    for name in ("patient074", "patient075", "patient076"):
        (tmp_path / name).symlink_to(real_acdc / name)
    data = load_dataset("acdc", tmp_path)
    (finding,) = duplicate_findings(data.images())
    assert {"patient074", "patient076"} <= {*finding[1].replace("/", " ").split()}
    assert not finding[2]
    assert check_duplicates(data, test=True, allow=False) is None
