"""The cost of a study, estimated from short runs."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from core.wording import count_of
from sweep.study.config import SweepConfig
from sweep.study.grid import Job, unit
from sweep.study.jobs import is_done, run_job
from sweep.study.progress import Board

PROBE_STEPS = 4
"""Optimiser steps of a short run."""


def estimate(cfg: SweepConfig, jobs: Sequence[Job], console: Console) -> None:
    """Print the plan and its duration, estimated from a few optimiser steps and one scoring."""
    left = [job for job in jobs if not is_done(job)]
    console.print(f"{count_of(sum(job.is_cell for job in jobs), 'cell')} in {cfg.out}", soft_wrap=True)
    console.print(Board(jobs, unit(cfg)).table())
    for job in jobs:
        if not job.is_cell:
            needs = f", after {', '.join(job.needs)}" if job.needs else ""
            console.print(f"{job.name}{needs}{', done' if is_done(job) else ''}", highlight=False, soft_wrap=True)
    todo = [job for job in left if job.is_cell]
    trials = sum(job.is_trial for job in left)
    pretrainings = len(left) - len(todo) - trials
    if not todo:
        console.print("every cell is done")
        return
    tried = f" and {trials} trials of learning rates" if trials else ""
    config: Any = cfg.run_config
    steps = config.steps or 0
    validations = steps // (config.evaluate_every or steps) if steps else 0
    measured, total = [], 0.0
    for unlabelled in (False, True):  # learning from unlabelled slices as well takes a multiple of the time
        alike = [job for job in left if (job.is_cell or job.is_trial) and _learns_unlabelled(job) == unlabelled]
        if not alike:
            continue
        step, scoring = probe(cfg, alike[-1])
        one = steps * step + validations * scoring
        total += one * len(alike)
        measured.append(
            f"{step:.2f} s per optimiser step, {scoring:.1f} s per scoring, so {one / 60:.1f} min per cell"
            + (" with unlabelled slices" if unlabelled else "")
        )
    console.print(
        f"estimated from short runs on this machine{'' if cfg.executor == 'local' else ', not the cluster'}: "
        f"{'; '.join(measured)}; {total / 3600:.1f} hours for {count_of(len(todo), 'cell')}{tried} one by one, "
        f"without {pretrainings} pretrainings",
        soft_wrap=True,
    )


def _learns_unlabelled(job: Job) -> bool:
    return getattr(job.config, "unlabelled", False)


def probe(cfg: SweepConfig, job: Job) -> tuple[float, float]:
    """Seconds of an optimiser step, and of a scoring of the validation split, of one cell from random weights."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe"
        short: dict[str, Any] = {"steps": PROBE_STEPS, "evaluate_every": PROBE_STEPS, "checkpoint_every": 0}
        short |= {"selection": "random", "selection_run": None} if cfg.task == "segment" else {}
        config: Any = replace(job.config, out=out, init="random", **short)  # type: ignore[arg-type]
        run_job(replace(job, config=config, trials=()), threads=cfg.threads)
        result = json.loads((out / "result.json").read_text())
        speed = result.get("images_per_second") or result["exams_per_second"]
        step = config.batch_size / speed
        return step, max(0.0, result["seconds"] - PROBE_STEPS * step)
