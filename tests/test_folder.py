import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.readers.discovery import discover
from data.readers.folder import index_folder, read_classes
from data.slices import load_dataset
from data.sources import FolderSource, open_slices, save_requested_splits


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))


def nifti(path: Path, seed: int = 0, classes: int = 0) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng.integers(0, classes or 900, (6, 5, 3)).astype(np.uint8 if classes else np.int16)
    nib.Nifti1Image(values, np.eye(4)).to_filename(path)


def nnunet(root: Path, cases: int = 10, labels: dict | None = None) -> None:
    for n in range(cases):
        nifti(root / f"imagesTr/case{n:02d}_0000.nii.gz", n)
        nifti(root / f"labelsTr/case{n:02d}.nii.gz", n, classes=3)
    if labels is not None:
        (root / "dataset.json").write_text(json.dumps({"labels": labels}))


def of(table, column: str) -> dict:
    return dict(zip(table["subject"], table[column], strict=True))


def test_nnunet(tmp_path, caplog):
    nnunet(tmp_path / "set", labels={"background": 0, "liver": 1, "tumour": 2})
    for n in range(2):
        nifti(tmp_path / f"set/imagesTr/case{n:02d}_0001.nii.gz")
    nifti(tmp_path / "set/imagesTr/bare_0000.nii.gz")
    nifti(tmp_path / "set/imagesTs/later_0000.nii.gz")
    with caplog.at_level(logging.INFO, "fewslice"):
        dataset = load_dataset("folder", tmp_path / "set")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'set'}: only channel 0 (_0000) is used, 2 files of other channels not; --channels chooses another"
    ]
    assert dataset.classes == ("background", "liver", "tumour")
    splits = dataset.splits
    assert (splits["bare"], splits["later"]) == ("train", "test")
    counts = [sum(splits[f"case{n:02d}"] == split for n in range(10)) for split in ("train", "val", "test")]
    assert counts == [7, 1, 2]
    assert len(dataset.table) == 12 * 3
    assert len(dataset.positions("test", labelled=False)) == 3
    row = dataset.table[dataset.table["subject"] == "case03"].iloc[0]
    assert row["file"] == "imagesTr/case03_0000.nii.gz"
    assert row["label_file"] == "labelsTr/case03.nii.gz"


def test_labelled_test_images_leave_train_and_val(tmp_path):
    nnunet(tmp_path)
    nifti(tmp_path / "imagesTs/new_0000.nii.gz")
    nifti(tmp_path / "labelsTs/new.nii.gz", classes=3)
    table, classes = index_folder(tmp_path)
    splits = of(table, "split")
    assert [name for name in splits if splits[name] == "test"] == ["new"]
    assert of(table, "labelled")["new"]
    assert classes == ()


def test_decathlon_names_without_channels(tmp_path):
    for n in range(3):
        nifti(tmp_path / f"imagesTr/la_{n:04d}.nii.gz")
        nifti(tmp_path / f"labelsTr/la_{n:04d}.nii.gz", classes=2)
    assert of(index_folder(tmp_path)[0], "labelled") == {f"la_{n:04d}": True for n in range(3)}


