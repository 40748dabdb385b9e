"""Other ways of reading a folder of cines; without torch, as memory is measured in fresh processes that import this."""

from pathlib import Path

import nibabel as nib
import numpy as np


def reference_cache(root: Path) -> list[np.ndarray]:
    """All slices of all cines, cached as in the code of Kalapos and Gyires-Toth 2022 (SSL-MedSeg).

    Each volume is read as float64, cast to uint16 and reshaped in C order, so that the pixels of a slice are far apart.

    Returns:
        Arrays (rows, columns) uint16, not contiguous.
    """
    slices: list[np.ndarray] = []
    for file in sorted(root.rglob("*_4d.nii.gz")):
        volume = nib.load(file).get_fdata().astype(np.uint16)
        volume = volume.reshape(*volume.shape[:2], -1)
        slices += [volume[:, :, k] for k in range(volume.shape[2])]
    return slices


def nibabel_cache(root: Path) -> list[np.ndarray]:
    """All cines read as in nibabel's tutorial: arrays (X, Y, Z, T) float64."""
    return [nib.load(file).get_fdata() for file in sorted(root.rglob("*_4d.nii.gz"))]
