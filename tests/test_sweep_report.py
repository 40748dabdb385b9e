"""Reports of made-up studies whose truth is known: power laws, gaps, one seed, phantoms, exams."""

import json
import re
import runpy
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from made_up_study import made_up_study
from matplotlib.text import Text
from PIL import Image

from core.errors import UserError
from core.files import write_json
from sweep.analysis.scores import Scores
from sweep.analysis.statistics import oriented
from sweep.analysis.study_files import curve_measure, read_curves
from sweep.report.figures.differences import differences
from sweep.report.figures.patients import patients
from sweep.report.figures.style import INK, MUTED, NARROW, WIDE, drawing, legend, pipeline_styles, selected, to_svg
from sweep.report.filters import interval, number, p_value, prose
from sweep.report.page import report
from sweep.report.settings_table import what_was_run
from sweep.report.study_folder import Facts, read_study
from sweep.report.summary import caveats, ranking, sentences


class Page(HTMLParser):
    """Text, addresses and ids of a page; every tag must be closed."""

    VOID = ("meta", "img", "br", "!doctype")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open, self.tags, self.addresses, self.ids, self.words = [], [], [], [], []
        self.feed(self.source)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


# ---- the whole page


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    """A study of the phantom from foreign weights, in which four cells and an encoder are missing."""
    skip = [("random", 6, 0), ("generalist", 15, 13), ("hierarchical", 6, 0), ("hierarchical", 6, 13)]
    out = made_up_study(
        tmp_path_factory.mktemp("phantom"),
        pipelines=("random", "generalist", "hierarchical"),
        seeds=(0, 13),
        synthetic=True,
        skip=skip,
    )
    for name, error in {
        "cells/random-n6-seed0": "the loss is not finite at step 7 & 8",
        "encoders/hierarchical": "<out of memory>",
    }.items():
        (out / name).mkdir(parents=True)
        (out / name / "error.txt").write_text(f"{error}\n\nTraceback (most recent call last):")
    write_card(out / "encoders" / "generalist", {"stage": "foreign", "source": "resnet18.pth"})
    for name in ("random-n120-seed0", "generalist-n120-seed0"):
        (out / "cells" / name).mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 255, (90, 1500, 3), np.uint8)
        Image.fromarray(picture).save(out / "cells" / name / "predictions.png")
    report(out, draws=400)
    return out


def write_card(folder: Path, *lineage: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "encoder.json", {"lineage": lineage})


@pytest.fixture(scope="module")
def page(phantom) -> Page:
    return Page(phantom / "report.html")


@pytest.mark.slow
def test_nothing_is_fetched(page):
    assert page.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)|@font-face", page.source)
    assert page.tags.count("img") == 2
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.ids)
    assert {match[1] for match in re.finditer(r"url\(#([^)]+)\)", page.source)} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


@pytest.mark.slow
def test_one_page_for_light_and_dark_wide_and_narrow(page):
    assert "@media (prefers-color-scheme: dark)" in page.source
    assert "@media (max-width: 640px)" in page.source
    assert 'name="viewport"' in page.source
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert "var(--ink)" in drawn
    assert all(f"var(--c{place})" in drawn for place in range(3))
    assert not re.search(f"{INK}|{MUTED}|{pipeline_styles(['generalist'])['generalist'].light}", drawn)
    assert page.source.count('<div class="wide"') == page.source.count('<div class="narrow"') == 7


@pytest.mark.slow
def test_figures_are_files_as_well(phantom):
    names = {"error_by_labels", "forecasts", "differences", "patients"}
    names |= {"validation_curves", "curve_areas", "steps_reached"}
    assert {file.stem for file in (phantom / "figures").iterdir()} == names
    for name in names:
        svg = ElementTree.parse(phantom / "figures" / f"{name}.svg").getroot()
        assert svg.get("viewBox", "").startswith(f"0 0 {WIDE} ")
        with Image.open(phantom / "figures" / f"{name}.png") as image:
            assert image.width == pytest.approx(WIDE * 150 / 72, abs=1)


