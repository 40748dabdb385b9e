"""Exams: stacks or cines of frames with one label each, whatever layout they come in.

* "mrnet": MRNet's folders of ``.npy`` files, see ``data.mrnet``; read where they lie, memory-mapped.
* "exams": NIfTI volumes and cines that a csv names, or every one in a folder; packed once, see ``data.store``.
  The frames of a 3D volume are its slices, those of a 4D cine the time frames of its middle slice.
"""

import csv
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from data.cache import cache_folder
from data.errors import UserError
from data.folder import find_images, subject_of
from data.mrnet import check_frames, index_mrnet, read_array, stratified_draw
from data.splits import SPLITS, refuse_overlap
from data.store import SliceStore, files_digest, open_store
from data.volume import NIFTI_SUFFIXES, read_shape, read_volume, stem

TEST, VALIDATION = 0.2, 0.1
"""Shares of a drawn split of "exams", by subject."""

log = logging.getLogger("fewslice")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExamSet:
    """Exams, their labels and their splits.

    ``table`` has one row per exam: exam (str, unique), subject (str), split ("train", "val", "test"), file (str,
    relative to root), label (0, 1; -1 when there is no task), frame_count, mean and std (of the exam, file
    units). ``key`` is a digest of the files. ``task`` and ``plane`` are "" where there is none. ``synthetic``
    marks the embedded demonstration: its scores say nothing about patients.
    """

    name: str
    root: Path
    synthetic: bool
    task: str
    plane: str
    table: pd.DataFrame
    key: str
    store: SliceStore | None = None
    """Of "exams"; MRNet's files are read where they lie."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def splits(self) -> dict[str, str]:
        """subject -> split, for ``data.splits.save_splits`` beside a run."""
        return dict(zip(self.table["subject"], self.table["split"], strict=True))

    @cached_property
    def labels(self) -> np.ndarray:
        """(exams,) int64: 0, 1, or -1."""
        return self.table["label"].to_numpy(np.int64)

    def positions(self, split: str) -> np.ndarray:
        """Row positions of a split, ascending."""
        return np.flatnonzero(self.table["split"] == split)

    def statistics(self, i: int) -> tuple[float, float]:
        """(mean, standard deviation) over all frames of exam i, file units."""
        mean, std = self._statistics[i]
        return float(mean), float(std)

    def frames(self, i: int) -> np.ndarray:
        """(frames, rows, columns) of exam i in file units, memory-mapped and read-only."""
        if self.store is None:
            # Opened anew each time: a thousand maps held open would exhaust the process's file descriptors.
            return read_array(self.root / self._files[i])
        first, count = self._packed[i]
        offset, following = self.store.table["offset"].to_numpy()[[first, first + 1]].tolist()
        frame = self.store.image(first)
        packed = np.memmap(self.store.file, np.uint8, mode="r")
        return np.ndarray((count, *frame.shape), frame.dtype, packed, offset, (following - offset, *frame.strides))

    @cached_property
    def _files(self) -> list[str]:
        return self.table["file"].tolist()

    @cached_property
    def _statistics(self) -> np.ndarray:
        return self.table[["mean", "std"]].to_numpy()

    @cached_property
    def _packed(self) -> list[tuple[int, int]]:
        """First row in the store, and number of rows, of each exam."""
        counts = self.table["frame_count"].to_numpy()
        return list(zip((np.cumsum(counts) - counts).tolist(), counts.tolist(), strict=True))


def load_exams(
    dataset: Literal["mrnet", "exams"] = "mrnet",
    data_root: Path | None = None,
    *,
    task: str | None = "acl",
    plane: str = "sagittal",
    labels: Path | None = None,
    split_seed: int = 0,
    subject_pattern: str | None = None,
    splits: Mapping[str, str] | None = None,
) -> ExamSet:
    """Index exams, check every one of them, split them by subject.

    The first call on a folder reads all of it (checks and statistics, kept in ``cache_folder()``); later ones
    read headers.

    "mrnet": the official validation set is the test set, and 10 % of each class of the training exams, drawn by
    seed, validate. "exams": as the csv's split column says (10 % of train validate if it names no val); without
    one 70 % of the subjects train, 10 % validate and 20 % test, stratified.

    Args:
        dataset: the layout, see the module.
        data_root: its folder; without one "mrnet" is the embedded synthetic demonstration.
        task: of MRNet's csv files; None lists all exams without labels, for pretraining.
        plane: MRNet's folder of arrays.
        labels: csv with a header and the columns path, label (0 or 1), perhaps split and subject ("exams" only).
            Paths are relative to ``data_root``, or else to the csv. Without it every NIfTI file below
            ``data_root`` is an exam without label that trains.
        split_seed: of whatever is drawn.
        subject_pattern: regular expression giving the subject of a path without suffix ("exams" without a subject
            column); default: each file is a subject.
        splits: subject -> split, as saved by an earlier run, in place of the drawn split.

    Raises:
        UserError: for anything wrong with the data or the choices, naming file and value.
    """
    if split_seed < 0:
        raise UserError(f"--split-seed {split_seed}: must be 0 or more")
    root = None if data_root is None else Path(data_root).expanduser()
    if dataset == "mrnet":
        if labels is not None or subject_pattern is not None:
            raise UserError("--labels and --subject-pattern go with --dataset exams: MRNet has its own csv files")
        folder = _demo_root() if root is None else root
        table, key = _mrnet(folder, task, plane, split_seed)
        return ExamSet(
            name=dataset,
            root=folder,
            synthetic=root is None,
            task=task or "",
            plane=plane,
            table=_with_splits(table, splits),
            key=key,
        )
    if dataset != "exams":
        raise UserError(f"data set {dataset!r} is unknown: choose mrnet or exams")
    if labels is not None:
        labels = Path(labels).expanduser()
        root = labels.parent if root is None else root
        table = read_exams_csv(labels, root, split_seed, subject_pattern)
    elif root is None:
        raise UserError("--dataset exams needs --labels FILE.csv, or for pretraining --data-root with NIfTI files")
    else:
        table = _unlabelled(root, subject_pattern)
    table = _with_splits(table, splits)
    table, store = _packed_exams(table, root)
    return ExamSet(
        name=dataset,
        root=root,
        synthetic=False,
        task=labels.stem if labels else "",
        plane="",
        table=table,
        key=store.key,
        store=store,
    )


def require_both_classes(exams: ExamSet, split: str) -> None:
    """Refuse a split in which nothing could be learnt or scored.

    Raises:
        UserError: naming the split, its size and its only class.
    """
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


def read_exam(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """One exam from a file, for prediction: (frames, rows, columns) in file units, and its mean and deviation.

    ``.npy`` is memory-mapped; of a NIfTI file the frames are its slices, or those in time of its middle slice.

    Raises:
        UserError: if it is no such file, has fewer than two frames, is constant or not finite.
    """
    path = Path(path)
    if path.name.lower().endswith(".npy"):
        frames = read_array(path)
    elif path.name.lower().endswith(NIFTI_SUFFIXES):
        volume = read_volume(path)
        stack = volume.stack
        frames = check_frames(stack[:, stack.shape[1] // 2] if len(stack) > 1 else stack[0], path)
    else:
        raise UserError(f"{path} is no exam: give .npy (frames, rows, columns), .nii or .nii.gz")
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
    """Of frames of one size: the law of total variance."""
    return float(means.mean()), float(np.sqrt(variances.mean() + means.var()))


def read_exams_csv(path: Path, root: Path, split_seed: int = 0, subject_pattern: str | None = None) -> pd.DataFrame:
    """Read ``path,label[,split][,subject]``, see ``load_exams``.

    Returns:
        exam (the path as written), subject, split, file (relative to root, absolute if not below it), label.

    Raises:
        UserError: naming file, line and value.
    """
    rows: list[dict[str, Any]] = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        exam = line["path"]
        found = next((file for file in (root / exam, path.parent / exam) if exam and file.is_file()), None)
        if found is None:
            raise UserError(
                f"{where}: the exam {exam!r} is not there, neither below {root} nor beside the csv: "
                "correct the path, or remove the row"
            )
        if line["label"] not in ("0", "1"):
            raise UserError(f"{where}: the label {line['label']!r} of exam {exam} is not 0 or 1: correct it")
        if "split" in line and line["split"] not in SPLITS:
            raise UserError(f"{where}: the split {line['split']!r} of exam {exam}: choose {', '.join(SPLITS)}")
        if line.get("subject") == "":
            raise UserError(f"{where}: exam {exam} has no subject: fill it in, or remove the column")
        file = found.relative_to(root) if found.is_relative_to(root) else found.resolve()
        bare = (Path(exam).parent / stem(found)).as_posix()
        subject = line.get("subject") or subject_of(bare, found, subject_pattern)
        row = {"exam": exam, "subject": subject, "split": line.get("split"), "file": file.as_posix()}
        rows.append(row | {"label": int(line["label"])})
    table = pd.DataFrame(rows)
    if table["file"].duplicated().any():
        twice = table.loc[table["file"].duplicated(), "exam"].iloc[0]
        raise UserError(f"{path} names exam {twice} more than once: keep one of its rows")
    share = VALIDATION
    if table["split"].isna().any():
        share /= 1 - TEST
        tests = stratified_draw(_classes(table), TEST, split_seed)
        table["split"] = table["subject"].isin(tests).map({True: "test", False: "train"})
    refuse_overlap(table)
    if not (table["split"] == "val").any():
        vals = stratified_draw(_classes(table[table["split"] == "train"]), share, split_seed)
        table.loc[table["subject"].isin(vals), "split"] = "val"
    return table


def _classes(table: pd.DataFrame) -> dict[str, int]:
    """subject -> 1 if any of its exams is positive."""
    return {str(subject): int(label) for subject, label in table.groupby("subject")["label"].max().items()}


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of a csv with a header."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, restval="")
            names = [name.strip().lower() for name in reader.fieldnames or []]
            if missing := [name for name in ("path", "label") if name not in names]:
                raise UserError(
                    f"{path} has the columns {', '.join(names) or 'none'}: {' and '.join(missing)} must be among them"
                )
            reader.fieldnames = names
            lines = []
            for row in reader:
                cells = {name: (row[name] or "").strip() for name in names}
                if any(cells.values()):
                    lines.append((reader.line_num, cells))
    except OSError as error:
        raise UserError(f"--labels {path} cannot be opened ({error.strerror}): check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {path} is not a csv file in UTF-8 ({error}): export it again") from None
    if not lines:
        raise UserError(f"{path} names no exams: give lines like patient001.nii.gz,0 below path,label")
    return lines


def _unlabelled(root: Path, subject_pattern: str | None) -> pd.DataFrame:
    """Every NIfTI image below a folder, to pretrain on."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --data-root must be the folder that holds the exams")
    found = [
        (subject_of(name, file, subject_pattern), "test" if test else "train", file.relative_to(root).as_posix())
        for name, file, _, test in find_images(root)
        if file.name.lower().endswith(NIFTI_SUFFIXES) and not name.endswith("_gt")  # ACDC's label maps
    ]
    if not found:
        raise UserError(f"{root} holds no .nii or .nii.gz files: check --data-root, or give --labels FILE.csv")
    table = pd.DataFrame(found, columns=["subject", "split", "file"])
    return table.assign(exam=table["file"], label=-1)


