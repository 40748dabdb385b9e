"""The same image under two names, found by the content of the decoded images."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError, first_and_count
from core.program import program
from data.preprocessing import LARGE_SLICE
from data.readers.class_images import ClassImages
from data.splits import SPLITS, SplitTable

log = logging.getLogger("fewslice")


def fingerprint(slices: Sequence[np.ndarray] | np.ndarray) -> str:
    """Digest of the middle slice of a volume, of equal values whatever their type: 16 hexadecimal digits.

    One slice identifies a volume, and also its export as single images or as a cine of the middle slice. If it is
    constant, the nearest that is not is taken.

    Args:
        slices: (rows, columns) each, in file units.

    Returns:
        The digest; "" if every slice is constant, which identifies nobody.
    """
    middle = len(slices) // 2
    for k in sorted(range(len(slices)), key=lambda k: abs(k - middle)):
        values = np.asarray(slices[k])
        if values.min() != values.max():
            digest = hashlib.blake2b(f"{values.shape}".encode(), digest_size=8)
            pixels = values.ravel()
            for first in range(0, len(pixels), LARGE_SLICE):  # in float64 a slice takes up to eight times its size
                digest.update((pixels[first : first + LARGE_SLICE].astype(np.float64) + 0.0).data)
            return digest.hexdigest()
    return ""


def fingerprint_of_channels(channels: Iterable[np.ndarray | Sequence[np.ndarray]]) -> str:
    """The `fingerprint` of the first channel that is not constant, so that it equals that of this channel alone."""
    return next(filter(None, map(fingerprint, channels)), "")


def identical_images(images: pd.DataFrame) -> list[pd.DataFrame]:
    """The groups of images with one content and different subjects.

    Args:
        images: of `SplitTable.images`.

    Returns:
        A table for each content, one row per subject, in the order of `images`.
    """
    pairs = images[images["digest"] != ""].drop_duplicates(["digest", "subject"])
    pairs = pairs[pairs.duplicated("digest", keep=False)]
    return [rows for _, rows in pairs.groupby("digest", sort=False)]


def duplicates_of_other_splits(images: pd.DataFrame, splits: Sequence[str]) -> set[str]:
    """The subjects of some splits that have an image of a subject of another split."""
    duplicates: set[str] = set()
    for rows in identical_images(images):
        rows = rows[rows["split"].isin(SPLITS)]
        inside = rows["split"].isin(splits)
        if not inside.all():
            duplicates |= {*rows.loc[inside, "subject"]}
    return duplicates


def subjects_of_pool(data: SplitTable, splits: Sequence[str]) -> set[str]:
    """The subjects of some splits, without those that have an image of another split under another name.

    A log message counts those that are left out.
    """
    duplicates = duplicates_of_other_splits(data.images(), splits)
    if duplicates:
        log.warning(
            f"{len(duplicates)} subjects are left out, because images of theirs are validation or test images under "
            f"another name; {program('data.inspect')} names them"
        )
    return {*data.table.loc[data.table["split"].isin(splits), "subject"]} - duplicates


def check_duplicates(data: SplitTable, *, test: bool, allow: bool) -> str | None:
    """Refuse a split that separates identical images: a subject is in it twice, under two names.

    Only subjects with labels count: no other is trained on or scored.

    Args:
        data: the data set.
        test: whether the test split is scored; if not, its images that are in another split are logged, not refused.
        allow: go on in spite of identical images.

    Returns:
        With `allow`, a sentence for the result if there are any; else None.

    Raises:
        UserError: if there are any, without `allow`.
    """
    images = data.images()
    labelled = images[images["subject"].isin(data.labelled_subjects) & images["split"].isin(SPLITS)]
    apart = [rows for rows in identical_images(labelled) if len({*rows["split"]}) > 1]
    if not test and (unscored := [rows for rows in apart if len({*rows["split"]} - {"test"}) < 2]):
        apart = [rows for rows in apart if len({*rows["split"]} - {"test"}) > 1]
        log.warning(f"{len(unscored)} test images are in another split under another name ({_named(unscored)})")
    if not apart:
        return None
    if allow:
        warning = f"scores may be too high: {len(apart)} images are in two splits under two names"
        log.warning(warning)
        return warning
    raise UserError(
        f"the same image is in two splits under two names: {_named(apart)}; remove one of the two, put both "
        "into one split, or pass --allow-duplicates, which the result then states"
    )


def warn_of_test_duplicates(images: ClassImages) -> list[str]:
    """Log, and return for the result, a sentence if test images have the pixels of training images; else [].

    Equal values count whatever their type, and whatever the images' names and classes. It is no refusal, because data
    sets that everybody uses as they are may hold such pairs.
    """

    def content(k: int) -> bytes:
        pixels = np.asarray(images.pixels[k], np.float32) + 0.0  # the reader's types fit exactly; -0 becomes 0
        return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()

    tests: dict[bytes, list[int]] = {}
    for k in images.test:
        tests.setdefault(content(k), []).append(k)
    train: dict[bytes, int] = {}
    for k in images.train if tests else ():
        if (digest := content(k)) in tests:
            train.setdefault(digest, k)
    pairs = [
        f"{images.files[train[d]]} and {images.files[k]}" for d, found in tests.items() if d in train for k in found
    ]
    if not pairs:
        return []
    warning = (
        f"scores may be too high: {len(pairs)} of {len(images.test)} test images are training images under another "
        f"name: {first_and_count(pairs)}"
    )
    log.warning(warning)
    return [warning]


def _named(groups: Sequence[pd.DataFrame]) -> str:
    """The files of the first group of identical images, and the number of the other groups."""
    return first_and_count([" and ".join(f"{row.file} ({row.split})" for row in rows.itertuples()) for rows in groups])


def duplicate_findings(images: pd.DataFrame) -> list[tuple[str, str, bool]]:
    """(file, what is wrong, whether it is an error) for the subjects that share images, each pair once."""
    by_subjects: dict[tuple[str, ...], Any] = {}
    for rows in identical_images(images):
        by_subjects.setdefault(tuple(rows["subject"]), []).append(rows)
    findings = []
    for subjects, groups in by_subjects.items():
        rows = groups[0]
        others = ", ".join(f"{row.file} of subject {row.subject} ({row.split})" for row in rows.iloc[1:].itertuples())
        more = f"; they share {len(groups)} images" if len(groups) > 1 else ""
        first = f"of subject {subjects[0]} ({rows['split'].iloc[0]}) is identical to {others}{more}"
        apart = len({*rows["split"]} & {*SPLITS}) > 1
        findings.append((rows["file"].iloc[0], first + (": one patient in two splits" if apart else ""), apart))
    return findings
