"""Pages of PNG, TIFF and JPEG images as grey values, and of PNG and TIFF label maps as class indices."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageSequence

from core.errors import UserError


def grey_pages(image: Image.Image, path: Path, *, label_map: bool) -> list[np.ndarray]:
    """The pages of an opened image, each (rows, columns), as grey values in the depth of the file.

    A palette is applied. In a label map the indices of a coloured palette are kept, as they are the classes, and
    colours are refused.

    Raises:
        UserError: if a label map is a colour image or a JPEG.
    """
    if label_map and image.format == "JPEG":
        raise UserError(f"{path} is a JPEG image, which blurs the classes of a label map: make it again as PNG")
    if has_deep_colour(image):
        return [_grey_of_rgb(page, path, label_map) for page in _deep_pages(image, path)]
    pages = []
    for page in ImageSequence.Iterator(image):
        has_indices = label_map and page.mode == "P" and not _is_grey(page)
        if has_indices:
            _refuse_black_that_is_no_background(page, path)
        if has_indices or page.mode in ("1", "L") or page.mode[0] in "IF":
            pages.append(np.asarray(page))
        elif label_map:
            rgb, alpha = np.asarray(page.convert("RGB")), np.asarray(page.convert("RGBA"))[..., 3]
            if np.ptp(rgb) == 0 < np.ptp(alpha):
                raise UserError(f"{path} holds its mask in the transparency: save it in grey")
            pages.append(_grey_of_rgb(rgb, path, label_map))
        else:
            pages.append(np.asarray(page.convert("L")))
    return pages


def _refuse_black_that_is_no_background(page: Image.Image, path: Path) -> None:
    """Raise a UserError if black is the colour of another index than 0: then the indices follow from how colours were
    reduced, file by file, and are no classes."""
    palette = np.asarray(page.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(page))
    if palette[0].any() and (black := [k for k in used.tolist() if k < len(palette) and not palette[k].any()]):
        raise UserError(
            f"{path}: index {black[0]} of its palette is black and index 0 is a colour, so that the indices are no "
            "classes: save the classes as grey values, 0 for the background"
        )


class Palettes:
    """The colours of the classes of label maps with coloured palettes, over the files of a data set.

    A program that reduces colours file by file gives one colour another index wherever a class is missing.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], tuple[int, Path]] = {}

    def add(self, path: Path, indices: np.ndarray) -> None:
        """Add a label map, whatever its format; UserError if a colour in it has another index than in an earlier one.

        Args:
            path: its file.
            indices: its class indices as they are stored, of any shape.
        """
        if path.suffix.lower() not in (".png", ".tif", ".tiff"):
            return
        with Image.open(path) as image:
            if image.mode != "P" or _is_grey(image):
                return
            palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3).tolist()
        for index in np.unique(indices).tolist():
            # not 255, which stands for what is left out, nor what fills a palette up
            if index >= min(len(palette), 255) or palette.count(palette[index]) > 1:
                continue
            known, other = self._seen.setdefault(tuple(palette[index]), (index, path))
            if known != index and other != path:
                raise UserError(
                    f"{path}: the colour {tuple(palette[index])} is the class {index}, in {other} the class {known}: "
                    "save the classes as grey values, or all files with one palette"
                )


def grey_or_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """The first page of an opened image in the depth of the file: (rows, columns) if it is grey, else RGB
    (rows, columns, 3).

    A palette is applied; transparency is dropped.
    """
    return _deep_pages(image, path)[0] if has_deep_colour(image) else _grey_or_rgb(image)


def grey_or_rgb_pages(image: Image.Image, path: Path) -> list[np.ndarray]:
    """Every page of an opened image as `grey_or_rgb` returns the first."""
    if has_deep_colour(image):
        return _deep_pages(image, path)
    return [_grey_or_rgb(page) for page in ImageSequence.Iterator(image)]


def is_rgb(image: Image.Image) -> bool:
    """Whether `grey_or_rgb` returns colours."""
    return has_deep_colour(image) or not (_is_stored_grey(image) or _is_convertible_to_grey(image))


def has_deep_colour(image: Image.Image) -> bool:
    """Whether an opened image has several channels of 16 bits, of which Pillow would drop 8."""
    tiles = getattr(image, "tile", [])  # (decoder, box, offset, arguments) of each part of the file
    return image.mode[0] not in "1IFP" and image.mode != "L" and any(";16" in str(tile[3]) for tile in tiles)


def _grey_or_rgb(page: Image.Image) -> np.ndarray:
    if _is_stored_grey(page):
        values = np.asarray(page)
        return values.astype(np.uint8) if values.dtype == bool else values
    return np.asarray(page.convert("L" if _is_convertible_to_grey(page) else "RGB"))


def _is_stored_grey(page: Image.Image) -> bool:
    return page.mode in ("1", "L") or page.mode[0] in "IF"


def _is_convertible_to_grey(page: Image.Image) -> bool:
    return page.mode in ("LA", "La") or (page.mode == "P" and _is_grey(page))


def _deep_pages(image: Image.Image, path: Path) -> list[np.ndarray]:
    """The pages of an image with 16 bits per channel, each (rows, columns, 3), red first."""
    packed, flags = np.fromfile(path, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecodemulti(packed, flags)[1] if image.format == "TIFF" else [cv2.imdecode(packed, flags)]
    pages = [page[..., ::-1] for page in decoded if page is not None]
    if len(pages) != getattr(image, "n_frames", 1):
        raise ValueError("its 16-bit colours cannot be decoded")
    return pages


def _grey_of_rgb(rgb: np.ndarray, path: Path, label_map: bool) -> np.ndarray:
    """(rows, columns, 3) as grey values; a label map must be grey already."""
    if not label_map:
        return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    if not (rgb == rgb[..., :1]).all():
        raise UserError(f"{path} is a colour image: a label map needs one class index per pixel, save it in grey")
    return rgb[..., 0]


def _is_grey(page: Image.Image) -> bool:
    """Whether all colours of a palette are grey, as in grey images that a program stored with a palette."""
    colours = np.array(page.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())
