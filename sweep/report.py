"""`python -m sweep.report DIR`: a study's figures, and one page that opens from disk and needs nothing else."""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from data.errors import UserError, user_errors
from engine.config import read_config
from sweep import figures
from sweep.analysis import analyse, scored_split, study_scores
from sweep.cell import failure
from sweep.config import SweepConfig
from sweep.convergence import runs_from
from sweep.figures import LEVEL, NARROW, VIOLIN_FROM, WIDE, decided, oriented
from sweep.grid import plan, unit
from sweep.learning_curves import OFFSET_POWER_LAW
from sweep.page import (
    Looks,
    Row,
    Words,
    between,
    chance,
    chip,
    embedded_png,
    faint,
    inline_svg,
    listed,
    number,
    page,
    prose,
    remark,
    table,
    unfolding,
)
from sweep.statistics import longest_pretraining
from sweep.summary import Facts, Tables, caveats, ranking, sentences

Measure = Literal["dice", "jaccard"]
LAYOUTS = {"segment": "acdc", "classify": "mrnet"}
NAMES = {"acdc": "ACDC", "mrnet": "MRNet", "dice": "Dice", "jaccard": "Jaccard", "val": "validation"}
MARKS = {"done": "●", "failed": "✗", "not run": "○"}

CAPTIONS = {
    "error_by_labels": "Error is 1 − {score}, so lower is better. Both axes are logarithmic: a power law is a straight "
    "line. A box holds the seeds of one size, each a point, with whiskers to the extremes; it stands at its true "
    "number of labels, moved aside just enough to be told apart. The line is the fit error = α + η · "
    "labels<sup>−γ</sup> with its 95 % band, dashed beyond what was measured. "
    "A cross is what the smaller sizes alone foretold.",
    "forecasts": "Each fit was made on smaller sizes alone, then asked for a larger one. On the diagonal it was right; "
    "the marker is filled where the 95 % interval (bar) held what was then observed.",
    "differences": "Paired differences of the mean {score}, with 95 % intervals over seeds and {people}. Filled, in "
    "the colour of the better pipeline: decided. Hollow and grey: the interval includes 0, undecided. The diamond is "
    "the one comparison that was declared beforehand, the area between the error curves over log2(labels); it is "
    "filled only where the correction for several pairs leaves it decided.",
    "validation_curves": "{validation} on the validation split during training, mean over seeds; the shade is one "
    "standard deviation.",
    "curve_areas": "The same in one number: the area under each validation curve, divided by its length, is high where "
    "a run gets good early. A point is a run; the bar is the median, which orders them. From {violin} runs on a violin "
    "shows their spread.",
    "steps_reached": "Share of the runs that have come to {level:.0f} % of the reference, which is the best pipeline's "
    "final validation score at that size, the same for all. Where a curve ends in a hollow marker, some runs never got "
    "there in the steps they had. Steps are known to the {spacing:.0f} between two validations.",
    "pretraining": "Left: training with the most labels; the stronger the colour, the longer the pretraining before "
    "it. Right: the final score against the length of pretraining; the stronger the colour, the more labels. Shades "
    "are one standard deviation over seeds.",
    "predictions": "The worst, the median and the best volume of the {split} split, each at its fullest slice: the "
    "image, the reference, the prediction. First seed, trained on the most labels.",
}
"""How each figure is read."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html, figures/ and statistics/ into a study's folder, from what its finished cells left."""

    folder: tyro.conf.Positional[Path]
    """Folder of a study (`--out` of `python -m sweep`)."""
    measure: Measure = "dice"
    """Which score of a segmentation; exams are scored by AUC."""
    draws: int = 2000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.draws < 100 or self.seed < 0:
            raise UserError(f"--draws {self.draws} --seed {self.seed}: must be 100 or more, and 0 or more")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the plan and what became of it."""

    name: str
    """encoders/NAME or cells/NAME."""
    key: Mapping[str, Any]
    """As in `sweep.grid.Job`."""
    state: Literal["done", "failed", "not run"]
    error: str = ""
    """First line of what went wrong."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the page is made of."""

    folder: Path
    cfg: SweepConfig
    measure: Measure
    results: pd.DataFrame
    """Rows of the split that is reported on."""
    curves: pd.DataFrame
    tables: Tables
    runs: Sequence[Run]
    facts: Facts
    looks: Looks


