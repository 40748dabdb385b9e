"""Which files of a folder are images, and which label map belongs to which image: the same for every command.

The names decide, in any case and in any of the usual spellings (`data.readers.roles`):

* folders: imagesTr/ and labelsTr/ of nnU-Net and the Decathlon, images/ and masks/, train/images/ and train/labels/;
* files side by side: case.nii.gz and case_seg.nii.gz, imaging.nii.gz and segmentation.nii.gz of a patient.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import UserError
from core.wording import count_of, listed
from data.readers.bids import fitting_stems
from data.readers.channels import Channels, channels_of, declared_channels, files_of_cases, unused_message
from data.readers.file_search import FileSearch, is_nnunet, search_files
from data.readers.images import IMAGE_SUFFIXES, NIFTI_SUFFIXES, stem
from data.readers.roles import (
    DOUBTFUL_WORDS,
    IN_FILE_NAMES,
    MODALITIES,
    SPLIT_WORDS,
    ends_on_label_word,
    folder_role,
    keys_of,
    names_label_map,
    words_of,
)

log = logging.getLogger("fewslice")


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image and its label map."""

    name: str
    """Path below the folder of images, without suffix, channel and folders that only name a role or split."""
    file: Path
    label: Path | None = None
    split: str = ""
    """Split that a folder's name says, or ""."""
    channels: tuple[Path, ...] = ()
    """Files of the chosen channels, `file` the first of them; () where they are not files of their own."""


@dataclass
class Discovery:
    """The images of a folder."""

    search: FileSearch
    images: list[ImageFile] = field(default_factory=list)
    """Ordered by path."""
    label_maps: list[Path] = field(default_factory=list)
    """Every label map, ordered by path."""
    unpaired: list[Path] = field(default_factory=list)
    """Label maps without an image."""
    conflicts: list[str] = field(default_factory=list)
    """Sentences about images and label maps that do not belong together one to one."""
    incomplete: list[str] = field(default_factory=list)
    """Sentences about cases without the channel that is used."""
    messages: list[str] = field(default_factory=list)
    """Decisions that may surprise a user, one line each."""
    data_sets: list[Path] = field(default_factory=list)
    """Folders that are an nnU-Net or Decathlon data set with label maps."""

    def report(self) -> None:
        """Log everything that was left out or may surprise, a line each."""
        for message in (*self.search.messages(), *self.messages):
            log.info(message)
        if self.unpaired:
            log.info(self.unpaired_message())

    def unpaired_message(self) -> str:
        """The label maps without an image, in one line."""
        names = listed([file.relative_to(self.search.root) for file in self.unpaired])
        count = count_of(len(self.unpaired), "label map")
        return f"{self.search.root}: {count} without an image, not used: {names}"

    def require_pairs(self) -> None:
        """Raise a UserError if it is in doubt which label map belongs to which image."""
        if doubts := self.conflicts + self.incomplete:
            raise UserError("; ".join(doubts[:3]) + (f" (and {len(doubts) - 3} more)" if len(doubts) > 3 else ""))
        if len(self.data_sets) > 1:
            folders = listed([folder.relative_to(self.search.root) for folder in self.data_sets])
            raise UserError(
                f"{self.search.root} holds {len(self.data_sets)} data sets, whose labels have nothing in common "
                f"({folders}): pass one of them as --data-root"
            )
        if self.unpaired and not any(image.label for image in self.images):
            first = self.images[0].file.relative_to(self.search.root) if self.images else "none"
            raise UserError(f"{self.unpaired_message()}; the images have other names, such as {first}: rename one side")


def label_maps_among(search: FileSearch) -> list[Path]:
    """The files whose names say that they are label maps."""
    return [
        each.file for each in _decided([_named(search.root, file) for file in search.files]) if each.role == "label"
    ]


def mask_name(path: Path) -> Path:
    """A mask's path without suffix, words like _seg at its end, and folders of roles: labels/p0_seg.png is p0."""
    folders = [name for name in path.parts[:-1] if not _names_nothing_else(name)]
    name = stem(path)
    while (shorter := re.sub(rf"[_\-. ](?:{'|'.join(sorted(IN_FILE_NAMES))})$", "", name, flags=re.IGNORECASE)) != name:
        name = shorter
    return Path(*folders, name)


