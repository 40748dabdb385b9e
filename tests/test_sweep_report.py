"""Reports of made-up studies whose truth is known: power laws, gaps, one seed, phantoms, exams."""

import json
import re
import runpy
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.errors import UserError
from engine.config import plain
from sweep import figures
from sweep.config import SweepConfig
from sweep.figures import INK, MUTED, NARROW, WIDE, decided, looks, oriented, selected, to_svg
from sweep.page import between, chance, number, prose, table
from sweep.report import read_study, report
from sweep.summary import Facts, caveats, ranking, sentences

ERRORS = {
    "random": (0.1, 0.95, 0.5),
    "generalist": (0.1, 0.55, 0.5),
    "specialist": (0.1, 0.95, 0.5),
    "hierarchical": (0.1, 0.6, 0.5),
}
"""alpha, eta and gamma of each pipeline; specialist is no better than random."""
SPEED = {"random": 0.02, "generalist": 0.04, "specialist": 0.02, "hierarchical": 0.03}


def made_up_study(
    out: Path,
    *,
    pipelines=("random", "generalist"),
    fractions=(0.02, 0.05, 0.1, 0.4),
    total=300,
    seeds=(0, 13, 42),
    people=8,
    data_root="/data/ACDC",
    skip=(),
    **settings,
) -> Path:
    """Write what `python -m sweep` leaves behind, without its runs.

    Args:
        people: patients or exams scored.
        skip: (pipeline, labels, seed) of cells that have no result.
    """
    rng = np.random.default_rng(1)
    data_root = data_root and Path(data_root)
    cfg = SweepConfig(pipelines=pipelines, fractions=fractions, seeds=seeds, data_root=data_root, **settings)
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(json.dumps(plain(cfg)))
    results, details, curves = [], [], []
    of_person = rng.normal(0, 0.04, people)
    of_subset = {(seed, f): rng.normal(0, 0.01) for seed in seeds for f in fractions}
    for pipeline, seed, fraction in product(pipelines, seeds, fractions):
        labels = max(1, int(fraction * total + 0.5))
        if (pipeline, labels, seed) in skip:
            continue
        stage = pipeline.partition("=")[0]
        alpha, eta, gamma = ERRORS[stage]
        for epochs in (None,) if stage in ("random", "generalist") else cfg.pretrain_epochs or (None,):
            name = f"{pipeline}{'' if epochs is None else f'-epoch{epochs}'}-n{labels}-seed{seed}"
            key = {"cell": name, "pipeline": pipeline, "pretrain_epochs": epochs, "pretrain_seed": 0}
            key |= {"fraction": fraction, "labels": labels, "subset_seed": seed, "seed": seed}
            error = alpha + eta * labels**-gamma + of_subset[seed, fraction] + rng.normal(0, 0.004)
            error += 0 if epochs is None else 0.05 / (1 + epochs)
            scores = np.clip(1 - error + of_person + rng.normal(0, 0.01, people), 0.01, 0.99)
            row = {"labelled_subjects": min(labels, 80), "dice": scores.mean(), "auc": scores.mean()}
            results.append(key | {"split": "val"} | row | {"synthetic": data_root is None, "versions": "torch=2.11.0"})
            for person, score in enumerate(scores):
                if cfg.task == "classify":
                    label = person % 2
                    own = {"exam": f"{person:04d}", "label": label, "probability": rng.beta(2 + label, 3 - label)}
                else:
                    own = {"subject": f"patient{person:03d}", "phase": "ED"}
                    own |= {f"{m}_{c}": score - s for m, s in (("dice", 0), ("jaccard", 0.1)) for c in ("RV", "LV")}
                details.append(key | {"split": "val"} | own)
            for step in range(25, 151, 25):
                score = (1 - error) * (1 - np.exp(-SPEED[stage] * step)) + rng.normal(0, 0.003)
                curves.append(key | {"step": step, "score": score, "loss": error})
    pd.DataFrame(results).to_csv(out / "results.csv", index=False)
    pd.DataFrame(details).to_csv(out / ("per_exam.csv" if cfg.task == "classify" else "per_volume.csv"), index=False)
    pd.DataFrame(curves).to_parquet(out / "curves.parquet", index=False)
    return out


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
    """A study of the phantom from partial weights, of which four cells and an encoder are missing."""
    skip = [("random", 6, 0), ("generalist", 15, 13), ("hierarchical", 6, 0), ("hierarchical", 6, 13)]
    out = made_up_study(
        tmp_path_factory.mktemp("phantom"),
        pipelines=("random", "generalist", "hierarchical"),
        seeds=(0, 13),
        data_root=None,
        skip=skip,
        pretrain=replace(SweepConfig().pretrain, generalist="/weights/resnet18_imagenet_PARTIAL.pth"),
    )
    for name, said in {
        "cells/random-n6-seed0": "the loss is not finite at step 7 & 8",
        "encoders/hierarchical": "<out of memory>",
    }.items():
        (out / name).mkdir(parents=True)
        (out / name / "error.txt").write_text(f"{said}\n\nTraceback (most recent call last):")
    for name in ("random-n120-seed0", "generalist-n120-seed0"):
        (out / "cells" / name).mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 255, (90, 1500, 3), np.uint8)
        Image.fromarray(picture).save(out / "cells" / name / "predictions.png")
    report(out, draws=400)
    return out


