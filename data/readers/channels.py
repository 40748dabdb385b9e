"""Channels of images: nnU-Net's numbered files, case_0000.nii.gz and case_0001.nii.gz, or those that one file holds."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError
from core.text import read_json
from core.wording import count_of
from data.readers.geometry import SliceAxis, align
from data.readers.images import Volume, one_channel, read_volume, require_in_file, stem

CHANNEL = re.compile(r"(.+)_(\d{4})")

OF_CHANNELS = ["channels", "channel_files"]
"""Columns that an index of several channels or of one colour has as well: their numbers and their files (one for each,
or one for all), each a tuple, () for a file that is read as it is. `file` is the first of the files, `frame` is 1."""

Channels = int | tuple[int, ...] | None
"""Choice of channels: the number of the only one; the numbers of several, in the order in which a network gets them; or
None, see `data.sources.FolderSource`."""


def checked_channels(channels: Channels) -> Channels:
    """A choice of channels, that of a single one as its number; a list, as in JSON, counts as a tuple.

    Raises:
        UserError: if none is named, or of several one is negative or named twice.
    """
    if isinstance(channels, list):
        channels = tuple(channels)
    if not isinstance(channels, tuple):
        return channels
    if len(channels) == 1:
        return channels[0]
    if not channels:
        raise UserError("--channels is empty: name one channel or more, or leave it out")
    if min(channels) < 0 or len({*channels}) < len(channels):
        raise UserError(f"--channels {_listed(channels)}: each must be 0 or more, and none named twice")
    return channels


def several(channels: Channels) -> tuple[int, ...]:
    """The channels that are chosen, if they are more than one; else ()."""
    return channels if isinstance(channels, tuple) else ()


def refuse_several(channels: Channels, what: str) -> None:
    """Raise a UserError if several channels are chosen where there is one; `what` is a subject with its verb."""
    if chosen := several(channels):
        raise UserError(f"{what} one channel, and --channels {_listed(chosen)} names several: name one")


def read_channels(files: Sequence[Path], channels: Sequence[int], slicing: SliceAxis = "auto") -> list[Volume]:
    """Read several channels of an image, each as a 3D volume on the grid of the first.

    Args:
        files: one for each channel, or the one that holds all of them: as colours or along the last axis.
        channels: their numbers.
        slicing: setting of the slice axis.

    Raises:
        UserError: if a file cannot be read, lacks a channel, has several frames, or does not lie on the first's grid.
    """
    if len(files) == 1:
        whole = read_volume(files[0], channels=True)
        require_in_file(files[0], whole.shape.frames, channels)
        volumes = [one_channel(whole, channel) for channel in channels]
    else:
        first, *others = map(read_volume, files)
        refuse_frames(files[0], first.shape.frames)
        volumes = [first, *(align(other, first) for other in others)]
    return [replace(volume, slicing=slicing) for volume in volumes]


def refuse_frames(file: Path, frames: int) -> None:
    """Raise a UserError if a file of one channel has several frames."""
    if frames > 1:
        raise UserError(f"{file} has {frames} frames and is one of several channels, which are 3D: save a file of each")


def files_of_cases(
    cases: Mapping[Any, Sequence[tuple[int, Path]]], channels: Sequence[int]
) -> tuple[dict[Path, tuple[Path, ...]], list[str]]:
    """The files of the chosen channels of each case.

    Args:
        cases: channel and file of each image, by case.
        channels: numbers of the channels.

    Returns:
        The files of all channels by that of the first; and a sentence for each case that lacks one, or of several has
        one twice.
    """
    files: dict[Path, tuple[Path, ...]] = {}
    doubts: list[str] = []
    for members in cases.values():
        found = [[file for number, file in members if number == channel] for channel in channels]
        if [] in found:
            missing = channels[found.index([])]
            doubts.append(
                f"{members[0][1]} is of a case that has no channel {missing} (_{missing:04d}): add it or choose "
                "another by --channels"
            )
        elif len(channels) > 1 and (twice := [each for each in found if len(each) > 1]):
            doubts.append(f"{twice[0][0]} and {twice[0][1]} are the same channel of one case: keep one of them")
        else:
            files |= {first: (first, *(each[0] for each in found[1:])) for first in found[0]}
    return files, doubts


def unused_message(cases: Mapping[Any, Sequence[tuple[int, Path]]], channels: Sequence[int]) -> str:
    """A sentence about the files of channels that are not chosen; "" if there are none. `cases` as above."""
    unused = sum(number not in channels for members in cases.values() for number, _ in members)
    if not unused:
        return ""
    names = " ".join(f"{channel} (_{channel:04d})" for channel in channels)
    used = f"channel {names} is used" if len(channels) == 1 else f"the channels {names} are used"
    another = "another" if len(channels) == 1 else "others"
    return f"only {used}, {count_of(unused, 'file')} of other channels not; --channels chooses {another}"


def files_of_channels(file: Path, channels: Channels) -> tuple[Path, ...]:
    """The files of the channels of one image, which lie beside it, numbered like it; () if it is not one of them.

    Raises:
        UserError: if some of them are missing, or the file is another channel of its case.
    """
    chosen = channels if isinstance(channels, tuple) else (channels or 0,)
    match = CHANNEL.fullmatch(stem(file))
    if match is None:
        return ()
    suffix = file.name[len(stem(file)) :]
    files = tuple(file.with_name(f"{match[1]}_{channel:04d}{suffix}") for channel in chosen)
    missing = [each for each in files if not each.is_file()]
    if int(match[2]) not in chosen:
        if missing:
            return ()
        raise UserError(f"{file} is another channel than {_listed(chosen)}, of the training: pass {files[0]}")
    if channels is None or (len(files) > 1 and len(missing) == len(files) - 1):  # nnU-Net's colours, case_0000.png
        return ()
    if missing:
        raise UserError(f"{missing[0]} is missing: {file} needs the channels {_listed(chosen)} beside it")
    return files


def _listed(channels: Sequence[int]) -> str:
    return " ".join(map(str, channels))


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


def has_numbered_channels(table: pd.DataFrame, channels: Channels) -> bool:
    """Whether labelled images of an index have a channel number that their label maps lack (case_0000, case), and a
    single channel was chosen by it."""
    table = table[table["labelled"]]
    if isinstance(channels, int) and "channels" in table:
        table = table[[not colour for colour in table["channels"]]]
    pairs = table[["file", "label_file"]].drop_duplicates()
    stems = ((CHANNEL.fullmatch(stem(Path(file))), stem(Path(label))) for file, label in pairs.itertuples(index=False))
    numbers = {int(match[2]) for match, label in stems if match and match[1] == label}
    return channels in numbers if isinstance(channels, int) else bool(numbers)


def declared_channels(folder: Path) -> int | None:
    """Number of channels that the dataset.json in a folder names; None if there is none."""
    try:
        content = read_json(folder / "dataset.json")
        return len(content.get("channel_names") or content["modality"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is wrong with the file is said where its classes are read
