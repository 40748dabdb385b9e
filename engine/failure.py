"""The record of a training step whose loss was not finite: `failure.json`, read by `python -m engine.replay`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.files import write_json

NAME = "failure.json"


def write_failure(
    folder: Path, command: str, step: int, loss: float, batches: Sequence[Sequence[tuple[int, int]]]
) -> None:
    """Write `failure.json` into a run folder.

    Args:
        folder: the run folder.
        command: the command of the run, e.g. "segment".
        step: number of the optimiser step, the first is 1.
        loss: mean loss of the step's batch.
        batches: item and seed of the random augmentation of each sample, one list per micro-batch of this process.
            An item is the number of a row, from 0, in the table of the images that were trained on: in
            `labelled_slices.csv` and `labelled_exams.csv`, if the run has one.
    """
    micro_batches: list[Any] = [[{"item": item, "seed": seed} for item, seed in samples] for samples in batches]
    write_json(folder / NAME, {"command": command, "step": step, "loss": str(loss), "micro_batches": micro_batches})
