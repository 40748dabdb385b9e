"""A plan: the slices to label, their images and masks as files for an annotation tool, and a picture of them.

PLAN/plan.csv lists the slices (subject, file, frame, slice, case, why) and is a `--labelled-list`; PLAN/images and
PLAN/masks hold a volume for each case, for ITK-SNAP, 3D Slicer or any other tool; PLAN/plan.json says of which data,
and which masks a network has drawn.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from core.errors import UserError
from core.files import save_figure, write_atomically, write_csv, write_json
from core.tables import read_table
from core.text import read_json
from data.readers.images import Volume, one_channel, read_shape, read_volume, stem, write_label_map
from data.slices import Dataset
from data.sources import AcdcSource, FolderSource, SliceSource, open_slices, refuse_channels

FILE = "plan.csv"
ABOUT = "plan.json"
COLUMNS = ("subject", "file", "frame", "slice", "case", "why")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan that was written."""

    folder: Path
    table: pd.DataFrame
    """Rows of `FILE`."""
    source: SliceSource
    """The data set that it is of."""
    classes: tuple[str, ...]
    """Names, background first; ("background",) if they are unknown."""
    splits: dict[str, str]
    """subject -> split."""
    predrawn: dict[str, dict[str, str]] | None
    """Case -> slice -> digest of the mask that a network drew there; None in plans of versions that noted none."""
    labelled: list[tuple[str, int, int]] | None
    """(file, frame, slice) of what the run of `next` learned from; None in plans of `first`, which follow no run."""

    def mask(self, case: str) -> Path:
        """The mask file of a case; one that does not exist if it was removed."""
        folder = self.folder / "masks"
        return next((file for file in sorted(folder.glob("*")) if stem(file) == case), folder / case)


