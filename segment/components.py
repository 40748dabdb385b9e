"""Whether label maps are one piece, and so predictions may be cut to their largest connected component."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from data.readers.label_maps import IGNORED
from data.slices import Dataset


def is_one_component(dataset: Dataset, positions: Sequence[int] | np.ndarray) -> bool:
    """Whether the foreground is one connected component in 99 % of the labelled slices and 90 % of their volumes.

    Of those that have any; of volumes fewer must be, as there are few of them. Of a volume whose slices are not all
    labelled, the foreground is taken for one component unless the labels show that it is several: a pair of organs of
    which each slice shows one may pass where few slices are labelled.

    `--keep-largest-component auto` decides so on a run's own labels. A study that compares numbers of labels decides
    once, on the labels of its largest size, and passes "yes" or "no" to all runs, or the sizes of one curve would
    differ in their post-processing.

    Args:
        dataset: labelled slices.
        positions: rows of `dataset.table`, such as those of `data.splits.labelled_subset`.
    """
    of_slices: list[int] = []
    of_volumes: list[int] = []
    table = dataset.table.iloc[np.asarray(positions)].assign(position=positions)
    for _, rows in table.groupby(["file", "frame"], sort=False):
        labels = {z: dataset.store.label(i) for z, i in zip(rows["slice"], rows["position"], strict=True)}
        of_slices += [ndimage.label(_is_foreground(label))[1] for label in labels.values()]
        if len(labels) > 1:
            of_volumes.append(_fewest_components(labels))
    return any(of_slices) and all(
        counts.count(1) >= share * np.count_nonzero(counts) for counts, share in ((of_slices, 0.99), (of_volumes, 0.9))
    )


def _is_foreground(label: np.ndarray) -> np.ndarray:
    return (label > 0) & (label != IGNORED)


def _fewest_components(labels: Mapping[int, np.ndarray]) -> int:
    """Connected components of the foreground in a volume of which some slices are labelled, {slice: (rows, columns)}.

    Slices without labels, and ignored pixels, connect what touches them.
    """
    planes: list[np.ndarray] = []
    is_foreground: list[np.ndarray] = []
    before = None
    for z, label in sorted(labels.items()):
        if before is not None and z > before + 1:  # one stands for all that are missing
            planes.append(np.ones_like(label, bool))
            is_foreground.append(np.zeros_like(label, bool))
        planes.append(label > 0)
        is_foreground.append(_is_foreground(label))
        before = z
    components = ndimage.label(np.stack(planes))[0]
    return len(np.unique(components[np.stack(is_foreground)]))