@pytest.mark.slow
def test_numbers_are_on_the_page(phantom, page):
    tables = {name: pd.read_csv(phantom / "statistics" / f"{name}.csv") for name in ("by_size", "primary", "fits")}
    for row in tables["by_size"].dropna(subset=["low"]).to_dict("records"):
        assert f"{row['mean']:.3f} {row['low']:.3f} to {row['high']:.3f}" in page.text
    assert f"{tables['fits']['gamma'].iloc[0]:.3g}" in page.text
    first = tables["primary"].iloc[0]
    assert f"generalist random {first['area_difference']:+.3f}" in page.text


@pytest.mark.slow
def test_gaps_are_marked(phantom, page):
    runs = {run["name"]: run for run in read_study(phantom, "dice", 100, 0).runs}
    assert Counter(run["state"] for run in runs.values() if run["is_cell"]) == {"done": 20, "failed": 3, "not run": 1}
    grid = page.source[page.source.index('id="runs"') :]
    assert grid.count('title="random-n6-seed0: failed"') == 1
    assert grid.count('title="generalist-n15-seed13: not run"') == 1
    assert len(re.findall(r'title="[^"]*: done"', grid)) == 20
    assert "4 of 24 runs are missing." in page.text
    assert "20 of 24 runs are finished, 3 failed and 1 were not started" in page.text
    assert runs["cells/random-n6-seed0"]["error"] == "the loss is not finite at step 7 & 8"
    assert "encoders/hierarchical ✗ <out of memory>" in page.text
    assert "cells/hierarchical-n6-seed0 ✗ needs encoders/hierarchical, which failed" in page.text
    assert "Traceback" not in page.text


@pytest.mark.slow
def test_facts_of_a_phantom(phantom):
    facts = read_study(phantom, "dice", 100, 0).facts
    assert (facts.synthetic, facts.scored, facts.unit_scored, facts.unit) == (True, 8, "patients", "slices")
    assert (facts.missing, facts.cells, facts.seeds, facts.split) == (4, 24, 2, "validation")
    assert facts.data == "a synthetic phantom in the layout of ACDC"
    assert list(facts.natural_image_starts) == ["resnet18.pth"]


@pytest.mark.slow
def test_what_was_run(phantom, page):
    rows = what_was_run(read_study(phantom, "dice", 100, 0))
    assert rows["Labelled slices"] == "6 (2 %), 15 (5 %), 30 (10 %), 120 (40 %)"
    assert rows["Encoder"], rows["Images"] == ("resnet50", "224 pixels")
    assert rows["Training"] == "1,050 steps with batch size 192"
    assert rows["Domain pretraining (byol)"] == "25 epochs (hierarchical) with batch size 128, 224 x 192 pixels"
    assert rows["Natural-image start"] == "resnet18.pth"
    assert all(f"{name} {text}" in page.text for name, text in rows.items())


def test_natural_image_starts_are_what_the_cards_say(tmp_path):
    out = made_up_study(tmp_path, pipelines=("random", "specialist"))
    assert not read_study(out, "dice", 100, 0).facts.natural_image_starts
    settings = {"data": {"name": "procedural"}, "steps": 72, "batch_size": 64}
    write_card(out / "encoders" / "a", {"stage": "generalist", "source": "timm resnet18.a1_in1k"}, {"stage": "byol"})
    write_card(out / "encoders" / "b", {"stage": "generalist"} | settings, {"stage": "hierarchical"} | settings)
    write_card(out / "encoders" / "specialist", {"stage": "specialist"} | settings)
    starts = read_study(out, "dice", 100, 0).facts.natural_image_starts
    assert list(starts) == [
        "timm resnet18.a1_in1k",
        "trained in this study on procedural images, 72 steps with batch size 64",
    ]
    assert [bool(caveat) for caveat in starts.values()] == [False, True]


def test_short_pretraining_and_what_is_left_of_the_start(tmp_path):
    out = made_up_study(tmp_path, pipelines=("random", "specialist"), fractions=(0.02, 0.1))
    stage = {"stage": "specialist", "data": {"name": "acdc"}, "batch_size": 64}
    for seed in (0, 1):  # told once
        write_card(out / "encoders" / f"specialist-pretrained{seed}", stage | {"steps": 106, "start_share": 0.583})
    write_card(out / "encoders" / "hierarchical", {"stage": "foreign", "source": "a.pth"}, stage | {"steps": 1500})
    study = read_study(out, "dice", 100, 0)
    sentence = (
        "Pretraining: hierarchical 1,500 optimiser steps, specialist 106 optimiser steps (58.3% of the initial weights "
        "are left in the encoder); with fewer than 1,000 steps scores say little about a method."
    )
    assert study.facts.pretraining == sentence
    assert sentence in caveats(study.facts)
    for seed in (0, 1):
        write_card(out / "encoders" / f"specialist-pretrained{seed}", stage | {"steps": 1000, "start_share": 0.01})
    facts = read_study(out, "dice", 100, 0).facts
    assert "specialist 1,000 optimiser steps (1.0% of the initial" in facts.pretraining
    assert facts.pretraining not in caveats(facts)


