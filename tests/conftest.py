"""Fixtures and helpers that several test files share."""

import logging
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
from forking import fork, run_forked

from benchmarks.machine import keep_bytecode

# The workers of pytest-xdist are the parallelism. Torch reads it when imported; a value set by the caller holds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
keep_bytecode()  # tests start many processes
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what runs in its background like this
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests send Ctrl-C to the processes that they start
if TYPE_CHECKING:  # torch must not be imported before the threads are set
    from torch import Tensor


@pytest.fixture(scope="session", autouse=True)
def _test_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' packed slices and their salt of names out of the user's folders; a test may set others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSLICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Do not wait until checkpoints are on the disk: the tests kill processes, not the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread here and in the processes started here, so that their results can be compared bit for bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `train_in_float64`."""
    train_in_float64(monkeypatch)


def train_in_float64(patch: pytest.MonkeyPatch) -> None:
    """Train in float64, so that results differ by a mistake only and not by the order of a sum.

    In float32 a ReLU close to its kink, or a norm over few values, amplifies rounding errors from step to step.
    """
    import engine.devices

    fabric = engine.devices.Fabric
    patch.setattr(engine.devices, "Fabric", lambda **settings: fabric(**settings | {"precision": "64-true"}))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers of a study from a process that has imported torch; real ones work in `test_study`."""

    def process(target: Callable[..., None], args: Sequence[Any], daemon: bool) -> BaseProcess:
        return fork(target, args, daemon=daemon)

    def context(method: str) -> SimpleNamespace:
        return SimpleNamespace(Pipe=multiprocessing.Pipe, Process=process)

    stand_in = SimpleNamespace(get_context=context, parent_process=multiprocessing.parent_process)
    monkeypatch.setattr("sweep.study.local.multiprocessing", stand_in)


@pytest.fixture
def no_stale_handlers() -> Iterator[None]:
    """Remove the log handlers that a command leaves in this process: they write to the closed output of the test."""
    yield
    log = logging.getLogger("fewslice")
    for handler in log.handlers[:]:
        log.removeHandler(handler)


@pytest.fixture(scope="session")
def real_acdc() -> Path:
    """The training folder of the real ACDC, named by FEWSLICE_ACDC; the test skips without it."""
    if not (folder := os.environ.get("FEWSLICE_ACDC")):
        pytest.skip("needs the real ACDC data set: set FEWSLICE_ACDC to its training folder")
    return Path(folder)


def assert_close(ours: "Tensor", theirs: "Tensor", tolerance: float = 1e-4, msg: str | None = None) -> None:
    """Assert that two tensors are equal to within `tolerance` times the largest magnitude.

    For float32 networks whose batches, kernels or memory layouts differ, and with them the order of sums.
    """
    import torch

    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.detach().abs().max()), msg=msg)


def wait_until(condition: Callable[[], object], seconds: float = 120, failure: Callable[[], str] = str) -> None:
    """Return as soon as the condition holds; fail with the message `failure()` after this many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, failure() or f"not within {seconds} seconds"
        time.sleep(0.02)


def run_module(module: str, arguments: Iterable[str | Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python -m module arguments` in this process, which saves the imports of another."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_killed(module: str, *arguments: str | Path, at: str, when: str) -> None:
    """Run `python -m module arguments` until it sends itself SIGKILL, at an exactly repeatable moment.

    Args:
        at: a method as "module:Class.method"; the process dies right after a call of it.
        when: condition of that call: an expression of its arguments `args` and of `calls`, the list of all so far.
    """
    place, _, name = at.partition(":")
    owner, _, method = name.partition(".")
    dying = f"""
import os, signal
from {place} import {owner} as owner
original, calls = owner.{method}, []
def dying(*args, **kwargs):
    result = original(*args, **kwargs)
    calls.append(args)
    if {when}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
owner.{method} = dying
"""
    died = run_forked(module, *arguments, first=dying)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr


def run_killed_after_step(module: str, *arguments: str | Path, step: int) -> None:
    """Run a training command that dies once the row of that optimiser step stands in `metrics.csv`."""
    run_killed(module, *arguments, at="engine.run_folder:RunFolder.record", when=f"args[1]['step'] == {step}")


def _heart(rng: np.random.Generator, radius: float, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (X, Y, Z) int16 and labels uint8: a bright disc (LV) in a dark ring (MYO) beside a grey disc (RV)."""
    x, y = np.mgrid[:64, :56]
    image, labels = np.full((64, 56, slices), 200.0), np.zeros((64, 56, slices), np.uint8)
    for z in range(slices):
        r = radius * (1 - 0.15 * z)
        from_lv, from_rv = np.hypot(x - 36, y - 28), np.hypot(x - 16, y - 28)
        for label, where, value in ((1, from_rv < r, 500), (2, from_lv < r + 4, 20), (3, from_lv < r, 700)):
            labels[where, z], image[where, z] = label, value
    return (image + rng.normal(0, 20, image.shape)).astype(np.int16), labels


