"""Splits of ACDC and lists of what carries labels."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from data.duplicates import check_duplicates
from data.labelled_list import with_labelled_list
from data.protocols import LABEL_ORDERS, acdc_splits, others_than_published, part_of_test
from data.slices import Dataset, load_dataset, with_splits
from data.sources import AcdcSource, open_slices
from data.splits import labelled_subset, save_splits
from segment.scoring import labelled_volumes, score_split

PATIENTS = [f"patient{n:03d}" for n in range(1, 151)]
TRAINING = PATIENTS[:100]


def of(split: str, splits: dict[str, str]) -> list[str]:
    return [name for name, each in splits.items() if each == split]


def test_ssl4mis_is_the_published_split():
    splits = acdc_splits(TRAINING, "ssl4mis")
    assert [len(of(split, splits)) for split in ("train", "val", "test")] == [70, 10, 20]
    assert of("val", splits) == [f"patient{n:03d}" for n in (2, 19, 28, 30, 39, 45, 78, 82, 85, 87)]
    assert {"patient001", "patient093"} <= {*of("test", splits)}
    ordered = LABEL_ORDERS["ssl4mis"](of("train", splits))
    assert ordered[:7] == [f"patient{n:03d}" for n in (99, 38, 50, 100, 58, 21, 49)]
    assert ordered[-1] == "patient015"
    with pytest.raises(UserError, match="patient028 is no training patient of that benchmark"):
        LABEL_ORDERS["ssl4mis"](["patient099", "patient028"])


def test_other_patients_than_the_published_ones_are_said(caplog):
    assert others_than_published(["patient099", "patient038", "patient050"]) == ""
    with caplog.at_level(logging.WARNING, "fewslice"):
        warning = others_than_published(["patient099", "patient050", "patient100"])
    assert warning.startswith("not the published patients of SSL4MIS: patient038 is missing or without labels here")
    assert caplog.messages == [warning]


def test_every_patient_validates_in_one_of_five_folds_of_equal_groups():
    folds = [of("val", acdc_splits(TRAINING, "five-fold", fold)) for fold in range(5)]
    assert sorted(name for patients in folds for name in patients) == TRAINING
    for patients in folds:
        blocks = [(int(name[-3:]) - 1) // 20 for name in patients]  # the five groups
        assert [blocks.count(block) for block in range(5)] == [4] * 5
        assert len({"patient074", "patient076"} & {*patients}) != 1  # one person


@pytest.mark.parametrize("split", ["paper", "ssl4mis", "five-fold"])
def test_one_person_is_in_one_split(split):
    for fold in range(5 if split == "five-fold" else 1):
        splits = acdc_splits(PATIENTS, split, fold, "both")
        assert splits["patient074"] == splits["patient076"]
        assert splits["patient118"] == "unused"


def test_the_test_set_is_the_splits_own_or_the_official_one(caplog):
    caplog.set_level(logging.INFO, "fewslice")
    own = acdc_splits(PATIENTS)
    assert of("test", own) == PATIENTS[:100:10]
    assert len(of("unused", own)) == 50
    official = acdc_splits(PATIENTS, test_set="official")
    assert of("test", official) == [name for name in PATIENTS[100:] if name != "patient118"]
    assert of("unused", official) == [*PATIENTS[:100:10], "patient118"]  # the paper's ten do not train either
    assert "patient118 is left out of the official test set: its images are those of training patient" in caplog.text
    assert len(of("test", acdc_splits(PATIENTS, test_set="both"))) == 59
    with pytest.raises(UserError, match="holds no patients 101-150"):
        acdc_splits(TRAINING, test_set="both")


@pytest.mark.parametrize("test_set", ["official", "both"])
def test_a_file_and_the_test_set_contradict_each_other(tmp_path, test_set):
    save_splits(tmp_path / "mine.json", dict.fromkeys((*TRAINING, "patient101"), "train"))
    assert acdc_splits(PATIENTS, str(tmp_path / "mine.json"))["patient101"] == "train"
    with pytest.raises(
        UserError, match=rf"^--test-set {test_set} tests on patient101, which --split .*mine.json names"
    ):
        acdc_splits(PATIENTS, str(tmp_path / "mine.json"), test_set=test_set)


def test_a_split_from_a_file(tmp_path, tiny_acdc, caplog):
    lists = {"train": [f"patient00{n}" for n in (1, 2, 3)], "val": ["patient004"], "test": ["patient005", "patient006"]}
    file = tmp_path / "splits.json"
    file.write_text(json.dumps(lists))
    dataset = open_slices(AcdcSource(data_root=tiny_acdc, split=str(file)))
    assert {name: of(name, dataset.splits) for name in lists} == lists
    file.write_text(json.dumps(lists | {"train": ["patient001"]}))
    with pytest.raises(UserError, match=r"does not name patient002 \(and 1 more\)"):
        open_slices(AcdcSource(data_root=tiny_acdc, split=str(file)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "ssl4miss"}, "--split ssl4miss: is neither paper, ssl4mis or five-fold nor a file"),
        ({"split": "five-fold", "fold": 5}, "--fold 5: must lie between 0 and 4"),
        ({"fold": 1}, "--fold 1 goes with --split five-fold"),
    ],
)
def test_impossible_protocols_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        AcdcSource(**settings)


@pytest.fixture
def dataset(tiny_acdc) -> Dataset:
    return load_dataset("acdc", tiny_acdc)


def listed(dataset: Dataset, tmp_path: Path, text: str) -> Dataset:
    (tmp_path / "list").write_text(text)
    return with_labelled_list(dataset, tmp_path / "list")


def test_two_test_sets_are_also_scored_apart(tiny_acdc, tmp_path):
    dataset = load_dataset("acdc", tiny_acdc)
    dataset = with_splits(
        dataset, dict.fromkeys(dataset.splits, "train") | {"patient001": "test", "patient002": "test"}
    )
    predictions = [volume.reference for volume in labelled_volumes(dataset, "test")]
    predictions[:2] = [np.zeros_like(each) for each in predictions[:2]]
    part_of = {"patient001": "own", "patient002": "official"}.__getitem__
    result = score_split(predictions, dataset, "test", tmp_path, figures=False, anonymous=True, part_of=part_of)
    parts = {name: (part["patients"], part["dice"]["mean"]) for name, part in result["parts"].items()}
    assert parts == {"official": (1, 1.0), "own": (1, 0.0)}
    assert result["dice"]["mean"] == 0.5
    assert [part_of_test(name) for name in ("patient100", "patient101")] == ["own", "official"]


def test_a_list_says_which_training_slices_carry_labels(dataset, tmp_path):
    by_subject = listed(dataset, tmp_path, "# annotated\npatient004\n\npatient006\n")
    assert {*by_subject.table["subject"].iloc[by_subject.positions("train", labelled=True)]} == {
        "patient004",
        "patient006",
    }
    assert len(by_subject.positions("val", labelled=True)) == len(dataset.positions("val", labelled=True))
    assert len(labelled_subset(by_subject.table, 0.5, "patient")) == 6  # a share of the list
    columns = ["subject", "frame", "slice", "file"]  # as in a run's labelled_slices.csv
    rows = dataset.table.iloc[labelled_subset(dataset.table, 0.2, seed=3)]
    rows[columns].to_csv(tmp_path / "slices.csv", index=False)
    by_slice = with_labelled_list(dataset, tmp_path / "slices.csv")
    assert [*by_slice.positions("train", labelled=True)] == [*labelled_subset(dataset.table, 0.2, seed=3)]
    assert with_labelled_list(dataset, None) is dataset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names nothing"),
        ("patient004\npatient999\n", "names subject patient999, which .* does not hold"),
        ("patient002\n", "names subject patient002, which validates in this split"),
        ("patient001\n", "which tests in this split"),
        (
            "Subject,Slice\npatient004,1\n",
            "'Subject,Slice' is neither a subject nor .* lower case",
        ),
        ("subject;slice\npatient004;1\n", "'subject;slice' is neither a subject nor the head of a table"),
        ("subject,slice\npatient004,99\n", "names subject patient004, slice 99, which .* does not hold"),
        ("subject,frame,slice\npatient003,2,0\n", "names subject patient003, frame 2, slice 0, which has no labels"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused(dataset, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        listed(dataset, tmp_path, text)
    with pytest.raises(UserError, match="no such file"):
        with_labelled_list(dataset, tmp_path / "absent")


@pytest.mark.slow
def test_counts_of_the_benchmark_on_the_real_copy(real_acdc):
    dataset = open_slices(AcdcSource(data_root=real_acdc, split="ssl4mis"))
    counts = [
        len(labelled_subset(dataset.table, patients / 70, "patient", order=LABEL_ORDERS["ssl4mis"]))
        for patients in (1, 3, 7, 70)
    ]
    assert counts == [32, 68, 136, 1312]


@pytest.mark.slow
def test_a_split_of_the_real_copy_that_separates_one_person_is_refused(real_acdc, tmp_path):
    splits = acdc_splits(TRAINING) | {"patient076": "val"}
    save_splits(tmp_path / "splits.json", splits)
    dataset = open_slices(AcdcSource(data_root=real_acdc, split=str(tmp_path / "splits.json")))
    with pytest.raises(UserError, match=r"the same image is in two splits under two names: .*patient074.*patient076"):
        check_duplicates(dataset, test=False, allow=False)
    assert "under two names" in str(check_duplicates(dataset, test=False, allow=True))
