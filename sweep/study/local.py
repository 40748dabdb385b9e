"""Run the jobs of a study in processes of this machine."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

from core.errors import escape_unprintable
from sweep.study.grid import Job
from sweep.study.jobs import failure, is_done, note_failure, run_job

Report = Callable[[Job, str], None]
"""Called with a job and its new state: "running", "done", "failed" or "blocked"."""


def run_locally(
    jobs: Sequence[Job],
    report: Report,
    *,
    logs: Path,
    processes: int,
    threads: int,
    gpus: int = 0,
    keep_models: bool = False,
) -> None:
    """Run all jobs, each as soon as those it needs are done.

    The processes live as long as there is work, so that torch is imported and the data opened once in each. A
    job that fails, even if its process dies, does not stop the others; those that need it are blocked, unless it is
    the trial of a learning rate.

    Args:
        jobs: jobs in the order in which to start them, each after those it needs.
        report: called with every change of a job's state.
        logs: folder for the output of the processes.
        processes: jobs at a time.
        threads: CPU threads of one job.
        gpus: number of GPUs to share out among the processes; 0: leave them as they are.
        keep_models: keep the networks of cells.
    """
    waiting = [job for job in jobs if not is_done(job)]
    failed: set[str] = set()
    pool = [_Worker(k, logs, threads, k % gpus if gpus else None, keep_models) for k in range(processes)]
    try:
        while waiting or any(worker.job for worker in pool):
            pending = {job.name for job in waiting} | {worker.job.name for worker in pool if worker.job}
            for job in waiting[:]:
                if failed.intersection(job.needs):
                    failed.add(job.name)
                    waiting.remove(job)
                    report(job, "blocked")
            for worker in pool:
                ready = next((job for job in waiting if not pending.intersection(job.needs)), None)
                if worker.job is None and ready is not None:
                    waiting.remove(ready)
                    worker.start(ready)
                    report(ready, "running")
            for worker in _finished(pool):
                job = worker.finish()
                if not is_done(job) and not job.is_trial:
                    failed.add(job.name)
                report(job, "done" if is_done(job) else "failed")
    finally:
        for worker in pool:
            worker.close()


@dataclass
class _Worker:
    """A process that runs jobs one by one; it starts with its first job, and again if it has died."""

    number: int
    logs: Path
    threads: int
    gpu: int | None
    keep_models: bool
    job: Job | None = None
    process: SpawnProcess | None = None
    pipe: Connection | None = None

    def start(self, job: Job) -> None:
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
            self.pipe, worker_end = context.Pipe()
            settings = (self.logs / f"worker-{self.number}.log", self.threads, self.gpu, self.keep_models)
            before = os.environ.get("OMP_NUM_THREADS")
            os.environ["OMP_NUM_THREADS"] = str(self.threads)  # read by torch when the process imports it
            try:
                self.process = context.Process(target=_work, args=(worker_end, *settings), daemon=False)
                with _ignored_interrupts():
                    self.process.start()
            finally:
                os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
            worker_end.close()
        assert self.pipe is not None
        self.job = job
        self.pipe.send(job)

    def finish(self) -> Job:
        """Return the job that the process has finished, or was running when it died."""
        assert self.job is not None
        assert self.pipe is not None
        assert self.process is not None
        job, self.job = self.job, None
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            if not is_done(job) and not failure(job):
                note_failure(
                    job,
                    f"its process ended with code {self.process.exitcode} (killed, perhaps for lack of memory: "
                    f"fewer --processes need less); see {self.logs / f'worker-{self.number}.log'}\n",
                )
            self.process = None
        return job

    def close(self) -> None:
        """Let an idle process end; ask a busy one to save its run and stop."""
        if self.process is None:
            return
        if self.pipe is not None:
            self.pipe.close()
        if self.job is not None and self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(60)
        if self.process.is_alive():
            self.process.kill()


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let a process that is started here ignore SIGINT, as children inherit that.

    A terminal sends Ctrl-C to all processes of a command: it is for this one, which tells the others by SIGTERM; one
    that still imports would print a traceback.
    """
    if current_thread() is not main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _finished(pool: Sequence[_Worker]) -> list[_Worker]:
    """The busy processes that have finished or died; waits for the first."""
    busy = {worker.pipe: worker for worker in pool if worker.job is not None and worker.pipe is not None}
    return [busy[pipe] for pipe in wait(list(busy))] if busy else []  # type: ignore[index]


def _work(pipe: Connection, log: Path, threads: int, gpu: int | None, keep_models: bool) -> None:
    """Run the jobs that come through the pipe until it is closed."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = name_of_gpu(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
        escape_unprintable()
        parent = multiprocessing.parent_process()
        Thread(target=_exit_with, args=(parent,), daemon=True).start()
        while True:
            try:
                job = pipe.recv()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                run_job(job, threads=threads, keep_model=keep_models)
            except Exception as error:  # run_job has written it to the job's folder
                print(f"{job.name}: {error}", file=sys.stderr, flush=True)
            pipe.send(None)


def name_of_gpu(number: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES calls a GPU of this process, counted from 0 among those it may see."""
    return visible.split(",")[number] if visible else str(number)


def _exit_with(parent: Any) -> None:
    """Exit when the parent process dies, so that a restarted study finds no orphaned workers."""
    wait([parent.sentinel])
    os._exit(1)
