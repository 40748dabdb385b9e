"""One job of a study: run it, continue it, or see that it is done."""

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from classify.config import ClassifyConfig
from data.errors import UserError
from engine.config import plain
from engine.run import can_resume
from segment.config import SegmentConfig
from sweep.grid import Job


def is_done(job: Job) -> bool:
    """Whether the job's result is there: it is written last, whole or not at all."""
    return (job.folder / "result.json").is_file()


def failure(job: Job) -> str:
    """First line of what went wrong in the job's last attempt; empty when nothing did."""
    with contextlib.suppress(OSError):
        return (job.folder / "error.txt").read_text().splitlines()[0]
    return ""


def run_job(job: Job, *, threads: int | None = None, keep_model: bool = False) -> None:
    """Run a job, or continue it from its last checkpoint; what is finished is left alone.

    The process keeps torch, the devices and the data set for the jobs that follow.

    Args:
        job: to run; the jobs it needs are finished.
        threads: of torch on a CPU.
        keep_model: keep the trained network of a cell beside its scores.

    Raises:
        Exception: whatever went wrong, after it was written to `error.txt` in the job's folder.
    """
    if is_done(job):
        return
    with _noted(job.folder):
        import torch

        if threads:
            torch.set_num_threads(threads)
        started = can_resume(job.folder, plain(job.config))
        if job.folder.exists() and not started:
            shutil.rmtree(job.folder)  # stopped before it began, or begun where the study had another path
        _run(replace(job.config, resume=started, overwrite=False))
    if job.is_cell:
        (job.folder / "checkpoint.pt").unlink(missing_ok=True)
        if not keep_model:
            (job.folder / "model.safetensors").unlink(missing_ok=True)


def _run(config: Any) -> None:
    fabric = _fabric(config.device, config.precision)
    if isinstance(config, SegmentConfig):
        import segment.training

        segment.training.run(config, fabric, _opened(_source(config), config))
    elif isinstance(config, ClassifyConfig):
        import classify.training

        classify.training.run(config, fabric, _opened(_source(config), config))
    else:
        import pretrain.stages

        pretrain.stages.run(config, fabric)


@lru_cache(maxsize=1)
def _fabric(device: str, precision: str) -> Any:
    from engine.devices import make_fabric

    return make_fabric(device, precision)


_open: dict[tuple, Any] = {}


def _source(config: SegmentConfig | ClassifyConfig) -> tuple:
    """What decides which data a run sees."""
    names = ("dataset", "data_root", "subject_pattern", "splits_file", "task", "plane", "labels", "split_seed")
    return tuple(getattr(config, name, None) for name in names)


def _opened(source: tuple, config: SegmentConfig | ClassifyConfig) -> Any:
    """The data set of a run, opened once in a process."""
    if source not in _open:
        if isinstance(config, SegmentConfig):
            from segment.training import load_run_dataset

            _open[source] = load_run_dataset(config)
        else:
            from classify.training import load_run_exams

            _open[source] = load_run_exams(config)
    return _open[source]


@contextlib.contextmanager
def _noted(folder: Path) -> Iterator[None]:
    """Leave a note of a failure in the job's folder; an interruption is none."""
    note = folder / "error.txt"
    note.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        note.write_text(f"{said}\n\n{traceback.format_exc()}")
        raise
