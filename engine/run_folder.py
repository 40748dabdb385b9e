"""The run folder: configuration, metrics, checkpoint and result of one run."""

import csv
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import naming_file, remove_leftovers, write_json, write_text
from core.locks import LOCK, folder_lock, is_unused
from core.settings import Affects
from core.text import read_json
from engine.config import RunSettings, affects, read_config, result_settings, saved
from engine.revision import revision
from engine.trackers import Tracker, open_tracker, require_tracker

log = logging.getLogger("fewslice")

TIMES = ("seconds", "images_per_second", "exams_per_second")
"""Entries of `result.json` that differ between two equal runs."""


class RunFolder(AbstractContextManager["RunFolder"]):
    """`config.json`, `metrics.csv`, `train.log`, `checkpoint.pt` and `result.json`, and what `--track` keeps.

    One process at a time works in a folder: it holds a lock until `close`, which ends with the process.

    Args:
        path: the folder; made if it does not exist.
        config: the run's configuration; its `resume` continues the run in the folder, its `overwrite` deletes it.
        main: False on all processes but the first, which alone writes.

    Raises:
        UserError: if the folder holds a run and neither `resume` nor `overwrite` is set, or holds something else, or
            another process works in it, or the tracker is not installed or cannot be reached.
    """

    def __init__(self, path: Path, config: RunSettings, *, main: bool = True) -> None:
        self.path, self.main = path, main
        self.checkpoint = path / "checkpoint.pt"
        self.finished: dict[str, Any] | None = _finished(path) if config.resume else None
        """The result of a finished run that is resumed."""
        self.latest: dict[str, float] = {}
        """The last value of each metric, of a resumed run too."""
        self.command = type(config).__module__.partition(".")[0]
        self._data = ""
        self._metrics: Any = None
        self._tracker = Tracker()
        self._held = ExitStack()
        if not main:
            return
        _refuse_other_content(path)
        require_tracker(config, path)
        os.makedirs(path, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(folder_lock(path, "another process"))
            began = _is_run(path)
            _claim(path, config)
            write_json(path / "config.json", saved(config))
            log_file = _LogFile(path / "train.log")
            held.callback(log_file.close)
            log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            log.addHandler(log_file)
            held.callback(log.removeHandler, log_file)
            if config.resume and not began:
                log.warning(f"nothing to resume in {path}: the run starts at step 0")
            self._tracker = open_tracker(config, path)
            held.callback(self._tracker.close)
            self._held = held.pop_all()

    def note_data(self, digest: str, earlier: str | None = None) -> None:
        """Keep the digest of the data for the result.

        Args:
            digest: of the data of this process.
            earlier: digest in the checkpoint that is resumed; None: that of the finished run, if there is one.

        Raises:
            UserError: if the run began with other data.
        """
        earlier = earlier or (self.finished or {}).get("data_digest")
        if earlier not in (None, digest):
            raise UserError(
                f"{self.path} was trained on other data, labels or splits (digest {earlier}, now {digest}); "
                "pass the same --data-root and files, or start again with --overwrite"
            )
        self._data = digest

    @property
    def data(self) -> str:
        """The digest that was noted last."""
        return self._data

    def forget_kept(self) -> None:
        """Remove what an earlier attempt noted about its kept weights, before training starts at step 0 again."""
        if self.main:
            (self.path / "kept.json").unlink(missing_ok=True)

    def open_metrics(self, columns: list[str], first_step: int) -> None:
        """Start `metrics.csv` and the tracker; rows after `first_step` of a resumed run are dropped first."""
        if not self.main:
            return
        path = self.path / "metrics.csv"
        rows = _read_metrics(path, columns, first_step) if first_step else []
        numbers = [{name: float(value) for name, value in row.items() if value} for row in rows]
        for row in numbers:
            self.latest |= {name: value for name, value in row.items() if name != "step"}
        text = StringIO(newline="")
        table = csv.DictWriter(text, columns, restval="")
        table.writeheader()
        table.writerows(rows)
        # rewritten as a whole, so that a kill in the middle loses no row; then rows are appended one by one
        write_text(path, text.getvalue())
        with naming_file(path):
            self._metrics = self._held.enter_context(path.open("a", newline="", buffering=1))
        self._rows = csv.DictWriter(self._metrics, columns, restval="")
        self._tracker.start(numbers, first_step)

    def record(self, row: Mapping[str, float]) -> None:
        """Write one row of metrics; `row["step"]` is the number of optimiser steps taken."""
        self.latest |= {name: value for name, value in row.items() if name != "step"}
        if self._metrics is None:
            return
        with naming_file(self.path / "metrics.csv"):
            self._rows.writerow(row)
        self._tracker.log(row)

    def write_result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write `result.json`, whose presence says that the run is finished, and return its content.

        Versions, commit and digest of the data are added. The result of a run that was finished before keeps its
        times, and the scores that were not made again.
        """
        if not self.main:
            return dict(result)
        from encoders.card import versions  # torch is slow to import

        origin = {"data_digest": self._data or None, "versions": versions(), "commit": revision()}
        if self.finished is not None:
            result = self.finished | {k: v for k, v in result.items() if k not in TIMES or k not in self.finished}
            origin = {}
        content = {**result, **origin}
        write_json(self.path / "result.json", content)
        self._tracker.summarise(content)
        return content

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and release the files, so that a later run in this process does not log into them."""
        self._metrics = None
        with naming_file(self.path):
            self._held.close()


class _LogFile(logging.FileHandler):
    """A log file; a full disk ends the run with a sentence, not with a traceback for every message."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error that `logging` would print, with the file's name."""
        log.removeHandler(self)
        with naming_file(Path(self.baseFilename)):
            raise


def _claim(path: Path, config: RunSettings) -> None:
    """Empty the folder for a new run, or check that the run in it can be resumed; UserError if neither."""
    remove_leftovers(path, alone=True)
    if not _is_run(path):  # new, or of a process that was killed before it began
        _refuse_other_content(path)
    elif config.resume:
        if differences := changed(path, config):
            what = ", ".join(differences)
            raise UserError(f"cannot resume {path} with other settings ({what}); drop them or choose another --out")
    elif config.overwrite:
        _empty(path)
    else:
        raise UserError(f"{path} holds an earlier run; continue it with --resume, replace it with --overwrite")


def _refuse_other_content(path: Path) -> None:
    """Raise a UserError if something is in the folder that is no run: it is never touched."""
    if not is_unused(path) and not _is_run(path):
        raise UserError(f"{path} is not empty and holds no fewslice run; choose another --out")


def _empty(path: Path) -> None:
    """Remove a run. What a resumed run would rely on goes first, `config.json` stays until it is replaced: whenever
    this is interrupted, the folder is one that can be resumed, from step 0, or overwritten."""
    for name in ("result.json", "checkpoint.pt", "kept.json", "metrics.csv"):
        for file in path.rglob(name):
            file.unlink()
    for each in path.iterdir():
        if each.name not in (LOCK, "config.json"):
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def _finished(path: Path) -> dict[str, Any] | None:
    """The content of `result.json`, None if there is none."""
    try:
        result = read_json(path / "result.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / 'result.json'} ({error}); remove it and --resume again") from None
    if not isinstance(result, dict):
        raise UserError(f"{path / 'result.json'} is not the result of a run; remove it and --resume again")
    return result


def _read_metrics(path: Path, columns: Sequence[str], last_step: int) -> list[dict[str, str]]:
    """The rows of `metrics.csv` up to a step; lines that are damaged are left out, and a warning counts them."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        log.warning(f"{path} is missing: it starts again after step {last_step}")
        return []
    lines = text.replace("\0", "").splitlines()  # NUL bytes: what some file systems leave at the end after a crash
    header = lines[0].split(",") if lines else []
    rows, damaged = [], len(set(header) ^ set(columns))
    for line in lines[1:]:
        row = dict(zip(header, line.split(","), strict=False))
        try:
            numbers = {name: float(value) for name, value in row.items() if value}
            whole = line.count(",") == len(header) - 1 and numbers["step"] == int(row["step"])
        except (ValueError, KeyError):
            whole = False
        if not whole:
            damaged += 1
        elif int(row["step"]) <= last_step:
            rows.append({name: row.get(name, "") for name in columns})
    if damaged:
        aside = path.with_name("metrics.damaged.csv")
        shutil.copyfile(path, aside)
        log.warning(f"{path} is damaged or of another version: {len(rows)} rows could be kept; see {aside.name}")
    return rows


def can_resume(path: Path, config: RunSettings) -> bool:
    """Whether the folder holds a run of these settings that `resume` would continue."""
    return _is_run(path) and not changed(path, config)


def _is_run(path: Path) -> bool:
    """Whether the folder holds a run of this software; other software keeps a `config.json` too."""
    try:
        content = read_json(path / "config.json")
    except (OSError, ValueError):
        return False
    others = (Affects.INVOCATION, Affects.OUTPUT)  # neither saved, nor in the folders of earlier versions
    every_run = {f.name for f in fields(RunSettings) if affects(RunSettings, f.name) not in others}
    return isinstance(content, dict) and content.keys() >= every_run


def changed(path: Path, config: RunSettings, *, apart_from: Collection[str] = ()) -> list[str]:
    """Messages about settings that affect the result and differ from those of the run in the folder.

    Args:
        path: the run's folder.
        config: the settings to compare with.
        apart_from: names of settings that may differ.
    """
    try:
        before = result_settings(read_config(type(config), path / "config.json"))
    except UserError as error:  # a run of another command
        return [str(error)]
    now = {name: value for name, value in result_settings(config).items() if name not in apart_from}
    return [
        f"{name} was {before[name]!r} and is now {now[name]!r}" for name in sorted(now) if before[name] != now[name]
    ]
