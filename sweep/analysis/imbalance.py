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

    Every interval is the 95 % percentile interval of one bootstrap that resamples seeds and test images, the same for
    all methods, sets and ratios, so that differences are paired; with one seed there is none.

    Returns:
        accuracy: method, set, ratio, images, seeds, accuracy, low, high, and the means of frequent, medium, rare
        classes. gaps: method, ratio, images, gap, low, high: (A(balanced) - A(long-tailed)) / A(balanced).
        differences: method, baseline, ratio, images, difference of their gaps, low, high. per_class: method, set,
        ratio, class, training_images (of the long-tailed set), accuracy, low, high.
    """
    require_resamples(draws, seed)
    plan = read_json(folder / "plan.json")
    correct = read_correct(folder, plan)
    image_weights = resampled(len(correct.labels), draws, np.random.default_rng([seed, 1]))
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
            groups = {name: _mean_of(values, correct.labels, part) for name, part in thirds(counts).items()}
            accuracy.append({"method": method, "set": kind} | key | estimate("accuracy", drawn) | groups)
            for label, name in enumerate(plan["classes"]):
                members = correct.labels == label
                row = {"method": method, "set": kind, "ratio": ratio, "class": name, "training_images": counts[label]}
                if members.any():
                    drawn = weighted_mean(values[:, members], seed_weights, image_weights[:, members])
                    per_class.append(row | estimate("accuracy", drawn))
        losses = {m: relative_gap(means[m, BALANCED], means[m, LONG_TAILED]) for m in methods}
        gaps += [{"method": method} | key | estimate("gap", drawn) for method, drawn in losses.items()]
        differences += [
            {"method": first, "baseline": second} | key | estimate("difference", losses[first] - losses[second])
            for first, second in combinations(methods, 2)
        ]
    tables = {"accuracy": accuracy, "gaps": gaps, "differences": differences, "per_class": per_class}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def weighted_mean(correct: np.ndarray, seed_weights: np.ndarray, image_weights: np.ndarray) -> np.ndarray:
    """(1 + draws,) accuracy of each draw, NaN for one without images; with one seed all but the first are.

    Args:
        correct: (seeds, images), 1 where right.
        seed_weights: (1 + draws, seeds).
        image_weights: (1 + draws, images).
    """
    with np.errstate(invalid="ignore"):  # a draw may hold no image of a small class
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


def _mean_of(correct: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    members = np.isin(labels, classes)
    return float(correct[:, members].mean(dtype=float)) if members.any() else float("nan")