def test_choices_on_the_reported_split_are_named(tmp_path):
    training = {"encoder": "resnet50", "image_size": 224, "steps": 1050, "batch_size": 192}
    segment = made_up_study(tmp_path / "a", fractions=(0.02, 0.1), segment=training | {"select": "best"})
    chosen = "Chosen on the split that is reported, so that scores are too high: "
    weights = "the weights that are kept, those of the best Dice during training"
    facts = read_study(segment, "dice", 100, 0).facts
    assert f"{chosen}{weights}." in caveats(facts)
    rows = pd.read_csv(segment / "results.csv"), pd.read_csv(segment / "per_volume.csv")
    for table, name in zip(rows, ("results", "per_volume"), strict=True):  # the same study, scored on test as well
        pd.concat([table, table.assign(split="test")]).to_csv(segment / f"{name}.csv", index=False)
    assert not any(chosen in limit for limit in caveats(read_study(segment, "dice", 100, 0).facts))
    classifier = training | {"select": "last", "threshold": "youden"}
    exams = made_up_study(tmp_path / "b", task="classify", fractions=(0.02, 0.1), scored=9, classify=classifier)
    limits = caveats(read_study(exams, "dice", 100, 0).facts)
    assert f"{chosen}the threshold of accuracy, sensitivity and specificity, by Youden's index." in limits


def test_pretraining_seeds_in_words():
    one, two, many = (replace(FACTS, pretrainings=count) for count in (1, 2, 5))
    assert any(limit.startswith("One encoder per pipeline: the intervals do not cover") for limit in caveats(one))
    assert any(limit.startswith("2 pretraining seeds are few") for limit in caveats(two))
    assert not any("pretraining" in limit for limit in caveats(many))
    assert not any("encoder" in limit for limit in caveats(replace(one, pipelines=("random",))))


@pytest.mark.slow
def test_a_page_in_jaccard_with_learning_rates_and_short_pretraining(tmp_path):
    out = made_up_study(tmp_path, fractions=(0.02, 0.1), lr=[1e-4, 1e-3, 1e-2], measure="jaccard")
    results, curves = pd.read_csv(out / "results.csv"), pd.read_parquet(out / "curves.parquet")
    rate = results["pipeline"].map({"random": 1e-2, "generalist": 1e-3})
    results.assign(lr=rate).to_csv(out / "results.csv", index=False)
    curves.assign(jaccard=curves["score"] / 2).to_parquet(out / "curves.parquet")
    rates = {"pipeline": "random", "lr": [1e-4, 1e-2], "score": [np.nan, 0.5], "chosen": [False, True]}
    pd.DataFrame(rates).to_csv(out / "rates.csv", index=False)
    stage = {"stage": "specialist", "data": {"name": "acdc"}, "batch_size": 64, "steps": 24, "start_share": 0.5}
    write_card(out / "encoders" / "specialist", stage)
    page = Page(report(out, draws=100))
    assert (
        "Learning rate 0.01 (random), 0.001 (generalist), each the best of 0.0001, 0.001, 0.01 on a third of the "
        "labelled training patients, which nothing reported was scored on; at the edge of those tried, so that a "
        "better one may lie beyond: random: highest"
    ) in page.text
    assert "random 0.0001 failed random 0.01 0.500 ●" in page.text
    rate = rate.where(results["labels"] != results["labels"].max(), 1e-4)  # as of another fold
    results.assign(lr=rate).to_csv(out / "results.csv", index=False)
    pd.DataFrame(rates).assign(fold=[0, 3]).to_csv(out / "rates.csv", index=False)
    of_folds = Page(report(out, draws=100)).text
    assert "Learning rate 0.01 or 0.0001 (random), 0.001 or 0.0001 (generalist), each" in of_folds
    assert "random: highest, random: lowest, generalist: lowest" in of_folds
    assert "all runs of the pipeline took on that fold." in of_folds
    assert "random 0 0.0001 failed random 3 0.01 0.500 ●" in of_folds
    assert "scored by Jaccard" in page.text
    assert "Jaccard on the validation split during training" in page.text  # as in the paper's figure 3
    assert page.text.count("Pretraining: specialist 24 optimiser steps (50.0%") == 2  # a limit, and above the tables


