"""DICOM files where other images are read, or label maps are expected: named, with what to do."""

import logging

import numpy as np
import pytest
from made_up_channels import save as save_nifti
from made_up_dicom import cine, image, save

from core.errors import UserError
from data.inspect import inspect_dataset
from data.readers.file_search import search_files
from data.readers.folder import index_folder
from data.sources import FolderSource, open_slices
from segment.evaluate import Evaluate
from segment.evaluate import run as evaluate
from sweep.study.config import SweepConfig
from sweep.study.run import count_labels


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


@pytest.mark.parametrize("name", ["IM0000", "a.dcm", "a.IMA", "1.2.840.113619.7"])
def test_dicom_files_beside_nifti_files_are_named(tmp_path, name, caplog):
    root = tmp_path / "set"
    save([image(0)], root)[0].rename(root / name)
    save_nifti(root / "scan.nii.gz", np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    sentence = (
        f"DICOM files, such as {name}, are not read beside other images: pass a folder of them alone, or convert them "
        "with `python -m data.convert`"
    )
    with caplog.at_level(logging.INFO, "fewslice"):
        index_folder(root, labelled=False)
    assert f"{root}: {sentence}" in [record.message for record in caplog.records]
    assert f"{root}: {sentence}" in search_files(root).messages()
    assert sentence in [finding["problem"] for finding in inspect_dataset("folder", root)["warnings"]]
    (root / name).write_text("not DICOM")
    assert not any("DICOM" in message for message in search_files(root).messages())


def test_segmentations_that_prediction_wrote_are_no_surprise(tmp_path):
    save([image(0)], tmp_path)[0].rename(tmp_path / "a.dcm")
    (tmp_path / "volumes.csv").write_text("file,subject,phase,frame\n")
    assert search_files(tmp_path).dicom == []


def test_images_without_labels_are_not_blamed_on_the_split(tmp_path):
    cine(tmp_path / "dicom")
    source = FolderSource(data_root=tmp_path / "dicom")
    message = r"dicom has no label map for any of its images, .* no DICOM segmentation \(SEG\) or RT structure set"
    with pytest.raises(UserError, match=message):
        open_slices(source)
    with pytest.raises(UserError, match=message):
        count_labels(SweepConfig(data=source, out=tmp_path / "study"))
    assert len(open_slices(source, labelled=False).table) == 12
    save_nifti(tmp_path / "nifti/images/a.nii.gz", np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    with pytest.raises(UserError, match=r"nifti has no label map .* add \.nii\.gz, \.png or \.tif files in labels/"):
        open_slices(FolderSource(data_root=tmp_path / "nifti"))


def test_folders_of_dicom_masks(tmp_path):
    cine(tmp_path / "masks")
    (tmp_path / "none").mkdir()
    for folder, hint in (("masks", True), ("none", False)):
        with pytest.raises(UserError, match="holds no masks: they must end in") as error:
            evaluate(Evaluate(prediction=tmp_path / folder, reference=tmp_path / "none"))
        assert ("; `python -m data.convert` makes them of its DICOM files" in str(error.value)) == hint
