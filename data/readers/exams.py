"""Exams: stacks or cines of frames with one label each, in two layouts.

* "mrnet": MRNet's folders of ``.npy`` files, see ``data.readers.mrnet``; memory-mapped, without a copy.
* "exams": NIfTI volumes and cines that a csv names, or every one in a folder; packed once, see ``data.store``.
  The frames of a 3D volume are its slices, those of a 4D cine the time frames of its middle slice.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from core.cache import cache_folder
from core.errors import UserError, first_and_count
from core.files import write_atomically
from core.progress import progress
from data.duplicates import fingerprint
from data.readers.exam_list import list_exams, read_exams_csv
from data.readers.geometry import SliceAxis, check_planes
from data.readers.images import NIFTI_SUFFIXES, VolumeShape, read_shape, read_volume
from data.readers.label_maps import ReadingOptions
from data.readers.mrnet import check_frames, index_mrnet, read_array
from data.splits import SplitTable
from data.store import SliceStore, files_digest, open_store

log = logging.getLogger("fewslice")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExamSet(SplitTable):
    """Exams, their labels and their splits.

    ``table`` has one row per exam: exam (str, unique), subject (str), split ("train", "val", "test"), file (str,
    relative to root), label (0, 1; -1 without a task), frame_count, mean and std (of the exam, file
    units); MRNet's has digest (of `data.duplicates.fingerprint`) as well. ``key`` is a digest of the files. ``task`` is
    "" if the layout has none.
    """

    task: str
    key: str
    store: SliceStore | None = None
    """Packed frames of "exams"; MRNet's files are read without a copy."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def digest(self) -> str:
        """Digest of the files' contents."""
        return self.key

    @property
    def labelled_subjects(self) -> set[str]:
        """The subjects that have labels."""
        return {*self.table.loc[self.table["label"] >= 0, "subject"]}

    def images(self) -> pd.DataFrame:
        """subject, split, file and digest, a row for each exam, or for each frame of a cine."""
        exams = self.table[["subject", "split", "file"]]
        if self.store is None:
            return exams.assign(digest=self.table["digest"])
        frames = self.store.table.drop_duplicates(["file", "frame"])[["file", "digest"]]
        return exams.merge(frames, on="file")

    @cached_property
    def labels(self) -> np.ndarray:
        """(exams,) int64: 0, 1, or -1."""
        return self.table["label"].to_numpy(np.int64)

    def statistics(self, i: int) -> tuple[float, float]:
        """(mean, standard deviation) over all frames of exam i, file units."""
        return self._rows[i][2:]

    def frames(self, i: int) -> np.ndarray:
        """(frames, rows, columns) of exam i in file units, memory-mapped and read-only."""
        if self.store is None:
            # Opened anew each time: a thousand maps held open would exhaust the process's file descriptors.
            return read_array(self.root / self.table["file"].to_numpy()[i])
        first, count = self._rows[i][:2]
        offset, following = self.store.table["offset"].to_numpy()[[first, first + 1]].tolist()
        frame = self.store.image(first)
        packed = np.memmap(self.store.file, np.uint8, mode="r")
        return np.ndarray((count, *frame.shape), frame.dtype, packed, offset, (following - offset, *frame.strides))

    @cached_property
    def _rows(self) -> list[tuple[int, int, float, float]]:
        """First row in the store, number of frames, mean and standard deviation of each exam: faster than a table."""
        counts = self.table["frame_count"]
        return list(zip(counts.cumsum() - counts, counts, self.table["mean"], self.table["std"], strict=True))


def load_mrnet(
    root: Path, *, task: str | None = "acl", plane: str = "sagittal", split_seed: int = 0, unlabelled: bool = False
) -> ExamSet:
    """Index exams in MRNet's layout, check every one of them, split them by subject.

    The first call on a folder reads all of it (checks and statistics, kept in ``cache_folder()``); later ones
    read headers. The official validation set is the test set, and 10 % of each class of the training exams, drawn by
    seed, validate.

    Args:
        task: name of the csv files; None lists all exams without labels and without inner validation set.
        unlabelled: for pretraining, list all exams without labels; the inner validation set is that of the task.

    Raises:
        UserError: for anything wrong with the data or the choices, naming file and value.
    """
    table = index_mrnet(root, task, plane, split_seed, unlabelled=unlabelled)
    key = files_digest(table.assign(label_file="", frame=0, slice=0).sort_values("file"), root)
    counts = [len(read_array(root / file)) for file in table["file"]]
    cached = cache_folder() / "exams" / f"{key}.csv"
    try:
        types = {"file": str, "digest": str}
        read = pd.read_csv(cached, dtype=types, keep_default_na=False, float_precision="round_trip")
        statistics = read.set_index("file").loc[table["file"]]
    except (OSError, ValueError, KeyError):
        statistics = _measure(table["file"].tolist(), root)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cached, statistics.to_csv)
        except OSError as error:
            log.warning("%s cannot be written (%s): the exams are read again next time", cached, error.strerror)
    columns = {name: statistics[name].to_numpy() for name in ("mean", "std", "digest")}
    table = table.assign(frame_count=counts, **columns)
    task = "" if unlabelled else task or ""
    return ExamSet(name="mrnet", root=root, task=task, plane=plane, table=table, key=key)