def test_curves_in_jaccard(tmp_path):
    out = made_up_study(tmp_path, fractions=(0.02, 0.1))
    curves = pd.read_parquet(out / "curves.parquet")
    assert curve_measure(curves, "jaccard") == "dice"  # of version 0.1: they stay in Dice
    with_jaccard = curves.assign(jaccard=curves["score"] / 2)
    with_jaccard.to_parquet(out / "curves.parquet")
    assert curve_measure(with_jaccard, "jaccard") == "jaccard"
    np.testing.assert_allclose(read_curves(out, "jaccard")["score"], curves["score"] / 2)
    np.testing.assert_allclose(read_curves(out)["score"], curves["score"])
    assert read_curves(out, "auc")["score"].equals(read_curves(out)["score"])


@pytest.mark.slow
def test_exams_pretrained_for_several_epochs(tmp_path):
    """Scores by length of pretraining, AUC in place of Dice, no masks; and two sizes are not enough for a fit."""
    out = made_up_study(
        tmp_path, task="classify", pipelines=("random", "specialist"), fractions=(0.1, 1.0), total=50, scored=20,
        pretrain_epochs=(0, 3),
    )  # fmt: skip
    page = Page(report(out, draws=200))
    assert "scored by AUC on 20 exams" in page.text
    assert "MRNet, real images" in page.text
    assert {"pretraining", "speed"} < set(page.ids)
    assert "predictions" not in page.ids
    assert (out / "figures" / "pretraining.svg").exists()
    assert not (out / "figures" / "forecasts.svg").exists()
    assert "random : scores at 2 sizes: a fit needs 3 or more." in page.text
    assert "specialist , 3 epochs" in page.text
    assert "All 18 runs are finished." in page.text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.text)


@pytest.mark.slow
def test_names_and_errors_are_escaped(tmp_path):
    attack = "<script>alert(1)</script>"
    pipeline = f"generalist={attack}"
    out = made_up_study(tmp_path, pipelines=("random", pipeline), fractions=(0.02, 0.1), skip=[(pipeline, 6, 0)])
    volumes = pd.read_csv(out / "per_volume.csv").replace({"subject": {"patient000": attack}})
    volumes.to_csv(out / "per_volume.csv", index=False)
    plan = json.loads((out / "plan.json").read_text())
    plan["jobs"] = [job for job in plan["jobs"] if job["is_cell"]]
    failed = next(job for job in plan["jobs"] if (job["pipeline"], job["labels"], job["seed"]) == (pipeline, 6, 0))
    failed["name"], failed["needs"] = "cells/<script>", []
    write_json(out / "plan.json", plan)
    (out / failed["name"]).mkdir(parents=True)
    (out / failed["name"] / "error.txt").write_text(f"cannot read {attack}")
    write_card(out / "encoders" / "generalist", {"stage": "foreign", "source": attack})
    page = Page(report(out, draws=100))
    assert "script" not in page.tags
    assert f"cannot read {attack}" in page.text
    assert f"Natural-image start {attack}" in page.text
    assert page.text.count(pipeline) > 10


# ---- the sentences


def read(out: Path):
    study = read_study(out, "dice", 400, 0)
    return study, sentences(study.tables, study.facts), caveats(study.facts)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return read(made_up_study(tmp_path_factory.mktemp("three"), pipelines=("random", "generalist", "specialist")))


