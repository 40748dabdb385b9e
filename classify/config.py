"""Configuration of classifier training, with the presets demo, default, paper (3D) and paper-2d."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from core.errors import UserError
from core.settings import Execution, Group, Output, SetBySweep
from data.augmentation import Augmentation
from data.sources import ExamsSource, MrnetSource
from encoders.names import is_video
from engine.config import SupervisedSettings


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(SupervisedSettings):
    """Train a classifier of exams, choose weights and threshold on the inner validation, score the test exams."""

    data: Annotated[MrnetSource | ExamsSource, SetBySweep] = field(default_factory=MrnetSource)
    """Data set."""
    planes: Annotated[tuple[str, ...], Group("data"), SetBySweep] = ()
    """Several planes of MRNet: one model each, combined by logistic regression fitted on the inner validation."""
    test: Annotated[Output[bool], Group("scoring"), SetBySweep] = True
    """Score the test split as well; leave it out (`--no-test`) until every choice has been made."""
    select: Literal["auc", "accuracy", "loss", "last"] = "auc"
    """Weights to keep: the best on the inner validation (among equal ones, those of the lower loss), or the last."""
    evaluate_every: int | None = None
    """Validate every N optimiser steps; None: once an epoch."""
    threshold: Literal["youden", "fixed"] = "youden"
    """Probability from which an exam is called positive: youden maximises Youden's index on the inner validation;
    fixed is 0.5."""
    test_clips: int = 8
    """Clips per exam whose probabilities are averaged for scoring and prediction."""
    test_seed: int = 0
    """Random seed of the frames drawn for scoring, 0 or more; the same in all runs, so that they pair up."""
    explain: Annotated[Output[int], SetBySweep] = 0
    """Write Grad-CAM pictures of the N highest-scoring exams; 0: none."""

    image_size: Annotated[int, Group("images")] = 224
    """Side of a frame in pixels, 32 or more."""
    clip_frames: int = 16
    """Frames of a clip, 2 or more, drawn at random from an exam and kept in order."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(area=(0.5, 1.0), bicubic=True))
    """Random changes of the training clips."""

    encoder: Annotated[str, Group("network")] = "r3d_18"
    """Name of the encoder: r3d_18, mc3_18 or r2plus1d_18 (3D), or any convolutional network of timm, whose feature maps
    are max-pooled over the frames."""
    linear_probe: bool = False
    """Train the last layer only; the encoder does not change."""
    checkpoint_activations: Execution[bool] = False
    """Recompute the activations inside residual blocks in the backward pass: less memory, the same result, about a
    third more arithmetic."""

    epochs: Annotated[int, Group("training")] = 50
    """Passes over the (oversampled) training exams."""
    steps: int | None = None
    """Optimiser steps in place of epochs, the same for every labelled fraction; each has a full batch."""
    batch_size: int = 4
    schedule: Literal["milestones", "exponential", "cosine"] = "milestones"
    """Learning rate: times 0.1 at 0.6 and at 0.8 of the epochs; times 0.98 every epoch; or a cosine decay to 0."""
    oversample: bool = True
    """Repeat exams of the rarer class, drawn by seed, until both classes are equally frequent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("epochs", "steps", "evaluate_every", "test_clips")
        self.require_at_least_0("explain", "test_seed")
        if self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")
        if self.clip_frames < 2:
            raise UserError(f"--clip-frames {self.clip_frames}: must be at least 2")
        if self.planes and not isinstance(self.data, MrnetSource):
            raise UserError(f"--planes {' '.join(self.planes)} goes with --dataset mrnet, not with {self.data.dataset}")
        if len(self.planes) == 1 or len(set(self.planes)) < len(self.planes):
            raise UserError(f"--planes {' '.join(self.planes)}: pass two or more different planes, or one with --plane")

    @property
    def factor_of_encoder_lr(self) -> float:
        """Factor on the encoder's learning rate; a linear probe does not train it."""
        return 0.0 if self.linear_probe else super().factor_of_encoder_lr

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        if isinstance(self.data, MrnetSource):
            task = [self.data.task, "+".join(self.planes) or self.data.plane]
        else:
            task = [self.data.labels.stem if self.data.labels else "exams"]
        start = self.start_name + ("-probe" if self.linear_probe else "")
        return self.out or Path("runs") / "-".join(["classify", *task, self.encoder, start, f"seed{self.seed}"])


def paper() -> ClassifyConfig:
    """The classifier of Manna et al. 2022, BYOLMed3D, trained on clips without augmentation.

    They state no batch size: it is that of their pretraining, 4.
    """
    none = Augmentation(area=(1.0, 1.0), bicubic=True, flip=0, jitter=0)
    return ClassifyConfig(augmentation=none, threshold="fixed", encoder_lr_factor=1.0)


def paper_2d() -> ClassifyConfig:
    """The classifier of Ray 2022, BYOLMed2D: one exam a step, learning rate times 0.1 after epochs 18 and 24 of 30.

    Batch norm sees the 16 frames of one exam; `--norm frozen` keeps a pretrained encoder's statistics.
    """
    return replace(paper(), encoder="resnet18", batch_size=1, epochs=30)


def default() -> ClassifyConfig:
    """The paper's method with augmentation, frames of 112 pixels (r3d_18's own) and a cosine schedule."""
    return ClassifyConfig(image_size=112, schedule="cosine", batch_size=8)


def demo() -> ClassifyConfig:
    """Small enough for two CPU cores and four minutes. It checks that the software runs and is no evidence."""
    return ClassifyConfig(
        encoder="resnet18",
        image_size=64,
        clip_frames=8,
        augmentation=Augmentation(area=(0.8, 1.0), bicubic=True),
        epochs=5,
        schedule="cosine",
        lr=1e-3,
        batch_size=8,
        select="loss",  # with two torn ACLs among twelve validation exams most networks reach an AUC of 1
        test_clips=4,
        checkpoint_every=50,
        log_every=5,
    )


def video_demo() -> ClassifyConfig:
    """`demo` for 3D encoders, of which a step costs several times as much: smaller frames, but enough of them."""
    return replace(demo(), encoder="r3d_18", image_size=32, clip_frames=14, epochs=3, test_clips=2)


PRESETS = {"demo": demo, "default": default, "paper": paper, "paper-2d": paper_2d}
EXAMPLES = (
    "--encoder resnet18 --init runs/pretrain-specialist/encoder.safetensors",
    "--data-root MRNET --task acl --planes sagittal coronal axial --init kinetics",
    "--dataset exams --labels labels.csv --data-root DIR",
)


def presets_for(flags: Mapping[str, str]) -> Mapping[str, Callable[[], ClassifyConfig]]:
    """The presets for the encoder ("" if neither flag nor file sets it) of a command line."""
    return PRESETS | ({"demo": video_demo} if is_video(flags["encoder"]) else {})
