"""Check one image for `python -m data.inspect`."""

import numpy as np

from data.inspect_page import sample_of
from data.inspection import Report
from data.readers.geometry import header_disagreement, orientation_name, plane, stored_spacing
from data.readers.images import Volume

PERCENTILES = (0.5, 50, 99.5)


def check_image(report: Report, volume: Volume, channel: int | None) -> None:
    """Note the geometry and intensities of an image, or of one of several channels, and what makes it unfit."""
    stack = volume.stack
    flat = stack.ravel()
    if stack.dtype.kind == "f" and not np.isfinite(flat).all():
        flat = flat[np.isfinite(flat)]
    if flat.size < stack.size:
        report.error(volume.path, f"holds NaN or infinite values ({stack.size - flat.size} voxels)")
    if not flat.size:
        return
    constant = int((stack.max(axis=(2, 3)) == stack.min(axis=(2, 3))).sum())
    if flat.min() == flat.max():
        report.error(volume.path, f"is constant ({flat[0]} everywhere)")
    elif constant:
        report.warn(volume.path, f"has {constant} constant slices")
    if volume.header is not None and not stored_spacing(volume).min() > 0:
        assumed = "1 mm" if volume.spacing == (1, 1, 1) else "that of its affine"
        report.warn(volume.path, f"has no spacing in its header along some axis: {assumed} is assumed")
    elif disagreement := header_disagreement(volume):
        report.warn(volume.path, disagreement)
    row_mm, column_mm, slice_mm = volume.shape.slice_spacing
    if report.pictured:
        report.samples.append(sample_of(flat))
    sample = np.percentile(flat[:: max(1, flat.size // 200_000)], PERCENTILES)  # of some 200,000 voxels
    across = f"axis {volume.shape.slice_axis}" + (f" ({name})" if (name := plane(volume.shape)) else "")
    report.volumes.append(
        ({} if channel is None else {"channel": channel})
        | {
            "file": str(volume.path),
            "dtype": stack.dtype.name,
            "orientation": orientation_name(volume.affine),
            "across": across,
        }
        | dict(zip(("frames", "slices", "rows", "columns"), stack.shape, strict=True))
        | {"row_mm": row_mm, "column_mm": column_mm, "slice_mm": slice_mm}
        | {f"percentile {p}": float(value) for p, value in zip(PERCENTILES, sample, strict=True)}
    )
