"""The Slurm executor on a real Slurm of one node, started here on the loopback address."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_study, run_here, wait_until

from core.errors import UserError
from sweep.study.grid import plan
from sweep.study.jobs import is_done
from sweep.study.run import count_labels, run
from sweep.study.slurm import Task, _executor, run_on_slurm

SLURM = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")

pytestmark = pytest.mark.slow


def _munge_answers() -> bool:
    return subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0


def _start_munged() -> subprocess.Popen:
    """Start munged as the user that it requires, in the foreground, so that it can be ended as a child process."""
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    identity = {"user": "munge", "group": "munge", "extra_groups": []}
    daemon = subprocess.Popen(["munged", "--foreground"], stderr=subprocess.DEVNULL, **identity)
    wait_until(_munge_answers, seconds=30)
    return daemon


def _node_is_idle() -> bool:
    return b"idle" in subprocess.run(["sinfo", "-h"], capture_output=True, check=False).stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    """A Slurm of one node on the loopback address."""
    if missing := [name for name in SLURM if not shutil.which(name)]:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: slurmctld slurmd munge)")
    if os.geteuid():
        pytest.skip("starting slurmd needs root")
    folder = tmp_path_factory.mktemp("slurm")
    node = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MpiDefault=none
KillWait=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={node} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    munged = None if _munge_answers() else _start_munged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setattr("sweep.study.slurm.POLL_SECONDS", 0.1)
        daemons = [
            subprocess.Popen([name, "-D", "-f", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for name in ("slurmctld", "slurmd")
        ]
        try:
            wait_until(_node_is_idle, failure=(folder / "slurmctld.log").read_text)
            yield
        finally:
            subprocess.run(["scancel", "--me"], check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait()
            if munged:
                munged.terminate()
                munged.wait()


@pytest.fixture(scope="module")
def local(tmp_path_factory, tiny_acdc, slurm):
    """A study of two cells and an encoder, made without an executor."""
    few = {"seeds": (0,), "fractions": (0.5,), "executor": "slurm"}
    cfg = make_study(tiny_acdc, tmp_path_factory.mktemp("study") / "out", **few)
    run_here(cfg)
    return cfg


def test_slurm_gives_the_local_results(local, tmp_path):
    cfg = replace(local, out=tmp_path / "a study; (1)", slurm_minutes=10, slurm_parallel=2)
    assert run(cfg) is not None
    for name in ("results.csv", "per_volume.csv"):
        assert (cfg.out / name).read_bytes() == (local.out / name).read_bytes()


def test_a_job_that_is_stopped_is_queued_again_and_ends(local, tmp_path):
    """The signal that Slurm sends before the time is up."""
    steps = replace(local.segment, steps=60, evaluate_every=60, checkpoint_every=10)
    cfg = replace(local, out=tmp_path / "out", pipelines=("random",), segment=steps)
    (job,) = plan(cfg, count_labels(cfg))
    submitted = _executor(cfg).submit(Task(job, threads=1, keep_model=False))
    wait_until((job.folder / "checkpoint.pt").exists)
    subprocess.run(["scancel", "--signal=USR2", submitted.job_id], check=True)
    wait_until(lambda: is_done(job), seconds=240)
    assert (job.folder / "train.log").read_text().count("60 optimiser steps of 4") == 2  # begun twice
    assert "this job is preempted" in submitted.paths.stderr.read_text()


def test_a_job_that_slurm_ends_is_reported(local, tmp_path):
    steps = replace(local.segment, steps=100_000, evaluate_every=100_000)
    cfg = replace(local, out=tmp_path / "out", pipelines=("random",), segment=steps)
    (job,) = plan(cfg, count_labels(cfg))
    states = []

    def note(job, state):
        states.append(state)
        if state == "running":
            subprocess.run(["scancel", "--me", "--full"], check=True)

    run_on_slurm(cfg, [job], note)
    assert states == ["running", "failed"]
    assert "ended" in (job.folder / "error.txt").read_text()


def test_a_partition_that_does_not_exist(local, tmp_path):
    cfg = replace(local, out=tmp_path / "out", slurm_partition="nowhere")
    with pytest.raises(UserError, match=r"Slurm refuses the jobs .*partition"):
        run_on_slurm(cfg, plan(cfg, 24)[:1], lambda job, state: None)


def test_without_slurm(local, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"--executor slurm: .*run where sbatch is"):
        run_on_slurm(replace(local, out=tmp_path), [], lambda job, state: None)
