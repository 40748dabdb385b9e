"""nnU-Net's channel numbers: case_0000.nii.gz, case_0001.nii.gz are two channels of one case."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from core.text import read_json
from data.readers.images import stem

CHANNEL = re.compile(r"(.+)_(\d{4})")


def channels_of(
    stems: Iterable[str], label_stems: Collection[str], *, declared: int | None, expected: bool, certain: bool
) -> dict[str, tuple[str, int]]:
    """Tell channel numbers from case numbers (amos_0001), which look alike.

    They are channels if label maps are named without them, or if every case has the numbers 0, 1, ... without gap.

    Args:
        stems: of the images of a data set.
        label_stems: of its label maps.
        declared: number of channels that dataset.json names, None without one.
        expected: whether the images lie where nnU-Net looks for channels.
        certain: whether the user or the network says that there are channels.

    Returns:
        {stem: (case, channel)}; empty if the numbers are those of cases.
    """
    parsed = {stem: (match[1], int(match[2])) for stem in stems if (match := CHANNEL.fullmatch(stem))}
    if not parsed or any(stem in label_stems for stem in parsed):
        return {}
    if any(case in label_stems for case, _ in parsed.values()):
        return parsed
    numbers = defaultdict(list)
    for case, channel in parsed.values():
        numbers[case].append(channel)
    if not (expected or certain) or any(sorted(of_case) != list(range(len(of_case))) for of_case in numbers.values()):
        return {}
    if declared is not None:
        return parsed if max(map(len, numbers.values())) <= declared else {}
    # One case with several numbers may as well be several cases of one name, as the Decathlon's.
    return parsed if certain or len(numbers) > 1 or len(parsed) == 1 else {}


def has_numbered_channels(table: pd.DataFrame) -> bool:
    """Whether labelled images of an index have a channel number that their label maps lack: case_0000, case."""
    pairs = table.loc[table["labelled"], ["file", "label_file"]].drop_duplicates()
    stems = ((stem(Path(file)), stem(Path(label))) for file, label in pairs.itertuples(index=False))
    return any((match := CHANNEL.fullmatch(image)) is not None and match[1] == label for image, label in stems)


def declared_channels(folder: Path) -> int | None:
    """Number of channels that the dataset.json in a folder names; None if there is none."""
    try:
        content = read_json(folder / "dataset.json")
        return len(content.get("channel_names") or content["modality"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is wrong with the file is said where its classes are read
