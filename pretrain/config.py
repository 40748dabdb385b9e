"""What a pretraining run can be told, and three recipes for slices and three for exams."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data.errors import UserError
from data.views import ViewRecipe
from encoders.video import VIDEO_ENCODERS
from engine.config import RunSettings, named_early

Stage = Literal["generalist", "specialist", "hierarchical"]
EXAMS = ("mrnet", "exams")
"""Data sets whose samples are clips of exams; those of all others are slices."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunSettings):
    """Pretrain an encoder in stages: natural images, then your own unlabelled scans, with BYOL."""

    stage: Stage = "hierarchical"
    """generalist: natural images; specialist: your scans from random weights; hierarchical: one after the other."""
    generalist: str = "procedural"
    """Where natural images come from: `imagenet` (timm's weights, needs the network), an encoder FILE, an image
    FOLDER (BYOL on it), or `procedural` (BYOL on drawn images with natural statistics, no download). For 3D
    encoders `kinetics` (torchvision's weights of videos, needs the network) or a FILE."""

    dataset: Literal["acdc", "folder", "mrnet", "exams"] = "acdc"
    """Layout of the data: the ACDC challenge's, or any folder of NIfTI, PNG or TIFF files; for clips of whole exams
    the MRNet challenge's, or any folder of NIfTI volumes and cines. Exams have recipes of their own."""
    data_root: Path | None = None
    """The data's folder; without it the embedded synthetic phantom is used."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's name (`folder`, `exams`); default: the whole stem."""
    splits_file: Path | None = None
    """A saved `splits.json` (`folder` only)."""
    pool: Literal["train", "everyone"] = "train"
    """Whose unlabelled images are used. `everyone` includes validation and test patients."""
    plane: str = "sagittal"
    """Plane of the exams (`mrnet` only): sagittal, coronal or axial."""
    labels: Path | None = None
    """Table of the exams (`exams` only), a CSV of path,label, perhaps split; the labels are not looked at."""
    clip_frames: int = 16
    """Frames of a clip, drawn at random from an exam and kept in order."""

    encoder: str = "resnet50"
    """Any timm CNN, e.g. resnet18, resnet50; for exams also r3d_18, mc3_18 or r2plus1d_18, which are 3D."""
    clip: Literal["maxpool2d"] | None = None
    """How a 2D encoder sees a clip: the maximum over frames of its feature maps, also where nothing is given."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation layers: batch norm, group norm (exact under accumulation), or batch norm with frozen statistics."""
    image_size: int = 224
    """Side of a view in pixels."""
    views: ViewRecipe = field(default_factory=ViewRecipe)
    second_blur: float | None = None
    """Probability of blur in the second view; None: that of the first."""
    second_solarise: float | None = None
    """Probability of solarisation in the second view; None: that of the first."""
    resident: Literal["auto", "yes", "no"] = "auto"
    """Keep the target slices in the device's memory and make the views there. auto: on a GPU, where they take less than
    half of its free memory; not with blur, bicubic interpolation, affine maps or clips."""

    epochs: float | None = None
    """Passes over the target images; None: the stage's own (400 specialist, 25 hierarchical in the papers)."""
    steps: int | None = None
    """Optimiser steps on the target images (of `--stage generalist`: on the natural ones); wins over epochs."""
    generalist_images: int = 20_000
    """Number of procedural images."""
    generalist_epochs: float = 25
    """Passes over the natural images."""
    batch_size: int = 128
    """Effective batch: samples of one optimiser step, over all devices and micro-batches."""
    checkpoint_activations: bool = False
    """Compute the activations inside residual blocks again in the backward pass: less memory, the same result,
    about a third more arithmetic."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("image_size", "batch_size", "lr", "steps", "epochs", "generalist_images", "clip_frames")
        self.require_above_0("generalist_epochs", "projector_hidden", "predictor_hidden", "projection")
        self.require_at_least_0("warmup_epochs", "weight_decay", "probe_every")
        if not 0 <= self.tau < 1:
            raise UserError(f"--tau {self.tau}: must lie in [0, 1)")
        if self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")
        for name in ("second_blur", "second_solarise"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {getattr(self, name)}: must lie in [0, 1], a probability")
        if self.views.foreground:
            raise UserError(
                f"--views.foreground {self.views.foreground}: pretraining looks at no labels; leave it at 0"
            )
        if self.of_exams and self.probe_every:
            raise UserError("--probe-every looks at labelled slices: leave it at 0 for exams and use classify")
        if self.of_exams and self.splits_file:
            raise UserError("--splits-file goes with --dataset folder; exams are split by --labels or by their folders")
        if not self.of_exams and self.clip:
            raise UserError(f"--clip {self.clip} goes with --dataset mrnet or exams, not with {self.dataset}")
        if self.dataset != "exams" and self.labels:
            raise UserError(f"--labels {self.labels} goes with --dataset exams, not with {self.dataset}")

    @property
    def of_exams(self) -> bool:
        """Whether the target images are clips of exams."""
        return self.dataset in EXAMS

    @property
    def second_views(self) -> ViewRecipe:
        """T', the recipe of the second view."""
        return replace(
            self.views,
            blur=self.views.blur if self.second_blur is None else self.second_blur,
            solarise=self.views.solarise if self.second_solarise is None else self.second_solarise,
        )

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"pretrain-{self.stage}"

    @property
    def target_epochs(self) -> float:
        """Passes over the target images."""
        return self.epochs or {"generalist": 0, "specialist": 400, "hierarchical": 25}[self.stage]


