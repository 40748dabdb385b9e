"""From a folder of 4D `.nii.gz` files to slices in hand: the first time, every later time, and as it grows.

Every contestant runs in this process on one pinned thread, by the processor's clock, on files that lie in the page
cache. Imports are not counted; those of torch are inside functions, as memory is measured in fresh processes that
need none.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import deflate
import numpy as np

from benchmarks.machine import added_memory, pinned
from benchmarks.outcome import Outcome, Row, faster
from benchmarks.peers.readers import nibabel_cache, reference_cache
from benchmarks.phantom import write_cines
from benchmarks.rounds import Rates, take_turns
from data.datasets import load_dataset
from data.store import SliceStore

BATCH, SIZE = 64, 224
FIRST_FASTER = {"reference loader": 3.3, "nibabel float64": 2.4}
LATER_FASTER, LATER_MEMORY, SLICE_FASTER = 30.0, 1 / 5, 50.0


def run(*, rounds: int, quick: bool) -> Outcome:
    """All of it; `quick` shrinks the cines."""
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
    rows = [
        *(_first_row(opened, name, least) for name, least in FIRST_FASTER.items()),
        faster("open", "later times", "reference loader", opened.ratio("later", "reference loader"), LATER_FASTER),
        _less_memory("later times", memory, LATER_MEMORY),
        _less_memory("first time", memory, None),
        *(
            faster("open", f"folder to first batch, {time}", "reference loader", batch.ratio(time, "reference loader"))
            for time in ("first", "later")
        ),
        _slice_row(slices),
        *growth.rows,
    ]
    rates = {"opening": opened, "first batch": batch, "random slice": slices}
    details = {what: asdict(these) for what, these in rates.items()}
    return Outcome(rows=rows, details={**details, "peak MB": memory, "growth": growth.details})


def _opening(root: Path, filled: Path, empty: Path, volumes: int, rounds: int) -> Rates:
    """Volumes made ready per second. Later times read a batch as well, which the reference is spared."""

    def counted(function: Callable[[], object]) -> Callable[[], int]:
        def turn() -> int:
            function()
            return volumes

        return turn

    contestants: dict[str, Callable[[], object]] = {
        "reference loader": partial(reference_cache, root),
        "nibabel float64": partial(nibabel_cache, root),
        "first": partial(_store, root, empty),
        "later": partial(_store_and_batch, root, filled),
        "inflating": partial(_inflate, root),
    }
    turns = {name: counted(function) for name, function in contestants.items()}
    return take_turns(turns, unit="volumes", rounds=rounds, before=partial(_remove, empty))


def _first_row(rates: Rates, peer: str, at_least: float) -> Row:
    row = faster("open", "first time", peer, rates.ratio("first", peer), at_least)
    why = f"{row.why}: inflating the files alone is {rates.ratio('first', 'inflating').median:.0%} of it"
    return row if row.met else replace(row, why=why)


def _inflate(root: Path) -> None:
    for file in root.rglob("*.nii.gz"):
        deflate.gzip_decompress(file.read_bytes())


def _first_batch(root: Path, filled: Path, empty: Path, rounds: int) -> Rates:
    """Times per second that a folder becomes a collated batch of 64 two-view samples."""
    from torch.utils.data import default_collate

    from benchmarks.peers.loaders import reference
    from data.samples import Slices, TwoViews
    from data.views import ViewRecipe, Views
    from engine.order import Draw

    draws = [Draw(int(k), seed) for seed, k in enumerate(_some(len(_store(root, filled))))]

    def ours(cache: Path) -> int:
        store = _store(root, cache)
        slices = Slices(store=store, positions=np.arange(len(store)))
        samples = TwoViews(slices, Views(ViewRecipe(), SIZE))
        samples.__getitems__(draws)
        return 1

    def theirs() -> int:
        samples = reference(reference_cache(root), SIZE)
        default_collate([samples[draw] for draw in draws])
        return 1

    turns: dict[str, Callable[[], int]] = {
        "reference loader": theirs,
        "first": partial(ours, empty),
        "later": partial(ours, filled),
    }
    return take_turns(turns, unit="first batches", rounds=rounds, before=partial(_remove, empty))


def _slice_row(rates: Rates) -> Row:
    row = faster("open", "random slice", "reference cache", rates.ratio("store", "reference cache"), SLICE_FASTER)
    share = rates.ratio("store", "contiguous arrays").median
    why = f"{row.why}: at {share:.0%} of the rate of copying contiguous arrays, {1e6 / rates.median('store'):.0f} us"
    return row if row.met else replace(row, why=why)


def _random_slice(store: SliceStore, cache: list[np.ndarray], rounds: int) -> Rates:
    """Slices per second, each copied to an array of its own, contiguous."""

    def fetch(repeats: int, slice_: Callable[[int], np.ndarray]) -> int:
        chosen = np.random.default_rng(0).integers(len(cache), size=500 * repeats).tolist()
        for i in chosen:
            np.array(slice_(i), order="C")
        return len(chosen)

    contiguous = [np.ascontiguousarray(store.image(i)) for i in range(len(store))]
    turns = {
        "reference cache": partial(fetch, 1, cache.__getitem__),
        "store": partial(fetch, 20, store.image),  # else too short to time
        "contiguous arrays": partial(fetch, 20, contiguous.__getitem__),
    }
    return take_turns(turns, unit="slices", rounds=rounds)


def _memory(root: Path, small: Path, filled: Path, unused: Path) -> dict[str, float]:
    """Peak MB that each adds to a fresh process: folder to a batch of slices in hand."""
    warm = partial(_warm_up, small, unused)
    return {
        "reference loader": added_memory(warm, partial(reference_cache, root)),
        "nibabel float64": added_memory(warm, partial(nibabel_cache, root)),
        "first time": added_memory(warm, partial(_store_and_batch, root, unused)),
        "later times": added_memory(warm, partial(_store_and_batch, root, filled)),
    }


def _growth(folder: Path, small: Path, times: int, quick: bool, rounds: int) -> Outcome:
    """10 and 100 subjects, with two frames each for the sake of time: what grows is what each subject costs."""
    few = 1 if quick else 10
    shrunk = {"slices": 2, "matrix": (32, 32)} if quick else {}
    counts = (few, times * few)
    roots = {count: folder / f"grown{count}" for count in counts}
    empty, filled = folder / "grown empty", {count: folder / f"grown filled{count}" for count in counts}
    for count, root in roots.items():
        write_cines(root, count, frames=2, **shrunk)  # type: ignore[arg-type]
        _store(root, filled[count])

    def turn(open_: Callable[[Path, Path], object], count: int, cache: Path) -> int:
        open_(roots[count], cache)
        return count

    turns = {f"first, {count}": partial(turn, _store, count, empty) for count in counts}
    turns |= {f"later, {count}": partial(turn, _store_and_batch, count, filled[count]) for count in counts}
    rates = take_turns(turns, unit="subjects", rounds=rounds, before=partial(_remove, empty))
    warm = partial(_warm_up, small, folder / "grown warm")
    memory = {count: added_memory(warm, partial(_store_and_batch, roots[count], filled[count])) for count in counts}
    ms = {name: 1000 / rates.median(name) for name in turns}
    values = {
        "first time, ms per subject": [ms[f"first, {count}"] for count in counts],
        "later times, ms per subject": [ms[f"later, {count}"] for count in counts],
        "later times, peak MB": [memory[count] for count in counts],
    }
    rows = [
        Row(
            benchmark="open",
            what=f"{what}: {counts[0]} -> {counts[1]} subjects of 2 frames",
            against="itself",
            target="",
            value=f"{values_[0]:.3g} -> {values_[1]:.3g}",
            met=None,
        )
        for what, values_ in values.items()
    ]
    return Outcome(rows=rows, details={**values, **asdict(rates)})


def _less_memory(which: str, memory: dict[str, float], at_most: float | None) -> Row:
    ours, theirs = (max(memory[name], 0.1) for name in (which, "reference loader"))  # less cannot be told
    met = None if at_most is None else ours <= at_most * theirs
    return Row(
        benchmark="open",
        what=f"peak memory, {which}",
        against="reference loader",
        target="" if at_most is None else f"<= 1/{1 / at_most:g}",
        value=f"1/{theirs / ours:.3g} ({ours:.3g} of {theirs:.3g} MB)",
        met=met,
        why=f"{ours / (theirs * at_most) - 1:.0%} above" if at_most and met is False else "",
    )


def _store(root: Path, cache: Path) -> SliceStore:
    """Ours: the data set's packed store, from the cache folder given."""
    os.environ["FEWSLICE_CACHE"] = str(cache)
    return load_dataset("acdc", root).store


def _store_and_batch(root: Path, cache: Path) -> tuple[SliceStore, np.ndarray]:
    store = _store(root, cache)
    return store, np.stack([store.image(i) for i in _some(len(store))])


def _warm_up(root: Path, cache: Path) -> None:
    """Everything once on a tiny folder, so that no import counts as memory of the data."""
    _store_and_batch(root, cache)
    reference_cache(root)
    nibabel_cache(root)


def _some(count: int) -> list[int]:
    """The positions of a batch."""
    return list(np.random.default_rng(1).integers(count, size=BATCH).tolist())


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
