"""Configurations: frozen dataclasses whose fields are marked with what they affect, and their JSON files."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from core.errors import UserError
from core.settings import Affects, Execution, Group, Output, SetBySweep, Settings
from core.text import read_yaml
from encoders.names import Norm, is_file

C = TypeVar("C")

LARGEST = {
    **dict.fromkeys(("seed", "subset_seed", "test_seed"), 2**63 - 1),  # torch's generators take 64 bits
    **dict.fromkeys(("steps", "epochs", "generalist_epochs", "warmup_epochs", "evaluate_every"), 10**9),
    "stop_after_epochs": 10**9,
    **dict.fromkeys(("checkpoint_every", "log_every", "probe_every"), 10**9),
    **dict.fromkeys(("batch_size", "micro_batch_size", "test_clips", "clip_frames"), 2**16),
    **dict.fromkeys(("projector_hidden", "predictor_hidden", "projection"), 2**17),
    "generalist_images": 10**9,
    "image_size": 4096,
    "lr": 1e6,
    "encoder_lr_factor": 1e6,
    "weight_decay": 1e6,
    "workers": 1024,
    "devices": 1024,
    "nodes": 2**16,
}
"""Largest values of settings. A run with more would never end or never begin, which is a slip of the keyboard."""
MOST_NAMED = 3
"""Unknown settings that a message names."""
PRETRAINED_LR_FACTOR = 0.1
"""Default of `encoder_lr_factor` for pretrained encoders."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Settings of every training command: where it computes and where it writes."""

    seed: Annotated[int, Group("run"), SetBySweep] = 0
    """Random seed for weight initialisation, data order, augmentation and, where labels are used, the labelled subset;
    0 or more."""
    micro_batch_size: int | None = None
    """Samples of one backward pass on one device; None: the device's whole share of `batch_size`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point precision; auto: bf16 on a GPU that supports it, else fp32."""
    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    devices: Annotated[int, Affects.EXECUTION, SetBySweep] = 1
    """Processes per machine, one device each (under torchrun, torchrun's count is used)."""
    nodes: Annotated[int, Affects.EXECUTION, SetBySweep] = 1
    """Number of machines."""
    compile: Execution[Literal["auto", "yes", "no"]] = "auto"
    """Compile the networks with torch.compile, which takes minutes at the start; auto: for long runs on one GPU. No
    effect with `--checkpoint-activations`."""
    workers: Execution[int] = 0
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: Execution[int] = 100
    """Save a checkpoint every N optimiser steps; 0 saves only on interruption."""
    log_every: Execution[int] = 10
    """Write a row of metrics every N optimiser steps."""
    track: Output[Literal["tensorboard", "mlflow", "wandb", "none"]] = "tensorboard"
    """Where metrics, settings and scores go as well: tensorboard (files in the run folder); mlflow (a database in the
    run folder, or the server of MLFLOW_TRACKING_URI; extra fewslice[mlflow]); wandb (files in the run folder for `wandb
    sync`, or with WANDB_MODE=online its server; extra fewslice[wandb]); none."""
    out: Annotated[Path | None, Affects.OUTPUT, SetBySweep] = None
    """Run folder; None: a folder in runs/ named after the main settings."""
    resume: Annotated[bool, Affects.INVOCATION, SetBySweep] = False
    """Continue the run in `out`; it ends with the same weights as an uninterrupted one."""
    overwrite: Annotated[bool, Affects.INVOCATION, SetBySweep] = False
    """Delete the run in `out` and start again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_above_0("micro_batch_size", "devices", "nodes", "log_every")
        self.require_at_least_0("seed", "workers", "checkpoint_every")
        for name, most in LARGEST.items():
            if (value := getattr(self, name, None)) is not None and most < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {_short(value)}: must be at most {most:,}")
        self._require_memory()

    def _require_memory(self) -> None:
        """Raise a UserError if the pixels of one micro-batch exceed this machine's memory."""
        size, batch_size = getattr(self, "image_size", 0), getattr(self, "batch_size", 1)
        samples = min(self.micro_batch_size or batch_size, math.ceil(batch_size / (self.devices * self.nodes)))
        gigabytes = 4e-9 * samples * size**2
        if gigabytes > memory_in_gigabytes():
            raise UserError(
                f"--image-size {size}: a micro-batch of {samples} such images takes {gigabytes:.0f} GB, more than this "
                "machine has: lower it, or --micro-batch-size"
            )

    @property
    def compiled(self) -> Literal["auto", "yes", "no"]:
        """Whether to compile; torch.compile cannot handle activations that are recomputed in the backward pass."""
        return "no" if getattr(self, "checkpoint_activations", False) else self.compile

    def require_above_0(self, *names: str) -> None:
        """Raise a UserError if a setting is 0, negative or not finite; None counts as not set.

        Raises:
            UserError: naming the flag and its value.
        """
        self._require("must be above 0", lambda value: value > 0, names)

    def require_at_least_0(self, *names: str) -> None:
        """Raise a UserError if a setting is negative or not finite; None counts as not set."""
        self._require("must be 0 or more", lambda value: value >= 0, names)

    def _require(self, what: str, holds: Callable[[float], bool], names: Sequence[str]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (abs(value) < math.inf and holds(value)):  # isfinite cannot take huge integers
                raise UserError(f"--{name.replace('_', '-')} {_short(value)}: {what}")


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings(RunSettings):
    """Settings that are common to training a U-Net and training a classifier."""

    init: Annotated[str, Group("network"), SetBySweep] = "random"
    """Start of the encoder: random; imagenet (timm's weights, downloaded); kinetics (torchvision's weights of 3D
    encoders, downloaded); hf-hub:NAME (weights of a repository of the Hugging Face hub, e.g. hf-hub:timm/
    resnet18.a1_in1k, downloaded); or an encoder FILE, which determines `--encoder` and `--norm`."""
    labelled_fraction: Annotated[float, Group("labels"), SetBySweep] = 1.0
    """Share of the labelled training slices, patients or exams to use, in (0, 1]."""
    subset_seed: Annotated[int | None, SetBySweep] = None
    """Random seed of the labelled subset alone, 0 or more; None: that of `--seed`."""
    inner_split: Annotated[bool, SetBySweep] = False
    """Validate on a third of the labelled training subjects, which are then not trained on, in place of the validation
    subjects: to choose settings on subjects that no score is reported on. Goes without a score of the test split."""
    encoder: Annotated[str, Group("network")] = "resnet50"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18 or resnet50."""
    norm: Annotated[Norm, Group("network")] = "batch"
    """Normalisation layers: batch norm; group norm (independent of the batch), group+ws with standardised weights; or
    batch norm with frozen statistics."""
    batch_size: Annotated[int, Group("training")] = 16
    """Effective batch: samples of one optimiser step, over all devices and micro-batches."""
    lr: Annotated[float, Group("training")] = 1e-4
    """Peak learning rate of Adam."""
    encoder_lr_factor: float | None = None
    """Factor, 0 or more, on the learning rate of the encoder and of a decoder that was pretrained with it; None: 0.1
    for a pretrained encoder, 1 for a random one. 0 freezes them, with the statistics of their batch norm."""
    layer_decay: float = 1.0
    """Factor, in (0, 1], on the learning rate from each block of the encoder to the one before it, so that the first
    layers change least; 1: all alike. Vision transformers are usually fine-tuned with 0.65 to 0.85."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW, not applied to biases and norms; 0 is plain Adam."""
    ema_decay: float = 0.0
    """Decay rate, in [0, 1), of a moving average of the weights, which is then scored and kept; 0: none."""
    allow_leakage: Annotated[Output[bool], Group("leakage and privacy")] = False
    """Go on with initial weights that were trained on validation or test subjects; the result then says so."""
    allow_duplicates: Output[bool] = False
    """Go on if the same image is in two splits under two names; the result then says so."""
    anonymous: Output[bool] = False
    """Write codes in place of the names of subjects, exams and files into tables, figures and reports."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_split and getattr(self, "test", False):
            raise UserError("--inner-split goes without a score of the test split: leave --test out, or pass --no-test")
        if not 0 < self.labelled_fraction <= 1:
            raise UserError(f"--labelled-fraction {self.labelled_fraction}: must lie in (0, 1], e.g. 0.02 for 2 %")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: must lie in [0, 1)")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer-decay {self.layer_decay}: must lie in (0, 1], 1 for none")
        self.require_above_0("batch_size", "lr")
        self.require_at_least_0("encoder_lr_factor", "weight_decay", "subset_seed")

    @property
    def seed_of_subset(self) -> int:
        """Random seed of the labelled subset."""
        return self.seed if self.subset_seed is None else self.subset_seed

    @property
    def decay_of_average(self) -> float:
        """Decay rate of the moving average of the weights; 0: none."""
        return self.ema_decay

    @property
    def factor_of_encoder_lr(self) -> float:
        """Factor on the encoder's learning rate."""
        if self.encoder_lr_factor is not None:
            return self.encoder_lr_factor
        return 1.0 if self.init == "random" else PRETRAINED_LR_FACTOR

    @property
    def start_name(self) -> str:
        """`init` as part of a folder's name."""
        return Path(self.init).resolve().parent.name if is_file(self.init) else self.init.rsplit("/", 1)[-1]


def memory_in_gigabytes() -> float:
    """Memory of this machine; infinite where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


@cache
def marks(kind: type) -> dict[str, tuple[Any, ...]]:
    """The marks of each field of a configuration class: `Affects`, `Group`, `SetBySweep`."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(kind)}


def affects(kind: type, name: str) -> Affects:
    """What a setting of a configuration class affects."""
    return next((mark for mark in marks(kind)[name] if isinstance(mark, Affects)), Affects.RESULT)


def marked(kind: type, mark: type) -> list[str]:
    """The settings of a configuration class that have a mark."""
    return [name for name, of_setting in marks(kind).items() if mark in of_setting]


@cache
def _adapter(kind: type[C]) -> TypeAdapter[C]:
    """Pydantic's reader and writer of a configuration class; building it takes longer than hundreds of uses."""
    return TypeAdapter(kind)


def plain(config: Any) -> dict[str, Any]:
    """The configuration as JSON values."""
    return _adapter(type(config)).dump_python(config, mode="json")  # type: ignore[arg-type]  # classes are hashable


def saved(config: Any) -> dict[str, Any]:
    """The settings that are saved with a run, as JSON values: all but those of one invocation."""
    return {name: value for name, value in plain(config).items() if affects(type(config), name) != Affects.INVOCATION}


def result_settings(config: Any) -> dict[str, Any]:
    """The settings that affect the result, as JSON values, group by group."""
    values = plain(config)
    for field in fields(config):
        if affects(type(config), field.name) != Affects.RESULT:
            del values[field.name]
        elif is_dataclass(value := getattr(config, field.name)):
            values[field.name] = result_settings(value)
    return values


def read_config(kind: type[C], path: Path, default: C | None = None) -> C:
    """A saved configuration (JSON), or one written by hand (YAML), checked field by field.

    Args:
        kind: the configuration class.
        path: the file; files of version 0.1 are read as well.
        default: values of the settings that the file leaves out; None: the dataclass's own defaults.

    Raises:
        UserError: if the file is missing, is not a mapping, is of another command, or a setting is unknown or of the
            wrong type.
    """
    try:
        values = read_yaml(path)  # JSON is YAML
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read the configuration {path} ({reason}); pass a run's config.json") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not settings; pass a run's config.json")
    _refuse_other_command(kind, path, values)
    values = _merged(default or kind(), values, f"{path} is not a {kind.__name__}: it has no setting")
    try:
        return _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])  # empty when two settings contradict each other
        setting = f"{where} is {_short(first['input'])}: " if where else ""
        raise UserError(f"{path}: {setting}{first['msg'].removeprefix('Value error, ')}") from None