@pytest.fixture(scope="session")
def tiny_acdc(tmp_path_factory) -> Path:
    """Six patients in the ACDC layout: 1 tests, 2 validates, 3-6 train (24 labelled slices, 6 without in a cine)."""
    root = tmp_path_factory.mktemp("acdc")
    for number in range(1, 7):
        name, rng = f"patient{number:03d}", np.random.default_rng(number)
        folder = root / "training" / name
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 3\nGroup: {'DCM' if number % 2 else 'NOR'}\n")
        hearts = [_heart(rng, radius, 3) for radius in (9 + number / 4, 8, 6, 7)]
        files = {f"frame{t:02d}{kind}": hearts[t - 1][k] for t in (1, 3) for k, kind in enumerate(("", "_gt"))}
        if number == 3:
            files["4d"] = np.stack([image for image, _ in hearts], axis=3)
        for key, values in files.items():
            image = nib.Nifti1Image(values, np.eye(4))
            image.header.set_zooms((1.5, 1.5, 10, 1)[: values.ndim])
            image.to_filename(folder / f"{name}_{key}.nii.gz")
    return root


def exam_frames(label: int, rng: np.random.Generator) -> np.ndarray:
    """5 to 8 noisy frames (uint8); class 1 has a bright square in the middle ones."""
    frames = rng.integers(0, 60, (int(rng.integers(5, 9)), 40, 36))
    if label:
        row, column = rng.integers(8, 20, 2)
        frames[1:4, row : row + 12, column : column + 12] += 150
    return frames.astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_knees(tmp_path_factory) -> Path:
    """30 training exams (10 positive) and 12 test exams (5) in the MRNet layout, two planes."""
    root = tmp_path_factory.mktemp("knees")
    for half, count, positive, first in (("train", 30, 10, 0), ("valid", 12, 5, 1130)):
        labels = {f"{first + k:04d}": int(k < positive) for k in range(count)}
        for plane in ("sagittal", "coronal"):
            (root / half / plane).mkdir(parents=True)
            for case, label in labels.items():
                rng = np.random.default_rng((int(case), len(plane)))
                np.save(root / half / plane / f"{case}.npy", exam_frames(label, rng))
        (root / f"{half}-acl.csv").write_text("".join(f"{case},{label}\n" for case, label in labels.items()))
    return root


def make_study(root: Path, out: Path, **settings):
    """A study of two pipelines, two sizes and two seeds on the tiny patients, in seconds."""
    from dataclasses import replace

    from data.sources import AcdcSource
    from sweep.study.config import demo

    base = demo()
    pretraining = replace(base.pretrain, encoder="test_resnet", image_size=32, steps=2, batch_size=4, log_every=1)
    training = replace(
        base.segment, encoder="test_resnet", image_size=32, spacing_mm=3.0, steps=4, batch_size=4, evaluate_every=2
    )
    grid = {"pipelines": ("random", "specialist"), "fractions": (0.1, 0.5), "seeds": (0, 1)}
    defaults = {"data": AcdcSource(data_root=root), "out": out, "threads": 1, "device": "cpu"}
    return replace(base, pretrain=pretraining, segment=training, **(grid | defaults | settings))


def run_here(cfg) -> None:
    """Run a study in this process, without an executor; every executor must give the same results."""
    from core.files import write_json
    from engine.config import plain
    from sweep.study.grid import plan, unit
    from sweep.study.jobs import run_job
    from sweep.study.plan_file import write_plan
    from sweep.study.results import collect
    from sweep.study.run import count_labels, decided

    cfg = decided(cfg)
    jobs = plan(cfg, count_labels(cfg))
    for job in jobs:
        run_job(job, threads=1)
    collect(cfg, [job for job in jobs if job.is_cell])
    write_json(cfg.out / "study.json", plain(cfg))
    write_plan(cfg.out, jobs, unit(cfg), cfg.task)
