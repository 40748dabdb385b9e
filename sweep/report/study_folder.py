"""A study as its folder describes it: settings, plan, results and encoder cards, read as plain files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, BaseModel, model_validator

from core.errors import UserError
from core.tables import read_table
from sweep.analysis.study_files import (
    ADVICE,
    display_name,
    first_line,
    is_inside,
    read_json,
    read_results,
    relative_paths,
    require_all_cells,
    with_selections,
)
from sweep.analysis.tables import analyse, scored_split
from sweep.report.encoder_cards import natural_image_starts, pretraining_lengths

LAYOUTS = {"segment": "acdc", "classify": "mrnet"}
NAMES = {"acdc": "ACDC", "mrnet": "MRNet", "dice": "Dice", "jaccard": "Jaccard", "val": "validation"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a study, besides its tables, for the sentences of the report."""

    pipelines: tuple[str, ...]
    """In the order of the study."""
    selections: int = 1
    """Number of rules by which labelled slices are chosen."""
    score: str
    """Name of the score: Dice, Jaccard, AUC."""
    unit: str
    """What the labels are, in the plural: slices, patients or exams."""
    split: str
    """validation or test."""
    unit_scored: str
    """What was scored: patients or exams."""
    scored: int = 0
    """Number of patients or exams scored."""
    seeds: int
    """Number of repetitions, see `_independent_seeds`."""
    dataset: str
    synthetic: bool
    """Whether the data are a synthetic phantom."""
    settings: str
    """The main settings of the runs."""
    natural_image_starts: Mapping[str, str]
    """Origin of each natural-image encoder, and what limits results with it (may be empty)."""
    pretrainings: int = 1
    """Number of pretraining seeds."""
    pretraining: str = ""
    """Steps of each encoder's pretraining and the share of its initial weights that is left; empty if unknown."""
    is_short: bool = False
    """Whether a pretraining was so short that scores say little about its method."""
    chosen_in_sample: str = ""
    """What was chosen on the split that is reported; empty if nothing was."""
    warnings: Sequence[str] = ()
    """Reasons why scores may be too high: leakage that the study's settings allowed."""
    missing: int = 0
    """Cells without a result."""
    cells: int = 0
    """Cells of the plan."""

    def labels(self, count: int) -> str:
        """A number of labels with its unit."""
        return f"{count:,} {self.unit if count != 1 else self.unit.removesuffix('s')}"

    @property
    def resampled(self) -> str:
        """What the bootstrap resamples besides patients or exams."""
        return "seeds and pretraining seeds" if self.pretrainings > 1 else "seeds"

    @property
    def count_scored(self) -> str:
        """The number of patients or exams scored, with its unit."""
        return f"{self.scored:,} {self.unit_scored if self.scored != 1 else self.unit_scored.removesuffix('s')}"

    @property
    def data(self) -> str:
        """The data set, and whether its images are real."""
        return self.dataset if self.synthetic else f"{self.dataset}, real images"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study and its analysis."""

    folder: Path
    measure: str
    """Column of the results that holds the score: dice, jaccard or auc."""
    settings: Mapping[str, Any]
    """The configuration, study.json."""
    runs: Sequence[Mapping[str, Any]]
    """Jobs of plan.json, each with its state ("done", "failed" or "not run") and the first line of its error."""
    results: pd.DataFrame
    """Rows of the split that is reported."""
    tables: Mapping[str, pd.DataFrame]
    """Tables of `sweep.analysis.tables.analyse`."""
    facts: Facts
    rates: pd.DataFrame
    """Learning rates tried: pipeline, lr, score and chosen; empty if none were."""


def read_study(folder: Path, measure: str | None = None, draws: int = 2000, seed: int = 0) -> Study:
    """Read a study's files and analyse them.

    Args:
        folder: folder of the study.
        measure: "dice" or "jaccard"; None: that of the study's settings.
        draws: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Raises:
        UserError: if the folder holds no study, no finished run, or no plan.
    """
    settings, results, plan = read_settings(folder), read_results(folder), read_plan(folder)
    settings = read_json(folder / "study.json", _Settings)
    measure = measure or settings.get("measure") or "dice"
    pipelines = with_selections(settings["pipelines"], settings.get("selection", ["random"]))
    settings["pipelines"] = [display_name(pipeline) for pipeline in pipelines]
    for job in plan["jobs"]:
        if job.get("pipeline"):
            job["pipeline"] = display_name(job["pipeline"])
    if not settings.get(plan["task"]):
        raise UserError(f"{folder / 'study.json'} and plan.json are not of one study; {ADVICE}")
    require_all_cells(folder, results)
    if unknown := set(results["pipeline"]) - set(settings["pipelines"]):
        raise UserError(f"{folder / 'study.json'} and results.csv are not of one study ({min(unknown)}); {ADVICE}")
    tables, split = analyse(folder, measure, draws, seed), scored_split(folder)
    scored, exams = set(tables["by_size"]["pipeline"]), plan["task"] == "classify"
    runs, run_settings = _with_states(folder, plan["jobs"], set(results["cell"])), settings[plan["task"]]
    if settings.get("anonymous"):  # errors name files and subjects
        runs = [{**run, "error": run["error"] and f"see {run['name']}/error.txt"} for run in runs]
    cells = [run for run in runs if run["is_cell"]]
    results = results[results["split"] == split]
    pretraining, is_short = pretraining_lengths(folder)
    facts = Facts(
        pipelines=tuple(name for name in settings["pipelines"] if name in scored),
        selections=len(settings.get("selection", ["random"])),
        score="AUC" if exams else NAMES[measure],
        unit=plan["unit"],
        split=NAMES.get(split, split),
        unit_scored="exams" if exams else "patients",
        scored=int(tables["by_size"]["patients"].max()),
        seeds=_independent_seeds(results, int(tables["by_size"]["seeds"].max())),
        dataset=_dataset(settings, plan["task"], is_synthetic(results)),
        synthetic=is_synthetic(results),
        settings=f"{run_settings['encoder']}, {pixels(run_settings['image_size'])}, {length_of(run_settings)}",
        natural_image_starts=dict(natural_image_starts(folder)),
        pretrainings=int(results.groupby("pipeline")["pretrain_seed"].nunique().max()),
        pretraining=pretraining,
        is_short=is_short,
        chosen_in_sample=_chosen_in_sample(run_settings) if split == "val" else "",
        warnings=warnings_of(results),
        missing=sum(run["state"] != "done" for run in cells),
        cells=len(cells),
    )
    column = "auc" if exams else measure
    return Study(
        folder=folder,
        measure=column,
        settings=settings,
        runs=runs,
        results=results,
        tables=tables,
        facts=facts,
        rates=_read_rates(folder),
    )


def _independent_seeds(results: pd.DataFrame, replicates: int) -> int:
    """Number of repetitions; of crossed seeds of subsets and of training, the smaller number of either."""
    numbers = results["subset_seed"].nunique(), results["seed"].nunique()
    return min(numbers) if replicates > max(numbers) else replicates


def _read_rates(folder: Path) -> pd.DataFrame:
    columns = ("pipeline", "lr", "score", "chosen")
    if not (folder / "rates.csv").is_file():
        return pd.DataFrame(columns=columns)
    rates = read_table(folder / "rates.csv", columns, ADVICE)
    return rates.assign(pipeline=[display_name(str(pipeline)) for pipeline in rates["pipeline"]])


def _chosen_in_sample(run: Mapping[str, Any]) -> str:
    """What runs of these settings choose on the validation split, in words."""
    choices = []
    if (select := run.get("select", "last")) != "last":
        best = {"best": "Dice", "auc": "AUC", "loss": "loss (lowest)"}.get(select, select)
        choices.append(f"the weights that are kept, those of the best {best} during training")
    if run.get("threshold") == "youden":
        choices.append("the threshold of accuracy, sensitivity and specificity, by Youden's index")
    return " and ".join(choices)


def _inside(name: str) -> str:
    if not is_inside(name):
        raise ValueError("must be a folder inside the study")
    return name


class _Pretraining(BaseModel):
    """The settings of pretraining that the report names."""

    image_size: int | tuple[int, int]
    batch_size: int
    steps: int | None


class _Run(_Pretraining):
    """The settings of the cells that the report names."""

    encoder: str
    epochs: float | None = None
    spacing_mm: float | None = None

    @model_validator(mode="after")
    def _has_a_length(self) -> "_Run":
        if not self.steps and self.epochs is None:
            raise ValueError("a run needs steps or epochs")
        return self


class _Data(BaseModel):
    dataset: str | None = None
    data_root: str | None = None


class _Settings(_Data):
    """study.json, as far as the report reads it."""

    pipelines: list[str]
    selection: list[str] = ["random"]
    seeds: list[int]
    pretrain_seeds: list[int]
    pretrain_epochs: list[int] = []
    sizes: list[int] = []
    cross_seeds: bool = False
    data: _Data | None = None
    segment: _Run | None = None
    classify: _Run | None = None
    pretrain: _Pretraining


class _Job(BaseModel):
    name: Annotated[str, AfterValidator(_inside)]
    is_cell: bool
    needs: list[str]
    pipeline: str | None = None
    labels: int | None = None
    pretrain_epochs: float | None = None
    stage: str | None = None
    epochs: float | None = None

    @model_validator(mode="after")
    def _cell_has_a_key(self) -> "_Job":
        if self.is_cell and not {"pipeline", "labels", "pretrain_epochs"} <= self.model_fields_set:
            raise ValueError("a cell needs pipeline, labels and pretrain_epochs")
        return self


class _Plan(BaseModel):
    """plan.json."""

    unit: Literal["slices", "patients", "exams"]
    task: Literal["segment", "classify"]
    jobs: list[_Job]


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration of a study, study.json."""
    if not (folder / "study.json").is_file():
        raise UserError(f"{folder} holds no study (no study.json); pass the --out folder of python -m sweep")
    return read_json(folder / "study.json")


