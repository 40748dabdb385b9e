"""Slices as small pictures: grey values, with label maps as translucent areas with an outline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from core.page import png_address
from data.preprocessing import is_large
from data.readers.decoding import naming, open_planar

# Okabe and Ito, "Color Universal Design" (2008), the brightest first, as they are drawn on grey images.
COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442", "#009E73", "#D55E00", "#0072B2")
OPACITY = 0.35
"""Of the area of a label; its outline is opaque."""
CAPTION = 16
"""Height of a line of text on a contact sheet, in pixels."""


def colour_of(label: int) -> str:
    """The colour of label 1, 2, ..., #rrggbb; they repeat after seven."""
    return COLOURS[(label - 1) % len(COLOURS)]


def draw_slice(image: np.ndarray, labels: np.ndarray | None = None, *, aspect: float = 1.0, side: int) -> Image.Image:
    """A slice as a picture, its first to 99th percentile from black to white.

    Args:
        image: (rows, columns), any unit; values that are not finite are drawn black.
        labels: label map of the same shape; None: none is drawn.
        aspect: row_mm / column_mm.
        side: pixels of the picture's longer side.

    Returns:
        A picture in grey, or in colour where there are labels.
    """
    if is_large(image.shape[:2]):  # every n-th row and column, as a picture in floating point takes gigabytes
        step = max(1, max(image.shape) // (4 * side))
        image, labels = image[::step, ::step], None if labels is None else labels[::step, ::step]
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num(image.astype(np.float32), nan=low, neginf=low, posinf=high) - low) / max(high - low, 1e-6)
    grey = Image.fromarray((255 * scaled.clip(0, 1)).astype(np.uint8))
    rows, columns = image.shape[0] * aspect, image.shape[1]
    scale = side / max(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    grey = grey.resize(size, Image.Resampling.BILINEAR)
    if labels is None or not labels.any():
        return grey
    values = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(_overlaid(np.asarray(grey), values))


def _overlaid(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) uint8 from grey values (uint8) and the label map of that shape."""
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for label in np.unique(labels[labels > 0]).tolist():
        mask = labels == label
        colour = np.array([int(colour_of(label)[k : k + 2], 16) for k in (1, 3, 5)], np.float32)
        picture[mask] = (1 - OPACITY) * picture[mask] + OPACITY * colour
        picture[mask & ~ndimage.binary_erosion(mask)] = colour
    return picture.round().astype(np.uint8)


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Pictures row by row, each in the middle of a square of the largest one's side above its caption.

    A caption that is too wide for its square is cut in front, as the end of a path tells files apart.
    """
    side = max(max(picture.size) for picture in pictures)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * (side + 4), -(-len(pictures) // columns) * (side + CAPTION + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = place % columns * (side + 4), place // columns * (side + CAPTION + 4)
        sheet.paste(picture.convert("RGB"), (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
        text = caption
        while len(text) > 2 and draw.textlength(text) > side:
            text = "…" + text[2:]
        draw.text((x + 2, y + side + 2), text, fill="black")
    return sheet


def spread_places(count: int, most: int) -> list[int]:
    """At most `most` of the positions 0, ..., count - 1, the first and the last among them, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def embedded_png(file: Path, width: int = 720) -> str:
    """A picture as a data address, at most `width` pixels wide, in 256 colours."""
    with naming(file), open_planar(file) as (image, _):
        small = image.convert("RGB")
    small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
    return png_address(small)
