"""Configuration of the study of class imbalance, with the presets demo, default and thesis."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pretrain.image_presets
from classify.image_settings import ImagesConfig, ProbeConfig
from core.errors import UserError
from core.settings import Affects, Execution, Group, SetBySweep, Settings
from data.augmentation import Augmentation
from data.sources import ImagesSource
from engine.command_line import flags_of_part
from engine.config import marked
from pretrain.config import MethodName, PretrainConfig

SUPERVISED = "supervised"
METHODS = (*(name for name in get_args(MethodName) if name != "masked"), SUPERVISED)
"""Values of `--methods`."""


@dataclass(frozen=True, kw_only=True)
class ImbalanceConfig(Settings):
    """Train encoders on balanced and long-tailed sets of one size, evaluate them linearly, compare what each loses."""

    task: Annotated[Literal["imbalance"], Group("grid")] = "imbalance"
    """imbalance: compare self-supervised and supervised training on balanced and on long-tailed images."""
    methods: tuple[str, ...] = (pretrain.image_presets.METHOD, SUPERVISED)
    """How encoders are trained: methods of `python -m pretrain --method`, and supervised."""
    ratios: tuple[float, ...] = (0.1, 0.01)
    """Long-tailed sets: images of the last class over those of the first, each in (0, 1). For each ratio a balanced set
    of the same size is trained on as well."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Repetitions: random seeds, each 0 or more. A seed draws the images, the initial weights and the data order."""

    data: ImagesSource = field(default_factory=ImagesSource)
    """Data set: class folders, CIFAR-10 or digits."""
    probe_images: Annotated[int | None, Group("images and encoder")] = None
    """Training images of the linear evaluation, equally many of each class; None: all."""
    encoder: str = "resnet18"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18."""
    stem: Literal["standard", "small"] = "standard"
    """Stem of a ResNet: standard, or small (3 x 3, no max-pooling) for images of about 32 pixels."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation layers of the encoder."""
    image_size: int = 32
    """Side of an image in pixels, 32 or more."""

    out: Annotated[Path, Affects.OUTPUT, Group("study")] = Path("runs/imbalance")
    """Folder of the study. Run the same command again to continue a study that was stopped."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Affects.EXECUTION, Group("execution")] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point precision; auto: bf16 on a GPU that supports it, else fp32."""
    processes: Execution[int | None] = None
    """Largest number of runs at the same time; None: one per core, or one per GPU."""
    threads: Execution[int | None] = None
    """CPU threads of one run; None: the machine's cores divided by the processes."""

    pretrain: PretrainConfig = field(default_factory=lambda: _part(pretrain.image_presets.default()))
    """How encoders are pretrained."""
    supervised: ImagesConfig = field(default_factory=ImagesConfig)
    """How encoders are trained with labels."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """How encoders are evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("methods", "ratios", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UserError(f"--{name} is empty: pass one or more")
            if len(set(values)) < len(values):
                raise UserError(f"--{name} {' '.join(map(str, values))}: a value is repeated")
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"--methods {method}: there is no such method; choose among {', '.join(METHODS)}")
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise UserError(
                    f"--ratios {ratio}: must lie in (0, 1); the balanced set, 1, is always part of the study"
                )
        if min(self.seeds) < 0 or max(self.seeds) >= 2**63:
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: each must be 0 or more and below 2 to the 63")
        for name, most in {"processes": 1024, "threads": 1024, "probe_images": math.inf}.items():
            if (value := getattr(self, name)) is not None and not 1 <= value <= most:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more, at most {most:g}")
        if self.data.imbalance != 1 or self.data.total is not None:
            flag, value = ("imbalance", self.data.imbalance) if self.data.total is None else ("total", self.data.total)
            raise UserError(f"--{flag} {value} belongs to single runs: the study makes its sets itself, pass --ratios")
        if self.data.draw_seed:
            raise UserError(f"--draw-seed {self.data.draw_seed} belongs to single runs: the study draws with --seeds")
        for part in ("pretrain", "supervised", "probe"):
            config = getattr(self, part)
            for name, initial in _set_by_study(config).items():
                if (value := getattr(config, name)) != initial:
                    study = {"method": "pass --methods"} | {f.name: f"pass {_flag(f.name)}" for f in fields(self)}
                    instead = study.get(name, "the study sets it itself")
                    raise UserError(f"{_flag(f'{part}.{name}')} {value} belongs to single runs: {instead}")

    def run_config(self, part: str, **settings: Any) -> Any:
        """The configuration of a run: that of its part, what the study shares with it, and the settings of this run."""
        config = getattr(self, part)
        shared = {name: getattr(self, name) for name in _shared(config)}
        with flags_of_part(self, part):
            return replace(config, **{**shared, **settings})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shared(config: Any) -> set[str]:
    """The settings that all runs of a study share."""
    return {f.name for f in fields(ImbalanceConfig)} & {f.name for f in fields(config)} - {"out", "data"}


def _set_by_study(config: Any) -> dict[str, Any]:
    """The settings of a part that the study sets in every run, with their initial values."""
    initial = type(config)()
    own = {"method": pretrain.image_presets.METHOD} if isinstance(config, PretrainConfig) else {}
    return {name: getattr(initial, name) for name in {*marked(type(config), SetBySweep), *_shared(config)}} | own


def _part(config: Any, **settings: Any) -> Any:
    """A preset of single runs as a part of a study's preset."""
    return replace(config, **{**_set_by_study(config), **settings})


def thesis() -> ImbalanceConfig:
    """Ray 2022, chapter 3: ratio 0.01, SimCLR for 200 epochs; and the supervised training on it that is missing there.

    On CIFAR-10 the long-tailed set has 12,406 images.
    """
    return ImbalanceConfig(
        ratios=(0.01,),
        seeds=(0, 1, 2),
        stem="small",
        pretrain=_part(pretrain.image_presets.thesis()),
        supervised=_part(ImagesConfig()),
        probe=_part(ProbeConfig()),
    )


def default() -> ImbalanceConfig:
    """Two ratios, three seeds and 100 epochs."""
    settings = _part(pretrain.image_presets.default())
    return replace(thesis(), ratios=(0.1, 0.01), pretrain=settings, supervised=_part(ImagesConfig(), epochs=100))


def demo() -> ImbalanceConfig:
    """Two ratios and three seeds on digits, in minutes on two CPU cores. It checks that the software runs."""
    still = Augmentation(area=(0.5, 1.0), flip=0.0, jitter=0.0)
    return ImbalanceConfig(
        ratios=(0.1, 0.02),
        encoder="resnet10t",
        pretrain=_part(pretrain.image_presets.demo(), steps=50),
        supervised=_part(ImagesConfig(), augmentation=still, steps=60, batch_size=64, checkpoint_every=0),
        probe=_part(ProbeConfig(), regularisation=(1e-3, 1e-2, 1e-1)),
    )


PRESETS: Mapping[str, Callable[[], ImbalanceConfig]] = {"demo": demo, "default": default, "thesis": thesis}
EXAMPLES = (
    "--task imbalance",
    "--task imbalance --data-root CIFAR --recipe thesis --out runs/imbalance-cifar",
    "--task imbalance --data-root CIFAR --ratios 0.1 0.05 0.01 --methods simclr byol supervised",
)
