"""One job of a study: run or continue it, tell whether it is done, keep its error."""

import shutil
import traceback
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from classify.config import ClassifyConfig
from classify.image_settings import ImagesConfig, ProbeConfig
from core.errors import UserError
from core.files import remove_leftovers, write_text
from data.sources import open_exams, open_slices
from engine.run_folder import can_resume, changed
from segment.config import SegmentConfig
from sweep.analysis.study_files import first_line
from sweep.study.grid import WEIGHTS, Job
from sweep.study.rates import chosen_rate


def is_done(job: Job) -> bool:
    """Whether the job has a result, which is written last."""
    return (job.folder / "result.json").is_file()


def foreign_run(job: Job) -> str:
    """A sentence if the finished run in the job's folder has other settings: it was copied from elsewhere; else empty.

    The weights that it started from may have another path: the study may have been moved.
    """
    differences = changed(job.folder, run_config(job), apart_from=WEIGHTS) if is_done(job) else []
    if not differences:
        return ""
    return f"{job.folder} holds a run with other settings than this study's ({'; '.join(differences)})"


def require_own(job: Job) -> None:
    """Raise a UserError if the job is done with settings that are not the study's."""
    if doubt := foreign_run(job):
        raise UserError(f"{doubt}; remove that folder and run the same command again, or choose another --out")


def failure(job: Job) -> str:
    """First line of the error of the job's last attempt; empty if there was none."""
    return first_line(job.folder / "error.txt")


def note_failure(job: Job, message: str) -> None:
    """Write an error to the job's folder, where `failure` and the report read its first line."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(job.folder / "error.txt", message)


def tidy(job: Job, *, keep_model: bool) -> None:
    """Remove what a finished cell does not need (its checkpoint and, unless it is kept, its network).

    Only once, at the end of the run or, if its process was killed there, when the study is continued: a network that
    an earlier command kept stays.
    """
    if not is_done(job) or not _unfinished(job).exists():
        return
    if job.is_cell or job.is_trial:
        (job.folder / "checkpoint.pt").unlink(missing_ok=True)
        if job.is_trial or not (keep_model or job.is_gone_on_from):
            (job.folder / "model.safetensors").unlink(missing_ok=True)
    remove_leftovers(job.folder, alone=True)
    _unfinished(job).unlink(missing_ok=True)


def _unfinished(job: Job) -> Path:
    """A file beside the job's folder that exists while the job runs, and after it if its process was killed."""
    return job.folder.with_name(f".{job.folder.name}.unfinished")


def run_job(job: Job, *, threads: int | None = None, keep_model: bool = False) -> None:
    """Run a job, or continue it from its last checkpoint; a finished job is skipped.

    The process keeps torch, the devices and the data set for the jobs that follow. An interruption is not a failure.

    Args:
        job: the job; those it needs are finished.
        threads: CPU threads of torch.
        keep_model: keep the trained network of a cell beside its scores.

    Raises:
        Exception: whatever went wrong, after `note_failure`.
    """
    if is_done(job):
        return
    (job.folder / "error.txt").unlink(missing_ok=True)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    _unfinished(job).touch()
    try:
        import torch

        if threads:
            torch.set_num_threads(threads)
        config = run_config(job)
        started = can_resume(job.folder, config)
        if job.folder.exists() and not started:
            shutil.rmtree(job.folder)  # stopped before it began, or begun where the study had another path
        _run(replace(config, resume=started, overwrite=False))
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        note_failure(job, f"{message}\n\n{traceback.format_exc()}")
        raise
    tidy(job, keep_model=keep_model)


def run_config(job: Job) -> Any:
    """The configuration of a job's run, with the learning rate that its trials decide on."""
    config: Any = job.config
    return replace(config, lr=chosen_rate(job.trials)) if job.trials else config


def _run(config: Any) -> None:
    fabric = _fabric(config.device, config.precision)
    if isinstance(config, SegmentConfig):
        import segment.training

        segment.training.run(config, fabric, _opened_slices(config.data))
    elif isinstance(config, ClassifyConfig):
        import classify.training

        classify.training.run(config, fabric, _opened_exams(config.data))
    elif isinstance(config, ImagesConfig):
        import classify.images

        classify.images.run(config, fabric)
    elif isinstance(config, ProbeConfig):
        import classify.probe

        classify.probe.run(config, fabric)
    else:
        import pretrain.stages

        pretrain.stages.run(config, fabric)


@lru_cache(maxsize=1)
def _fabric(device: str, precision: str) -> Any:
    from engine.devices import make_fabric

    return make_fabric(device, precision)


_opened_slices = lru_cache(maxsize=2)(open_slices)
_opened_exams = lru_cache(maxsize=2)(partial(open_exams, labelled=True))
