"""GPU: absolute rates and their share of what the hardware allows, the paper's protocol, several cells at once.

Without a GPU it says what it needs; `--quick` runs the code on tiny sizes wherever it is, not compiled. Targets are for
an H200 and judged on one only.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.outcome import Outcome, Row
from benchmarks.peers.networks import Heads
from benchmarks.phantom import write_cines
from benchmarks.step import CLASSES, Setting, make_encoder, our_byol, our_step
from benchmarks.study import run_command, study_of
from data.datasets import load_dataset
from data.phantom import demo_root
from data.resident import ResidentViews
from data.samples import Slices
from data.views import ViewRecipe, Views
from engine.optimisers import adamw
from engine.order import Draw
from pretrain.config import demo as pretrain_demo
from pretrain.config import paper as pretrain_paper
from segment.config import demo as segment_demo
from segment.config import paper as segment_paper
from segment.model import build_unet, jaccard_loss
from segment.training import Supervised


@dataclass(frozen=True, kw_only=True)
class Work:
    """One optimiser step whose rate is measured."""

    method: str
    setting: Setting
    megabytes: float
    """Per sample to and from memory in bf16, elementwise operations fused. Source: shared/docs/SPEED.md, section 3."""
    target: float
    """Samples per second on an H200."""

    def __str__(self) -> str:
        return f"{self.method} step, {self.setting}"


BYOL_2D = Work(
    method="BYOL",
    setting=Setting(encoder="resnet50", size=224, batch=128, rounds=7),
    megabytes=865,
    target=2500,
)
WORKS = (
    BYOL_2D,
    Work(
        method="U-Net",
        setting=Setting(encoder="resnet50", size=224, batch=192, rounds=7),
        megabytes=469,
        target=4600,
    ),
    Work(
        method="BYOL",
        setting=Setting(encoder="r3d_18", size=224, frames=16, batch=16, rounds=5),
        megabytes=6830,
        target=125,
    ),
)
PROTOCOLS = {"25-epoch pretraining on 20,000 slices": 4.2 * 60, "one segmentation run of 1050 steps": 46.0}
"""Seconds that they may take. The paper's V100 needed 45 and 20 minutes."""
VIEWS = "views on the device at 224"
VIEWS_PER_SECOND, VIEWS_SHARE = 200_000, 0.05
VIEWS_TARGET = f"H200: >= {VIEWS_PER_SECOND:,}/s, <= {VIEWS_SHARE:.0%} of a BYOL step"
CELLS = "12 small cells, processes of one GPU: 1 -> 2 -> 4"


def run(*, rounds: int, quick: bool) -> Outcome:
    """Everything on CUDA; when `quick` tiny sizes on the device there is; else a line for each thing not measured."""
    if not (quick or torch.cuda.is_available()):
        return Outcome(rows=_not_measured())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    limits = _limits(device, quick)
    details: dict[str, Any] = {"limits": limits}
    rows = [
        _row("bf16 matrix product", f"{limits['flops'] / 1e12:.3g} TFLOP/s"),
        _row("memory, copy", f"{limits['bytes'] / 1e9:.3g} GB/s"),
    ]
    for work in [_tiny(work) for work in WORKS] if quick else WORKS:
        for compiled in (False,) if quick else (False, True):
            _step(work, compiled, device, limits, min(work.setting.rounds, rounds), rows, details)
    with TemporaryDirectory() as folder:
        _views(device, Path(folder), quick, rows, details)
        _protocol(Path(folder), quick, rows, details)
        _cells(Path(folder), quick, rows, details)
    return Outcome(rows=rows, details=details)


def _not_measured() -> list[Row]:
    targets = {str(work): _at_least(work) for work in WORKS} | {VIEWS: VIEWS_TARGET}
    targets |= {what: _at_most(seconds) for what, seconds in PROTOCOLS.items()} | {CELLS: ""}
    return [_row(what, "not measured: needs a CUDA GPU", target=target) for what, target in targets.items()]


def _at_least(work: Work) -> str:
    return f"H200: >= {work.target:,.0f} samples/s"


