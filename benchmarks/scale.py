"""Scale: what cost does as data, workers, processes and the effective batch grow."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.machine import added_memory, in_fresh_process
from benchmarks.outcome import Outcome, Row
from benchmarks.phantom import write_cines

SLICES_PER_FILE = 1000
SIDE = 64
MICRO = 64


def run(*, rounds: int, quick: bool) -> Outcome:
    """Measure every curve once (`rounds` is not used: they are curves, not ratios); `quick`: their first points."""
    rows: list[Row] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _stores((1, 2) if quick else (1, 10, 100), root, rows, details)
        _workers(root / "files-1", 256 if quick else 3000, rows, details)
        batches = (MICRO, 2 * MICRO) if quick else (MICRO, 8 * MICRO, 64 * MICRO)
        _accumulation(root / "files-1", batches, rows, details)
        _processes(root, 2 if quick else 8, rows, details)
    return Outcome(rows=rows, details=details)


def write_files(folder: Path, files: int) -> Path:
    """A folder of `files` names for one 4D file of 1000 slices of 64 x 64; the store packs each of them."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 10, SLICES_PER_FILE // 10), dtype=np.uint8)
    first = folder / "s000.nii"
    nib.save(nib.Nifti1Image(noise, np.eye(4)), first)
    for number in range(1, files):
        os.link(first, folder / f"s{number:03d}.nii")
    return folder


def _stores(counts: tuple[int, ...], root: Path, rows: list[Row], details: dict[str, Any]) -> None:
    """Packing (once), opening and drawing views (a fresh process each) for stores of growing size."""
    from data.datasets import load_dataset

    points = []
    for files in counts:
        folder = write_files(root / f"files-{files}", files)
        began = time.perf_counter()
        load_dataset("folder", folder)
        packing = time.perf_counter() - began
        points.append({"slices": files * SLICES_PER_FILE, "pack": packing, **in_fresh_process(open_and_draw, folder)})
    sizes = _arrows([f"{point['slices'] / 1000:g}k" for point in points])
    for name, what, form in (
        ("pack", "pack the store", "{:.2g} s"),
        ("open", "open the store again", "{:.2g} s"),
        ("memory", "memory of the open store", "{:.2g} MB"),
        ("sample", "two views of a slice", "{:.2g} ms"),
    ):
        rows.append(_row(f"{what}, {sizes} slices", _arrows([form.format(point[name]) for point in points])))
    details["store"] = points


def open_and_draw(folder: Path) -> dict[str, float]:
    """Seconds to open a packed store, megabytes that it takes, milliseconds per pair of views."""
    from data.datasets import load_dataset
    from data.samples import Slices, TwoViews
    from data.views import ViewRecipe, Views

    before = _resident()
    began = time.perf_counter()
    dataset = load_dataset("folder", folder)
    opened = time.perf_counter() - began
    memory = _resident() - before
    samples = TwoViews(Slices(store=dataset.store, positions=dataset.positions("train")), Views(ViewRecipe(), 96))
    draws = np.random.default_rng(0).integers(0, len(dataset.positions("train")), 300)
    for draw in draws[:20]:
        samples[int(draw), 0]
    began = time.perf_counter()
    for number, draw in enumerate(draws):
        samples[int(draw), number]
    return {"open": opened, "memory": memory, "sample": 1000 * (time.perf_counter() - began) / len(draws)}