@pytest.fixture(scope="module")
def page(phantom) -> Page:
    return Page(phantom / "report.html")


def test_nothing_is_fetched(page):
    assert page.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)|@font-face", page.source)
    assert page.tags.count("img") == 2
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.ids)
    assert {found[1] for found in re.finditer(r"url\(#([^)]+)\)", page.source)} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_one_page_for_light_and_dark_wide_and_narrow(page):
    assert "@media (prefers-color-scheme: dark)" in page.source
    assert "@media (max-width: 640px)" in page.source
    assert 'name="viewport"' in page.source
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert "var(--ink)" in drawn
    assert all(f"var(--c{place})" in drawn for place in range(3))
    assert not re.search(f"{INK}|{MUTED}|{looks(['generalist'])['generalist'].light}", drawn)
    assert page.source.count('<div class="wide">') == page.source.count('<div class="narrow">') == 6


def test_figures_are_files_as_well(phantom):
    names = {"error_by_labels", "forecasts", "differences", "validation_curves", "curve_areas", "steps_reached"}
    assert {file.stem for file in (phantom / "figures").iterdir()} == names
    for name in names:
        svg = ElementTree.parse(phantom / "figures" / f"{name}.svg").getroot()
        assert svg.get("viewBox", "").startswith(f"0 0 {WIDE} ")
        with Image.open(phantom / "figures" / f"{name}.png") as image:
            assert image.width == pytest.approx(WIDE * 150 / 72, abs=1)


def test_numbers_are_on_the_page(phantom, page):
    tables = {name: pd.read_csv(phantom / "statistics" / f"{name}.csv") for name in ("by_size", "primary", "fits")}
    for row in tables["by_size"].dropna(subset=["low"]).to_dict("records"):
        assert f"{row['mean']:.3f} {row['low']:.3f} to {row['high']:.3f}" in page.text
    assert f"{tables['fits']['gamma'].iloc[0]:.3g}" in page.text
    first = tables["primary"].iloc[0]
    assert f"generalist random {first['area_difference']:+.3f}" in page.text


def test_gaps_are_marked(page):
    assert "4 of 24 runs are missing." in page.text
    assert "20 of 24 runs are finished, 3 failed and 1 were not made" in page.text
    grid = page.source[page.source.index('id="runs"') :]
    assert grid.count('title="random-n6-seed0: failed"') == 1
    assert grid.count('title="generalist-n15-seed13: not run"') == 1
    assert len(re.findall(r'title="[^"]*: done"', grid)) == 20
    assert "cells/random-n6-seed0 ✗ the loss is not finite at step 7 & 8" in page.text
    assert "encoders/hierarchical ✗ <out of memory>" in page.text
    assert "cells/hierarchical-n6-seed0 ✗ needs encoders/hierarchical, which failed" in page.text
    assert "Traceback" not in page.text
    assert "one seed at 6 labels" in page.text


def test_caveats_of_a_phantom_with_gaps(page):
    assert "This shows that the plumbing works. It says nothing about a method or about patients." in page.text
    assert "On the synthetic phantom" in page.text
    assert "One data set (a synthetic phantom in the layout of ACDC), 8 patients of the validation split" in page.text
    assert "2 seeds are few" in page.text
    assert "partial (resnet18_imagenet_PARTIAL.pth)" in page.text
    assert "real images" not in page.text


