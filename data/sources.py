"""Where data come from: one class of settings per layout, and the functions that open what they name."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from core.errors import UserError
from core.settings import Output, Settings
from data.augmentation import Augmentation
from data.dicom.cached import readable_root
from data.dicom.search import holds_dicom
from data.protocols import TestSet, acdc_splits, require_known_split
from data.readers.channels import Channels, checked_channels, refuse_several, several
from data.readers.class_images import ClassImages, read_class_images, read_digits
from data.readers.exams import ExamSet, load_exams, load_mrnet
from data.readers.geometry import SliceAxis
from data.readers.label_maps import ReadingOptions
from data.slices import Dataset, load_dataset, with_splits
from data.splits import save_splits


@dataclass(frozen=True, kw_only=True)
class AcdcSource(Settings):
    """Slices of hearts in the layout of the ACDC challenge."""

    dataset: Literal["acdc"] = "acdc"
    """Layout of the data set: that of the ACDC challenge."""
    data_root: Output[Path | None] = None
    """Folder that holds ACDC's training/; default: the embedded synthetic hearts."""
    split: str = "paper"
    """Split by patient: paper (80 train, 10 validate, 10 test), ssl4mis (70, 10 and 20, of the SSL4MIS benchmark),
    five-fold (80 train, 20 validate), or a JSON FILE of the patients of each split."""
    fold: int = 0
    """The fold of five-fold, 0 to 4, that validates."""
    test_set: TestSet = "paper"
    """Test patients: paper (those of the split), official (101-150 in their place; 118 is left out, since its images
    are those of 055) or both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known_split(self.split, self.fold)


@dataclass(frozen=True, kw_only=True)
class FolderSource(Settings):
    """Slices of a folder of images, with or without label maps."""

    dataset: Literal["folder"] = "folder"
    """Layout of the data set: nnU-Net's, images/ and labels/ (or masks/), case and case_seg side by side, or any folder
    of NIfTI, PNG, TIFF or JPEG files, or of DICOM files, see `python -m data.convert --help`."""
    data_root: Output[Path | None] = None
    """Folder that holds the images; required."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's path; default: the name up to frame, slice, visit, phase
    and the like, or the folder named after the patient."""
    splits_file: Path | None = None
    """JSON file of the subjects of each split; default: splits.json in the folder, else folders named train, val, test,
    else a random split."""
    save_splits: Output[Path | None] = None
    """Write the split to this JSON file, which `--splits-file` reads."""
    channels: Channels = None
    """Number of the channel to use, from 0: of nnU-Net's case_0000, case_0001, ... (default 0), of colours (0 1 2: red,
    green, blue; default: their grey value) or of the last axis of 4D images with 3D label maps. Several numbers:
    networks get these channels, in this order."""
    slice_axis: SliceAxis = "auto"
    """Axis across the slices: a plane, by the files' affines, or an axis of the arrays; auto: the axis of size 1, else
    the one with the clearly largest spacing, else 2."""
    ignore_label: int | None = None
    """Label value of voxels that are left out of losses and scores; default: that of nnU-Net's dataset.json, if any."""
    mask_threshold: float | None = None
    """Value from which a pixel of a grey mask is foreground, e.g. 128; default: label maps hold class indices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", checked_channels(self.channels))


@dataclass(frozen=True, kw_only=True)
class MrnetSource(Settings):
    """Exams of knees in the layout of MRNet."""

    dataset: Literal["mrnet"] = "mrnet"
    """Layout of the data set: that of MRNet."""
    data_root: Output[Path | None] = None
    """Folder that holds MRNet's train/ and valid/; default: the embedded synthetic knees."""
    plane: str = "sagittal"
    """Plane of the exams: sagittal, coronal or axial."""
    task: str = "acl"
    """Label of the exams: acl, meniscus, abnormal or any other {train,valid}-TASK.csv; pretraining does not use it."""
    split_seed: int = 0
    """Random seed that draws the validation exams from the training ones; runs to be compared need the same one."""


