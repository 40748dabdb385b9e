"""Leakage: initial weights that were trained on the subjects a run is scored on."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from core.errors import UserError, first_violation
from core.subjects import SubjectRecord, salted, salted_all
from data.splits import SplitTable

log = logging.getLogger("fewslice")

LEAKS = {"pool": ("val", "test"), "train": ("val", "test"), "val": ("test",)}
"""By use of a subject in an earlier stage, the splits in which it raises scores; "val" chose weights."""
NAMES = {"val": "validation", "test": "test"}
SAME_SPLIT = {
    "acdc": "without --unlabelled-splits all",
    "folder": "with the same --splits-file, or that of the encoder's run, without --unlabelled-splits all",
    "mrnet": "with the same --task and --split-seed, without --unlabelled-splits all",
    "exams": "with the same --labels and --split-seed, without --unlabelled-splits all",
}
"""How to pretrain without the validation and test subjects, by layout."""
NATURAL = ("generalist",)
"""Stages on natural images, which need no record."""


def record_subjects(data: SplitTable, uses: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The `core.subjects.SubjectRecord` of a training stage, as JSON values.

    Args:
        data: the data set.
        uses: "pool", "train", "val" or "test" -> the subjects that were used for it.
    """
    salt = salted("salt", data.digest)  # follows from the data, so that the same run writes the same file
    images = data.images()
    sets = {use: {*subjects} for use, subjects in uses.items()}
    record = SubjectRecord(
        salt=salt,
        data=data.name,
        plane=data.plane,
        key=data.digest,
        subjects={use: salted_all(subjects, salt) for use, subjects in sets.items()},
        images={
            use: salted_all(images.loc[images["subject"].isin(subjects), "digest"], salt)
            for use, subjects in sets.items()
        },
    )
    return record.model_dump()


def record_natural_images(name: str, key: str, digests: Iterable[str]) -> dict[str, Any]:
    """The record of a stage on a folder of images without subjects: their content alone, as they may be scans, too."""
    salt = salted("salt", key)
    images = {"pool": salted_all(digests, salt)}
    return SubjectRecord(salt=salt, data=name, key=key, subjects={}, images=images).model_dump()


def record_splits(data: SplitTable, train: np.ndarray, pool: np.ndarray | None = None) -> dict[str, Any]:
    """The record of a supervised run: the subjects of the rows `train`, and those with labels of the other splits.

    `pool` are the rows that were trained on without labels, None for none.
    """
    labelled = data.table[data.table["subject"].isin(data.labelled_subjects)]
    others = {split: labelled.loc[labelled["split"] == split, "subject"] for split in ("val", "test")}
    uses = {"train": data.table["subject"].iloc[train], **others}
    return record_subjects(data, uses if pool is None else uses | {"pool": data.table["subject"].iloc[pool]})


def is_same_data(data: SplitTable, record: SubjectRecord) -> bool:
    """Whether equal names mean the same subject: the data sets are equal, share an image, or cannot be compared."""
    digests = {*data.images()["digest"]} - {""}
    known = {each for text in record.images.values() for each in text.split()}
    if record.key == data.digest:
        return True
    if record.data == data.name and (record.plane != data.plane or not digests or not known):
        return True  # other planes of the same exams have other images
    return any(salted(digest, record.salt) in known for digest in digests)


def was_trained_on(data: SplitTable, lineage: Iterable[Mapping[str, Any]], init: str) -> bool:
    """Whether a stage of the lineage of the weights `init` was trained on the data set, see `is_same_data`."""
    return any(is_same_data(data, record) for record in records(lineage, init))


def check_leakage(data: SplitTable, lineage: Iterable[Mapping[str, Any]], init: str, *, allow: bool) -> str | None:
    """Refuse initial weights that were trained on labelled subjects of the validation or test split.

    The content of images decides, so that renamed files are found and equal names in unrelated data sets are no leak;
    names decide within the same data (`is_same_data`).

    Args:
        data: the data set that the run trains and scores on.
        lineage: the stages that trained the weights.
        init: the weights' name in messages.
        allow: go on in spite of a leak.

    Returns:
        With `allow`, a sentence for the result if there is a leak; else None.

    Raises:
        UserError: for a leak, without `allow`.
    """
    images = data.images()
    images = images[images["subject"].isin(data.labelled_subjects)]
    leaked: dict[str, set[str]] = {"val": set(), "test": set()}
    namesakes: set[str] = set()
    lineage = list(lineage)
    if any("subjects" not in entry and entry.get("stage") not in NATURAL for entry in lineage):
        log.info(f"{init} does not say which subjects it was trained on: leakage cannot be checked")
    for record in records(lineage, init):
        hashes = images["digest"].map({digest: salted(digest, record.salt) for digest in {*images["digest"]} - {""}})
        names = images["subject"].map({name: salted(name, record.salt) for name in {*images["subject"]}})
        same = is_same_data(data, record)
        for use, splits in LEAKS.items():
            by_content = hashes.isin(record.images.get(use, "").split())
            by_name = names.isin(record.subjects.get(use, "").split())
            for split in splits:
                rows = images["split"] == split
                leaked[split] |= {*images.loc[rows & (by_content | (by_name & same)), "subject"]}
                namesakes |= {*images.loc[rows & by_name, "subject"]}
    if not any(leaked.values()):
        if namesakes:
            log.warning(
                f"{len(namesakes)} validation and test subjects have names of subjects that {init} was trained on, but "
                "other images: make sure that they are other patients"
            )
        return None
    count = sum(map(len, leaked.values()))
    parts = [f"{len(subjects)} {NAMES[split]}" for split, subjects in leaked.items() if subjects]
    what = f"trained on {' and '.join(parts)} subject{'s' if count > 1 else ''} of this data set"
    if not allow:
        raise UserError(
            f"--init {init} was {what}, so that scores would be too high: pretrain without them "
            f"({SAME_SPLIT[data.name]}), or pass --allow-leakage, which the result then states"
        )
    log.warning(f"scores may be too high: {init} was {what}")
    return f"scores may be too high: the initial weights were {what}"


def subjects_trained_on(images: Iterable[tuple[str, str]], stages: Iterable[SubjectRecord]) -> set[str]:
    """The subjects that a stage was trained on, with or without labels.

    The content of images decides; names do only where the stage knows an image, as equal names in unrelated data sets
    are other patients.

    Args:
        images: subject and `data.duplicates.fingerprint` of each image.
        stages: records of the stages.
    """
    images, trained = list(images), set()
    for record in stages:
        known = {each for text in record.images.values() for each in text.split()}
        used = {each for use in ("pool", "train") for each in record.images.get(use, "").split()}
        names = {each for use in ("pool", "train") for each in record.subjects.get(use, "").split()}
        hashes = [salted(digest, record.salt) if digest else "" for _, digest in images]
        same = not known.isdisjoint(hashes)
        for (subject, _), digest in zip(images, hashes, strict=True):
            if digest in used or (same and salted(subject, record.salt) in names):
                trained.add(subject)
    return trained


def records(lineage: Iterable[Mapping[str, Any]], init: str) -> Iterator[SubjectRecord]:
    """The records of the stages that have one.

    Raises:
        UserError: if a record is damaged.
    """
    for entry in lineage:
        try:
            if (content := entry.get("subjects")) is not None:
                yield SubjectRecord.model_validate(content)
        except ValidationError as error:
            damage = f"the record of subjects in the card of {init} is damaged ({first_violation(error)})"
            raise UserError(f"{damage}: make the weights again") from None
