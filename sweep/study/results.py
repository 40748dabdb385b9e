"""The study's tables: one row per cell and split, per volume or exam, per validation."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import pandas as pd

from core.errors import UserError
from sweep.study.config import SweepConfig
from sweep.study.grid import Job
from sweep.study.jobs import is_done

PACKAGES = ("torch", "timm", "segmentation-models-pytorch")
TIMES = ("seconds", "images_per_second", "exams_per_second")


def collect(cfg: SweepConfig, cells: Sequence[Job]) -> None:
    """Write `results`, `per_volume` or `per_exam`, `curves` and `timings` of the finished cells into the study.

    The tables follow from the cells' files alone, in the order of the plan, and only `timings.csv` holds times: a
    study that was interrupted ends with the same bytes.

    Raises:
        UserError: when a finished cell's files cannot be read; the cell is named.
    """
    done = [job for job in cells if is_done(job)]
    rows, details, curves, times = [], [], [], []
    for job in done:
        try:
            result = json.loads((job.folder / "result.json").read_text())
            key = {"cell": job.name.removeprefix("cells/")} | job.key
            rows += [key | row for row in _scores(cfg, result, job)]
            details += [_keyed(table, key) for table in _details(cfg, job)]
            curves.append(_keyed(_curve(cfg, job), key))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot read the cell {job.folder} ({reason}); remove its folder and run again") from error
        times.append({"cell": key["cell"]} | {name: result[name] for name in TIMES if name in result})
    results = pd.DataFrame(rows)
    results.to_csv(cfg.out / "results.csv", index=False)
    results.to_parquet(cfg.out / "results.parquet", index=False)
    if done:
        detail = "per_volume.csv" if cfg.task == "segment" else "per_exam.csv"
        pd.concat(details, ignore_index=True).to_csv(cfg.out / detail, index=False)
        pd.concat(curves, ignore_index=True).to_parquet(cfg.out / "curves.parquet", index=False)
        pd.DataFrame(times).to_csv(cfg.out / "timings.csv", index=False)


def _scores(cfg: SweepConfig, result: dict[str, Any], job: Job) -> Iterator[dict[str, Any]]:
    """A row for each split that was scored."""
    segment = cfg.task == "segment"
    splits = {"val": result if segment else result.get("val"), "test": result.get("test")}
    versions = " ".join(f"{name}={version(name)}" for name in PACKAGES)
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


def _details(cfg: SweepConfig, job: Job) -> Iterator[pd.DataFrame]:
    """Tables with a row per volume or exam and its split."""
    if cfg.task == "classify":
        yield pd.read_csv(job.folder / "per_exam.csv", dtype={"exam": str, "subject": str})
        return
    for split, folder in (("val", job.folder), ("test", job.folder / "test")):
        if (file := folder / "per_volume.csv").exists():
            table = pd.read_csv(file, dtype={"subject": str, "group": str, "phase": str})
            table.insert(0, "split", split)
            yield table


def _curve(cfg: SweepConfig, job: Job) -> pd.DataFrame:
    """step, score (validation Dice or AUC) and loss at every validation."""
    name = "validation_dice" if cfg.task == "segment" else "validation_auc"
    table = pd.read_csv(job.folder / "metrics.csv")
    return table.loc[table[name].notna(), ["step", name, "loss"]].rename(columns={name: "score"})


def _keyed(table: pd.DataFrame, key: dict[str, Any]) -> pd.DataFrame:
    """The table with the cell's identity before its other columns."""
    rest = table.drop(columns=[*key], errors="ignore")
    return pd.concat([pd.DataFrame([key] * len(rest), index=rest.index), rest], axis=1)
