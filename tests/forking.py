"""Commands in processes forked from one that has imported torch and all else, which takes a fresh one 5 to 9 seconds.

The server that forks (multiprocessing's) only imports, so that its forks find what a fresh process would find. What a
test says about the start of a process itself needs a real `python -m`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
IMPORTED = ("segment.training", "pretrain.stages", "classify.training", "monai.metrics")
IMPORTED += ("sweep.study.run", "sweep.study.local", "sweep.report.page")
"""No module that a test runs by its name."""


def run_forked(module: str, *arguments: str | Path, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` in the repository.

    Args:
        module: name of the module, or path of a script.
        arguments: its command line.
        first: statements to execute before.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = fork(_run, (module, [*map(str, arguments)], first, outputs))
        process.start()
        process.join()
        stdout, stderr = (file.read_text() if file.exists() else "" for file in outputs)
    return subprocess.CompletedProcess([module, *arguments], process.exitcode or 0, stdout, stderr)


def fork(target: Callable[..., None], args: Sequence[Any], **options: Any) -> BaseProcess:
    """A process that will call a function with this process's environment, like `Process` of a context."""
    context = multiprocessing.get_context("forkserver")
    if sys.platform == "linux":  # the libraries of macOS do not survive a fork
        context.set_forkserver_preload([*IMPORTED])
    with chdir(REPOSITORY):  # where the server finds the modules
        forkserver.ensure_running()
    return context.Process(target=_call, args=(dict(os.environ), target, args), **options)


def _call(environment: dict[str, str], target: Callable[..., None], args: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # read by torch when the server imported it
    target(*args)


def _run(module: str, arguments: list[str], first: str, outputs: list[Path]) -> None:
    for stream, file in enumerate(outputs, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    sys.argv = [module, *arguments]
    exec(first, {})
    run = runpy.run_path if module.endswith(".py") else runpy.run_module
    run(module, run_name="__main__", **({} if module.endswith(".py") else {"alter_sys": True}))
