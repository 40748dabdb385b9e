"""Speed on a GPU: absolute rates and their share of the hardware's limits, the paper's protocol, concurrent runs.

Without a GPU each row says that it needs one; `--quick` runs tiny sizes on any device, not compiled. Targets are for an
H200 and checked on an H200 only.
"""

import gc
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.outcome import Outcome, Row
from benchmarks.peers.networks import Heads
from benchmarks.phantom import write_cines
from benchmarks.study import run_command, study_of
from benchmarks.training import CLASSES, Setting, make_encoder, our_byol, our_step, our_unet, training_slices
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.phantoms.cardiac import demo_root
from data.samples.on_device import ViewsOnDevice
from data.sources import AcdcSource
from engine.sampler import Sample
from pretrain.config import demo as pretrain_demo
from pretrain.config import paper as pretrain_paper
from segment.config import demo as segment_demo
from segment.config import paper as segment_paper


@dataclass(frozen=True, kw_only=True)
class Work:
    """One optimiser step whose rate is measured."""

    method: str
    setting: Setting
    megabytes: float
    """Memory traffic per sample in MB, in bf16 with elementwise operations fused, counted layer by layer."""
    target: float
    """Samples per second on an H200."""

    def __str__(self) -> str:
        return f"{self.method} step, {self.setting}"


BYOL_SETTING = Setting(encoder="resnet50", size=224, batch=128, rounds=7)
UNET_SETTING = Setting(encoder="resnet50", size=224, batch=192, rounds=7)
CLIP_SETTING = Setting(encoder="r3d_18", size=224, frames=16, batch=16, rounds=5)
BYOL_2D = Work(method="BYOL", setting=BYOL_SETTING, megabytes=865, target=2500)
WORKS = (
    BYOL_2D,
    Work(method="U-Net", setting=UNET_SETTING, megabytes=469, target=4600),
    Work(method="BYOL", setting=CLIP_SETTING, megabytes=6830, target=125),
)
PROTOCOLS = {"25-epoch pretraining on 20,000 slices": 4.2 * 60, "one segmentation run of 1050 steps": 46.0}
"""Targets in seconds. Kalapos and Gyires-Toth 2022 needed 45 and 20 minutes on a V100."""
VIEWS = "views on the device at 224"
VIEWS_PER_SECOND, VIEWS_SHARE = 200_000, 0.05
VIEWS_TARGET = f"H200: >= {VIEWS_PER_SECOND:,}/s, <= {VIEWS_SHARE:.0%} of a BYOL step"
CELLS = "12 small cells, processes of one GPU: 1 -> 2 -> 4"


def run(*, rounds: int, quick: bool) -> Outcome:
    """Measure everything on CUDA; without it, add a row for each missing value; `quick`: tiny sizes on any device."""
    if not (quick or torch.cuda.is_available()):
        return Outcome(rows=_not_measured())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    limits = _limits(device, quick)
    product, copy = f"{limits['flops'] / 1e12:.3g} TFLOP/s", f"{limits['bytes'] / 1e9:.3g} GB/s"
    rows = [_row("bf16 matrix product", product), _row("memory, copy", copy)]
    outcome = Outcome(rows=rows, details={"limits": limits})
    for work in [replace(work, setting=work.setting.tiny()) for work in WORKS] if quick else WORKS:
        for compiled in (False,) if quick else (False, True):
            _step(work, compiled, device, limits, min(work.setting.rounds, rounds), outcome)
    with TemporaryDirectory() as folder:
        _views(device, Path(folder), quick, outcome)
        _protocol(Path(folder), quick, outcome)
        _cells(Path(folder), quick, outcome)
    return outcome


def _not_measured() -> list[Row]:
    targets = {str(work): _at_least(work) for work in WORKS} | {VIEWS: VIEWS_TARGET}
    targets |= {what: _at_most(seconds) for what, seconds in PROTOCOLS.items()} | {CELLS: ""}
    return [_row(what, "not measured: needs a CUDA GPU", target=target) for what, target in targets.items()]


