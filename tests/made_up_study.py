"""Studies on disk whose truth is known: power laws of the error, without any training."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from core.files import write_json

ERRORS = {
    "random": (0.1, 0.95, 0.5),
    "generalist": (0.1, 0.55, 0.5),
    "specialist": (0.1, 0.95, 0.5),
    "hierarchical": (0.1, 0.6, 0.5),
}
"""alpha, eta and gamma of each pipeline; specialist is no better than random."""
SPEED = {"random": 0.02, "generalist": 0.04, "specialist": 0.02, "hierarchical": 0.03}


def made_up_study(
    out: Path,
    *,
    task="segment",
    pipelines=("random", "generalist"),
    fractions=(0.02, 0.05, 0.1, 0.4),
    total=300,
    seeds=(0, 13, 42),
    scored=8,
    synthetic=False,
    pretrain_epochs=(),
    skip=(),
    **settings,
) -> Path:
    """Write the files of a study, as `python -m sweep` does, without its runs.

    Args:
        total: number of labels in all.
        scored: number of patients or exams scored.
        skip: (pipeline, labels, seed) of cells without a result.
        settings: more settings of the configuration.
    """
    rng = np.random.default_rng(1)
    training = {"encoder": "resnet50", "image_size": 224, "steps": 1050, "batch_size": 192}
    pretraining = {"generalist": "procedural", "steps": None, "batch_size": 128, "image_size": [224, 192]}
    data = {"dataset": None, "data_root": None if synthetic else "/data/ACDC"}
    grid = {"pipelines": pipelines, "fractions": fractions, "sizes": (), "seeds": seeds, "cross_seeds": False}
    grid |= {"pretrain_seeds": (0,), "pretrain_epochs": pretrain_epochs, "task": task, "data": data}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "study.json", grid | {task: training, "pretrain": pretraining} | settings)
    results, details, curves = [], [], []
    stages = {pipeline: pipeline.partition("=")[0] for pipeline in pipelines}
    jobs = [
        {"name": f"encoders/{name}", "is_cell": False, "needs": [], "stage": stages[name], "epochs": 25}
        for name in pipelines
        if stages[name] != "random"
    ]
    of_unit = rng.normal(0, 0.04, scored)
    of_subset = {(seed, f): rng.normal(0, 0.01) for seed in seeds for f in fractions}
    for pipeline, seed, fraction in product(pipelines, seeds, fractions):
        labels = max(1, int(fraction * total + 0.5))
        stage = stages[pipeline]
        alpha, eta, gamma = ERRORS.get(stage, ERRORS["random"])
        for epochs in (None,) if stage in ("random", "generalist") else pretrain_epochs or (None,):
            name = f"{pipeline}{'' if epochs is None else f'-epoch{epochs}'}-n{labels}-seed{seed}"
            key = {"cell": name, "pipeline": pipeline, "pretrain_epochs": epochs, "pretrain_seed": 0}
            key |= {"fraction": fraction, "labels": labels, "subset_seed": seed, "seed": seed}
            needs = [] if stage == "random" else [f"encoders/{pipeline}"]
            jobs.append({"name": f"cells/{name}", "is_cell": True, "needs": needs} | key)
            if (pipeline, labels, seed) in skip:
                continue
            error = alpha + eta * labels**-gamma + of_subset[seed, fraction] + rng.normal(0, 0.004)
            error += 0 if epochs is None else 0.05 / (1 + epochs)
            scores = np.clip(1 - error + of_unit + rng.normal(0, 0.01, scored), 0.01, 0.99)
            row = {"labelled_subjects": min(labels, 80), "dice": scores.mean(), "auc": scores.mean()}
            results.append(key | {"split": "val"} | row | {"synthetic": synthetic, "versions": "torch=2.11.0"})
            for index, score in enumerate(scores):
                if task == "classify":
                    label = index % 2
                    scores_row = {"exam": f"{index:04d}", "label": label, "probability": rng.beta(2 + label, 3 - label)}
                else:
                    scores_row = {"subject": f"patient{index:03d}", "phase": "ED"}
                    for c in ("RV", "LV"):
                        scores_row |= {f"dice_{c}": score, f"jaccard_{c}": score - 0.1}
                details.append(key | {"split": "val"} | scores_row)
            for step in range(25, 151, 25):
                score = (1 - error) * (1 - np.exp(-SPEED.get(stage, 0.02) * step)) + rng.normal(0, 0.003)
                curves.append(key | {"step": step, "score": score, "loss": error})
    unit = "exams" if task == "classify" else "slices"
    write_json(out / "plan.json", {"unit": unit, "task": task, "jobs": jobs})
    pd.DataFrame(results).to_csv(out / "results.csv", index=False)
    pd.DataFrame(details).to_csv(out / ("per_exam.csv" if task == "classify" else "per_volume.csv"), index=False)
    pd.DataFrame(curves).to_parquet(out / "curves.parquet", index=False)
    return out
