"""Images with classes: class folders, CIFAR-10 as torchvision stores it, and the digits that come with scikit-learn."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.cache import made_once
from core.contents import content_digests
from core.errors import UserError, first_and_count
from core.files import write_csv
from core.progress import progress
from core.text import require_utf8
from data.imbalance import counts_to_keep, draw_images
from data.preprocessing import narrow
from data.readers.colour import grey_or_rgb
from data.readers.decoding import naming, open_planar

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
CIFAR = "cifar-10-batches-py"
"""Folder of torchvision's CIFAR-10 files."""
DIGITS_TEST_SHARE = 0.2
"""Share of the digits of each class, the last ones of the file, that tests."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassImages:
    """Images, their classes and their splits."""

    name: str
    """digits, cifar10, or the name of the folder."""
    classes: tuple[str, ...]
    """Names of the classes, by label."""
    labels: np.ndarray
    """(n,) class indices."""
    train: np.ndarray
    """Positions of the training images, ascending."""
    test: np.ndarray
    """Positions of the test images, ascending."""
    files: Sequence[str]
    """Name of each image."""
    pixels: Sequence[np.ndarray] | np.ndarray
    """Image k, (rows, columns) or (rows, columns, 3), in file units."""
    channels: int
    """1 if all images are grey, else 3."""
    content: str
    """Digest of the images, without the selection."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, k: int) -> np.ndarray:
        """Image k in file units: (rows, columns), or (rows, columns, 3) if any image of the data set has colours."""
        image = self.pixels[k]
        return np.repeat(image[..., None], 3, axis=2) if image.ndim < self.channels == 3 else image

    @property
    def counts(self) -> list[int]:
        """Training images of each class."""
        return np.bincount(self.labels[self.train], minlength=len(self.classes)).tolist()

    @property
    def untested(self) -> list[str]:
        """Names of the classes that no test image shows."""
        return [self.classes[k] for k in np.setdiff1d(np.arange(len(self.classes)), self.labels[self.test])]

    @cached_property
    def digest(self) -> str:
        """Digest of the images and the selection."""
        content = self.content.encode() + self.train.astype("<i8").tobytes() + self.test.astype("<i8").tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def selected(self, imbalance: float, total: int | None, seed: int, flag: str | None = None) -> "ClassImages":
        """The data set with a long-tailed or balanced part of its training images, see `data.imbalance`."""
        labels = self.labels[self.train]
        counts = counts_to_keep(labels, self.classes, imbalance, total, flag)
        return replace(self, train=self.train[draw_images(labels, counts, seed)])


def read_digits() -> ClassImages:
    """1,797 grey digits of 8 x 8 pixels, handwritten by 13 people, with values 0 to 16 (Alpaydin and Kaynak 1998).

    The last fifth of each class in the order of the file tests; so the split is the same on every machine.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels, pixels = bunch.target.astype(np.int64), bunch.images.astype(np.uint8)
    test = []
    for label in range(10):
        positions = np.flatnonzero(labels == label)
        test.append(positions[len(positions) - round(DIGITS_TEST_SHARE * len(positions)) :])
    tests = np.sort(np.concatenate(test))
    return ClassImages(
        name="digits",
        classes=tuple(map(str, range(10))),
        labels=labels,
        train=np.setdiff1d(np.arange(len(labels)), tests),
        test=tests,
        files=[f"digit-{k:04d}" for k in range(len(labels))],
        pixels=pixels,
        channels=1,
        content=hashlib.blake2b(pixels.tobytes() + labels.tobytes(), digest_size=16).hexdigest(),
    )


def read_class_images(root: Path) -> ClassImages:
    """The images of a folder: `train/CLASS/` and `test/CLASS/`, or torchvision's CIFAR-10 files in it.

    Raises:
        UserError: if there are no such folders, a class has fewer than two training images or test images of a class
            that is not trained on, or images cannot be read; the message names the first and counts the others.
    """
    root = Path(root).expanduser()
    if (root / "train").is_dir():
        return _read_folders(root)
    for folder in (root, root.parent):
        if (folder / CIFAR).is_dir() and root in (folder, folder / CIFAR):
            return _read_cifar(folder)
    raise UserError(
        f"{root} holds neither train/CLASS/ with images nor torchvision's {CIFAR}: check --data-root, or leave it out "
        "for the digits of scikit-learn"
    )


def _read_cifar(root: Path) -> ClassImages:
    from torchvision.datasets import CIFAR10  # torch is slow to import

    try:  # compares checksums before it unpickles anything
        train, test = (CIFAR10(str(root), train=is_train, download=False) for is_train in (True, False))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{root / CIFAR} is incomplete or damaged ({error}): unpack the archive again") from None
    pixels = np.concatenate([train.data, test.data])
    count = len(train.data)
    return ClassImages(
        name="cifar10",
        classes=tuple(train.classes),
        labels=np.array([*train.targets, *test.targets], np.int64),
        train=np.arange(count),
        test=np.arange(count, len(pixels)),
        files=[f"{'train' if k < count else 'test'}-{k if k < count else k - count:05d}" for k in range(len(pixels))],
        pixels=pixels,
        channels=3,
        content="cifar10",  # torchvision has checked every byte
    )


def _read_folders(root: Path) -> ClassImages:
    classes = _class_folders(root / "train")
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} holds {len(classes)} class folders: two or more are needed")
    files: list[str] = []
    labels: list[int] = []
    counts = {"train": 0, "test": 0}
    for split in counts:
        known = _class_folders(root / split) if (root / split).is_dir() else []
        if unknown := sorted({*known} - {*classes}):
            raise UserError(f"{root / split / unknown[0]}: there is no class {unknown[0]} in {root / 'train'}")
        for label, name in enumerate(classes):
            found = _images_below(root, root / split / name)
            if split == "train" and len(found) < 2:
                raise UserError(
                    f"{root / split / name} holds {len(found)} image{'s' if len(found) != 1 else ''}: a class needs "
                    "two or more, add some or remove the folder"
                )
            files += found
            labels += [label] * len(found)
            counts[split] += len(found)
    content = _digest(root, files)
    pixels = _packed(root, files, content)
    return ClassImages(
        name=root.resolve().name,
        classes=tuple(classes),
        labels=np.array(labels, np.int64),
        train=np.arange(counts["train"]),
        test=np.arange(counts["train"], len(files)),
        files=files,
        pixels=pixels,
        channels=pixels.channels,
        content=content,
    )


def _class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones do not count."""
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _images_below(root: Path, folder: Path) -> list[str]:
    """The image files in a folder and its subfolders, as paths relative to `root`, sorted."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(place, name)
                require_utf8(path, "the name")
                found.append(path.relative_to(root).as_posix())
    return sorted(found)


def _digest(root: Path, files: Sequence[str]) -> str:
    """Digest of the files' names and contents."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for name, content in zip(files, content_digests(root, files), strict=True):
            digest.update(f"{name} {content}\n".encode())
    except OSError as error:
        raise UserError(f"{error.filename} cannot be opened ({error.strerror}): check the data set") from None
    return digest.hexdigest()


