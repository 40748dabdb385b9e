"""Packed slice store: every file decoded once into one memory-mapped file, one slice one contiguous read."""

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from core.cache import cache_folder
from core.contents import content_digests
from core.errors import UserError, first_and_count
from core.files import write_json
from core.locks import Locked, file_lock
from core.progress import progress
from data.duplicates import fingerprint, fingerprint_of_channels
from data.preprocessing import mean_and_std, narrow
from data.readers.channels import OF_CHANNELS, read_channels
from data.readers.colour import Palettes
from data.readers.images import Volume, one_channel, read_shape, read_volume
from data.readers.label_maps import IGNORED, ReadingOptions, counts_of, read_labels, refuse_mixed_masks

FORMAT = 4  # part of every key: raise it when the layout of the packed file or of its table changes
ALIGNMENT = 64  # bytes; each slice starts on a multiple
SOURCE = ["file", "label_file", "frame", "slice"]  # the columns that say where a slice comes from
PACKED = {
    **{"rows": int, "columns": int, "row_mm": float, "column_mm": float, "slice_mm": float, "dtype": str},
    **{"offset": int, "label_offset": int, "mean": float, "std": float, "label_values": str, "digest": str},
}


class SliceStore:
    """Slices by row position in ``table``.

    ``table`` is the index plus: rows, columns; row_mm, column_mm, slice_mm; dtype (uint8, int16, uint16 or
    float32); offset, label_offset (bytes, -1 without label); mean, std of the slice in file units (std is 0
    for a constant slice); label_values (those present but for ignored voxels, "0 1 3", or ""); digest (of its
    volume, see ``data.duplicates.fingerprint``). Of several channels mean, std and digest are of the first one (the
    digest: of the first that is not constant), and mean_1, std_1, mean_2, ... of the others.
    """

    def __init__(self, table: pd.DataFrame, file: Path):
        self.table = table
        self.file = file
        self.channels = len(statistics_columns(table))
        """Number of channels of a slice."""
        self._bytes = np.asarray(np.memmap(file, np.uint8, mode="r"))
        # Plain arrays: a pandas look-up per slice costs more than reading the slice.
        self._shapes = list(zip(table["rows"].tolist(), table["columns"].tolist(), strict=True))
        self._dtypes = [np.dtype(name) for name in table["dtype"].tolist()]
        self._offsets = table["offset"].tolist()
        self._label_offsets = table["label_offset"].tolist()

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def key(self) -> str:
        """Digest of the files' contents and the slices listed, see ``open_store``."""
        return self.file.parent.name

    def __reduce__(self) -> tuple:
        return SliceStore, (self.table, self.file)  # a worker process opens the map anew, it is never copied

    def image(self, i: int) -> np.ndarray:
        """(rows, columns), of several channels (channels, rows, columns): a read-only view in the file's own dtype and
        units."""
        shape = self._shapes[i] if self.channels == 1 else (self.channels, *self._shapes[i])
        return self._view(self._offsets[i], shape, self._dtypes[i])

    def label(self, i: int) -> np.ndarray:
        """(rows, columns) uint8 class indices or ``label_maps.IGNORED``, a read-only view.

        Raises:
            ValueError: if slice i has no labels.
        """
        if self._label_offsets[i] < 0:
            row = self.table.iloc[i]
            raise ValueError(f"slice {row['slice']} of {row['file']} has no label map")
        return self._view(self._label_offsets[i], self._shapes[i], np.dtype(np.uint8))

    def _view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return self._bytes[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def open_store(table: pd.DataFrame, root: Path, options: ReadingOptions | None = None) -> SliceStore:
    """Open the packed slices of an index table, packing them first where the cache has none.

    The store lies in ``cache_folder()/slices`` under a key made of the format, the options, the files' names below
    ``root``, sizes and contents, and the slices listed: splits, groups and the place of ``root`` may change and it
    still serves.
    Packing keeps one volume in memory at a time. Processes that start together wait for the one that packs; where the
    file system has no locks each packs its own and the first to finish wins. A half-written store is never read.

    Args:
        table: as ``index_acdc`` or ``index_folder`` return it.
        root: the folder its file names are relative to.
        options: how files are read; those the table was made with.

    Raises:
        UserError: if files cannot be used: unreadable, NaN or infinite values, one value everywhere, a label map
            that is not on the grid of its image, label values that are no class indices. The message names the first
            and counts the others.
        OSError: naming the cache folder, if it cannot be written.
    """
    options = options or ReadingOptions()
    folder = cache_folder() / "slices"
    place = folder / files_digest(table, root, options)
    if (packed := _read(place)) is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(place.with_suffix(".lock"), wait=True) as alone:
                if (packed := _read(place)) is None:
                    if alone:
                        _remove_leftovers(folder, place.name)
                    packed = _pack(table, root, place, options)
        except OSError as error:
            message = f"{error.strerror or error}; the slice cache {folder} must be writable and have room"
            raise OSError(error.errno, f"{message}: set FEWSLICE_CACHE to a folder on another disk") from error
    with contextlib.suppress(OSError):
        os.utime(place / "size")  # when it was last used, for `python -m data.cache`
    columns = {str(name): column.to_numpy() for name, column in packed.items()}
    return SliceStore(table.reset_index(drop=True).assign(**columns), place / "slices.bin")


def files_digest(table: pd.DataFrame, root: Path, options: ReadingOptions | None = None) -> str:
    """Digest of the format, the options, the slices listed and the files' contents.

    Time stamps and the place of `root` do not count: a copy of the data has the same digest.
    """
    digest = hashlib.blake2b(f"format {FORMAT} {options or ''}\n".encode(), digest_size=16)
    sources = SOURCE + [name for name in OF_CHANNELS if name in table]
    for name in sources:
        digest.update(os.fsencode("\n".join(map(str, table[name].tolist()))) + b"\0")  # iterating a column is slow
    others = chain.from_iterable(table["channel_files"].unique()) if "channel_files" in table else ()
    names = sorted({*table["file"].unique(), *table["label_file"].unique(), *others} - {""})
    try:
        for name, content in zip(names, content_digests(root, names), strict=True):
            digest.update(os.fsencode(f"{name} {content}\n"))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be opened ({error.strerror}): check the data set") from None
    return digest.hexdigest()


def _read(place: Path) -> pd.DataFrame | None:
    """The table of a finished store, None if there is none or its data are incomplete."""
    try:
        packed = pd.read_csv(place / "table.csv", dtype=PACKED, keep_default_na=False, float_precision="round_trip")
        whole = (place / "slices.bin").stat().st_size == int((place / "size").read_text())
    except (OSError, ValueError):
        return None
    return packed if whole else None


def _remove_leftovers(folder: Path, key: str) -> None:
    """Remove the temporary folders whose builders are dead, that is, whose lock is free or ours (that of `key`)."""
    for temporary in folder.glob("*.tmp-*"):
        with contextlib.suppress(Locked), contextlib.ExitStack() as held:
            if temporary.stem == key or held.enter_context(file_lock(temporary.with_suffix(".lock"), wait=False)):
                shutil.rmtree(temporary, ignore_errors=True)


def _pack(table: pd.DataFrame, root: Path, place: Path, options: ReadingOptions) -> pd.DataFrame:
    temporary = Path(tempfile.mkdtemp(prefix=f"{place.name}.tmp-", dir=place.parent))
    problems: list[UserError] = []
    rows: list[tuple] = [()] * len(table)
    scaled: list[Path] = []
    palettes = Palettes()
    try:
        with open(temporary / "slices.bin", "wb") as out:
            grouped = table.reset_index(drop=True).groupby(["file", "label_file"], sort=False)
            for _, slices in progress(grouped, "packing slices", grouped.ngroups):
                try:
                    packed = _pack_file(out, root, slices, options, scaled, palettes)
                    for position, row in zip(slices.index, packed, strict=True):
                        rows[position] = row
                except UserError as error:
                    problems.append(error)  # go on, so that one message counts them all
            size = out.tell()
        if problems:
            raise UserError(f"{first_and_count(problems)}; `python -m data.inspect` lists every problem")
        columns = _packed_columns(max(map(len, table["channels"])) if "channels" in table else 1)
        result = pd.DataFrame(rows, columns=list(columns)).astype(columns)
        refuse_mixed_masks(scaled, max(int(value) for line in {*result["label_values"], "0"} for value in line.split()))
        result.to_csv(temporary / "table.csv", index=False)
        (temporary / "size").write_text(str(size))
        write_json(temporary / "origin.json", {"format": FORMAT, "root": str(root.resolve())})
        if place.exists() and _read(place) is None:  # cut short after it was finished
            shutil.rmtree(place)
        try:
            temporary.rename(place)
        except OSError:
            if _read(place) is None:  # else, without locks, another process was first with the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def _pack_file(
    out: BinaryIO,
    root: Path,
    table: pd.DataFrame,
    options: ReadingOptions,
    scaled: list[Path],
    palettes: Palettes,
) -> list[tuple]:
    """Append the slices of one file, each followed by its labels; return their rows of the packed table.

    A label map of 0 and 255 is added to `scaled`, the colours of any to `palettes`.
    """
    file, label_file = root / table["file"].iloc[0], table["label_file"].iloc[0]
    volume, *others = _read_volumes(root, table, options)
    stack, mm = volume.stack, volume.shape.slice_spacing
    if others:
        stack = np.stack([stack, *(other.stack for other in others)], axis=2)
    if stack.min() == stack.max():
        raise UserError(f"{file} has the value {stack.flat[0]} everywhere: remove it, or export it again")
    labels = None
    if label_file:
        channel = int(table["frame"].iloc[0]) - 1
        of_channel = len(stack) > 1 == table["frame"].nunique() and read_shape(root / label_file).frames == 1
        grid = one_channel(volume, channel) if of_channel else volume
        labels, is_scaled = read_labels(root / label_file, grid, options)
        if options.mask_threshold is None and not is_scaled:
            palettes.add(root / label_file, labels)
        labels = np.broadcast_to(labels, volume.stack.shape)
        scaled += [root / label_file] if is_scaled else []
    narrowed = narrow(stack)
    rows = []
    digests = _digests(narrowed, table)
    for frame, z in zip(table["frame"].tolist(), table["slice"].tolist(), strict=True):
        t = frame - 1 if len(stack) > 1 else 0  # ACDC's single-frame files keep their number in the cine
        image = np.ascontiguousarray(narrowed[t, z])
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise UserError(f"{file} holds NaN or infinite values (slice {z}): repair or remove it")
        offset = _append(out, image)
        label_offset, values = -1, ""
        if labels is not None:
            label_offset = _append(out, labels[t, z])
            values = " ".join(map(str, np.flatnonzero(counts_of(labels[t, z])[:IGNORED])))
        first, *of_others = map(mean_and_std, image if others else [image])
        row = (*image.shape[-2:], *mm, image.dtype.name, offset, label_offset, *first, values, digests[frame])
        rows.append((*row, *chain.from_iterable(of_others)))
    return rows