def _resident() -> float:
    """Resident memory of this process in megabytes; NaN without /proc."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if file.exists() else float("nan")


def _workers(folder: Path, count: int, rows: list[Row], details: dict[str, Any]) -> None:
    """Pairs of views per second through a DataLoader with 0, 1 and 2 workers; their start is not counted."""
    import torch
    from torch.utils.data import DataLoader

    from data.datasets import load_dataset
    from data.samples import Slices, TwoViews
    from data.views import ViewRecipe, Views
    from engine.loop import collate
    from engine.order import MicroBatches, Order

    dataset = load_dataset("folder", folder)
    slices = Slices(store=dataset.store, positions=dataset.positions("train"))
    samples = TwoViews(slices, Views(ViewRecipe(), 224))
    order = Order(count=len(slices), batch=32, micro=32, wrap=True)
    found: dict[int, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for workers in (0, 1, 2):
        loader = iter(
            DataLoader(
                samples,
                batch_sampler=MicroBatches(order, 0, count // 32 + 4),
                num_workers=workers,
                multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                collate_fn=collate,
            )
        )
        for _ in range(4):  # as many as workers may have ready when the clock starts
            next(loader)
        began = time.perf_counter()
        batches = sum(1 for _ in loader)
        found[workers] = 32 * batches / (time.perf_counter() - began)
    torch.set_num_threads(threads)
    value = _arrows([f"{rate:.0f}" for rate in found.values()])
    rows.append(_row("pairs of views at 224 per second, workers 0 -> 1 -> 2", f"{value} /s"))
    details["workers, pairs of views/s"] = found


def _accumulation(folder: Path, batches: tuple[int, ...], rows: list[Row], details: dict[str, Any]) -> None:
    """Peak memory that one optimiser step adds, its effective batch in micro-batches of 64."""
    warm_up = functools.partial(accumulated_step, folder, 0)
    peaks = {batch: added_memory(warm_up, functools.partial(accumulated_step, folder, batch)) for batch in batches}
    what = f"peak memory of a step, effective batch {_arrows(list(map(str, batches)))} (micro-batch {MICRO})"
    rows.append(_row(what, _arrows([f"{peak:.0f}" for peak in peaks.values()]) + " MB"))
    details["accumulation, MB"] = peaks


def accumulated_step(folder: Path, batch: int) -> None:
    """One BYOL step of the training loop at 32 pixels; batch 0: only what it imports and opens."""
    import torch

    from data.datasets import load_dataset
    from data.samples import Slices, TwoViews
    from data.views import ViewRecipe, Views
    from encoders.build import build_encoder, feature_width
    from engine.devices import make_fabric
    from engine.loop import Training, train
    from engine.optimisers import lars
    from engine.order import Order
    from engine.run import RunFolder
    from pretrain.byol import Byol

    torch.set_num_threads(1)
    dataset = load_dataset("folder", folder)
    slices = Slices(store=dataset.store, positions=dataset.positions("train"))
    fabric = make_fabric("cpu", "fp32")
    encoder = build_encoder("resnet10t")
    byol = Byol(encoder, feature_width(encoder), projector_hidden=256, predictor_hidden=256, outputs=128)
    model, optimiser = fabric.setup(byol, lars(byol, lr=0.1, weight_decay=1e-5))
    if not batch:
        return
    with tempfile.TemporaryDirectory() as out, RunFolder(Path(out) / "run", {}, resume=False, overwrite=False) as run:
        train(
            Training(
                fabric=fabric,
                run=run,
                model=model,
                optimiser=optimiser,
                order=Order(count=len(slices), batch=batch, micro=MICRO, wrap=True),
                data=dataset.store.key,
                samples=TwoViews(slices, Views(ViewRecipe(), 32)),
                steps=1,
                learning_rate=lambda step: 0.1,
                after_step=lambda step: byol.move_target(0.99),
                checkpoint_every=0,
            )
        )


def _processes(root: Path, steps: int, rows: list[Row], details: dict[str, Any]) -> None:
    """`python -m pretrain` on 1 and on 2 processes of one thread each."""
    write_cines(root / "acdc", 4, frames=8)
    rates = {devices: _pretrain_rate(root, devices, steps) for devices in (1, 2)}
    value = f"{rates[1]:.0f} -> {rates[2]:.0f} images/s, efficiency {rates[2] / rates[1] / 2:.0%}"
    rows.append(_row("BYOL pretraining, ResNet-18 at 64, batch 64, processes 1 -> 2", value))
    details["processes, images/s"] = rates


def _pretrain_rate(root: Path, devices: int, steps: int) -> float:
    out = root / f"devices-{devices}"
    flags = {"stage": "specialist", "data-root": root / "acdc", "device": "cpu", "devices": devices, "steps": steps,
             "checkpoint-every": 0, "out": out}  # fmt: skip
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "--recipe", "demo", *arguments],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"python -m pretrain failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return float(json.loads((out / "result.json").read_text())["images_per_second"])


def _row(what: str, value: str) -> Row:
    return Row(benchmark="scale", what=what, against="", target="", value=value, met=None)


def _arrows(values: list[str]) -> str:
    return " -> ".join(values)
