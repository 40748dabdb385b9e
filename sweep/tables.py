"""`python -m sweep.tables STUDY ...`: the results of studies beside those that the papers print, with intervals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from rich.table import Table

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.settings import Settings
from core.terminal import terminal
from sweep.analysis.bootstrap import bootstrap, require_resamples
from sweep.analysis.convergence import LEVEL
from sweep.analysis.curve_fitting import SUPPORT
from sweep.analysis.scores import scores_from
from sweep.analysis.statistics import by_size, oriented
from sweep.analysis.study_files import UNLABELLED, read_scores
from sweep.analysis.tables import scored_split
from sweep.published import BEND, EPOCHS, EXAMS, FEWEST_LABELS, KNEES, SPEEDUP, STEPS, ExamScores, Finding
from sweep.report.filters import interval, number
from sweep.report.study_folder import Study, read_study
from sweep.report.summary import caveats

EXAMPLES = ("runs/study", "runs/hearts runs/knees --draws 10000")
RATES = ("accuracy", "sensitivity", "specificity")


@dataclass(frozen=True, kw_only=True)
class Tables(Settings):
    """Print the results of finished studies beside those that the papers print.

    Ours have 95 % intervals over seeds and patients or exams; the papers give none.
    """

    studies: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of studies (`--out` of `python -m sweep`), one or more."""
    draws: int = 2000
    """Number of bootstrap resamples, 100 or more."""
    seed: int = 0
    """Random seed of the bootstrap, 0 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_resamples(self.draws, self.seed)
        if not self.studies:
            raise UserError("pass the folder of a study, e.g. python -m sweep.tables runs/study")


def run(cfg: Tables) -> list[pd.DataFrame]:
    """Print a table for each study, and what limits its numbers.

    Returns:
        The tables, their entries as text: of a segmentation quantity, published, ours, pipeline and source; of exams
        start, accuracy, auc, sensitivity, specificity and source.

    Raises:
        UserError: if a folder holds no study, or one without a finished run.
    """
    console = terminal(highlight=False, soft_wrap=True)
    tables = []
    for folder in cfg.studies:
        study = read_study(folder, None, cfg.draws, cfg.seed)
        facts = study.facts
        rows = _exams(study, cfg) if study.measure == "auc" else _findings(study, cfg)
        table = pd.DataFrame(list(rows))
        text = Table(title=f"{folder.name}: {facts.data}, {facts.count_scored} of the {facts.split} split")
        for heading in table:
            text.add_column(str(heading))
        for row in table.itertuples(index=False):
            text.add_row(*map(str, row))
        console.print(text)
        if study.measure == "auc":
            console.print(f"published: {EXAMS} exams, of which one is {1 / EXAMS:.2%}; no intervals are published")
        for line in dict.fromkeys([*([facts.pretraining] if facts.pretraining else []), *caveats(facts)]):
            console.print(line)
        tables.append(table)
    return tables


def _reported(study: Study) -> pd.DataFrame:
    """Rows of the volumes or exams of the split that is reported."""
    rows = read_scores(study.folder)
    return rows[rows["split"] == scored_split(study.folder)]


# ---- exams


def _exams(study: Study, cfg: Tables) -> Iterator[dict[str, str]]:
    """Published rows, and one for each pipeline trained on the most exams."""
    for published in KNEES:
        yield _published(published)
    rows = _reported(study)
    scores = {"auc": study.tables["by_size"]}
    if "called" in rows:
        scores |= {name: by_size(bootstrap(scores_from(_called(rows), name), cfg.draws, cfg.seed)) for name in RATES}
    for pipeline in study.facts.pipelines:
        own = {name: _most_labels(table, pipeline) for name, table in scores.items()}
        labels, seeds = own["auc"]["labels"], own["auc"]["seeds"]
        row = {"start": f"ours: {pipeline}, {labels} exams, {seeds} seed{'s' if seeds > 1 else ''}"}
        row |= {name: _value(own[name], "mean") if name in own else "–" for name in ("accuracy", "auc", *RATES[1:])}
        yield {**row, "source": f"{study.folder.name}, {study.facts.split}"}


def _published(scores: ExamScores) -> dict[str, str]:
    names = ("accuracy", "auc", "sensitivity", "specificity")
    values = {name: getattr(scores, name) for name in names}
    return {
        "start": scores.start,
        **{name: "–" if value is None else f"{value:.3f}" for name, value in values.items()},
        "source": scores.source,
    }


def _called(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of exams as those of patients: accuracy, sensitivity and specificity of each exam, 0, 1 or NaN."""
    right = (rows["called"] == rows["label"]).astype(float)
    rates = {"accuracy": right, "sensitivity": right.where(rows["label"] == 1)}
    rates["specificity"] = right.where(rows["label"] == 0)
    columns = {f"{name}_all": values for name, values in rates.items()}
    return rows.drop(columns=["probability"]).assign(subject=rows["exam"], **columns)


