"""The images or exams of one pretraining stage, as augmented views."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from core.errors import UserError
from core.nearest import did_you_mean
from core.wording import count_of
from data.augment import Augmenter
from data.cines import centre_map, motion_maps
from data.cines import neighbours as neighbours_of
from data.duplicates import fingerprint, subjects_of_pool, warn_of_test_duplicates
from data.leakage import record_natural_images, record_subjects
from data.phantoms.procedural import ProceduralImages
from data.readers.class_images import ClassImages
from data.readers.exams import ExamSet
from data.readers.natural import FolderImages
from data.samples.boxes import TwoViewsWithBoxes
from data.samples.clips import TwoClips
from data.samples.images import ViewsOfImages
from data.samples.on_device import ViewsOnDevice, bytes_needed, can_cache
from data.samples.one_view import OneView
from data.samples.slices import Images, Pairing, Standardised, TwoViews
from data.slices import Dataset, Slices
from data.splits import digest_of_use
from data.tiles import say_large_slices
from encoders.names import is_file, is_video

log = logging.getLogger("fewslice")

MOST_FINGERPRINTS = 20_000
"""Largest folder of natural images whose content is recorded, to find scans among them; they are all decoded for it."""

CropTowards = Literal["none", "motion", "centre"]
Positives = Literal["same", "slice", "phase"]
Augmenters = tuple[Augmenter, ...]
"""The augmentation of the first and of the second view, or of the only one."""


@dataclass(frozen=True, kw_only=True)
class StageImages:
    """The images or exams of one stage."""

    samples: TorchDataset[Tensor]
    """One or two views of each image or exam, perhaps with their boxes; indexed by `engine.sampler.Sample`."""
    on_device: bool = False
    """Whether the views are made on the device."""
    count: int
    unit: str = "images"
    channels: int = 1
    """Channels of an image: 3 for RGB, or the number of `--channels`."""
    name: str
    """Name of the data set."""
    hash: str
    """Digest of the data set's content."""
    pool: str = ""
    """Digest of the data set and of what is taken from it; "": `hash`, of a data set that is taken as a whole."""
    subjects: dict[str, Any] | None = None
    """The `core.subjects.SubjectRecord` of the pool; natural images have none."""
    splits: Mapping[str, str] | None = None
    """subject -> split, which fine-tuning keeps; None if the data set determines it."""
    by_class: Mapping[str, int] | None = None
    """Images of each class; None if the images have no classes."""
    warnings: Sequence[str] = ()
    """What is doubtful about scores of the encoder, for the result."""


def natural_images(
    generalist: str, encoder: str, augmenters: Augmenters, count: int, seed: int, *, boxes: bool = False
) -> StageImages | None:
    """The natural images to pretrain on.

    Args:
        generalist: "procedural", a folder of images, or weights: a file, "imagenet", "kinetics" or "hf-hub:NAME".
        encoder: name of the encoder.
        augmenters: augmentation of the views.
        count: number of procedural images.
        seed: random seed of the procedural images.
        boxes: hand out the views' boxes as well.

    Returns:
        The images; None if `generalist` is weights.

    Raises:
        UserError: if there is no such file or folder, or the encoder takes no single images.
    """
    path = Path(generalist)
    if (
        (generalist != "random" and not is_file(generalist))
        or path.is_file()
        or (path / "encoder.safetensors").is_file()
    ):
        return None
    if is_video(encoder):
        raise UserError(
            f"--generalist {generalist}: {encoder} takes clips and cannot be pretrained on single images; "
            "pass kinetics or an encoder file, or use --stage specialist"
        )
    images: Images
    subjects = None
    if generalist == "procedural":
        images = ProceduralImages(count, max(augmenters[0].size, 64), seed)
        name, digest = "procedural", f"procedural-{count}-{seed}"
    elif path.is_dir():
        images = FolderImages(path)
        name, digest = path.name, images.hash
        if len(images) <= MOST_FINGERPRINTS:
            digests = (fingerprint([images.image(i)]) for i in range(len(images)))
            subjects = record_natural_images("natural", digest, digests)
        else:
            log.info(f"{path}: the content of more than {MOST_FINGERPRINTS:,} images is not recorded")
    else:
        raise UserError(
            f"--generalist {generalist}: no such file or folder; pass an encoder file, a folder of images, "
            f"imagenet, kinetics or procedural{did_you_mean(generalist, ('imagenet', 'kinetics', 'procedural'))}"
        )
    samples = _views(Standardised(images), augmenters, boxes=boxes)
    return StageImages(samples=samples, count=len(images), name=name, hash=digest, subjects=subjects)


