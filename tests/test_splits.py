import json

import pandas as pd
import pytest

from data.errors import UserError
from data.splits import acdc_split, load_splits, refuse_overlap, save_splits, split_subjects


def test_acdc_split_is_the_papers():
    of = {n: acdc_split(f"patient{n:03d}") for n in range(1, 101)}
    assert [n for n in of if of[n] == "test"] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    assert [n for n in of if of[n] == "val"] == [2, 12, 22, 32, 42, 52, 62, 72, 82, 92]
    assert sum(split == "train" for split in of.values()) == 80
    assert {acdc_split(f"patient{n}") for n in range(101, 151)} == {"test"}


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
