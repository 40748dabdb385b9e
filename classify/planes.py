"""Several planes of MRNet: a classifier for each, combined by logistic regression.

Source: Bien et al. 2018, MRNet, who combine three planes in this way.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression

from classify.config import ClassifyConfig
from classify.model import Combination, log_odds
from classify.run_page import run_page
from classify.scoring import write_scores
from classify.training import choose_threshold, prepare, run_plane
from core.errors import UserError
from core.tables import read_table
from data.sources import MrnetSource
from engine.devices import make_fabric, show_messages
from engine.model_file import write_card
from engine.run_folder import RunFolder
from engine.run_page import write_run_page

log = logging.getLogger("fewslice")


def run(cfg: ClassifyConfig, fabric: Fabric | None = None) -> dict[str, Any]:
    """Train a classifier per plane, then fit logistic regression on the log-odds of their probabilities.

    Each plane has a run folder of its name in the folder of the combination.

    Returns:
        The content of `result.json` of the combination.

    Raises:
        UserError: as `classify.training.run`, or if too few exams have every plane.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)
    configs = {plane: _of_plane(cfg, plane) for plane in cfg.planes}
    # All planes first: a mistake in the last one is found before the first is trained.
    prepared = {plane: prepare(plane_config) for plane, plane_config in configs.items()}
    with RunFolder(cfg.run_folder, cfg, main=fabric.global_rank == 0) as run:
        fabric.barrier()
        began = time.perf_counter()
        results = {}
        for plane, plane_config in configs.items():
            log.info(f"plane {plane}")
            results[plane] = run_plane(plane_config, fabric, *prepared.pop(plane))
        first = results[cfg.planes[0]]
        shared = (
            "task",
            "encoder",
            "init",
            "encoder_lr_factor",
            "linear_probe",
            "epochs",
            "steps",
            "seed",
            "synthetic",
            "subjects",
        )
        result = {key: first[key] for key in shared}
        result["warnings"] = [*dict.fromkeys(warning for each in results.values() for warning in each["warnings"])]
        result |= {"planes": list(cfg.planes), "train": first["train"]}
        if run.main:
            result |= _combine(cfg, run.path)
            result["by_plane"] = {
                plane: {split: scores[split] for split in ("val", "test") if split in scores}
                for plane, scores in results.items()
            }
        result["seconds"] = time.perf_counter() - began
        result = run.write_result(result)
        write_run_page(run, cfg, lambda: run_page(cfg, run.path, result))
    fabric.barrier()
    return result


def _of_plane(cfg: ClassifyConfig, plane: str) -> ClassifyConfig:
    assert isinstance(cfg.data, MrnetSource)
    data = replace(cfg.data, plane=plane)
    out = cfg.run_folder / plane
    resume = cfg.resume and (out / "config.json").exists()  # a plane may not have begun
    return replace(cfg, data=data, planes=(), out=out, resume=resume, overwrite=False)


def _combine(cfg: ClassifyConfig, folder: Path) -> dict[str, Any]:
    """Fit on the inner validation, score the exams that all planes have, write `model.json` and the scores."""
    tables = [read_table(folder / plane / "per_exam.csv") for plane in cfg.planes]
    common = set.intersection(*(set(table["exam"]) for table in tables))
    if missing := len({exam for table in tables for exam in table["exam"]} - common):
        log.info(f"{missing} exams lack a plane and are left out of the combination")
    tables = [table[table["exam"].isin(common)].sort_values("exam", ignore_index=True) for table in tables]
    table = tables[0][["exam", "subject", "split", "label"]]
    validation = (table["split"] == "val").to_numpy()
    if table.loc[validation, "label"].nunique() < 2:
        raise UserError("the exams of the inner validation that have every plane are not of both classes; drop a plane")

    def features(column: str) -> np.ndarray:
        return np.stack([plane[column].map(log_odds) for plane in tables], axis=1)

    labels = table["label"].to_numpy()
    regression = LogisticRegression().fit(features("probability")[validation], labels[validation])
    columns = ("probability", "single_draw")
    table = table.assign(**{column: regression.predict_proba(features(column))[:, 1] for column in columns})
    threshold = choose_threshold(cfg, table[validation])
    combination = Combination(
        planes=list(cfg.planes),
        weights=regression.coef_[0].tolist(),
        intercept=float(regression.intercept_[0]),
        threshold=threshold["value"],
    )
    write_card(folder / "model.json", combination)
    return {
        "threshold": threshold,
        "test_clips": cfg.test_clips,
        "weights": dict(zip(combination.planes, combination.weights, strict=True)),
        **write_scores(table, combination.threshold, folder),
    }