def load_exams(
    root: Path,
    *,
    labels: Path | None = None,
    split_seed: int = 0,
    subject_pattern: str | None = None,
    slice_axis: SliceAxis = "auto",
) -> ExamSet:
    """Index NIfTI exams, check every one of them, split them by subject, and pack them on first use.

    They are split as the csv's split column says (10 % of train validate if it names no val); without
    one 70 % of the subjects train, 10 % validate and 20 % test, stratified.

    Args:
        labels: csv with a header and the columns path, label (0 or 1), optionally split and subject.
            Paths are relative to ``root``, or else to the csv. Without it every NIfTI file below
            ``root`` is an exam without label that trains.
        subject_pattern: regular expression that finds the subject in a path without suffix (where there is no subject
            column); default: each file is a subject.
        slice_axis: setting of ``data.readers.geometry.slice_axis``.

    Raises:
        UserError: for anything wrong with the data or the choices, naming file and value.
    """
    if labels is not None:
        labels = labels.expanduser()
        table = read_exams_csv(labels, root, split_seed, subject_pattern)
    else:
        table = list_exams(root, subject_pattern)
    table, store = _packed_exams(table, root, slice_axis, labelled=labels is not None)
    task = labels.stem if labels else ""
    return ExamSet(name="exams", root=root, task=task, plane="", table=table, key=store.key, store=store)


def require_both_classes(exams: ExamSet, split: str) -> None:
    """Raise a UserError if a split is empty or has exams of one class only."""
    labels = exams.labels[exams.positions(split)]
    where = f"of {exams.name} {exams.task} {exams.plane}".rstrip() + f" in {exams.root}"
    if not len(labels):
        raise UserError(f"the {split} split {where} has no exams: add some, or correct the split")
    if not {0, 1} <= set(labels.tolist()):
        only = f"labelled {labels[0]}" if labels[0] >= 0 else "without label"
        raise UserError(
            f"the {split} split {where} has {len(labels)} exams, all {only}: both classes are needed, "
            "choose another --split-seed or add exams of the other class"
        )


def read_exam(path: Path, slice_axis: SliceAxis = "auto") -> tuple[np.ndarray, tuple[float, float]]:
    """Read one exam for prediction: (frames, rows, columns) in file units, and (mean, standard deviation).

    ``.npy`` is memory-mapped; the frames of a NIfTI file are its slices, or if it is 4D the time frames of its middle
    slice.

    Raises:
        UserError: if it is no such file, has fewer than two frames, is constant or not finite.
    """
    path = Path(path)
    if path.name.lower().endswith(".npy"):
        frames = read_array(path)
    elif path.name.lower().endswith(NIFTI_SUFFIXES):
        volume = replace(read_volume(path), slicing=slice_axis)
        stack = volume.stack
        frames = check_frames(stack[:, stack.shape[1] // 2] if len(stack) > 1 else stack[0], path)
    else:
        raise UserError(f"{path} is no exam: expected .npy (frames, rows, columns), .nii or .nii.gz")
    return frames, exam_statistics(frames, path)


def exam_statistics(frames: np.ndarray, path: Path) -> tuple[float, float]:
    """(mean, standard deviation) over all frames, in double precision, a frame at a time.

    Raises:
        UserError: if a value is NaN or infinite, or all are the same.
    """
    low, high = np.inf, -np.inf
    means, variances = [], []
    for number, frame in enumerate(frames):
        values = frame.astype(np.float64)
        mean = values.mean()
        if not np.isfinite(mean):
            raise UserError(f"{path} holds NaN or infinite values (frame {number}): repair or remove it")
        low, high = min(low, values.min()), max(high, values.max())
        values -= mean
        means.append(mean)
        variances.append(np.vdot(values, values) / values.size)
    if low == high:
        raise UserError(f"{path} has the value {low:g} everywhere: remove it, or export it again")
    return _pooled(np.array(means), np.array(variances))


def _pooled(means: np.ndarray, variances: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over frames of one size, by the law of total variance."""
    return float(means.mean()), float(np.sqrt(variances.mean() + means.var()))


def _packed_exams(
    table: pd.DataFrame, root: Path, slice_axis: SliceAxis, *, labelled: bool
) -> tuple[pd.DataFrame, SliceStore]:
    """Open the packed frames; add frame_count, mean and std. Labelled exams must be sliced in one plane."""
    shapes = {root / file: read_shape(root / file)._replace(slicing=slice_axis) for file in table["file"]}
    check_planes(shapes if labelled else {}, shapes)
    indices = [_frame_index(shapes[root / file], root / file, file) for file in table["file"]]
    store = open_store(pd.concat(indices, ignore_index=True), root, ReadingOptions(slice_axis=slice_axis))
    counts = [len(index) for index in indices]
    ends = np.cumsum(counts)[:-1]
    means, stds = (np.split(store.table[name].to_numpy(), ends) for name in ("mean", "std"))
    pooled = [_pooled(mean, std**2) for mean, std in zip(means, stds, strict=True)]
    return table.assign(frame_count=counts, mean=[m for m, _ in pooled], std=[s for _, s in pooled]), store


def _frame_index(shape: VolumeShape, path: Path, name: str) -> pd.DataFrame:
    """The frames of one exam as rows for the slice store."""
    cine = shape.frames > 1
    count = shape.frames if cine else shape.slices
    if count < 2:
        raise UserError(f"{path} has {count} frame of shape {shape.shape}: an exam needs at least 2")
    steps = np.arange(count)
    frames, slices = (steps + 1, shape.slices // 2) if cine else (1, steps)
    return pd.DataFrame({"file": name, "label_file": "", "frame": frames, "slice": slices})


def _measure(files: list[str], root: Path) -> pd.DataFrame:
    """Mean, standard deviation and fingerprint of every exam; one message counts all problems."""
    problems: list[UserError] = []
    rows = []
    for file in progress(files, "checking exams"):
        try:
            frames = read_array(root / file)
            rows.append((file, *exam_statistics(frames, root / file), fingerprint(frames)))
        except UserError as error:
            problems.append(error)
    if problems:
        raise UserError(first_and_count(problems))
    return pd.DataFrame(rows, columns=["file", "mean", "std", "digest"]).set_index("file")
