"""Study: a sweep of 12 small cells, against the same cells run one by one in processes of their own."""

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
from data.phantom import demo_root
from engine.config import plain
from segment.config import SegmentConfig
from sweep.cell import run_job
from sweep.config import SweepConfig, demo
from sweep.grid import Job, plan
from sweep.study import count_labels

ONE_BY_ONE = 4
"""Cells that are really run one by one; their time stands for all of them. Every third, so all kinds are there."""


def run(*, rounds: int, quick: bool) -> Outcome:
    """Run the study both ways, once each (`rounds` is not used: it is long); `quick`: a study of two cells."""
    root = demo_root()  # its files are there before anything is timed
    with tempfile.TemporaryDirectory() as folder:
        cfg = study_of(root, Path(folder), quick)
        sweep = _sweep_seconds(cfg)
        alone = _alone(replace(cfg, out=Path(folder) / "alone"))
        cells = _cells_in_one_process(replace(cfg, out=Path(folder) / "together"))
    rows = [_wall_row(sweep, alone), _overhead_row(cells, alone)]
    details = {"sweep, s": sweep, "one by one": plain_alone(alone), "cells of one process": cells}
    return Outcome(rows=rows, details=details)


def study_of(root: Path, folder: Path, quick: bool) -> SweepConfig:
    """Two pipelines, three fractions, two seeds; ResNet-18 at 32 pixels, a generalist of 128 drawn images."""
    base = demo()
    return replace(
        base,
        pipelines=("random",) if quick else ("random", "generalist"),
        fractions=(0.02,) if quick else (0.02, 0.1, 0.5),
        seeds=(0, 13),
        data_root=root,
        out=folder / "sweep",
        processes=2,
        device="cpu",
        pretrain=replace(base.pretrain, generalist_images=128, generalist_epochs=1),
        segment=replace(base.segment, steps=2 if quick else 12, evaluate_every=8),
    )


def run_command(module: str, config: Any, folder: Path) -> float:
    """Wall time of `python -m module` with a configuration and an empty cache."""
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps(plain(config)))
    environment = os.environ | {"FEWSLICE_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", str(file)],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"python -m {module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds


def _sweep_seconds(cfg: SweepConfig) -> float:
    """Of `python -m sweep`, its report included."""
    return run_command("sweep", cfg, cfg.out.parent / "sweep-command")


@dataclass(frozen=True)
class Alone:
    """Runs in processes of their own."""

    encoders: list[float]
    """Wall seconds of each pretraining."""
    cells: list[float]
    """Wall seconds of the cells that were run."""
    trained: list[float]
    """Of these the seconds of training and scoring, as the run itself reports them."""
    count: int
    """Cells of the study."""

    @property
    def seconds(self) -> float:
        """Of the whole study, the cells that were not run like those that were."""
        return sum(self.encoders) + sum(self.cells) / len(self.cells) * self.count

    @property
    def outside(self) -> float:
        """Median seconds of a cell's process before and after its training and scoring."""
        return statistics.median(wall - inside for wall, inside in zip(self.cells, self.trained, strict=True))


def plain_alone(alone: Alone) -> dict[str, Any]:
    """For the JSON."""
    return vars(alone) | {"whole study, s": alone.seconds}


def _alone(cfg: SweepConfig) -> Alone:
    """Each run by its own command, on all cores; an encoder is made once, as a careful user would."""
    jobs = plan(cfg, count_labels(cfg))
    cells = [job for job in jobs if job.is_cell]
    some = cells[:: max(1, len(cells) // ONE_BY_ONE)]
    encoders = [_run_alone(job, "pretrain") for job in jobs if not job.is_cell]
    walls = [_run_alone(job, "segment") for job in some]
    return Alone(encoders, walls, [_result(job)["seconds"] for job in some], len(cells))


def _run_alone(job: Job, module: str) -> float:
    return run_command(module, job.config, job.folder.parent / f"{job.folder.name}-command")


def _result(job: Job) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((job.folder / "result.json").read_text())
    return result


def _cells_in_one_process(cfg: SweepConfig) -> list[dict[str, float]]:
    """Cells back to back in this process, as a process of the sweep runs them; the first opens the data.

    Training is the time in optimiser steps (from the loop's own rate: with data, without validation); scoring is
    prediction, Dice and surface distances of the validation volumes. All else counts as neither: subset, network,
    its start from a file, run folder, figures, writing and reading back the model.
    """
    jobs = plan(cfg, count_labels(cfg))
    cells = [job for job in jobs if job.is_cell]
    for job in jobs:
        if not job.is_cell:
            run_job(job)
    found = []
    for job in cells[:8]:
        with _stopwatches() as seconds:
            began = time.perf_counter()
            run_job(job)
            wall = time.perf_counter() - began
        assert isinstance(job.config, SegmentConfig)
        training = job.config.steps * job.config.batch_size / _result(job)["images_per_second"]
        scoring = seconds["predict_split"] + seconds["split_dice"] + seconds["score_split"]
        scoring -= seconds["prediction_panel"]  # drawn within score_split
        parts = {name: seconds[name] for name in PARTS}
        found.append(
            {"wall": wall, "training": training, "scoring": scoring, "rest": wall - training - scoring} | parts
        )
    return found


SCORING = ("predict_split", "split_dice", "score_split")
PARTS = ("build_unet", "load_into_unet", "save_unet", "load_unet", "learning_curve", "prediction_panel")
"""Of a cell's time beside training and scoring."""


@contextmanager
def _stopwatches() -> Iterator[dict[str, float]]:
    """Seconds in the named functions of `segment.training` while it is entered."""
    import segment.evaluation
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

    with ExitStack() as stack:
        for name in seconds:
            module: Any = segment.evaluation if name == "prediction_panel" else segment.training
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name), name)))
        yield seconds


def _wall_row(sweep: float, alone: Alone) -> Row:
    scaled = f"{len(alone.cells)} of them run, scaled to {alone.count}" if len(alone.cells) < alone.count else "all run"
    what = f"study of {alone.count} small cells, {sweep:.0f} s"
    against = f"a process per cell, one by one, {alone.seconds:.0f} s ({scaled})"
    return faster("study", what, against, Ratio.of([alone.seconds / sweep]), 2.0)


def _overhead_row(cells: list[dict[str, float]], alone: Alone) -> Row:
    later = [cell["rest"] for cell in cells[1:]]
    median = statistics.median(later)
    met = median <= 0.5
    parts = {name: statistics.median(cell[name] for cell in cells[1:]) for name in PARTS}
    largest = sorted(parts, key=parts.__getitem__, reverse=True)[:3]
    spent = ", ".join(f"{name} {parts[name]:.2g} s" for name in largest)
    return Row(
        benchmark="study",
        what="second and later cells, neither optimiser steps nor prediction and scoring (figures, files count)",
        against=f"a process per cell, {alone.outside:.1f} s before and after training",
        target="<= 0.5 s",
        value=f"{median:.2g} s [{min(later):.2g}, {max(later):.2g}]; first cell {cells[0]['rest']:.2g} s",
        met=met,
        why="" if met else f"{median - 0.5:.2g} s too long: {spent}",
    )
