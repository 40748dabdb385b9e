"""Numbers, intervals and sentences as text of the page: filters of the template."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from data.readers.decoding import naming, open_planar
from sweep.report.figures.style import GRID, INK, MUTED, PAPER, Styles

Row = Mapping[Any, Any]
"""A row of a table, by column."""


def number(value: float, form: str = ".3f", missing: str = "–") -> str:
    """A number with a true minus sign; `missing` for NaN."""
    return missing if np.isnan(value) else f"{value:{form}}".replace("-", "−")


def interval(row: Row, form: str = ".3f", prefix: str = "") -> str:
    """The 95 % interval of a row; open ends are infinite."""
    ends = row[f"{prefix}low"], row[f"{prefix}high"]
    if np.isnan(ends[0]):
        return "none"
    return " to ".join("∞" if np.isinf(end) else number(end, form) for end in ends)


def p_value(p: float) -> str:
    """A p value to three digits."""
    return "< 0.001" if p < 0.001 else number(p)


def bounded(row: Row, name: str) -> str:
    """A factor, with a sign if only a bound of it is known."""
    return {">=": "≥ ", "<=": "≤ "}.get(row["bound"], "") + number(row[name], ".2g")


def labels_needed(row: Row) -> str:
    """Labels needed to equal the baseline, from a row of the multipliers."""
    if np.isnan(row["multiplier"]):
        return "–"
    return {">=": "≤ ", "<=": "> "}.get(row["bound"], "") + f"{row['labels'] / row['multiplier']:.0f}"


def join(parts: Sequence[str], word: str = "and") -> str:
    """Texts as a list in a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def listed(values: Sequence[float]) -> str:
    """Numbers as a list in a sentence: 7, 15 and 30."""
    return join([f"{value:,g}" for value in values])


def pipeline(name: str, pipelines: Sequence[str]) -> Markup:
    """A pipeline's name with a dot in its colour."""
    colour = Markup(' style="--c:var(--c{})"').format(list(pipelines).index(name)) if name in pipelines else ""
    return Markup('<span class="p"{}>{}</span>').format(colour, name)


def prose(text: str, pipelines: Sequence[str] = ()) -> Markup:
    """A sentence with unbroken intervals, raised exponents, and the names of `pipelines` in their colours."""
    names = {str(escape(name)): name for name in sorted(pipelines, key=len, reverse=True)}
    text = str(escape(text))
    text = re.sub(r"\[[^\]]*\]", lambda match: f'<span class="n">{match[0]}</span>', text)
    text = re.sub(r"\^(-?(?:[\d.]*\d|γ))", lambda match: f"<sup>{match[1].replace('-', '−')}</sup>", text)
    if names:
        pattern = rf"(?<![\w=])({'|'.join(map(re.escape, names))})(?![\w=])"
        text = re.sub(pattern, lambda match: pipeline(names[match[1]], pipelines), text)
    return Markup(text)


def inline_svg(svg: str, name: str, styles: Styles) -> Markup:
    """A figure as part of the page, in the page's colours and of variable width.

    Args:
        svg: text of the SVG file.
        name: unique on the page, a prefix of all ids.
        styles: of the pipelines; their light colours become CSS variables.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1">', svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    variables = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}
    variables |= {style.light: f"--c{place}" for place, style in enumerate(styles.values())}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg)


def embedded_png(file: Path, width: int = 720) -> str:
    """A picture as a data address, at most `width` pixels wide, in 256 colours."""
    with naming(file), open_planar(file) as (image, _):
        small = image.convert("RGB")
    small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
