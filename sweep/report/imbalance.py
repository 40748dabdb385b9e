"""The report of a study of class imbalance: tables, figures and one self-contained page, from the study's folder."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from core.drawing import inline_svg
from core.files import write_csv, write_text
from core.page import page_environment
from core.text import read_json
from sweep.analysis.imbalance import BALANCED, HEAD, SETS, analyse
from sweep.analysis.statistics import decided
from sweep.analysis.study_files import first_line, relative_paths
from sweep.report import filters
from sweep.report.figures.style import (
    MUTED,
    NARROW,
    PAPER,
    WIDE,
    Styles,
    drawing,
    legend,
    panels,
    pipeline_styles,
    save,
    to_svg,
)

NAMES = {"digits": "scikit-learn's digits", "cifar10": "CIFAR-10"}


def report(folder: Path, draws: int = 2000, seed: int = 0) -> Path:
    """Write statistics/, figures/ and report.html of a study; missing runs are marked.

    Returns:
        The path of report.html.

    Raises:
        UserError: if no seed is finished in every method.
    """
    plan, settings = read_json(folder / "plan.json"), read_json(folder / "study.json")
    tables = analyse(folder, draws, seed)
    (folder / "statistics").mkdir(exist_ok=True)
    for name, table in tables.items():
        write_csv(folder / "statistics" / f"{name}.csv", table)
    path = folder / "report.html"
    write_text(path, render(folder, plan, settings, tables))
    return path


def is_of_imbalance(folder: Path) -> bool:
    """Whether a folder holds a study of class imbalance."""
    try:
        plan = read_json(folder / "plan.json")
    except (OSError, ValueError):
        return False
    return isinstance(plan, dict) and plan.get("task") == "imbalance"


def render(
    folder: Path, plan: Mapping[str, Any], settings: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> str:
    """The page of a study, after its figures are drawn and saved."""
    methods = list(dict.fromkeys(tables["gaps"]["method"]))
    styles = pipeline_styles(methods)
    page = page_environment(Path(__file__).parent)
    page.filters["pipeline"] = partial(filters.pipeline, pipelines=methods)
    page.filters["prose"] = partial(filters.prose, pipelines=methods)
    page.tests["decided"] = decided
    missing = [cell for cell in plan["cells"] if not (folder / cell["name"] / "result.json").is_file()]
    errors = {
        cell["name"]: first_line(folder / cell["name"] / "error.txt")
        or first_line(folder / cell["name"].replace("cells/", "encoders/", 1) / "error.txt")
        or "not run"
        for cell in missing
    }
    return page.get_template("imbalance.html.j2").render(
        plan=plan,
        dataset=NAMES.get(plan["dataset"], plan["dataset"]),
        styles=styles,
        sentences=list(sentences(tables)),
        caveats=list(caveats(plan, settings)),
        what_was_run=what_was_run(plan, settings, test_images_by_class(tables["per_class"])),
        tables={name: table.to_dict("records") for name, table in tables.items()},
        figures=dict(_figures(folder, tables, styles)),
        missing={name: relative_paths(error, folder) for name, error in errors.items()},
    )


def sentences(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """What each ratio says, one sentence about the gaps and one about each of their differences."""
    for (ratio, images), rows in tables["gaps"].groupby(["ratio", "images"], sort=False):
        parts = [f"{_percent(row, 'gap')} for {_named(row['method'])}" for row in rows.to_dict("records")]
        yield (
            f"With {images:,} images of ratio {ratio:g} in place of as many balanced ones, the relative gap is "
            f"{filters.join(parts)}."
        )
    for row in tables["differences"].to_dict("records"):
        if HEAD in (row["method"], row["baseline"]):
            continue
        if decided(row):
            less, more = (row["method"], row["baseline"]) if row["difference"] < 0 else (row["baseline"], row["method"])
            verdict = f"{less} loses less than {more}"
        else:
            verdict = f"whether {row['method']} or {row['baseline']} loses less is undecided"
        yield f"At ratio {row['ratio']:g} {verdict}: the gaps differ by {_percent(row, 'difference', '+.1f')}."


def _named(method: str) -> str:
    return "the supervised network with its own head" if method == HEAD else method


def caveats(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What limits the study."""
    yield from plan.get("warnings", ())
    seeds = len(plan["seeds"])
    if seeds == 1:
        yield "One seed: there are no intervals, and nothing is decided."
    elif seeds < 5:
        yield f"{seeds} seeds: intervals over so few are rough."
    if plan["dataset"] == "digits":
        yield "Digits are small and easy: this checks that the software runs; it is little evidence about any method."
    yield (
        "The linear evaluation uses the same labels whatever the encoder was trained on, so it measures the "
        "encoder alone. The supervised network with its own head saw no other labels than its encoder."
    )
    if settings["pretrain"]["steps"] is None and (settings["pretrain"]["epochs"] or 0) < 200:
        yield f"{settings['pretrain']['epochs']:g} epochs of pretraining; Ray 2022 took 200."
    yield "Classes are made rare in one fixed order, that of their names: another order can change the numbers."


def test_images_by_class(per_class: pd.DataFrame) -> str:
    """How many test images a class has: "36 of each class", or "35 to 37 of a class"."""
    fewest, most = per_class["test_images"].min(), per_class["test_images"].max()
    return f"{most:,} of each class" if fewest == most else f"{fewest:,} to {most:,} of a class"