def test_what_was_run(page):
    assert "Labelled slices 6 (2 %), 15 (5 %), 30 (10 %), 120 (40 %)" in page.text
    assert "Encoder resnet50 Images 224 pixels Training 1,050 steps of 192" in page.text
    assert "Domain pretraining (BYOL) 25 epochs of 128, 224 pixels" in page.text


def test_exams_pretrained_for_several_epochs(tmp_path):
    """Figure 6, AUC in place of Dice, no masks; and two sizes are not enough for a fit."""
    out = made_up_study(
        tmp_path, task="classify", pipelines=("random", "specialist"), fractions=(0.1, 1.0), total=50, people=20,
        pretrain_epochs=(0, 3),
    )  # fmt: skip
    page = Page(report(out, draws=200))
    assert "scored by AUC on 20 exams" in page.text
    assert "MRNet, real images" in page.text
    assert "How long to pretrain?" in page.text
    assert (out / "figures" / "pretraining.svg").exists()
    assert not (out / "figures" / "forecasts.svg").exists()
    assert "What the masks look like" not in page.text
    assert "random : scores at 2 sizes: a fit needs 3 or more." in page.text
    assert "specialist , 3 epochs" in page.text
    assert "All 18 runs are finished." in page.text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.text)


# ---- the sentences


def read(out: Path):
    study = read_study(out, "dice", 400, 0)
    return study, sentences(study.tables, study.facts), caveats(study.tables, study.facts)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return read(made_up_study(tmp_path_factory.mktemp("three"), pipelines=("random", "generalist", "specialist")))


def test_a_difference_that_is_decided(three):
    study, said, limits = three
    assert len(said) == 5
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in said)
    row = study.tables["primary"].iloc[0]
    interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
    assert "generalist had the best mean Dice: it beat " in said[0]
    assert f"random by {row['area_difference']:.3f} {interval}" in said[0]
    by_size = study.tables["by_size"].set_index(["pipeline", "labels"])["mean"]
    assert f"With 6 slices generalist scored {by_size['generalist', 6]:.3f} [" in said[1]
    assert f"with 120 slices generalist scored {by_size['generalist', 120]:.3f} [" in said[1]
    assert "undecided" not in said[0]
    assert re.match(r"To equal random at 120 slices generalist needed \d+, \d.\d times fewer \(95 % interval", said[2])
    assert re.search(r"with 120 slices generalist took (at least )?\d(.\d)? times fewer steps than random", said[3])
    assert any("ACDC, real images" in limit for limit in limits)
    assert not any("synthetic" in sentence for sentence in (*said, *limits))


def test_a_difference_that_is_undecided(tmp_path):
    _, said, _ = read(made_up_study(tmp_path, pipelines=("random", "specialist")))
    assert re.search(
        r", but whether it is better than (random|specialist) \(\+0.\d+ \[−0.\d+, 0.\d+\]\) is undecided", said[0]
    )
    assert "beat" not in said[0]
    assert said[1].count("undecided") == 2
    assert "whether it saves labels is undecided" in said[2]


def test_one_seed_decides_nothing(tmp_path):
    study, said, limits = read(made_up_study(tmp_path, seeds=(0,)))
    assert "but whether it is better than random (+0." in said[0]
    assert "no interval) is undecided" in said[0]
    assert said[1].count("without an interval") == 2
    assert "there is no interval, so whether it saves labels is undecided" in said[2]
    assert "there is no interval, so which is faster is undecided" in said[3]
    assert "not tested on larger sizes, for that takes 2 seeds or more" in said[4]
    assert "One seed: no interval, so nothing here is decided." in limits
    assert not any("[" in sentence for sentence in said)
    assert study.facts.seeds == 1


def test_missing_cells_are_a_caveat(tmp_path):
    study, said, limits = read(made_up_study(tmp_path, skip=[("random", 15, 0), ("generalist", 120, 13)]))
    assert (study.facts.missing, study.facts.cells) == (2, 24)
    assert any(limit.startswith("2 of 24 runs are missing") for limit in limits)
    assert "it beat random" in said[0]


FACTS = Facts(
    pipelines=("random", "new"), score="Dice", unit="slices", split="test", people="patients", seeds=5, dataset="X",
    synthetic=False, settings="none",
)  # fmt: skip


