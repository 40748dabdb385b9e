"""The study's tables: one row per cell and split, per volume or exam, per validation."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, Field

from core.errors import UserError
from core.files import write_csv, write_parquet
from core.tables import read_table
from sweep.analysis.study_files import read_json
from sweep.study.config import SweepConfig
from sweep.study.grid import Job
from sweep.study.jobs import foreign_run, is_done, note_failure, run_config
from sweep.study.rates import FILE, chosen_rate

TIMES = ("seconds", "images_per_second", "exams_per_second")

Share = Annotated[float, Field(ge=0, le=1)]
"""A score between 0 and 1."""


class Interval(BaseModel):
    """A score of exams; its interval is not checked."""

    value: Share


class ExamScores(BaseModel):
    """Scores of a classifier on one split."""

    auc: Interval
    accuracy: Interval
    sensitivity: Interval
    specificity: Interval
    brier: Share
    calibration_error: Share
    exams: int
    positive: int


class VolumeScores(BaseModel):
    """Scores of a segmentation on one split; None where no volume was counted."""

    dice: dict[str, Share | None]
    jaccard: dict[str, Share | None]
    hd95_mm: dict[str, float | None]
    assd_mm: dict[str, float | None]
    not_counted: dict[str, dict[str, int]]
    slice_jaccard: float | None
    patients: int
    volumes: int


class CellResult(BaseModel):
    """What a study needs of a cell's `result.json`; there is more in it."""

    seed: int
    subset_seed: int
    versions: dict[str, str] = {}
    synthetic: bool
    seconds: float


class SegmentResult(CellResult, VolumeScores):
    """`result.json` of a segmentation: the scores of the validation split at the top level."""

    labelled_slices: int
    labelled_subjects: int
    steps: int | None
    test: VolumeScores | None = None


class Labelled(BaseModel):
    """The exams that a classifier was trained on."""

    exams: int
    positive: int


class ClassifyResult(CellResult):
    """`result.json` of a classifier."""

    train: Labelled
    val: ExamScores
    test: ExamScores | None = None


def collect(cfg: SweepConfig, cells: Sequence[Job]) -> dict[str, str]:
    """Write `results`, `per_volume` or `per_exam`, `curves` and `timings` of the finished cells into the study.

    Where learning rates were tried, `rates.csv` has a row for each pipeline and rate.

    The tables follow from the cells' files alone, in the order of the plan, and only `timings.csv` holds times: a
    study that was interrupted ends with the same bytes. A cell whose files are damaged is left out, with the reason
    in its `error.txt`.

    Returns:
        The reason for each cell that was left out, by its name.
    """
    rows, details, curves, times = [], [], [], []
    data_sets: list[str | None] = []
    unusable: dict[str, str] = {}
    for job in (job for job in cells if is_done(job)):
        key = {"cell": job.name.removeprefix("cells/")} | job.key
        try:
            if doubt := foreign_run(job):
                raise UserError(doubt)
            result = _result(cfg, job)
            scores = [key | row | {"lr": run_config(job).lr} for row in _scores(cfg, result, job)]
            tables = [_keyed(table, key) for table in _details(cfg, job)]
            _require_all_rows(job, scores, tables)
            curve = _keyed(_curve(cfg, job), key)
        except (UserError, OSError) as error:
            unusable[job.name] = f"{error}; remove the folder {job.folder} and run the same command again"
            note_failure(job, unusable[job.name])
            continue
        data_sets.append(result.get("data_set"))
        rows += scores
        details += tables
        curves.append(curve)
        times.append({"cell": key["cell"]} | {name: result[name] for name in TIMES if name in result})
    if len({digest for digest in data_sets if digest}) > 1:
        warning = "the data set was changed between the runs of this study, so that they are not comparable"
        rows = [row | {"warnings": "; ".join(filter(None, [row["warnings"], warning]))} for row in rows]
    if rows:
        write_csv(cfg.out / ("per_volume.csv" if cfg.task == "segment" else "per_exam.csv"), pd.concat(details))
        write_parquet(cfg.out / "curves.parquet", pd.concat(curves, ignore_index=True))
        write_csv(cfg.out / "timings.csv", pd.DataFrame(times))
    if tried := list(_rates(cells)):
        write_csv(cfg.out / "rates.csv", pd.DataFrame(tried))
    results = pd.DataFrame(rows)
    write_parquet(cfg.out / "results.parquet", results)
    write_csv(cfg.out / "results.csv", results)  # last: it says which cells the other tables hold
    return unusable


def collected(cfg: SweepConfig, cells: Sequence[Job]) -> bool:
    """Whether the study's tables already hold all cells, so that `collect` would write the same again."""
    detail = "per_volume.csv" if cfg.task == "segment" else "per_exam.csv"
    if not all((cfg.out / name).is_file() for name in (detail, "curves.parquet", "results.csv", "results.parquet")):
        return False
    try:
        results = read_table(cfg.out / "results.csv", ("cell", "config_hash"))
    except UserError:
        return False
    written = set(zip(results["cell"], results["config_hash"], strict=True))
    return written == {(job.name.removeprefix("cells/"), job.hash) for job in cells}


