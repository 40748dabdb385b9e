import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.machine import keep_bytecode

os.environ["OMP_NUM_THREADS"] = "1"  # the workers of pytest-xdist are the parallelism; torch reads it when imported
keep_bytecode()  # tests start many processes


def _heart(rng: np.random.Generator, radius: float, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (X, Y, Z) int16 and labels uint8: a bright disc (LV) in a dark ring (MYO) beside a grey disc (RV)."""
    x, y = np.mgrid[:64, :56]
    image, labels = np.full((64, 56, slices), 200.0), np.zeros((64, 56, slices), np.uint8)
    for z in range(slices):
        r = radius * (1 - 0.15 * z)
        from_lv, from_rv = np.hypot(x - 36, y - 28), np.hypot(x - 16, y - 28)
        for label, where, value in ((1, from_rv < r, 500), (2, from_lv < r + 4, 20), (3, from_lv < r, 700)):
            labels[where, z], image[where, z] = label, value
    return (image + rng.normal(0, 20, image.shape)).astype(np.int16), labels


@pytest.fixture(scope="session")
def tiny_acdc(tmp_path_factory) -> Path:
    """Six patients in the ACDC layout: 1 tests, 2 validates, 3-6 train (24 labelled slices, 6 without in a cine)."""
    root = tmp_path_factory.mktemp("acdc")
    for number in range(1, 7):
        name, rng = f"patient{number:03d}", np.random.default_rng(number)
        folder = root / "training" / name
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 3\nGroup: {'DCM' if number % 2 else 'NOR'}\n")
        hearts = [_heart(rng, radius, 3) for radius in (9 + number / 4, 8, 6, 7)]
        files = {f"frame{t:02d}{kind}": hearts[t - 1][k] for t in (1, 3) for k, kind in enumerate(("", "_gt"))}
        if number == 3:
            files["4d"] = np.stack([image for image, _ in hearts], axis=3)
        for key, values in files.items():
            image = nib.Nifti1Image(values, np.eye(4))
            image.header.set_zooms((1.5, 1.5, 10, 1)[: values.ndim])
            image.to_filename(folder / f"{name}_{key}.nii.gz")
    return root


def make_study(root: Path, out: Path, **settings):
    """A study of two pipelines, two sizes and two seeds on the tiny patients, in seconds."""
    from dataclasses import replace

    from sweep.config import demo

    base = demo()
    pretraining = replace(base.pretrain, encoder="resnet10t", image_size=32, steps=2, batch_size=4, log_every=1)
    training = replace(
        base.segment, encoder="resnet10t", image_size=32, spacing_mm=3.0, steps=4, batch_size=4, evaluate_every=2
    )
    grid = {"pipelines": ("random", "specialist"), "fractions": (0.1, 0.5), "seeds": (0, 1)}
    own = {"data_root": root, "out": out, "threads": 1, "device": "cpu"}
    return replace(base, pretrain=pretraining, segment=training, **(grid | own | settings))


def run_here(cfg) -> None:
    """Make a study in this process, without an executor: what every executor must come to."""
    from engine.config import plain
    from engine.run import write_json
    from sweep.cell import run_job
    from sweep.grid import plan
    from sweep.results import collect
    from sweep.study import count_labels

    jobs = plan(cfg, count_labels(cfg))
    for job in jobs:
        run_job(job, threads=1)
    collect(cfg, [job for job in jobs if job.is_cell])
    write_json(cfg.out / "study.json", plain(cfg))