def test_a_difference_that_is_decided(three):
    study, summary, limits = three
    assert len(summary) == 6
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in summary)
    gain = study.tables["gains"].set_index("pipeline").loc["generalist"]
    assert (gain["fewest"], gain["most"]) == (6, 120)
    means = study.tables["by_size"].set_index(["pipeline", "labels"])["mean"]
    assert gain["gain"] == pytest.approx(means["generalist", 120] - means["generalist", 6])
    assert 0 < gain["low"] < gain["gain"] < gain["high"]
    assert summary[0].startswith(f"From 6 to 120 slices the Dice of generalist rose by {gain['gain']:.3f} (+")
    row = study.tables["primary"].iloc[0]
    interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
    assert "generalist had the best mean Dice: it beat " in summary[1]
    assert f"random by {row['area_difference']:.3f} {interval}" in summary[1]
    by_size = study.tables["by_size"].set_index(["pipeline", "labels"])["mean"]
    assert f"With 6 slices generalist scored {by_size['generalist', 6]:.3f} [" in summary[2]
    assert f"with 120 slices generalist scored {by_size['generalist', 120]:.3f} [" in summary[2]
    assert "undecided" not in summary[1]
    pattern = r"To equal random at 120 slices generalist needed \d+, \d.\d times fewer \(95 % interval"
    assert re.match(pattern, summary[3])
    assert re.search(r"with 120 slices generalist took (at least )?\d(.\d)? times fewer steps than random", summary[4])
    assert any("ACDC, real images" in limit for limit in limits)
    assert not any("synthetic" in sentence for sentence in (*summary, *limits))


def test_a_difference_that_is_undecided(tmp_path):
    _, summary, _ = read(made_up_study(tmp_path, pipelines=("random", "specialist")))
    assert re.search(
        r", but whether it is better than (random|specialist) \(\+0.\d+ \[−0.\d+, 0.\d+\]\) is undecided", summary[1]
    )
    assert "beat" not in summary[1]
    assert summary[2].count("undecided") == 2
    assert "whether it saves labels is undecided" in summary[3]


def test_one_seed_decides_nothing(tmp_path):
    study, summary, limits = read(made_up_study(tmp_path, seeds=(0,)))
    assert "but whether it is better than random (+0." in summary[1]
    assert "no interval) is undecided" in summary[1]
    assert summary[2].count("without an interval") == 2
    assert "there is no interval, so whether it saves labels is undecided" in summary[3]
    assert "there is no interval, so which is faster is undecided" in summary[4]
    assert "a test on larger sizes takes 2 seeds or more" in summary[5]
    assert "One seed: no interval, so nothing here is decided." in limits
    assert not any("[" in sentence for sentence in summary)
    assert study.facts.seeds == 1


def test_missing_cells_are_a_caveat(tmp_path):
    study, summary, limits = read(made_up_study(tmp_path, skip=[("random", 15, 0), ("generalist", 120, 13)]))
    assert (study.facts.missing, study.facts.cells) == (2, 24)
    assert any(limit.startswith("2 of 24 runs are missing") for limit in limits)
    assert "it beat random" in summary[1]


def test_the_words_of_the_summary(three, tmp_path):
    """All sentences and limits once as they are printed, with # for numbers."""
    undecided = read(made_up_study(tmp_path, pipelines=("random", "specialist"), seeds=(0, 1), synthetic=True))
    texts = [*three[1], *three[2], *undecided[1][1:3], *undecided[2][:1]]
    assert [re.sub(r"[+−]?\b\d+([.,]\d+)*", "#", text) for text in texts] == SUMMARY


SUMMARY = [
    "From # to # slices the Dice of generalist rose by # (# [#, #]).",
    "Over all sizes together generalist had the best mean Dice: it beat specialist by # [#, #] and random by # [#, #].",
    "With # slices generalist scored # [#, #] and random scored # [#, #], a difference of # [#, #]; with # slices "
    "generalist scored # [#, #] and random scored # [#, #], a difference of # [#, #].",
    "To equal random at # slices generalist needed #, # times fewer (# % interval of the factor # to #).",
    "To reach # % of the common reference score with # slices generalist took at least # times fewer steps than random "
    "(# % interval of the speed-up, over seeds, from # up).",
    "Fitted to the smaller sizes only, the curves predicted the error at a larger one # times, and the error observed "
    "lay inside the # % interval # of # times; that is too few to judge the forecasts.",
    "One data set (ACDC, real images), # patients of the validation split and one set of settings (resnet50, # pixels, "
    "# steps with batch size #): other data and other settings may give another order.",
    "# seeds are few: the intervals themselves are rough.",
    "One encoder per pipeline: the intervals do not cover how much another pretraining would differ.",
    "Scored on the validation split, on which settings may have been chosen; the test split was not used.",
    "Only the comparison over all sizes was declared beforehand and is corrected for the number of pairs (Holm); the "
    "other intervals are not.",
    "On the synthetic phantom, over all sizes together random had the best mean Dice, but whether it is better than "
    "specialist (# [#, #]) is undecided.",
    "With # slices specialist scored # [#, #] and random scored # [#, #], a difference of # [#, #], undecided; with # "
    "slices specialist scored # [#, #] and random scored # [#, #], a difference of # [#, #], undecided.",
    "The patients are synthetic: this checks that the software runs; it is no evidence about any method.",
]


