import json

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from data.splits import (
    SplitTable,
    acdc_split,
    inner_splits,
    labelled_subset,
    load_splits,
    refuse_overlap,
    save_splits,
    split_subjects,
)


def test_acdc_split_is_the_papers():
    of = {n: acdc_split(f"patient{n:03d}") for n in range(1, 101)}
    assert [n for n in of if of[n] == "test"] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    assert [n for n in of if of[n] == "val"] == [2, 12, 22, 32, 42, 52, 62, 72, 82, 92]
    assert sum(split == "train" for split in of.values()) == 80
    official = {n: acdc_split(f"patient{n}") for n in range(101, 151)}
    assert [n for n in official if official[n] != "test"] == [118]  # its images are those of training patient 055


@pytest.mark.parametrize(
    ("count", "train", "val", "test"),
    [(1, 1, 0, 0), (2, 1, 1, 0), (3, 1, 1, 1), (10, 7, 1, 2), (100, 70, 10, 20)],
)
def test_sizes_of_a_drawn_split(count, train, val, test):
    splits = list(split_subjects([f"s{i}" for i in range(count)]).values())
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (train, val, test)


def test_drawn_split_depends_on_the_seed_alone():
    names = [f"s{i}" for i in range(20)]
    assert split_subjects(names, 3) == split_subjects(names[::-1] * 2, 3)
    assert split_subjects(names, 3) != split_subjects(names, 4)
    assert "test" not in split_subjects(names, 3, test=False).values()


def test_splits_file_round_trip_and_errors(tmp_path):
    splits = split_subjects([f"s{i}" for i in range(9)])
    save_splits(tmp_path / "new" / "splits.json", splits)
    assert load_splits(tmp_path / "new" / "splits.json") == splits
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"train": ["a", "b"], "val": ["b"]}))
    with pytest.raises(UserError, match="subject b is both in train and in val"):
        load_splits(bad)
    bad.write_text(json.dumps([{"train": ["a"]}]))
    with pytest.raises(UserError, match="must hold"):
        load_splits(bad)
    bad.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_splits(bad)


def test_subject_in_two_splits_is_refused():
    table = pd.DataFrame({"subject": ["a", "b", "a"], "split": ["train", "val", "test"], "file": ["1", "2", "3"]})
    with pytest.raises(UserError, match=r"subject a is in two splits, train \(1\) and test \(3\)"):
        refuse_overlap(table)
    refuse_overlap(table.iloc[:2])


FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


def make_table(slices: int = 1498, patients: int = 80) -> pd.DataFrame:
    """Training slices dealt to patients of five groups, with unlabelled and validation rows among them."""
    subject = np.arange(slices) % patients
    table = pd.DataFrame(
        {
            "subject": [f"patient{n:03d}" for n in subject],
            "group": [f"G{n % 5}" for n in subject],
            "frame": 1,
            "slice": np.arange(slices) // patients,
            "file": [f"{n}.nii" for n in subject],
            "labelled": True,
            "split": "train",
        }
    )
    others = table.iloc[:50].assign(labelled=False), table.iloc[:50].assign(split="val", subject="other")
    return pd.concat([table, *others], ignore_index=True).sample(frac=1, random_state=0).reset_index(drop=True)


def keys(table: pd.DataFrame, positions: np.ndarray) -> set:
    return set(table.iloc[positions][["subject", "frame", "slice"]].itertuples(index=False, name=None))


def test_counts_are_the_papers():
    table = make_table()
    counts = [len(labelled_subset(table, fraction)) for fraction in FRACTIONS]
    assert counts == [1, 3, 7, 15, 30, 75, 150, 300, 749, 1498]


@pytest.mark.parametrize("unit", ["slice", "patient"])
def test_subsets_are_nested_labelled_and_for_training(unit):
    table = make_table()
    before: set[int] = set()
    for fraction in FRACTIONS:
        positions = labelled_subset(table, fraction, unit, seed=13)
        assert before <= set(positions.tolist())
        before = set(positions.tolist())
        rows = table.iloc[positions]
        assert rows["labelled"].all()
        assert (rows["split"] == "train").all()
        assert (np.diff(positions) > 0).all()
    assert len(before) == 1498


@pytest.mark.parametrize("unit", ["slice", "patient"])
def test_only_the_seed_matters(unit):
    table = make_table()
    shuffled = table.sample(frac=1, random_state=5)
    chosen = keys(table, labelled_subset(table, 0.1, unit, seed=7))
    assert chosen == keys(shuffled, labelled_subset(shuffled, 0.1, unit, seed=7))
    assert chosen != keys(table, labelled_subset(table, 0.1, unit, seed=8))


@pytest.mark.slow
def test_patients_come_whole_and_balanced_over_groups():
    table = make_table()
    for patients in range(1, 81):
        rows = table.iloc[labelled_subset(table, patients / 80, "patient", seed=1)]
        names = set(rows["subject"])
        assert len(names) == patients
        whole = table["subject"].isin(names) & table["labelled"] & (table["split"] == "train")
        assert len(rows) == whole.sum()
        per_group = rows.drop_duplicates("subject")["group"].value_counts().reindex([f"G{n}" for n in range(5)])
        assert per_group.fillna(0).max() - per_group.fillna(0).min() <= 1


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(UserError, match=r"labelled fraction .* is outside \(0, 1\]"):
        labelled_subset(make_table(), fraction)


def test_unknown_unit_and_nothing_labelled_are_refused():
    with pytest.raises(UserError, match="choose slice or patient"):
        labelled_subset(make_table(), 0.5, "volume")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no training slice has labels"):
        labelled_subset(make_table().assign(labelled=False), 0.5)


class OfSubjects(SplitTable):
    labelled_subjects = property(lambda self: {*self.table.loc[self.table["labelled"], "subject"]})


def test_inner_splits_take_labelled_training_subjects_apart(tmp_path):
    subjects = [f"{split}{i:02d}" for split in ("train", "val", "test") for i in range(16)]
    table = pd.DataFrame({"subject": subjects, "split": [name[:-2] for name in subjects], "group": list("ab") * 24})
    table["labelled"] = ~table["subject"].isin({"train14", "train15"})
    table = pd.concat([table, table])  # two slices each
    splits = inner_splits(OfSubjects(name="x", root=tmp_path, table=table))
    assert {splits[name] for name in subjects if not name.startswith("train")} == {"test"}
    inner = [name for name in subjects if splits[name] == "val"]
    assert len(inner) == 5  # a third of 14, and of each group
    assert abs(sum(int(name[-2:]) % 2 for name in inner) - 2.5) == 0.5
    assert {splits["train14"], splits["train15"]} == {"train"}  # they have no labels to validate with
    few = table[table["subject"].isin({"train00", "train01", "val00"})]
    with pytest.raises(UserError, match="2 labelled training subjects: a choice on an inner part of them needs 3"):
        inner_splits(OfSubjects(name="x", root=tmp_path, table=few))
