"""What a segmentation run can be told, and three recipes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.errors import UserError
from data.samples import Normalisation
from data.views import ViewRecipe
from engine.config import RunSettings


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunSettings):
    """Train a U-Net on the few slices that are labelled, and score it on whole volumes."""

    labelled_fraction: float = 1.0
    """Share of the labelled training slices (or patients) to use, in (0, 1]."""
    label_unit: Literal["slice", "patient"] = "slice"
    """What the fraction counts: slices of all patients (the paper), or whole patients (what annotation costs)."""
    subset_seed: int | None = None
    """Of the labelled subset alone; None: `seed`."""
    init: str = "random"
    """Start of the encoder: `random`, `imagenet` (timm's weights, needs the network) or an encoder FILE."""

    dataset: Literal["acdc", "folder"] = "acdc"
    """Layout of the data: the ACDC challenge's, or any folder of NIfTI, PNG or TIFF files."""
    data_root: Path | None = None
    """The data's folder; without it the embedded synthetic phantom is used."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's name (`folder` only); default: the whole stem."""
    splits_file: Path | None = None
    """A saved `splits.json` (`folder` only)."""
    test: bool = False
    """Score the test split as well; look at it once, when every choice is made."""

    encoder: str = "resnet50"
    """Any timm CNN; must be that of an encoder FILE."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation layers of the encoder and the decoder."""
    image_size: int = 224
    """Side of a training view in pixels; must be a multiple of 32."""
    spacing_mm: float | None = None
    """Resample slices to square pixels of this size; None: the file's own pixels."""
    normalisation: Normalisation = "image"
    """z-score each slice by itself (`image`) or with the training slices' statistics (`dataset`)."""
    views: ViewRecipe = field(default_factory=lambda: ViewRecipe(jitter=0.2))

    loss: Literal["jaccard", "jaccard+ce"] = "jaccard"
    """Jaccard loss over classes, or its sum with cross-entropy."""
    steps: int = 1050
    """Optimiser steps, the same for every labelled fraction (150 epochs of 7 in the paper)."""
    batch_size: int = 192
    """Effective batch: samples of one optimiser step, over all devices and micro-batches."""
    lr: float = 1e-4
    """Adam's peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    warmup: float = 10 / 150
    """Share of the steps with linear warm-up; cosine afterwards."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    ema: float = 0.0
    """Decay rate of a moving average of the weights, which is then the network that is scored and kept; 0: none."""
    evaluate_every: int = 70
    """Optimiser steps between validations."""
    select: Literal["last", "best"] = "last"
    """Which weights are kept: the last, or those of the best validation Dice (then validation is no longer blind)."""
    one_piece: Literal["auto", "yes", "no"] = "no"
    """Keep only the largest connected piece of foreground in a volume: organs, not scattered lesions. `auto`: when the
    foreground of at least 99 % of the labelled training slices is one piece."""
    mirror: bool = False
    """Average each prediction with that of the mirrored slice."""
    figures: bool = True
    """Draw `learning_curve.png` and `predictions.png`."""

    def __post_init__(self) -> None:
        if not 0 < self.labelled_fraction <= 1:
            raise UserError(f"--labelled-fraction {self.labelled_fraction}: must lie in (0, 1], e.g. 0.02 for 2 %")
        super().__post_init__()
        self.require_above_0("image_size", "spacing_mm", "steps", "batch_size", "lr", "clip", "evaluate_every")
        self.require_at_least_0("weight_decay", "subset_seed")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup {self.warmup}: must lie in [0, 1], a share of the steps")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema {self.ema}: must lie in [0, 1)")
        if self.image_size % 32:
            raise UserError(f"--image-size {self.image_size}: must be a multiple of 32, the U-Net's stride")
        share = -(-self.batch_size // self.devices)
        micro = min(self.micro_batch_size or share, share)
        if self.norm == "batch" and self.image_size == 32 and 1 in (micro, share % micro):
            raise UserError(
                f"--batch-size {self.batch_size}: leaves a micro-batch of one sample, whose deepest feature map is "
                "one pixel at --image-size 32, nothing for batch norm; use --norm group or larger images"
            )

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        init = self.init if self.init in ("random", "imagenet") else Path(self.init).resolve().parent.name
        return self.out or Path("runs") / f"segment-{init}-{self.labelled_fraction:g}-seed{self.seed}"


def paper() -> SegmentConfig:
    """METHODS, section 4: the numbers of the paper and its code, its evaluation put right."""
    return SegmentConfig(select="best")


def default() -> SegmentConfig:
    """A smaller U-Net at 1.5 mm that trains on a CPU; crops that hold the heart two times in three."""
    return SegmentConfig(
        encoder="resnet18",
        image_size=96,
        spacing_mm=1.5,
        views=ViewRecipe(crop="fixed", foreground=2 / 3, affine=0.75, jitter=0.5, brightness=0.3, contrast=0.3),
        loss="jaccard+ce",
        steps=2400,
        batch_size=16,
        lr=1e-3,
        weight_decay=1e-4,
        ema=0.99,
        evaluate_every=600,
        one_piece="auto",
        mirror=True,
    )


def demo() -> SegmentConfig:
    """Small enough for two CPU cores and four minutes, phantom included. It shows the plumbing, not the method."""
    return SegmentConfig(
        encoder="resnet18",
        image_size=96,
        spacing_mm=2.0,
        views=ViewRecipe(crop="fixed", foreground=2 / 3, affine=0.75, jitter=0.5),
        loss="jaccard+ce",
        steps=120,
        batch_size=8,
        lr=1e-3,
        one_piece="auto",
        evaluate_every=30,
        log_every=5,
    )


RECIPES = {"demo": demo, "default": default, "paper": paper}