def _with_splits(table: pd.DataFrame, splits: Mapping[str, str] | None) -> pd.DataFrame:
    if splits is None:
        return table
    if absent := sorted(set(table["subject"]) - splits.keys()):
        raise UserError(f"the given splits miss {len(absent)} subjects, the first {absent[0]}: add it to a split")
    return table.assign(split=table["subject"].map(splits))


def _packed_exams(table: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, SliceStore]:
    """Open the packed frames; add frame_count, mean and std."""
    indices = [_frame_index(root / file, file) for file in table["file"]]
    store = open_store(pd.concat(indices, ignore_index=True), root)
    table = table.assign(frame_count=[len(index) for index in indices])
    ends = np.cumsum(table["frame_count"])
    means, variances = store.table["mean"].to_numpy(), store.table["std"].to_numpy() ** 2
    pooled = [
        _pooled(means[end - count : end], variances[end - count : end])
        for end, count in zip(ends, table["frame_count"], strict=True)
    ]
    return table.assign(mean=[mean for mean, _ in pooled], std=[std for _, std in pooled]), store


def _frame_index(path: Path, name: str) -> pd.DataFrame:
    """The rows of a slice store that make one exam."""
    shape = read_shape(path)
    cine = shape.frames > 1
    count = shape.frames if cine else shape.slices
    if count < 2:
        raise UserError(f"{path} has {count} frame of shape {shape.shape}: an exam needs at least 2")
    steps = np.arange(count)
    frames, slices = (steps + 1, shape.slices // 2) if cine else (1, steps)
    return pd.DataFrame({"file": name, "label_file": "", "frame": frames, "slice": slices})


def _mrnet(root: Path, task: str | None, plane: str, split_seed: int) -> tuple[pd.DataFrame, str]:
    """The index of MRNet's exams with frame_count, mean and std, the last two from the cache if they are there."""
    table = index_mrnet(root, task, plane, split_seed)
    key = files_digest(table.assign(label_file="", frame=0, slice=0).sort_values("file"), root)
    counts = [len(read_array(root / file)) for file in table["file"]]
    cached = cache_folder() / "exams" / f"{key}.csv"
    try:
        statistics = pd.read_csv(cached, index_col="file", float_precision="round_trip").loc[table["file"]]
    except (OSError, ValueError, KeyError):
        statistics = _measure(table["file"].tolist(), root)
        _keep(statistics, cached)
    return table.assign(frame_count=counts, mean=statistics["mean"].to_numpy(), std=statistics["std"].to_numpy()), key


def _measure(files: list[str], root: Path) -> pd.DataFrame:
    """Check the values of every exam; one message counts all problems."""
    problems: list[UserError] = []
    rows = []
    console = Console(stderr=True)
    for file in track(files, "checking exams", console=console, disable=not sys.stderr.isatty(), transient=True):
        try:
            rows.append((file, *exam_statistics(read_array(root / file), root / file)))
        except UserError as error:
            problems.append(error)
    if problems:
        more = "" if len(problems) == 1 else f" ({len(problems) - 1} more files have problems)"
        raise UserError(f"{problems[0]}{more}")
    return pd.DataFrame(rows, columns=["file", "mean", "std"]).set_index("file")


def _keep(statistics: pd.DataFrame, cached: Path) -> None:
    """Write atomically: processes that start together write the same bytes."""
    temporary = cached.with_suffix(f".{os.getpid()}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        statistics.to_csv(temporary)
        temporary.replace(cached)
    except OSError as error:
        log.warning("%s cannot be written (%s): the exams are read again next time", cached, error.strerror)


def _demo_root() -> Path:
    from data.phantom_knee import demo_knee_root

    return demo_knee_root()