def with_rows(three, **tables) -> list[str]:
    """The sentences of the study, with other rows in some tables and a pipeline "new" in place of generalist."""
    own = {name: rows.replace("generalist", "new") for name, rows in three[0].tables.items()}
    own = {name: rows[~rows.isin(["specialist"]).any(axis=1)].reset_index(drop=True) for name, rows in own.items()}
    own |= {name: own[name].iloc[:1].assign(**values) for name, values in tables.items()}
    return sentences(own, FACTS)


def test_a_difference_that_holms_correction_takes_away(three):
    said = with_rows(three, primary={"p_holm": 0.2})[0]
    assert re.search(
        r"whether it is better than random \(\+0.\d+ \[0.\d+, 0.\d+\], but Holm's p is 0.2\) is undecided", said
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
        (1.0, 0.0, 0.0, "<=", "more than 100, the most tried (95 % interval of the factor below all that was tried)."),
    ],
)
def test_labels_saved_in_words(three, value, low, high, bound, expected):
    row = {"pipeline": "new", "baseline": "random", "labels": 100, "multiplier": value}
    said = with_rows(three, multipliers=row | {"low": low, "high": high, "bound": bound})[2]
    assert said.startswith("To equal random at 100 slices new ")
    assert expected in said


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
    said = with_rows(three, speedups=row | {"low": low, "high": high, "bound": bound})[3]
    assert said.startswith(f"To reach 95 % of the common reference score with 1 slice new took {times} random")
    assert said.replace("the speed-up, over seeds,", "*").endswith(end)


def test_speed_that_cannot_be_said(three):
    row = {
        "first": "random",
        "second": "new",
        "labels": 9,
        "level": 0.95,
        "ratio": np.nan,
        "note": "no run reached the level",
    }
    assert (
        "cannot be said from these runs with 9 slices: no run reached the level." in with_rows(three, speedups=row)[3]
    )


@pytest.mark.parametrize(
    ("count", "inside", "expected"),
    [
        (12, 11, "11 of 12 times: forecasts held within the sizes tried; beyond these nothing was tested."),
        (12, 10, "10 of 12 times, fewer than promised"),
        (12, 5, "5 of 12 times, far fewer than promised, so do not rely on forecasts."),
        (2, 2, "made 2 forecasts of the error at a larger one, and what was then observed lay inside"),
        (2, 2, "too few to judge them by."),
    ],
)  # fmt: skip
def test_the_back_test_in_words(three, count, inside, expected):
    tables = dict(three[0].tables)
    tables["backtest"] = pd.DataFrame({"low": 0.1, "high": 0.2, "inside": [k < inside for k in range(count)]})
    assert expected in sentences(tables, three[0].facts)[4]


def test_random_as_the_best(three):
    """Then the runner-up is compared with it, and nothing is said in favour of pretraining."""
    said = with_rows(three, primary={"area_difference": -0.03, "low": -0.04, "high": -0.02, "p_holm": 0.01})
    assert "random had the best mean Dice: it beat new by 0.030 [0.020, 0.040]." in said[0]
    assert said[2].startswith("To equal random at")


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


def test_differences_are_turned_towards_the_later_pipeline():
    pairs = pd.DataFrame(
        {"first": ["b", "a"], "second": ["a", "c"], "labels": 5,
         "difference": [0.2, -0.1], "low": [0.1, -0.3], "high": [0.3, 0.1],
         "improvement": [1.0, 0.25], "improvement_low": [0.9, 0.0], "improvement_high": [1.0, 0.5]}
    )  # fmt: skip
    turned = oriented(pairs, ("a", "b", "c"))
    assert turned[["pipeline", "baseline"]].to_numpy().tolist() == [["b", "a"], ["c", "a"]]
    assert turned[["difference", "low", "high"]].to_numpy().tolist() == [[0.2, 0.1, 0.3], [0.1, -0.1, 0.3]]
    assert turned[["improvement", "improvement_low", "improvement_high"]].to_numpy().tolist() == [
        [1.0, 0.9, 1.0],
        [0.75, 0.5, 1.0],
    ]
    primary = pd.DataFrame({"first": ["a"], "second": ["b"], "area_difference": [0.2], "low": [0.1], "high": [0.4]})
    assert oriented(primary, ("a", "b"))[["difference", "low", "high"]].to_numpy().tolist() == [[0.2, 0.1, 0.4]]
    assert oriented(primary, ("b", "a"))[["difference", "low", "high"]].to_numpy().tolist() == [[-0.2, -0.4, -0.1]]
    assert pairs["difference"].tolist() == [0.2, -0.1]