def require_new(folder: Path) -> None:
    """Raise a UserError unless a folder is absent or empty: masks that somebody has drawn are never replaced."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} exists and is not empty: choose another folder")


def file_names(table: pd.DataFrame) -> dict[str, str]:
    """Image file -> its name in a folder with all others, without suffix: its own, or with the subject before it.

    Raises:
        UserError: if two would be alike.
    """
    files = table.drop_duplicates("file")
    names = {file: stem(Path(file)) for file in files["file"]}
    if len({*names.values()}) < len(names):  # files of one name in folders of their own
        subjects = zip(files["file"], files["subject"], strict=True)
        names = {file: f"{subject.replace('/', '-')}_{names[file]}" for file, subject in subjects}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"two images would both be called {twice[0]}: rename one")
    return names


def case_names(table: pd.DataFrame, names: Mapping[str, str]) -> dict[tuple[str, int], str]:
    """(file, frame) -> name of each volume as a file of its own, from the names of the files."""
    volumes = table.drop_duplicates(["file", "frame"])
    several = volumes.groupby("file")["frame"].transform("size") > 1
    return {
        (file, frame): names[file] + (f"_frame{frame:02d}" if of_several else "")
        for file, frame, of_several in zip(volumes["file"], volumes["frame"], several, strict=True)
    }


def open_unlabelled(source: SliceSource) -> Dataset:
    """The slices of a source for annotation; a UserError if several channels or a colour are chosen."""
    refuse_channels(source, "python -m annotate")
    dataset = open_slices(source, labelled=False)
    if "channels" in dataset.table:
        raise UserError(
            f"python -m annotate takes no single colour of {dataset.root}: leave out --channels for the grey values, "
            "or save the colour as images of its own"
        )
    return dataset


def read_frame(dataset: Dataset, source: SliceSource, file: str, frame: int) -> Volume:
    """One frame (from 1) of an image file of a data set, as a 3D volume."""
    slicing = source.slice_axis if isinstance(source, FolderSource) else "auto"
    volume = replace(read_volume(dataset.root / file), slicing=slicing)
    return one_channel(volume, frame - 1) if volume.shape.frames > 1 else volume


def write_image(path: Path, dataset: Dataset, file: str, volume: Volume) -> Path:
    """Write a volume of `read_frame`: a copy of its file, or one frame of it as NIfTI.

    Args:
        path: without suffix.

    Returns:
        The path with suffix.
    """
    original = dataset.root / file
    single = read_shape(original).frames == 1
    path = path.with_name(path.name + (original.name[len(stem(original)) :] if single else ".nii.gz"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if single:
        write_atomically(path, lambda out: shutil.copyfile(original, out))
    else:
        image = nib.Nifti1Image(volume.values, volume.affine, volume.header)
        write_atomically(path, image.to_filename)
    return path


def mask_path(folder: Path, case: str, volume: Volume) -> Path:
    """Where the mask of a volume goes: an image file of the kind of its image."""
    planar = volume.header is None
    return folder / f"{case}{'.png' if planar and volume.shape.slices == 1 else '.tif' if planar else '.nii.gz'}"


def digest_of(mask: np.ndarray) -> str:
    """Digest of the label map of a slice, (rows, columns) uint8 class indices: 16 hexadecimal digits."""
    return hashlib.blake2b(f"{mask.shape}".encode() + mask.tobytes(), digest_size=8).hexdigest()


def write_plan(
    folder: Path,
    dataset: Dataset,
    source: SliceSource,
    chosen: Sequence[tuple[int, str]],
    *,
    classes: Sequence[str],
    drawn: Callable[[int], np.ndarray] | None = None,
    labelled: Sequence[tuple[str, int, int]] | None = None,
) -> pd.DataFrame:
    """Write a plan.

    Args:
        folder: absent or empty.
        dataset: the data set.
        source: its settings.
        chosen: row of `dataset.table` and the reason, of each slice to label.
        classes: names, background first.
        drawn: row -> label map (rows, columns) to begin with; None: empty masks.
        labelled: see `Plan`.

    Returns:
        The rows of `FILE`.
    """
    names = case_names(dataset.table, file_names(dataset.table))
    table = dataset.table.iloc[[row for row, _ in chosen]][["subject", "file", "frame", "slice"]].reset_index(drop=True)
    table["case"] = [names[key] for key in zip(table["file"], table["frame"], strict=True)]
    table["why"] = [why for _, why in chosen]
    rows = [row for row, _ in chosen]
    predrawn: dict[str, dict[str, str]] = {}
    for case, members in table.groupby("case", sort=True):
        first = members.iloc[0]
        volume = read_frame(dataset, source, first["file"], int(first["frame"]))
        write_image(folder / "images" / str(case), dataset, first["file"], volume)
        masks = np.zeros(volume.stack.shape, np.uint8)
        if drawn is not None:
            for place, z in zip(members.index.to_numpy(int), members["slice"].to_numpy(int), strict=True):
                masks[0, z] = drawn(rows[place])
                predrawn.setdefault(str(case), {})[str(z)] = digest_of(masks[0, z])
        write_label_map(mask_path(folder / "masks", str(case), volume), masks, volume)
    _draw_contact_sheet(folder / "contact_sheet.png", dataset, rows, table)
    about = {"dataset": source.dataset, "data": _plain(source), "classes": [*classes], "splits": dataset.splits}
    write_json(folder / ABOUT, about | {"predrawn": predrawn, "labelled": labelled})
    write_csv(folder / FILE, table)  # last: a folder with it is complete
    return table


def read_plan(folder: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: if the folder holds none, or it is damaged.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds no {FILE}: pass a folder of `python -m annotate first` or `next`")
    table = read_table(folder / FILE, COLUMNS[:5])
    about = read_json(folder / ABOUT)
    try:
        kind = {"acdc": AcdcSource, "folder": FolderSource}[about["dataset"]]
        source = kind(**{**about["data"], "data_root": Path(about["data"]["data_root"])})
        predrawn = {case: {**digests} for case, digests in about["predrawn"].items()} if "predrawn" in about else None
        labelled = about.get("labelled")
        return Plan(
            folder=folder,
            table=table,
            source=source,
            classes=tuple(about["classes"]),
            splits=dict(about["splits"]),
            predrawn=predrawn,
            labelled=None if labelled is None else [(file, frame, z) for file, frame, z in labelled],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT} is damaged ({error}); make the plan again") from None


def volumes_of(table: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """(file, frame, rows) of each volume of a table of slices, sorted."""
    for _, rows in table.groupby(["file", "frame"], sort=True):
        yield str(rows["file"].iloc[0]), int(rows["frame"].iloc[0]), rows.sort_values("slice")


def _plain(source: SliceSource) -> Mapping[str, Any]:
    from pydantic import TypeAdapter

    values = TypeAdapter(type(source)).dump_python(source, mode="json")
    root = str(Path(values["data_root"]).expanduser().resolve())
    return {**values, "data_root": root} | ({"save_splits": None} if "save_splits" in values else {})


def _draw_contact_sheet(path: Path, dataset: Dataset, rows: Sequence[int], table: pd.DataFrame) -> None:
    """Draw the slices to label, with subject, slice (from 0, as `FILE` counts) and reason."""
    columns = min(6, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * lines), layout="constrained", facecolor="white")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    titles = [
        f"{subject}, slice {z}\n{why}"
        for subject, z, why in zip(table["subject"], table["slice"], table["why"], strict=True)
    ]
    for axis, row, title in zip(axes, rows, titles, strict=False):
        image = dataset.store.image(row)
        low, high = np.percentile(image, (1, 99))
        spacing = dataset.table.iloc[row]
        aspect = float(spacing["row_mm"] / spacing["column_mm"])
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        axis.set_title(title, fontsize=7, parse_math=False)
    save_figure(path, figure, dpi=120)
