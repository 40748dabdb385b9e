"""What the inspection of a data set has found so far."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.text import printable
from data.readers.colour import Palettes
from data.readers.images import VolumeShape


@dataclass
class Report:
    """What was found in a data set: ``problems`` make files unfit for training, ``warnings`` do not."""

    problems: list[dict[str, str]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    voxels: Counter = field(default_factory=Counter)
    """Number of voxels of each label value."""
    digests: dict[Path, list[str]] = field(default_factory=dict)
    """Fingerprints of the frames of each image."""
    shapes: dict[bool, dict[Path, VolumeShape]] = field(default_factory=lambda: {True: {}, False: {}})
    """Shapes of labelled and of unlabelled images."""
    scaled: list[Path] = field(default_factory=list)
    """Label maps of 0 and 255."""
    palettes: Palettes = field(default_factory=Palettes)
    """Colours of label maps."""
    label_counts: dict[Path, dict[int, int]] = field(default_factory=dict)
    """Voxels of each label value, by label map."""
    images: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Subject, split, file and digest of each frame of each image."""
    pictured: set[Path] = field(default_factory=set)
    """Images to draw for the page."""
    pictures: dict[Path, str] = field(default_factory=dict)
    """Data address of the picture of each of them."""
    samples: list[np.ndarray] = field(default_factory=list)
    """Some voxels of each image, for the page."""

    def files(self) -> pd.DataFrame:
        """A row per image file; the channels of one have the same geometry."""
        volumes = pd.DataFrame(self.volumes)
        return volumes if volumes.empty else volumes.drop_duplicates("file")

    def error(self, file: Path, what: str) -> None:
        """Note a file unfit for training."""
        self.problems.append({"file": printable(file), "problem": what})

    def warn(self, file: Path, what: str) -> None:
        """Note something worth knowing."""
        self.warnings.append({"file": printable(file), "problem": what})
