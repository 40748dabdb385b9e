"""plan.json: the runs of a study as plain data, for the report, which reads the study's folder and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from core.files import write_json
from pretrain.config import PretrainConfig
from sweep.study.grid import Job


def write_plan(folder: Path, jobs: Sequence[Job], unit: str, task: str) -> None:
    """Write plan.json.

    Args:
        folder: of the study.
        jobs: all jobs of the study. An entry holds name, is_cell and needs; of a cell also its key (pipeline, labels,
            seed and others), of an encoder its stage and epochs (passes over the target images).
        unit: what the labels are, in the plural: slices, patients or exams.
        task: segment or classify.
    """
    entries = []
    for job in jobs:
        entry = {"name": job.name, "is_cell": job.is_cell, "needs": job.needs} | job.key
        if not job.is_cell:
            assert isinstance(job.config, PretrainConfig)
            entry |= {"stage": job.config.stage, "epochs": job.config.target_epochs}
        entries.append(entry)
    write_json(folder / "plan.json", {"unit": unit, "task": task, "jobs": entries})
