"""Description of the machine, pinning to one core, fresh processes, and the memory that a function needs."""

import atexit
import gc
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Any

PACKAGES = "numpy torch torchvision opencv-python-headless albumentations nibabel deflate lightly byol-pytorch monai"
LINUX_STATUS = Path("/proc/self/status")
FORK = "fork" if sys.platform == "linux" else None
"""How DataLoaders start workers: forked ones need not import torch first."""


def describe() -> dict[str, Any]:
    """Hardware and versions that a reader needs to judge the numbers, without names of the machine or its folders."""
    import torch

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES.split()},
    }


def load() -> float:
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2)


@contextmanager
def pinned() -> Iterator[None]:
    """Within the context, run this process and those that it starts on one thread of one core."""
    import cv2
    import torch

    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def keep_bytecode() -> None:
    """Let the commands started by tests and benchmarks share compiled modules even if PYTHONDONTWRITEBYTECODE is set.

    A user's second command finds compiled modules; without them imports take three times as long. Where the installed
    packages are not compiled, all modules are compiled into a folder that is removed when this process ends.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        torch = find_spec("torch")
        if torch and torch.origin and Path(cache_from_source(torch.origin)).exists():
            return
        folder = tempfile.mkdtemp(prefix="fewslice-bytecode-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.setdefault("PYTHONPYCACHEPREFIX", folder)


def in_fresh_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a module's function in a new interpreter, which shares no memory with this one.

    Raises:
        Exception: as raised by the function, or BrokenProcessPool if the process died.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def added_memory(warm_up: Callable[[], Any], function: Callable[[], Any]) -> float:
    """Peak resident memory (MB) that a call adds to a fresh process, mapped pages included; NaN without /proc.

    Args:
        warm_up: called first, so that its imports are not counted.
        function: a module's function, like `warm_up`; its return value stays alive until the peak is read.
    """
    return float(in_fresh_process(_added_memory, warm_up, function))


def _added_memory(warm_up: Callable[[], Any], function: Callable[[], Any]) -> float:
    if not LINUX_STATUS.exists():
        return float("nan")
    warm_up()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident_mb()
    result = function()
    after = resident_mb(peak=True)
    del result
    return after - before


def resident_mb(*, peak: bool = False) -> float:
    """Resident memory (MB) of this process, now or at its peak; NaN without /proc."""
    value = _first_value(LINUX_STATUS, "VmHWM" if peak else "VmRSS")
    return int(value.split()[0]) * 1024 / 1e6 if value else float("nan")


def _cpu() -> str:
    return _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor()


def _first_value(file: Path, name: str) -> str:
    """Value of the first "name: value" line of a file of /proc; empty if there is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit() -> str:
    """Short hash, followed by + if files were changed; empty outside a repository."""
    folder = Path(__file__).parent
    run = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
