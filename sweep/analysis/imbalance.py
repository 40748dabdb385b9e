"""What a long tail costs: accuracies, relative gaps and their differences, with intervals from one joint bootstrap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError
from core.text import read_json
from sweep.analysis.bootstrap import estimate, require_resamples, resampled

BALANCED, LONG_TAILED = "balanced", "long-tailed"
SETS = (BALANCED, LONG_TAILED)
GROUPS = ("frequent", "medium", "rare")
SUPERVISED, HEAD = "supervised", "supervised, own head"
"""The encoder of supervised training, evaluated linearly; and the predictions of the network itself, whose last layer
was trained on the same images as its encoder."""


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Which test images each evaluation got right."""

    labels: np.ndarray
    """(images,) class indices of the test images."""
    by_run: Mapping[tuple[float, str, str], np.ndarray]
    """By ratio, method and set: (seeds, images), 1 where right. All entries of a ratio have the same seeds."""


def read_correct(folder: Path, plan: Mapping[str, Any]) -> Correct:
    """Read `per_image.csv` of the finished cells of a study; of a ratio only seeds that finished in every method.

    Raises:
        UserError: if no ratio has a seed that finished in every method, or tables do not fit together.
    """
    cells = {(c["ratio"], c["method"], c["set"], c["seed"]): folder / c["name"] for c in plan["cells"]}
    for (ratio, method, kind, seed), place in list(cells.items()):
        encoder = folder / "encoders" / place.name
        if method == SUPERVISED and (encoder / "per_image.csv").is_file():
            cells[ratio, HEAD, kind, seed] = encoder
    labels: np.ndarray | None = None
    values: dict[tuple[float, str, str], np.ndarray] = {}
    for ratio in plan["ratios"]:
        seeds = [
            seed
            for seed in plan["seeds"]
            if all((cells[ratio, m, s, seed] / "result.json").is_file() for m in plan["methods"] for s in SETS)
        ]
        for method in (*plan["methods"], HEAD) if seeds else ():
            if not all((ratio, method, kind, seed) in cells for kind in SETS for seed in seeds):
                continue
            for kind in SETS:
                rows = []
                for seed in seeds:
                    file = cells[ratio, method, kind, seed] / "per_image.csv"
                    table = pd.read_csv(file, usecols=["label", "predicted"])
                    labels = table["label"].to_numpy() if labels is None else labels
                    if not np.array_equal(labels, table["label"].to_numpy()):
                        raise UserError(f"{file} lists other test images than the other runs: run the study again")
                    rows.append((table["predicted"] == table["label"]).to_numpy(np.float32))
                values[ratio, method, kind] = np.stack(rows)
    if labels is None:
        raise UserError(f"{folder} has no seed whose runs are all finished: run the same command again")
    return Correct(labels=labels, by_run=values)


