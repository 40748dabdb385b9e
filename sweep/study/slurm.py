"""Run the jobs of a study as job arrays of a Slurm cluster, through submitit."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from core.errors import UserError
from sweep.study.config import SweepConfig
from sweep.study.grid import Job
from sweep.study.jobs import failure, is_done, note_failure, run_job
from sweep.study.local import Report

POLL_SECONDS = 2.0
"""Seconds between two queries of the queue."""


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
        """What submitit queues again; the state is in the run's own checkpoints."""
        return DelayedSubmission(self)


def run_on_slurm(cfg: SweepConfig, jobs: Sequence[Job], report: Report) -> None:
    """Submit the jobs as arrays, one for each level of dependencies, and wait for them.

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
    """Run jobs that need nothing more; returns the names of those that failed and whose failure stops others."""
    tasks = [Task(job, cfg.threads, cfg.keep_models) for job in jobs]
    try:
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        reason = _first_line(error)
        raise UserError(f"Slurm refuses the jobs ({reason}); check the --slurm options") from None
    left = {job.name: (job, submission) for job, submission in zip(jobs, submitted, strict=True)}
    running: set[str] = set()
    failed: set[str] = set()
    try:
        while left:
            queued = _queued()  # before the results: a job writes its result before it leaves the queue
            for job, submission in list(left.values()):
                if is_done(job) or submission.job_id not in queued:
                    del left[job.name]
                    if not is_done(job):
                        failed |= set() if job.is_trial else {job.name}
                        if not failure(job):  # a job that Slurm ended could not write its error
                            ended = f"Slurm job {submission.job_id} ended as {submission.state} without a result"
                            note_failure(job, f"{ended}; see {submission.paths.stderr}\n")
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

    They come from squeue, because sacct is switched off on small clusters.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(f"Slurm does not answer ({listed.stderr.strip()}); run the same command again to continue")
    return set(listed.stdout.split())


def _executor(cfg: SweepConfig) -> Any:
    try:
        executor = submitit.SlurmExecutor(folder=cfg.out.absolute() / "logs" / "slurm-%j")
    except RuntimeError as error:  # no sbatch
        reason = _first_line(error)
        raise UserError(f"--executor slurm: {reason}; run where sbatch is, or with --executor local") from None
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
