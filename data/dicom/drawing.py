"""Label maps drawn onto the voxel grid of a stack: planes of segmentations, and contours of structure sets."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.path import Path as Polygon

from core.errors import UserError
from data.dicom.planes import Plane
from data.dicom.stacks import Stack, plane_affine
from data.readers.geometry import SHIFT, TURN


class Drawing:
    """Label maps of a stack: one for each time frame that anything is drawn on."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.maps: dict[int, np.ndarray] = {}
        """Frame, from 0 -> (columns, rows, slices) uint8."""
        self._regions: dict[int, np.ndarray] = {}
        """The number of the region that drew each voxel."""
        self._names: list[str] = []

    def region(self, name: str) -> int:
        """A number for a region that is about to be drawn, a segment or ROI of one file."""
        self._names.append(name)
        return len(self._names)

    def frame(self, frame: int) -> np.ndarray:
        """The label map of a frame, which counts as labelled from now on."""
        shape = self.stack.shape[:3]
        self._regions.setdefault(frame, np.zeros(shape, np.uint16))
        return self.maps.setdefault(frame, np.zeros(shape, np.uint8))

    def draw(self, frame: int, where: tuple[np.ndarray, ...], value: int, region: int) -> None:
        """Give voxels a class.

        Args:
            frame: time frame, from 0.
            where: columns, rows and slices of the voxels.
            value: class index.
            region: number of `region`.

        Raises:
            UserError: if another region has drawn one of them.
        """
        labels = self.frame(frame)
        others = self._regions[frame][where]
        overlapping = (others > 0) & (others != region)
        if overlapping.any():
            other = self._names[int(others[overlapping][0]) - 1]
            raise UserError(
                f"{other!r} and {self._names[region - 1]!r} overlap in {np.count_nonzero(overlapping)} voxels of one "
                "plane: a voxel has one class; choose with --classes"
            )
        labels[where] = value
        self._regions[frame][where] = region


def voxels_of(stack: Stack, plane: Plane, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """The voxels of a stack that are the pixels of a mask, whatever axes and directions the mask is stored in.

    Args:
        stack: the stack.
        plane: place of the mask.
        mask: (rows, columns) bool.

    Returns:
        Columns, rows and slices.

    Raises:
        UserError: if the pixels are no voxels of the stack.
    """
    if stack.affine is None or not plane.has_place:
        raise UserError(
            "segmentation or image have no place in the patient: export both again with position and orientation"
        )
    mapping = np.linalg.inv(stack.affine) @ plane_affine(plane)
    directions, origin = mapping[:3, :2], mapping[:3, 3]
    sizes = np.array([plane.columns - 1, plane.rows - 1])
    turn = np.abs((directions - np.rint(directions)) * sizes).max()
    whole = np.rint(directions).astype(int)
    is_permutation = (np.abs(whole).sum(axis=0) == 1).all() and np.abs(whole).sum(axis=1).max() == 1
    if turn > TURN or not is_permutation or np.abs(origin - np.rint(origin)).max() > SHIFT:
        raise UserError("the segmentation does not lie on the voxel grid of its images: resample it onto them first")
    rows, columns = np.nonzero(mask)
    voxels = whole @ np.stack([columns, rows]) + np.rint(origin).astype(int)[:, None]
    if voxels.size and ((voxels < 0).any() or (voxels >= np.array(stack.shape[:3])[:, None]).any()):
        raise UserError("the segmentation reaches beyond its images: add the images that are missing, or crop it")
    return tuple(voxels)


def frame_of(stack: Stack, sources: Sequence[tuple[str, int]]) -> int:
    """The time frame, from 0, that images of a stack belong to.

    Raises:
        UserError: if that is in doubt.
    """
    if stack.shape[3] == 1:
        return 0
    frames = {stack.places[source][0] for source in sources if source in stack.places}
    if len(frames) != 1:
        raise UserError(
            f"the images are a cine, and the segmentation names {'no' if not frames else 'several'} time frames of it: "
            "export one with references to the images of one frame"
        )
    return frames.pop()


def fill_contours(stack: Stack, contours: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """The pixels inside closed contours: slice -> (rows, columns) bool.

    A pixel is inside if its centre is. A contour within another of the same slice is a hole, as clinical systems draw
    them.

    Args:
        stack: the stack.
        contours: (points, 3) each, in DICOM's coordinates.

    Raises:
        UserError: if a contour lies in no slice of the stack.
    """
    if stack.affine is None:
        raise UserError("the images have no place in the patient: export them again with position and orientation")
    columns, rows, slices, _ = stack.shape
    inverse = np.linalg.inv(stack.affine)
    filled: dict[int, list[np.ndarray]] = defaultdict(list)
    for points in contours:
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        z = int(np.rint(voxels[:, 2].mean()))
        if np.abs(voxels[:, 2] - z).max() > TURN or not 0 <= z < slices:
            raise UserError("contours lie between, across or outside the slices of the images: draw them on the slices")
        low = np.maximum(np.floor(voxels[:, :2].min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(voxels[:, :2].max(axis=0)).astype(int), (columns - 1, rows - 1))
        if (high < low).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        inside = Polygon(voxels[:, :2]).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)
        mask = np.zeros((rows, columns), bool)
        mask[low[1] : high[1] + 1, low[0] : high[0] + 1] = inside
        if any(np.array_equal(mask, other) for other in filled[z]):
            continue  # the same contour again, which would cut out what it encloses
        for other in filled[z]:
            common = np.count_nonzero(mask & other)
            if 0 < common < min(np.count_nonzero(mask), np.count_nonzero(other)):
                raise UserError("contours of one structure cross each other within a slice: redraw them apart")
        filled[z].append(mask)
    return {z: np.logical_xor.reduce(members) for z, members in filled.items()}
