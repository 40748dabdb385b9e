"""The page of `python -m data.inspect --html`: a contact sheet, intensities, classes, outliers and duplicates."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from core.drawing import MUTED, NARROW, WIDE, Style, drawing, inline_svg, to_svg
from core.page import jpeg_address, number, page_environment
from core.text import printable
from core.wording import count_of
from data.duplicates import identical_images
from data.inspection import Report
from data.pictures import colour_of, draw_slice, spread_places
from data.readers.images import Volume
from data.readers.label_maps import IGNORED, LabelMap

MOST_PICTURES = 60
"""Images on the contact sheet."""
SIDE = 128
"""Longer side of a picture in pixels."""
SAMPLE = 1000
"""Voxels of each image in the histogram."""
TOLERANCE = 1.05
"""Factor within which two spacings count as equal: rounding in headers."""
MOST_ROWS = 200
"""Rows of a table of outliers or duplicates; the terminal and --json have all of them."""
GEOMETRY = {
    "row_mm": "row spacing, mm",
    "column_mm": "column spacing, mm",
    "slice_mm": "slice spacing, mm",
    "rows": "rows",
    "columns": "columns",
    "slices": "slices",
    "frames": "frames",
}
"""Columns of the table of volumes in which a file may be an outlier, with their names."""
STYLES = {
    "all": Style(light="#0072b2", dark="#4da6e8", marker="o"),
    "limits": Style(light="#d55e00", dark="#f2a134", marker="s"),
}


def pictured(files: Sequence[Path]) -> set[Path]:
    """The images of the contact sheet: all, or some that are evenly spread over the list."""
    return {files[place] for place in spread_places(len(files), MOST_PICTURES)} if files else set()


def picture_of(volume: Volume, labels: LabelMap | None) -> str:
    """Data address of a picture: the slice with the most labels, else the middle one."""
    stack = volume.stack
    indices = None if labels is None or labels.indices.shape[1:] != stack.shape[1:] else labels.indices
    frame, page = 0, stack.shape[1] // 2
    marked = None
    if indices is not None:
        foreground = (indices > 0) & (indices != IGNORED)
        frame, page = divmod(int(foreground.sum(axis=(2, 3)).argmax()), foreground.shape[1])
        marked = np.where(foreground[frame, page], indices[frame, page], 0)
    row_mm, column_mm, _ = volume.shape.slice_spacing
    image = stack[min(frame, len(stack) - 1), page]
    return jpeg_address(draw_slice(image, marked, aspect=row_mm / column_mm, side=SIDE))


def sample_of(values: np.ndarray) -> np.ndarray:
    """At most `SAMPLE` values, evenly spread over an array of one axis."""
    return values[:: max(1, -(-values.size // SAMPLE))].astype(np.float32)


def outliers(volumes: pd.DataFrame) -> list[tuple[str, str, float, float]]:
    """Files whose spacing or shape is far from that of the others: (file, quantity, value, median).

    Far is three times the interquartile range beyond the quartiles, on a logarithmic scale, and more than 5 % beyond
    them.

    Args:
        volumes: a row per file: ``file`` and the columns of `GEOMETRY`.

    Source: Tukey 1977, Exploratory data analysis, section 2D ("far out" values).
    """
    found = []
    for name, words in GEOMETRY.items() if len(volumes) else ():
        values = np.log(volumes[name].to_numpy(float))
        low, high = np.percentile(values, (25, 75))
        margin = max(3 * (high - low), np.log(TOLERANCE)) + 1e-9
        far = (values < low - margin) | (values > high + margin)
        median = float(volumes[name].median())
        found += [(str(row["file"]), words, float(row[name]), median) for _, row in volumes[far].iterrows()]
    return found


def render(
    root: Path,
    summary: Mapping[str, Any],
    found: Report,
    classes: Sequence[str],
) -> str:
    """The page as HTML.

    Args:
        root: folder of the data set; names of files are shown relative to it.
        summary: of `data.inspect.inspect_dataset`.
        found: what it is a summary of, with pictures and samples.
        classes: names of the classes, background first; empty if they have none.
    """
    volumes = pd.DataFrame(found.volumes)
    values = sorted({value for counts in found.label_counts.values() for value in counts})
    drawn = {"histogram": ("Histogram of the intensities of all images", _histogram(found.samples))}
    drawn |= _spreads(volumes)
    names = dict(zip(values, summary["class_share"], strict=True))
    page = page_environment(Path(__file__).parent).get_template("inspect.html.j2")
    return page.render(
        title=f"Data set {printable(root.name)}",
        lead=f"{count_of(summary['subjects'], 'subject')}, {count_of(summary['files'], 'image file')}, "
        f"{count_of(sum(summary['labelled_slices'].values()), 'slice')} with labels and "
        f"{summary['unlabelled_slices']} without.",
        notices=[f"Files unfit for training: {count_of(len(summary['problems']), 'problem')}, see below."]
        if summary["problems"]
        else [],
        styles=STYLES,
        what=_what(summary),
        figures={name: figure for name, figure in drawn.items() if figure[1]},
        several_channels="channel" in volumes,
        pictures=[(_relative(file, root), address) for file, address in found.pictures.items()],
        legend={name: colour_of(value) for value, name in names.items() if value},
        class_rows=_class_rows(summary["class_share"], found.label_counts, names, classes),
        outliers=[
            [_relative(Path(file), root), what, number(value, ".6g"), number(median, ".6g")]
            for file, what, value, median in outliers(found.files())[:MOST_ROWS]
        ],
        duplicates=list(_duplicates(found.images))[:MOST_ROWS],
        findings=[
            [kind[:-1], _relative(Path(each["file"]), root), each["problem"].removeprefix(f"{each['file']} ")]
            for kind in ("problems", "warnings")
            for each in summary[kind]
        ][:MOST_ROWS],
        most=MOST_ROWS,
    )


def _relative(file: Path, root: Path) -> str:
    return printable(file.relative_to(root) if file.is_relative_to(root) and file != root else file)


def _what(summary: Mapping[str, Any]) -> dict[str, str]:
    """Counts by name."""
    splits = ", ".join(f"{split} {count}" for split, count in summary["subjects_per_split"].items())
    slices = ", ".join(f"{split} {count}" for split, count in summary["labelled_slices"].items())
    rows = {"Subjects": splits, "Labelled slices": slices}
    for name in ("dtypes", "orientations", "slices_across"):
        words = {"dtypes": "Data types", "slices_across": "Slices across"}.get(name, name.capitalize())
        rows[words] = ", ".join(f"{key} ({count})" for key, count in summary[name].items())
    for name, (low, median, high) in (summary["shape"] | summary["spacing_mm"]).items():
        rows[GEOMETRY[name].capitalize()] = f"{low:.6g} to {high:.6g}, median {median:.6g}"
    return rows


def _class_rows(
    shares: Mapping[str, float],
    label_counts: Mapping[Path, Mapping[int, int]],
    names: Mapping[int, str],
    classes: Sequence[str],
) -> list[list[str]]:
    """Class, share of the labelled voxels, label maps that hold it, and its median volume there in voxels."""
    rows, maps = [], len(label_counts)
    for value, name in names.items():
        present = [counts[value] for counts in label_counts.values() if counts.get(value)]
        rows.append([name, f"{100 * shares[name]:.3g} %", f"{len(present)} of {maps}", f"{np.median(present):,.0f}"])
    missing = [name for value, name in enumerate(classes) if value not in names]
    return rows + [[name, "0 %", f"0 of {maps}", "–"] for name in missing if maps]


def _duplicates(images: pd.DataFrame) -> Iterator[list[str]]:
    """One row for each image that several subjects have."""
    for rows in identical_images(images):
        apart = "yes" if len({*rows["split"]}) > 1 else "no"
        names = [f"{row.subject} ({row.split}): {printable(row.file)}" for row in rows.itertuples()]
        yield ["; ".join(names), apart]


def _histogram(samples: Sequence[np.ndarray]) -> dict[str, Markup]:
    """Share of the sampled voxels by intensity, without the outermost thousandth at each end."""
    if not samples:
        return {}
    pooled = np.concatenate(samples)
    low, high = np.percentile(pooled, (0.1, 99.9))
    counts, edges = np.histogram(pooled, bins=60, range=(low, high if high > low else low + 1))

    def draw(width: int, identity: str) -> Markup:
        with drawing(width, 220) as figure:
            axis = figure.subplots()
            axis.stairs(100 * counts / len(pooled), edges, fill=True, color=STYLES["all"].light, alpha=0.75)
            axis.set(xlabel="intensity, file units", ylabel="percent of voxels")
        return inline_svg(to_svg(figure, identity), identity, STYLES)

    return {"wide": draw(WIDE, "histogram-wide"), "narrow": draw(NARROW, "histogram-narrow")}


def _spreads(volumes: pd.DataFrame) -> dict[str, tuple[str, dict[str, Markup]]]:
    """Name, label and drawing of the spread of the intensities: one, or one for each channel."""
    if volumes.empty:
        return {}
    label = "Intensities of each image"
    if "channel" not in volumes:
        return {"spread": (label, _spread(volumes, "spread"))}
    return {
        f"spread-{channel}": (f"{label}, channel {channel}", _spread(rows, f"spread-{channel}"))
        for channel, rows in volumes.groupby("channel", sort=False)
    }


def _spread(volumes: pd.DataFrame, name: str) -> dict[str, Markup]:
    """Median and outer percentiles of each image, in the order of the medians; `name` is unique on the page."""
    ordered = volumes.sort_values("percentile 50", kind="stable")
    places = np.arange(1, len(ordered) + 1)

    def draw(width: int, identity: str) -> Markup:
        with drawing(width, 220) as figure:
            axis = figure.subplots()
            low, high = ordered["percentile 0.5"], ordered["percentile 99.5"]
            axis.vlines(places, low, high, color=MUTED, linewidth=1, alpha=0.6)
            axis.plot(places, ordered["percentile 50"], "o", color=STYLES["all"].light, markersize=3)
            axis.set(xlabel="images, by median", ylabel="intensity, file units")
            axis.set_xlim(0, len(ordered) + 1)
        return inline_svg(to_svg(figure, identity), identity, STYLES)

    return {"wide": draw(WIDE, f"{name}-wide"), "narrow": draw(NARROW, f"{name}-narrow")}
