"""`python -m sweep.forecast`, through its command, on made-up studies whose truth is known."""

import runpy
import sys

import pytest
from made_up_study import ERRORS, made_up_study

from sweep.forecast import Forecast, run

SIZES = (0.02, 0.05, 0.1, 0.2, 0.4)


def forecast(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["forecast", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("sweep.forecast", None)
    runpy.run_module("sweep.forecast", run_name="__main__")


def test_the_command_prints_labels_gains_and_the_back_test(tmp_path, monkeypatch, capsys):
    out = made_up_study(tmp_path, fractions=SIZES, synthetic=True)
    forecast(monkeypatch, "--results", str(out), "--target", "0.8", "--draws", "300", "--at", "60", "--more", "20")
    printed = capsys.readouterr().out
    assert "labels needed for Dice 0.8 on the validation split" in printed
    assert "gain in Dice from 20 more slices at 60" in printed
    assert printed.count("  random: ") == printed.count("  generalist: ") == 2
    assert "predicted from the smaller sizes" in printed
    assert "of 6 errors at larger sizes lay inside" in printed  # 2 pipelines, fits to 3 and to 4 of 5 sizes
    assert "synthetic phantom: this checks that the software runs" in printed


def test_the_tables_of_a_forecast(tmp_path):
    out = made_up_study(tmp_path, fractions=SIZES, seeds=(0, 1, 2, 3, 4))
    needed, worth = run(Forecast(results=out, target=0.8, draws=300))
    for row in needed.to_dict("records"):
        alpha, eta, gamma = ERRORS[row["pipeline"]]
        assert row["low"] <= ((0.2 - alpha) / eta) ** (-1 / gamma) <= row["high"]
    assert worth["labels"].tolist() == [120, 120]
    assert (worth["gain"] > 0).all()


def test_exams_are_scored_by_auc_and_a_forecast_may_be_refused(tmp_path, capsys):
    out = made_up_study(
        tmp_path, task="classify", pipelines=("random", "[bold]"), fractions=(0.1, 1.0), total=50, scored=20
    )
    needed, worth = run(Forecast(results=out, target=0.9, draws=100))
    printed = capsys.readouterr().out
    assert "labels needed for AUC 0.9 on the validation split" in printed
    assert "[bold]: no forecast, scores at 2 sizes: a fit needs 3 or more" in printed
    assert needed["refused"].all()
    assert worth["refused"].all()
    assert "synthetic" not in printed


@pytest.mark.parametrize(
    ("arguments", "missing", "expected"),
    [
        (["--target", "1.2"], None, "--target 1.2: must lie in (0, 1), e.g. 0.85"),
        (["--target", "0.8", "--at", "0"], None, "--at 0.0: must be above 0"),
        (["--target", "0.8"], "study.json", "holds no study (no study.json)"),
        (["--target", "0.8"], "results.csv", "no run of the study has finished"),
        (["--target", "0.8"], "plan.json", "lacks plan.json"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, missing, expected):
    out = made_up_study(tmp_path, fractions=(0.1,))
    if missing:
        (out / missing).unlink()
    with pytest.raises(SystemExit) as stop:
        forecast(monkeypatch, "--results", str(out), *arguments)
    assert stop.value.code == 2
    assert expected in " ".join(capsys.readouterr().err.split())
