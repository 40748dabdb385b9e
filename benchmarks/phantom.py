"""Files of ACDC's size and statistics, written fast: smooth shapes with Rician noise.

The cines are int16, 216 x 256 x 10 x 30, compressed to 1/2.1 by gzip, with some voxels above 255, as in the real data;
they do not look like hearts (those of `data.phantoms.cardiac` do).
"""

from pathlib import Path

import nibabel as nib
import numpy as np

NOISE = 9.0
"""Standard deviation of the real and the imaginary part; determines the compression ratio."""

MM = (1.5, 1.5, 8.0, 1.0)


def write_cines(
    root: Path, subjects: int, *, frames: int = 30, slices: int = 10, matrix: tuple[int, int] = (216, 256)
) -> None:
    """Write ``root/training/patientNNN/patientNNN_4d.nii.gz`` for patients 1..subjects.

    Single frames and label maps are left out, as the reader of ACDC does not need them.
    """
    for number in range(1, subjects + 1):
        folder = root / "training" / f"patient{number:03d}"
        folder.mkdir(parents=True)
        _write(folder / f"{folder.name}_4d.nii.gz", _cine(number, frames, slices, matrix))


def write_exams(root: Path, exams: int, *, frames: int = 30, side: int = 256) -> None:
    """Write ``root/examNNN.nii.gz``: volumes of `frames` slices of side x side pixels."""
    root.mkdir(parents=True)
    for number in range(1, exams + 1):
        _write(root / f"exam{number:03d}.nii.gz", _cine(number, 1, frames, (side, side))[0])


def _cine(seed: int, frames: int, slices: int, matrix: tuple[int, int]) -> np.ndarray:
    """(frames, slices, columns, rows) int16; `matrix` is (rows, columns) of ``data[X, Y]``."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in matrix))
    a, b, c = rng.uniform(0, 6, 3)
    body = 55 * _inside(0.85 - np.hypot(x, y / 0.7), 0.04) * (1 + 0.4 * np.sin(5 * x + a) * np.cos(4 * y + b))
    t = np.arange(frames)[:, None, None, None]
    z = np.arange(slices)[:, None, None]
    beat = 0.38 + 0.06 * np.cos(2 * np.pi * t / frames + c) - 0.12 * z / slices
    blood = 210 * _inside(beat - np.hypot(x - 0.1, y + 0.05), 0.02)
    signal = (body + blood).astype(np.float32)
    noise = NOISE * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    return np.hypot(signal + noise[0], noise[1]).astype(np.int16)


def _inside(depth: np.ndarray, softness: float) -> np.ndarray:
    """0 outside, 1 inside, with a soft edge."""
    return 1 / (1 + np.exp(np.clip(-depth / softness, -50, 50), dtype=np.float32))


def _write(file: Path, stack: np.ndarray) -> None:
    """Write (slices, columns, rows), or frames first, as ``data[X, Y, Z]`` or ``data[X, Y, Z, T]``."""
    image = nib.Nifti1Image(stack.T, np.eye(4))
    image.header.set_zooms(MM[: stack.ndim])
    nib.save(image, file)  # gzip level 1
