"""`python -m sweep.report DIR`: figures of a study and one self-contained page, from the files in its folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from markupsafe import Markup
from matplotlib.figure import Figure

from core.drawing import inline_svg
from core.files import write_text
from core.page import page_environment
from core.settings import Settings
from data.pictures import embedded_png
from sweep.analysis.bootstrap import require_resamples
from sweep.analysis.convergence import LEVEL, runs_from
from sweep.analysis.curve_fitting import OFFSET_POWER_LAW
from sweep.analysis.scores import longest_pretraining
from sweep.analysis.statistics import decided, oriented
from sweep.analysis.study_files import curve_measure, read_curves
from sweep.analysis.tables import study_scores
from sweep.report import filters
from sweep.report.figures.curve_areas import VIOLIN_FROM, curve_areas
from sweep.report.figures.differences import differences
from sweep.report.figures.error_by_labels import error_by_labels
from sweep.report.figures.forecasts import forecasts
from sweep.report.figures.patients import patients
from sweep.report.figures.pretraining import pretraining
from sweep.report.figures.steps_reached import steps_reached
from sweep.report.figures.style import NARROW, WIDE, Styles, pipeline_styles, save, to_svg
from sweep.report.figures.validation_curves import validation_curves
from sweep.report.settings_table import what_was_run
from sweep.report.study_folder import Study, read_study
from sweep.report.summary import caveats, ranking, sentences

Measure = Literal["dice", "jaccard"]


@dataclass(frozen=True, kw_only=True)
class Report(Settings):
    """Rebuild report.html, figures/ and statistics/ of a study from its finished runs."""

    folder: tyro.conf.Positional[Path]
    """Folder of a study (`--out` of `python -m sweep`)."""
    measure: Measure | None = None
    """Score of a segmentation; None: that of the study. Exams are always scored by AUC."""
    draws: int = 2000
    """Number of bootstrap resamples, 100 or more."""
    seed: int = 0
    """Random seed of the bootstrap, 0 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_resamples(self.draws, self.seed)


def report(folder: Path, measure: Measure | None = None, draws: int = 2000, seed: int = 0) -> Path:
    """Analyse a study, write its tables and figures, and put all of it on one page; missing runs are marked.

    The arguments are those of `read_study`.

    Returns:
        The path of report.html.

    Raises:
        UserError: if the folder holds no study, or one without a finished run.
    """
    study = read_study(folder, measure, draws, seed)
    path = folder / "report.html"
    write_text(path, render(study))
    return path


def render(study: Study) -> str:
    """The page of a study, after its figures are drawn and saved."""
    facts, tables = study.facts, study.tables
    styles, curves = pipeline_styles(facts.pipelines), read_curves(study.folder, study.measure)
    page = page_environment(Path(__file__).parent)
    for name in ("p_value", "bounded", "labels_needed"):
        page.filters[name] = getattr(filters, name)
    page.filters["pipeline"] = partial(filters.pipeline, pipelines=facts.pipelines)
    page.filters["prose"] = partial(filters.prose, pipelines=facts.pipelines)
    page.tests["decided"] = decided
    validation_score = {"auc": "AUC", "jaccard": "Jaccard"}.get(curve_measure(curves, study.measure), "Dice")
    directed = {name: oriented(tables[name], facts.pipelines) for name in ("pairs", "primary")}
    return page.get_template("report.html.j2").render(
        facts=facts,
        styles=styles,
        sizes=sorted(set(tables["by_size"]["labels"])),
        sentences=sentences(tables, facts),
        caveats=caveats(facts),
        what_was_run=what_was_run(study),
        tables={name: rows.to_dict("records") for name, rows in {**tables, **directed}.items()},
        shapes=dict(_shapes(tables["fits"], tables["bends"])),
        saved=_labels_saved(tables["multipliers"]),
        rates=study.rates.to_dict("records"),
        figures=dict(_figures(study, styles, curves, validation_score, **directed)),
        pictures=list(_pictures(study)),
        cells=[run for run in study.runs if run["is_cell"]],
        failures=[run for run in study.runs if run["error"]],
        level=LEVEL,
        violin_from=VIOLIN_FROM,
        validation_score=validation_score,
        validation_spacing=runs_from(curves).spacing,
    )


