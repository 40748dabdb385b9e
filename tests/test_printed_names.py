"""Names are printed as they are: with brackets, colons, quotes, and characters that the output lacks."""

import io
import shlex
import sys

import pandas as pd
import pytest
from rich.table import Table

import classify.compare
import classify.predict
import segment.tables
from core.errors import UserError, user_errors
from core.terminal import terminal

NAMES = ["[a]scan[b].nii.gz", "[/red]", "[bold]x", "[bold]x[/bold]", ":smile:", "[link=x]y[/link]"]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_lines_and_tables(name, capsys):
    table = Table("file", title=name)
    table.add_row(name)
    console = terminal()
    console.print(table)
    console.print(f"written: {name}")
    assert capsys.readouterr().out.count(name) == 3


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_predictions_of_files_with_brackets(name, tmp_path, capsys):
    row = {"file": name, "subject": "s", "phase": "", "frame": 1, "volume_ml_[1]": 2.0}
    segment.tables.print_volumes(pd.DataFrame([row]), tmp_path / name)
    printed = capsys.readouterr().out
    assert printed.count(name) == 2
    assert "[1] mL" in printed
    classify.predict._print(
        pd.DataFrame([{"exam": name, "probability": 0.5, "called": 1, "threshold": 0.5}]), tmp_path / name
    )
    assert capsys.readouterr().out.count(name) == 2


def test_commands_to_copy_have_quoted_paths(tmp_path, capsys):
    run, images = tmp_path / "my [run]; x", tmp_path / "it's"
    scores = {name: {"mean": 0.5} for name in ("dice", "jaccard", "hd95_mm", "assd_mm")}
    result = {**scores, "not_counted": {"both_empty": {}, "one_empty": {}}, "patients": 1, "volumes": 1}
    segment.tables.print_result(result | {"slice_jaccard": 0.5, "synthetic": False}, run, images)
    printed = capsys.readouterr().out
    assert "mean over 1 patient, 1 volume;" in printed
    command = printed.split("next:")[1]
    assert shlex.split(command) == [
        "python", "-m", "segment.predict", "--run", str(run), "--input", str(images), "--output", "OUT",
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_an_output_that_lacks_a_character(encoding, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command():
        print("Škoda \U0001fac0 \udcfc")
        terminal(width=60).print(Table("–", title="volume – Škoda"))
        raise UserError("Škoda.nii is broken")

    with pytest.raises(SystemExit), user_errors():
        command()
    for stream in streams.values():
        stream.flush()
        assert b"koda" in stream.buffer.getvalue()


@pytest.mark.parametrize("pictures", [(), ("predictions.png",)])
def test_only_files_that_exist_are_named(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(segment.tables, "result_tables", lambda summary: [])
    for name in ("result.json", *pictures):
        (tmp_path / name).touch()
    segment.tables.print_result({"synthetic": False}, tmp_path, None)
    printed = capsys.readouterr().out
    assert f"{tmp_path}: {', '.join(('result.json', *pictures))}\n" in printed
    assert "learning_curve.png" not in printed
