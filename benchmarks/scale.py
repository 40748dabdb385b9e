"""Cost as data, workers, processes and the effective batch grow."""

import json
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.machine import added_memory, in_fresh_process, resident_mb
from benchmarks.outcome import Outcome, Row
from benchmarks.phantom import write_cines

SLICES_PER_FILE = 1000
SIDE = 64
MICRO = 64


def run(*, rounds: int, quick: bool) -> Outcome:
    """Measure every curve once (`rounds` is ignored: nothing is compared); `quick`: the first points only."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _stores((1, 2) if quick else (1, 10, 100), root, outcome)
        _workers(root / "files-1", 256 if quick else 3000, outcome)
        batches = (MICRO, 2 * MICRO) if quick else (MICRO, 8 * MICRO, 64 * MICRO)
        _accumulation(root / "files-1", batches, outcome)
        _processes(root, 2 if quick else 8, outcome)
    return outcome


def write_files(folder: Path, files: int) -> Path:
    """Write a folder of `files` hard links to one 4D file of 1000 slices of 64 x 64; the store packs each of them."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 10, SLICES_PER_FILE // 10), dtype=np.uint8)
    first = folder / "s000.nii"
    nib.save(nib.Nifti1Image(noise, np.eye(4)), first)
    for number in range(1, files):
        os.link(first, folder / f"s{number:03d}.nii")
    return folder


def _stores(counts: tuple[int, ...], root: Path, outcome: Outcome) -> None:
    """Measure packing here, and opening and making views in a fresh process, for stores of growing size."""
    from data.slices import load_dataset

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
        values = _arrows([form.format(point[name]) for point in points])
        outcome.add(Row(what=f"{what}, {sizes} slices", value=values), "store", points)


def open_and_draw(folder: Path) -> dict[str, float]:
    """Seconds to open a packed store, its memory in megabytes, and milliseconds per pair of views."""
    from benchmarks.training import two_views
    from data.slices import Slices, load_dataset

    before = resident_mb()
    began = time.perf_counter()
    dataset = load_dataset("folder", folder)
    opened = time.perf_counter() - began
    memory = resident_mb() - before
    slices = Slices(store=dataset.store, positions=dataset.positions("train"))
    samples = two_views(slices, 96)
    items = np.random.default_rng(0).integers(0, len(slices), 300).tolist()
    for item in items[:20]:
        samples[item, 0]
    began = time.perf_counter()
    for seed, item in enumerate(items):
        samples[item, seed]
    return {"open": opened, "memory": memory, "sample": 1000 * (time.perf_counter() - began) / len(items)}


def _workers(folder: Path, count: int, outcome: Outcome) -> None:
    """Measure pairs of views per second of a DataLoader with 0, 1 and 2 workers, without the workers' start."""
    import torch

    from benchmarks.training import batch_loader, training_slices, two_views
    from engine.sampler import MicroBatchSampler, StepSampler

    slices, _ = training_slices("folder", folder)
    samples = two_views(slices, 224)
    sampler = StepSampler(count=len(slices), batch_size=32, micro_batch_size=32, wrap=True)
    rates: dict[int, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for workers in (0, 1, 2):
        loader = iter(batch_loader(samples, MicroBatchSampler(sampler, 0, count // 32 + 4), workers))
        for _ in range(4):  # as many as workers may have prepared before the clock starts
            next(loader)
        began = time.perf_counter()
        batches = sum(1 for _ in loader)
        rates[workers] = 32 * batches / (time.perf_counter() - began)
    torch.set_num_threads(threads)
    value = _arrows([f"{rate:.0f}" for rate in rates.values()]) + " /s"
    what = "pairs of views at 224 per second, workers 0 -> 1 -> 2"
    outcome.add(Row(what=what, value=value), "workers, pairs of views/s", rates)


def _accumulation(folder: Path, batches: tuple[int, ...], outcome: Outcome) -> None:
    """Measure the peak memory added by one optimiser step with micro-batches of 64."""
    warm_up = partial(accumulated_step, folder, 0)
    peaks = {batch: added_memory(warm_up, partial(accumulated_step, folder, batch)) for batch in batches}
    what = f"peak memory of a step, effective batch {_arrows(list(map(str, batches)))} (micro-batch {MICRO})"
    value = _arrows([f"{peak:.0f}" for peak in peaks.values()]) + " MB"
    outcome.add(Row(what=what, value=value), "accumulation, MB", peaks)


def accumulated_step(folder: Path, batch: int) -> None:
    """Take one BYOL step of the training loop at 32 pixels; batch 0: only import modules and open the data."""
    import torch

    from benchmarks.peers.networks import Heads
    from benchmarks.training import make_encoder, our_byol, run_loop, training_slices, two_views

    torch.set_num_threads(1)
    slices, key = training_slices("folder", folder)
    encoder, features = make_encoder("resnet10t")
    byol, optimiser = our_byol(encoder, features, Heads(256, 256, 128))
    if not batch:
        return
    with tempfile.TemporaryDirectory() as out:
        run_loop(
            Path(out) / "run", byol, optimiser, two_views(slices, 32), count=len(slices), data=key, batch_size=batch,
            micro_batch_size=MICRO, steps=1, lr=0.1, after_step=lambda step: byol.move_target(0.99),
        )  # fmt: skip


def _processes(root: Path, steps: int, outcome: Outcome) -> None:
    """Measure `python -m pretrain` on 1 and on 2 processes of one thread each."""
    write_cines(root / "acdc", 4, frames=8)
    rates = {devices: _pretrain_rate(root, devices, steps) for devices in (1, 2)}
    value = f"{rates[1]:.0f} -> {rates[2]:.0f} images/s, efficiency {rates[2] / rates[1] / 2:.0%}"
    what = "BYOL pretraining, ResNet-18 at 64, batch 64, processes 1 -> 2"
    outcome.add(Row(what=what, value=value), "processes, images/s", rates)


def _pretrain_rate(root: Path, devices: int, steps: int) -> float:
    from benchmarks.study import run_command
    from data.sources import AcdcSource
    from pretrain.config import demo

    out, source = root / f"devices-{devices}", AcdcSource(data_root=root / "acdc")
    cfg = replace(demo(), stage="specialist", data=source, device="cpu", devices=devices, steps=steps, out=out)
    run_command("pretrain", replace(cfg, checkpoint_every=0), root / f"{out.name}-command", OMP_NUM_THREADS="1")
    return float(json.loads((out / "result.json").read_text())["images_per_second"])


def _arrows(values: list[str]) -> str:
    return " -> ".join(values)