def _at_least(work: Work) -> str:
    return f"H200: >= {work.target:,.0f} samples/s"


def _at_most(seconds: float) -> str:
    return f"H200: <= {seconds:.0f} s"


def _row(what: str, value: str, *, target: str = "", met: bool | None = None, why: str = "") -> Row:
    """A row of the table; targets are checked only on the hardware for which they were set."""
    judged = met is not None and torch.cuda.is_available() and "H200" in torch.cuda.get_device_name()
    met, why = met if judged else None, why if judged and not met else ""
    return Row(what=what, target=target, value=value, met=met, why=why)


def _seconds(function: Callable[[], Any], rounds: int, calls: int) -> float:
    """Median over rounds of the wall time of one call in seconds, including the work that it leaves to a GPU."""
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return statistics.median(timer.timeit(calls).mean for _ in range(rounds))  # timeit warms up, and waits for the GPU


def _limits(device: torch.device, quick: bool) -> dict[str, float]:
    """Limits of this device: FLOP/s of a large bf16 matrix product, bytes/s of a large copy."""
    side, size = (256, 1 << 20) if quick else (8192, 1 << 30)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(size, device=device)
    target = torch.empty_like(source)
    flops = 2 * side**3 / _seconds(lambda: a @ b, 5, 10)
    return {"flops": flops, "bytes": 2 * 4 * size / _seconds(lambda: target.copy_(source), 5, 5)}


