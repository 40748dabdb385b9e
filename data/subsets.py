"""Which of the labelled training slices a run may use: nested subsets for data-efficiency studies."""

import math
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import UserError


def labelled_subset(
    table: pd.DataFrame, fraction: float, unit: Literal["slice", "patient"] = "slice", seed: int = 0
) -> np.ndarray:
    """Draw a share of the labelled training slices.

    Subsets are nested (for one seed a smaller one lies inside a larger one) and depend on the seed alone, not
    on the order of the rows. Counts round to the nearest, halves up, and are at least one: 0.1 % of 1498
    slices is 1, 0.5 % is 7, 1 % is 15. "patient" draws whole patients, spread over the groups in proportion
    at every size.

    Args:
        table: index or store table, one row per slice.
        fraction: share of the slices (or patients), in (0, 1].
        unit: what is counted: "slice" as in the paper, or "patient", what annotation really costs.
        seed: of the draw.

    Returns:
        Row positions in ``table``, ascending, int64.

    Raises:
        UserError: if the fraction is outside (0, 1], the unit unknown, or no training slice is labelled.

    Source: fractions and counts of Kalapos & Gyires-Tóth, fig. 4.
    """
    if not 0 < fraction <= 1:  # NaN fails too
        raise UserError(f"labelled fraction {fraction} is outside (0, 1]: give a share such as 0.1")
    if unit not in ("slice", "patient"):
        raise UserError(f"label unit {unit!r} is unknown: choose slice or patient")
    pool = table.assign(position=np.arange(len(table)))[(table["split"] == "train") & table["labelled"]]
    pool = pool.sort_values(["subject", "frame", "slice", "file"])
    if not len(pool):
        raise UserError("no training slice has labels: a labelled subset needs some, check the data set's split")
    rng = np.random.default_rng(seed)
    if unit == "slice":
        chosen = pool["position"].to_numpy()[rng.permutation(len(pool))[: _count(fraction, len(pool))]]
    else:
        order = _stratified(pool.drop_duplicates("subject"), rng)
        chosen = pool.loc[pool["subject"].isin(order[: _count(fraction, len(order))]), "position"].to_numpy()
    return np.sort(chosen)


def labelled_exams(table: pd.DataFrame, fraction: float, seed: int = 0) -> np.ndarray:
    """Draw a share of the training exams, nested and depending on the seed alone as `labelled_subset`.

    The classes are in proportion at every size; the first two exams are one of each, as fewer train no classifier.

    Args:
        table: of an `ExamSet`, one row per exam.
        fraction: share of the training exams, in (0, 1]; at least two are drawn.
        seed: of the draw.

    Returns:
        Row positions in ``table``, ascending, int64.

    Raises:
        UserError: if the fraction is outside (0, 1] or a class has no training exam.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"labelled fraction {fraction} is outside (0, 1]: give a share such as 0.1")
    pool = table[table["split"] == "train"].assign(position=lambda rows: np.flatnonzero(table["split"] == "train"))
    by_class = pool.assign(subject=pool["exam"], group=pool["label"].astype(str))
    if by_class["group"].nunique() < 2:
        raise UserError(f"all training exams are of class {', '.join(by_class['group'].unique())}: label some of both")
    order = _stratified(by_class, np.random.default_rng(seed))
    label = dict(zip(pool["exam"], pool["label"], strict=True))
    firsts = [next(exam for exam in order if label[exam] == value) for value in (0, 1)]
    order = firsts + [exam for exam in order if exam not in firsts]
    chosen = order[: max(2, _count(fraction, len(order)))]
    return np.sort(pool.loc[pool["exam"].isin(chosen), "position"].to_numpy())


def _count(fraction: float, total: int) -> int:
    return max(1, math.floor(fraction * total + 0.5))


def _stratified(patients: pd.DataFrame, rng: np.random.Generator) -> list[str]:
    """Order patients so that each beginning of the list holds the groups in proportion to their sizes."""
    keyed = []
    groups = sorted(patients["group"].unique())
    for rank, group in zip(rng.permutation(len(groups)), groups, strict=True):
        names = rng.permutation(patients.loc[patients["group"] == group, "subject"].to_numpy(str))
        keyed += [((place + 0.5) / len(names), rank, str(name)) for place, name in enumerate(names)]
    return [name for _, _, name in sorted(keyed)]
