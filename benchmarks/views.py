"""Rate of making two random views of a slice, or of a 16-frame clip, on one core and on all cores."""

import os
import tempfile
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, default_collate

from benchmarks.machine import pinned
from benchmarks.outcome import Outcome, faster
from benchmarks.peers import loaders
from benchmarks.peers.readers import reference_cache
from benchmarks.phantom import write_cines, write_exams
from benchmarks.rounds import Rates, counted, take_turns
from benchmarks.training import batch_loader, two_views
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.readers.exams import ExamSet, load_exams
from data.samples.clips import TwoClips, draw_frames
from data.slices import Slices, load_dataset
from data.store import SliceStore
from engine.sampler import Sample

BATCH, CLIP_BATCH, CLIP_FRAMES, SIZE = 64, 4, 16, 224
FASTER = {
    "reference loader": 8.0, "lightly": 6.0, "MONAI": 4.0, "albumentations float32": 3.0,
    "albumentations float32, unseeded": None, "albumentations float32, stock": None, "torchvision v2": None,
}  # fmt: skip


def run(*, rounds: int, quick: bool) -> Outcome:
    """Run all comparisons; `quick`: small data and batches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FEWSLICE_CACHE"] = str(folder / "cache")
        cine, exams = folder / "acdc", folder / "exams"
        write_cines(cine, 1 if quick else 2, **({"frames": 2, "slices": 3} if quick else {}))  # type: ignore[arg-type]
        write_exams(exams, 2 if quick else 8)
        store = load_dataset("acdc", cine).store
        contestants = _slice_contestants(store, reference_cache(cine))
        clips = _clip_contestants(load_exams(exams))
        batches = 1 if quick else 4
        with pinned():
            turns = {name: partial(_make, peer, len(store), BATCH, batches) for name, peer in contestants.items()}
            slice_rates = take_turns(turns, unit="views", rounds=rounds)
            turns = {name: partial(_make, peer, 2 if quick else 8, CLIP_BATCH, 1) for name, peer in clips.items()}
            clip_rates = take_turns(turns, unit="views of 16 frames", rounds=rounds)
        workers = os.cpu_count() or 1
        loader_contestants = {name: contestants[name] for name in ("ours", "lightly")}
        loader_rates = _all_cores(loader_contestants, len(store), workers, 2 if quick else 24, rounds)
    rows = [
        *(
            faster("two views of a slice, one core", name, slice_rates.ratio("ours", name), least)
            for name, least in FASTER.items()
        ),
        faster(f"the same, DataLoader, {workers} workers", "lightly", loader_rates.ratio("ours", "lightly")),
        *(
            faster(f"two views of a {CLIP_FRAMES}-frame clip, one core", name, clip_rates.ratio("ours", name))
            for name in clips
            if name != "ours"
        ),
    ]
    rates = {"one core": slice_rates, "all cores": loader_rates, "clips": clip_rates}
    return Outcome(rows=rows, details={name: asdict(value) for name, value in rates.items()})


def _slice_contestants(store: SliceStore, cache: list[np.ndarray]) -> dict[str, Dataset[Any]]:
    """Contestants, indexed by `Sample`. Peers read slices from RAM, in the form they need; fewslice reads its store."""
    stored = [np.array(store.image(i)) for i in range(len(store))]
    stacked = np.stack(stored)
    unit = stacked.astype(np.float32) / stacked.max()
    z_scored = (stacked - stacked.mean((1, 2), keepdims=True)) / stacked.std((1, 2), keepdims=True)
    slices = Slices(store=store, positions=np.arange(len(store)))
    return {
        "ours": two_views(slices, SIZE),
        "reference loader": loaders.reference(cache, SIZE),
        "lightly": loaders.lightly((255 * unit).astype(np.uint8), SIZE),
        "MONAI": loaders.monai(z_scored.astype(np.float32), SIZE),
        "albumentations float32": loaders.albumentations(stored, SIZE, seeded=True),
        "albumentations float32, unseeded": loaders.albumentations(stored, SIZE, seeded=False),
        "albumentations float32, stock": loaders.albumentations_stock(unit, SIZE),
        "torchvision v2": loaders.torchvision(unit, SIZE),
    }


def _clip_contestants(exams: ExamSet) -> dict[str, Dataset[Any]]:
    """Contestants for clips of 16 of 30 frames of 256 x 256 pixels; augmentation as for slices, without blur."""
    frames = np.stack([exams.frames(i) for i in range(len(exams))])
    grey = np.clip(frames * (255 / frames.max()), 0, 255).astype(np.uint8)
    rng = np.random.default_rng(0)

    def clip(pixels: np.ndarray, i: int) -> Any:
        return pixels[i, draw_frames(pixels.shape[1], CLIP_FRAMES, rng)]

    views = Augmenter(Augmentation(), SIZE)
    return {
        "ours": TwoClips(exams, np.arange(len(exams)), (views, views), CLIP_FRAMES),
        "albumentations float32": loaders.albumentations_clip(partial(clip, frames), exams.statistics(0), SIZE),
        "PIL by frame (as lightly)": loaders.pil_clip(partial(clip, grey), SIZE),
    }


def _make(samples: Any, count: int, size: int, batches: int) -> int:
    """Make collated batches as a DataLoader does, at once if the data set supports that; return the number of views."""
    for batch in _batches(count, size, batches):
        if hasattr(samples, "__getitems__"):
            samples.__getitems__(batch)
        else:
            default_collate([samples[sample] for sample in batch])
    return 2 * size * batches


def _all_cores(contestants: dict[str, Dataset[Any]], count: int, workers: int, batches: int, rounds: int) -> Rates:
    """Views per second of wall time; worker processes persist from round to round."""
    turns = {}
    for name, samples in contestants.items():
        loader = batch_loader(samples, _batches(count, BATCH, batches), workers)
        turns[name] = counted(2 * BATCH * batches, deque, loader, 0)  # a deque of length 0 only reads the batches
    return take_turns(turns, unit="views", rounds=rounds, clock="wall")


def _batches(count: int, size: int, batches: int) -> list[list[Sample]]:
    """Batches of samples, the same for each contestant."""
    rng = np.random.default_rng(0)
    items, seeds = rng.integers(count, size=(batches, size)), rng.integers(2**32, size=(batches, size))
    return [list(map(Sample, *pair)) for pair in zip(items.tolist(), seeds.tolist(), strict=True)]