def _step(
    work: Work, compiled: bool, device: torch.device, limits: dict[str, float], rounds: int, outcome: Outcome
) -> None:
    """Measure samples per second of optimiser steps on one batch in the device's memory."""
    step = (_unet if work.method == "U-Net" else _byol)(work.setting, compiled, device)
    step()  # compiles, and creates the optimiser's state
    with FlopCounterMode(display=False) as counter:
        if not compiled:  # the counter does not see inside compiled code
            step()
    flops = counter.get_total_flops() / work.setting.batch or outcome.details[str(work)]["flops per sample"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rate = work.setting.batch / _seconds(step, rounds, 1 if device.type == "cpu" else 10)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    bounds = {"memory": limits["bytes"] / work.megabytes / 1e6, "arithmetic": limits["flops"] / flops}
    bound = min(bounds, key=bounds.__getitem__)
    share = f"{rate / bounds[bound]:.0%} of what {bound} allows, {bounds[bound]:.4g}/s"
    what, value = str(work) + (", compiled" if compiled else ""), f"{rate:.4g} samples/s, {share}, {peak:.3g} GiB"
    met, why = rate >= work.target, f"{1 - rate / work.target:.0%} short"
    numbers = {"samples/s": rate, "flops per sample": flops, "limits, samples/s": bounds, "peak GiB": peak}
    outcome.add(_row(what, value, target=_at_least(work), met=met, why=why), what, numbers)
    del step
    gc.collect()  # compiled networks refer to themselves
    torch.cuda.empty_cache()  # free it for the processes that follow


def _byol(setting: Setting, compiled: bool, device: torch.device) -> Callable[[], Any]:
    encoder, features = make_encoder(setting.encoder)
    byol, optimiser = our_byol(setting.layout(encoder).to(device), features, Heads())
    byol.to(device)
    if compiled:  # not by compile_method: a failing compiler must stop the benchmark
        byol.networks = torch.compile(byol.networks, dynamic=False)  # type: ignore[method-assign]
    views = torch.stack([setting.images(), setting.images()], dim=1).to(device)

    return lambda: our_step(partial(_loss, byol, device), optimiser, byol.move_target, views)


def _unet(setting: Setting, compiled: bool, device: torch.device) -> Callable[[], Any]:
    network, update = our_unet(setting, device)
    if compiled:
        network.logits = torch.compile(network.logits, dynamic=False)  # type: ignore[method-assign]
    images = setting.images().to(device)
    labels = torch.randint(CLASSES, (setting.batch, setting.size, setting.size), device=device)

    return lambda: update(_loss(network, device, (images, labels)))


def _loss(network: nn.Module, device: torch.device, batch: Any) -> Tensor:
    """Loss of a batch, in bf16 on a GPU; a CPU would emulate bf16."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss: Tensor = network(batch)
    return loss


def _views(device: torch.device, folder: Path, quick: bool, outcome: Outcome) -> None:
    """Measure two views of 128 slices made on the device, as a share of the BYOL step that uses them."""
    write_cines(folder / "views", 3, frames=2 if quick else 30)  # patients 1 and 2 do not train
    slices, _ = training_slices("acdc", folder / "views")
    samples = ViewsOnDevice(slices, (Augmenter(Augmentation(), 224), Augmenter(Augmentation(), 224)), device)
    count = 4 if quick else BYOL_2D.setting.batch
    items = np.random.default_rng(0).integers(len(slices), size=count).tolist()
    batch = [Sample(item, seed) for seed, item in enumerate(items)]
    seconds = _seconds(lambda: samples.__getitems__(batch), 5, 2 if quick else 20)
    rate = 2 * count / seconds
    steps = [numbers["samples/s"] for what, numbers in outcome.details.items() if what.startswith(str(BYOL_2D))]
    share = seconds * max(steps) / count if steps else 0.0
    met = rate >= VIEWS_PER_SECOND and share <= VIEWS_SHARE
    why = f"{rate / VIEWS_PER_SECOND:.0%} of the rate"
    value = f"{rate:.4g}/s, {share:.1%} of a BYOL step"
    outcome.add(_row(VIEWS, value, target=VIEWS_TARGET, met=met, why=why), "views/s", rate)


def _protocol(folder: Path, quick: bool, outcome: Outcome) -> None:
    """Measure the wall time of `pretrain` and `segment` with the paper's settings, start and decoding included.

    67 cines of 300 slices give 20,100; the U-Net trains on the phantom with all labels.
    """
    subjects, shape = (3, {"frames": 2, "slices": 2}) if quick else (67, {})
    write_cines(folder / "cines", subjects, **shape)  # type: ignore[arg-type]
    pretraining = replace(
        pretrain_demo() if quick else pretrain_paper(), stage="specialist", data=AcdcSource(data_root=folder / "cines"),
        unlabelled_splits="all", epochs=1 if quick else 25, steps=1 if quick else None, checkpoint_every=0,
        out=folder / "pretrained",
    )  # fmt: skip
    segmentation = replace(
        segment_demo() if quick else segment_paper(), data=AcdcSource(data_root=demo_root()),
        steps=2 if quick else 1050, workers=0 if quick else 8, checkpoint_every=0, out=folder / "segmented",
    )  # fmt: skip
    commands = (("pretrain", pretraining), ("segment", segmentation))
    for (what, limit), (module, config) in zip(PROTOCOLS.items(), commands, strict=True):
        seconds = run_command(module, config, folder / f"{module}-command")
        why = f"{seconds - limit:.0f} s too long"
        row = _row(what, f"{seconds:.0f} s", target=_at_most(limit), met=seconds <= limit, why=why)
        outcome.add(row, what, seconds)


def _cells(folder: Path, quick: bool, outcome: Outcome) -> None:
    """Measure a sweep whose processes share one GPU."""
    seconds = {}
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    for processes in (1,) if quick else (1, 2, 4):
        cfg = study_of(demo_root(), folder / f"cells-{processes}", quick)
        cfg = replace(cfg, device="auto", processes=processes)
        seconds[processes] = run_command("sweep", cfg, folder / f"cells-{processes}-command")
    outcome.add(_row(CELLS, " -> ".join(f"{value:.0f} s" for value in seconds.values())), "cells, s", seconds)