def read_plan(folder: Path) -> dict[str, Any]:
    """The content of a study's plan.json: unit, task and the jobs, as `python -m sweep` planned them."""
    if not (folder / "plan.json").is_file():
        raise UserError(
            f"{folder} lacks plan.json, which fewslice 0.1 did not write; run the same python -m sweep command again: "
            "it adds the file and repeats no finished run"
        )
    return read_json(folder / "plan.json", _Plan)


def is_synthetic(results: pd.DataFrame) -> bool:
    """Whether the results are of a synthetic phantom."""
    return bool(results["synthetic"].any())


def _with_states(folder: Path, jobs: Sequence[Mapping[str, Any]], finished: set[str]) -> list[Mapping[str, Any]]:
    """The jobs with state and error: a cell is done if it has results, an encoder unless it or its source failed."""
    runs: dict[str, Mapping[str, Any]] = {}
    for job in jobs:
        name, error = job["name"], ""
        done = name.removeprefix("cells/") in finished if job["is_cell"] else True
        if not (job["is_cell"] and done):
            note = folder / name / "error.txt"
            error = relative_paths(first_line(note), folder)
            stopped = [need for need in job["needs"] if not need.startswith("rates/")]  # another rate is chosen
            failed = [need for need in stopped if need in runs and runs[need]["error"]]
            error = error or (f"needs {failed[0]}, which failed" if failed else "")
        state = "failed" if error else "done" if done else "not run"
        runs[name] = {**job, "state": state, "error": error}
    return list(runs.values())


