"""Evaluation: whole volumes of ACDC's size through a U-Net, against the reference code's inference."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import pinned
from benchmarks.outcome import Outcome, Row, faster
from benchmarks.rounds import Rates, take_turns
from segment.inference import segment_stack
from segment.model import ModelCard, build_unet

CLASSES = ["background", "RV", "MYO", "LV"]
SPACING = 1.5
OURS, REFERENCE = "fewslice", "reference inference"


def run(*, rounds: int, quick: bool) -> Outcome:
    """Time both encoders; `quick`: two small slices, once."""
    rows: list[Row] = []
    details: dict[str, Any] = {}
    shape = (2, 54, 64) if quick else (10, 216, 256)
    for encoder in ("resnet18",) if quick else ("resnet18", "resnet50"):
        torch.manual_seed(0)
        rates, flops = _rates(encoder, shape, 1 if quick else min(rounds, 2))
        name = encoder.replace("resnet", "ResNet-")
        what = f"U-Net evaluation of a volume, {name}, {'x'.join(map(str, shape))}"
        row = faster("evaluation", what, REFERENCE, rates.ratio(OURS, REFERENCE), 3.0)
        if not row.met:
            share = rates.median(OURS) * flops / matrix_product()
            row = replace(
                row, why=f"{row.why}: the same convolutions, ours at {share:.0%} of this core's matrix product"
            )
        rows.append(row)
        details[f"{what}, volumes/s"] = dict(rates.rates)
        details[f"{what}, FLOP"] = flops
    return Outcome(rows=rows, details=details)


def _rates(encoder: str, shape: tuple[int, int, int], rounds: int) -> tuple[Rates, int]:
    """Volumes per second of one pinned thread, the same volume and weights, no mirroring; our FLOP per volume."""
    volume = np.random.default_rng(0).integers(0, 400, shape, dtype=np.int16)
    theirs = build_unet(encoder, len(CLASSES)).eval()
    ours = build_unet(encoder, len(CLASSES)).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=torch.channels_last)
    card = ModelCard(
        encoder=encoder,
        norm="batch",
        classes=CLASSES,
        normalisation="image",
        statistics=(0.0, 1.0),
        spacing_mm=SPACING,
        dataset="",
        init="random",
    )
    contestants = {
        OURS: _once(lambda: segment_stack(ours, volume, (SPACING, SPACING), card)),
        REFERENCE: _once(lambda: reference_inference(theirs, volume)),
    }
    with FlopCounterMode(display=False) as counter:
        contestants[OURS]()
    with pinned():
        return take_turns(contestants, unit="volumes/s", rounds=rounds), counter.get_total_flops()


def matrix_product(side: int = 1024, rounds: int = 7) -> float:
    """FLOP/s of one pinned thread in the fp32 product of two large matrices: what a convolution can reach at best."""
    a, b = torch.randn(side, side), torch.randn(side, side)

    def product() -> int:
        a @ b
        return 2 * side**3

    with pinned():
        return take_turns({"product": product}, unit="FLOP", rounds=rounds).median("product")


def reference_inference(unet: nn.Module, volume: np.ndarray) -> np.ndarray:
    """The reference code's test script, its metric left out: slice by slice, autograd on, padded to 256 x 256.

    (slices, rows, columns) -> class indices. Source: shared/docs/PEERS.md, section 4 (inference_acdc.py).
    """
    predictions = []
    for image in volume:
        x = torch.from_numpy((image.astype(np.float32) / 255 - 67.27) / 84.66)[None, None]
        below, beside = (max(256, -(-n // 32) * 32) - n for n in image.shape)
        logits = unet(F.pad(x, (beside // 2, beside - beside // 2, below // 2, below - below // 2)))
        predictions.append(logits.softmax(dim=1).argmax(dim=1)[0].numpy())
    return np.stack(predictions)


def _once(segment: Callable[[], np.ndarray]) -> Callable[[], int]:
    def one_volume() -> int:
        segment()
        return 1

    return one_volume