def test_decided():
    assert decided({"low": 0.1, "high": 0.2})
    assert not decided({"low": 0.1, "high": 0.2, "p_holm": 0.06})
    assert not decided({"low": -0.1, "high": 0.2, "p_holm": 0.01})
    assert not decided({"low": np.nan, "high": np.nan})
    assert decided({"low": 1.1, "high": np.inf}, 1)
    assert not decided({"low": 0.9, "high": np.inf}, 1)


def test_looks_are_fixed_and_differ():
    alone = looks(["hierarchical"])["hierarchical"]
    names = ["random", "hierarchical=imagenet", "hierarchical", "generalist=a", "generalist=b", "specialist"]
    many = looks(names)
    assert list(many) == names
    assert many["hierarchical"] == alone
    assert many["generalist=a"] == looks(["generalist"])["generalist"]
    assert len({look.light for look in many.values()}) == len({look.dark for look in many.values()}) == len(names)


def test_selected_sizes():
    assert selected([1, 2, 3]) == [0, 1, 2]
    assert selected(range(10)) == [0, 2, 4, 5, 7, 9]
    assert selected([5]) == [0]


def test_a_figure_is_the_same_every_time(three):
    study = three[0]
    pairs, primary = (oriented(study.tables[name], study.facts.pipelines) for name in ("pairs", "primary"))
    drawn = [
        to_svg(figures.differences(pairs, primary, study.looks, score="Dice", unit="slices", width=NARROW), "same")
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert "generalist − random" in drawn[0]


def test_words_and_numbers():
    names = looks(["hierarchical", "hierarchical=a&b"])
    said = prose("hierarchical=a&b beat hierarchical by <1 [−1, 2]: labels^-0.31", names)
    assert said.count('class="p"') == 2
    assert "a&amp;b</span>" in said
    assert "&lt;1" in said
    assert '<span class="n">[−1, 2]</span>' in said
    assert said.endswith("labels<sup>−0.31</sup>")
    assert number(-0.1234) == "−0.123"
    assert number(np.nan) == "–"
    assert between({"low": 0.5, "high": np.inf}, ".1f") == "0.5 to ∞"
    assert between({"low": np.nan, "high": np.nan}) == "none"
    assert chance(0.0004) == "&lt; 0.001"


def test_empty_columns_are_left_out():
    assert "note" not in table(["a", "note"], [[1, ""], [2, ""]])
    assert "note" in table(["a", "note"], [[1, ""], [2, "x"]])


# ---- reading, and mistakes


def test_an_unfinished_size_is_named_by_its_folders(tmp_path):
    """No result says how many labels the largest fraction comes to: 1,497 to 1,508 would do; the folder says 1,498."""
    skip = [(pipeline, 1498, seed) for pipeline in ("random", "generalist") for seed in (0, 1)]
    out = made_up_study(tmp_path, fractions=(0.01, 0.02, 0.05, 1.0), total=1498, seeds=(0, 1), skip=skip)
    failed = out / "cells" / "random-n1498-seed0"
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("disk full\n")
    study = read(out)[0]
    states = {run.name: (run.state, run.error) for run in study.runs}
    assert states["cells/random-n1498-seed0"] == ("failed", "disk full")
    assert states["cells/random-n1498-seed1"] == ("not run", "")


def test_a_study_that_leaves_out_settings(tmp_path):
    out = made_up_study(tmp_path)
    (out / "study.json").write_text('{"task": "segment", "pipelines": ["random", "generalist"], "seeds": [0, 13, 42]}')
    assert read_study(out, "jaccard", 200, 0).facts.score == "Jaccard"


def test_no_study(tmp_path):
    with pytest.raises(UserError, match=r"holds no study \(no study.json\); give the --out folder"):
        report(tmp_path)


def test_no_cell_has_finished(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match="no cell of the study has finished; run python -m sweep again"):
        report(tmp_path)
    (tmp_path / "results.csv").write_text("\n")
    with pytest.raises(UserError, match="no cell of the study has finished"):
        report(tmp_path)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "holds no study"), (["--draws", "5"], "--draws 5 --seed 0: must be 100 or more")],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("sweep.report", run_name="__main__")
    assert stop.value.code == 2
    assert expected in " ".join(capsys.readouterr().err.split())
