"""Label maps of BIDS data sets, whose names say more than those of their images.

sub-01/anat/sub-01_T1w.nii.gz has its mask in derivatives/masks/sub-01/anat/sub-01_desc-lesion_mask.nii.gz.
"""

import re
from collections.abc import Sequence

NAME = re.compile(r"sub-[A-Za-z\d]+(?:_[A-Za-z]+-[A-Za-z\d]+|_[A-Za-z\d]+)+")


def entities_of(stem: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """The entities (sub-01, ses-02) and suffixes (T1w, mask) of a name, in lower case; None if it is not BIDS'."""
    if not NAME.fullmatch(stem):
        return None
    words = stem.lower().split("_")
    entities = frozenset(word for word in words if "-" in word)
    return entities, frozenset(words) - entities


def fitting_stems(label: str, images: Sequence[str]) -> list[int]:
    """Positions of the images all of whose entities the label map has; of these, that of the suffix that it names."""
    parsed = entities_of(label)
    if parsed is None:
        return []
    named = [(position, entities_of(image)) for position, image in enumerate(images)]
    fitting = [(position, parts) for position, parts in named if parts is not None and parts[0] <= parsed[0]]
    if same := [position for position, parts in fitting if parts[1] <= parsed[1]]:
        return same
    return [position for position, _ in fitting]
