"""Configurations: frozen dataclasses whose fields say what they affect, read from and written as JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from core.errors import UserError
from core.settings import Affects, Execution, Group, SetBySweep

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every training command: where it computes and where it writes."""

    seed: Annotated[int, Group("run"), SetBySweep] = 0
    """Random seed for the labelled subset, weight initialisation, data order and augmentation; 0 or more."""
    micro_batch_size: int | None = None
    """Samples of one backward pass on one device; None: the whole share of the device."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point precision; auto: bf16 on a GPU that supports it, else fp32."""
    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    devices: Annotated[int, Affects.EXECUTION, SetBySweep] = 1
    """Processes per machine, one device each (under torchrun its own count is used)."""
    nodes: Annotated[int, Affects.EXECUTION, SetBySweep] = 1
    """Number of machines."""
    compile: Execution[Literal["auto", "yes", "no"]] = "auto"
    """Compile the networks with torch.compile, which takes minutes at the start; auto: for long runs on one GPU. Never
    together with `--checkpoint-activations`."""
    workers: Execution[int] = 0
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: Execution[int] = 100
    """Save a checkpoint every N optimiser steps; 0 saves only on interruption."""
    log_every: Execution[int] = 10
    """Write a row of metrics every N optimiser steps."""
    out: Annotated[Path | None, Affects.OUTPUT, SetBySweep] = None
    """Run folder; None: a folder in runs/ named after the main settings."""
    resume: Annotated[bool, Affects.INVOCATION, SetBySweep] = False
    """Continue the run in `out`; it ends with the same weights as an uninterrupted one."""
    overwrite: Annotated[bool, Affects.INVOCATION, SetBySweep] = False
    """Delete the run in `out` and start again."""

    def __post_init__(self) -> None:
        self.require_above_0("micro_batch_size", "devices", "nodes", "log_every")
        self.require_at_least_0("seed", "workers", "checkpoint_every")

    @property
    def compiled(self) -> Literal["auto", "yes", "no"]:
        """Whether to compile; torch.compile cannot handle activations that are recomputed in the backward pass."""
        return "no" if getattr(self, "checkpoint_activations", False) else self.compile

    def require_above_0(self, *names: str) -> None:
        """Refuse settings that are 0, negative or not finite; None counts as not set.

        Raises:
            UserError: naming the flag and its value.
        """
        self._require("must be above 0", lambda value: value > 0, names)

    def require_at_least_0(self, *names: str) -> None:
        """Refuse settings that are negative or not finite; None counts as not set."""
        self._require("must be 0 or more", lambda value: value >= 0, names)

    def _require(self, what: str, holds: Callable[[float], bool], names: Sequence[str]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise UserError(f"--{name.replace('_', '-')} {value}: {what}")


NAMED_STARTS = ("random", "imagenet", "kinetics")
"""Starts of an encoder that are no file."""


@dataclass(frozen=True, kw_only=True)
class SupervisedSettings(RunSettings):
    """Settings that training a U-Net and training a classifier share."""

    init: Annotated[str, Group("network"), SetBySweep] = "random"
    """Start of the encoder: random; imagenet (timm's weights, downloaded); kinetics (torchvision's weights of 3D
    encoders, downloaded); or an encoder FILE, which determines `--encoder` and `--norm`."""
    labelled_fraction: Annotated[float, Group("labels"), SetBySweep] = 1.0
    """Share of the labelled training slices, patients or exams to use, in (0, 1]."""
    subset_seed: Annotated[int | None, SetBySweep] = None
    """Random seed of the labelled subset alone, 0 or more; None: that of `--seed`."""
    encoder: Annotated[str, Group("network")] = "resnet50"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18 or resnet50."""
    norm: Annotated[Literal["batch", "group", "frozen"], Group("network")] = "batch"
    """Normalisation layers: batch norm, group norm (exact under accumulation), or batch norm with frozen statistics."""
    batch_size: Annotated[int, Group("training")] = 16
    """Effective batch: samples of one optimiser step, over all devices and micro-batches."""
    lr: Annotated[float, Group("training")] = 1e-4
    """Peak learning rate of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    ema_decay: float = 0.0
    """Decay rate, in [0, 1), of a moving average of the weights, which is then scored and kept; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.labelled_fraction <= 1:
            raise UserError(f"--labelled-fraction {self.labelled_fraction}: must lie in (0, 1], e.g. 0.02 for 2 %")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: must lie in [0, 1)")
        self.require_above_0("batch_size", "lr")
        self.require_at_least_0("weight_decay", "subset_seed")

    @property
    def seed_of_subset(self) -> int:
        """Random seed of the labelled subset."""
        return self.seed if self.subset_seed is None else self.subset_seed

    @property
    def start_name(self) -> str:
        """The start of the encoder as part of a folder's name."""
        return self.init if self.init in NAMED_STARTS else Path(self.init).resolve().parent.name


@cache
def marks(kind: type) -> dict[str, tuple[Any, ...]]:
    """The marks of each field of a configuration class: `Affects`, `Group`, `SetBySweep`."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(kind)}


def affects(kind: type, name: str) -> Affects:
    """What a setting of a configuration class affects."""
    return next((mark for mark in marks(kind)[name] if isinstance(mark, Affects)), Affects.RESULT)


def marked(kind: type, mark: type) -> list[str]:
    """The settings of a configuration class that bear a mark."""
    return [name for name, found in marks(kind).items() if mark in found]


def plain(config: Any) -> dict[str, Any]:
    """The configuration as JSON values."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


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
        UserError: if the file is missing, is not a mapping, or a setting is unknown or of the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text())  # JSON is YAML
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not settings")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"cannot read the configuration {path} (line {line}: {error.problem}); correct it") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the configuration {path} ({reason}); pass a run's config.json") from None
    values = _merged(default or kind(), values, f"{path} is not a {kind.__name__}: it has no setting")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])  # empty when two settings contradict each other
        setting = f"{where} is {first['input']!r}: " if where else ""
        raise UserError(f"{path}: {setting}{first['msg'].removeprefix('Value error, ')}") from None


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
RENAMED_VALUES = {("pool", "everyone"): "all"}