def _result(cfg: SweepConfig, job: Job) -> dict[str, Any]:
    """The content of a cell's `result.json`; UserError if it is damaged or of another run."""
    file = job.folder / "result.json"
    kind = SegmentResult if cfg.task == "segment" else ClassifyResult
    result = read_json(file, kind, "the cell is left out")
    for name in ("seed", "subset_seed"):
        if result[name] != job.key[name]:
            raise UserError(f"{file} is of another run ({name} {result[name]}, not {job.key[name]})")
    return result


def _require_all_rows(job: Job, scores: Sequence[dict[str, Any]], tables: Sequence[pd.DataFrame]) -> None:
    """Raise a UserError unless the tables of volumes or exams have as many rows as `result.json` says."""
    counts = Counter(split for table in tables for split in table["split"])
    for row in scores:
        expected, split = row["volumes"] if "volumes" in row else row["exams"], row["split"]
        if counts[split] != expected:
            raise UserError(f"{job.folder} has the scores of {counts[split]} of {expected} cases of the {split} split")


def _scores(cfg: SweepConfig, result: dict[str, Any], job: Job) -> Iterator[dict[str, Any]]:
    """A row for each split that was scored."""
    segment = cfg.task == "segment"
    splits = {"val": result if segment else result.get("val"), "test": result.get("test")}
    versions = " ".join(f"{name}={number}" for name, number in result.get("versions", {}).items() if name != "fewslice")
    last = {"synthetic": result["synthetic"], "config_hash": job.hash, "versions": versions}
    last["warnings"] = "; ".join(result.get("warnings", []))
    for split, scores in splits.items():
        if scores:
            columns = _segment_row(result, scores) if segment else _classify_row(result, scores)
            yield {"split": split} | columns | last


def _segment_row(result: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    row = {name: result[name] for name in ("labelled_slices", "labelled_subjects", "steps")}
    for measure in ("dice", "jaccard", "hd95_mm", "assd_mm"):
        for name, value in scores[measure].items():
            row[measure if name == "mean" else f"{measure}_{name}"] = value
    empty = {f"{kind}_{name}": n for kind, counts in scores["not_counted"].items() for name, n in counts.items()}
    return row | {name: scores[name] for name in ("slice_jaccard", "patients", "volumes")} | empty


def _classify_row(result: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    row = {"labelled_exams": result["train"]["exams"], "labelled_positive": result["train"]["positive"]}
    row |= {name: scores[name]["value"] for name in ("auc", "accuracy", "sensitivity", "specificity")}
    return row | {name: scores[name] for name in ("brier", "calibration_error", "exams", "positive")}


def _rates(cells: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """pipeline, fold if there are several, lr, score (Dice or AUC on the inner validation subjects) and chosen."""
    done = [job for job in cells if job.trials and is_done(job)]
    trials = {(job.key["pipeline"], job.key.get("fold")): job.trials for job in done}
    for (pipeline, fold), tried in trials.items():
        chosen, scores = chosen_rate(tried), read_json(tried[0][1].parent / FILE)["trials"]
        key = {"pipeline": pipeline} | ({} if fold is None else {"fold": fold})
        for trial in scores:
            yield {**key, **trial, "chosen": trial["lr"] == chosen}


def _details(cfg: SweepConfig, job: Job) -> Iterator[pd.DataFrame]:
    """Tables with a row per volume or exam and its split."""
    if cfg.task == "classify":
        yield read_table(job.folder / "per_exam.csv", ("exam", "split", "label", "probability"), "it is damaged")
        return
    for split, folder in (("val", job.folder), ("test", job.folder / "test")):
        if (file := folder / "per_volume.csv").exists():
            table = read_table(file, ("subject", "slices"), "it is damaged")
            table.insert(0, "split", split)
            yield table


def _curve(cfg: SweepConfig, job: Job) -> pd.DataFrame:
    """step, score (validation Dice or AUC), jaccard of a segmentation, and loss at every validation."""
    name = "validation_dice" if cfg.task == "segment" else "validation_auc"
    table = read_table(job.folder / "metrics.csv", ("step", name, "loss"), "it is damaged")
    columns = ["step", name, *({"validation_jaccard"} & {*table}), "loss"]  # version 0.1 did not follow Jaccard
    table = table.loc[table[name].notna(), columns]
    if table.empty or not table[name].between(0, 1).all() or not table["step"].is_monotonic_increasing:
        raise UserError(f"{job.folder / 'metrics.csv'} is damaged ({name} is missing or impossible)")
    return table.rename(columns={name: "score", "validation_jaccard": "jaccard"})


def _keyed(table: pd.DataFrame, key: dict[str, Any]) -> pd.DataFrame:
    """The table with the cell's identity before its other columns."""
    rest = table.drop(columns=[*key], errors="ignore")
    return pd.concat([pd.DataFrame([key] * len(rest), index=rest.index), rest], axis=1)