def test_png_pairs_by_subject(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(8):
        for folder in ("images", "labels"):
            path = tmp_path / "set" / folder / f"p{n // 2}" / f"s{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, 256, (7, 5)) if folder == "images" else rng.integers(0, 2, (7, 5)) * 255
            Image.fromarray(values.astype(np.uint8)).save(path)
    dataset = load_dataset("folder", tmp_path / "set", subject_pattern=r"(p\d+)/")
    assert sorted(dataset.splits) == ["p0", "p1", "p2", "p3"]
    assert sorted(set(dataset.splits.values())) == ["test", "train", "val"]
    assert dataset.classes == ("background", "1")  # masks of 0 and 255
    assert dataset.store.label(0).max() == 1
    assert sorted(load_dataset("folder", tmp_path / "set").splits) == ["p0", "p1", "p2", "p3"]


def test_unlabelled_folder_of_any_depth(tmp_path):
    nifti(tmp_path / "set/a/b/scan.nii.gz")
    nifti(tmp_path / "set/c/scan.nii")
    nifti(tmp_path / "set/c/._scan.nii")  # macOS leaves such files: no images
    dataset = load_dataset("folder", tmp_path / "set")
    assert dataset.splits == {"a/b/scan": "train", "c/scan": "train"}
    assert dataset.classes == ("background",)
    assert len(dataset.positions("train", labelled=True)) == 0


def test_splits_drawn_and_from_a_file(tmp_path, caplog):
    nnunet(tmp_path / "set")
    table, _ = index_folder(tmp_path / "set")
    assert of(table, "split") == of(index_folder(tmp_path / "set")[0], "split")
    assert not (tmp_path / "set/splits.json").exists()

    chosen = tmp_path / "mine.json"
    with pytest.raises(UserError, match=r"mine\.json does not exist"):
        index_folder(tmp_path / "set", splits_file=chosen)
    source = FolderSource(data_root=tmp_path / "set", save_splits=chosen)
    save_requested_splits(source, open_slices(source).splits)
    saved, _ = index_folder(tmp_path / "set", splits_file=chosen)
    assert of(saved, "split") == of(table, "split")
    splits = json.loads(chosen.read_text())
    chosen.write_text(json.dumps(splits | {"train": splits["test"], "test": splits["train"]}))
    again, _ = index_folder(tmp_path / "set", splits_file=chosen)
    assert of(again, "split") != of(table, "split")

    chosen.rename(tmp_path / "set/splits.json")
    with caplog.at_level(logging.INFO, "fewslice"):
        table, _ = index_folder(tmp_path / "set")
    assert of(table, "split") == of(again, "split")
    assert "split by subject read from" in caplog.text
    (tmp_path / "set/splits.json").write_text(json.dumps({"train": ["case00"]}))
    with pytest.raises(UserError, match=r"misses 9 labelled subjects \(case01, case02.* and 4 more"):
        index_folder(tmp_path / "set")


def test_unlabelled_images_follow_their_subject(tmp_path):
    nnunet(tmp_path, cases=6)
    for n in range(6):
        nifti(tmp_path / f"imagesTr/case{n:02d}late_0000.nii.gz")
    table, _ = index_folder(tmp_path, r"case\d+")
    assert (table.groupby("subject")["split"].nunique() == 1).all()
    assert len(table) == 12 * 3


def test_subject_in_two_splits_is_refused(tmp_path):
    nnunet(tmp_path / "set", cases=4)
    nifti(tmp_path / "set/imagesTs/case00_0000.nii.gz")
    splits = {"train": ["case00", "case01", "case02"], "val": ["case03"]}
    with pytest.raises(UserError, match="subject case00 is in two splits"):
        load_dataset("folder", tmp_path / "set")
    (tmp_path / "set/splits.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match="has subject case00 in train, and its folder says test"):
        load_dataset("folder", tmp_path / "set")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="absent is not a folder"):
        index_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no \.nii"):
        index_folder(tmp_path)
    nnunet(tmp_path, cases=2)
    with pytest.raises(UserError, match=r"'\(p' is no regular expression"):
        index_folder(tmp_path, "(p")
    with pytest.raises(UserError, match=r"'p\\\\d' finds no subject in 'case00'"):
        index_folder(tmp_path, r"p\d")
    (tmp_path / "labelsTr/lost.nii.gz").write_bytes(b"")
    assert discover(tmp_path).unpaired == [tmp_path / "labelsTr/lost.nii.gz"]


def test_gap_in_the_labels_found(tmp_path):
    nifti(tmp_path / "set/images/a.nii.gz")
    nib.Nifti1Image(np.full((6, 5, 3), 4, np.uint8), np.eye(4)).to_filename(tmp_path / "label.nii.gz")
    (tmp_path / "set/labels").mkdir()
    (tmp_path / "label.nii.gz").rename(tmp_path / "set/labels/a.nii.gz")
    with pytest.raises(UserError, match=r"the values \[0, 4\], which leave a gap"):
        load_dataset("folder", tmp_path / "set")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"0": "background", "2": "LV", "1": "RV"}, ("background", "RV", "LV")),
        ({"background": 0, "LV": 2, "RV": 1}, ("background", "RV", "LV")),
        ({"background": "0", "RV": "1"}, ("background", "RV")),
        ({"background": 0, "whole": [1, 2]}, ()),
        ({}, ()),
    ],
)
def test_classes_of_both_nnunet_versions(tmp_path, labels, classes):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert read_classes(tmp_path / "dataset.json") == classes


def test_wrong_dataset_json(tmp_path):
    path = tmp_path / "dataset.json"
    assert read_classes(path) == ()
    path.write_text(json.dumps({"labels": {"background": 0, "liver": 2}}))
    with pytest.raises(UserError, match=r"names the label values \[0, 2\]"):
        read_classes(path)
    for text in ("{", "[]", '{"labels": {"background": "none"}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"dataset\.json (is not JSON|cannot be parsed)"):
            read_classes(path)
