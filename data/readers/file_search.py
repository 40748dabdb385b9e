"""The files below a folder that may be data: nothing hidden, no output of this software, every folder once."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.wording import count_of, listed
from data.dicom.search import is_dicom
from data.readers.images import IMAGE_SUFFIXES, JPEG_SUFFIXES, NIFTI_SUFFIXES
from data.readers.roles import folder_role

NO_DATA = {"__MACOSX"}
"""Folders that archivers leave behind; hidden ones (``.git``, ``.ipynb_checkpoints``) are never read either."""
DICOM_SUFFIXES = ("", ".dcm", ".ima", ".dicom")
MOST_OPENED = 20
"""Skipped files that are opened to see whether they are DICOM."""
RUN_FILES = ({"config.json", "train.log"}, {"model.json", "model.safetensors"}, {"study.json", "results.csv"})
"""Files that tell the folder of a run or a study."""
VOLUMES = "volumes.csv"
"""Table that ``python -m segment.predict`` writes first of all into its output folder."""
UNCERTAINTY = "uncertainty.csv"
"""Table that it writes into its folder of uncertainty maps."""
VOLUME_COLUMNS = ("file", "subject", "phase", "frame")
"""First columns of both."""
CONVERTED = "converted.csv"
"""Table that ``python -m data.convert`` writes beside the images."""
DESCRIPTIONS = {"dataset.json", "splits.json", VOLUMES, UNCERTAINTY, CONVERTED}
"""Files that are read beside the images, so that they do not count as skipped."""


@dataclass
class FileSearch:
    """The files below a folder, and what was left out."""

    root: Path
    files: list[Path] = field(default_factory=list)
    """Files with one of the suffixes, ordered by path."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of the other files, by suffix."""
    broken_links: list[Path] = field(default_factory=list)
    """Links that lead nowhere."""
    beside: list[Path] = field(default_factory=list)
    """Files and folders that lie beside images/ and labels/, and are not read."""
    outputs: list[Path] = field(default_factory=list)
    """Folders of runs and predictions of this software, which are not read."""
    dicom: list[Path] = field(default_factory=list)
    """DICOM files among the first `MOST_OPENED` skipped files that may be some by their names."""

    def messages(self) -> list[str]:
        """Everything that was left out, one line each."""
        lines = []
        if self.skipped:
            lines.append(f"{self.root}: skipped {count_of(self.skipped.total(), 'file')}: {self.skipped_types()}")
        if self.dicom:
            lines.append(self.dicom_message())
        if self.beside:
            lines.append(f"{self.root}: not read, beside folders of images and label maps: {self._listed(self.beside)}")
        if self.outputs:
            lines.append(f"{self.root}: not read, output of earlier commands: {self._listed(self.outputs)}")
        if self.broken_links:
            lines.append(f"{self.root}: links that lead nowhere: {self._listed(self.broken_links)}")
        return lines

    def dicom_message(self) -> str:
        """That DICOM files were left out, and what to do."""
        return (
            f"{self.root}: DICOM files, such as {self._listed(self.dicom[:1])}, are not read beside other images: pass "
            "a folder of them alone, or convert them with `python -m data.convert`"
        )

    def skipped_types(self) -> str:
        """Number and suffix of the files that were skipped: "2 .jpg, 1 .txt"."""
        return ", ".join(f"{count} {suffix}" for suffix, count in self.skipped.most_common())

    def _listed(self, paths: Iterable[Path]) -> str:
        return listed([path.relative_to(self.root) for path in paths])


def search_files(root: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> FileSearch:
    """List the files below a folder.

    Links to folders are followed, but each folder is read once, so that a link to a parent ends. A folder that holds
    images/ and labels/ (or imagesTr/) is a data set: only these, and folders named after splits, are read in it.
    JPEG files among NIfTI files are left out.
    """
    search = FileSearch(root=root)
    perhaps_dicom: list[Path] = []
    visited: set[str] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        place = os.path.realpath(folder)
        if place in visited:
            continue
        visited.add(place)
        with os.scandir(folder) as entries:
            names = {entry.name: entry for entry in entries if not entry.name.startswith(".")}
        if folder != root and is_output(folder, names.keys()):
            search.outputs.append(folder)
            continue
        folders, files = [], []
        for name in sorted(names.keys() - NO_DATA):
            path = folder / name
            if names[name].is_dir():
                folders.append(path)
            elif names[name].is_symlink() and not path.exists():
                search.broken_links.append(path)
            else:
                files.append(path)
        roles = {path: folder_role(path.name) for path in folders}
        certain = {role.role for role in roles.values() if role.certain}
        if {"image", "label"} <= certain or any(is_nnunet(path.name) for path in folders):
            outside = [path for path in folders if not (roles[path].certain or roles[path].split)]
            outside += [path for path in files if path.name.lower().endswith(tuple(suffixes))]
            search.beside += outside
            beside = set(outside)
            folders = [path for path in folders if path not in beside]
            files = [path for path in files if path not in beside]
        for path in files:
            if path.name.lower().endswith(tuple(suffixes)) and names[path.name].is_file():
                search.files.append(path)
            elif path.name not in DESCRIPTIONS:
                suffix = path.suffix.lower()
                search.skipped[suffix or "without suffix"] += 1
                # names may end in a UID; the segmentations that `segment.predict` writes lie beside the same as NIfTI
                if (suffix in DICOM_SUFFIXES or suffix[1:].isdigit()) and VOLUMES not in names:
                    perhaps_dicom.append(path)
        # Where a folder can be reached by two paths: the one that says what it holds, and no link, comes first.
        order = sorted(folders, key=lambda path: (roles[path].role == "", path.is_symlink(), path.name))
        stack += reversed(order)
    if any(path.name.lower().endswith(NIFTI_SUFFIXES) for path in search.files):  # JPEG files are previews of them
        for path in [path for path in search.files if path.suffix.lower() in JPEG_SUFFIXES]:
            search.files.remove(path)
            search.skipped[path.suffix.lower()] += 1
    search.files.sort()
    search.dicom = [path for path in perhaps_dicom[:MOST_OPENED] if is_dicom(path)]
    return search


def is_nnunet(folder: str) -> bool:
    """Whether a folder's name is that of a folder of images of nnU-Net, where channels are numbered."""
    return folder.lower() in ("imagestr", "imagests", "imagesval")


def is_output(folder: Path, names: Iterable[str] | None = None) -> bool:
    """Whether a folder was written by this software: predictions, a run or a study.

    Args:
        folder: a folder, or a path where there is none.
        names: names of its files; None: listed here.
    """
    if names is None:
        names = os.listdir(folder) if folder.is_dir() else ()
    present = set(names)
    if any(files <= present for files in RUN_FILES):
        return True
    return any(name in present and has_table(folder, name) for name in (VOLUMES, UNCERTAINTY))


def has_table(folder: Path, name: str) -> bool:
    """Whether a folder holds a table of this name that begins as those of ``python -m segment.predict`` do."""
    try:
        with open(folder / name, errors="replace") as stream:
            return stream.readline(200).startswith(",".join(VOLUME_COLUMNS))
    except FileNotFoundError:
        return False
