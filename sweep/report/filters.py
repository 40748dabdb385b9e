"""Numbers and sentences of a study as text of the page: filters of the template."""

import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from core.page import Row as Row
from core.page import interval as interval
from core.page import join as join
from core.page import listed as listed
from core.page import number as number


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
