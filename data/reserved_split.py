"""The split that pretraining on a folder reserves, and that fine-tuning keeps.

Pretraining leaves out the subjects that will validate and test. Their labels may come later, so the split is drawn
before and lies as `splits.json` beside the encoder.
"""

import logging
from pathlib import Path

from core.errors import first_and_count
from data.slices import Dataset, with_splits
from data.sources import SliceSource
from data.splits import load_splits, split_subjects

log = logging.getLogger("fewslice")

FILE = "splits.json"
FEWEST = 3
"""Labelled subjects from which each of the three splits has one."""


def reserve_split(dataset: Dataset, source: SliceSource) -> Dataset:
    """Reserve validation and test subjects for pretraining, even if their labels are to come.

    Three or more labelled subjects are split as fine-tuning does; with fewer the rest of the subjects are, too. A split
    that the user or the data set chose is kept.
    """
    labelled = dataset.labelled_subjects
    if _is_chosen(dataset, source) or len(labelled) >= FEWEST:
        return dataset
    fixed = {subject: split for subject, split in dataset.splits.items() if split != "train" or subject in labelled}
    if "val" in {fixed[subject] for subject in fixed.keys() - labelled}:  # the folders say who validates
        return dataset
    others = dataset.splits.keys() - fixed.keys() | labelled
    splits = split_subjects(others, test="test" not in fixed.values()) | fixed
    counts = {split: list(splits.values()).count(split) for split in ("train", "val", "test")}
    if counts["val"] or counts["test"]:
        log.info(
            f"few subjects with labels ({len(labelled)}): reserved to be labelled later are {counts['val']} for "
            f"validation and {counts['test']} for testing; --unlabelled-splits all pretrains on them, too"
        )
    return with_splits(dataset, splits)


def keep_reserved_split(dataset: Dataset, source: SliceSource, init: str, *, same_data: bool) -> Dataset:
    """Split a data set as the run that made the initial weights did, unless the user or the data set chose a split.

    Subjects that were not in that run are for training: they cannot have been reserved. If none of the labelled ones
    was, another split is drawn; without any label the split is kept.

    Args:
        dataset: the data set.
        source: its settings.
        init: the initial weights, a file or a folder, with `splits.json` beside it.
        same_data: whether they were trained on this data set.
    """
    if _is_chosen(dataset, source) or not same_data:
        return dataset
    path = Path(init).expanduser()
    folder = path if path.is_dir() else path.parent
    # the encoders of --keep-epochs lie in a folder of their own
    files = [place / FILE for place in (folder, folder.parent) if (place / FILE).is_file()]
    if not files:
        return dataset
    splits = load_splits(files[0])
    labelled = sorted(dataset.labelled_subjects)
    if labelled and not splits.keys() & {*labelled}:
        return dataset
    if added := [subject for subject in labelled if subject not in splits]:
        log.info(f"{len(added)} labelled subjects, added after pretraining, are for training: {first_and_count(added)}")
    log.info(f"split by subject read from {files[0]}, so that no validation or test subject was pretrained on")
    return with_splits(dataset, splits)


def _is_chosen(dataset: Dataset, source: SliceSource) -> bool:
    splits_file = getattr(source, "splits_file", None)
    return source.dataset != "folder" or splits_file is not None or (dataset.root / FILE).is_file()
