"""`python -m engine.replay RUN`: repeat the training step whose loss was not finite, from the run's last checkpoint."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.text import read_json
from engine.failure import NAME
from engine.trackers import NOTE as TRACKED

COMMANDS = ("pretrain", "segment", "classify")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Repeat the training step whose loss was not finite."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder with failure.json, which a run writes when its loss is not finite. It is not changed."""


def run(cfg: Replay) -> dict[str, Any]:
    """Train a copy of the run from its last checkpoint to the step that failed, and compare.

    Returns:
        The content of `failure.json`.

    Raises:
        UserError: if the run has no `failure.json`, or the copy does not fail in the same way.
    """
    before = _read(cfg.run / NAME)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / cfg.run.resolve().name
        skipped = shutil.ignore_patterns("tensorboard", "wandb", "mlflow.db", TRACKED, ".*", NAME, "result.json")
        shutil.copytree(cfg.run, copy, ignore=skipped)
        command = [sys.executable, "-m", before["command"], "--config", copy / "config.json", "--out", copy, "--resume"]
        done = subprocess.run([*command, "--track", "none"], capture_output=True, text=True, check=False)
        if not (copy / NAME).exists():
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise UserError(f"{cfg.run} did not fail again ({' '.join(last)}): is the same data there, and the device?")
        after = _read(copy / NAME)
    if after != before:
        raise UserError(
            f"{cfg.run} failed at step {before['step']} with the loss {before['loss']}, the repetition at step "
            f"{after['step']} with {after['loss']}: GPUs do not always compute the same; try --device cpu"
        )
    samples = [sample for batch in before["micro_batches"] for sample in batch]
    print(f"reproduced: the loss is {before['loss']} at optimiser step {before['step']}, of these samples:")
    print("\n".join(f"  item {sample['item']}, seed {sample['seed']}" for sample in samples))
    return before


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        known = content["command"] in COMMANDS and {"step", "loss", "micro_batches"} <= content.keys()
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} holds no {path.name}: no step of this run had a loss that is not finite"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise UserError(f"{path} is damaged: it does not name a step that failed")
    return content


if __name__ == "__main__":
    with user_errors():
        run(parse_command(Replay, "python -m engine.replay", ("runs/segment",)))
