import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from core.errors import UserError
from data.readers.acdc import index_acdc


def write_patient(
    folder: Path, number: int, ed: int = 1, es: int = 3, frames: int = 4, slices: int = 2, cine: bool = True
) -> None:
    """A tiny patient in the ACDC layout. The 4D file is cropped, as in some copies: its grid differs."""
    name = f"patient{number:03d}"
    place = folder / name
    place.mkdir(parents=True)
    (place / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 160.0\nNbFrame: {frames}\n")
    rng = np.random.default_rng(number)

    def save(file: str, values: np.ndarray) -> None:
        image = nib.Nifti1Image(values, np.eye(4))
        image.header.set_zooms((1.5, 1.5, 10, 1)[: values.ndim])
        image.to_filename(place / file)

    for frame in (ed, es):
        save(f"{name}_frame{frame:02d}.nii.gz", rng.integers(0, 900, (8, 6, slices)).astype(np.int16))
        save(f"{name}_frame{frame:02d}_gt.nii.gz", rng.integers(0, 4, (8, 6, slices)).astype(np.uint8))
    if cine:
        save(f"{name}_4d.nii.gz", rng.integers(0, 900, (5, 4, slices, frames)).astype(np.int16))


def test_each_image_counts_once(tmp_path):
    write_patient(tmp_path / "training", 3, ed=2, es=4, frames=5)
    table = index_acdc(tmp_path)
    labelled = table[table["labelled"]]
    assert sorted(zip(labelled["frame"], labelled["phase"], labelled["slice"], strict=True)) == [
        (2, "ED", 0),
        (2, "ED", 1),
        (4, "ES", 0),
        (4, "ES", 1),
    ]
    cine = table[~table["labelled"]]
    assert sorted(cine["frame"].unique()) == [1, 3, 5]
    assert (cine["phase"] == "").all()
    assert (cine["label_file"] == "").all()
    assert not table.duplicated(["subject", "frame", "slice"]).any()
    first = labelled.iloc[0]
    assert first["file"] == "training/patient003/patient003_frame02.nii.gz"
    assert first["label_file"] == "training/patient003/patient003_frame02_gt.nii.gz"
    assert (first["subject"], first["group"], first["split"]) == ("patient003", "DCM", "train")


def test_a_frame_without_its_own_file_stays_in_the_cine(tmp_path):
    write_patient(tmp_path, 3)
    (tmp_path / "patient003/patient003_frame03.nii.gz").unlink()
    table = index_acdc(tmp_path)
    row = table[table["frame"] == 3].iloc[0]
    assert (row["file"], row["phase"], row["labelled"]) == ("patient003/patient003_4d.nii.gz", "ES", False)


def test_training_itself_may_be_the_root_and_testing_is_test(tmp_path, caplog):
    for number in (1, 2, 3):
        write_patient(tmp_path / "training", number, cine=number == 3)
    write_patient(tmp_path / "testing", 103)
    with caplog.at_level(logging.INFO, "fewslice"):
        table = index_acdc(tmp_path)
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "3 of 100 training patients, 2 patients without a 4D file, 1 official test patients"
    ]
    splits = dict(zip(table["subject"], table["split"], strict=True))
    assert splits == {"patient001": "test", "patient002": "val", "patient003": "train", "patient103": "test"}
    inner = index_acdc(tmp_path / "training")
    assert sorted(inner["subject"].unique()) == ["patient001", "patient002", "patient003"]
    assert inner["file"].iloc[0].startswith("patient001/")


def test_a_wrong_root_is_named(tmp_path):
    with pytest.raises(UserError, match="absent is not a folder"):
        index_acdc(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no patientNNN folders"):
        index_acdc(tmp_path)


def test_unreadable_files_raise_or_are_collected(tmp_path):
    write_patient(tmp_path, 3)
    file = tmp_path / "patient003/patient003_frame01.nii.gz"
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"patient003_frame01\.nii\.gz cannot be read"):
        index_acdc(tmp_path)
    problems: dict[Path, UserError] = {}
    assert len(index_acdc(tmp_path, problems)) == 2 + 2 * 2  # the ES file, and two frames of the cine
    assert list(problems) == [file]


@pytest.mark.slow
def test_real_acdc(real_acdc):
    table = index_acdc(real_acdc)
    labelled = table[table["labelled"]]
    counts = labelled["split"].value_counts()
    assert (counts["train"], counts["val"]) == (1498, 206)
    assert set(table["group"]) == {"NOR", "MINF", "DCM", "HCM", "RV"}
    late = labelled[labelled["subject"] == "patient090"]
    assert set(late.loc[late["phase"] == "ED", "frame"]) == {4}
    assert not table.duplicated(["subject", "frame", "slice"]).any()
