"""Made-up images of several channels: numbered files of nnU-Net, and colours as PNG."""

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.5, 1.5, 8, 1]) if affine is None else affine
    nib.Nifti1Image(values, affine).to_filename(path)


def case(seed: int, size: tuple[int, int, int] = (40, 36, 2)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two channels (X, Y, Z), of which only the second shows the object, and its label map."""
    rng = np.random.default_rng(seed)
    x, y = np.mgrid[: size[0], : size[1]]
    labels = np.repeat((np.hypot(x - 18 - seed % 4, y - 16) < 9)[..., None], size[2], axis=2).astype(np.uint8)
    first, second = rng.normal(300, 40, size), rng.normal(-20, 5, size) + 60 * labels
    return first.astype(np.int16), second.astype(np.float32), labels


def nnunet(root: Path, cases: int = 8) -> Path:
    for n in range(cases):
        first, second, labels = case(n)
        save(root / f"imagesTr/case{n:02d}_0000.nii.gz", first)
        save(root / f"imagesTr/case{n:02d}_0001.nii.gz", second)
        save(root / f"labelsTr/case{n:02d}.nii.gz", labels)
    return root


def colours(seed: int, shape: tuple[int, ...] = (24, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def write_png_folder(root: Path, cases: int = 6, mode: str = "RGB", number: str = "") -> Path:
    for folder in ("images", "labels") if not number else ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for n in range(cases):
        image = Image.fromarray(colours(n)).convert(mode)
        image.save(root / f"{'imagesTr' if number else 'images'}/p{n}{number}.png")
        label = (colours(n)[..., 2] > 128).astype(np.uint8)
        Image.fromarray(label).save(root / f"{'labelsTr' if number else 'labels'}/p{n}.png")
    return root


def rgb_nifti(path: Path, values: np.ndarray) -> None:
    """Write colours (X, Y, Z, 3), uint8, as NIfTI of the type RGB24."""
    structured = np.ascontiguousarray(values).view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    save(path, structured)
