"""What a pretraining run can be told, and three recipes."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.errors import UserError
from data.views import ViewRecipe

Stage = Literal["generalist", "specialist", "hierarchical"]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain an encoder in stages: natural images, then your own unlabelled scans, with BYOL."""

    stage: Stage = "hierarchical"
    """generalist: natural images; specialist: your scans from random weights; hierarchical: one after the other."""
    generalist: str = "procedural"
    """Where natural images come from: `imagenet` (timm's weights, needs the network), an encoder FILE, an image
    FOLDER (BYOL on it), or `procedural` (BYOL on drawn images with natural statistics, no download)."""

    dataset: Literal["acdc", "folder"] = "acdc"
    """Layout of the data: the ACDC challenge's, or any folder of NIfTI, PNG or TIFF files."""
    data_root: Path | None = None
    """The data's folder; without it the embedded synthetic phantom is used."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's name (`folder` only); default: the whole stem."""
    splits_file: Path | None = None
    """A saved `splits.json` (`folder` only)."""
    pool: Literal["train", "everyone"] = "train"
    """Whose unlabelled slices are used. `everyone` includes validation and test patients."""

    encoder: str = "resnet50"
    """Any timm CNN, e.g. resnet18, resnet50."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation layers: batch norm, group norm (exact under accumulation), or batch norm with frozen statistics."""
    image_size: int = 224
    """Side of a view in pixels."""
    views: ViewRecipe = field(default_factory=ViewRecipe)

    epochs: float | None = None
    """Passes over the target images; None: the stage's own (400 specialist, 25 hierarchical in the papers)."""
    steps: int | None = None
    """Optimiser steps on the target images; wins over `epochs`."""
    generalist_images: int = 20_000
    """Number of procedural images."""
    generalist_epochs: float = 25
    """Passes over the natural images."""
    batch_size: int = 128
    """Effective batch: samples of one optimiser step, over all devices and micro-batches."""
    micro_batch_size: int | None = None
    """Samples of one backward on one device; None: the whole share of the device."""
    lr: float = 0.5
    """LARS learning rate for a batch of 256; scaled by batch_size / 256."""
    warmup_epochs: float = 10
    """Linear warm-up of each stage; at most half of it is used."""
    weight_decay: float = 1e-5
    """Of weights; biases and norms have none."""
    trust: float = 0.02
    """Trust coefficient of LARS."""
    tau: float = 0.99
    """Decay of the target's moving average at the start."""
    tau_schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: tau rises to 1 at the last optimiser step."""
    projector_hidden: int = 4096
    """Hidden width of the projector."""
    predictor_hidden: int = 8192
    """Hidden width of the predictor."""
    projection: int = 256
    """Output width of both heads."""

    export: Literal["target", "online"] = "target"
    """Which network's encoder is written."""
    keep_epochs: tuple[int, ...] = ()
    """Also write the encoder after these epochs, e.g. `--keep-epochs 0 1 2 5`; 0 is before the first step."""
    probe_every: int = 0
    """Linear probe on the labelled slices every so many steps; 0: never."""

    seed: int = 0
    """Of initialisation, order and views."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Processes per node, one device each (torchrun's own count wins)."""
    nodes: int = 1
    """Machines."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    workers: int = 0
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints."""
    log_every: int = 10
    """Optimiser steps between rows of metrics."""

    out: Path | None = None
    """Run directory; None: runs/pretrain-STAGE."""
    resume: bool = False
    """Continue the run in `out`, to the very weights it would have reached."""
    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        positive = {
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "micro_batch_size": 1 if self.micro_batch_size is None else self.micro_batch_size,
            "generalist_images": self.generalist_images,
            "generalist_epochs": self.generalist_epochs,
            "lr": self.lr,
            "checkpoint_every": self.checkpoint_every,
            "log_every": self.log_every,
            "steps": 1 if self.steps is None else self.steps,
            "epochs": 1 if self.epochs is None else self.epochs,
        }
        for name, value in positive.items():
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
        if not 0 <= self.tau < 1:
            raise UserError(f"--tau {self.tau}: must lie in [0, 1)")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or above")
        if self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"pretrain-{self.stage}"

    @property
    def target_epochs(self) -> float:
        """Passes over the target images."""
        return self.epochs or {"generalist": 0, "specialist": 400, "hierarchical": 25}[self.stage]


def paper() -> PretrainConfig:
    """METHODS, section 2: the numbers of the paper and its code."""
    return PretrainConfig()


def default() -> PretrainConfig:
    """The paper's numbers with a smaller encoder and image, which a workstation finishes."""
    return PretrainConfig(encoder="resnet18", image_size=128, epochs=25, generalist_epochs=5, warmup_epochs=1)


def demo() -> PretrainConfig:
    """Small enough for two CPU cores and four minutes, phantom included. It shows the plumbing, not the method."""
    return PretrainConfig(
        encoder="resnet18",
        image_size=64,
        batch_size=64,
        projector_hidden=512,
        predictor_hidden=512,
        projection=128,
        generalist_images=1024,
        generalist_epochs=2,
        steps=60,
        warmup_epochs=1,
        checkpoint_every=50,
        log_every=5,
    )


RECIPES = {"demo": demo, "default": default, "paper": paper}
