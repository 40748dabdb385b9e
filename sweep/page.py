"""Pieces of a page of one file: words, tables and figures as HTML, and the page around them."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sweep.figures import GRID, INK, MUTED, PAPER, Look

Looks = Mapping[str, Look]
Row = Mapping[Any, Any]
"""Of a table, by column."""


class Words(str):
    """A table's entry that is words, HTML already: it stands left."""


class Remark(Words):
    """A sentence in a table's last column: it may break into lines."""


# ---- words and numbers


def chip(name: str, looks: Looks) -> Words:
    """A pipeline's name with a dot of its colour."""
    colour = f' style="--c:var(--c{list(looks).index(name)})"' if name in looks else ""
    return Words(f'<span class="p"{colour}>{html.escape(name)}</span>')


def prose(text: str, looks: Looks | None = None) -> str:
    """A sentence as HTML: intervals in one piece, exponents raised, the pipelines of `looks` in their colours."""
    text = html.escape(text)
    text = re.sub(r"\[[^\]]*\]", lambda found: f'<span class="n">{found[0]}</span>', text)
    text = re.sub(r"\^-?[\d.]*\d", lambda found: f"<sup>{minus(found[0][1:])}</sup>", text)
    if not looks:
        return text
    names = "|".join(re.escape(html.escape(name)) for name in sorted(looks, key=len, reverse=True))
    return re.sub(rf"(?<![\w=])({names})(?![\w=])", lambda found: chip(html.unescape(found[1]), looks), text)


def listed(values: Sequence[float]) -> str:
    """Numbers in words: 7, 15 and 30."""
    shown = [f"{value:,g}" for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def minus(number: str) -> str:
    """A number with a true minus."""
    return number.replace("-", "−")


def number(value: float, form: str = ".3f", missing: str = "–") -> str:
    """A number, or what stands for none."""
    return missing if np.isnan(value) else minus(f"{value:{form}}")


def between(row: Row, form: str = ".3f", low: str = "low", high: str = "high") -> str:
    """The interval of a row; open ends are infinite."""
    if np.isnan(row[low]):
        return "none"
    return minus(" to ".join("∞" if np.isinf(row[end]) else f"{row[end]:{form}}" for end in (low, high)))


def faint(text: str, is_faint: bool = True) -> str:
    """Text that steps back, where it should."""
    return f'<span class="faint">{text}</span>' if is_faint else text


def chance(p: float) -> str:
    """A p value."""
    return "–" if np.isnan(p) else "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def remark(row: Row) -> str:
    """The note of a row."""
    note = row.get("note", "")
    return Remark(html.escape(note)) if isinstance(note, str) and note else ""


# ---- tables


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], css: str = "") -> str:
    """A table that scrolls in a box of its own. Empty columns are left out; the first column's groups are set apart.

    Args:
        heads: of the columns, HTML.
        rows: entries, HTML; `Words` stand left.
        css: class.
    """
    kept = [place for place in range(len(heads)) if any(str(row[place]) for row in rows)]
    left = {place for place in kept if any(isinstance(row[place], Words) for row in rows)}
    top = "".join(f"<th{_aligned(place in left)}>{heads[place]}</th>" for place in kept)
    firsts = [str(row[0]) for row in rows]
    new = [place > 0 and first != firsts[place - 1] for place, first in enumerate(firsts)]
    grouped = sum(new) < len(rows) / 2
    body = "".join(
        f"<tr{' class=new' if grouped and starts else ''}>"
        + "".join(f"<td{_aligned(k in left, isinstance(row[k], Remark))}>{row[k]}</td>" for k in kept)
        + "</tr>"
        for row, starts in zip(rows, new, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0"><table{f" class={css}" if css else ""}>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _aligned(left: bool, is_remark: bool = False) -> str:
    return ' class="t remark"' if is_remark else ' class="t"' if left else ""


def unfolding(title: str, text: str, body: str, count: int, is_open: bool = False) -> str:
    """A table behind its title."""
    return (
        f"<details{' open' if is_open else ''}><summary>{title} <span>{count} {'row' if count == 1 else 'rows'}</span>"
        f"</summary><p>{text}</p>{body}</details>"
    )


# ---- figures


def inline_svg(svg: str, name: str, looks: Looks, label: str) -> str:
    """A figure of `sweep.figures` as part of a page: the page's colours, ids of its own, as wide as there is room.

    Args:
        svg: the file's text.
        name: unique on the page.
        looks: whose colours are turned into the page's.
        label: what it shows, for readers who do not see it.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    tag = rf'<svg viewBox="\1" role="img" aria-label="{html.escape(label)}">'
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', tag, svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    variables = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}
    variables |= {look.light: f"--c{place}" for place, look in enumerate(looks.values())}
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def embedded_png(file: Path, width: int = 720) -> str:
    """A picture as a data address, no wider than `width` pixels, in 256 colours."""
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


# ---- the page


def page(title: str, looks: Looks, header: str, sections: Sequence[str], footer: str) -> str:
    """The whole page, with the style of `report.css` and the pipelines' colours for light and dark."""
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    light, dark = (
        "".join(f"--c{place}:{getattr(look, ground)};" for place, look in enumerate(looks.values()))
        for ground in ("light", "dark")
    )
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{css}:root{{{light}}}
@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style></head>
<body>
<header>{header}</header>
<main>
{body}
</main>
<footer>{footer}</footer>
</body></html>
"""