SETTING_OF = {"sweep": "pipelines", "pretrain": "generalist", "segment": "label_unit", "classify": "test_clips"}
"""A setting by which the saved settings of a command are recognised, unless the command at hand has it as well."""


def _refuse_other_command(kind: type, path: Path, values: Mapping[str, Any]) -> None:
    """Raise a UserError if a file holds the settings of another command than that of `kind`."""
    command, known = kind.__module__.partition(".")[0], {f.name for f in fields(kind)}
    for other, setting in SETTING_OF.items():
        if other != command and setting in values.keys() - known:
            raise UserError(f"{path} is of a run of python -m {other}: pass one of python -m {command}")


def _short(value: object) -> str:
    """The value as text of a readable length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, brackets in thousands of brackets
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "..."


RENAMED = {
    "trust": "trust_coefficient",
    "resident": "cache_on_device",
    "pool": "unlabelled_splits",
    "ema": "ema_decay",
    "mirror": "flip_tta",
    "one_piece": "keep_largest_component",
    "views": "augmentation",
}
"""Settings of version 0.1 and their present names: old flags and saved files keep working for one version."""


def _merged(default: Any, values: Mapping[str, Any], error: str) -> dict[str, Any]:
    """The default's settings, replaced by `values` group by group; `error` and the name for an unknown setting."""
    merged, values = plain(default), _in_present_spelling(type(default), values)
    if unknown := sorted(str(name) for name in values.keys() - merged.keys()):
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise UserError(f"{error} {', '.join(unknown[:MOST_NAMED])}{more}")
    for name, value in values.items():
        if is_dataclass(group := getattr(default, name)) and isinstance(value, Mapping):
            # the file's data set layout chooses the class whose defaults fill the gaps
            layout = alternatives(type(default), name).get(str(value.get("dataset")))
            group = layout() if layout and not isinstance(group, layout) else group
            value = _merged(group, value, f"{error} {name}.")
        merged[name] = value
    return merged


