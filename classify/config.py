"""What a classifier run can be told, and three recipes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data.errors import UserError
from data.views import ViewRecipe
from encoders.video import VIDEO_ENCODERS
from engine.config import RunSettings, named_early


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(RunSettings):
    """Train a classifier of exams (one logit per clip), choose on the inner validation, score the test exams."""

    init: str = "random"
    """Start of the encoder: `random`, `kinetics` (3D) or `imagenet` (2D; both need the network), or an encoder FILE."""
    linear_probe: bool = False
    """Train the last layer only; the encoder stays as it is."""
    labelled_fraction: float = 1.0
    """Share of the training exams to use, in (0, 1], both classes in proportion; the inner validation stays whole."""
    subset_seed: int | None = None
    """Of the labelled exams alone; None: `seed`."""

    dataset: Literal["mrnet", "exams"] = "mrnet"
    """Layout of the data: the MRNet challenge's, or NIfTI volumes and cines that `labels` lists."""
    data_root: Path | None = None
    """The data's folder; without it the embedded synthetic knees are used."""
    task: str = "acl"
    """Whose label is learnt (`mrnet` only): acl, meniscus, abnormal or any other {train,valid}-TASK.csv."""
    plane: str = "sagittal"
    """Plane of the exams (`mrnet` only): sagittal, coronal or axial."""
    planes: tuple[str, ...] = ()
    """Several planes: one model each, combined by logistic regression fitted on the inner validation."""
    labels: Path | None = None
    """Table of the exams (`exams` only), a CSV of path,label, perhaps split and subject."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a path (`exams` only); default: each file is a subject."""
    split_seed: int = 0
    """Of the inner validation; keep it when runs are to be compared."""
    test: bool = True
    """Score the test split as well; leave it out (`--no-test`) until every choice is made."""

    encoder: str = "r3d_18"
    """r3d_18, mc3_18, r2plus1d_18 (3D), or any timm CNN, whose feature maps are max-pooled over the frames."""
    clip: Literal["maxpool2d"] | None = None
    """How a 2D encoder sees a clip: the maximum over frames of its feature maps, also where nothing is given."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation layers; `frozen` keeps a pretrained encoder's statistics, as a batch of one exam suggests."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass: less memory, the same result, more arithmetic."""
    image_size: int = 224
    """Side of a frame in pixels."""
    clip_frames: int = 16
    """Frames of a clip, drawn at random from an exam and kept in order."""
    views: ViewRecipe = field(default_factory=lambda: ViewRecipe(area=(0.5, 1.0), bicubic=True))

    epochs: int = 50
    """Passes over the (oversampled) training exams."""
    steps: int | None = None
    """Optimiser steps in place of epochs, the same for every labelled fraction; each is of a full batch."""
    evaluate_every: int | None = None
    """Optimiser steps between validations; None: an epoch."""
    schedule: Literal["milestones", "exponential", "cosine"] = "milestones"
    """Learning rate: times 0.1 at 0.6 and at 0.8 of the epochs; times 0.98 every epoch; or a cosine to 0."""
    lr: float = 1e-4
    """Adam's learning rate at the start."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    batch_size: int = 4
    """Effective batch: exams of one optimiser step, over all devices and micro-batches."""
    oversample: bool = True
    """Repeat exams of the rarer class, drawn by seed, until the classes are even."""
    select: Literal["auc", "accuracy", "loss", "last"] = "auc"
    """Which weights are kept: the best on the inner validation (of equals those of the lower loss), or the last."""

    test_clips: int = 8
    """Clips per exam whose probabilities are averaged for scoring and predicting."""
    test_seed: int = 0
    """Of the frames drawn for scoring; the same in all runs, so that they pair up."""
    threshold: Literal["youden", "fixed"] = "youden"
    """Where an exam is called positive: at Youden's index of the inner validation, or at 0.5. Never chosen on test."""
    explain: int = 0
    """Grad-CAM montages of so many scored exams, those of the highest probability first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.labelled_fraction <= 1:
            raise UserError(f"--labelled-fraction {self.labelled_fraction}: must lie in (0, 1], e.g. 0.1 for 10 %")
        self.require_above_0("epochs", "steps", "evaluate_every", "batch_size", "lr", "test_clips")
        self.require_at_least_0("weight_decay", "explain", "test_seed", "subset_seed")
        if self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")
        if self.clip_frames < 2:
            raise UserError(f"--clip-frames {self.clip_frames}: must be at least 2")
        if self.dataset != "exams" and self.labels:
            raise UserError(f"--labels {self.labels} goes with --dataset exams, not with {self.dataset}")
        if self.dataset == "exams" and not self.labels:
            raise UserError("--dataset exams needs --labels FILE.csv with the columns path,label")
        if self.planes and self.dataset != "mrnet":
            raise UserError(f"--planes {' '.join(self.planes)} goes with --dataset mrnet, not with {self.dataset}")
        if len(self.planes) == 1 or len(set(self.planes)) < len(self.planes):
            raise UserError(f"--planes {' '.join(self.planes)}: give two or more different planes, or one with --plane")

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        init = self.init if self.init in ("random", "imagenet", "kinetics") else Path(self.init).resolve().parent.name
        which = [self.task, "+".join(self.planes) or self.plane]
        if self.labels:
            which = [self.labels.stem]
        if self.linear_probe:
            init += "-probe"
        return self.out or Path("runs") / "-".join(["classify", *which, self.encoder, init, f"seed{self.seed}"])


def paper() -> ClassifyConfig:
    """METHODS, section 5: BYOLMed3D's classifier; with `--encoder resnet18 --batch-size 1 --epochs 30` BYOLMed2D's.

    The papers train on clips without any random view. The batch in 3D, not given there, is the pretraining's 4.
    """
    none = ViewRecipe(area=(1.0, 1.0), bicubic=True, flip=0, jitter=0)
    return ClassifyConfig(views=none, threshold="fixed")


def default() -> ClassifyConfig:
    """The paper's method with random views, frames of 112 pixels (the phantom's, and r3d_18's own) and a cosine."""
    return ClassifyConfig(image_size=112, schedule="cosine", batch_size=8)


def demo() -> ClassifyConfig:
    """Small enough for two CPU cores and four minutes, phantom included. It shows the plumbing, not the method."""
    return ClassifyConfig(
        encoder="resnet18",
        image_size=64,
        clip_frames=8,
        views=ViewRecipe(area=(0.8, 1.0), bicubic=True),
        epochs=5,
        schedule="cosine",
        lr=1e-3,
        batch_size=8,
        select="loss",  # two torn ACLs among twelve exams: almost any ranking of them is perfect
        test_clips=4,
        checkpoint_every=50,
        log_every=5,
    )


def video_demo() -> ClassifyConfig:
    """`demo` for 3D encoders, of which a step costs several times as much: smaller frames, but enough of them."""
    return replace(demo(), encoder="r3d_18", image_size=32, clip_frames=14, epochs=3, test_clips=2)


Recipes = Mapping[str, Callable[[], ClassifyConfig]]
RECIPES: Recipes = {"demo": demo, "default": default, "paper": paper}


def recipes_for(arguments: Sequence[str]) -> Recipes:
    """The recipes of the encoder that a command line names."""
    (encoder,) = named_early(arguments, "--encoder")
    return {**RECIPES, "demo": video_demo} if encoder in VIDEO_ENCODERS else RECIPES