def _at_most(seconds: float) -> str:
    return f"H200: <= {seconds:.0f} s"


def _row(what: str, value: str, *, target: str = "", met: bool | None = None, why: str = "") -> Row:
    """Whether a target is met is said on the hardware it was set for."""
    judged = met is not None and torch.cuda.is_available() and "H200" in torch.cuda.get_device_name()
    return Row(
        benchmark="gpu",
        what=what,
        against="",
        target=target,
        value=value,
        met=met if judged else None,
        why=why if judged and not met else "",
    )


def _tiny(work: Work) -> Work:
    small = replace(work.setting, size=64, batch=2, rounds=1, frames=min(work.setting.frames, 8))
    return replace(work, setting=small)


def _seconds(code: Callable[[], Any], device: torch.device, rounds: int, calls: int) -> float:
    """Median over rounds of the wall time of one call, the device's work included."""
    times = []
    for turn in range(rounds + 1):  # the first warms up
        _wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            code()
        _wait(device)
        times.append((time.perf_counter() - began) / calls)
        if not turn:
            times.clear()
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _limits(device: torch.device, quick: bool) -> dict[str, float]:
    """Arithmetic (bf16) and memory of this very device: FLOP/s of a large matrix product, bytes/s of a large copy."""
    side, size = (256, 1 << 20) if quick else (8192, 1 << 30)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(size, device=device)
    target = torch.empty_like(source)
    flops = 2 * side**3 / _seconds(lambda: a @ b, device, 5, 10)
    return {"flops": flops, "bytes": 2 * 4 * size / _seconds(lambda: target.copy_(source), device, 5, 5)}


