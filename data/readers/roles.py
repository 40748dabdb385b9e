"""Roles and splits in names of files and folders: image, label map or prediction; training, validation or test."""

import re
import unicodedata
from functools import lru_cache
from typing import Literal, NamedTuple

Role = Literal["image", "label", "prediction", ""]

IMAGE_WORDS = frozenset(
    ["image", "images", "img", "imgs", "imaging", "scan", "scans", "volume", "volumes", "vol", "input", "inputs"]
)
# fmt: off
LABEL_WORDS = frozenset([
    "label", "labels", "labelmap", "labelmaps", "lbl", "lbls", "mask", "masks", "msk", "seg", "segs",
    "segmentation", "segmentations", "dseg", "aseg", "gt", "gts", "groundtruth", "groundtruths", "truth",
    "annotation", "annotations", "annot", "manual",
])
# fmt: on
DOUBTFUL_WORDS = frozenset(
    ["roi", "rois", "contour", "contours", "lesion", "lesions", "target", "targets", "delineation", "delineations"]
)
"""Words at the end of names of label maps, or of images, which the other names tell: case_roi beside case is one."""
IN_FILE_NAMES = LABEL_WORDS - {"manual"}
PREDICTION_WORDS = frozenset(["prediction", "predictions", "pred", "preds"])
SPLIT_WORDS = {
    **dict.fromkeys(("tr", "train", "training"), "train"),
    **dict.fromkeys(("va", "val", "valid", "validation"), "val"),
    **dict.fromkeys(("ts", "test", "testing"), "test"),
}
ALWAYS_LABELS = LABEL_WORDS - {"segmentation", "seg", "segs", "annotation", "manual", "truth", "label"}
"""Words at the end of a folder's name that nobody ends the name of a whole data set on."""

# fmt: off
MODALITIES = frozenset([
    "t1", "t1c", "t1ce", "t1gd", "t1n", "t1w", "t2", "t2w", "t2f", "flair", "dwi", "adc", "pd", "pdw", "swi",
    "dce", "asl", "ct", "pet", "mr", "mri", "cbf", "cbv", "mtt", "tmax",
])
# fmt: on
"""Ends of the names of images that are several modalities of one case, on one grid and with one label map."""


class FolderRole(NamedTuple):
    """Role and split in the name of a folder."""

    role: Role
    split: str
    """"train", "val", "test", or "" if the name says none."""
    certain: bool
    """Whether the name consists of words of roles and splits alone: labels, imagesTr, train_masks."""
    rest: str
    """The name without the words of roles, in lower case: an image and its label map agree in it."""


@lru_cache(maxsize=100_000)
def words_of(name: str) -> tuple[str, ...]:
    """The words and numbers of a name in lower case: "imagesTr_02" is images, tr, 02."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    words: list[str] = []
    for word in re.findall(r"\d+|[^\W\d_]+", name.casefold()):
        if words and f"{words[-1]} {word}" in ("ground truth", "ground truths", "label map", "label maps"):
            words[-1] += word
        else:
            words.append(word)
    return tuple(words)


@lru_cache(maxsize=10_000)
def folder_role(name: str) -> FolderRole:
    """The role and split of a folder, by its name."""
    words = words_of(name)
    letters = [word for word in words if word not in SPLIT_WORDS and not word.isdigit()]
    role = _role(letters[-1:])
    certain = bool(letters) and all(_role([word]) for word in letters)
    # A name that is only a split (train/), or says a role as well (train_images), names a split; others may by chance,
    # as the TS of BraTS_seg.
    long_enough = 1 if certain or not letters else 3
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS and len(word) > long_enough}
    split = splits.pop() if len(splits) == 1 and (role or not letters) else ""
    rest = " ".join(word for word in words if not _role([word])) if role else name
    return FolderRole(role, split, certain, rest)


def split_of_folders(file: str) -> str:
    """The split that the innermost folder of a path which names one says, or ""."""
    splits = [folder_role(name).split for name in file.split("/")[:-1]]
    return next(filter(None, reversed(splits)), "")


def ends_on_label_word(name: str) -> bool:
    """Whether a folder's name ends on a word such as masks, which leaves no doubt about what it holds."""
    letters = [word for word in words_of(name) if word not in SPLIT_WORDS and not word.isdigit()]
    return bool(letters) and letters[-1] in ALWAYS_LABELS


def names_label_map(stem: str, *, among_images: bool = False) -> bool:
    """Whether a file's name says that it is a label map: case_seg, label0001, mask.

    Args:
        stem: the name without suffix.
        among_images: whether it lies in a folder of images, where seg_image_1 is an image.
    """
    roles = [word for word in words_of(stem) if word in IN_FILE_NAMES or word in IMAGE_WORDS]
    if among_images and roles and roles[-1] in IMAGE_WORDS:
        return False
    return any(word in IN_FILE_NAMES for word in roles)


def keys_of(stem: str) -> tuple[tuple[str, ...], ...]:
    """Keys by which an image and its label map are matched: the words of the stem without those of roles.

    The second key of a label map also lacks the number behind its role: case_mask_1 belongs to case.
    """
    words = words_of(stem)
    key = tuple(word for word in words if not _role([word]))
    if len(words) > 2 and words[-1].isdigit() and words[-2] in LABEL_WORDS:
        return key, key[:-1]
    return (key,)


def _role(last: list[str]) -> Role:
    if not last:
        return ""
    if last[0] in LABEL_WORDS:
        return "label"
    if last[0] in IMAGE_WORDS:
        return "image"
    return "prediction" if last[0] in PREDICTION_WORDS else ""
