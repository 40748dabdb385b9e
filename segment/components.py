"""Whether label maps are one piece, and so predictions may be cut to their largest connected component."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from data.readers.label_maps import IGNORED
from data.slices import Dataset


def is_one_component(dataset: Dataset, positions: Sequence[int] | np.ndarray) -> bool:
    """Whether the foreground is one connected component in at least 99 % of the labelled slices that have any.

    `--keep-largest-component auto` decides so on a run's own labels. A study that compares numbers of labels decides
    once, on the labels of its largest size, and passes "yes" or "no" to all runs, or the sizes of one curve would
    differ in their post-processing.

    Args:
        dataset: labelled slices.
        positions: rows of `dataset.table`, such as those of `data.splits.labelled_subset`.
    """
    labels = (dataset.store.label(i) for i in positions)
    counts = [ndimage.label((label > 0) & (label != IGNORED))[1] for label in labels]
    return any(counts) and bool(counts.count(1) >= 0.99 * np.count_nonzero(counts))