def _figures(
    study: Study,
    styles: Styles,
    curves: pd.DataFrame,
    validation_score: str,
    pairs: pd.DataFrame,
    primary: pd.DataFrame,
) -> Iterator[tuple[str, dict[str, Markup]]]:
    """Name of each figure and its SVG, wide and narrow; the wide one is saved in figures/."""
    tables, facts, runs = study.tables, study.facts, runs_from(curves)
    scores = study_scores(study.folder, "dice" if study.measure == "auc" else study.measure)
    words: dict[str, Any] = {"score": facts.score, "unit": facts.unit}
    validation: dict[str, Any] = words | {"score": validation_score}
    drawings: dict[str, Callable[..., Figure | None]] = {
        "error_by_labels": partial(error_by_labels, scores, tables["bands"], tables["backtest"], styles, **words),
        "forecasts": partial(forecasts, tables["backtest"], styles),
        "differences": partial(differences, pairs, primary, styles, **words),
        "patients": partial(patients, scores, styles, **words),
        "validation_curves": partial(validation_curves, longest_pretraining(curves), styles, **validation),
        "curve_areas": partial(curve_areas, runs, styles, **validation),
        "steps_reached": partial(steps_reached, runs, styles, unit=facts.unit),
        "pretraining": partial(pretraining, curves, study.results, styles, measure=study.measure, **words),
    }
    (study.folder / "figures").mkdir(exist_ok=True)
    for name, draw in drawings.items():
        path = study.folder / "figures" / name
        wide, narrow = draw(width=WIDE), draw(width=NARROW)
        if wide is None or narrow is None:  # also remove the figure of an earlier report
            path.with_suffix(".svg").unlink(missing_ok=True)
            path.with_suffix(".png").unlink(missing_ok=True)
            continue
        drawn = {"wide": save(wide, path), "narrow": to_svg(narrow, name)}
        if name == "error_by_labels":  # once more, at the top of the page
            yield "first_look", {"narrow": inline_svg(drawn["narrow"], "first-look", styles)}
        yield name, {kind: inline_svg(svg, f"{name}-{kind}", styles) for kind, svg in drawn.items()}


def _shapes(fits: pd.DataFrame, bends: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Each pipeline and its notes: where a power law holds and what is doubtful, or why there is no fit."""
    fits = fits[fits["model"] == OFFSET_POWER_LAW]
    for fit, bend in zip(fits.to_dict("records"), bends.to_dict("records"), strict=True):
        notes = [fit["note"]] if np.isnan(fit["gamma"]) else [bend["holds"] or bend["note"], fit["note"]]
        if any(notes):
            yield fit["pipeline"], "; ".join(dict.fromkeys(note for note in notes if note))


def _labels_saved(multipliers: pd.DataFrame) -> dict[int, dict[str, dict]]:
    """Rows of the multipliers against a random start, by size (without the smallest) and pipeline."""
    rows = multipliers[(multipliers["baseline"] == "random") & multipliers["multiplier"].notna()]
    rows = rows[rows["labels"] > multipliers.loc[multipliers["baseline"] == "random", "labels"].min()]
    return {
        labels: {row["pipeline"]: row for row in at_size.to_dict("records")}
        for labels, at_size in rows.groupby("labels")
    }


def _pictures(study: Study) -> Iterator[dict[str, Any]]:
    """The predictions of the best pipeline and of random at the largest size, from the pictures of their cells."""
    subfolder = "test" if study.facts.split == "test" else "."
    longest = longest_pretraining(study.results)
    for name in dict.fromkeys((ranking(study.tables, study.facts.pipelines)[0], "random")):
        rows = longest[longest["pipeline"] == name]
        largest = rows["labels"].max()
        for cell in rows.loc[rows["labels"] == largest, "cell"]:
            if (file := study.folder / "cells" / cell / subfolder / "predictions.png").is_file():
                yield {"pipeline": name, "labels": largest, "address": embedded_png(file)}
                break