def _step(
    work: Work, compiled: bool, device: torch.device, limits: dict[str, float], rounds: int, rows: list[Row],
    details: dict[str, Any],
) -> None:  # fmt: skip
    """Samples per second of optimiser steps on a batch that lies on the device."""
    step = _unet(work.setting, compiled, device) if work.method == "U-Net" else _byol(work.setting, compiled, device)
    step()  # compiles, and makes the optimiser's state
    with FlopCounterMode(display=False) as counter:
        if not compiled:  # it does not see inside compiled code
            step()
    flops = counter.get_total_flops() / work.setting.batch or details[str(work)]["flops per sample"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rate = work.setting.batch / _seconds(step, device, rounds, 1 if device.type == "cpu" else 10)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    bounds = {"memory": limits["bytes"] / work.megabytes / 1e6, "arithmetic": limits["flops"] / flops}
    bound = min(bounds, key=bounds.__getitem__)
    share = f"{rate / bounds[bound]:.0%} of what {bound} allows, {bounds[bound]:.4g}/s"
    rows.append(
        _row(
            str(work) + (", compiled" if compiled else ""),
            f"{rate:.4g} samples/s, {share}, {peak:.3g} GiB",
            target=_at_least(work),
            met=rate >= work.target,
            why=f"{1 - rate / work.target:.0%} short",
        )
    )
    found = {"samples/s": rate, "flops per sample": flops, "limits, samples/s": bounds, "peak GiB": peak}
    details[rows[-1].what] = found
    del step
    gc.collect()  # compiled networks refer to themselves
    torch.cuda.empty_cache()  # for what comes next, in processes of its own too


def _byol(setting: Setting, compiled: bool, device: torch.device) -> Callable[[], Any]:
    encoder, features = make_encoder(setting)
    byol, optimiser = our_byol(_laid_out(encoder, setting).to(device), features, Heads())
    byol.to(device)
    if compiled:  # directly: a compiler that fails is no result
        byol.networks = torch.compile(byol.networks, dynamic=False)  # type: ignore[method-assign]
    views = torch.stack([setting.images(), setting.images()], dim=1).to(device)

    def forward(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # a CPU emulates it
            loss: torch.Tensor = byol(batch)
        return loss

    return lambda: our_step(forward, optimiser, byol.move_target, views)


def _unet(setting: Setting, compiled: bool, device: torch.device) -> Callable[[], Any]:
    unet = _laid_out(build_unet(setting.encoder, CLASSES), setting).to(device)
    network = Supervised(unet, jaccard_loss("jaccard"), averaged=False)
    if compiled:
        network.logits = torch.compile(network.logits, dynamic=False)  # type: ignore[method-assign]
    adam = adamw(unet.parameters(), lr=1e-4, weight_decay=0.0, scaled=False)
    images = setting.images().to(device)
    labels = torch.randint(CLASSES, (setting.batch, setting.size, setting.size), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # a CPU emulates it
            loss = network((images, labels))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0, foreach=True)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def _laid_out(network: nn.Module, setting: Setting) -> nn.Module:
    return network if setting.frames else network.to(memory_format=torch.channels_last)


def _views(device: torch.device, folder: Path, quick: bool, rows: list[Row], details: dict[str, Any]) -> None:
    """Two views of 128 slices, made on the device; against the BYOL step that eats them."""
    write_cines(folder / "views", 3, frames=2 if quick else 30)  # patients 1 and 2 do not train
    dataset = load_dataset("acdc", folder / "views")
    slices = Slices(store=dataset.store, positions=dataset.positions("train"))
    samples = ResidentViews(slices, (Views(ViewRecipe(), 224), Views(ViewRecipe(), 224)), device)
    count = 4 if quick else BYOL_2D.setting.batch
    items = np.random.default_rng(0).integers(len(slices), size=count).tolist()
    draws = [Draw(item, seed) for seed, item in enumerate(items)]
    seconds = _seconds(lambda: samples.__getitems__(draws), device, 5, 2 if quick else 20)
    rate = 2 * count / seconds
    steps = [found["samples/s"] for what, found in details.items() if what.startswith(str(BYOL_2D))]
    share = seconds * max(steps) / count if steps else 0.0
    met = rate >= VIEWS_PER_SECOND and share <= VIEWS_SHARE
    why = f"{rate / VIEWS_PER_SECOND:.0%} of the rate"
    rows.append(_row(VIEWS, f"{rate:.4g}/s, {share:.1%} of a BYOL step", target=VIEWS_TARGET, met=met, why=why))
    details["views/s"] = rate


def _protocol(folder: Path, quick: bool, rows: list[Row], details: dict[str, Any]) -> None:
    """Wall time of the two commands with the paper's settings, their start and the decoding of the data included.

    67 cines of 300 slices make 20,100; the U-Net's slices are those of the phantom, all labels.
    """
    subjects, shape = (3, {"frames": 2, "slices": 2}) if quick else (67, {})
    write_cines(folder / "cines", subjects, **shape)  # type: ignore[arg-type]
    pretraining = replace(
        pretrain_demo() if quick else pretrain_paper(), stage="specialist", data_root=folder / "cines",
        pool="everyone", epochs=1 if quick else 25, steps=1 if quick else None, checkpoint_every=0,
        out=folder / "pretrained",
    )  # fmt: skip
    segmentation = replace(
        segment_demo() if quick else segment_paper(), data_root=demo_root(),
        steps=2 if quick else 1050, workers=0 if quick else 8, checkpoint_every=0, out=folder / "segmented",
    )  # fmt: skip
    commands = (("pretrain", pretraining), ("segment", segmentation))
    for (what, limit), (module, config) in zip(PROTOCOLS.items(), commands, strict=True):
        seconds = run_command(module, config, folder / f"{module}-command")
        why = f"{seconds - limit:.0f} s too long"
        rows.append(_row(what, f"{seconds:.0f} s", target=_at_most(limit), met=seconds <= limit, why=why))
        details[what] = seconds


def _cells(folder: Path, quick: bool, rows: list[Row], details: dict[str, Any]) -> None:
    """A sweep whose processes share one GPU."""
    found = {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[0]
    for processes in (1,) if quick else (1, 2, 4):
        cfg = study_of(demo_root(), folder / f"cells-{processes}", quick)
        cfg = replace(cfg, device="auto", processes=processes)
        found[processes] = run_command("sweep", cfg, folder / f"cells-{processes}-command")
    rows.append(_row(CELLS, " -> ".join(f"{seconds:.0f} s" for seconds in found.values())))
    details["cells, s"] = found
