"""Opening a folder of 4D `.nii.gz` files: the first time, later times, and with a growing number of files.

Each contestant runs in this process on one pinned thread, measured in processor time, on files in the page cache.
Imports are not counted. Those of torch are inside functions, as memory is measured in fresh processes without torch.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import deflate
import numpy as np

from benchmarks.machine import added_memory, pinned
from benchmarks.outcome import Outcome, Row, faster
from benchmarks.peers.readers import nibabel_cache, reference_cache
from benchmarks.phantom import write_cines
from benchmarks.rounds import Rates, counted, take_turns
from data.slices import load_dataset
from data.store import SliceStore

BATCH, SIZE = 64, 224
FIRST_FASTER = {"reference loader": 3.3, "nibabel float64": 2.4}
LATER_FASTER, LATER_MEMORY, SLICE_FASTER = 30.0, 1 / 5, 50.0


def run(*, rounds: int, quick: bool) -> Outcome:
    """Run all comparisons; `quick`: small cines."""
    subjects, shrunk = (2, {"frames": 2, "slices": 3, "matrix": (64, 72)}) if quick else (4, {})
    with tempfile.TemporaryDirectory() as name, pinned():
        folder = Path(name)
        root, small = folder / "acdc", folder / "small"
        write_cines(root, subjects, **shrunk)  # type: ignore[arg-type]
        write_cines(small, 1, frames=2, slices=2, matrix=(32, 32))
        filled = folder / "filled"
        store = _store(root, filled)
        opened = _opening(root, filled, folder / "empty", subjects, rounds)
        batch = _first_batch(root, filled, folder / "empty", rounds)
        slices = _random_slice(store, reference_cache(root), rounds)
        memory = _memory(root, small, filled, folder / "first")
        growth = _growth(folder, small, 10, quick, min(rounds, 3))
    inflating = f"inflating the files alone is {opened.ratio('first', 'inflating').median:.0%} of it"
    rows = [
        *(
            faster("first time", name, opened.ratio("first", name), least, because=inflating)
            for name, least in FIRST_FASTER.items()
        ),
        faster("later times", "reference loader", opened.ratio("later", "reference loader"), LATER_FASTER),
        _less_memory("later times", memory, LATER_MEMORY),
        _less_memory("first time", memory, None),
        *(
            faster(f"folder to first batch, {time}", "reference loader", batch.ratio(time, "reference loader"))
            for time in ("first", "later")
        ),
        _slice_row(slices),
        *growth.rows,
    ]
    rates = {"opening": opened, "first batch": batch, "random slice": slices}
    details = {name: asdict(value) for name, value in rates.items()}
    return Outcome(rows=rows, details={**details, "peak MB": memory, "growth": growth.details})


def _opening(root: Path, filled: Path, empty: Path, volumes: int, rounds: int) -> Rates:
    """Volumes opened per second. Later times include reading a batch, which the reference does not have to do."""
    turns = {
        "reference loader": counted(volumes, reference_cache, root),
        "nibabel float64": counted(volumes, nibabel_cache, root),
        "first": counted(volumes, _store, root, empty),
        "later": counted(volumes, _store_and_batch, root, filled),
        "inflating": counted(volumes, _inflate, root),
    }
    return take_turns(turns, unit="volumes", rounds=rounds, before=partial(_remove, empty))


def _inflate(root: Path) -> None:
    for file in root.rglob("*.nii.gz"):
        deflate.gzip_decompress(file.read_bytes())


def _first_batch(root: Path, filled: Path, empty: Path, rounds: int) -> Rates:
    """Rate of getting from a folder to the first collated batch of 64 two-view samples."""
    from torch.utils.data import default_collate

    from benchmarks.peers.loaders import reference
    from benchmarks.training import two_views
    from data.slices import Slices
    from engine.sampler import Sample

    batch = [Sample(item, seed) for seed, item in enumerate(_random_items(len(_store(root, filled))))]

    def ours(cache: Path) -> None:
        store = _store(root, cache)
        two_views(Slices(store=store, positions=np.arange(len(store))), SIZE).__getitems__(batch)

    def theirs() -> None:
        samples = reference(reference_cache(root), SIZE)
        default_collate([samples[sample] for sample in batch])

    turns = {
        "reference loader": counted(1, theirs),
        "first": counted(1, ours, empty),
        "later": counted(1, ours, filled),
    }
    return take_turns(turns, unit="first batches", rounds=rounds, before=partial(_remove, empty))


def _slice_row(rates: Rates) -> Row:
    ratio, share = rates.ratio("store", "reference cache"), rates.ratio("store", "contiguous arrays").median
    why = f"at {share:.0%} of the rate of copying contiguous arrays, {1e6 / rates.median('store'):.0f} us"
    return faster("random slice", "reference cache", ratio, SLICE_FASTER, because=why)


def _random_slice(store: SliceStore, cache: list[np.ndarray], rounds: int) -> Rates:
    """Slices per second, each copied to a separate contiguous array."""

    def fetch(repeats: int, slice_: Callable[[int], np.ndarray]) -> int:
        chosen = np.random.default_rng(0).integers(len(cache), size=500 * repeats).tolist()
        for i in chosen:
            np.array(slice_(i), order="C")
        return len(chosen)

    contiguous = [np.ascontiguousarray(store.image(i)) for i in range(len(store))]
    turns = {
        "reference cache": partial(fetch, 1, cache.__getitem__),
        "store": partial(fetch, 20, store.image),  # longer, as it is too fast to time otherwise
        "contiguous arrays": partial(fetch, 20, contiguous.__getitem__),
    }
    return take_turns(turns, unit="slices", rounds=rounds)


def _memory(root: Path, small: Path, filled: Path, unused: Path) -> dict[str, float]:
    """Peak memory in MB that each adds to a fresh process, from the folder to a batch of slices."""
    warm = partial(_warm_up, small, unused)
    return {
        "reference loader": added_memory(warm, partial(reference_cache, root)),
        "nibabel float64": added_memory(warm, partial(nibabel_cache, root)),
        "first time": added_memory(warm, partial(_store_and_batch, root, unused)),
        "later times": added_memory(warm, partial(_store_and_batch, root, filled)),
    }


def _growth(folder: Path, small: Path, times: int, quick: bool, rounds: int) -> Outcome:
    """Cost per subject with 10 and 100 subjects, of two frames each to save time."""
    few = 1 if quick else 10
    shrunk = {"slices": 2, "matrix": (32, 32)} if quick else {}
    counts = (few, times * few)
    roots = {count: folder / f"grown{count}" for count in counts}
    empty, filled = folder / "grown empty", {count: folder / f"grown filled{count}" for count in counts}
    for count, root in roots.items():
        write_cines(root, count, frames=2, **shrunk)  # type: ignore[arg-type]
        _store(root, filled[count])
    turns = {f"first, {count}": counted(count, _store, roots[count], empty) for count in counts}
    turns |= {f"later, {n}": counted(n, _store_and_batch, roots[n], filled[n]) for n in counts}
    rates = take_turns(turns, unit="subjects", rounds=rounds, before=partial(_remove, empty))
    warm = partial(_warm_up, small, folder / "grown warm")
    memory = {count: added_memory(warm, partial(_store_and_batch, roots[count], filled[count])) for count in counts}
    ms = {name: 1000 / rates.median(name) for name in turns}
    values = {
        "first time, ms per subject": [ms[f"first, {count}"] for count in counts],
        "later times, ms per subject": [ms[f"later, {count}"] for count in counts],
        "later times, peak MB": [memory[count] for count in counts],
    }
    subjects = f"{counts[0]} -> {counts[1]} subjects of 2 frames"
    rows = [
        Row(what=f"{what}: {subjects}", against="fewslice", value=f"{first:.3g} -> {last:.3g}")
        for what, (first, last) in values.items()
    ]
    return Outcome(rows=rows, details={**values, **asdict(rates)})


def _less_memory(which: str, memory: dict[str, float], at_most: float | None) -> Row:
    ours, theirs = (max(memory[name], 0.1) for name in (which, "reference loader"))  # smaller values cannot be measured
    met = None if at_most is None else ours <= at_most * theirs
    why = f"{ours / (theirs * at_most) - 1:.0%} above" if at_most and met is False else ""
    return Row(
        what=f"peak memory, {which}", against="reference loader", met=met, why=why,
        target="" if at_most is None else f"<= 1/{1 / at_most:g}",
        value=f"1/{theirs / ours:.3g} ({ours:.3g} of {theirs:.3g} MB)",
    )  # fmt: skip


def _store(root: Path, cache: Path) -> SliceStore:
    """The packed store of fewslice, with this cache folder."""
    os.environ["FEWSLICE_CACHE"] = str(cache)
    return load_dataset("acdc", root).store


def _store_and_batch(root: Path, cache: Path) -> tuple[SliceStore, np.ndarray]:
    store = _store(root, cache)
    return store, np.stack([store.image(i) for i in _random_items(len(store))])


def _warm_up(root: Path, cache: Path) -> None:
    """Run everything once on a tiny folder, so that imports do not count as memory of the data."""
    _store_and_batch(root, cache)
    reference_cache(root)
    nibabel_cache(root)


def _random_items(count: int) -> list[int]:
    return list(np.random.default_rng(1).integers(count, size=BATCH).tolist())


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
