import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from forking import run_forked

from core.errors import UserError
from data.inspect import Inspect, inspect_dataset, run
from data.inspect_page import outliers


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, np.eye(4) if affine is None else affine).to_filename(path)


def patient(root: Path, number: int) -> Path:
    name = f"patient{number:03d}"
    rng = np.random.default_rng(number)
    for frame in (1, 3):
        save(root / name / f"{name}_frame{frame:02d}.nii.gz", rng.integers(0, 900, (9, 8, 4)).astype(np.int16))
        save(root / name / f"{name}_frame{frame:02d}_gt.nii.gz", rng.integers(0, 4, (9, 8, 4)).astype(np.uint8))
    save(root / name / f"{name}_4d.nii.gz", rng.integers(0, 900, (9, 8, 4, 5)).astype(np.int16))
    (root / name / "Info.cfg").write_text("ED: 1\nES: 3\nGroup: HCM\n")
    return root / name


def messages_of(report: dict, kind: str = "problems") -> dict[str, str]:
    return {Path(entry["file"]).name: entry["problem"] for entry in report[kind]}


def test_fingerprint_of_a_sound_data_set(tmp_path):
    patient(tmp_path, 2)
    patient(tmp_path, 3)
    assert run(Inspect(data_root=tmp_path, json=tmp_path / "out" / "report.json")) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["problems"] == report["warnings"] == []
    assert report["subjects"] == 2
    assert report["labelled_slices"] == {"train": 8, "val": 8, "test": 0}
    assert report["unlabelled_slices"] == 2 * 3 * 4  # frames 2, 4 and 5 of each cine
    assert report["groups"] == {"HCM": {"train": 1, "val": 1, "test": 0}}
    assert report["shape"]["slices"] == [4, 4, 4]
    assert report["shape"]["frames"] == [1, 1, 5]
    assert report["dtypes"] == {"int16": 6}
    assert list(report["class_share"]) == ["background", "RV", "MYO", "LV"]
    assert sum(report["class_share"].values()) == pytest.approx(1)


def test_every_bad_file_is_listed(tmp_path):
    folder = patient(tmp_path, 3)
    image = folder / "patient003_frame01.nii.gz"
    values = np.asarray(nib.load(image).dataobj).astype(np.float32)
    values[2, 2, 2] = np.inf
    save(image, values)
    save(folder / "patient003_frame03_gt.nii.gz", np.full((9, 8, 3), 7, np.uint8))
    (folder / "patient003_4d.nii.gz").write_bytes(b"damaged")

    folder = patient(tmp_path, 4)
    (folder / "patient004_frame03.nii.gz").unlink()
    (folder / "patient004_frame01_gt.nii.gz").write_bytes(b"damaged")
    save(folder / "patient004_4d.nii.gz", np.full((9, 8, 4, 5), 3, np.int16))

    folder = patient(tmp_path, 5)
    (folder / "patient005_frame01_gt.nii.gz").unlink()
    cut = folder / "patient005_4d.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-500])

    report = inspect_dataset("acdc", tmp_path)
    problems = messages_of(report)
    assert "NaN or infinite values (1 voxels)" in problems["patient003_frame01.nii.gz"]
    both = [entry["problem"] for entry in report["problems"] if entry["file"].endswith("frame03_gt.nii.gz")]
    assert any("(shape 9 x 8 x 3 for 9 x 8 x 4)" in what for what in both)
    assert any("label values [7]" in what for what in both)
    assert "has no image" in both
    assert "cannot be read" in problems["patient003_4d.nii.gz"]
    assert "cannot be read" in problems["patient004_frame01_gt.nii.gz"]
    assert "is constant" in problems["patient004_4d.nii.gz"]
    assert "names frame 3 as ES" in problems["Info.cfg"]
    assert problems["patient005_frame01.nii.gz"] == "has no label map"
    assert "cannot be read" in problems["patient005_4d.nii.gz"]
    assert report["subjects"] == 3


