"""Runs of several processes: who starts them, and how a user's mistake ends all of them."""

import os
import subprocess
import sys

import pytest
from forking import REPOSITORY

import core.errors
from core.errors import UserError, user_errors
from engine.devices import _environment, make_fabric

PROGRAM = """
from core.errors import UserError, user_errors
with user_errors():
    from engine.devices import make_fabric
    fabric = make_fabric("cpu", "fp32", 2)
    if fabric.global_rank in {failing}:
        raise UserError(f"process {{fabric.global_rank}} met a broken file")
    fabric.barrier()
    print(f"process {{fabric.global_rank}} of {{fabric.world_size}} went on")
"""
BATCH_JOB = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
}  # fmt: skip
SLURM = ("SLURM_", "NODE_RANK", "TORCHELASTIC_RUN_ID")


def run_program(tmp_path, failing, **variables) -> subprocess.CompletedProcess:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(failing=failing))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SLURM)}
    environment |= {"PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.run([sys.executable, str(file)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("failing", [(1,), (0, 1)])
def test_a_mistake_is_said_once_and_ends_all_processes(tmp_path, failing):
    ended = run_program(tmp_path, failing)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("met a broken file") == 1
    assert "Traceback" not in ended.stderr
    assert "went on" not in ended.stdout
    processes = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout
    assert not processes.strip()


@pytest.mark.slow
def test_a_batch_job_of_slurm_with_one_task_starts_its_processes_itself(tmp_path):
    ended = run_program(tmp_path, (), **BATCH_JOB)
    assert ended.returncode == 0, ended.stderr
    # both write to one pipe: a line break of one may come after the line of the other
    lines = ["process 0 of 2 went on", "process 1 of 2 went on"]
    assert ended.stdout.replace("\n", "") in ("".join(lines), "".join(reversed(lines)))
    assert ended.stdout.count("\n") == 2


@pytest.fixture
def slurm(monkeypatch):
    """Set Slurm's variables, and no others, for `_environment`."""
    for name in list(os.environ):
        if name.startswith(SLURM):
            monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    "variables",
    [
        BATCH_JOB,
        BATCH_JOB | {"SLURM_NTASKS": "2"},  # sbatch --ntasks=2, and no srun: nobody else would come
        BATCH_JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun of one task with two GPUs
        BATCH_JOB | {"SLURM_JOB_NAME": "bash"},
    ],
)
def test_one_task_starts_the_others(slurm, variables):
    slurm(**variables)
    (environment,) = _environment(2, 1)
    assert type(environment).__name__ == "LightningEnvironment"


def test_srun_with_a_task_for_each_device(slurm):
    slurm(**BATCH_JOB | {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"})
    (environment,) = _environment(2, 1)
    assert type(environment).__name__ == "SLURMEnvironment"
    environment.validate_settings(num_devices=2, num_nodes=1)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "sentence"),
    [
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, 2, 1, "srun has started 4 tasks on 1 nodes"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, 1, 2, "srun has started 2 tasks on 1 nodes"),
        ({}, 2, 2, "--nodes 2: under Slurm, start the command with srun"),
    ],
)
def test_another_number_of_tasks_is_refused(slurm, variables, devices, nodes, sentence):
    slurm(**BATCH_JOB | variables)
    with pytest.raises(UserError, match=sentence):
        _environment(devices, nodes)


def test_outside_slurm_fabric_decides(slurm):
    assert _environment(2, 1) is None
    slurm(SLURM_NTASKS="2", TORCHELASTIC_RUN_ID="x")
    assert _environment(2, 1) is None


def test_more_processes_than_the_machine_can_hold():
    with pytest.raises(UserError, match="--devices 1000000: this machine has room for"):
        make_fabric("cpu", devices=10**6)


def test_the_sentence_goes_through_one_function(monkeypatch):
    said = []
    monkeypatch.setattr(core.errors, "say", said.append)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise UserError("a file is broken")
    assert (stop.value.code, said) == (2, ["error: a file is broken"])
