"""Which subjects and slices to label: by typicality and spread without labels, by uncertainty with a trained network.

Everything here works on arrays and is deterministic for a seed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

NEIGHBOURS = 20
"""Nearest neighbours that a subject's typicality is measured by (Hacohen et al. 2022)."""
STRATIFIED = 0.66
"""Share of the slices of a later round that is chosen class by class (ClaSP PE, arXiv 2601.13677)."""
SHARPNESS = (1.0, 100.0)
"""Inverse scale of the noise in the first and in the last round; it grows geometrically (ClaSP PE)."""
FROM_FOREGROUND = 1 / 3
"""Share of foreground-aware draws that are made among the slices with foreground alone (nnActive, arXiv 2511.19183,
whose draws are of patches: a sixth about foreground and a sixth about class borders)."""


def unit_length(features: np.ndarray) -> np.ndarray:
    """Features (..., d) scaled to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def typical_subjects(features: np.ndarray, count: int, seed: int = 0) -> list[tuple[int, str]]:
    """Subjects that stand for the others: the most typical one of each of `count` clusters.

    Args:
        features: (subjects, d) embeddings.
        count: number of subjects to choose, at most all.
        seed: random seed of the clustering.

    Returns:
        (subject, reason), those of larger clusters first.

    Source: Hacohen, Dekel and Weinshall 2022, Active learning on a budget (TypiClust).
    """
    from sklearn.cluster import KMeans  # scikit-learn takes a second to import, and most runs choose no slices

    count = min(count, len(features))
    clusters = KMeans(count, n_init=10, random_state=seed).fit_predict(features)
    chosen = []
    for cluster in sorted(set(clusters), key=lambda each: (-np.sum(clusters == each), each)):
        members = np.flatnonzero(clusters == cluster)
        distances = np.linalg.norm(features[members, None] - features[None, members], axis=2)
        nearest = np.sort(distances, axis=1)[:, 1 : NEIGHBOURS + 1]  # without itself
        most_typical = members[nearest.mean(axis=1).argmin()] if len(members) > 1 else members[0]
        what = f"most typical of {len(members)} alike subjects" if len(members) > 1 else "unlike all other subjects"
        chosen.append((int(most_typical), what))
    return chosen


def foreground_aware(has_foreground: np.ndarray, count: int, seed: int = 0) -> list[int]:
    """Slices at random, a third of the draws among those with foreground: what rules of choice have to beat.

    Fewer slices of one seed are the first of more.

    Args:
        has_foreground: (slices,) bool.
        count: number of slices to choose, at most all.
        seed: random seed of the draws.

    Returns:
        The slices in the order of choice.
    """
    rng = np.random.default_rng(seed)
    left = dict.fromkeys(rng.permutation(len(has_foreground)).tolist())  # the order in which they are drawn
    foreground = [k for k in left if has_foreground[k]]
    chosen: list[int] = []
    for among_foreground in rng.random(min(count, len(left))) < FROM_FOREGROUND:
        pick = next((k for k in foreground if k in left), None) if among_foreground else None
        pick = next(iter(left)) if pick is None else pick
        chosen.append(pick)
        del left[pick]
    return chosen


def spread_slices(features: np.ndarray, count: int) -> list[tuple[int, str]]:
    """Slices of a volume: its middle one, then each time the one that differs most from those before.

    Args:
        features: (slices, d) embeddings, in the order of the slices.
        count: number of slices to choose, at most all.

    Returns:
        (slice, reason) in the order of choice.

    Source: Stein, Di Folco and Schnabel 2023, arXiv 2307.12619, for the middle: it helps most, the apex least;
    Sener and Savarese 2018 for the farthest point.
    """
    if not len(features) or count < 1:
        return []
    chosen = [(len(features) // 2, "middle of the volume")]
    nearest = np.linalg.norm(features - features[chosen[0][0]], axis=1)
    while len(chosen) < min(count, len(features)):
        nearest[[k for k, _ in chosen]] = -1
        farthest = int(nearest.argmax())
        chosen.append((farthest, "unlike the slices before it"))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[farthest], axis=1))
    return chosen


def typical_slices(
    features: Mapping[str, np.ndarray], subjects: int, count: int, seed: int = 0
) -> list[tuple[str, int, str]]:
    """Slices of typical subjects, spread over one volume of each and shared out evenly.

    Args:
        features: of each subject, (slices, d) embeddings of its volume, in the order of the slices.
        subjects: number of subjects, at most all.
        count: number of slices; where the volumes of the chosen subjects have fewer in all, these.
        seed: random seed of the clustering.

    Returns:
        (subject, slice, reason), those of one subject together; a volume with fewer slices than its share leaves the
        rest to the others.
    """
    names = [*features]
    means = unit_length(np.stack([features[name].mean(axis=0) for name in names]))
    picked = [(names[k], why) for k, why in typical_subjects(means, subjects, seed)]
    shares = dict.fromkeys((name for name, _ in picked), 0)
    while sum(shares.values()) < min(count, sum(len(features[name]) for name in shares)):
        for name in shares:
            shares[name] += int(shares[name] < len(features[name]) and sum(shares.values()) < count)
    return [
        (name, z, f"{why}; {reason}")
        for name, why in picked
        for z, reason in spread_slices(features[name], shares[name])
    ]


def uncertain_slices(
    entropy: np.ndarray, places: Sequence[object], count: int, sharpness: float, seed: int
) -> list[tuple[int, int]]:
    """Slices that a network is unsure of: two thirds of them class by class, the others as a whole.

    A score is the logarithm of the entropy plus Gumbel noise, so that early rounds, whose networks know little, do not
    all ask for the same kind of slice.

    Args:
        entropy: (slices, classes) mean entropy in nats of the pixels that are predicted as each class, NaN where there
            are none; in column 0, that of all pixels.
        places: where each slice lies; at most one slice of a place is chosen, as the frames of a cine are much alike.
        count: number of slices to choose, at most one of each place.
        sharpness: inverse scale of the noise, see `SHARPNESS`.
        seed: random seed of the noise.

    Returns:
        (slice, class) in the order of choice; class 0 for a slice chosen as a whole.

    Source: ClaSP PE, arXiv 2601.13677.
    """
    noise = np.random.default_rng(seed).gumbel(0, 1 / sharpness, entropy.shape)
    with np.errstate(divide="ignore"):
        scores = np.where(np.isnan(entropy), -np.inf, np.log(np.nan_to_num(entropy)) + noise)
    chosen: list[tuple[int, int]] = []
    open_places = set(places)
    by_class = round(STRATIFIED * count) if entropy.shape[1] > 1 else 0
    for turn in range(min(count, len(open_places))):
        wanted = 1 + turn % (entropy.shape[1] - 1) if turn < by_class else 0
        possible = [k for k, place in enumerate(places) if place in open_places]
        best = max(possible, key=lambda k: (scores[k, wanted], -k))
        if wanted and scores[best, wanted] == -np.inf:  # the class is predicted nowhere any more
            wanted = 0
            best = max(possible, key=lambda k: (scores[k, 0], -k))
        chosen.append((best, wanted))
        open_places.remove(places[best])
    return chosen


def sharpness_of(number: int, rounds: int) -> float:
    """The inverse scale of the noise in round 1, ..., `rounds`."""
    low, high = SHARPNESS
    return low * (high / low) ** ((number - 1) / max(1, rounds - 1))