def test_warnings_are_no_errors(tmp_path):
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    rng = np.random.default_rng(0)
    for n, affine in enumerate((None, None, flipped)):
        save(tmp_path / f"images/s{n}.nii.gz", rng.integers(1, 9, (9, 8, 4)).astype(np.uint8), affine)
        save(tmp_path / f"labels/s{n}.nii.gz", (np.full((9, 8, 4), int(n > 0))).astype(np.uint8))
    half = rng.integers(1, 9, (9, 8, 4)).astype(np.uint8)
    half[:, :, 1] = 5
    save(tmp_path / "images/bare.nii.gz", half)
    report = inspect_dataset("folder", tmp_path)
    assert report["problems"] == []
    warnings = messages_of(report, "warnings")
    assert warnings["s2.nii.gz"] == "is oriented LAS; all files: {'RAS': 3, 'LAS': 1}"
    assert warnings["s0.nii.gz"] == "is background only"
    whats = [entry["problem"] for entry in report["warnings"]]
    assert "has 1 constant slices" in whats
    assert "has no label map, as 1 of 4 images: pretraining only" in whats


def test_folder_errors(tmp_path):
    save(tmp_path / "images/a.nii.gz", np.arange(288, dtype=np.int16).reshape(9, 8, 4))
    save(tmp_path / "labels/a.nii.gz", np.full((9, 8, 4), 2, np.uint8))
    save(tmp_path / "labels/lost.nii.gz", np.zeros((9, 8, 4), np.uint8))
    problems = messages_of(inspect_dataset("folder", tmp_path))
    assert problems["lost.nii.gz"] == "has no image"
    assert "values [0, 2], which leave a gap" in problems[tmp_path.name]


@pytest.mark.slow
def test_command_line_exit_codes(tmp_path):
    folder = patient(tmp_path, 3)
    (folder / "patient003_4d.nii.gz").write_bytes(b"damaged")
    done = run_forked("data.inspect", "--data-root", tmp_path)
    assert done.returncode == 1
    assert "patient003_4d.nii.gz cannot be read" in done.stdout
    done = run_forked("data.inspect", "--data-root", tmp_path / "no")
    assert done.returncode == 2
    assert "is not a folder" in done.stderr


@pytest.mark.slow
def test_real_acdc(real_acdc):
    report = inspect_dataset("acdc", real_acdc)
    assert report["problems"] == []
    assert report["subjects"] == 100
    assert report["labelled_slices"] == {"train": 1498, "val": 206, "test": 198}


def test_reports_that_cannot_be_written_are_refused_before_reading(tmp_path):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    for option, name, message in (
        ("html", "folder.html", "is a folder: pass the path of a file in it"),
        ("html", "file/page.html", "file is no folder; choose another path"),
        ("html", "page.txt", "must end in .html"),
        ("html", "page", "must end in .html"),
        ("json", "folder.html", "is a folder: pass the path of a file in it"),
    ):
        with pytest.raises(UserError, match=f"--{option} .*{message}"):
            Inspect(data_root=tmp_path, **{option: tmp_path / name})
    Inspect(data_root=tmp_path, html=tmp_path / "new" / "page.HTM")
    assert not (tmp_path / "new").exists()


def test_outliers_of_spacing_and_shape():
    volumes = pd.DataFrame(
        {"file": list("abcdefgh"), "row_mm": [1.0, 1.01, 1, 1, 1, 1, 1, 2], "column_mm": 1.0, "slice_mm": 5.0,
         "rows": [100, 110, 120, 130, 140, 150, 160, 170], "columns": 9, "slices": 9, "frames": 1}
    )  # fmt: skip
    assert outliers(volumes) == [("h", "row spacing, mm", 2.0, 1.0)]
    assert outliers(pd.DataFrame()) == []


def test_the_page_of_a_data_set(tmp_path, capsys):
    root = tmp_path / "<b>data"
    for number in (2, 3, 4):
        patient(root, number)
    shutil.copy(root / "patient002/patient002_4d.nii.gz", root / "patient003/patient003_4d.nii.gz")
    (root / "patient004/patient004_frame01.nii.gz").write_bytes(b"damaged")
    assert run(Inspect(data_root=root, html=tmp_path / "new/page.html")) > 0
    html = (tmp_path / "new/page.html").read_text()
    assert "<b>data" not in html
    assert "Data set &lt;b&gt;data" in html
    assert html.count("data:image/jpeg;base64,") == 8  # all images but the damaged one
    assert "patient004_frame01.nii.gz" in html
    assert re.search(r"<td>patient002 \(val\): [^;]*4d\.nii\.gz; patient003 \(train\): [^<]*</td><td>yes</td>", html)
    assert "5 of 5" in html  # label maps with each class
    assert html.count("<svg") == 4
    assert "channel" not in html[html.index("<body") :]
    assert "http" not in re.sub(r"http://www\.w3\.org[^\"]*", "", html)
    assert (tmp_path / "new/page.html").resolve().as_uri() in capsys.readouterr().out