def warnings_of(results: pd.DataFrame) -> list[str]:
    """The warnings of the cells' results, each with the pipelines it is about; results of 0.1 have none."""
    if "warnings" not in results:
        return []
    rows = results.assign(warnings=results["warnings"].fillna("").astype(str).str.split("; ")).explode("warnings")
    rows = rows[rows["warnings"] != ""]
    pipelines = {str(warning): names.unique() for warning, names in rows.groupby("warnings", sort=False)["pipeline"]}
    return [f"{text[:1].upper()}{text[1:]} ({', '.join(names)})." for text, names in pipelines.items()]


def _dataset(settings: Mapping[str, Any], task: str, synthetic: bool) -> str:
    """Name of the data set; studies of 0.1 have its settings at the top level."""
    data = {**settings, **(settings.get("data") or {})}
    layout, root = data.get("dataset") or LAYOUTS[task], data.get("data_root")
    name = NAMES.get(layout) or (f"the folder {Path(root).name}" if root else "the built-in data")
    return f"a synthetic phantom in the layout of {name}" if synthetic else name


def pixels(size: int | Sequence[int]) -> str:
    """The side or sides of an image in words."""
    return f"{size} pixels" if isinstance(size, int) else f"{size[0]} x {size[1]} pixels"


def length_of(run: Mapping[str, Any]) -> str:
    """Length of a cell's training."""
    length = f"{run['steps']:,} steps" if run["steps"] else f"{run['epochs']:g} epochs"
    return f"{length} with batch size {run['batch_size']}"
