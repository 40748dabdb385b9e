"""`python -m benchmarks.faults`: kill every command that writes at random moments, repeat it, compare the results.

Each command is run once undisturbed. Then it is started again and again, killed (SIGKILL) at a random moment, and
repeated or resumed until it ends. Whatever is in the folders after a kill must be whole, and the result must be that of
the undisturbed run, byte for byte but for times. Commands run in forks of this process, which has imported torch.
"""

import contextlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.fault_commands import Command, commands
from core.command_line import parse_command
from core.files import is_temporary

TIMES = {"seconds", "images_per_second", "exams_per_second", "samples_per_second", "out", "commit"}
UNCOMPARED = ("tensorboard", "logs", "train.log", "timings.csv", "metrics.damaged.csv")
"""Names of files and folders that hold times, or nothing of a result."""


@dataclass(frozen=True)
class Faults:
    """Kill every command that writes, at random moments, and compare what it leaves with an undisturbed run."""

    kills: int = 20
    """Number of SIGKILLs, over all commands."""
    seed: int = 0
    """Random seed of the moments."""
    only: tuple[str, ...] = ()
    """Names of commands; default: all."""
    disks: bool = True
    """Also fill disks, write into read-only folders, damage checkpoints and start two processes at once."""


@dataclass
class Counts:
    """What the campaign found."""

    kills: int = 0
    resumes: int = 0
    mismatches: int = 0
    """Finished commands whose files differ from those of the undisturbed one."""
    lost: int = 0
    """Commands that could not be continued, or that fell back behind a checkpoint."""
    torn: int = 0
    """Files that were neither whole nor absent after a kill."""
    tracebacks: int = 0
    problems: list[str] = field(default_factory=list)

    def note(self, kind: str, what: str) -> None:
        """Count a problem and print it."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.problems.append(f"{kind}: {what}")
        print(f"{kind.upper()}: {what}", flush=True)


def start(command: Command, arguments: Sequence[str], log: Path) -> int:
    """Start a command in a fork; returns its process number."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    code = 70
    try:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= command.setting
        sys.argv = [f"python -m {command.module}", *arguments]
        for handler in logging.getLogger("fewslice").handlers[:]:
            logging.getLogger("fewslice").removeHandler(handler)
        run_module(command.module)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run_module(module: str) -> None:
    """Run a module as `python -m` does."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(f"{module}.__main__").main()
        return
    import runpy

    runpy.run_module(module, run_name="__main__", alter_sys=True)


def finish(process: int) -> int:
    """Wait for a command; returns its exit code, negative for a signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it started and left
    return code


def run_killed(command: Command, arguments: Sequence[str], log: Path, seconds: float, rng: random.Random) -> bool:
    """Run a command and kill it at a random moment; False if it ended before."""
    process = start(command, arguments, log)
    began = time.monotonic()
    before = _stamp(command.out)
    if rng.random() < 0.8:  # most writes come late: wait for the first
        while _stamp(command.out) == before and not _has_ended(process) and time.monotonic() - began < 120:
            time.sleep(0.001)
        seconds -= time.monotonic() - began
    time.sleep(max(0.0, rng.random() * seconds))
    if _has_ended(process):
        finish(process)
        return False
    os.kill(process, signal.SIGKILL)
    finish(process)
    return True


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def files_of(out: Path) -> Iterator[Path]:
    """The files of a result."""
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        hidden = any(part.startswith(".") or is_temporary(Path(part)) or ".tmp-" in part for part in parts)
        if path.is_file() and not hidden and path.suffix != ".lock" and not set(parts) & {*UNCOMPARED}:
            yield path


def read(path: Path) -> Any:
    """The content of a file without times; an exception if the file is not whole."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        if path.parent.name == "digests":  # its entries hold time stamps
            return sorted(content)
        return {k: v for k, v in content.items() if k not in TIMES} if isinstance(content, dict) else content
    if path.suffix == ".csv":
        text = path.read_text()
        if not text.endswith("\n"):
            raise ValueError("its last line is torn")
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if name in TIMES]).to_csv()
    if path.suffix in (".png", ".tif"):
        with Image.open(path) as image:
            image.load()
    if path.name.endswith((".nii.gz", ".nii")):
        return nib.load(path).get_fdata().tobytes()
    if path.suffix == ".npy":
        return np.load(path).tobytes()
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        load_file(path)
    if path.suffix == ".pt":
        from engine.checkpoint import read_checkpoint

        return _plain(read_checkpoint(path))
    return path.read_bytes()


def _plain(value: Any) -> Any:
    """A checkpoint as values that can be compared."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def check_whole(out: Path, counts: Counts, what: str) -> None:
    """Count the files in a folder that cannot be read."""
    for path in files_of(out):
        try:
            read(path)
        except Exception as error:
            counts.note("torn", f"{what}: {path.relative_to(out)} ({type(error).__name__}: {error})")


