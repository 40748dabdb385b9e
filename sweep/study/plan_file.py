"""plan.json: the runs of a study as plain data, for the report, which reads the study's folder and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from core.files import write_json
from pretrain.config import PretrainConfig
from sweep.study.grid import Job


def write_plan(folder: Path, jobs: Sequence[Job], unit: str, task: str) -> None:
    """Write plan.json: unit (slices, patients or exams), task (segment or classify) and all jobs.

    A job's entry holds name, is_cell and needs; a cell's also its key (pipeline, labels, seed and others), an encoder's
    its stage and epochs (passes over the target images).
    """
    entries = []
    for job in jobs:
        entry = {"name": job.name, "is_cell": job.is_cell, "needs": job.needs} | job.key
        if isinstance(job.config, PretrainConfig):
            entry |= {"stage": job.config.stage, "epochs": job.config.target_epochs}
        entries.append(entry)
    write_json(folder / "plan.json", {"unit": unit, "task": task, "jobs": entries})
