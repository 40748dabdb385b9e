"""Stacks of DICOM images as NIfTI volumes, in memory and as files."""

from pathlib import Path

import nibabel as nib
import numpy as np

from core.files import write_atomically
from data.dicom.pixels import decode
from data.dicom.stacks import Stack
from data.readers.images import Volume


def volume_of(stack: Stack, name: Path) -> Volume:
    """A stack as a volume with the header of a NIfTI file: mm, seconds, no text.

    Args:
        stack: slices and frames.
        name: stands for the file in messages.
    """
    values = decode(stack)
    image = nib.Nifti1Image(values, stack.ras_affine)
    header = image.header
    zooms = [*stack.spacing, stack.time_step or 0.0][: values.ndim]
    header.set_zooms(zooms)
    header.set_xyzt_units("mm", "sec")
    if stack.ras_affine is not None:
        header.set_sform(stack.ras_affine, code="scanner")
        header.set_qform(stack.ras_affine, code="scanner")
    else:
        header.set_sform(None, code=0)
        header.set_qform(None, code=0)
    affine = image.affine if stack.ras_affine is None else stack.ras_affine
    return Volume(values=values, spacing=stack.spacing, affine=affine, header=header, path=name)


def write_volume(out: Path, volume: Volume, maps: dict[int, np.ndarray]) -> tuple[str, list[str]]:
    """Write an image and its label maps.

    Label maps of all frames are one file; else each labelled frame becomes an image and a label map of its own.

    Args:
        out: the folder that gets ``images/`` and ``labels/``.
        volume: of `volume_of`; its path says where it goes below these.
        maps: frame, from 0 -> (columns, rows, slices) label map.

    Returns:
        The paths of the image and of the label maps below `out`.
    """
    frames, intensities = volume.shape.frames, volume.values
    image, label = Path("images") / volume.path, Path("labels") / volume.path
    save(out / image, volume, intensities)
    if not maps:
        return image.as_posix(), []
    if len(maps) == frames:
        values = np.stack([maps[frame] for frame in range(frames)], axis=3) if frames > 1 else maps[0]
        save(out / label, volume, values)
        return image.as_posix(), [label.as_posix()]
    labels = []
    for frame, values in sorted(maps.items()):
        name = volume.path.name.replace(".nii.gz", f"_frame{frame + 1:02d}.nii.gz")
        save(out / image.with_name(name), volume, intensities[..., frame])
        save(out / label.with_name(name), volume, values)
        labels.append(label.with_name(name).as_posix())
    return image.as_posix(), labels


def save(path: Path, like: Volume, values: np.ndarray) -> None:
    """Write values on the grid of a volume of `volume_of`, (X, Y, Z) or (X, Y, Z, T), as NIfTI."""
    header = like.header.copy()
    header.set_data_dtype(values.dtype)
    image = nib.Nifti1Image(values, like.affine if like.shape.affine is not None else None, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, image.to_filename)