def report(folder: Path, measure: Measure = "dice", draws: int = 2000, seed: int = 0) -> Path:
    """Analyse a study, write its tables and figures, and put all of it on one page.

    Cells that are missing are marked, not waited for.

    Args:
        folder: of the study.
        measure: which score of a segmentation.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The path of report.html.

    Raises:
        UserError: if the folder holds no study, or one without a single finished cell.
    """
    study = read_study(folder, measure, draws, seed)
    (folder / "figures").mkdir(exist_ok=True)
    sections = [
        _summary(study),
        _what_was_run(study),
        *_figures(study),
        _predictions(study),
        _tables(study),
        _runs(study),
    ]
    title = f"What is the next label worth? {study.facts.dataset}"
    path = folder / "report.html"
    path.write_text(page(title, study.looks, _header(study), sections, _footer(study)), encoding="utf-8")
    return path


# ---- reading


def read_study(folder: Path, measure: Measure, draws: int, seed: int) -> Study:
    """Read a study's files and analyse them."""
    if not (folder / "study.json").is_file():
        raise UserError(f"{folder} holds no study (no study.json); give the --out folder of python -m sweep")
    cfg = replace(read_config(SweepConfig, folder / "study.json"), out=folder)
    try:
        results = pd.read_csv(folder / "results.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        results = pd.DataFrame()
    if results.empty:
        raise UserError(f"{folder}: no cell of the study has finished; run python -m sweep again, it continues")
    tables = analyse(folder, measure, draws, seed)
    scored = list(dict.fromkeys(tables["by_size"]["pipeline"]))
    pipelines = [name for name in cfg.pipelines if name in scored]
    runs = _states(cfg, results)
    split = scored_split(folder)
    return Study(
        folder=folder,
        cfg=cfg,
        measure=measure,
        results=results[results["split"] == split],
        curves=pd.read_parquet(folder / "curves.parquet"),
        tables=tables,
        runs=runs,
        facts=_facts(cfg, tables, NAMES.get(split, split), measure, results, pipelines, runs),
        looks=figures.looks(pipelines),
    )


def _states(cfg: SweepConfig, results: pd.DataFrame) -> list[Run]:
    """The runs of the plan: a cell is done when the results have it, an encoder unless it left a note of failure."""
    done, runs = {f"cells/{cell}" for cell in results["cell"]}, []
    failed: set[str] = set()
    for job in plan(cfg, _total(cfg, results)):
        state: Literal["done", "failed", "not run"] = "done" if job.name in done or not job.is_cell else "not run"
        error = "" if job.name in done else failure(job)
        if broken := [need for need in job.needs if need in failed and job.name not in done]:
            error = error or f"needs {broken[0]}, which failed"
        if error:
            state = "failed"
            failed.add(job.name)
        runs.append(Run(name=job.name, key=job.key, state=state, error=error))
    return runs


def _total(cfg: SweepConfig, results: pd.DataFrame) -> int:
    """Labels in all: the least number at which every fraction comes to the labels that results and folders name."""
    if cfg.sizes:
        return max(*cfg.sizes, int(results["labels"].max()))
    known = results[results["labels"] > 1] if (results["labels"] > 1).any() else results
    least = int(np.ceil(((known["labels"] - 0.5) / known["fraction"]).max() - 1e-9))
    most = int(((known["labels"] + 0.5) / known["fraction"]).min())
    found = (re.search(r"-n(\d+)-seed", folder.name) for folder in (cfg.out / "cells").glob("*"))
    named = {int(match[1]) for match in found if match}
    totals = range(max(1, least), most + 1)
    return next((t for t in totals if named <= {max(1, int(f * t + 0.5)) for f in cfg.fractions}), max(1, least))


def _facts(
    cfg: SweepConfig,
    tables: Tables,
    split: str,
    measure: Measure,
    results: pd.DataFrame,
    pipelines: Sequence[str],
    runs: Sequence[Run],
) -> Facts:
    layout = cfg.dataset or LAYOUTS[cfg.task]
    synthetic = bool(results["synthetic"].any()) if "synthetic" in results else cfg.data_root is None
    dataset = NAMES.get(layout) or (f"the folder {cfg.data_root.name}" if cfg.data_root else "the embedded data")
    cells = [run for run in runs if run.name.startswith("cells/")]
    return Facts(
        pipelines=tuple(pipelines),
        score="AUC" if cfg.task == "classify" else NAMES[measure],
        unit=unit(cfg),
        split=split,
        people="exams" if cfg.task == "classify" else "patients",
        seeds=int(tables["by_size"]["seeds"].max()),
        dataset=f"a synthetic phantom in the layout of {dataset}" if synthetic else dataset,
        synthetic=synthetic,
        settings=f"{cfg.run_config.encoder}, {_pixels(cfg.run_config.image_size)}, {_length(cfg.run_config)}",
        partial=tuple(_partial_weights(cfg)),
        missing=sum(run.state != "done" for run in cells),
        cells=len(cells),
    )


def _partial_weights(cfg: SweepConfig) -> Iterator[str]:
    """Files of natural-image weights, of the study or of its encoders' lineage, that are called partial."""
    own = [name.partition("=") for name in cfg.pipelines]
    sources = [source or cfg.pretrain.generalist for name, _, source in own if name in ("generalist", "hierarchical")]
    for card in sorted(cfg.out.glob("encoders/*/encoder.json")):
        try:
            sources += [str(stage.get("source", "")) for stage in json.loads(card.read_text())["lineage"]]
        except (ValueError, KeyError, AttributeError):
            continue  # no card of ours: it says nothing
    names = [Path(source).name for source in sources]
    yield from dict.fromkeys(name for name in names if "partial" in name.lower())


def _pixels(size: int | tuple[int, int]) -> str:
    return f"{size} pixels" if isinstance(size, int) else f"{size[0]} x {size[1]} pixels"


def _length(run: Any) -> str:
    """How long a cell trains."""
    return f"{f'{run.steps:,} steps' if run.steps else f'{run.epochs:g} epochs'} of {run.batch_size}"


def _pretraining_length(cfg: SweepConfig, stages: set[str]) -> str:
    pre = cfg.pretrain
    if cfg.pretrain_epochs:
        epochs = listed(cfg.pretrain_epochs)
    elif pre.steps:
        return f"{pre.steps:,} steps of {pre.batch_size}"
    else:
        own = {
            replace(pre, stage=stage).target_epochs: stage
            for stage in ("specialist", "hierarchical")
            if stage in stages
        }
        epochs = " and ".join(f"{count:g}" + (f" ({stage})" if len(own) > 1 else "") for count, stage in own.items())
    return f"{epochs} epochs of {pre.batch_size}"


# ---- words


def _header(study: Study) -> str:
    facts, by_size = study.facts, study.tables["by_size"]
    times = {1: "once", 2: "twice"}.get(facts.seeds, f"{facts.seeds} times")
    lead = (
        f"{len(facts.pipelines)} {'way' if len(facts.pipelines) == 1 else 'ways'} to start the encoder, each trained "
        f"{times} on {listed(sorted(set(by_size['labels'])))} labelled {facts.unit} and scored by {facts.score} on "
        f"{by_size['patients'].max()} {facts.people}. All of them get the same labels, the same new layers and the "
        "same order, so that every difference is paired."
    )
    notices = []
    if facts.synthetic:
        notices.append(
            "<b>Synthetic phantom.</b> This shows that the plumbing works. It says nothing about a method or about "
            "patients."
        )
    if facts.missing:
        notices.append(
            f"<b>{facts.missing} of {facts.cells} runs are missing.</b> This report was made without them: "
            '<a href="#runs">see which</a>.'
        )
    places = {"summary": "Summary", "run": "What was run", "labels": "Labels", "differences": "Differences"}
    places |= {"speed": "Speed", "tables": "All numbers", "runs": "Runs"}
    return (
        f'<h1>What is the next label worth?</h1><p class="lead">{prose(lead)}</p>'
        + "".join(f'<p class="notice">{notice}</p>' for notice in notices)
        + "<nav>"
        + " ".join(f'<a href="#{place}">{name}</a>' for place, name in places.items())
        + "</nav>"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>' if body else ""


def _summary(study: Study) -> str:
    said = "".join(f"<li>{prose(text, study.looks)}</li>" for text in sentences(study.tables, study.facts))
    limits = "".join(f"<li>{prose(text)}</li>" for text in caveats(study.tables, study.facts))
    body = f'<ol class="summary">{said}</ol><div class="caveats"><h3>Before you quote this</h3><ul>{limits}</ul></div>'
    return _section("summary", "In five sentences", body)


def _what_was_run(study: Study) -> str:
    cfg, facts, run, pre = study.cfg, study.facts, study.cfg.run_config, study.cfg.pretrain
    sizes = study.results.groupby("labels")["fraction"].first()
    stages = {name.partition("=")[0] for name in cfg.pipelines}
    spacing = getattr(run, "spacing_mm", None)
    rows = {
        "Data set": facts.dataset if facts.synthetic else f"{facts.dataset}, real images",
        "Scored on": f"{study.tables['by_size']['patients'].max()} {facts.people} of the {facts.split} split",
        "Pipelines": ", ".join(cfg.pipelines),
        f"Labelled {facts.unit}": ", ".join(
            str(labels) if cfg.sizes else f"{labels} ({100 * fraction:.2g} %)" for labels, fraction in sizes.items()
        ),
        "Seeds": ", ".join(map(str, cfg.seeds)) + (" (crossed: subset and start)" if cfg.cross_seeds else ""),
        "Encoder": run.encoder,
        "Images": _pixels(run.image_size) + (f" of {spacing:g} mm" if spacing else ""),
        "Training": _length(run),
    }
    if "labelled_subjects" in study.results:
        subjects = study.results.groupby("labels")["labelled_subjects"].mean()
        rows["Patients behind the labels, on average"] = ", ".join(f"{count:.3g}" for count in subjects)
    if stages & {"specialist", "hierarchical"}:
        rows["Domain pretraining (BYOL)"] = f"{_pretraining_length(cfg, stages)}, {_pixels(pre.image_size)}"
    if stages & {"generalist", "hierarchical"}:
        rows["Natural-image start"] = Path(pre.generalist).name + (" (partial weights)" if facts.partial else "")
    if len(cfg.pretrain_seeds) > 1:
        rows["Pretraining seeds"] = ", ".join(map(str, cfg.pretrain_seeds))
    if "versions" in study.results:
        rows["Made with"] = str(study.results["versions"].iloc[0]).replace(" ", ", ").replace("=", " ")
    shown = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in rows.items()
    )
    return _section("run", "What was run", f'<dl class="run">{shown}</dl>')


def _footer(study: Study) -> str:
    return (
        "<p><b>Statistics.</b> Every interval is the 95 % percentile interval of one joint bootstrap: each draw "
        f"resamples seeds and {study.facts.people}, the same for all pipelines and sizes, and computes every number "
        "anew; steps and validation curves are resampled over seeds alone. What has no interval, or one that includes "
        "no effect, is undecided.</p><p><b>Next.</b> <code>python -m sweep.forecast --results DIR --target 0.85</code> "
        "says how many labels a score takes. The figures of this page are in <code>figures/</code>, as SVG and PNG.</p>"
    )


# ---- figures


def _figures(study: Study) -> Iterator[str]:
    """The sections with figures; each is drawn for a screen, and saved, and once more for a phone."""
    t, looks, facts = study.tables, study.looks, study.facts
    words: dict[str, Any] = {"score": facts.score, "unit": facts.unit}
    validation: dict[str, Any] = {"score": "AUC" if study.cfg.task == "classify" else "Dice", "unit": facts.unit}
    scores, runs = study_scores(study.folder, study.measure), runs_from(study.curves)
    longest = longest_pretraining(study.curves)
    pairs, primary = (oriented(t[name], facts.pipelines) for name in ("pairs", "primary"))
    draw = partial(
        _figure,
        study,
        {
            **{"score": facts.score, "people": facts.people, "validation": validation["score"]},
            **{"violin": VIOLIN_FROM, "level": 100 * LEVEL},
            "spacing": np.median(np.diff(np.append(0, runs.steps))),
        },
    )
    notes = "".join(f"<li>{chip(name, looks)}: {prose(text)}.</li>" for name, text in _shapes(t).items())
    labels = (
        draw("error_by_labels", "", partial(figures.error_by_labels, scores, t["bands"], t["backtest"], looks, **words))
        + f'<ul class="notes">{notes}</ul>'
        + _labels_saved(study)
        + draw(
            "forecasts",
            "Could the small sizes have foretold the large ones?",
            partial(figures.forecasts, t["backtest"], looks),
        )
    )
    yield _section("labels", "How the error falls with more labels", labels)
    forest = draw("differences", "", partial(figures.differences, pairs, primary, looks, **words))
    yield _section("differences", "Does one start beat another?", forest or "<p>There is one pipeline alone.</p>")
    speed = (
        draw("validation_curves", "", partial(figures.validation_curves, longest, looks, **validation))
        + draw("curve_areas", "", partial(figures.curve_areas, runs, looks, **validation))
        + draw(
            "steps_reached",
            "When are they as good as the best?",
            partial(figures.steps_reached, runs, looks, unit=facts.unit),
        )
    )
    yield _section("speed", "How fast training gets there", speed)
    column = "auc" if study.cfg.task == "classify" else study.measure
    epochs = partial(figures.pretraining, study.curves, study.results, looks, measure=column, **words)
    yield _section("pretraining", "How long to pretrain?", draw("pretraining", "", epochs))


def _shapes(tables: Tables) -> dict[str, str]:
    """Of each pipeline's error curve: why it has no fit, or where a power law holds, and what is doubtful."""
    fits = tables["fits"][tables["fits"]["model"] == OFFSET_POWER_LAW]
    shapes = {}
    for fit, bend in zip(fits.to_dict("records"), tables["bends"].to_dict("records"), strict=True):
        said = [fit["note"]] if np.isnan(fit["gamma"]) else [bend["holds"] or bend["note"], fit["note"]]
        shapes[fit["pipeline"]] = "; ".join(dict.fromkeys(text for text in said if text))
    return {name: text for name, text in shapes.items() if text}


def _figure(study: Study, values: Mapping[str, Any], name: str, title: str, draw: Callable[..., Figure | None]) -> str:
    """Draw a figure wide and narrow, save the wide one, and return both for the page; nothing where there is none."""
    path = study.folder / "figures" / name
    if (wide := draw(width=WIDE)) is None:
        for suffix in (".svg", ".png"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        return ""
    narrow = draw(width=NARROW)
    assert narrow is not None
    drawn = {"wide": figures.save(wide, path), "narrow": figures.to_svg(narrow, name)}
    caption = CAPTIONS[name].format(**values)
    label = caption.partition(". ")[0]
    inline = "".join(
        f'<div class="{kind}">{inline_svg(svg, f"{name}-{kind}", study.looks, label)}</div>'
        for kind, svg in drawn.items()
    )
    heading = f"<h3>{title}</h3>" if title else ""
    return f"{heading}<figure>{inline}<figcaption>{caption}</figcaption></figure>"


def _predictions(study: Study) -> str:
    """What the best pipeline and random draw at the largest size, from their cells' own figures."""
    best, shown = ranking(study.tables, study.facts.pipelines)[0], ""
    rows = longest_pretraining(study.results)
    for name in dict.fromkeys((best, "random")):
        own = rows[rows["pipeline"] == name]
        own = own[own["labels"] == own["labels"].max()]
        folders = [study.folder / "cells" / cell for cell in own["cell"]]
        files = [(folder / "test" if study.facts.split == "test" else folder) / "predictions.png" for folder in folders]
        if there := [file for file in files if file.is_file()]:
            title = f"{chip(name, study.looks)}, {own['labels'].iloc[0]} labelled {study.facts.unit}"
            image = f'<img alt="image, reference and prediction" src="{embedded_png(there[0])}">'
            shown += f"<div><p>{title}</p>{image}</div>"
    if not shown:
        return ""
    caption = CAPTIONS["predictions"].format(split=study.facts.split)
    body = f'<figure><div class="pictures">{shown}</div><figcaption>{caption}</figcaption></figure>'
    return _section("predictions", "What the masks look like", body)


# ---- tables


def _labels_saved(study: Study) -> str:
    """What most readers come for: labels saved against a random start, at every size but the smallest."""
    rows = study.tables["multipliers"]
    rows = rows[(rows["baseline"] == "random") & (rows["labels"] > rows["labels"].min())].dropna(subset=["multiplier"])
    if rows.empty:
        return ""
    names = list(dict.fromkeys(rows["pipeline"]))
    entries = {(row["labels"], row["pipeline"]): _saved(row) for row in rows.to_dict("records")}
    shown = [[labels, *(entries.get((labels, name), "") for name in names)] for labels in sorted(set(rows["labels"]))]
    text = (
        f"How many {study.facts.unit} a pipeline needs to be as good as a random start is with so many, and how many "
        "times fewer that is, with the 95 % interval. Grey: the interval includes 1, so it is undecided whether labels "
        "are saved. An end at 0 or ∞ is open, for the sizes tried do not bound it."
    )
    heads = ["random has", *(f"{chip(name, study.looks)} needs" for name in names)]
    return f"<h3>Labels saved against a random start</h3>{table(heads, shown)}<p class=caption>{text}</p>"


def _saved(row: Row) -> str:
    interval = "no interval" if np.isnan(row["low"]) else between(row, ".2g")
    text = f"{_needed(row)}<br><small>{_factor(row, 'multiplier')}× ({interval})</small>"
    return faint(text, not decided(row, 1))


def _needed(row: Row) -> str:
    if np.isnan(row["multiplier"]):
        return "–"
    return {">=": "≤ ", "<=": "&gt; "}.get(row["bound"], "") + f"{row['labels'] / row['multiplier']:.0f}"


def _factor(row: Row, name: str) -> str:
    return {">=": "≥ ", "<=": "≤ "}.get(row["bound"], "") + number(row[name], ".2g")


def _factor_interval(row: Row) -> str:
    return faint(between(row, ".2g"), not decided(row, 1))


def _difference(row: Row) -> list[str]:
    """A difference and its interval."""
    return [number(row["difference"], "+.3f"), faint(between(row, "+.3f"), not decided(row))]


def _parameter(row: Row, name: str) -> str:
    if np.isnan(row[name]):
        return "–"
    has_interval = not np.isnan(row[f"{name}_low"])
    return number(row[name], ".3g") + (
        faint(f" ({between(row, '.2g', f'{name}_low', f'{name}_high')})") if has_interval else ""
    )


def _tables(study: Study) -> str:
    """All tables of the statistics, rounded, each behind its title."""
    facts, name = study.facts, partial(chip, looks=study.looks)
    t = {key: rows.to_dict("records") for key, rows in study.tables.items()}
    pairs, primary = (oriented(study.tables[key], facts.pipelines).to_dict("records") for key in ("pairs", "primary"))
    unit, people, difference = facts.unit, facts.people, f"difference in {facts.score}"
    shown = [
        (
            "All sizes together: the primary endpoint",
            f"Difference of the mean {facts.score} over log2(labels), which is that of the areas under the error "
            "curves. It was declared beforehand; p (Holm) is corrected for the number of pairs.",
            ["pipeline", "less", difference, "95 % interval", "p", "p (Holm)", ""],
            [[name(r["pipeline"]), name(r["baseline"]), *_difference(r), chance(r["p"]), chance(r["p_holm"]), remark(r)]
             for r in primary],
        ),
        (
            "Scores by size",
            f"Mean {facts.score} over seeds with its interval over seeds and {people}; interquartile mean; standard "
            "deviation over seeds.",
            ["pipeline", unit, "seeds", people, "mean", "95 % interval", "interquartile mean", "SD", ""],
            [[name(r["pipeline"]), r["labels"], r["seeds"], r["patients"], number(r["mean"]), between(r),
              number(r["iqm"]), number(r["sd"]), remark(r)] for r in t["by_size"]],
        ),
        (
            "Paired differences by size",
            "“Better in” is the share of seeds in which the first pipeline is better, ties one half. p is that of the "
            "corrected resampled t test, which allows for training sets that overlap; it is not corrected for the "
            "number of sizes and pairs.",
            ["pipeline", "less", unit, difference, "95 % interval", "better in", "95 % interval", "p", ""],
            [[name(r["pipeline"]), name(r["baseline"]), r["labels"], *_difference(r), number(r["improvement"], ".0%"),
              between(r, ".0%", "improvement_low", "improvement_high"), chance(r["p_corrected"]), remark(r)]
             for r in pairs],
        ),
        (
            "Learning curves fitted",
            "Offset power law: error = α + η · labels<sup>−γ</sup>. Power law: the same without α. Exponential: α + η "
            "· exp(−γ · labels). α is the error that no number of labels removes; a smaller AICc is better.",
            ["pipeline", "model", "best", "α", "η", "γ", "AICc", ""],
            [[name(r["pipeline"]), Words(r["model"]), "●" if r["best"] else "",
              *(_parameter(r, key) for key in ("alpha", "eta", "gamma")), number(r["aicc"], ".1f"), remark(r)]
             for r in t["fits"]],
        ),
        (
            "Labels saved",
            f"{unit.capitalize()} that a pipeline needs to equal another that has so many. Nothing is said beyond the "
            "sizes that were tried.",
            ["pipeline", "equals", f"with {unit}", "it needs", "times fewer", "95 % interval", ""],
            [[name(r["pipeline"]), name(r["baseline"]), r["labels"], _needed(r), _factor(r, "multiplier"),
              _factor_interval(r), remark(r)] for r in t["multipliers"]],
        ),
        (
            "Back-test of the forecasts",
            "The error at a larger size, foretold by the fit to the sizes up to a smaller one, and the error observed.",
            ["pipeline", "fitted up to", unit, "foretold", "95 % interval", "observed", "inside"],
            [[name(r["pipeline"]), r["fitted_on"], r["labels"], number(r["predicted"]), between(r),
              number(r["observed"]), "–" if np.isnan(r["low"]) else "yes" if r["inside"] else "no"]
             for r in t["backtest"]],
        ),
        (
            "Steps to a common score",
            "Steps to 90, 95 and 98 % of the best pipeline's final validation score at that size: Kaplan-Meier median "
            "over seeds, with runs that never get there as censored.",
            ["pipeline", unit, "level", "score", "steps", "95 % interval", "got there", ""],
            [[name(r["pipeline"]), r["labels"], f"{r['level']:.0%}", number(r["level"] * r["reference"]),
              number(r["median"], ".0f", "not reached"), between(r, ".0f"), f"{r['reached']} of {r['runs']}", remark(r)]
             for r in t["steps"]],
        ),
        (
            "Speed-up",
            "Steps that the second takes over steps that the first takes, geometric mean over matched runs: above 1 "
            "the first is faster.",
            ["first", "second", unit, "level", "ratio", "95 % interval", ""],
            [[name(r["first"]), name(r["second"]), r["labels"], f"{r['level']:.0%}", _factor(r, "ratio"),
              _factor_interval(r), remark(r)] for r in t["speedups"]],
        ),
        (
            "Area under the validation curve",
            "Mean validation score over the whole training, with its interval over seeds.",
            ["pipeline", unit, "area", "95 % interval", ""],
            [[name(r["pipeline"]), r["labels"], number(r["area"]), between(r), remark(r)] for r in t["curve_areas"]],
        ),
    ]  # fmt: skip
    body = "".join(
        unfolding(title, text, table(heads, rows), len(rows), is_open=place == 0)
        for place, (title, text, heads, rows) in enumerate(shown)
        if rows
    )
    first = (
        "<p>Unrounded, the same tables are in <code>statistics/</code>, and every run in <code>results.csv</code>.</p>"
    )
    return _section("tables", "All numbers", first + body)


def _runs(study: Study) -> str:
    """The grid of runs, with a mark for each, and why those failed that did."""
    cells = [run for run in study.runs if run.name.startswith("cells/")]
    counts = Counter(run.state for run in cells)
    grid: dict[tuple[str, float | None], dict[int, str]] = {}
    for run in cells:
        row = grid.setdefault((run.key["pipeline"], run.key["pretrain_epochs"]), {})
        title = html.escape(f"{run.name.removeprefix('cells/')}: {run.state}")
        mark = f'<span class="{run.state.replace(" ", "-")}" title="{title}">{MARKS[run.state]}</span>'
        row[run.key["labels"]] = row.get(run.key["labels"], "") + mark
    sizes = sorted({labels for row in grid.values() for labels in row})
    shown = [
        [
            Words(chip(name, study.looks) + ("" if epochs is None else f", {epochs:g} epochs")),
            *(row.get(n, "") for n in sizes),
        ]
        for (name, epochs), row in grid.items()
    ]
    said = (
        f"All {len(cells)} runs are finished."
        if counts["done"] == len(cells)
        else f"{counts['done']} of {len(cells)} runs are finished, {counts['failed']} failed and {counts['not run']} "
        "were not made. The same <code>python -m sweep</code> command makes what is missing and leaves the rest alone."
    )
    key = ", ".join(f'<span class="{state.replace(" ", "-")}">{mark}</span> {state}' for state, mark in MARKS.items())
    errors = "".join(
        f'<li><code>{html.escape(run.name)}</code><br><span class="failed">✗</span> {html.escape(run.error)}</li>'
        for run in study.runs
        if run.error
    )
    return _section(
        "runs",
        "The runs",
        f"<p>{said} One mark for each run, by pipeline and labelled {study.facts.unit}: {key}.</p>"
        + table(["pipeline", *map(str, sizes)], shown, css="grid")
        + (f'<ul class="notes">{errors}</ul>' if errors else ""),
    )


if __name__ == "__main__":
    with user_errors():
        cfg = tyro.cli(Report, prog="python -m sweep.report")
        print(f"report:  {report(cfg.folder, cfg.measure, cfg.draws, cfg.seed).resolve().as_uri()}")