def contents(out: Path) -> dict[str, Any]:
    """The files of a finished command by name."""
    return {str(path.relative_to(out)): read(path) for path in files_of(out)}


def step_of(out: Path) -> int:
    """Step of the checkpoint in a run folder; 0 without one."""
    from engine.checkpoint import read_checkpoint

    with contextlib.suppress(Exception):
        return int(read_checkpoint(out / "checkpoint.pt")["step"])
    return 0


def trial(command: Command, expected: dict[str, Any], seconds: float, rng: random.Random, counts: Counts) -> None:
    """Kill a command once or several times, let it end, and compare."""
    if "--overwrite" not in command.arguments:
        shutil.rmtree(command.out, ignore_errors=True)
    log = command.out.parent / f"{command.name}.log"
    arguments, step = list(command.arguments), 0
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not run_killed(command, arguments, log, seconds, rng):
            compare(command, expected, counts)  # it ended before the moment came
            return
        counts.kills += 1
        if "Traceback" in log.read_text():
            counts.note("tracebacks", f"{command.name}: {log.read_text()[-600:]}")
        check_whole(command.out, counts, command.name)
        if command.again and step_of(command.out) < step:
            counts.note("lost", f"{command.name}: the checkpoint went back from step {step} to {step_of(command.out)}")
        step = max(step, step_of(command.out))
        arguments = [*command.arguments, *command.again]
    counts.resumes += 1
    code = finish(start(command, arguments, log))
    if code:
        counts.note("lost", f"{command.name} ended with {code} after a kill: {log.read_text()[-600:]}")
        return
    compare(command, expected, counts)


def compare(command: Command, expected: dict[str, Any], counts: Counts) -> None:
    """Count a mismatch if a finished command's files differ from those of the undisturbed one."""
    found = contents(command.out)
    if differing := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
        details = [_difference(name, expected.get(name), found.get(name)) for name in differing]
        counts.note("mismatches", f"{command.name}: {', '.join(details)}")


def _difference(name: str, expected: Any, found: Any) -> str:
    """A file that differs; of JSON, the entries that do."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [key for key in {*expected, *found} if expected.get(key) != found.get(key)]
        return name + "".join(f" {key}: {expected.get(key)} and {found.get(key)}" for key in keys)[:300]
    return name if expected is not None and found is not None else f"{name} ({'missing' if found is None else 'new'})"


def campaign(cfg: Faults, folder: Path) -> Counts:
    """Run the kills, shared out among the commands."""
    for module in ("torch", "segment.training", "classify.training", "pretrain.stages", "sweep.study.run"):
        importlib.import_module(module)
    counts, rng = Counts(), random.Random(cfg.seed)
    os.environ |= {"FEWSLICE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    every = commands(folder)
    chosen = [command for command in every if not cfg.only or command.name in cfg.only]
    references: dict[str, tuple[dict[str, Any], float]] = {}

    def reference(command: Command) -> tuple[dict[str, Any], float]:
        if command.name not in references:
            seconds = undisturbed(command)
            references[command.name] = contents(command.out), seconds
        return references[command.name]

    for source, target in (("segment", "trained"), ("classify", "classifier")):  # what the predictions need
        if any(command.name == f"{source}.predict" for command in chosen):
            reference(next(command for command in every if command.name == source))
            shutil.copytree(folder / "runs" / source, folder / target)
    number = 0
    while counts.kills < cfg.kills:
        command = chosen[number % len(chosen)]
        number += 1
        trial(command, *reference(command), rng, counts)
        print(f"{counts.kills} kills, {counts.resumes} resumes; {command.name}", flush=True)
    return counts


def undisturbed(command: Command) -> float:
    """Run a command to its end; returns the seconds it took."""
    shutil.rmtree(command.out, ignore_errors=True)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    log = command.out.parent / f"{command.name}.log"
    if code := finish(start(command, command.arguments, log)):
        raise RuntimeError(f"{command.name} ended with {code}: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print its figures; returns the number of problems."""
    cfg = parse_command(Faults, "python -m benchmarks.faults", ("--kills 200",), args=arguments)
    with tempfile.TemporaryDirectory() as folder:
        counts = campaign(cfg, Path(folder))
        if cfg.disks:
            from benchmarks.disks import scenarios

            scenarios(Path(folder), counts)
    figures = ("kills", "resumes", "mismatches", "lost", "torn", "tracebacks")
    print(", ".join(f"{name} {getattr(counts, name)}" for name in figures))
    return len(counts.problems)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
