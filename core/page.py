"""Self-contained HTML pages: their templates, and numbers, intervals and pictures as text of a page.

The style sheet is `page.css`, the frame `page.html.j2`. Templates escape everything but what is marked as HTML, which
is what `core.drawing.inline_svg` and the filters of pages return; nothing on a page is loaded from elsewhere.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from core.program import program

Row = Mapping[Any, Any]
"""A row of a table, by column."""


def page_environment(folder: Path) -> Environment:
    """The templates in a folder and those that all pages share, with the filters of all pages and `program`."""
    loader = FileSystemLoader([folder, Path(__file__).parent])
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.globals["program"] = program
    page.filters |= {"number": number, "interval": interval, "listed": listed}
    return page


def number(value: float, form: str = ".3f", missing: str = "–") -> str:
    """A number with a true minus sign; `missing` for NaN."""
    return missing if np.isnan(value) else f"{value:{form}}".replace("-", "−")


def interval(row: Row, form: str = ".3f", prefix: str = "") -> str:
    """The 95 % interval of a row; open ends are infinite."""
    ends = row[f"{prefix}low"], row[f"{prefix}high"]
    if np.isnan(ends[0]):
        return "none"
    return " to ".join("∞" if np.isinf(end) else number(end, form) for end in ends)


def join(parts: Sequence[str], word: str = "and") -> str:
    """Texts as a list in a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def listed(values: Sequence[float]) -> str:
    """Numbers as a list in a sentence: 7, 15 and 30."""
    return join([f"{value:,g}" for value in values])


def png_address(picture: Image.Image) -> str:
    """A picture as a data address, without loss in at most 256 colours: for drawings."""
    return _address(picture.convert("RGB").quantize(256, dither=Image.Dither.NONE), "png", optimize=True)


def jpeg_address(picture: Image.Image) -> str:
    """A picture as a data address, with the small losses of JPEG, a tenth of the size: for noisy images."""
    return _address(picture, "jpeg", quality=75)


def _address(picture: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()