def _read_volumes(root: Path, table: pd.DataFrame, options: ReadingOptions) -> list[Volume]:
    """The image of some rows of an index, or each of its channels."""
    first = table.iloc[0]
    if "channels" not in table or not first["channels"]:
        return [replace(read_volume(root / first["file"]), slicing=options.slice_axis)]
    files = [root / name for name in first["channel_files"]]
    volumes = read_channels(files, first["channels"], options.slice_axis)
    for volume in volumes if len(files) > 1 else ():
        if volume.stack.min() == volume.stack.max():  # a sequence that was not acquired, perhaps
            raise UserError(
                f"{volume.path} has the value {volume.stack.flat[0]} everywhere: remove it, or leave it out"
            )
    return volumes


def statistics_columns(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Columns of mean and standard deviation of each channel in a store's table."""
    return _statistics_columns(sum(name.startswith("mean") for name in table.columns))


def _statistics_columns(channels: int) -> list[tuple[str, str]]:
    return [("mean", "std"), *((f"mean_{k}", f"std_{k}") for k in range(1, channels))]


def _packed_columns(channels: int) -> dict[str, type]:
    return {**PACKED, **dict.fromkeys(chain.from_iterable(_statistics_columns(channels)[1:]), float)}


def _digests(stack: np.ndarray, table: pd.DataFrame) -> dict[int, str]:
    """The fingerprint of the listed slices of each listed frame; of several channels, of the first not constant."""
    listed: dict[int, list[np.ndarray]] = {}
    for frame, z in zip(table["frame"].tolist(), table["slice"].tolist(), strict=True):
        listed.setdefault(frame, []).append(stack[frame - 1 if len(stack) > 1 else 0, z])
    if stack.ndim == 4:
        return {frame: fingerprint(slices) for frame, slices in listed.items()}
    return {frame: fingerprint_of_channels([*zip(*slices, strict=True)]) for frame, slices in listed.items()}


def _append(out: BinaryIO, values: np.ndarray) -> int:
    out.write(b"\0" * (-out.tell() % ALIGNMENT))
    offset = out.tell()
    out.write(np.ascontiguousarray(values).data)
    return offset
