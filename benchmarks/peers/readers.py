"""How peers read a folder of cines. No torch here: memory is measured in fresh processes, which import this."""

from pathlib import Path

import nibabel as nib
import numpy as np


def reference_cache(root: Path) -> list[np.ndarray]:
    """Every slice of every cine, as the reference code keeps them (SSL-MedSeg, `docs/SPEED.md` section 1).

    The whole volume as float64, cast to uint16, reshaped in C order: slice k of the result steps over all others.

    Returns:
        (rows, columns) uint16 each, strided views.
    """
    slices: list[np.ndarray] = []
    for file in sorted(root.rglob("*_4d.nii.gz")):
        volume = nib.load(file).get_fdata().astype(np.uint16)
        volume = volume.reshape(*volume.shape[:2], -1)
        slices += [volume[:, :, k] for k in range(volume.shape[2])]
    return slices


def nibabel_cache(root: Path) -> list[np.ndarray]:
    """Every cine as nibabel's tutorial reads it: float64 (X, Y, Z, T), all kept."""
    return [nib.load(file).get_fdata() for file in sorted(root.rglob("*_4d.nii.gz"))]
