"""Several images of one patient are one subject, so that no patient lands in two splits."""

import logging

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.readers.exam_list import read_exams_csv
from data.readers.folder import index_folder
from data.readers.subjects import subjects_of
from segment.evaluate import Evaluate, run


@pytest.mark.parametrize(
    "end",
    [
        *("_frame01", "_visit2", "_slice3", "_ED", "_ES", "_t0", "_s12", "_z3", "_phase1", "_time4", "_session1"),
        *("-frame-1", "/visit1/scan", ".slice004", "_2CH_ED", "_t1ce", "_left", "_ses-02_T1w", "_tp3", "_frame01_sa"),
    ],
)
def test_parts_of_a_patient(end):
    assert subjects_of([f"patient1{end}", f"patient2{end}"], None) == ["patient1", "patient2"]


@pytest.mark.parametrize(
    "names",
    [
        ["amos_0001", "amos_0002"],
        ["case12", "case13"],
        ["la_003", "la_004"],
        ["BraTS20_Training_001", "BraTS20_Training_002"],
        ["ct_train_1001", "ct_train_1002"],
        ["site1_s01", "site1_s02"],
        ["study_s01", "study_s02"],
        ["IXI002-Guys-0828", "IXI012-HH-1211"],
        ["001", "002"],
        ["scan1", "scan2"],
        ["t1", "t2"],
        ["frame1", "frame2"],
        ["a/scan", "b/scan"],
        ["pre/001", "post/002"],
        ["CT/1", "MR/1"],
        ["BraTS2020/BraTS_001", "BraTS2020/BraTS_002"],
        ["img_t1", "img_t2"],
        ["phase1_patient3", "phase2_patient3"],
        ["knee_left_001", "knee_left_002", "knee_right_001"],
        ["anna_ED", "bert_ED"],
        ["2021/a", "2022/a", "2023/a"],
        ["0/1", "0/2", "1/3", "2/4", "3/5"],
        ["center1/case", "center2/case", "center3/case", "center12/case"],
    ],
)
def test_numbers_of_cases_stay_subjects(names):
    assert subjects_of(names, None) == names


@pytest.mark.parametrize(
    ("names", "subjects"),
    [
        (["anna_s0", "anna_s1", "bert_s0"], ["anna", "anna", "bert"]),
        (["p12_001", "p12_002", "p13_001", "p13_002"], ["p12", "p12", "p13", "p13"]),
        (["TCGA_CS_4941/TCGA_CS_4941_1", "TCGA_CS_4942/TCGA_CS_4942_1"], ["TCGA_CS_4941", "TCGA_CS_4942"]),
        (["visit1/patient1", "visit2/patient1"], ["patient1", "patient1"]),
        (["patient1/a", "patient1/b", "sub-x3/c"], ["patient1", "patient1", "sub-x3"]),
        (["2001_s0", "2001_s1", "2002_s0"], ["2001", "2001", "2002"]),
        (["video_frame_1", "video_frame_2"], ["video", "video"]),
        (["ED/patient1", "ES/patient1", "ES/patient2"], ["patient1", "patient1", "patient2"]),
        (["d/T1/sub-01_T1", "d/T2/sub-01_T2"], ["d/sub-01", "d/sub-01"]),
        (["left/001", "right/001"], ["001", "001"]),
        (["001/001_a", "001/001_b", "002/002_a"], ["001", "001", "002"]),
        (
            [f"{p:02}/{n:03}" for p in (1, 2, 3) for n in range(9 * p, 9 * p + 9)],
            [f"{p:02}" for p in (1, 2, 3) for _ in range(9)],
        ),
        ([f"{p:02}/{n:02}" for p in (1, 2, 3) for n in range(4)], [f"{p:02}" for p in (1, 2, 3) for _ in range(4)]),
    ],
)
def test_images_of_one_patient_are_one_subject(names, subjects, caplog):
    with caplog.at_level(logging.INFO, "fewslice"):
        assert subjects_of(names, None) == subjects
    assert ("--subject-pattern decides otherwise" in caplog.text) == (len(set(subjects)) < len(subjects))


def pngs(root, names, folders=("images", "labels")):
    for k, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for n, name in enumerate(names):
            values = np.random.default_rng(n + 100 * k).integers(0, 2, (8, 7)).astype(np.uint8)
            Image.fromarray(values).save(root / folder / f"{name}.png")