def _merged(default: Any, values: Mapping[str, Any], refusal: str) -> dict[str, Any]:
    """The default's settings with `values` in their place, group by group; an unknown name is refused."""
    merged, values = plain(default), _updated(type(default), values)
    if unknown := sorted(str(name) for name in values.keys() - merged.keys()):
        raise UserError(f"{refusal} {', '.join(unknown)}")
    for name, value in values.items():
        if is_dataclass(group := getattr(default, name)) and isinstance(value, Mapping):
            # of a tagged union (the data set) the file's tag chooses the class whose defaults fill the gaps
            tagged = next((kind for kind in alternatives(type(default), name) if _tag(kind) == _tag_of(value)), None)
            group = tagged() if tagged and not isinstance(group, tagged) else group
            value = _merged(group, value, f"{refusal} {name}.")
        merged[name] = value
    return merged


def alternatives(kind: type, name: str) -> tuple[type, ...]:
    """The classes of a field that is a union of dataclasses tagged by `dataset`; () for other fields."""
    hint = get_type_hints(kind)[name]
    return tuple(each for each in get_args(hint) if isinstance(each, type) and is_dataclass(each) and _tag(each))


def _tag(kind: Any) -> str | None:
    return getattr(kind, "dataset", None)


def _tag_of(values: Mapping[str, Any]) -> Any:
    return values.get("dataset")


def _updated(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of version 0.1 under their present names and in their present groups."""
    names = {f.name for f in fields(kind)}
    updated: dict[str, Any] = {}
    for old, value in values.items():
        name = old if old in names else RENAMED.get(old, old)
        updated[name] = RENAMED_VALUES.get((old, value), value) if isinstance(value, str) else value
    if "clip" in updated and "clip" not in names:  # the largest gradient norm, or the one way to pool frames
        limit = updated.pop("clip")
        updated |= {"max_grad_norm": limit} if "max_grad_norm" in names else {}
    if "data" in names and "data" not in updated and (kinds := alternatives(kind, "data")):
        # version 0.1 kept the settings of all kinds of data sets side by side
        every = {f.name for each in kinds for f in fields(each)}
        flat = {name: updated.pop(name) for name in list(updated) if name in every - names}
        if flat.get("dataset") or flat.get("data_root"):
            chosen = next((each for each in kinds if _tag(each) == flat.get("dataset")), kinds[0])
            known = {f.name for f in fields(chosen)}
            updated["data"] = {"dataset": _tag(chosen)} | {
                k: v for k, v in flat.items() if k in known and v is not None
            }
    return updated
