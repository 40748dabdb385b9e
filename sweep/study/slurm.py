"""Run the jobs of a study as job arrays of a Slurm cluster, through submitit."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from core.errors import UserError
from sweep.study.config import SweepConfig
from sweep.study.grid import Job
from sweep.study.jobs import failure, is_done, run_job
from sweep.study.local import Report

POLL_SECONDS = 2.0
"""Between two looks at the queue."""


@dataclass(frozen=True)
class Task:
    """A job as submitit pickles it. When its time limit is reached, it is queued again and continues."""

    job: Job
    threads: int | None
    keep_model: bool

    def __call__(self) -> None:
        """Run the job on the node."""
        run_job(self.job, threads=self.threads, keep_model=self.keep_model)

    def checkpoint(self) -> DelayedSubmission:
        """What to queue again; the loop's submission checkpoints hold the state."""
        return DelayedSubmission(self)


def run_on_slurm(cfg: SweepConfig, jobs: Sequence[Job], report: Report) -> None:
    """Submit the jobs as arrays, one for each level of what needs what, and wait for them.

    Args:
        cfg: the study; its `slurm_` settings.
        jobs: of the study, each after those it needs.
        report: called with every change of a job's state.

    Raises:
        UserError: when this machine has no Slurm, or Slurm refuses the jobs.
    """
    executor = _executor(cfg)
    failed: set[str] = set()
    waiting = [job for job in jobs if not is_done(job)]
    while waiting:
        names = {job.name for job in waiting}
        level = [job for job in waiting if not names.intersection(job.needs)]
        waiting = [job for job in waiting if names.intersection(job.needs)]
        for job in level:
            if failed.intersection(job.needs):
                failed.add(job.name)
                report(job, "blocked")
        ready = [job for job in level if job.name not in failed]
        if ready:
            failed |= _run_array(cfg, executor, ready, report)


def _run_array(cfg: SweepConfig, executor: Any, jobs: Sequence[Job], report: Report) -> set[str]:
    """Run jobs that need nothing more; returns the names of those that failed."""
    tasks = [Task(job, cfg.threads, cfg.keep_models) for job in jobs]
    try:
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise UserError(
            f"Slurm refuses the jobs ({_first_line(error)}); check --slurm-partition and the rest"
        ) from None
    left = {job.name: (job, submission) for job, submission in zip(jobs, submitted, strict=True)}
    running: set[str] = set()
    failed: set[str] = set()
    try:
        while left:
            queued = _queued()  # asked first: a job writes its result before it leaves the queue
            for job, submission in list(left.values()):
                if is_done(job) or submission.job_id not in queued:
                    del left[job.name]
                    if not is_done(job):
                        failed.add(job.name)
                        _note_failure(job, submission)
                    report(job, "done" if is_done(job) else "failed")
                elif job.name not in running and (job.folder / "config.json").exists():
                    running.add(job.name)
                    report(job, "running")
            if left:
                time.sleep(POLL_SECONDS)
    except BaseException:
        for _, submission in left.values():
            submission.cancel()
        raise
    return failed


def _queued() -> set[str]:
    """Ids of this user's jobs that wait or run, those that wait to be requeued included.

    Asked of squeue, not of sacct, which is switched off on small clusters.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(f"Slurm does not answer ({listed.stderr.strip()}); run the same command again to continue")
    return set(listed.stdout.split())


def _note_failure(job: Job, submitted: Any) -> None:
    """A job that Slurm ended could not note its submission failure."""
    if failure(job):
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    message = (
        f"Slurm job {submitted.job_id} ended as {submitted.state} without a result; see {submitted.paths.stderr}\n"
    )
    (job.folder / "error.txt").write_text(message)


def _executor(cfg: SweepConfig) -> Any:
    try:
        executor = submitit.SlurmExecutor(folder=_logs(cfg))
    except RuntimeError as error:  # no sbatch
        raise UserError(
            f"--executor slurm: {_first_line(error)}; run where sbatch is, or with --executor local"
        ) from None
    settings = {
        "partition": cfg.slurm_partition,
        "gres": cfg.slurm_gres,
        "mem": f"{int(cfg.slurm_memory_gb * 1024)}MB" if cfg.slurm_memory_gb else None,
    }
    executor.update_parameters(
        job_name="fewslice",
        time=cfg.slurm_minutes,
        array_parallelism=cfg.slurm_parallel,
        cpus_per_task=cfg.threads or 1,
        setup=[f"export OMP_NUM_THREADS={cfg.threads or 1}"],
        **{name: value for name, value in settings.items() if value is not None},
    )
    return executor


def _logs(cfg: SweepConfig) -> Path:
    return cfg.out / "logs" / "slurm-%j"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
