"""Segmentation of whole volumes of ACDC's size by a U-Net, against the inference of Kalapos and Gyires-Toth 2022."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import pinned
from benchmarks.outcome import Outcome, faster
from benchmarks.rounds import Rates, counted, take_turns
from segment.inference import segment_stack
from segment.model import ModelCard, build_unet

CLASSES = ["background", "RV", "MYO", "LV"]
SPACING = 1.5
OURS, REFERENCE = "fewslice", "reference inference"


def run(*, rounds: int, quick: bool) -> Outcome:
    """Time U-Nets with both encoders; `quick`: one encoder, two small slices, one round."""
    outcome = Outcome()
    shape = (2, 54, 64) if quick else (10, 216, 256)
    for encoder in ("resnet18",) if quick else ("resnet18", "resnet50"):
        torch.manual_seed(0)
        rates, flops = _rates(encoder, shape, min(rounds, 2))
        name = encoder.replace("resnet", "ResNet-")
        what = f"U-Net evaluation of a volume, {name}, {'x'.join(map(str, shape))}"
        share = rates.median(OURS) * flops / matrix_product()
        why = f"the same convolutions, ours at {share:.0%} of this core's matrix product"
        outcome.rows.append(faster(what, REFERENCE, rates.ratio(OURS, REFERENCE), 3.0, because=why))
        outcome.details.update({f"{what}, volumes/s": dict(rates.rates), f"{what}, FLOP": flops})
    return outcome


def _rates(encoder: str, shape: tuple[int, int, int], rounds: int) -> tuple[Rates, int]:
    """Volumes per second of one pinned thread with the same volume and weights, and FLOP per volume of fewslice."""
    volume = np.random.default_rng(0).integers(0, 400, shape, dtype=np.int16)
    theirs = build_unet(encoder, len(CLASSES)).eval()
    ours = build_unet(encoder, len(CLASSES)).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=torch.channels_last)
    card = ModelCard(
        encoder=encoder, norm="batch", classes=CLASSES, normalisation="image", statistics=(0.0, 1.0),
        spacing_mm=SPACING, dataset="", init="random",
    )  # fmt: skip
    contestants = {
        OURS: counted(1, segment_stack, ours, volume, (SPACING, SPACING), card),
        REFERENCE: counted(1, reference_inference, theirs, volume),
    }
    with FlopCounterMode(display=False) as counter:
        contestants[OURS]()
    with pinned():
        return take_turns(contestants, unit="volumes/s", rounds=rounds), counter.get_total_flops()


def matrix_product(side: int = 1024, rounds: int = 7) -> float:
    """FLOP/s of one pinned thread in the fp32 product of two large matrices: an upper limit for convolutions."""
    product = counted(2 * side**3, torch.matmul, torch.randn(side, side), torch.randn(side, side))
    with pinned():
        return take_turns({"product": product}, unit="FLOP", rounds=rounds).median("product")


def reference_inference(unet: nn.Module, volume: np.ndarray) -> np.ndarray:
    """Inference as in the code of Kalapos and Gyires-Toth 2022: slice by slice, autograd on, padded to 256 x 256.

    (slices, rows, columns) -> class indices. Source: their script inference_acdc.py, without its metric.
    """
    predictions = []
    for image in volume:
        x = torch.from_numpy((image.astype(np.float32) / 255 - 67.27) / 84.66)[None, None]
        rows, columns = (max(256, -(-n // 32) * 32) - n for n in image.shape)
        logits = unet(F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))
        predictions.append(logits.softmax(dim=1).argmax(dim=1)[0].numpy())
    return np.stack(predictions)
