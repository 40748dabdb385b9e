"""Long-tailed and balanced subsets of the training images of a data set with classes."""

from collections.abc import Sequence

import numpy as np

from core.errors import UserError


def long_tailed_counts(largest: int, ratio: float, classes: int) -> list[int]:
    """Images of each class, exponentially fewer from the first class to the last: int(largest * ratio^(i / (C - 1))).

    Args:
        largest: images of the first class.
        ratio: images of the last class over those of the first, in (0, 1].
        classes: number of classes C, 2 or more.

    Source: Cao et al. 2019, LDAM; CIFAR10-LT of Ray 2022, section 3.2, is 5000 images with ratio 0.01.
    """
    return [int(largest * ratio ** (i / (classes - 1))) for i in range(classes)]


def balanced_counts(total: int, classes: int) -> list[int]:
    """Images of each class that add up to `total`; where it does not divide, the first classes have one more."""
    whole, rest = divmod(total, classes)
    return [whole + (i < rest) for i in range(classes)]


def draw_images(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """Positions of the images that are kept, ascending; with one seed a smaller count keeps some of a larger one's.

    Args:
        labels: (n,) class indices.
        counts: images of each class to keep, at most as many as there are.
        seed: random seed of the order in which the images of each class are kept.
    """
    kept = []
    for label, count in enumerate(counts):
        positions = np.flatnonzero(labels == label)
        kept.append(np.random.default_rng([seed, label]).permutation(positions)[:count])
    return np.sort(np.concatenate(kept))


def counts_to_keep(
    labels: np.ndarray, names: Sequence[str], imbalance: float, total: int | None, flag: str | None = None
) -> list[int]:
    """Images of each class to keep, for `--imbalance` and `--total`.

    The long tail begins with as many images as the smallest class has, so that the ratio is exact whatever the sizes
    of the classes. Without either setting every image is kept. Messages begin with `flag`, which is what the user
    passed, or with the setting.

    Raises:
        UserError: if a class would keep no image, or there are fewer images than asked for.
    """
    present = np.bincount(labels, minlength=len(names))
    if total is not None:
        flag, counts = flag or f"--total {total}", balanced_counts(total, len(names))
        if total < 2 * len(names):
            raise UserError(f"{flag}: {len(names)} classes need at least {2 * len(names)} images, two of each")
        if short := [k for k, count in enumerate(counts) if count > present[k]]:
            name, count = names[short[0]], present[short[0]]
            raise UserError(
                f"{flag}: {counts[short[0]]} images of each class are needed and {name} has {count}; "
                f"pass {int(present.min()) * len(names)} or fewer"
            )
        return counts
    if imbalance == 1:
        return present.tolist()
    counts = long_tailed_counts(int(present.min()), imbalance, len(names))
    if not counts[-1]:
        flag, smallest = flag or f"--imbalance {imbalance}", names[int(present.argmin())]
        raise UserError(
            f"{flag}: the smallest class, {smallest}, has {present.min()} images, so that "
            f"{names[-1]} would keep none; pass {1 / present.min():.2g} or more"
        )
    return counts