FACTS = Facts(
    pipelines=("random", "new"), score="Dice", unit="slices", split="test", unit_scored="patients", seeds=5,
    dataset="X", synthetic=False, settings="none", natural_image_starts={},
)  # fmt: skip


def with_rows(three, **tables) -> list[str]:
    """The sentences of the study, with other rows in some tables and a pipeline "new" in place of generalist."""
    changed = {}
    for name, rows in three[0].tables.items():
        rows = rows.replace("generalist", "new")
        changed[name] = rows[~rows.isin(["specialist"]).any(axis=1)].reset_index(drop=True)
    changed |= {name: changed[name].iloc[:1].assign(**values) for name, values in tables.items()}
    return sentences(changed, FACTS)


def test_a_difference_that_holms_correction_leaves_undecided(three):
    summary = with_rows(three, primary={"p_holm": 0.2})[1]
    assert re.search(
        r"whether it is better than random \(\+0.\d+ \[0.\d+, 0.\d+\], but Holm's p is 0.2\) is undecided", summary
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "bound", "expected"),
    [
        (2.0, 1.5, 3.0, "", "needed 50, 2 times fewer (95 % interval of the factor 1.5 to 3)."),
        (2.0, 0.8, 3.0, "", "needed 50, 2 times fewer, but whether it saves labels is undecided (95 % interval of"),
        (0.5, 0.0, 0.9, "", "needed 200, 2 times as many (95 % interval of the factor up to 0.9)."),
        (1.001, 0.9, np.inf, "", "needed about as many, but whether it saves labels is undecided"),
        (20.0, 4.0, np.inf, ">=", "needed no more than 5, the fewest tried (95 % interval of the factor from 4 up)."),
        (1.0, 0.0, np.inf, "<=", "would need more than 100, the most tried, but whether it saves labels is undecided"),
        (
            1.0,
            0.0,
            0.0,
            "<=",
            "the most tried (95 % interval of the factor below all values that were tried).",
        ),
    ],
)
def test_labels_saved_in_words(three, value, low, high, bound, expected):
    row = {"pipeline": "new", "baseline": "random", "labels": 100, "multiplier": value}
    summary = with_rows(three, multipliers=row | {"low": low, "high": high, "bound": bound})[3]
    assert summary.startswith("To equal random at 100 slices new ")
    assert expected in summary


@pytest.mark.parametrize(
    ("first", "value", "low", "high", "bound", "times", "end"),
    [
        ("new", 2.0, 1.5, 3.0, "", "2 times fewer steps than", " 1.5 to 3)."),
        ("random", 0.5, 0.25, 0.8, "", "2 times fewer steps than", " 1.2 to 4)."),
        ("random", 2.0, 1.6, np.inf, ">=", "at least 2 times as many steps as", " up to 0.62)."),
        ("random", 0.5, 0.0, 0.8, "<=", "at least 2 times fewer steps than", " from 1.2 up)."),
        ("new", 1.0, 0.9, 1.1, "", "about as many steps as", "is undecided (95 % interval of * 0.9 to 1.1)."),
        ("new", 3.0, 0.0, 4.0, "<=", "at most 3 times fewer steps than", "is undecided (95 % interval of * up to 4)."),
    ],
)
def test_speed_in_words(three, first, value, low, high, bound, times, end):
    row = {"first": first, "second": "random" if first == "new" else "new", "labels": 1, "level": 0.95, "ratio": value}
    summary = with_rows(three, speedups=row | {"low": low, "high": high, "bound": bound})[4]
    assert summary.startswith(f"To reach 95 % of the common reference score with 1 slice new took {times} random")
    assert summary.replace("the speed-up, over seeds,", "*").endswith(end)