def alternatives(kind: type, name: str) -> dict[str, Any]:
    """The classes of a field that is a data set layout or a union of some, by their `dataset`; empty for others."""
    hint = get_type_hints(kind)[name]
    return {each.dataset: each for each in get_args(hint) or (hint,) if hasattr(each, "dataset")}


def _in_present_spelling(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, those of version 0.1 replaced by their present names, values and groups."""
    names = {f.name for f in fields(kind)}
    present = {name if name in names else RENAMED.get(name, name): value for name, value in values.items()}
    if values.get("pool") == "everyone":
        present["unlabelled_splits"] = "all"
    if "clip" in present and "clip" not in names:  # the largest gradient norm, or the one way to pool frames
        limit = present.pop("clip")
        present |= {"max_grad_norm": limit} if "max_grad_norm" in names else {}
    if "data" in names and "data" not in present and (layouts := alternatives(kind, "data")):
        # version 0.1 had the settings of all layouts side by side
        of_layouts = {f.name for layout in layouts.values() for f in fields(layout)} - names
        flat = {name: present.pop(name) for name in list(present) if name in of_layouts}
        if flat.get("dataset") or flat.get("data_root"):
            layout = layouts.get(str(flat.get("dataset")), next(iter(layouts.values())))
            known = {f.name for f in fields(layout)}
            present["data"] = {"dataset": layout.dataset} | {
                name: value for name, value in flat.items() if name in known and value is not None
            }
    return present