class PackedPixels(Sequence[np.ndarray]):
    """Decoded images one after the other in a memory-mapped file, `pixels.bin`, listed in `shapes.csv`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = pd.read_csv(folder / "shapes.csv")
        self._shapes = list(
            zip(table["rows"].tolist(), table["columns"].tolist(), table["channels"].tolist(), strict=True)
        )
        self._dtypes = [np.dtype(name) for name in table["dtype"].tolist()]
        sizes = [r * c * k * kind.itemsize for (r, c, k), kind in zip(self._shapes, self._dtypes, strict=True)]
        self._ends = np.cumsum(sizes)
        self._bytes = np.asarray(np.memmap(folder / "pixels.bin", np.uint8, mode="r"))
        self.channels = int(table["channels"].max())

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, k: Any) -> Any:
        """Image k, read-only."""
        rows, columns, channels = self._shapes[k]
        start = self._ends[k - 1] if k else 0
        flat = self._bytes[start : self._ends[k]].view(self._dtypes[k])
        return flat.reshape((rows, columns) if channels == 1 else (rows, columns, channels))

    def __reduce__(self) -> tuple:
        return PackedPixels, (self.folder,)  # a worker process opens the map anew, it is never copied


def _packed(root: Path, files: Sequence[str], content: str) -> PackedPixels:
    """The decoded images, from the cache after the first time."""

    def pack(folder: Path) -> None:
        folder.mkdir()
        problems, rows = [], []
        with (folder / "pixels.bin").open("wb") as out:
            for name in progress(files, "reading images", len(files)):
                try:
                    image = read_class_image(root / name)
                except UserError as error:
                    problems.append(error)  # go on, so that one message counts them all
                    continue
                out.write(np.ascontiguousarray(image).data)
                rows.append((*image.shape[:2], 1 if image.ndim == 2 else 3, image.dtype.name))
        if problems:
            raise UserError(first_and_count(problems))
        write_csv(folder / "shapes.csv", pd.DataFrame(rows, columns=["rows", "columns", "channels", "dtype"]))

    return PackedPixels(made_once(f"class-images-{content}", "decoding the images once, into {folder}", pack))


def read_class_image(path: Path) -> np.ndarray:
    """One PNG, TIFF or JPEG file in its own depth: (rows, columns) if grey, else (rows, columns, 3).

    Raises:
        UserError: if it cannot be read, has several pages, or values that are not finite.
    """
    with naming(path), open_planar(path) as (image, pages):
        if pages > 1:
            raise UserError(f"{path} has {pages} pages: save a file for each")
        values = narrow(grey_or_rgb(image, path))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: repair or remove it")
    return values
