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
from core.errors import UserError
from data.sources import ExamSource, SliceSource, open_exams, open_slices
from engine.run_folder import can_resume
from segment.config import SegmentConfig
from sweep.study.grid import Job


def is_done(job: Job) -> bool:
    """Whether the job has a result, which is written last."""
    return (job.folder / "result.json").is_file()


def failure(job: Job) -> str:
    """First line of the error of the job's last attempt; empty if there was none."""
    with contextlib.suppress(OSError):
        return (job.folder / "error.txt").read_text().splitlines()[0]
    return ""


def run_job(job: Job, *, threads: int | None = None, keep_model: bool = False) -> None:
    """Run a job, or continue it from its last checkpoint; a finished job is skipped.

    The process keeps torch, the devices and the data set for the jobs that follow.

    Args:
        job: the job; those it needs are finished.
        threads: CPU threads of torch.
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
        started = can_resume(job.folder, job.config)
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

        segment.training.run(config, fabric, _slices(config.data))
    elif isinstance(config, ClassifyConfig):
        import classify.training

        classify.training.run(config, fabric, _exams(config.data))
    else:
        import pretrain.stages

        pretrain.stages.run(config, fabric)


@lru_cache(maxsize=1)
def _fabric(device: str, precision: str) -> Any:
    from engine.devices import make_fabric

    return make_fabric(device, precision)


@lru_cache(maxsize=2)
def _slices(source: SliceSource) -> Any:
    """The data set of segmentation runs, opened once in a process."""
    return open_slices(source)


@lru_cache(maxsize=2)
def _exams(source: ExamSource) -> Any:
    """The exams of classifier runs, opened once in a process."""
    return open_exams(source, labelled=True)


@contextlib.contextmanager
def _noted(folder: Path) -> Iterator[None]:
    """Write a failure to the job's folder; an interruption is not a failure."""
    note = folder / "error.txt"
    note.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        note.write_text(f"{message}\n\n{traceback.format_exc()}")
        raise
