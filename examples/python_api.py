"""Pretrain and segment through the Python API, with a data set of NumPy arrays.

uv run python examples/python_api.py [STEPS]

The arrays are written as NIfTI files into images/ and labels/, the layout of `FolderSource`. Here they are noisy discs;
STEPS (default 20) is the number of optimiser steps, too small for good scores.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

import pretrain.config
import pretrain.stages
import segment.config
import segment.training
from data.sources import FolderSource

SPACING_MM = (1.5, 1.5, 8.0)


def write_volume(root: Path, name: str, volume: np.ndarray, label: np.ndarray) -> None:
    """Write arrays (rows, columns, slices): intensities, and classes 0, 1, ... of the same shape."""
    for kind, array in (("images", volume.astype(np.int16)), ("labels", label.astype(np.uint8))):
        (root / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([*SPACING_MM, 1])), root / kind / f"{name}.nii.gz")


def disc(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic volume of 64 x 64 x 4 voxels with one bright disc, and its label."""
    rng = np.random.default_rng(seed)
    x, y, _ = np.mgrid[:64, :64, :4]
    label = np.hypot(x - rng.uniform(24, 40), y - rng.uniform(24, 40)) < rng.uniform(8, 16)
    return 100 + 150 * label + rng.normal(0, 20, label.shape), label


def main() -> None:
    """Write the data, pretrain an encoder on all training images, and segment with half of the labels."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(12):
            write_volume(folder / "data", f"case{seed:02d}", *disc(seed))
        tiny = {"data": FolderSource(data_root=folder / "data"), "steps": steps, "batch_size": 8, "device": "cpu"}
        pretraining = replace(pretrain.config.demo(), stage="specialist", image_size=32, out=folder / "encoder", **tiny)
        encoder = pretrain.stages.run(pretraining)["encoder"]
        training = replace(
            segment.config.demo(), init=encoder, labelled_fraction=0.5, image_size=64, out=folder / "unet", **tiny
        )
        result = segment.training.run(training)
    print(f"validation Dice with {result['labelled_slices']} labelled slices: {result['dice']['mean']:.3f}")


if __name__ == "__main__":
    main()
