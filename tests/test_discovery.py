"""Which files are images, which are their label maps: the same for every command."""

import json
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.inspect import inspect_dataset
from data.readers.discovery import discover
from data.readers.exams import load_exams
from data.readers.folder import index_folder
from data.readers.natural import FolderImages
from data.readers.roles import folder_role, names_label_map
from data.slices import load_dataset
from data.store import open_store
from segment.evaluate import Evaluate, match_masks
from segment.evaluate import run as evaluate


def write(root: Path, *names: str, shape: tuple[int, ...] = (6, 5, 3)) -> None:
    """Write small files: of label maps by their names, else of images."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name))
        values = rng.integers(0, 900, shape).astype(np.int16)
        if path.name.endswith(".png"):
            Image.fromarray((values[..., 0] % 2).astype(np.uint8)).save(path)
        else:
            nib.Nifti1Image(values, np.eye(4)).to_filename(path)


def pairs(root: Path, **options) -> dict[str, str]:
    """{image: label map} below the root."""
    images = discover(root, **options).images
    return {
        image.file.relative_to(root).as_posix(): image.label.relative_to(root).as_posix() if image.label else ""
        for image in images
    }


LAYOUTS = {
    "masks": {"images/a.png": "masks/a.png"},
    "singular, other case": {"Image/a.png": "Mask/a.png"},
    "segmentations": {"imgs/a.nii.gz": "Segmentations/a.nii.gz"},
    "ground truth": {"images/a.png": "Ground_Truth/a.png"},
    "annotations": {"images/a.png": "annotations/a.png"},
    "contours": {"images/a.png": "contours/a.png"},
    "regions of interest": {"a.nii.gz": "a_roi.nii.gz", "b.nii.gz": "b-lesion.nii.gz", "roi_3.nii.gz": ""},
    "targets without images are images": {"targets/a.png": "", "b_roi.png": ""},
    "masks of a BIDS data set": {
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii": "derivatives/m/sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii": "derivatives/m/sub-01/ses-2/anat/sub-01_ses-2_space-orig_dseg.nii",
        "sub-02/anat/sub-02_T1w.nii": "",
        "sub-02/anat/sub-02_FLAIR.nii": "derivatives/m/sub-02/anat/sub-02_FLAIR_label-lesion_mask.nii",
    },
    "gt": {"img/a.png": "gt/a.png"},
    "splits outside": {"train/images/a.png": "train/labels/a.png", "test/images/a.png": "test/labels/a.png"},
    "splits inside": {"images/train/a.png": "labels/train/a.png", "images/val/b.png": "labels/val/b.png"},
    "splits in the names": {"train_images/a.png": "train_masks/a.png", "test_images/b.png": "test_masks/b.png"},
    "numbered words": {"img/img0001.nii.gz": "label/label0001.nii.gz"},
    "patients": {"p1/imaging.nii.gz": "p1/segmentation.nii.gz", "p2/imaging.nii.gz": "p2/segmentation.nii.gz"},
    "side by side": {"a.nii.gz": "a_seg.nii.gz", "b.nii.gz": "b-label.nii.gz", "c.nii": "c_gt.nii"},
    "prefix": {"volume-0.nii": "segmentation-0.nii", "volume-1.nii": "segmentation-1.nii"},
    "label beside labels": {"images/a.png": "labels/a_mask.png"},
    "one modality of BraTS": {"BraTS_001/BraTS_001_flair.nii.gz": "BraTS_001/BraTS_001_seg.nii.gz"},
    "folder of masks, by its files": {"ISIC_Training_Input/I1.png": "ISIC_Training_GroundTruth/I1_segmentation.png"},
    "doubtful folder": {"lung_ct/a.nii.gz": "lung_segmentation/a.nii.gz"},
    "two tasks": {
        "Task01/imagesTr/c0.nii.gz": "Task01/labelsTr/c0.nii.gz",
        "Task02/imagesTr/c0.nii.gz": "Task02/labelsTr/c0.nii.gz",
    },
    "nnU-Net": {"imagesTr/a_0000.nii.gz": "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz": "labelsTs/b.nii.gz"},
    "image called like a mask": {"images/mask_1.png": "labels/mask_1.png"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, layout):
    write(tmp_path, *layout.keys(), *layout.values())
    assert pairs(tmp_path) == layout
    assert not discover(tmp_path).unpaired
    assert not discover(tmp_path).conflicts


def test_words_in_names():
    assert not any(
        map(names_label_map, ("amos_0001", "segment3", "unmasked", "magt", "legs", "BraTS_001", "label3d"[:0]))
    )
    assert all(map(names_label_map, ("p1_seg", "p1-Mask", "p1Mask", "label0001", "p1_seg_resampled", "GT_3", "truth")))
    assert folder_role("unlabelled").role == folder_role("case1").role == ""
    assert (folder_role("imagesTs").split, folder_role("valid").split, folder_role("BraTS_seg").split) == (
        "test",
        "val",
        "",
    )


def test_a_project_called_segmentation_keeps_its_images(tmp_path):
    write(tmp_path, "heart_segmentation/p1/scan.nii", "heart_segmentation/p2/scan.nii")
    assert len(pairs(tmp_path)) == 2


def test_splits_of_folders(tmp_path):
    write(
        tmp_path,
        *(
            f"{split}/{kind}/{split}{n}.png"
            for split in ("train", "val", "test")
            for kind in ("images", "masks")
            for n in range(2)
        ),
    )
    table, _ = index_folder(tmp_path)
    assert dict(zip(table["subject"], table["split"], strict=True)) == {
        f"{split}{n}": split for split in ("train", "val", "test") for n in range(2)
    }


def test_train_and_test_that_number_their_images_alike(tmp_path, caplog):
    write(
        tmp_path,
        *(f"{split}/{kind}/{n}.png" for split in ("train", "test") for kind in ("images", "masks") for n in range(4)),
    )
    with caplog.at_level(logging.INFO, "fewslice"):
        table, _ = index_folder(tmp_path)
    assert set(table["subject"]) == {f"{split}/{n}" for split in ("train", "test") for n in range(4)}
    assert (table["split"] == "test").sum() == 4
    assert "4 names such as 0 occur in several splits" in caplog.text


def test_a_patient_in_train_and_test_is_refused(tmp_path):
    write(
        tmp_path,
        *(
            f"{split}/{kind}/patient{n}_s{split}.png"
            for split in ("train", "test")
            for kind in ("images", "masks")
            for n in (1, 2)
        ),
    )
    write(tmp_path, "train/images/patient1_slice1.png", "test/images/patient1_slice2.png")
    with pytest.raises(UserError, match="subject patient1 is in two splits"):
        load_dataset("folder", tmp_path)


def test_several_data_sets_are_pretrained_on_and_not_trained_on(tmp_path):
    write(
        tmp_path, *(f"Task0{t}/{kind}Tr/c{n}.nii.gz" for t in (1, 2) for kind in ("images", "labels") for n in range(2))
    )
    with pytest.raises(UserError, match=r"2 data sets, whose labels have nothing in common \(Task01, Task02\)"):
        index_folder(tmp_path)
    table, _ = index_folder(tmp_path, labelled=False)
    assert sorted(set(table["subject"])) == ["Task01/c0", "Task01/c1", "Task02/c0", "Task02/c1"]


def test_modalities_share_a_label_map(tmp_path, caplog):
    for n in (1, 2):
        write(tmp_path, *(f"BraTS_{n:03d}/BraTS_{n:03d}_{kind}.nii.gz" for kind in ("t1", "t1ce", "flair", "seg")))
    with caplog.at_level(logging.INFO, "fewslice"):
        table, _ = index_folder(tmp_path)
    assert sorted(set(table["subject"])) == ["BraTS_001", "BraTS_002"]
    assert len(set(table["file"])) == 6
    assert set(table.loc[table["subject"] == "BraTS_001", "label_file"]) == {"BraTS_001/BraTS_001_seg.nii.gz"}
    assert "label maps of several modalities of a case" in caplog.text


@pytest.mark.parametrize("hidden", [".git", ".ipynb_checkpoints", "__MACOSX", "images/.ipynb_checkpoints"])
def test_hidden_folders_are_never_read(tmp_path, hidden):
    write(tmp_path, "images/a.png", "labels/a.png", f"{hidden}/a-checkpoint.png")
    assert pairs(tmp_path) == {"images/a.png": "labels/a.png"}
    assert set(match_masks(tmp_path / "labels", tmp_path / "labels")) == {"a"}


def test_links(tmp_path, caplog):
    write(tmp_path, "store/p1/s.nii", "store/p2/s.nii", "cohort/images/p3/s.nii")
    write(tmp_path, "store_labels/p1/s.nii")
    (tmp_path / "cohort/labels").mkdir()
    os.symlink(tmp_path / "store/p1", tmp_path / "cohort/images/p1")
    os.symlink(tmp_path / "store/p2", tmp_path / "cohort/images/p2", target_is_directory=True)
    os.symlink(tmp_path / "store_labels/p1", tmp_path / "cohort/labels/p1")
    os.symlink(tmp_path / "cohort", tmp_path / "cohort/images/p3/loop")
    os.symlink(tmp_path / "gone", tmp_path / "cohort/images/p4.nii")
    root = tmp_path / "cohort"
    assert pairs(root) == {"images/p1/s.nii": "labels/p1/s.nii", "images/p2/s.nii": "", "images/p3/s.nii": ""}
    with caplog.at_level(logging.INFO, "fewslice"):
        index_folder(root)
    assert "links that lead nowhere: images/p4.nii" in caplog.text
    assert any("leads nowhere" in entry["problem"] for entry in inspect_dataset("folder", root)["problems"])


def test_outputs_of_earlier_commands_are_no_input(tmp_path, caplog):
    write(tmp_path, "a.nii", "out/a.nii", "run/predictions.png", "mine/b.nii")
    (tmp_path / "out/volumes.csv").write_text("file,subject,phase,frame,volume_ml_1\n")
    (tmp_path / "mine/volumes.csv").write_text("patient,ml\n")
    for name in ("config.json", "train.log"):
        (tmp_path / "run" / name).write_text("{}")
    with caplog.at_level(logging.INFO, "fewslice"):
        assert set(index_folder(tmp_path)[0]["file"]) == {"a.nii", "mine/b.nii"}
    assert "output of earlier commands: out, run" in caplog.text


def test_other_files_are_counted_in_one_line(tmp_path, caplog):
    write(tmp_path, "images/a.png", "labels/a.png", "more/b.png")
    for name in ("notes.txt", "images/a.json", "images/b.JSON", "README"):
        (tmp_path / name).write_text("{}")
    with caplog.at_level(logging.INFO, "fewslice"):
        index_folder(tmp_path)
    assert f"{tmp_path}: skipped 4 files: 2 .json, 1 .txt, 1 without suffix" in caplog.text.replace(
        "1 without suffix, 1 .txt", "1 .txt, 1 without suffix"
    )
    assert "not read, beside folders of images and label maps: more" in caplog.text


@pytest.mark.parametrize("names", [("a_seg.nii", "b_seg.nii"), ("labels/a.nii", "labels/b.nii"), ("masks/p1/a.nii",)])
def test_label_maps_alone_are_refused(tmp_path, names):
    write(tmp_path, *names)
    with pytest.raises(UserError, match="holds label maps only, by their names"):
        index_folder(tmp_path, labelled=False)


def test_masks_of_bids_that_name_no_modality(tmp_path):
    write(tmp_path, *(f"sub-1/anat/sub-1_{name}.nii" for name in ("T1w", "T2w")), "d/sub-1/anat/sub-1_desc-x_mask.nii")
    with pytest.raises(UserError, match="1 label map without an image"):
        discover(tmp_path).require_pairs()


def test_a_data_set_called_image_and_mask(tmp_path):
    write(tmp_path / "img_mask", "img01.png", "mask01.png")
    assert pairs(tmp_path / "img_mask") == {"img01.png": "mask01.png"}


def test_label_maps_beside_images_that_are_not_read(tmp_path):
    write(tmp_path, "masks/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.webp").touch()
    with pytest.raises(UserError, match=r"1 \.webp, which are not read"):
        discover(tmp_path)


def test_a_data_set_called_segmentation(tmp_path):
    write(tmp_path / "segmentation", "a.nii", "b.nii")
    assert len(pairs(tmp_path / "segmentation")) == 2


def test_a_folder_of_label_maps_is_no_folder_of_images(tmp_path):
    write(tmp_path, "labelsTr/a.nii")
    with pytest.raises(UserError, match="holds label maps only"):
        discover(tmp_path / "labelsTr")


def test_exams_without_label_maps(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "d", "p1/scan.nii", "p1/scan_seg.nii", "p2/scan.nii", "masks/p2.nii", ".old/p3.nii")
    assert load_exams(tmp_path / "d").table["file"].tolist() == ["p1/scan.nii", "p2/scan.nii"]


# One label map for each image


def test_label_maps_without_an_image_are_named(tmp_path, caplog):
    write(tmp_path, *(f"{kind}/p{n}.png" for kind in ("images", "labels") for n in range(3)), "labels/typo.png")
    with caplog.at_level(logging.INFO, "fewslice"):
        index_folder(tmp_path)
    assert "1 label map without an image, not used: labels/typo.png" in caplog.text


def test_no_label_map_fits(tmp_path):
    write(tmp_path, "images/scan7.png", "labels/other.png")
    with pytest.raises(UserError, match=r"labels/other\.png; the images have other names, such as images/scan7\.png"):
        index_folder(tmp_path)
    index_folder(tmp_path, labelled=False)


def test_names_that_differ_in_case(tmp_path, caplog):
    write(tmp_path, "images/p5.png", "labels/P5.png", "images/p6.png", "images/P6.png", "labels/P6.png")
    with caplog.at_level(logging.INFO, "fewslice"):
        index_folder(tmp_path)
    assert pairs(tmp_path) == {"images/P6.png": "labels/P6.png", "images/p5.png": "labels/P5.png", "images/p6.png": ""}
    assert "paired although upper and lower case differ: labels/P5.png and images/p5.png" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("images/a.nii", "labels/a.nii", "labels/a.nii.gz"),
            r"images/a\.nii has 2 label maps \(labels/a\.nii, labels",
        ),
        (("images/a.nii", "images/a.nii.gz", "labels/a.nii"), r"labels/a\.nii is the label map of 2 images"),
        (("a.png", "a_mask.png", "a_mask_1.png"), r"a\.png has 2 label maps"),
        (("images/a.png", "labels/a.png", "masks/a.png"), r"a\.png has 2 label maps"),
        (("images/a_0001.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"), r"has no channel 0"),
    ],
)
def test_doubts_are_refused(tmp_path, names, message):
    write(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        index_folder(tmp_path)
    assert any(word in str(inspect_dataset("folder", tmp_path)["problems"]) for word in ("label map", "channel"))


def test_evaluation_pairs_masks_alike(tmp_path, capsys):
    write(tmp_path, *(f"{kind}/p{n}.png" for kind in ("out/images", "data/images") for n in range(3)))
    write(tmp_path, *(f"data/labels/P{n}_mask.png" for n in range(3)))
    matched = match_masks(tmp_path / "out", tmp_path / "data")
    assert [reference.name for _, reference in matched.values()] == ["P0_mask.png", "P1_mask.png", "P2_mask.png"]
    result = evaluate(Evaluate(prediction=tmp_path / "out", reference=tmp_path / "data", out=tmp_path / "scores"))
    assert result["patients"] == 3
    assert "p0 and P0" in capsys.readouterr().out


# Channels


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("amos_0001", "amos_0002", "amos_0007"), ("amos_0001", "amos_0002", "amos_0007")),
        (("la_0000", "la_0001", "la_0002"), ("la_0000", "la_0001", "la_0002")),
        (("a_0000", "a_0001", "b_0000", "b_0001"), ("a_0000", "b_0000")),
        (("a_0000", "b_0000"), ("a_0000", "b_0000")),
        (("a_0000",), ("a_0000",)),
    ],
)
def test_numbers_of_cases_and_of_channels(tmp_path, names, kept):
    write(tmp_path, *(f"imagesTr/{name}.nii.gz" for name in names))
    assert set(index_folder(tmp_path)[0]["file"]) == {f"imagesTr/{name}.nii.gz" for name in kept}


def test_declared_channels(tmp_path):
    write(tmp_path, "imagesTs/a_0000.nii.gz", "imagesTs/a_0001.nii.gz", "imagesTr/x_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    assert [image.name for image in discover(tmp_path).images] == ["x", "a"]
    assert [image.name for image in discover(tmp_path / "imagesTs").images] == ["a"]
    assert list(pairs(tmp_path / "imagesTs", channels=1)) == ["a_0001.nii.gz"]


def test_label_maps_beside_the_folder_tell_cases_from_channels(tmp_path):
    write(tmp_path, "imagesTs/la_0000.nii.gz", "labelsTs/la_0000.nii.gz")
    assert [image.name for image in discover(tmp_path / "imagesTs").images] == ["la_0000"]


def test_natural_images(tmp_path):
    write(tmp_path, "a.png", "a_mask.png", ".git/b.png", "cats/.ipynb_checkpoints/c.png", "cats/c.png")
    assert [file.name for file in FolderImages(tmp_path).files] == ["a.png", "c.png"]


def test_a_channel_of_files_and_of_4d_images(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "files", *(f"imagesTr/{case}_000{k}.nii.gz" for case in "abc" for k in (0, 1)))
    write(tmp_path / "files", *(f"labelsTr/{case}.nii.gz" for case in "abc"))
    assert set(index_folder(tmp_path / "files", channels=1)[0]["file"]) == {f"imagesTr/{c}_0001.nii.gz" for c in "abc"}

    root = tmp_path / "4d"
    write(root, *(f"imagesTr/{case}.nii.gz" for case in "abc"), shape=(6, 5, 3, 2))
    for case in "abc":
        label = np.zeros((6, 5, 3), np.uint8)
        label[:2] = 1
        (root / "labelsTr").mkdir(exist_ok=True)
        nib.Nifti1Image(label, np.eye(4)).to_filename(root / f"labelsTr/{case}.nii.gz")
    with pytest.raises(UserError, match=r"has 2 channels \(or frames\) .*pass --channels K, from 0 to 1"):
        index_folder(root)
    with pytest.raises(UserError, match="has the channels 0 to 1, and channel 2 is missing"):
        index_folder(root, channels=2)
    dataset = load_dataset("folder", root, channels=1)
    image = np.asarray(nib.load(root / "imagesTr/a.nii.gz").dataobj)
    np.testing.assert_array_equal(dataset.store.image(1), image[:, :, 1, 1].T)
    assert dataset.store.label(1).sum() == 10
    assert len(dataset.table) == 9
    assert len(load_dataset("folder", root, labelled=False).table) == 18
    every_channel, _ = index_folder(root, problems={})
    with pytest.raises(UserError, match=r"labelsTr/a\.nii\.gz does not lie on the voxel grid"):
        open_store(every_channel, root)
    assert not any("channel" in entry["problem"] for entry in inspect_dataset("folder", root, channels=0)["problems"])
    assert any("--channels" in entry["problem"] for entry in inspect_dataset("folder", root)["problems"])