@dataclass(frozen=True, kw_only=True)
class ExamsSource(Settings):
    """Exams that are NIfTI volumes or cines."""

    dataset: Literal["exams"] = "exams"
    """Layout of the data set: NIfTI volumes and cines, listed in a CSV file or, for pretraining, all in a folder."""
    data_root: Output[Path | None] = None
    """Folder that holds the exams; default: the folder of `labels`."""
    labels: Path | None = None
    """CSV file of the exams with the columns path and label, optionally split and subject."""
    split_seed: int = 0
    """Random seed of the splits that the CSV file leaves open; runs to be compared need the same one."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in an exam's path; default: the name up to frame, visit, phase and the
    like, or the folder named after the patient."""
    slice_axis: SliceAxis = "auto"
    """Axis across the slices: a plane, by the files' affines, or an axis of the arrays; auto: the axis of size 1, else
    the one with the clearly largest spacing, else 2."""


@dataclass(frozen=True, kw_only=True)
class ImagesSource(Settings):
    """Images with classes, grey or in colour."""

    dataset: Literal["images"] = "images"
    """Layout of the data set: PNG, JPEG or TIFF files in train/CLASS/ and test/CLASS/, or torchvision's CIFAR-10
    files."""
    data_root: Output[Path | None] = None
    """Folder that holds train/ and test/, or cifar-10-batches-py/; default: the digits that come with scikit-learn."""
    imbalance: float = 1.0
    """Long-tailed part of the training images: images of the last class over those of the first, in (0, 1], falling
    exponentially between them (classes sorted by name); 1 keeps every image."""
    total: int | None = None
    """Number of training images of a balanced part; None: every image."""
    draw_seed: int = 0
    """Random seed that draws the images of such a part, 0 or more; a smaller part lies within a larger one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.imbalance <= 1:
            raise UserError(f"--imbalance {self.imbalance}: must lie in (0, 1], e.g. 0.01 for 100 to 1")
        if self.total is not None and self.total < 1:
            raise UserError(f"--total {self.total}: must be above 0")
        if self.total is not None and self.imbalance < 1:
            raise UserError(
                f"--total {self.total} makes a balanced set and --imbalance {self.imbalance} a long-tailed one: "
                "pass one of them"
            )
        if self.draw_seed < 0:
            raise UserError(f"--draw-seed {self.draw_seed}: must be 0 or more")


log = logging.getLogger("fewslice")

SliceSource = AcdcSource | FolderSource
ExamSource = MrnetSource | ExamsSource

S = TypeVar("S", AcdcSource, FolderSource, MrnetSource, ExamsSource, ImagesSource)


def with_demo_data(source: S) -> S:
    """Fill in `data_root` where it is None, see `find_root`; the digits of scikit-learn lie in no folder."""
    if isinstance(source, ImagesSource):
        return source
    return replace(source, data_root=find_root(source.dataset, source.data_root, getattr(source, "labels", None)))


def find_root(dataset: str, data_root: Path | None, labels: Path | None = None) -> Path:
    """`data_root`, else the folder of the CSV file, else synthetic demonstration data; a UserError if there is none."""
    if data_root is not None or labels is not None:
        return Path(data_root or Path(labels or "").parent).expanduser()
    if dataset == "acdc":
        from data.phantoms.cardiac import demo_root

        return demo_root()
    if dataset == "mrnet":
        from data.phantoms.knee import demo_knee_root

        return demo_knee_root()
    if dataset == "exams":
        raise UserError("--dataset exams needs --labels FILE.csv, or for pretraining --data-root with NIfTI files")
    raise UserError(f"--dataset {dataset} needs --data-root: the folder that holds the images")


def open_slices(source: SliceSource, *, labelled: bool = True) -> Dataset:
    """Index and pack the slices of a source; see `data.slices.load_dataset`. DICOM files are converted into the cache.

    With `labelled` False, for pretraining, doubts about label maps are logged, not refused.
    """
    root = find_root(source.dataset, source.data_root)
    if isinstance(source, AcdcSource):
        dataset = load_dataset("acdc", root)
        return with_splits(dataset, acdc_splits(dataset.splits, source.split, source.fold, source.test_set))
    folder = readable_folder(root, source.channels)
    dataset = load_dataset(
        "folder",
        folder,
        subject_pattern=source.subject_pattern,
        splits_file=source.splits_file,
        channels=source.channels,
        labelled=labelled,
        options=ReadingOptions(
            slice_axis=source.slice_axis, ignore_label=source.ignore_label, mask_threshold=source.mask_threshold
        ),
    )
    if labelled and not dataset.table["labelled"].any():
        if folder != root:
            what = "it holds no DICOM segmentation (SEG) or RT structure set that could be read: add them to the images"
        else:
            what = "add .nii.gz, .png or .tif files in labels/ beside images/, or case_seg beside case"
        raise UserError(f"{root} has no label map for any of its images, and segmentation is learned from them: {what}")
    return dataset


def readable_folder(root: Path, channels: Channels) -> Path:
    """`data.dicom.cached.readable_root`, but a UserError if several channels are chosen of DICOM files."""
    if several(channels) and root.is_dir() and holds_dicom(root):
        refuse_several(channels, f"{root} holds DICOM files, which have")
    return readable_root(root)


def chosen_channels(source: object) -> tuple[int, ...]:
    """The channels of a source, if they are several; else ()."""
    return several(source.channels) if isinstance(source, FolderSource) else ()


def refuse_channels(source: object, what: str) -> None:
    """Raise a UserError if a source has several channels, for something, `what`, that takes one."""
    refuse_several(chosen_channels(source), f"{what} takes")


def refuse_colour_changes(augmentation: Augmentation, source: object) -> None:
    """Raise a UserError if several channels, whose colours nothing changes, are asked to have them changed."""
    for name in ("colour", "grey") if chosen_channels(source) else ():
        if value := getattr(augmentation, name):
            raise UserError(f"--augmentation.{name} {value} is for --dataset images: leave it at 0 with --channels")


def open_images(source: ImagesSource) -> ClassImages:
    """Read the images of a source and keep the part of the training images that it asks for.

    Raises:
        UserError: for anything wrong with the folder, the files or the part.
    """
    images = read_digits() if source.data_root is None else read_class_images(source.data_root)
    images = images.selected(source.imbalance, source.total, source.draw_seed)
    if source.imbalance < 1 or source.total is not None:
        log.info("training images by class: %s", " ".join(map(str, images.counts)))
    return images


def save_requested_splits(source: object, splits: Mapping[str, str]) -> None:
    """Write subject -> split, as it is trained on, to the file of `--save-splits` if the source names one."""
    if isinstance(source, FolderSource) and source.save_splits is not None:
        save_splits(source.save_splits, splits)


def open_exams(source: ExamSource, *, labelled: bool) -> ExamSet:
    """Index and check the exams of a source; see `data.readers.exams`.

    With `labelled` False, for pretraining, MRNet's exams without a row in a CSV file count as well; the inner
    validation set is that of the task, if the copy has its CSV file, so that pretraining leaves out the same exams.

    Raises:
        UserError: if labels are needed and the source names none.
    """
    if source.split_seed < 0:
        raise UserError(f"--split-seed {source.split_seed}: must be 0 or more")
    root = find_root(source.dataset, source.data_root, getattr(source, "labels", None))
    if isinstance(source, MrnetSource):
        task: str | None = source.task
        if not labelled and not (root / f"train-{task}.csv").is_file():
            task = None
            log.info("%s has no train-%s.csv: no inner validation set is left out", root, source.task)
        return load_mrnet(root, task=task, plane=source.plane, split_seed=source.split_seed, unlabelled=not labelled)
    if labelled and source.labels is None:
        raise UserError("--dataset exams needs --labels FILE.csv with the columns path,label")
    return load_exams(
        readable_root(root) if source.labels is None else root,
        labels=source.labels,
        split_seed=source.split_seed,
        subject_pattern=source.subject_pattern,
        slice_axis=source.slice_axis,
    )
