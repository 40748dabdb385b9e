"""A sweep of 12 small runs (cells), against the same cells run one by one in separate processes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.outcome import Outcome, Row, faster
from benchmarks.rounds import Ratio
from data.phantoms.cardiac import demo_root
from data.sources import AcdcSource
from engine.config import plain
from segment.config import SegmentConfig
from sweep.study.config import SweepConfig, demo
from sweep.study.grid import Job, plan
from sweep.study.jobs import run_job
from sweep.study.run import count_labels

ONE_BY_ONE = 4
"""Number of cells run one by one, spread so that each pipeline is included; their time is scaled to all cells."""


def run(*, rounds: int, quick: bool) -> Outcome:
    """Run the study both ways, once each (`rounds` is ignored: a study is long); `quick`: a study of two cells."""
    root = demo_root()  # write its files before anything is timed
    with tempfile.TemporaryDirectory() as folder:
        cfg = study_of(root, Path(folder), quick)
        sweep = run_command("sweep", cfg, Path(folder) / "sweep-command")  # its report included
        alone = _alone(replace(cfg, out=Path(folder) / "alone"))
        cells = _cells_in_one_process(replace(cfg, out=Path(folder) / "together"))
    rows = [_wall_row(sweep, alone), _overhead_row(cells, alone)]
    one_by_one = vars(alone) | {"whole study, s": alone.seconds}
    details = {"sweep, s": sweep, "one by one": one_by_one, "cells of one process": cells}
    return Outcome(rows=rows, details=details)


def study_of(root: Path, folder: Path, quick: bool) -> SweepConfig:
    """Two pipelines, three fractions, two seeds; ResNet-18 at 32 pixels, a generalist of 128 procedural images."""
    base = demo()
    return replace(
        base,
        pipelines=("random",) if quick else ("random", "generalist"),
        fractions=(0.02,) if quick else (0.02, 0.1, 0.5), seeds=(0, 13),
        data=AcdcSource(data_root=root), out=folder / "sweep", processes=2, device="cpu",
        pretrain=replace(base.pretrain, generalist_images=128, generalist_epochs=1),
        segment=replace(base.segment, steps=2 if quick else 12, evaluate_every=8),
    )  # fmt: skip


def run_command(module: str, config: Any, folder: Path, **environment: str) -> float:
    """Wall time in seconds of `python -m module` with a configuration, an empty cache and environment variables."""
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps(plain(config)))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", str(file)], cwd=Path(__file__).parent.parent,
        env=os.environ | {"FEWSLICE_CACHE": str(folder / "cache")} | environment, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"python -m {module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds


@dataclass(frozen=True)
class Alone:
    """Times in seconds of runs in separate processes."""

    encoders: list[float]
    """Wall time of each pretraining."""
    cells: list[float]
    """Wall time of each cell that was run."""
    trained: list[float]
    """Training and scoring within each of `cells`, as reported by the run."""
    count: int
    """Number of cells of the study."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole study, the cells that were not run counted as the mean of the others."""
        return sum(self.encoders) + sum(self.cells) / len(self.cells) * self.count

    @property
    def outside(self) -> float:
        """Median seconds of a cell's process before and after its training and scoring."""
        return statistics.median(wall - inside for wall, inside in zip(self.cells, self.trained, strict=True))


def _alone(cfg: SweepConfig) -> Alone:
    """Run each job by its own command, on all cores; an encoder is trained once, as a careful user would."""
    jobs = plan(cfg, count_labels(cfg))
    cells = [job for job in jobs if job.is_cell]
    cells_to_run = cells[:: max(1, len(cells) // ONE_BY_ONE)]
    encoders = [_run_alone(job) for job in jobs if not job.is_cell]
    walls = [_run_alone(job) for job in cells_to_run]
    return Alone(encoders, walls, [_result(job)["seconds"] for job in cells_to_run], len(cells))


def _run_alone(job: Job) -> float:
    folder = job.folder.parent / f"{job.folder.name}-command"
    return run_command("segment" if job.is_cell else "pretrain", job.config, folder)


def _result(job: Job) -> Any:
    return json.loads((job.folder / "result.json").read_text())


def _cells_in_one_process(cfg: SweepConfig) -> list[dict[str, float]]:
    """Times of cells run one after the other in this process, as in a process of the sweep; the first opens the data.

    Training is the time in optimiser steps (from the loop's own rate: with data, without validation); scoring is
    prediction, Dice and surface distances of the validation volumes. The rest is overhead: subset, network and its
    initial weights, run folder, figures, writing and reading the model.
    """
    jobs = plan(cfg, count_labels(cfg))
    cells = [job for job in jobs if job.is_cell]
    for job in jobs:
        if not job.is_cell:
            run_job(job)
    times = []
    for job in cells[:8]:
        with _stopwatches() as seconds:
            began = time.perf_counter()
            run_job(job)
            wall = time.perf_counter() - began
        assert isinstance(job.config, SegmentConfig)
        training = job.config.steps * job.config.batch_size / _result(job)["images_per_second"]
        scoring = sum(seconds[name] for name in SCORING) - seconds["prediction_panel"]  # drawn within score_split
        shares = {"wall": wall, "training": training, "scoring": scoring, "rest": wall - training - scoring}
        times.append(shares | {name: seconds[name] for name in PARTS})
    return times


SCORING = ("predict_split", "split_scores", "score_split")
PARTS = ("build_segmenter", "load_into_unet", "save_model", "load_unet", "draw_learning_curve", "prediction_panel")
"""Functions whose time is part of a cell's overhead."""


@contextmanager
def _stopwatches() -> Iterator[dict[str, float]]:
    """Within the context, measure the seconds spent in the functions of SCORING and PARTS."""
    import engine.supervised
    import segment.scoring
    import segment.training

    seconds = dict.fromkeys((*SCORING, *PARTS), 0.0)

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - began

        return call

    elsewhere = {"prediction_panel": segment.scoring, "draw_learning_curve": engine.supervised}
    with ExitStack() as stack:
        for name in seconds:
            module: Any = elsewhere.get(name, segment.training)
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name), name)))
        yield seconds


def _wall_row(sweep: float, alone: Alone) -> Row:
    scaled = f"{len(alone.cells)} of them run, scaled to {alone.count}" if len(alone.cells) < alone.count else "all run"
    what = f"study of {alone.count} small cells, {sweep:.0f} s"
    against = f"a process per cell, one by one, {alone.seconds:.0f} s ({scaled})"
    return faster(what, against, Ratio.of([alone.seconds / sweep]), 2.0)


def _overhead_row(cells: list[dict[str, float]], alone: Alone) -> Row:
    later = [cell["rest"] for cell in cells[1:]]
    median = statistics.median(later)
    parts = {name: statistics.median(cell[name] for cell in cells[1:]) for name in PARTS}
    largest = sorted(parts, key=parts.__getitem__, reverse=True)[:3]
    spent = ", ".join(f"{name} {parts[name]:.2g} s" for name in largest)
    why = "" if median <= 0.5 else f"{median - 0.5:.2g} s too long: {spent}"
    return Row(
        what="second and later cells, neither optimiser steps nor prediction and scoring (figures, files count)",
        against=f"a process per cell, {alone.outside:.1f} s before and after training",
        target="<= 0.5 s",
        value=f"{median:.2g} s [{min(later):.2g}, {max(later):.2g}]; first cell {cells[0]['rest']:.2g} s",
        met=median <= 0.5,
        why=why,
    )