def what_was_run(plan: Mapping[str, Any], settings: Mapping[str, Any], by_class: str) -> dict[str, str]:
    """The main settings, by name; `by_class` says how many test images a class has."""
    training, supervised = settings["pretrain"], settings["supervised"]
    stem = ", small stem" if settings["stem"] == "small" else ""
    long = [name for name in plan["methods"] if name != "supervised"]
    rows = {
        "Data": f"{NAMES.get(plan['dataset'], plan['dataset'])}, {len(plan['classes'])} classes, "
        f"{plan['test_images']:,} test images ({by_class})",
        "Long-tailed sets": "; ".join(
            f"ratio {ratio:g}: {filters.listed(plan['counts'][f'{ratio:g}'])} images by class"
            for ratio in plan["ratios"]
        ),
        "Encoder": f"{settings['encoder']}{stem}, {settings['image_size']} pixels",
    }
    if long:
        rows["Self-supervised"] = (
            f"{filters.join(long)}: {_length(training)}, batches of {training['batch_size']}, {training['optimiser']}"
        )
    if "supervised" in plan["methods"]:
        rows["Supervised"] = (
            f"cross-entropy: {_length(supervised)}, batches of {supervised['batch_size']}, Adam, learning rate "
            f"{supervised['lr']:g}"
        )
    used = f"{settings['probe_images']:,}" if settings["probe_images"] else "all"
    rows["Evaluation"] = (
        f"logistic regression on frozen features of {used} training images, mean of the classes' accuracies on the "
        "test images"
    )
    rows["Seeds"] = filters.listed(plan["seeds"])
    return rows


def _length(config: Mapping[str, Any]) -> str:
    return f"{config['steps']:,} steps" if config["steps"] else f"{config['epochs']:g} epochs"


def _percent(row: Mapping[Any, Any], name: str, form: str = ".1f") -> str:
    """A share as percent with its interval."""
    text = f"{filters.number(100 * row[name], form)} %"
    if row["low"] != row["low"]:
        return text
    ends = (filters.number(100 * row[end], form) for end in ("low", "high"))
    return f"{text} [{' to '.join(ends)}]"


def _figures(
    folder: Path, tables: Mapping[str, pd.DataFrame], styles: Styles
) -> Iterator[tuple[str, dict[str, Markup]]]:
    """Name of each figure and its SVG, wide and narrow; the wide one is saved in figures/."""
    drawings: dict[str, Callable[..., Figure]] = {
        "gaps": partial(gaps_figure, tables["gaps"], styles),
        "per_class": partial(per_class_figure, tables["per_class"], styles),
    }
    (folder / "figures").mkdir(exist_ok=True)
    for name, draw in drawings.items():
        drawn = {"wide": save(draw(width=WIDE), folder / "figures" / name), "narrow": to_svg(draw(width=NARROW), name)}
        yield name, {kind: inline_svg(svg, f"{name}-{kind}", styles) for kind, svg in drawn.items()}


def gaps_figure(gaps: pd.DataFrame, styles: Styles, *, width: int = WIDE) -> Figure:
    """The relative gap of each method, a group of points for each ratio."""
    ratios = list(dict.fromkeys(gaps["ratio"]))
    with drawing(width, 300) as figure:
        axis = figure.subplots()
        axis.axhline(0, color=MUTED, linewidth=1)
        for number, (method, style) in enumerate(styles.items()):
            rows = gaps[gaps["method"] == method]
            places = [ratios.index(ratio) + 0.12 * (number - (len(styles) - 1) / 2) for ratio in rows["ratio"]]
            axis.vlines(places, 100 * rows["low"], 100 * rows["high"], color=style.light, linewidth=1.8)
            axis.plot(places, 100 * rows["gap"], style.marker, color=style.light, markersize=7)
        sizes = dict(zip(gaps["ratio"], gaps["images"], strict=True))
        axis.set_xticks(range(len(ratios)), [f"{ratio:g} ({sizes[ratio]:,} images)" for ratio in ratios])
        axis.set(xlim=(-0.6, len(ratios) - 0.4), xlabel="ratio", ylabel="relative gap in percent")
        axis.grid(visible=False, axis="x")
        legend(figure, styles, width)
    return figure


def per_class_figure(rows: pd.DataFrame, styles: Styles, *, width: int = WIDE) -> Figure:
    """Accuracy of each class, the most frequent first: a panel for each ratio, dashed after balanced training."""
    ratios = list(dict.fromkeys(rows["ratio"]))
    columns = 1 if width <= NARROW else min(len(ratios), 2)
    with drawing(width, 60 + 260 * -(-len(ratios) // columns)) as figure:
        lowest = rows["accuracy"].min()
        for axis, ratio in panels(figure, ratios, columns, ylabel="accuracy"):
            axis.set_ylim(lowest - 0.05 * (1.01 - lowest), 1.01)
            for (method, style), kind in ((item, kind) for item in styles.items() for kind in SETS):
                of = rows[(rows["ratio"] == ratio) & (rows["method"] == method) & (rows["set"] == kind)]
                balanced = kind == BALANCED
                axis.plot(
                    range(len(of)), of["accuracy"], "--" if balanced else "-", color=style.light, marker=style.marker,
                    markersize=5, markerfacecolor=PAPER if balanced else style.light, linewidth=1.4,
                )  # fmt: skip
            ticks = [f"{name}\n{count}" for name, count in zip(of["class"], of["training_images"], strict=True)]
            axis.set_xticks(range(len(of)), ticks, rotation=0 if max(map(len, of["class"])) < 4 else 90)
            axis.set_title(f"ratio {ratio:g}", loc="left")
        legend(figure, styles, width)
    return figure