def _names_nothing_else(folder: str) -> bool:
    """Whether a folder's name is that of a role alone, perhaps with a split of nnU-Net: labels, imagesTr."""
    says = folder_role(folder)
    return says.certain and set(says.rest.split()) <= SPLIT_WORDS.keys()


@dataclass
class _Named:
    """A file with the role and split in its path."""

    file: Path
    stem: str
    place: tuple[str, ...]
    """Folders without the words of their roles: the same for an image and its label map."""
    parts: tuple[str, ...]
    """Folders of the image's name."""
    role: str
    split: str
    split_folders: tuple[str, ...]
    """Folders that are named after a split alone, or a split and a role: part of the name if it is ambiguous."""
    doubtful: Path | None
    """A folder whose name suggests label maps; its content decides."""
    role_folder: Path | None
    channels: tuple[Path, ...] = ()
    """See `ImageFile.channels`."""

    @property
    def data_set(self) -> Path:
        """The folder that holds the folder of images or label maps."""
        return self.role_folder.parent if self.role_folder else self.file.parent


def discover(
    root: Path,
    *,
    channels: Channels = None,
    expect_channels: bool = False,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> Discovery:
    """Find the images below a folder, and their label maps.

    Args:
        root: the folder.
        channels: the channel or channels to use of nnU-Net's case_0000, case_0001, ...; None: 0.
        expect_channels: whether numbers 0000, 0001, ... are channels in any folder, not only in nnU-Net's.
        suffixes: of images and label maps.

    Raises:
        UserError: if the folder, or all of its files, are label maps by their names.
    """
    search = search_files(root, suffixes)
    discovery = Discovery(search=search)
    named = [_named(root, file) for file in search.files]
    named = _decided(named)
    images = [each for each in named if each.role == "image"]
    labels = [each for each in named if each.role == "label"]
    if predictions := [each.file for each in named if each.role == "prediction"]:
        search.outputs += sorted({file.parent for file in predictions})
    discovery.label_maps = [each.file for each in labels]
    name = root.resolve().name
    is_role = folder_role(name).certain and ends_on_label_word(name)
    holds_labels = is_role and not labels and not any(each.role_folder for each in named)
    if named and (holds_labels or (labels and not images)):
        raise UserError(
            f"{root} holds label maps only, by their names ({listed([each.file.name for each in named], 3)}): "
            "pass the folder that holds the images"
            + (f"; of other types there are {search.skipped_types()}, which are not read" if search.skipped else "")
        )
    images = _of_channels(discovery, images, labels, channels, expect_channels)
    pairs = _pairs(discovery, images, labels)
    names = _names(discovery, images)
    discovery.images = [
        ImageFile(name=name, file=image.file, label=pairs.get(image.file), split=image.split, channels=image.channels)
        for name, image in zip(names, images, strict=True)
    ]
    with_labels = {image.data_set for image in images if image.file in pairs and _is_nnunet(image)}
    discovery.data_sets = sorted(with_labels)
    return discovery


def _named(root: Path, file: Path) -> _Named:
    place: list[str] = []
    parts: list[str] = []
    split_folders: list[str] = []
    role, split, doubtful, role_folder = "image", "", None, None
    folder = root
    for name in file.relative_to(root).parts[:-1]:
        folder /= name
        says = folder_role(name)
        if says.split:
            split = says.split
            split_folders.append(says.split if says.certain else name)
        if says.role:
            certain = says.certain or ends_on_label_word(name)
            role = says.role if certain or says.role == "image" else role
            doubtful = folder if says.role == "label" and not certain else None
            if says.certain or doubtful is None:
                role_folder = folder
        elif words_of(name)[-1:] and words_of(name)[-1] in DOUBTFUL_WORDS:
            doubtful = folder
        if says.rest:
            place.append(says.rest)
        if not (says.split and not says.role) and not _names_nothing_else(name):
            parts.append(name)
    name = stem(file)
    among_images = role_folder is not None and role == "image"
    if role == "image" and names_label_map(name, among_images=among_images):
        role = "label in images" if among_images else "label"
    return _Named(file, name, tuple(place), tuple(parts), role, split, tuple(split_folders), doubtful, role_folder)


def _decided(named: list[_Named]) -> list[_Named]:
    """The files with their final role: names that leave a doubt are settled by the other names."""
    keys = {key for each in named if each.role == "image" and each.doubtful is None for key in keys_of(each.stem)}
    labels = {(each.place, each.stem) for each in named if each.role == "label"}
    stems = {(each.file.parent, words_of(each.stem)) for each in named if each.role == "image"}
    matched = {each.doubtful for each in named if each.doubtful and keys.intersection(keys_of(each.stem))}
    for each in named:
        if each.role == "label in images":
            each.role = "image" if (each.place, each.stem) in labels else "label"
        elif each.role == "image" and each.doubtful in matched:
            each.role = "label"
        elif each.role == "image" and _ends_on_doubtful(each) and (each.file.parent, words_of(each.stem)[:-1]) in stems:
            each.role = "label"
            each.stem = re.sub(r"[\W_]*[^\W\d_]+$", "", each.stem)
    return named


def _ends_on_doubtful(each: _Named) -> bool:
    return words_of(each.stem)[-1:] != () and words_of(each.stem)[-1] in DOUBTFUL_WORDS


def _is_nnunet(each: _Named) -> bool:
    return each.role_folder is not None and is_nnunet(each.role_folder.name)


def _of_channels(
    discovery: Discovery, images: list[_Named], labels: list[_Named], channels: Channels, expect_channels: bool
) -> list[_Named]:
    """The images of one channel, or of several the first ones with the files of all; their stems without number."""
    of_data_set: dict[Path, list[_Named]] = defaultdict(list)
    for image in images:
        of_data_set[image.data_set].append(image)
    label_stems: dict[Path, set[str]] = defaultdict(set)
    for label in labels:
        label_stems[label.data_set].add(label.stem)
    root = discovery.search.root.resolve()
    if is_nnunet(root.name):  # imagesTs alone: the label maps beside it tell channels from cases as well
        beside = root.with_name(re.sub("images", "labels", root.name, flags=re.IGNORECASE))
        label_stems[discovery.search.root] |= {stem(file) for file in beside.glob("*.nii*")}
    kept: list[_Named] = []
    wanted = channels if isinstance(channels, tuple) else (channels or 0,)
    for folder, members in of_data_set.items():
        volumes = [image for image in members if image.file.name.lower().endswith(NIFTI_SUFFIXES)]
        nnunet = any(map(_is_nnunet, members)) or is_nnunet(folder.resolve().name)
        candidates = members if nnunet or label_stems[folder] else volumes
        countable = {image.file for image in candidates}
        declared = declared_channels(folder)
        numbers = channels_of(
            [image.stem for image in candidates],
            label_stems[folder],
            declared=declared if declared is not None else declared_channels(folder.parent),
            expected=nnunet,
            certain=expect_channels or channels is not None,
        )
        # case_0000 alone may hold several channels, as nnU-Net's colour images do: reading it tells
        by_number = any(number for _, number in numbers.values())
        used = wanted if by_number else (0,)
        cases: dict[tuple, list[tuple[int, Path]]] = defaultdict(list)
        for image in members:
            if image.stem in numbers and image.file in countable:
                case, number = numbers[image.stem]
                cases[image.place, case].append((number, image.file))
            else:
                kept.append(image)
        files, doubts = files_of_cases(cases, used)
        discovery.incomplete += doubts
        for image in members:
            if image.file in files:
                channels_of_case = files[image.file] if by_number and channels is not None else ()
                kept.append(replace(image, stem=numbers[image.stem][0], channels=channels_of_case))
        if message := unused_message(cases, used):
            discovery.messages.append(f"{folder}: {message}")
    order = {image.file: position for position, image in enumerate(images)}
    return sorted(kept, key=lambda image: order[image.file])


def _pairs(discovery: Discovery, images: list[_Named], labels: list[_Named]) -> dict[Path, Path]:
    """{image: label map}; what stays in doubt is noted in the discovery."""
    root = discovery.search.root
    exact: dict[tuple, list[_Named]] = defaultdict(list)
    by_key: dict[tuple, list[_Named]] = defaultdict(list)
    by_place: dict[tuple, list[_Named]] = defaultdict(list)
    of_split: dict[tuple, list[_Named]] = defaultdict(list)
    for image in images:
        exact[image.place, image.stem].append(image)
        by_place[image.place].append(image)
        key = keys_of(image.stem)[0]
        by_key[image.place, key].append(image)
        of_split[image.split, key].append(image)
    claims: dict[Path, list[_Named]] = defaultdict(list)
    differ: list[str] = []
    paired_by_key: list[str] = []
    shared: list[str] = []
    for label in labels:
        fitting = exact[label.place, label.stem]
        for key in keys_of(label.stem) if not fitting else ():
            fitting = by_key[label.place, key]
            if not fitting and not by_place[label.place]:
                fitting = of_split[label.split, key]
            if fitting:
                break
        if not fitting:
            near = [image for image in images if image.file.parent.name == label.file.parent.name]
            positions = fitting_stems(label.stem, [image.stem for image in near])
            fitting = [near[position] for position in positions if len(positions) == 1]
        if len(fitting) == 1 and fitting[0].stem != label.stem:
            by_case = fitting[0].stem.casefold() == label.stem.casefold()
            (differ if by_case else paired_by_key).append(
                f"{label.file.relative_to(root)} and {fitting[0].file.relative_to(root)}"
            )
        if not fitting:
            fitting = _modalities(label, by_place[label.place])
            if len(fitting) > 1:
                shared.append(f"{label.file.relative_to(root)}")
        elif len(fitting) > 1:
            files = listed([image.file.relative_to(root) for image in fitting])
            discovery.conflicts.append(
                f"{label.file} is the label map of {len(fitting)} images ({files}): keep one of them"
            )
        if not fitting:
            discovery.unpaired.append(label.file)
        for image in fitting:
            claims[image.file].append(label)
    for file, of_image in claims.items():
        if len(of_image) > 1:
            files = listed([label.file.relative_to(root) for label in of_image])
            discovery.conflicts.append(f"{file} has {len(of_image)} label maps ({files}): keep one of them")
    if differ:
        discovery.messages.append(f"{root}: paired although upper and lower case differ: {listed(differ)}")
    if paired_by_key:
        discovery.messages.append(f"{root}: label maps paired by their names: {listed(paired_by_key, 1)}")
    if shared:
        discovery.messages.append(
            f"{root}: label maps of several modalities of a case, all of whose images are used: {listed(shared)}"
        )
    return {file: of_image[0].file for file, of_image in claims.items()}


def _modalities(label: _Named, images: Iterable[_Named]) -> list[_Named]:
    """The images of the label map's folder that are modalities of its case: case_t1, case_flair for case_seg."""
    key = keys_of(label.stem)[0]
    nearby = [image for image in images if image.file.parent == label.file.parent]
    fitting = []
    for image in nearby:
        own_key = keys_of(image.stem)[0]
        if own_key[: len(key)] == key and "".join(own_key[len(key) :]) in MODALITIES:
            fitting.append(image)
    return fitting


def _names(discovery: Discovery, images: list[_Named]) -> list[str]:
    """A name for each image. Folders of splits are part of it only where train/ and test/ number their images alike."""
    short = ["/".join((*image.parts, image.stem)) for image in images]
    holders: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, image in zip(short, images, strict=True):
        if not _is_nnunet(image):
            holders[name].add(image.split_folders)
    numbered = {
        name
        for name, folders in holders.items()
        if len(folders) > 1 and not any(word.isalpha() for key in keys_of(name) for word in key)
    }
    if not numbered:
        return short
    discovery.messages.append(
        f"{discovery.search.root}: {count_of(len(numbered), 'name')} such as {min(numbered)} occur in several "
        "splits and are taken for different subjects; --subject-pattern decides otherwise"
    )
    return [
        "/".join((*image.split_folders, *image.parts, image.stem)) if name in numbered else name
        for name, image in zip(short, images, strict=True)
    ]
