"""Damaged and tampered files of a study: one sentence that names the file, never a wrong report or a traceback."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from made_up_study import made_up_study

from core.errors import UserError
from core.files import write_json
from sweep.analysis.study_files import display_name, first_line, is_inside, read_json, relative_paths
from sweep.report.page import report
from sweep.report.study_folder import read_study

HTML = b"<!doctype html><html><body>Please log in</body></html>\n"
FILES = ("study.json", "plan.json", "results.csv", "per_volume.csv", "curves.parquet")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return made_up_study(tmp_path_factory.mktemp("sound"), fractions=(0.02, 0.1), seeds=(0, 1), scored=3)


@pytest.fixture
def study(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "study")


def refusal(study) -> str:
    with pytest.raises(UserError) as refused:
        read_study(study, "dice", 100, 0)
    return str(refused.value)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def half_of_the_lines(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: len(lines) // 2])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: HTML,
        lambda content: b"[1, 2]\n",
        lambda content: bytes(5000),
        lambda content: b"[" * 50_000,
        lambda content: b"\xff\xfe\x00a",
        half,
        half_of_the_lines,
    ],
)
def test_a_damaged_file_is_named(study, name, damage):
    file = study / name
    file.write_bytes(damage(file.read_bytes()))
    sentence = refusal(study)
    assert name in sentence or "no run of the study has finished" in sentence
    assert len(sentence.splitlines()) == 1


def change(file, column, value, rows=slice(1, 2)):
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.loc[table.index[rows], column] = value
    table.to_csv(file, index=False)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("per_volume.csv", "dice_LV", "1e999"),
        ("per_volume.csv", "dice_LV", "<b>0.9</b>"),
        ("per_volume.csv", "dice_LV", "[0.9]"),
        ("per_volume.csv", "dice_LV", "-0.1"),
        ("per_volume.csv", "labels", "6.5"),
        ("per_volume.csv", "labels", ""),
        ("per_volume.csv", "pipeline", "<script>"),
        ("per_volume.csv", "cell", "another"),
        ("per_volume.csv", "pretrain_seed", ""),
        ("results.csv", "seed", "-1"),
        ("results.csv", "dice", "17"),
        ("results.csv", "fraction", "1e999"),
        ("results.csv", "cell", "../../elsewhere"),
    ],
)
def test_an_impossible_value_is_refused(study, name, column, value):
    change(study / name, column, value)
    assert name in refusal(study)


@pytest.mark.parametrize(
    ("column", "value"), [("score", np.inf), ("score", 2.0), ("labels", -1), ("step", "x"), ("fraction", "x")]
)
def test_an_impossible_curve_is_refused(study, column, value):
    file = study / "curves.parquet"
    pd.read_parquet(file).assign(**{column: value}).to_parquet(file)
    assert "curves.parquet" in refusal(study)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("study.json", ("pipelines",), "random"),
        ("study.json", ("pipelines",), ["specialist"]),
        ("study.json", ("segment", "image_size"), "<b>"),
        ("study.json", ("segment",), None),
        ("study.json", ("pretrain", "batch_size"), [1]),
        ("plan.json", ("unit",), "<script>"),
        ("plan.json", ("task",), "classify"),
        ("plan.json", ("jobs", 0, "name"), "../../../etc"),
        ("plan.json", ("jobs", 0, "needs"), None),
        ("plan.json", ("jobs", -1, "labels"), "many"),
    ],
)
def test_an_impossible_setting_is_refused(study, name, place, value):
    content = json.loads((study / name).read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_json(study / name, content)
    assert "study.json" in (sentence := refusal(study)) or "plan.json" in sentence


def test_a_table_that_lacks_volumes_is_refused(study):
    results = pd.read_csv(study / "results.csv").assign(volumes=3)
    results.to_csv(study / "results.csv", index=False)
    read_study(study, "dice", 100, 0)
    pd.read_csv(study / "per_volume.csv").iloc[:-1].to_csv(study / "per_volume.csv", index=False)
    assert "per_volume.csv lacks volumes of the cell" in refusal(study)


def test_a_damaged_card_of_an_encoder_is_named(study):
    (study / "encoders/generalist").mkdir(parents=True)
    for content in ('{"lineage": []}', '{"lineage": [{"stage": "foreign"}]}', "[]", "{"):
        (study / "encoders/generalist/encoder.json").write_text(content)
        assert "encoder.json" in refusal(study)


def test_errors_on_the_page_hold_no_folder_of_this_machine(study):
    cell = next(job for job in json.loads((study / "plan.json").read_text())["jobs"] if job["is_cell"])
    for name in ("results.csv", "per_volume.csv"):
        table = pd.read_csv(study / name)
        table[table["cell"] != cell["name"].removeprefix("cells/")].to_csv(study / name, index=False)
    curves = pd.read_parquet(study / "curves.parquet")
    curves[curves["cell"] != cell["name"].removeprefix("cells/")].to_parquet(study / "curves.parquet")
    (study / cell["name"]).mkdir(parents=True)
    secret = f"cannot read {study / cell['name']}/checkpoint.pt or /data/hospital/Jane/scan.nii\n"
    (study / cell["name"] / "error.txt").write_text(secret)
    runs = {run["name"]: run for run in read_study(study, "dice", 100, 0).runs}
    assert runs[cell["name"]]["error"] == f"cannot read {cell['name']}/checkpoint.pt or scan.nii"


def test_paths_in_a_message(tmp_path):
    text = "cells/a is lost; </b> 3/4 of a/b"
    assert relative_paths(f"{tmp_path}/{text}", tmp_path) == text


@pytest.mark.slow
def test_the_page_does_not_say_where_weights_are(tmp_path):
    pipeline = "generalist=/home/jane/hospital/weights.pth"
    out = made_up_study(tmp_path / "s", pipelines=("random", pipeline), fractions=(0.02, 0.1), seeds=(0,))
    plan = json.loads((out / "plan.json").read_text())
    for job in plan["jobs"]:
        job["name"] = job["name"].replace("/home/jane/hospital/", "")
        job["needs"] = []
    write_json(out / "plan.json", plan)
    for name in ("results.csv", "per_volume.csv"):
        table = pd.read_csv(out / name)
        table["cell"] = table["cell"].str.replace("/home/jane/hospital/", "")
        table.to_csv(out / name, index=False)
    curves = pd.read_parquet(out / "curves.parquet")
    curves["cell"] = curves["cell"].str.replace("/home/jane/hospital/", "")
    curves.to_parquet(out / "curves.parquet")
    page = report(out, draws=100).read_text()
    assert "jane" not in page
    assert "generalist=weights-" in page


def test_pipelines_of_different_files_stay_different():
    names = ["random", "generalist=imagenet", "generalist=a/b.pth", "generalist=/a/b.pth", "generalist=/c/b.pth"]
    assert list(map(display_name, names[:3])) == names[:3]
    assert len(set(map(display_name, names))) == 5


def test_names_that_leave_the_folder():
    assert is_inside("cells/a b")
    assert not any(map(is_inside, ("", "/etc", "../a", "cells/../../a", "a\0")))


def test_the_first_line_of_any_file(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\0 broken\nmore")
    assert first_line(tmp_path / "a") == "� broken"
    (tmp_path / "a").write_bytes(b"x" * 10**6)
    assert len(first_line(tmp_path / "a")) == 2000
    (tmp_path / "a").write_bytes(b"")
    assert first_line(tmp_path / "a") == first_line(tmp_path / "none") == ""


def test_json_that_is_no_object(tmp_path):
    (tmp_path / "a.json").write_text("5")
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json")