def analyse(folder: Path, draws: int = 2000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The tables of a study, by name.

    Accuracy is the mean of the classes' accuracies, so that each class counts the same however many test images it has.
    Every interval is the 95 % percentile interval of one bootstrap that resamples seeds and, within each class, test
    images, the same for all methods, sets and ratios, so that differences are paired; with one seed there is none.

    Returns:
        accuracy: method, set, ratio, images, seeds, accuracy, low, high, and the means of frequent, medium, rare
        classes. gaps: method, ratio, images, gap, low, high: (A(balanced) - A(long-tailed)) / A(balanced).
        differences: method, baseline, ratio, images, difference of their gaps, low, high. per_class: method, set,
        ratio, class, training_images (of the long-tailed set), test_images, accuracy, low, high.

    Raises:
        UserError: if no ratio has a seed that finished in every method, tables do not fit together, or a class has no
            test images.
    """
    require_resamples(draws, seed)
    plan = read_json(folder / "plan.json")
    correct = read_correct(folder, plan)
    tested = np.bincount(correct.labels, minlength=len(plan["classes"])).tolist()
    if untested := [name for name, count in zip(plan["classes"], tested, strict=True) if not count]:
        raise UserError(
            f"{folder} has no test images of {', '.join(untested)}: a gap needs all classes; add some and run the "
            "study again in another folder"
        )
    image_weights = weights_by_class(correct.labels, draws, np.random.default_rng([seed, 1]))
    images = {cell["ratio"]: cell["images"] for cell in plan["cells"]}
    accuracy, gaps, differences, per_class = [], [], [], []
    for ratio in dict.fromkeys(ratio for ratio, _, _ in correct.by_run):
        of_ratio = {(m, s): values for (r, m, s), values in correct.by_run.items() if r == ratio}
        methods = list(dict.fromkeys(method for method, _ in of_ratio))
        seeds = len(of_ratio[methods[0], BALANCED])
        seed_weights = resampled(seeds, draws, np.random.default_rng([seed, 0]))
        counts = plan["counts"][f"{ratio:g}"]
        key = {"ratio": ratio, "images": images[ratio], "seeds": seeds}
        means = {which: weighted_mean(values, seed_weights, image_weights) for which, values in of_ratio.items()}
        for (method, kind), drawn in means.items():
            values = of_ratio[method, kind]
            groups = {}
            for name, part in thirds(counts).items():
                members = np.isin(correct.labels, part)
                groups[name] = weighted_mean(values[:, members], seed_weights, image_weights[:, members])[0]
            accuracy.append({"method": method, "set": kind} | key | estimate("accuracy", drawn) | groups)
            for label, name in enumerate(plan["classes"]):
                members = correct.labels == label
                drawn = weighted_mean(values[:, members], seed_weights, image_weights[:, members])
                row = {"method": method, "set": kind, "ratio": ratio, "class": name, "training_images": counts[label]}
                per_class.append(row | {"test_images": tested[label]} | estimate("accuracy", drawn))
        losses = {m: relative_gap(means[m, BALANCED], means[m, LONG_TAILED]) for m in methods}
        gaps += [{"method": method} | key | estimate("gap", drawn) for method, drawn in losses.items()]
        differences += [
            {"method": first, "baseline": second} | key | estimate("difference", losses[first] - losses[second])
            for first, second in combinations(methods, 2)
        ]
    tables = {"accuracy": accuracy, "gaps": gaps, "differences": differences, "per_class": per_class}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def weights_by_class(labels: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + draws, images) weight of each image, resampled within its class; those of each class add up to 1.

    Row 0 makes a weighted mean the mean of the classes' means. A test set has fixed numbers of images of its classes,
    so every draw keeps them. Source: Rao and Wu 1988, JASA 83:231, for strata.
    """
    weights = np.empty((1 + draws, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        weights[:, members] = resampled(len(members), draws, rng) / len(members)
    return weights


def weighted_mean(correct: np.ndarray, seed_weights: np.ndarray, image_weights: np.ndarray) -> np.ndarray:
    """(1 + draws,) accuracy of each draw; with one seed all but the first are NaN.

    Args:
        correct: (seeds, images), 1 where right.
        seed_weights: (1 + draws, seeds).
        image_weights: (1 + draws, images).
    """
    by_seed = image_weights @ correct.T / image_weights.sum(axis=1, keepdims=True)  # (1 + draws, seeds)
    means = (by_seed * seed_weights).sum(axis=1) / seed_weights.sum(axis=1)
    if len(correct) < 2:
        means[1:] = np.nan
    return means


def relative_gap(balanced: np.ndarray, long_tailed: np.ndarray) -> np.ndarray:
    """(A(n, 1) - A(n, r)) / A(n, 1): the share of the accuracy that the long tail costs; NaN where A(n, 1) is 0.

    Source: Liu et al. 2021, "Self-supervised learning is more robust to dataset imbalance"; Ray 2022, section 3.1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(balanced > 0, (balanced - long_tailed) / balanced, np.nan)


def thirds(counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Class indices of the frequent, medium and rare third; where three does not divide, the first are larger."""
    order = np.argsort(-np.asarray(counts), kind="stable")
    return dict(zip(GROUPS, np.array_split(order, 3), strict=True))
