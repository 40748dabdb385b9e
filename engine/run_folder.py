"""The run folder: configuration, metrics, checkpoint and result of one run."""

import csv
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_json
from core.settings import Affects
from engine.config import RunSettings, affects, read_config, result_settings, saved

log = logging.getLogger("fewslice")


class RunFolder(AbstractContextManager["RunFolder"]):
    """`config.json`, `metrics.csv`, TensorBoard events, `train.log`, `checkpoint.pt` and `result.json`.

    Args:
        path: the folder; made if it does not exist.
        config: the run's configuration; its `resume` continues the run in the folder, its `overwrite` deletes it.
        main: False on all processes but the first, which alone writes.

    Raises:
        UserError: if the folder holds a run and neither `resume` nor `overwrite` is set, or holds something else.
    """

    def __init__(self, path: Path, config: RunSettings, *, main: bool = True) -> None:
        self.path, self.main = path, main
        self.checkpoint = path / "checkpoint.pt"
        self._metrics: Any = None
        if not main:
            return
        _claim(path, config)
        write_json(path / "config.json", saved(config))
        self._log_file = logging.FileHandler(path / "train.log")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(self._log_file)

    def open_metrics(self, columns: list[str], first_step: int) -> None:
        """Start `metrics.csv` and TensorBoard; rows after `first_step` of a resumed run are dropped first."""
        if not self.main:
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        path = self.path / "metrics.csv"
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= first_step]
        self._metrics = path.open("w", newline="", buffering=1)
        self._rows = csv.DictWriter(self._metrics, columns, restval="")
        self._rows.writeheader()
        self._rows.writerows(kept)
        with _neutral_host():
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=first_step or None)

    def record(self, row: Mapping[str, float]) -> None:
        """Write one row of metrics; `row["step"]` is the number of optimiser steps taken."""
        if self._metrics is None:
            return
        self._rows.writerow(row)
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`: its presence says that the run is finished."""
        if self.main:
            write_json(self.path / "result.json", result)

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


@contextmanager
def _neutral_host() -> Iterator[None]:
    """Let TensorBoard, which puts the host's name into the names of its files, see "host" for it."""
    gethostname = socket.gethostname
    socket.gethostname = lambda: "host"
    try:
        yield
    finally:
        socket.gethostname = gethostname


def _claim(path: Path, config: RunSettings) -> None:
    """Make or empty the folder for a new run, or check that the run in it can be resumed; UserError if neither."""
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if not occupied:
        os.makedirs(path, exist_ok=True)
    elif not _is_run(path):
        raise UserError(f"{path} is not empty and holds no fewslice run; choose another --out")
    elif config.resume:
        if changed := _changed(path, config):
            raise UserError(
                f"cannot resume {path} with other settings ({', '.join(changed)}); drop them or choose another --out"
            )
    elif config.overwrite:
        shutil.rmtree(path)
        os.makedirs(path)
    else:
        raise UserError(f"{path} holds an earlier run; continue it with --resume, replace it with --overwrite")


def can_resume(path: Path, config: RunSettings) -> bool:
    """Whether the folder holds a run of these settings that `resume` would continue."""
    return _is_run(path) and not _changed(path, config)


def _is_run(path: Path) -> bool:
    """Whether the folder holds a run of this software; other software keeps a `config.json` too."""
    try:
        content = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    every_run = {f.name for f in fields(RunSettings) if affects(RunSettings, f.name) != Affects.INVOCATION}
    return isinstance(content, dict) and content.keys() >= every_run


def _changed(path: Path, config: RunSettings) -> list[str]:
    """Messages about settings that affect the result and differ from those of the run in the folder."""
    try:
        before = result_settings(read_config(type(config), path / "config.json"))
    except UserError as error:  # a run of another command
        return [str(error)]
    now = result_settings(config)
    return [
        f"{name} was {before[name]!r} and is now {now[name]!r}" for name in sorted(now) if before[name] != now[name]
    ]
