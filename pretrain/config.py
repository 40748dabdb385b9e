"""Configuration of pretraining, with the presets demo, default and paper for slices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from core.errors import UserError
from core.settings import Execution, Group, SetBySweep
from data.augmentation import Augmentation
from data.sources import (
    AcdcSource,
    ExamsSource,
    FolderSource,
    ImagesSource,
    MrnetSource,
    refuse_channels,
    refuse_colour_changes,
)
from encoders.names import Norm, is_video
from engine.config import RunSettings, memory_in_gigabytes

Stage = Literal["generalist", "specialist", "hierarchical"]
OptimiserName = Literal["lars", "adam"]
MethodName = Literal["byol", "simclr", "moco", "barlow", "masked"]
OF_METHODS: Mapping[str, tuple[MethodName, ...]] = {
    "dense": ("byol",),
    "tau": ("byol", "moco"),
    "tau_schedule": ("byol",),
    "projector_hidden": ("byol", "simclr", "moco", "barlow"),
    "predictor_hidden": ("byol",),
    "projection": ("byol", "simclr", "moco", "barlow"),
    "temperature": ("simclr", "moco"),
    "queue": ("moco",),
    "redundancy_weight": ("barlow",),
    "second_blur": ("byol", "simclr", "moco", "barlow"),
    "second_solarise": ("byol", "simclr", "moco", "barlow"),
    "mask_share": ("masked",),
    "mask_patch": ("masked",),
}
"""Settings that some methods alone have, and these methods."""
OF_TARGETS: Mapping[str, Any] = {"crop_towards": "none", "positives": "same"}
"""Settings of target images, and their values for natural images."""
EXAMS = ("mrnet", "exams")
"""Data sets whose samples are clips of exams; those of all others are slices."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunSettings):
    """Pretrain an encoder in stages: natural images, then your own unlabelled scans."""

    stage: Annotated[Stage, Group("stages"), SetBySweep] = "hierarchical"
    """generalist: natural images; specialist: your scans from random weights; hierarchical: one after the other."""
    method: MethodName = "byol"
    """Self-supervised method of every stage. byol: predicts one view from the other; needs no negatives, so small
    batches do. simclr: tells an image's views from all others of the batch; simple, good with large batches. moco: the
    same against a queue of earlier images; many negatives at small batches. barlow: makes features agree between views
    and differ from each other; no negatives, no target network, gains from a wide projector. masked: fills in hidden
    patches of slices; pretrains a whole U-Net, of which `segment` takes the decoder, too."""
    generalist: str = "procedural"
    """Natural images or their weights: imagenet (timm's weights, downloaded), hf-hub:NAME (weights of the Hugging Face
    hub, downloaded), an encoder FILE, a FOLDER of images (pretraining on them) or procedural (pretraining on drawn
    images with the statistics of natural ones). For 3D encoders kinetics (torchvision's weights, downloaded) or a FILE.
    A FILE determines `--encoder` and `--norm`."""
    generalist_images: int = 20_000
    """Number of procedural images."""
    generalist_epochs: float = 25
    """Passes over the natural images."""
    epochs: float | None = None
    """Passes over the target images; None: 400 for specialist, 25 for hierarchical, as in the paper."""
    steps: int | None = None
    """Optimiser steps on the target images (with `--stage generalist`: on the natural ones), in place of epochs."""
    stop_after_epochs: Annotated[float | None, SetBySweep] = None
    """End after this many epochs of a stage that keeps its schedule: warm-up, learning rate and tau are those of the
    whole stage, of which the first epochs are trained; None: train it to its end."""

    data: Annotated[AcdcSource | FolderSource | MrnetSource | ExamsSource | ImagesSource, SetBySweep] = field(
        default_factory=AcdcSource
    )
    """Data set: acdc or folder for slices, mrnet or exams for clips of whole exams, images for images with classes;
    exams and images have presets of their own."""
    unlabelled_splits: Annotated[Literal["train", "all"], Group("data")] = "train"
    """Splits to pretrain on: train, or all (validation and test subjects too, without their labels; they can then not
    be scored without `--allow-leakage`)."""
    clip_frames: int = 16
    """Frames of a clip, drawn at random from an exam and kept in order."""
    image_size: int = 224
    """Side of a view in pixels, 32 or more."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the views."""
    second_blur: Annotated[float | None, Group("second view")] = None
    """Probability, in [0, 1], of blur in the second view; None: as in the first view."""
    second_solarise: float | None = None
    """Probability, in [0, 1], of solarisation in the second view; None: as in the first view."""
    crop_towards: Annotated[Literal["none", "motion", "centre"], Group("samples")] = "none"
    """Where the crops of target images are drawn more often: none: nowhere; centre: near the centre; motion: where the
    cine moves, which needs no labels (near the centre for slices without a cine)."""
    positives: Literal["same", "slice", "phase"] = "same"
    """What the second view of a target slice shows: the same slice, one beside it in its volume, or the same slice in
    the time frame before or after it; without such a neighbour the same slice."""

    encoder: Annotated[str, Group("network")] = "resnet50"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18 or resnet50; for exams also r3d_18, mc3_18
    or r2plus1d_18, which are 3D. The maps of a 2D encoder are max-pooled over the frames of a clip."""
    norm: Norm = "batch"
    """Normalisation layers: batch norm; group norm (independent of the batch), group+ws with standardised weights as in
    Richemond et al. 2020; or batch norm with frozen statistics."""
    stem: Literal["standard", "small"] = "standard"
    """Stem of a ResNet: standard, or small (3 x 3, no max-pooling) for images of about 32 pixels, not for segment."""
    projector_hidden: int | None = None
    """Hidden width of the projector; None: 4096 for byol, 8192 for barlow, the width of the encoder's output for simclr
    and moco (2048 for a ResNet-50)."""
    predictor_hidden: int = 8192
    """Hidden width of the predictor of byol."""
    projection: int | None = None
    """Output width of the projector (and of byol's predictor); None: 256 for byol, 128 for simclr and moco, 8192 for
    barlow."""
    dense: float = 0.0
    """Weight of a dense term beside the loss of byol: cells of the feature map of stride 8 that show the same place in
    both views predict each other, as the maps are what a U-Net reads; 0: none."""
    temperature: float | None = None
    """Temperature of the similarities of simclr and moco, above 0; None: 0.5 for simclr, 0.2 for moco."""
    queue: int = 65_536
    """Earlier images that moco compares with; at most as many as there are images or exams."""
    redundancy_weight: float = 5e-3
    """Weight of the redundancy term of barlow (lambda in the paper)."""
    mask_share: float = 0.75
    """Share of an image's patches, in (0, 1), that the method masked hides."""
    mask_patch: int | None = None
    """Side of a patch of the method masked in pixels; None: an eighth of image_size (de Mooij et al. 2024: 32 of 256
    pixels)."""
    export: Literal["target", "online"] | None = None
    """Network whose encoder is written: the target (moving average) or the online one, which is trained itself; None:
    the target for byol, the online one for other methods."""
    checkpoint_activations: Execution[bool] = False
    """Recompute the activations inside residual blocks in the backward pass: less memory, the same result, about a
    third more arithmetic."""
    cache_on_device: Execution[Literal["auto", "yes", "no"]] = "auto"
    """Keep the target slices in the device's memory and make the views there. auto: on a GPU, if they take less than
    half of its free memory; not with noise, bicubic interpolation, affine maps, clips or several channels."""

    batch_size: Annotated[int, Group("training")] = 128
    """Effective batch: samples of one optimiser step, over all devices and micro-batches."""
    optimiser: OptimiserName | None = None
    """Optimiser: LARS, or Adam with decoupled weight decay; None: adam for the method masked, lars for others."""
    lr: float | None = None
    """Peak learning rate; for LARS of a batch of 256, scaled by batch_size / 256. None: from random weights 0.5 (exams:
    0.2), for adam 1e-3; from weights that are given (`--generalist`, or the stage before) a tenth of it, since the
    whole rate destroys them."""
    warmup_epochs: float = 10
    """Epochs of linear warm-up of each stage; at most half of the stage."""
    weight_decay: float = 1e-5
    """Weight decay; biases and norms have none."""
    trust_coefficient: float = 0.02
    """Trust coefficient of LARS: the largest change of a layer per unit of learning rate, relative to its norm."""
    tau: float | None = None
    """Decay rate of the moving average of byol's or moco's target at the first step, in [0, 1). None: 0.99 (constant
    schedule: 0.996; moco: 0.999), in short runs less, down to 0.5, so that at most 1 % of the initial weights is left
    in the target at the end."""
    tau_schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: tau of byol rises to 1 at the last optimiser step; that of moco is always constant."""
    keep_epochs: Annotated[tuple[int, ...], SetBySweep] = ()
    """Also write the encoder after these epochs, e.g. `--keep-epochs 0 1 2 5`; 0 is before the first step."""
    probe_every: int = 0
    """Fit a linear probe on the labelled slices every N optimiser steps; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("image_size", "batch_size", "lr", "steps", "epochs", "generalist_images", "clip_frames")
        self.require_above_0("stop_after_epochs", "temperature", "queue", "mask_patch")
        self.require_above_0("generalist_epochs", "projector_hidden", "predictor_hidden", "projection")
        self.require_at_least_0("warmup_epochs", "weight_decay", "probe_every", "redundancy_weight", "dense")
        for name, methods in OF_METHODS.items():
            if self.method not in methods and getattr(self, name) != getattr(PretrainConfig, name):
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise UserError(f"{flag} goes with --method {' or '.join(methods)}, not with {self.method}")
        for name, value in OF_TARGETS.items() if self.stage == "generalist" else ():
            if getattr(self, name) != value:
                flag = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise UserError(f"{flag} is for the target images, of which --stage generalist sees none: leave it out")
        if self.chosen_optimiser == "adam" and self.trust_coefficient != PretrainConfig.trust_coefficient:
            raise UserError(f"--trust-coefficient {self.trust_coefficient} goes with --optimiser lars, not with adam")
        if self.batch_size == 1 and self.method in ("simclr", "barlow"):
            raise UserError(f"--batch-size 1: {self.method} compares the samples of a batch with each other; pass more")
        gigabytes = 4e-9 * self.queue * (self.projection or 128)
        if self.method == "moco" and gigabytes > (most := memory_in_gigabytes()):
            raise UserError(
                f"--queue {self.queue}: takes {gigabytes:,.0f} GB, more than this machine's {most:,.0f} GB; lower it"
            )
        if self.tau is not None and not 0 <= self.tau < 1:
            raise UserError(f"--tau {self.tau}: must lie in [0, 1)")
        if min(self.keep_epochs, default=0) < 0:
            raise UserError(f"--keep-epochs {' '.join(map(str, self.keep_epochs))}: each must be 0 or more")
        if self.image_size < 32:
            raise UserError(f"--image-size {self.image_size}: must be at least 32, the stride of the encoders")
        for name in ("second_blur", "second_solarise"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} {getattr(self, name)}: must lie in [0, 1], a probability")
        if not 0 < self.mask_share < 1:
            raise UserError(f"--mask-share {self.mask_share}: must lie in (0, 1), a share of the patches")
        if self.patch >= self.image_size:
            raise UserError(f"--mask-patch {self.mask_patch}: must be below --image-size {self.image_size}")
        if self.augmentation.foreground:
            raise UserError(
                f"--augmentation.foreground {self.augmentation.foreground}: pretraining sees no labels; leave it at 0"
            )
        if self.crop_towards != "none" and (self.augmentation.crop != "resized" or self.augmentation.affine):
            raise UserError(
                f"--crop-towards {self.crop_towards} needs resized crops without affine maps: "
                "use --augmentation.crop resized and --augmentation.affine 0, or --crop-towards none"
            )
        for_slices = {
            "--probe-every": self.probe_every,
            "--cache-on-device yes": self.cache_on_device == "yes",
            "--crop-towards": self.crop_towards != "none",
            "--positives": self.positives != "same",
            "--dense": self.dense,
            "--method masked": self.method == "masked",
        }
        if self.cache_on_device == "yes":
            refuse_channels(self.data, "--cache-on-device yes")
        refuse_colour_changes(self.augmentation, self.data)
        if self.on_exams and self.crop_towards == "motion":
            raise UserError("--crop-towards motion needs cines of slices, exams have none: use centre or none")
        if self.on_exams and self.positives != "same":
            raise UserError(
                f"--positives {self.positives} is for slices: both views of an exam show one clip; leave it at same"
            )
        if self.on_exams and self.stem != "standard":
            raise UserError(f"--stem {self.stem} is for single images: leave it out for exams")
        if self.on_images and self.unlabelled_splits == "all":
            raise UserError("--unlabelled-splits all: of images with classes only training images are pretrained on")
        for flag in for_slices if self.on_images else ():
            if for_slices[flag]:
                raise UserError(f"{flag} is for slices: leave it out with --dataset images")
        if self.on_exams and self.probe_every:
            raise UserError("--probe-every needs labelled slices: leave it at 0 for exams and use classify")

    @property
    def on_exams(self) -> bool:
        """Whether the target images are clips of exams."""
        return isinstance(self.data, MrnetSource | ExamsSource)

    @property
    def on_images(self) -> bool:
        """Whether the target images are images with classes, of one or three channels."""
        return isinstance(self.data, ImagesSource)

    @property
    def on_clips(self) -> bool:
        """Whether the encoder of this stage takes clips: on exams it does, in a generalist stage only if it is 3D."""
        return self.on_exams and (self.stage != "generalist" or is_video(self.encoder))

    @property
    def second_augmentation(self) -> Augmentation:
        """The augmentation of the second view."""
        second: dict[str, Any] = {"blur": self.second_blur, "solarise": self.second_solarise}
        return replace(self.augmentation, **{name: value for name, value in second.items() if value is not None})

    @property
    def chosen_optimiser(self) -> OptimiserName:
        """The optimiser. LARS is made for large batches; a U-Net is usually trained with Adam, at batches of any size.
        De Mooij et al. 2024 use SGD with momentum 0.99, which averages over more steps than short runs have."""
        return self.optimiser or ("adam" if self.method == "masked" else "lars")

    @property
    def patch(self) -> int:
        """Side of a patch of the method masked in pixels."""
        return self.mask_patch or max(1, round(self.image_size / 8))

    def peak_lr(self, given_start: bool) -> float:
        """Peak learning rate of the stage, scaled to its batch.

        Args:
            given_start: whether the stage starts from weights that are given, not from random ones.
        """
        if self.chosen_optimiser == "adam":  # not scaled: its steps do not depend on the size of the gradient
            lr, scale = 1e-3, 1.0
        else:  # the linear scaling rule of large-batch training, as in BYOL
            lr, scale = 0.2 if self.on_exams else 0.5, self.batch_size / 256
        lr = lr / 10 if given_start else lr
        return (lr if self.lr is None else self.lr) * scale

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.out or Path("runs") / f"pretrain-{self.stage}"

    @property
    def target_epochs(self) -> float:
        """Passes over the target images."""
        return self.epochs or {"generalist": 0, "specialist": 400, "hierarchical": 25}[self.stage]


def paper() -> PretrainConfig:
    """The numbers of Kalapos and Gyires-Toth 2022 and their code (docs/methods.md), which does not average by area."""
    return PretrainConfig(generalist="imagenet", augmentation=Augmentation(antialias=False), lr=0.5, tau=0.99)


def default() -> PretrainConfig:
    """The paper's numbers with a smaller encoder and image, which a workstation finishes.

    The specialist gets 25 epochs, not the paper's 400. A start that is given is trained at a tenth of the paper's
    rate, and tau is lower in short runs.
    """
    return PretrainConfig(encoder="resnet18", image_size=128, epochs=25, generalist_epochs=5, warmup_epochs=1)


def demo() -> PretrainConfig:
    """Small enough for two CPU cores and four minutes. It checks that the software runs and is no evidence."""
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


def masked_paper() -> PretrainConfig:
    """The numbers of de Mooij et al. 2024, with our optimiser and views (docs/methods.md)."""
    settings: dict[str, Any] = {"image_size": 256, "epochs": 100, "warmup_epochs": 0, "weight_decay": 3e-5}
    return PretrainConfig(method="masked", generalist="imagenet", **settings)


Presets = Mapping[str, Callable[[], PretrainConfig]]
PRESETS: Presets = {"demo": demo, "default": default, "paper": paper}
EXAMPLES = (
    "--data-root ACDC --stage hierarchical --generalist imagenet",
    "--dataset folder --data-root DIR --stage specialist --epochs 100",
    "--dataset mrnet --data-root MRNET --encoder r3d_18 --recipe paper",
)


def with_method(config: PretrainConfig, method: MethodName) -> PretrainConfig:
    """The settings with another method; those that it lacks, and tau, which was chosen for another, at their
    defaults."""
    lacking = {name: getattr(PretrainConfig, name) for name, methods in OF_METHODS.items() if method not in methods}
    if method != config.method:
        lacking["tau"] = None
    return replace(config, method=method, **lacking)


def with_optimiser(config: PretrainConfig, optimiser: OptimiserName) -> PretrainConfig:
    """The settings with another optimiser at its own default rate, as that of one means nothing to the other."""
    return config if config.chosen_optimiser == optimiser else replace(config, optimiser=optimiser, lr=None)


def presets_for(flags: Mapping[str, str]) -> Presets:
    """The presets for the data set, the method and the encoder ("" if neither flag nor file sets it) of a command
    line."""
    method = next((name for name in get_args(MethodName) if name == flags.get("method")), None)
    optimiser = next((name for name in get_args(OptimiserName) if name == flags.get("optimiser")), None)

    def chosen(preset: Callable[[], PretrainConfig]) -> PretrainConfig:
        config = preset() if method is None else with_method(preset(), method)
        return config if optimiser is None else with_optimiser(config, optimiser)

    return {name: partial(chosen, preset) for name, preset in _presets_for(flags).items()}


def _presets_for(flags: Mapping[str, str]) -> Presets:
    if flags.get("dataset") == "images":
        from pretrain.image_presets import IMAGE_PRESETS

        return IMAGE_PRESETS
    if flags.get("dataset") not in EXAMS:
        return {**PRESETS, "paper": masked_paper} if flags.get("method") == "masked" else PRESETS
    from pretrain.exam_presets import EXAM_PRESETS, video_demo

    return {**EXAM_PRESETS, "demo": video_demo} if is_video(flags["encoder"]) else EXAM_PRESETS
