"""What a study will cost, from one short probe."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pretrain.config import PretrainConfig
from sweep.cell import is_done, run_job
from sweep.config import SweepConfig
from sweep.grid import Job, unit

PROBE_STEPS = 4


def estimate(cfg: SweepConfig, jobs: Sequence[Job], console: Console) -> None:
    """Print the plan, and the time that it will take by a probe of a few optimiser steps and one scoring."""
    left = [job for job in jobs if not is_done(job)]
    cells = [job for job in jobs if job.is_cell]
    sizes = sorted({job.key["labels"] for job in cells})
    table = Table(title=f"{len(cells)} cells in {cfg.out}")
    table.add_column("pipeline")
    for size in sizes:
        table.add_column(f"{size} {unit(cfg)}", justify="right")
    counts = Counter((job.key["pipeline"], job.key["labels"]) for job in cells)
    for pipeline in cfg.pipelines:
        table.add_row(pipeline, *(str(counts[pipeline, size]) for size in sizes))
    console.print(table)
    for job in jobs:
        if not job.is_cell:
            needs = f", after {', '.join(job.needs)}" if job.needs else ""
            console.print(f"{job.name}{needs}{', done' if is_done(job) else ''}", highlight=False, soft_wrap=True)
    todo = [job for job in left if job.is_cell]
    if not todo:
        console.print("every cell is done")
        return
    step, scoring = probe(cfg, todo[-1])
    config: Any = cfg.run_config
    steps = config.steps or 0
    validations = steps // (config.evaluate_every or steps) if steps else 0
    one = steps * step + validations * scoring
    encoders = [job for job in left if isinstance(job.config, PretrainConfig)]
    console.print(
        f"a probe on {'this machine' if cfg.executor == 'local' else 'this machine, not the cluster'}: {step:.2f} s "
        f"per optimiser step, {scoring:.1f} s per scoring, so {one / 60:.1f} min per cell and "
        f"{one * len(todo) / 3600:.1f} hours for {len(todo)} cells, one at a time; {len(encoders)} pretrainings on top",
        soft_wrap=True,
    )


def probe(cfg: SweepConfig, job: Job) -> tuple[float, float]:
    """Seconds of an optimiser step, and of a scoring of the validation split, of one cell from random weights."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe"
        short = {"steps": PROBE_STEPS, "evaluate_every": PROBE_STEPS, "checkpoint_every": 0}
        config: Any = replace(job.config, out=out, init="random", **short)  # type: ignore[arg-type]
        run_job(replace(job, config=config), threads=cfg.threads)
        result = json.loads((out / "result.json").read_text())
        speed = result.get("images_per_second") or result["exams_per_second"]
        step = config.batch_size / speed
        return step, max(0.0, result["seconds"] - PROBE_STEPS * step)