def target_slices(
    dataset: Dataset,
    splits: Sequence[str],
    augmenters: Augmenters,
    device: torch.device,
    cache_on_device: Literal["auto", "yes", "no"],
    crop_towards: CropTowards = "none",
    positives: Positives = "same",
    *,
    boxes: bool = False,
) -> StageImages:
    """All slices of the subjects of some splits, labelled or not.

    Raises:
        UserError: if the splits have no slice, the slices cannot be kept on the device as `cache_on_device` asks, or
            none has a cine or a neighbour as `crop_towards` and `positives` ask.
    """
    pool = subjects_of_pool(dataset, splits)
    slices = Slices(store=dataset.store, positions=np.flatnonzero(dataset.table["subject"].isin(pool)))
    if not len(slices):
        raise UserError(f"{dataset.root} has no slice of a training subject to pretrain on")
    log.info(f"pretraining on {count_of(len(slices), 'slice')} of {count_of(len(pool), 'subject')} of {dataset.name}")
    say_large_slices(slices.store.table.iloc[slices.positions], augmenters[0].augmentation, augmenters[0].size)
    pairing = _pairing(dataset, slices, crop_towards, positives)
    cached = _is_cached(slices, augmenters, device, cache_on_device, boxes)
    return StageImages(
        samples=(
            ViewsOnDevice(slices, (augmenters[0], augmenters[1]), device, pairing)
            if cached
            else _views(slices, augmenters, pairing, boxes=boxes)
        ),
        on_device=cached,
        count=len(slices),
        channels=slices.channels,
        name=dataset.name,
        hash=dataset.store.key,
        pool=digest_of_use(dataset.store.key, slices.positions),
        subjects=record_subjects(dataset, {"pool": pool}),
        splits=dataset.splits if dataset.name == "folder" else None,
    )


def _pairing(dataset: Dataset, slices: Slices, crop_towards: CropTowards, positives: Positives) -> Pairing:
    """What the two views of each slice show; a slice that lacks what is asked for gets the next best, said once."""
    centres: list[np.ndarray] = []
    neighbours: list[tuple[int, ...]] = []
    if crop_towards != "none":
        centres = [centre_map()] * len(slices)
    if crop_towards == "motion":
        maps = motion_maps(slices)
        still = sum(towards is None for towards in maps)
        if still == len(maps):
            raise UserError(
                f"--crop-towards motion: no slice of {dataset.root} has several time frames; use centre or none"
            )
        if still:
            log.info(f"{still} of {len(maps)} slices have no cine: their crops are drawn towards the centre")
        centres = [centre if towards is None else towards for towards, centre in zip(maps, centres, strict=True)]
    if positives != "same":
        neighbours = neighbours_of(slices, positives)
        if not any(neighbours):
            lacking = "a slice beside it in its volume" if positives == "slice" else "another time frame"
            raise UserError(f"--positives {positives}: no slice of {dataset.root} has {lacking}; use --positives same")
        if alone := neighbours.count(()):
            log.info(f"{alone} of {len(slices)} slices have no neighbouring {positives}: both views show the same one")
    return Pairing(neighbours=neighbours, centres=centres)


def target_images(images: ClassImages, augmenters: Augmenters) -> StageImages:
    """The training images of a data set with classes, which pretraining does not look at."""
    log.info(
        f"pretraining on {count_of(len(images.train), 'image')} of {images.name} "
        f"with {count_of(images.channels, 'channel')}"
    )
    return StageImages(
        samples=ViewsOfImages(images, augmenters),
        count=len(images.train),
        channels=images.channels,
        name=images.name,
        hash=images.digest,
        by_class=dict(zip(images.classes, images.counts, strict=True)),
        warnings=warn_of_test_duplicates(images),
    )


def target_exams(
    exams: ExamSet,
    splits: Sequence[str],
    augmenters: Augmenters,
    clip_frames: int,
    crop_towards: CropTowards = "none",
) -> StageImages:
    """All exams of the subjects of some splits; clips are drawn from them, and labels are not used.

    Their crops are drawn towards the centre unless `crop_towards` is none: nothing moves in an exam.

    Raises:
        UserError: if the splits have no exam.
    """
    pool = subjects_of_pool(exams, splits)
    positions = np.flatnonzero(exams.table["subject"].isin(pool))
    if not len(positions):
        raise UserError(f"{exams.root} has no exam of a training subject to pretrain on")
    log.info(
        f"pretraining on clips of {count_of(clip_frames, 'frame')} of "
        f"{count_of(len(positions), 'exam')} of {exams.name}"
    )
    return StageImages(
        samples=TwoClips(
            exams,
            positions,
            (augmenters[0], augmenters[-1]),
            clip_frames,
            None if crop_towards == "none" else centre_map(),
        ),
        count=len(positions),
        unit="exams",
        name=exams.name,
        hash=exams.key,
        pool=digest_of_use(exams.key, positions),
        subjects=record_subjects(exams, {"pool": pool}),
    )


def _views(
    images: Slices | Standardised, augmenters: Augmenters, pairing: Pairing | None = None, *, boxes: bool
) -> TorchDataset[Tensor]:
    if len(augmenters) == 1:
        return OneView(images, augmenters[0], pairing)
    return (TwoViewsWithBoxes if boxes else TwoViews)(images, augmenters[0], augmenters[1], pairing)


def _is_cached(
    slices: Slices, augmenters: Augmenters, device: torch.device, wanted: Literal["auto", "yes", "no"], boxes: bool
) -> bool:
    """Whether the slices are kept in the device's memory and the views are made there."""
    if len(augmenters) == 1 or boxes:
        if wanted == "yes":
            raise UserError("--cache-on-device yes needs a method of two views, without --dense: leave it out")
        return False
    if wanted == "yes" and not can_cache(slices, augmenters):
        raise UserError(
            "--cache-on-device yes does not go with noise, bicubic interpolation or affine maps: leave them out"
        )
    if wanted != "auto":
        return wanted == "yes"
    if device.type != "cuda" or not can_cache(slices, augmenters):
        return False
    return bytes_needed(slices) < torch.cuda.mem_get_info(device)[0] / 2
