"""Figures of the pages: their sizes, colours, fonts and lines, and their SVG as a part of a page."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

WIDE, NARROW = 860, 360
"""Widths of a figure on a screen and on a phone, in pixels."""
INK, MUTED, GRID, PAPER = "#1c2126", "#5f6870", "#dcdad3", "#fefefd"
"""Colours of text, secondary text, grid lines and background. No series has one of these colours, so a page can
replace them by the colours of its light or dark theme."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Colours and marker of a series, a pipeline for example, in all figures and on the page."""

    light: str
    """Colour on a light background, #rrggbb."""
    dark: str
    """Colour on a dark background, #rrggbb."""
    marker: str
    """Matplotlib's code of the marker."""


Styles = Mapping[str, Style]
"""Style of each series, in the order of the page."""


@contextmanager
def drawing(width: int, height: float) -> Iterator[Figure]:
    """An empty figure of `width` by `height` pixels, drawn with the pages' fonts and lines."""
    size = 12 if width > NARROW else 11
    settings = (
        dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.labelsize"), size)
        | dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), size - 1)
        | dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), INK
        )
        | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED)
        | dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False)
        | dict.fromkeys(("figure.constrained_layout.h_pad", "figure.constrained_layout.w_pad"), 5 / 72)
        | {"axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7}
        | {"axes.titleweight": "bold", "axes.linewidth": 0.8, "axes.facecolor": "none"}
        | {"text.parse_math": False}  # a dollar sign in the name of a file is a dollar sign
        | {"legend.handlelength": 1.6, "legend.columnspacing": 1.4}
    )
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor=PAPER)
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is fixed: SVG and PNG are alike, and saved faster


def to_svg(figure: Figure, name: str) -> str:
    """The figure as SVG with text kept as text; the same bytes on every call."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def inline_svg(svg: str, name: str, styles: Styles) -> Markup:
    """A figure as part of the page, in the page's colours and of variable width.

    Args:
        svg: text of the SVG file.
        name: unique on the page, a prefix of all ids.
        styles: of the series; their light colours become CSS variables.
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
