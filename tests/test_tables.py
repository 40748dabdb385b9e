"""Tables that are read back: names stay what they are, and damaged tables are refused in one sentence."""

import numpy as np
import pandas as pd
import pytest

import classify.compare
from core.errors import UserError
from core.tables import read_table
from sweep.analysis.tables import study_scores

NAMES = ["NA", "None", "nan", "null", "N/A", "001", "1e5", "TRUE", "-inf", " a b ", 'say "x"', "a,b", "two\nlines", ""]

HEAD = (
    "cell,pipeline,pretrain_epochs,pretrain_seed,fraction,labels,subset_seed,seed,split,subject,group,phase,frame,"
    "dice_1,slices\n"
)


@pytest.mark.parametrize("column", ["subject", "exam", "group", "cell", "file", "config_hash"])
def test_names_stay_what_they_are(tmp_path, column):
    pd.DataFrame({column: NAMES, "score": np.arange(len(NAMES)) / 7}).to_csv(tmp_path / "a.csv", index=False)
    table = read_table(tmp_path / "a.csv")
    assert table[column].tolist() == NAMES
    assert table["score"].dtype == float


def test_missing_numbers_are_nan_and_numbers_are_pandas_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("subject,a,b,c,d\nNA,0.1234567890123456,,1,True\nB,nan,2,3,False\n")
    table = read_table(tmp_path / "a.csv")
    plain = pd.read_csv(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(table.drop(columns="subject"), plain.drop(columns="subject"))
    assert np.isnan(table["b"][0])
    assert np.isnan(table["a"][1])
    assert table["d"].dtype == bool


def test_a_byte_order_mark_and_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsubject,score\nM\xfcller,1\n")
    assert read_table(tmp_path / "a.csv")["subject"].tolist() == ["M\udcfcller"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("subject,dice\nA,1\nB", r"line 3 has 1 of 2 columns"),
        ("subject,dice\nA,1,2\n", r"line 2 has 3 of 2 columns"),
        ("subject,dice\nA,<b>1</b>\n", r"line 2: dice is '<b>1</b>', not a number"),
        ('subject,dice\nA,1\nB,"[1, 2]"\n', r"line 3: dice is '\[1, 2\]', not a number"),
        ("subject,dice\nA,True\nB,1\n", r"line 2: dice is 'True', not a number"),
        ("subject,dice\nA,1\0\n", "NUL bytes"),
        ("subject,dice,dice\nA,1,2\n", "two columns 'dice'"),
        ("<html><body>log in</body></html>\n", "no column 'subject'"),
        ("subject,score\nA,1\n", "no column 'dice'"),
        (None, "no such file"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, content, sentence):
    file = tmp_path / "a.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=sentence) as refused:
        read_table(file, ("subject", "dice"))
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("name", ["NA", "null", "001"])
def test_every_subject_counts_in_a_study(tmp_path, name):
    rows = [("AB", 0.9), ("CD", 0.9), (name, 0.0)]
    line = "random-n2-seed0,random,,0,0.5,2,0,0,val,{},{},,1,{},3\n"
    (tmp_path / "per_volume.csv").write_text(HEAD + "".join(line.format(s, s, dice) for s, dice in rows))
    scores = study_scores(tmp_path)
    assert set(scores.patients) == {"AB", "CD", name}
    assert scores.cells().item() == pytest.approx(0.6)


def _classifier(folder, exams, **changes):
    folder.mkdir()
    table = pd.DataFrame({"exam": exams, "split": "test", "label": [0, 1] * (len(exams) // 2)})
    table = table.assign(probability=np.linspace(0.1, 0.9, len(exams)), called=table["label"]).assign(**changes)
    table.to_csv(folder / "per_exam.csv", index=False)
    return folder


def test_exams_called_na_are_compared(tmp_path, capsys):
    exams = ["NA", "1", "01", "1e5", "None", "nan"]
    runs = tuple(_classifier(tmp_path / name, exams) for name in "ab")
    assert classify.compare.run(classify.compare.Compare(runs=runs))["exams"] == 6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"probability": 1.5}, "exam a has impossible scores"),
        ({"label": 2}, "exam a has impossible scores"),
        ({"probability": "<p>"}, "probability is '<p>', not a number"),
        ({"exam": "a"}, "exam a is there twice"),
    ],
)
def test_impossible_scores_of_exams_are_not_compared(tmp_path, changes, sentence):
    runs = _classifier(tmp_path / "a", list("abcd")), _classifier(tmp_path / "b", list("abcd"), **changes)
    with pytest.raises(UserError, match=sentence):
        classify.compare.run(classify.compare.Compare(runs=runs))