Recipes = Mapping[str, Callable[[], PretrainConfig]]


def recipes_for(arguments: Sequence[str]) -> Recipes:
    """The recipes of the data set and the encoder that a command line names."""
    dataset, encoder = named_early(arguments, "--dataset", "--encoder")
    if dataset not in EXAMS:
        return RECIPES
    return {**EXAM_RECIPES, "demo": video_demo} if encoder in VIDEO_ENCODERS else EXAM_RECIPES


def paper() -> PretrainConfig:
    """METHODS, section 2: the numbers of the paper and its code."""
    return PretrainConfig(generalist="imagenet")


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


def exam_paper() -> PretrainConfig:
    """METHODS, sections 2 and 5: BYOLMed3D; with `--encoder resnet18` BYOLMed2D.

    Weight decay and trust coefficient are not given there and stay those of the slices.
    """
    return PretrainConfig(
        stage="specialist",
        dataset="mrnet",
        encoder="r3d_18",
        views=ViewRecipe(bicubic=True, brightness=0.4, contrast=0.4, blur=1.0),
        second_blur=0.1,
        second_solarise=0.2,
        epochs=200,
        batch_size=256,
        micro_batch_size=4,
        lr=0.2,
        warmup_epochs=0,
        tau=0.996,
        tau_schedule="constant",
        predictor_hidden=4096,
    )


def exam_default() -> PretrainConfig:
    """The paper's numbers with smaller images, fewer epochs and batches that batch norm can bear."""
    return replace(exam_paper(), image_size=112, epochs=50, batch_size=64, micro_batch_size=8)


def exam_demo() -> PretrainConfig:
    """Small enough for two CPU cores and four minutes, phantom included. It shows the plumbing, not the method."""
    return replace(
        exam_paper(),
        encoder="resnet18",
        clip_frames=8,
        image_size=64,
        batch_size=16,
        micro_batch_size=8,
        projector_hidden=512,
        predictor_hidden=512,
        projection=128,
        epochs=None,
        steps=8,
        lr=0.5,
        tau=0.99,
        tau_schedule="cosine",
        checkpoint_every=20,
        log_every=2,
    )


def video_demo() -> PretrainConfig:
    """`exam_demo` for 3D encoders, of which a step costs several times as much."""
    return replace(exam_demo(), encoder="r3d_18", image_size=32, clip_frames=14, steps=2)


RECIPES: Recipes = {"demo": demo, "default": default, "paper": paper}
EXAM_RECIPES: Recipes = {"demo": exam_demo, "default": exam_default, "paper": exam_paper}
