"""The run directory: what one run was told, what it measured, what it made."""

import csv
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError

log = logging.getLogger("fewslice")


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n")
    partial.replace(path)


class RunFolder:
    """`config.json`, `metrics.csv`, TensorBoard events, `train.log`, `checkpoint.pt`, `result.json`.

    Args:
        path: the folder; made when missing.
        config: the resolved configuration, plain values.
        resume: continue what is there.
        overwrite: delete what is there (a run of ours only).
        main: False on all processes but the first, which alone writes.

    Raises:
        UserError: when the folder is in use and neither `resume` nor `overwrite` is given, or holds something else.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool, main: bool = True
    ) -> None:
        self.path, self.main = path, main
        self.checkpoint = path / "checkpoint.pt"
        self._metrics: Any = None
        self._columns: list[str] = []
        if not main:
            return
        _claim(path, config, resume=resume, overwrite=overwrite)
        # what was asked of this folder is no setting: running the file again must not delete anything
        settings = {key: value for key, value in config.items() if key not in ("resume", "overwrite")}
        write_json(path / "config.json", settings)
        self._log_file = logging.FileHandler(path / "train.log")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(self._log_file)

    def open_metrics(self, columns: list[str], first_step: int) -> None:
        """Start `metrics.csv` and TensorBoard; rows after `first_step` of a resumed run are dropped first."""
        if not self.main:
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        self._columns = columns
        path = self.path / "metrics.csv"
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= first_step]
        self._metrics = path.open("w", newline="", buffering=1)
        writer = csv.DictWriter(self._metrics, columns, restval="")
        writer.writeheader()
        writer.writerows(kept)
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=first_step or None)

    def record(self, row: Mapping[str, float]) -> None:
        """One row of metrics; `row["step"]` is the number of optimiser steps taken."""
        if self._metrics is None:
            return
        csv.DictWriter(self._metrics, self._columns, restval="").writerow(row)
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`: its presence says that the run is finished."""
        if self.main:
            write_json(self.path / "result.json", result)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and release the files, so that a later run in this process does not log into them."""
        if self._metrics is not None:
            self._metrics.close()
            self._board.close()
        if self.main:
            log.removeHandler(self._log_file)
            self._log_file.close()


# what may differ between a run and its continuation: where and how it runs, not what it computes
RESUME_MAY_CHANGE = {
    "resume", "overwrite", "out", "device", "devices", "nodes", "workers", "checkpoint_every", "log_every",
    "data_root", "test", "config", "checkpoint_activations", "figures", "resident", "compile",
}  # fmt: skip


OURS = {"out", "device", "workers", "checkpoint_every", "log_every"}
"""Settings of every run of ours. Other software keeps a `config.json` too: its folders are never overwritten."""


def _claim(path: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the folder ours, or say why not."""
    config_file = path / "config.json"
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    before = _read_settings(config_file) if occupied else {}
    if occupied and not before.keys() >= OURS:
        raise UserError(f"{path} is not empty and holds no fewslice run; choose another --out")
    if occupied and resume:
        now = json.loads(json.dumps(config, default=str))
        if changed := _changed(before, now):
            was = ", ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed)
            raise UserError(f"cannot resume {path} with other settings ({was}); drop them or choose another --out")
        return
    if occupied and overwrite:
        shutil.rmtree(path)
    elif occupied:
        raise UserError(f"{path} holds an earlier run; continue it with --resume, replace it with --overwrite")
    os.makedirs(path, exist_ok=True)


def can_resume(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run of these settings that `resume` would continue."""
    before = _read_settings(path / "config.json")
    return before.keys() >= OURS and not _changed(before, json.loads(json.dumps(config, default=str)))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that a continued run must not change and does."""
    return sorted(
        key for key in before.keys() | now.keys() if key not in RESUME_MAY_CHANGE and before.get(key) != now.get(key)
    )


def _read_settings(file: Path) -> dict[str, Any]:
    """A run's configuration; empty when there is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
