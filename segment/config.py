"""Configuration of segmentation training, with the presets demo, default and paper."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from core.errors import UserError
from core.settings import Group, Output, SetBySweep
from data.augmentation import Augmentation
from data.slices import Normalisation
from data.sources import AcdcSource, FolderSource, refuse_colour_changes
from encoders.names import Decoder
from engine.config import SupervisedSettings

Selection = Literal["random", "foreground", "first", "next"]
TEACHER_DECAY = 0.99
"""Decay rate of the moving average that labels unlabelled slices, where `ema_decay` is 0."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SupervisedSettings):
    """Train a U-Net, or DPT on a vision transformer, on the few labelled slices and score it on whole volumes."""

    label_unit: Annotated[Literal["slice", "patient"], Group("labels"), SetBySweep] = "slice"
    """What the labelled fraction counts: slices of all patients (as in the paper) or whole patients."""
    labelled_list: Annotated[Path | None, Group("labels")] = None
    """File of what carries labels, which `--labelled-fraction` is then a share of: a subject on each line, or a CSV
    table with a column subject or file and optionally frame and slice, such as the `labelled_slices.csv` of a run."""
    label_order: Annotated[Literal["random", "ssl4mis"], SetBySweep] = "random"
    """Order in which `--label-unit patient` takes patients: random, by `--subset-seed` and in proportion to the groups;
    or that of the SSL4MIS benchmark, whose first 1, 3 and 7 are the published ones."""
    selection: Annotated[Selection, SetBySweep] = "random"
    """How labelled slices are chosen: random; foreground: a third of the draws among slices with foreground; first: by
    the view of the encoder of `--init`, as `python -m annotate first` does; next: those of `--selection-run` and then
    the ones that its U-Net is most unsure of, as `python -m annotate next` does."""
    selection_run: Annotated[Path | None, SetBySweep] = None
    """Finished run folder of `python -m segment` on the same data that `--selection next` goes on from."""
    selection_round: Annotated[tuple[int, int], SetBySweep] = (1, 5)
    """Number of this round of `--selection next`, from 1, and of all that are planned; early ones choose with more
    chance."""
    data: Annotated[AcdcSource | FolderSource, SetBySweep] = field(default_factory=AcdcSource)
    """Data set."""
    test: Annotated[Output[bool], Group("scoring"), SetBySweep] = False
    """Score the test split as well; use it once, after all choices have been made."""
    parity: Output[Literal["none", "ssl4mis"]] = "none"
    """Also score as another benchmark does, under names of its own, for comparison with its tables: ssl4mis stretches
    slices to 256 x 256, measures distances in voxels and averages over volumes."""
    select: Literal["last", "best"] = "last"
    """Weights to keep: the last, or those of the best validation Dice (which then is a biased estimate)."""
    evaluate_every: int = 70
    """Validate every N optimiser steps."""
    keep_largest_component: Literal["auto", "yes", "no"] = "no"
    """Keep only the largest connected component of the foreground in a volume, by the geometric mean of the voxels of
    its classes: for organs, not for scattered lesions. auto: if the foreground is one component in 99 % of the
    labelled training slices and in 90 % of their volumes."""
    flip_tta: bool = False
    """Test-time augmentation: average each prediction with that of the left-right flipped slice."""
    figures: Annotated[Output[bool], SetBySweep] = True
    """Draw `learning_curve.png` and `predictions.png`, and write `report.html`."""

    image_size: Annotated[int, Group("images")] = 224
    """Side of a training image in pixels; a multiple of 32."""
    spacing_mm: float | None = None
    """Resample slices to square pixels of this size in mm; None: do not resample."""
    normalisation: Normalisation = "image"
    """z-score each slice by itself (image) or with the statistics of the training slices (dataset)."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(jitter=0.2, brightness=0.6))
    """Random changes of the training slices."""

    unlabelled: Annotated[bool, Group("unlabelled slices"), SetBySweep] = False
    """Learn from unlabelled slices of the training subjects as well: from pseudo-labels that a moving average of the
    network gives them. Each step then takes as many of them as labelled samples, in addition. The average, of decay
    rate 0.99 unless `--ema-decay` is set, is what is scored and kept."""
    unlabelled_pool: Literal["all", "annotated"] = "all"
    """Unlabelled slices to learn from: all other slices of the training subjects; or annotated: those of them that have
    a label map, which is not used, so that frames and scans without one are left out."""
    confidence: float = 0.95
    """Least probability, in [0, 1], of a pseudo-label; pixels with a lower one are left out of the loss."""
    unlabelled_weight: float = 1.0
    """Weight, 0 or more, of the loss of unlabelled samples where all pixels have a pseudo-label, less in proportion
    where not; that of labelled ones has weight 1."""
    unlabelled_ramp: tuple[float, float] = (0.25, 0.5)
    """Shares of the steps, in [0, 1], between which that weight rises; before them it is 0, as the average knows too
    little to teach."""
    cutmix: float = 0.5
    """Probability of replacing a box of an unlabelled sample, and of its pseudo-labels, by that of another one."""

    init: Annotated[str, Group("network"), SetBySweep] = "random"
    """Start of the network: random; imagenet (timm's weights for the encoder, downloaded); hf-hub:NAME (an encoder of
    the Hugging Face hub, e.g. hf-hub:timm/vit_small_patch14_dinov2.lvd142m, downloaded); an encoder FILE; or a
    `unet.safetensors` of `python -m pretrain --method masked` or its run folder, which sets the decoder, too. A FILE
    determines `--encoder` and `--norm`."""
    encoder: Annotated[str, Group("network")] = "resnet50"
    """Name of the encoder: with `--decoder unet` any convolutional network of timm, e.g. resnet18 or convnext_tiny;
    with `--decoder dpt` a vision transformer, e.g. vit_small_patch14_dinov2 or vit_small_patch16_dinov3."""
    decoder: Decoder = "unet"
    """Decoder: unet for encoders with a pyramid of feature maps; dpt (Ranftl et al. 2021) for vision transformers."""
    loss: Annotated[Literal["jaccard", "jaccard+ce"], Group("training")] = "jaccard"
    """Jaccard loss over classes, or its sum with cross-entropy."""
    steps: int = 1050
    """Optimiser steps, the same for every labelled fraction."""
    batch_size: int = 192
    warmup: float = 10 / 150
    """Share of the steps, in [0, 1], with linear warm-up of the learning rate; the schedule follows."""
    schedule: Literal["cosine", "periodic"] = "cosine"
    """Decay of the learning rate: one cosine to 0, as in the paper's code; or five of equal length, each from the peak
    (the paper's text says "periodic cosine annealing", without a period)."""
    max_grad_norm: float = 5.0
    """Gradients of a larger norm are scaled down to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("image_size", "spacing_mm", "steps", "max_grad_norm", "evaluate_every")
        self.require_at_least_0("unlabelled_weight")
        if not 0 <= self.unlabelled_ramp[0] <= self.unlabelled_ramp[1] <= 1:
            first, last = self.unlabelled_ramp
            raise UserError(f"--unlabelled-ramp {first} {last}: must rise and lie in [0, 1], shares of the steps")
        for name in ("warmup", "confidence", "cutmix"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                what = "a share of the steps" if name == "warmup" else "a probability"
                raise UserError(f"--{name} {value}: must lie in [0, 1], {what}")
        if self.label_order == "ssl4mis" and self.label_unit != "patient":
            raise UserError("--label-order ssl4mis is an order of patients: pass --label-unit patient")
        self._refuse_unsuitable_selection()
        refuse_colour_changes(self.augmentation, self.data)
        if self.image_size % 32:
            raise UserError(f"--image-size {self.image_size}: must be a multiple of 32, the network's stride")
        share = math.ceil(self.batch_size / self.devices)
        micro = min(self.micro_batch_size or share, share)
        if self.norm == "batch" and self.image_size == 32 and 1 in (micro, share % micro):
            raise UserError(
                f"--batch-size {self.batch_size}: leaves a micro-batch of one sample, whose deepest feature map is "
                "one pixel at --image-size 32, nothing for batch norm; use --norm group or larger images"
            )

    def _refuse_unsuitable_selection(self) -> None:
        if self.selection != "random" and self.label_unit != "slice":
            raise UserError(f"--selection {self.selection} chooses slices: pass --label-unit slice")
        if self.selection == "first" and self.init == "random":
            raise UserError("--selection first goes by the view of a pretrained encoder: pass one by --init")
        if (self.selection == "next") != (self.selection_run is not None):
            raise UserError("--selection next goes on from a run: pass both, --selection next and --selection-run RUN")
        number, rounds = self.selection_round
        if not 1 <= number <= rounds:
            raise UserError(f"--selection-round {number} {rounds}: must rise and be 1 or more")

    def refuse_settings_of_unlabelled(self, remedy: str = "pass --unlabelled", group: str = "") -> None:
        """Refuse changed settings of unlabelled slices, for a command that learns from none and would not use them.

        Not part of the checks of every configuration, as a study has pipelines with and without unlabelled slices.

        Args:
            remedy: what would make use of them.
            group: what a flag begins with in a study, "segment.".

        Raises:
            UserError: naming the flag.
        """
        for name in ("unlabelled_pool", "confidence", "unlabelled_weight", "unlabelled_ramp", "cutmix"):
            if (value := getattr(self, name)) != getattr(SegmentConfig, name):
                given = " ".join(map(str, value)) if isinstance(value, tuple) else value
                flag = f"--{group}{name.replace('_', '-')} {given}"
                raise UserError(f"{flag} is about unlabelled slices, which nothing here learns from: {remedy}")

    @property
    def decay_of_average(self) -> float:
        """Decay rate of the moving average of the weights, which pseudo-labels need; 0: none."""
        return self.ema_decay or (TEACHER_DECAY if self.unlabelled else 0.0)

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        name = f"segment-{self.start_name}-{self.labelled_fraction:g}-seed{self.seed}"
        return self.out or Path("runs") / (name + "-unlabelled" * self.unlabelled)


def paper() -> SegmentConfig:
    """The numbers of Kalapos and Gyires-Toth 2022 and their code; their evaluation corrected (docs/methods.md)."""
    return SegmentConfig(
        select="best",
        augmentation=Augmentation(jitter=0.2, brightness=0.6, antialias=False),
        encoder_lr_factor=1.0,
    )


def default() -> SegmentConfig:
    """A smaller U-Net on pixels of 1.5 mm that trains on a CPU; two of three crops contain foreground."""
    return SegmentConfig(
        encoder="resnet18",
        image_size=96,
        spacing_mm=1.5,
        augmentation=Augmentation(
            crop="fixed",
            foreground=2 / 3,
            affine=0.75,
            rotate_degrees=180.0,
            jitter=0.5,
            brightness=0.3,
            contrast=0.3,
        ),
        loss="jaccard+ce",
        steps=2400,
        batch_size=16,
        lr=1e-3,
        weight_decay=1e-4,
        ema_decay=0.99,
        evaluate_every=600,
        keep_largest_component="auto",
        flip_tta=True,
    )


def demo() -> SegmentConfig:
    """Small enough for two CPU cores and four minutes. It checks that the software runs and is no evidence."""
    return SegmentConfig(
        encoder="resnet18",
        image_size=96,
        spacing_mm=2.0,
        augmentation=Augmentation(crop="fixed", foreground=2 / 3, affine=0.75, jitter=0.5),
        loss="jaccard+ce",
        steps=120,
        batch_size=8,
        lr=1e-3,
        keep_largest_component="auto",
        evaluate_every=30,
        log_every=5,
    )


PRESETS = {"demo": demo, "default": default, "paper": paper}
EXAMPLES = (
    "--labelled-fraction 0.02 --init runs/pretrain-hierarchical/encoder.safetensors",
    "--data-root ACDC --labelled-fraction 0.05 --init imagenet --unlabelled",
    "--dataset folder --data-root DIR --test",
)