def test_a_speedup_without_an_estimate(three):
    row = {
        "first": "random",
        "second": "new",
        "labels": 9,
        "level": 0.95,
        "ratio": np.nan,
        "note": "no run reached the level",
    }
    assert "common reference score sooner with 9 slices: no run reached the level." in with_rows(three, speedups=row)[4]


@pytest.mark.parametrize(
    ("count", "inside", "expected"),
    [
        (12, 11, "11 of 12 times: forecasts held within the sizes tried; beyond these nothing was tested."),
        (12, 10, "10 of 12 times, fewer than a 95 % interval should hold"),
        (12, 5, "5 of 12 times, far fewer than a 95 % interval should hold, so do not rely on forecasts."),
        (2, 2, "predicted the error at a larger one 2 times, and the error observed lay inside"),
        (2, 2, "too few to judge the forecasts."),
    ],
)  # fmt: skip
def test_the_back_test_in_words(three, count, inside, expected):
    tables = dict(three[0].tables)
    tables["backtest"] = pd.DataFrame({"low": 0.1, "high": 0.2, "inside": [k < inside for k in range(count)]})
    assert expected in sentences(tables, three[0].facts)[5]


def test_random_as_the_best(three):
    """If random is best, the runner-up is compared with it, and no sentence favours pretraining."""
    summary = with_rows(three, primary={"area_difference": -0.03, "low": -0.04, "high": -0.02, "p_holm": 0.01})
    assert "random had the best mean Dice: it beat new by 0.030 [0.020, 0.040]." in summary[1]
    assert summary[3].startswith("To equal random at")


def test_ranking_takes_what_pairs_share(three):
    assert ranking(three[0].tables, three[0].facts.pipelines)[0] == "generalist"
    primary = pd.DataFrame(
        {
            "first": ["a", "a", "b"],
            "second": ["b", "c", "c"],
            "area_difference": [0.1, -0.1, -0.3],
            "low": 0.0,
            "high": 0.0,
        }
    )
    tables = {
        "primary": primary,
        "by_size": pd.DataFrame({"pipeline": ["a", "b", "c", "d"], "mean": [1, 1, 1, np.nan]}),
    }
    assert ranking(tables, ("a", "b", "c", "d")) == ["b", "a", "c"]


# ---- pieces


def test_styles_are_fixed_and_differ():
    alone = pipeline_styles(["hierarchical"])["hierarchical"]
    names = ["random", "hierarchical=imagenet", "hierarchical", "generalist=a", "generalist=b", "specialist"]
    many = pipeline_styles(names)
    assert list(many) == names
    assert many["hierarchical"] == alone
    assert many["generalist=a"] == pipeline_styles(["generalist"])["generalist"]
    assert len({style.light for style in many.values()}) == len({style.dark for style in many.values()}) == len(names)


def test_selected_sizes():
    assert selected([1, 2, 3]) == [0, 1, 2]
    assert selected(range(10)) == [0, 2, 4, 5, 7, 9]
    assert selected([5]) == [0]


