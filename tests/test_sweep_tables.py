"""`python -m sweep.tables` on made-up studies; what is printed as published stands in the papers."""

import runpy
import sys

import pandas as pd
import pytest
from made_up_study import made_up_study

from core.errors import UserError
from core.files import write_json
from sweep.analysis.tables import analyse
from sweep.published import KNEES
from sweep.tables import Tables, run


def entries(table: pd.DataFrame, quantity: str) -> dict[str, str]:
    rows = table[table["quantity"].str.startswith(quantity)]
    return dict(zip(rows["pipeline"], rows["ours"], strict=True))


@pytest.mark.slow
def test_findings_of_segmentation_beside_ours(tmp_path, capsys):
    pipelines = ("random", "generalist", "hierarchical")
    out = made_up_study(tmp_path, pipelines=pipelines, pretrain_epochs=(0, 3), scored=5)
    card = {"stage": "hierarchical", "data": {"name": "acdc"}, "batch_size": 64, "steps": 53, "start_share": 0.77}
    (out / "encoders" / "hierarchical").mkdir(parents=True)
    write_json(out / "encoders" / "hierarchical" / "encoder.json", {"lineage": [card]})
    (table,) = run(Tables(studies=(out,), draws=200))
    tables = analyse(out, draws=200)
    assert list(table) == ["quantity", "published", "ours", "pipeline", "source"]
    assert table["published"].unique().tolist() == ["about 200", "4 to 5", "below 0", "30 to 75", "3 to 4"]
    assert table["source"].str.startswith("Kalapos and Gyires-Toth 2022, section").all()

    steps = tables["steps"].query("pipeline == 'hierarchical' and labels == 120 and level == 0.95").iloc[0]
    median = f"{steps['median']:.0f} [{steps['low']:.0f} to"
    assert entries(table, "steps to convergence")["hierarchical"].startswith(median)
    ratios = entries(table, "times fewer steps")
    assert set(ratios) == {"hierarchical against random", "hierarchical against generalist"}
    assert ratios["hierarchical against random"].removeprefix("at least ")[0] in "12"  # faster by construction
    pair = tables["pairs"].query("first == 'generalist' and second == 'hierarchical' and labels == 6").iloc[0]
    ours = entries(table, "hierarchical less generalist")["hierarchical, Dice with 6 slices"]
    assert ours.startswith(f"{-pair['difference']:+.3f} [".replace("-", "−"))
    assert set(entries(table, "labels at which")) == {*pipelines}
    epochs = entries(table, "epochs on the target")
    assert list(epochs) == ["hierarchical, Dice after 0", "hierarchical, Dice after 3"]
    longest = tables["by_size"].query("pipeline == 'hierarchical' and labels == 120").iloc[0]
    assert epochs["hierarchical, Dice after 3"].startswith(f"{longest['mean']:.3f} [{longest['low']:.3f} to")
    printed = " ".join(capsys.readouterr().out.split())
    sentence = (
        "Pretraining: hierarchical 53 optimiser steps (77.0% of the initial weights are left in the encoder); with"
    )
    assert printed.count(sentence) == 1
    assert "One encoder per pipeline" in printed


def test_exams_beside_the_papers(tmp_path, capsys):
    out = made_up_study(
        tmp_path, task="classify", pipelines=("random", "specialist"), fractions=(0.1, 1.0), total=50, scored=20
    )
    exams = pd.read_csv(out / "per_exam.csv")
    exams.assign(called=(exams["probability"] >= 0.5).astype(int)).to_csv(out / "per_exam.csv", index=False)
    (table,) = run(Tables(studies=(out,), draws=200))
    assert table["start"].iloc[:-2].tolist() == [row.start for row in KNEES]
    assert table["start"].iloc[-2:].tolist() == [
        "ours: random, 50 exams, 3 seeds",
        "ours: specialist, 50 exams, 3 seeds",
    ]
    own = exams[(exams["pipeline"] == "specialist") & (exams["labels"] == 50)]
    right = (own["probability"] >= 0.5) == (own["label"] == 1)
    row = table.iloc[-1]
    for name, expected in (
        ("accuracy", right.mean()),
        ("sensitivity", right[own["label"] == 1].mean()),
        ("specificity", right[own["label"] == 0].mean()),
    ):
        assert row[name].startswith(f"{expected:.3f} [")
    auc = analyse(out, draws=200)["by_size"].query("pipeline == 'specialist' and labels == 50").iloc[0]
    assert row["auc"] == f"{auc['mean']:.3f} [{auc['low']:.3f} to {auc['high']:.3f}]"
    assert "one is 0.83%" in capsys.readouterr().out
    assert table.iloc[0].tolist() == [
        "BYOLMed3D, 30 epochs",
        "0.708",
        "0.810",
        "0.463",
        "0.909",
        "Manna et al. 2022, table 1",
    ]


def test_published_scores_of_exams_are_possible():
    """Accuracy follows from sensitivity and specificity with the papers' 54 tears among 120 exams."""
    for row in KNEES:
        if row.sensitivity is not None and row.specificity is not None:
            right = round(54 * row.sensitivity) + round(66 * row.specificity)
            assert right / 120 == pytest.approx(row.accuracy, abs=0.0006), row


def test_mistakes(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="pass the folder of a study"):
        Tables(studies=())
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path)])
    sys.modules.pop("sweep.tables", None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("sweep.tables", run_name="__main__")
    assert stop.value.code == 2
    assert "holds no study" in " ".join(capsys.readouterr().err.split())