# ---- segmentation


def _findings(study: Study, cfg: Tables) -> Iterator[dict[str, str]]:
    """A row for each published statement and each pipeline of ours that it can be about."""
    tables, pipelines = study.tables, study.facts.pipelines
    # the papers have no pseudo-labels
    without = [name for name in pipelines if not name.endswith(UNLABELLED)]
    hierarchical = [name for name in without if name.startswith("hierarchical")]
    largest = int(tables["by_size"]["labels"].max())
    for name in hierarchical:
        steps = tables["steps"]
        steps = steps[(steps["level"] == LEVEL) & (steps["labels"] == largest) & (steps["pipeline"] == name)]
        yield _row(STEPS, name, "".join(_steps(row) for row in steps.to_dict("records")))
    for name in hierarchical:
        for other in (each for each in without if each not in hierarchical):
            yield _row(SPEEDUP, f"{name} against {other}", _speedup(tables["speedups"], name, other, largest))
    pairs = oriented(tables["pairs"], pipelines)
    pairs = pairs[pairs["labels"] == pairs["labels"].min()]
    for name in hierarchical:
        baseline = name.replace("hierarchical", "generalist", 1)
        for row in pairs[(pairs["pipeline"] == name) & (pairs["baseline"] == baseline)].to_dict("records"):
            quantity = f"{study.facts.score} with {study.facts.labels(row['labels'])}"
            yield _row(FEWEST_LABELS, f"{name}, {quantity}", _value(row, "difference", "+.3f"))
    for row in tables["bends"].to_dict("records"):
        is_seen = row["delta_aicc"] >= SUPPORT  # also False where there are too few sizes
        yield _row(BEND, row["pipeline"], _value(row, "labels", ".0f") if is_seen else row["note"] or "no bend is seen")
    yield from _epochs(study, cfg, largest)


def _epochs(study: Study, cfg: Tables, largest: int) -> Iterator[dict[str, str]]:
    """Scores with the most labels after each number of epochs of domain pretraining, where there are several."""
    rows = _reported(study)
    rows = rows[rows["labels"] == largest]
    for pipeline, of_pipeline in rows.groupby("pipeline", sort=False):
        epochs = sorted(of_pipeline["pretrain_epochs"].dropna().unique())
        if len(epochs) < 2:
            continue
        for count in epochs:
            scores = scores_from(of_pipeline[of_pipeline["pretrain_epochs"] == count], study.measure)
            score = _most_labels(by_size(bootstrap(scores, cfg.draws, cfg.seed)), str(pipeline))
            yield _row(EPOCHS, f"{pipeline}, {study.facts.score} after {count:g}", _value(score, "mean"))


def _row(finding: Finding, pipeline: str, ours: str) -> dict[str, str]:
    row = {"quantity": finding.quantity, "published": finding.value, "ours": ours or "–", "pipeline": pipeline}
    return row | {"source": finding.source}


def _steps(row: Mapping[Any, Any]) -> str:
    """Median steps to the common score, and the score."""
    median = number(row["median"], ".0f", "not reached")
    return f"{median} [{interval(row, '.0f')}] to {row['level'] * row['reference']:.3f}"


def _speedup(table: pd.DataFrame, name: str, other: str, labels: int) -> str:
    """Steps of `other` over those of `name`, whichever of them comes first in the table."""
    rows = table[(table["level"] == LEVEL) & (table["labels"] == labels)]
    for row in rows[rows["first"].isin([name, other]) & rows["second"].isin([name, other])].to_dict("records"):
        if np.isnan(row["ratio"]):
            return str(row["note"])
        if row["first"] != name:
            with np.errstate(divide="ignore"):
                ratio, low, high = (float(np.divide(1.0, row[end])) for end in ("ratio", "high", "low"))
            bound = {">=": "<=", "<=": ">="}.get(row["bound"], "")
            row = {**row, "ratio": ratio, "low": low, "high": high, "bound": bound}
        sign = {">=": "at least ", "<=": "at most "}.get(row["bound"], "")
        return sign + _value(row, "ratio", ".2g")
    return ""


def _most_labels(table: pd.DataFrame, pipeline: str) -> dict[str, Any]:
    """The row of a pipeline's largest size with a score."""
    rows = table[(table["pipeline"] == pipeline) & table["mean"].notna()].sort_values("labels")
    return dict(rows.iloc[-1])


def _value(row: Mapping[Any, Any], name: str, form: str = ".3f") -> str:
    """A number and its 95 % interval."""
    return f"{number(row[name], form)} [{interval(row, form)}]"


def main() -> None:
    """Parse the command line and print the tables."""
    with user_errors():
        run(parse_command(Tables, "python -m sweep.tables", EXAMPLES))


if __name__ == "__main__":
    main()
