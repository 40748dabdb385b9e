"""The study of class imbalance from its configuration to its report."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import pandas as pd
from rich.text import Text

from core.errors import UserError
from core.files import remove_leftovers, write_csv, write_json
from core.locks import folder_lock, is_unused
from core.terminal import terminal
from core.text import read_json
from core.wording import listed
from data.duplicates import warn_of_test_duplicates
from data.readers.class_images import ClassImages
from data.sources import open_images
from engine.config import read_config, result_settings, saved
from pretrain.config import MethodName, with_method
from sweep.imbalance.config import SUPERVISED, ImbalanceConfig
from sweep.study.grid import Job
from sweep.study.jobs import failure, is_done, require_own, tidy
from sweep.study.networks import require_networks
from sweep.study.progress import Board

log = logging.getLogger("fewslice")
console = terminal()

BALANCED, LONG_TAILED = "balanced", "long-tailed"


def run(cfg: ImbalanceConfig) -> Path:
    """Finish every run of the study, then write its tables and its report; returns the report's path.

    Raises:
        UserError: for a mistake in the configuration or the data, or a folder that holds another study.
    """
    _refuse_another_study(cfg)
    images = open_images(cfg.data)
    if untested := images.untested:
        folder = Path(cfg.data.data_root or "") / "test" / untested[0]
        raise UserError(
            f"{cfg.data.data_root} holds no test images of {listed(untested)}, and the study needs all classes: put "
            f"some into {folder}{' and so on' if untested[1:] else ''}"
        )
    jobs = plan(cfg, images)  # before the folder is made: a mistake in the data leaves nothing behind
    require_networks(jobs)
    warnings = warn_of_test_duplicates(images)
    cfg.out.mkdir(parents=True, exist_ok=True)
    with folder_lock(cfg.out, "another sweep"):
        remove_leftovers(cfg.out, alone=True, below=False)
        write_json(cfg.out / "study.json", saved(cfg))
        write_json(cfg.out / "plan.json", _plan_of(cfg, images, jobs) | {"warnings": warnings})
        _execute(cfg, jobs)
        errors = {job.name: failure(job) or "a job it depends on failed" for job in jobs if not is_done(job)}
        for name, error in list(errors.items())[:10]:
            console.print(Text.assemble(("failed", "red"), f" {name}: {error}"), soft_wrap=True)
        done = [job for job in jobs if job.is_cell and is_done(job)]
        if not done:
            raise UserError(f"every run of the study in {cfg.out} failed; the first: {next(iter(errors.values()))}")
        write_csv(cfg.out / "results.csv", pd.DataFrame(list(_rows(done))))
        from sweep.report.imbalance import report

        return report(cfg.out)


def plan(cfg: ImbalanceConfig, images: ClassImages) -> list[Job]:
    """An encoder for each ratio, set, seed and method, and a cell that evaluates each; every job after its encoder.

    All methods of a seed see the same images. Both sets of a ratio have the same size.

    Raises:
        UserError: if the data hold too few images for a set.
    """
    jobs = []
    for ratio, seed in product(cfg.ratios, cfg.seeds):
        tail = replace(cfg.data, imbalance=ratio, draw_seed=seed)
        total = len(images.selected(ratio, None, seed, f"--ratios {ratio:g}").train)
        images.selected(1.0, total, seed, f"--ratios {ratio:g} makes sets of {total} images")
        sets = {BALANCED: replace(cfg.data, total=total, draw_seed=seed), LONG_TAILED: tail}
        for (kind, data), method in product(sets.items(), cfg.methods):
            name = f"{method}-{kind}-ratio{ratio:g}-seed{seed}"
            encoder = f"encoders/{name}"
            settings: dict[str, Any] = {"data": data, "seed": seed, "out": cfg.out / encoder}
            if method == SUPERVISED:
                config = cfg.run_config("supervised", **settings)
            else:
                config = with_method(
                    cfg.run_config("pretrain", stage="specialist", **settings), cast(MethodName, method)
                )
            jobs.append(Job(name=encoder, config=config, key={}))
            evaluation = cfg.run_config(
                "probe",
                init=str(cfg.out / encoder / "encoder.safetensors"),
                data=replace(cfg.data, total=cfg.probe_images),
                out=cfg.out / f"cells/{name}",
            )
            key = {"pipeline": f"{method} {kind}", "labels": total}
            key |= {"method": method, "set": kind, "ratio": ratio, "images": total, "seed": seed}
            jobs.append(Job(name=f"cells/{name}", config=evaluation, needs=(encoder,), key=key))
    images.selected(1.0, cfg.probe_images, 0, f"--probe-images {cfg.probe_images}")
    return jobs


def _plan_of(cfg: ImbalanceConfig, images: ClassImages, jobs: Sequence[Job]) -> dict[str, Any]:
    """plan.json: the study as plain data, for the report, which reads the study's folder and nothing else."""
    return {
        "task": cfg.task,
        "dataset": images.name,
        "classes": list(images.classes),
        "test_images": len(images.test),
        "methods": list(cfg.methods),
        "ratios": list(cfg.ratios),
        "seeds": list(cfg.seeds),
        "counts": {f"{ratio:g}": images.selected(ratio, None, 0).counts for ratio in cfg.ratios},
        "cells": [{"name": job.name, **job.key} for job in jobs if job.is_cell],
    }


def _rows(cells: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """One row of results.csv for each finished cell."""
    for job in cells:
        result = read_json(job.folder / "result.json")
        row = {name: value for name, value in job.key.items() if name not in ("pipeline", "labels")}
        row |= {"accuracy": result["accuracy"]["value"], "regularisation": result["regularisation"]["value"]}
        row |= {f"accuracy_{group}": values["value"] for group, values in result["groups"].items()}
        trained = read_json(job.folder.parents[1] / "encoders" / job.folder.name / "result.json")
        row["accuracy_of_head"] = trained["accuracy"]["value"] if "accuracy" in trained else None
        row["warnings"] = "; ".join(result.get("warnings", []))
        yield row


def _execute(cfg: ImbalanceConfig, jobs: Sequence[Job]) -> None:
    """Run what is left of the study in processes of this machine."""
    for job in jobs:
        require_own(job)
        tidy(job, keep_model=False)
    done = sum(map(is_done, jobs))
    count = len(jobs) // 2
    before = f", {done} of the {len(jobs)} runs finished before" if done else ""
    console.print(f"{count} encoders and their evaluations in {cfg.out}{before}", soft_wrap=True)
    if done == len(jobs):
        return
    from sweep.study.local import run_locally

    gpus = 0
    if cfg.device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(cfg.processes or gpus or cores, len(jobs))
    (cfg.out / "logs").mkdir(exist_ok=True)
    with Board(jobs, "images") as board:
        run_locally(
            jobs,
            board.note,
            logs=cfg.out / "logs",
            processes=processes,
            threads=cfg.threads or max(1, cores // processes),
            gpus=gpus,
        )


def _refuse_another_study(cfg: ImbalanceConfig) -> None:
    """Raise a UserError if the folder holds a study of other settings, or something else."""
    file = cfg.out / "study.json"
    if not file.exists():
        if not is_unused(cfg.out):
            raise UserError(f"{cfg.out} is not empty and holds no study; choose another --out")
        return
    was, now = result_settings(read_config(ImbalanceConfig, file)), result_settings(cfg)
    if changed := [name for name in now if was[name] != now[name]]:
        name = changed[0]
        what = f"{name} was {was[name]!r} and is now {now[name]!r}"
        raise UserError(f"{cfg.out} holds a study of other settings ({what[:300]}); choose another --out")
