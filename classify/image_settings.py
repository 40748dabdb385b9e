"""Configurations of training a classifier of images, and of the linear evaluation of an encoder on images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from core.errors import UserError
from core.settings import Group, SetBySweep
from data.augmentation import Augmentation
from data.sources import ImagesSource
from encoders.names import is_file
from engine.config import RunSettings, SupervisedSettings


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(SupervisedSettings):
    """Train a classifier of images (encoder and linear layer, cross-entropy) and score the test images."""

    data: Annotated[ImagesSource, SetBySweep] = field(default_factory=ImagesSource)
    """Data set: class folders, CIFAR-10 or digits."""
    image_size: Annotated[int, Group("images")] = 32
    """Side of an image in pixels, 32 or more."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(area=(0.5, 1.0), jitter=0.0))
    """Random changes of the training images."""
    encoder: Annotated[str, Group("network")] = "resnet18"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18."""
    stem: Literal["standard", "small"] = "standard"
    """Stem of a ResNet: standard, or small (3 x 3, no max-pooling) for images of about 32 pixels."""
    epochs: Annotated[float, Group("training")] = 200
    """Passes over the training images; the learning rate falls to 0 by a cosine."""
    steps: int | None = None
    """Optimiser steps in place of epochs."""
    batch_size: int = 128
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("epochs", "steps")
        if self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")
        if self.labelled_fraction != 1:
            raise UserError(f"--labelled-fraction {self.labelled_fraction}: with images pass --total or --imbalance")
        for name in ("inner_split", "subset_seed", "allow_leakage"):
            if getattr(self, name) not in (None, False):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is for subjects, which images with classes do not have: leave it out")

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.out or Path("runs") / f"images-{self.encoder}-{self.start_name}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(RunSettings):
    """Linear evaluation: multinomial logistic regression on the features of a frozen encoder, scored on test images."""

    init: Annotated[str, Group("network"), SetBySweep] = "random"
    """The encoder's weights: an encoder FILE, which determines `--encoder`, `--norm` and `--stem`; imagenet (timm's,
    downloaded); or random, the score without any training."""
    encoder: str = "resnet18"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation layers of the encoder."""
    stem: Literal["standard", "small"] = "standard"
    """Stem of a ResNet: standard, or small (3 x 3, no max-pooling) for images of about 32 pixels."""
    data: Annotated[ImagesSource, SetBySweep] = field(default_factory=ImagesSource)
    """Data set: class folders, CIFAR-10 or digits."""
    image_size: Annotated[int, Group("images")] = 0
    """Side of an image in pixels, 32 or more; 0: that of pretraining, or 32 if it is unknown."""
    batch_size: int = 256
    """Images of one pass through the encoder."""
    regularisation: Annotated[tuple[float, ...], Group("regression")] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Values of C, the inverse strength of regularisation, each above 0; the one that is most accurate on the held-out
    training images is used."""
    held_out: float = 0.2
    """Share of the training images of each class that chooses C, in (0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("batch_size")
        if self.image_size and self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")
        if not self.regularisation or not all(0 < value < float("inf") for value in self.regularisation):
            raise UserError(f"--regularisation {' '.join(map(str, self.regularisation))}: pass values above 0")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out {self.held_out}: must lie in (0, 1)")
        if self.devices * self.nodes > 1:
            raise UserError("--devices and --nodes: linear evaluation runs in one process; leave them out")

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        name = Path(self.init).resolve().parent.name if is_file(self.init) else self.init.rsplit("/", 1)[-1]
        return self.out or Path("runs") / f"probe-{name}-{self.data.dataset}"


IMAGES_PRESETS = {"demo": lambda: ImagesConfig(encoder="resnet10t", epochs=10), "default": ImagesConfig}
PROBE_PRESETS = {"demo": lambda: ProbeConfig(encoder="resnet10t"), "default": ProbeConfig}