@pytest.mark.parametrize(
    ("names", "subjects"),
    [
        (["anna_ED", "anna_ES", "bert_ED"], ["anna", "anna", "bert_ED"]),
        (["smith_pre", "smith_post"], ["smith"] * 2),
        (["p1visit1", "p1visit2", "patient2frame03"], ["p1", "p1", "patient2"]),
        (["p1_20200101", "p1_2021-03-01", "p1_m12"], ["p1"] * 3),
        (["p1_img1", "p1_img2"], ["p1"] * 2),
        (["002_S_0295_I13721", "002_S_0296_I13722"], ["002_S_0295", "002_S_0296"]),
        (["BraTS-GLI-00000-000-t1c", "BraTS-GLI-00000-001-t1c"], ["BraTS-GLI-00000"] * 2),
        (["10001_1000001", "10001_1000002", "10005_1000005"], ["10001", "10001", "10005"]),
        (["LIDC-IDRI-0001/01-01-2000/a", "LIDC-IDRI-0001/02-02-2001/a"], ["LIDC-IDRI-0001"] * 2),
        (["d/ANON12/a", "d/ANON12/b", "d/ANON13/a", "d/ANON14/a"], ["d/ANON12"] * 2 + ["d/ANON13", "d/ANON14"]),
    ],
)
def test_names_of_public_collections_and_of_clinics(names, subjects):
    assert subjects_of(names, None) == subjects


def test_no_patient_in_two_splits(tmp_path):
    pngs(tmp_path, [f"patient{p}_s{s}" for p in range(5) for s in range(4)])
    table, _ = index_folder(tmp_path)
    assert sorted(set(table["subject"])) == [f"patient{p}" for p in range(5)]
    assert (table.groupby("subject")["split"].nunique() == 1).all()
    assert len(set(index_folder(tmp_path, "(.+)")[0]["subject"])) == 20


def test_a_splits_file_may_name_images_of_a_subject(tmp_path):
    pngs(tmp_path, [f"patient{p}_s{s}" for p in range(3) for s in range(2)])
    file = tmp_path / "splits.json"
    file.write_text('{"train": ["patient0_s0", "patient0_s1"], "val": ["patient1_s0"], "test": ["patient2"]}')
    table, _ = index_folder(tmp_path)
    splits = dict(zip(table["subject"], table["split"], strict=True))
    assert splits == {"patient0": "train", "patient1": "val", "patient2": "test"}
    file.write_text('{"train": ["patient0_s0", "patient1"], "val": ["patient0_s1"], "test": ["patient2"]}')
    with pytest.raises(UserError, match="patient0_s1 in val is of subject patient0, which is also in train"):
        index_folder(tmp_path)


def test_unknown_subjects_of_a_splits_file(tmp_path, caplog):
    pngs(tmp_path, ["a", "b", "c"])
    file = tmp_path / "mine.json"
    file.write_text('{"train": ["a"], "val": ["b", "x"], "test": ["c", "y"]}')
    with caplog.at_level(logging.INFO, "fewslice"):
        index_folder(tmp_path, splits_file=file)
    assert f"names 2 subjects without an image in {tmp_path} (x, y): they are ignored" in caplog.text
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "images/unlabelled.png")
    with pytest.raises(
        UserError, match=r"2 subjects without an image .* and does not name unlabelled: correct the names"
    ):
        index_folder(tmp_path, splits_file=file)


def test_exams_of_one_patient(tmp_path):
    lines = ["path,label"]
    for p in range(10):
        for visit in (1, 2):
            (tmp_path / f"p{p}_visit{visit}.nii.gz").touch()
            lines.append(f"p{p}_visit{visit}.nii.gz,{p % 2}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    table = read_exams_csv(tmp_path / "list.csv", tmp_path, 0, None)
    assert table["subject"].nunique() == 10
    assert (table.groupby("subject")["split"].nunique() == 1).all()


@pytest.mark.parametrize(("pattern", "patients"), [(None, 2), (r"s\d", 3), ("(.+)", 6)])
def test_scores_are_means_over_patients(tmp_path, pattern, patients):
    pngs(tmp_path, [f"patient{p}_s{s}" for p in (1, 2) for s in range(3)], ("p", "r"))
    result = run(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r", subject_pattern=pattern))
    assert (result["patients"], result["volumes"]) == (patients, 6)
    header, first, *_ = (tmp_path / "p/scores/per_volume.csv").read_text().splitlines()
    assert header.startswith("subject,file,group,phase,frame")
    assert first.split(",")[1] == "patient1_s0.png"