def test_a_figure_is_the_same_every_time(three):
    study, styles = three[0], pipeline_styles(three[0].facts.pipelines)
    pairs, primary = (oriented(study.tables[name], study.facts.pipelines) for name in ("pairs", "primary"))
    drawn = [
        to_svg(differences(pairs, primary, styles, score="Dice", unit="slices", width=NARROW), "same") for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert "generalist − random" in drawn[0]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_long_names_of_pairs_stay_above_their_own_panel(width):
    names = ["random", "random+unlabelled", "hierarchical", "hierarchical+unlabelled"]
    rows = [{"pipeline": a, "baseline": b, "labels": 3} for a in names for b in names[: names.index(a)]]
    pairs = pd.DataFrame(rows).assign(difference=0.02, low=-0.01, high=0.05)
    figure = differences(pairs, pairs, pipeline_styles(names), score="Dice", unit="patients", width=width)
    figure.canvas.draw()
    texts = figure.findobj(lambda item: isinstance(item, Text) and any(name in item.get_text() for name in names))
    titles = [text.get_window_extent() for text in texts]
    assert len(titles) == 6
    assert not any(a.overlaps(b) for k, a in enumerate(titles) for b in titles[k + 1 :])
    assert all(title.x1 <= figure.bbox.width for title in titles)


def test_each_patient_has_a_point_in_every_row_and_a_line():
    values = np.array([[[[0.2, 0.8], [0.4, np.nan]]], [[[0.5, 0.9], [0.5, 0.7]]]])  # pipelines, sizes, seeds, patients
    scores = Scores(
        pipelines=("random", "generalist"),
        labels=np.array([3]),
        seeds=((0, 0), (1, 1)),
        patients=("a", "b"),
        values=values,
    )
    styles = pipeline_styles(scores.pipelines)
    (axis,) = patients(scores, styles, score="Dice", unit="patients").axes
    lines = [np.stack(line.get_data()).T.round(6).tolist() for line in axis.lines]
    assert lines[:2] == [[[0.3, 0], [0.5, 1]], [[0.8, 0], [0.8, 1]]]
    assert lines[2] == [[0.3, 0], [0.8, 0]]
    assert [line[0][0] for line in (lines[3], lines[5])] == [0.55, 0.65]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["random", "generalist"]
    exams = replace(scores, truth=np.array([0, 1]))
    assert patients(exams, styles, score="AUC", unit="exams") is None


@pytest.mark.parametrize("name", ["generalist=a$b$c_x", r"generalist=$\frac{$", 'generalist=<b> & "x" $^2$'])
def test_names_in_figures_are_no_formulas(name):
    with drawing(WIDE, 100) as figure:
        legend(figure, pipeline_styles([name]), WIDE)
    texts = [element.text for element in ElementTree.fromstring(to_svg(figure, "a")).iter() if element.text]
    assert name in texts


def test_words_and_numbers():
    text = prose("hierarchical=a&b beat hierarchical by <1 [−1, 2]: labels^-0.31", ["hierarchical", "hierarchical=a&b"])
    assert text.count('class="p"') == 2
    assert "a&amp;b</span>" in text
    assert "&lt;1" in text
    assert '<span class="n">[−1, 2]</span>' in text
    assert text.endswith("labels<sup>−0.31</sup>")
    assert number(-0.1234) == "−0.123"
    assert number(np.nan) == "–"
    assert interval({"low": 0.5, "high": np.inf}, ".1f") == "0.5 to ∞"
    assert interval({"low": np.nan, "high": np.nan}) == "none"
    assert p_value(0.0004) == "< 0.001"


# ---- reading, and mistakes


def test_an_unfinished_size_is_in_the_plan(tmp_path):
    skip = [(pipeline, 1498, seed) for pipeline in ("random", "generalist") for seed in (0, 1)]
    out = made_up_study(tmp_path, fractions=(0.01, 0.02, 0.05, 1.0), total=1498, seeds=(0, 1), skip=skip)
    failed = out / "cells" / "random-n1498-seed0"
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("disk full\n")
    states = {run["name"]: (run["state"], run["error"]) for run in read(out)[0].runs}
    assert states["cells/random-n1498-seed0"] == ("failed", "disk full")
    assert states["cells/random-n1498-seed1"] == ("not run", "")


def test_settings_of_the_data_in_a_group_and_at_the_top_level(tmp_path):
    for place, data in enumerate(({"data": {"dataset": "folder", "data_root": "/a/hearts"}}, {"data": None})):
        top = {"dataset": "folder", "data_root": "/a/hearts"} if data["data"] is None else {}
        out = made_up_study(tmp_path / str(place), pipelines=("random",), fractions=(0.1, 0.4), **data, **top)
        assert read_study(out, "jaccard", 100, 0).facts.data == "the folder hearts, real images"


def test_no_study(tmp_path):
    with pytest.raises(UserError, match=r"holds no study \(no study.json\); pass the --out folder"):
        report(tmp_path)


def test_no_cell_has_finished(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    for results in (None, "\n"):
        if results:
            (tmp_path / "results.csv").write_text(results)
        with pytest.raises(UserError, match="no run of the study has finished; run the same python -m sweep command"):
            report(tmp_path)


def test_a_study_of_version_0_1_has_no_plan(tmp_path):
    out = made_up_study(tmp_path, fractions=(0.1,))
    (out / "plan.json").unlink()
    with pytest.raises(UserError, match=r"lacks plan.json, .* run the same python -m sweep command again"):
        report(out)


# ---- the commands


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "holds no study"), (["--draws", "5"], "--draws 5 --seed 0: --draws takes 100 to 100,000")],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("sweep.report", run_name="__main__")
    assert stop.value.code == 2
    assert expected in " ".join(capsys.readouterr().err.split())
