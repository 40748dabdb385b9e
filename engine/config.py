"""Configurations: dataclasses in, command lines and JSON out."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from data.errors import UserError

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run computes and what it writes: what every training command can be told."""

    micro_batch_size: int | None = None
    """Samples of one backward on one device; None: the whole share of the device."""
    seed: int = 0
    """Of all that is drawn: the labelled subset, initialisation, order and views."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Processes per node, one device each (torchrun's own count wins)."""
    nodes: int = 1
    """Machines."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Fuse the networks by torch.compile, which takes minutes first; auto: in long runs on one GPU. Never where
    activations are computed again (`--checkpoint-activations`)."""
    workers: int = 0
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints; 0: none but when the run is asked to stop."""
    log_every: int = 10
    """Optimiser steps between rows of metrics."""

    out: Path | None = None
    """Run directory; None: a folder in runs/ named after the settings that matter."""
    resume: bool = False
    """Continue the run in `out`, to the very weights it would have reached."""
    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        self.require_above_0("micro_batch_size", "devices", "nodes", "log_every")
        self.require_at_least_0("seed", "workers", "checkpoint_every")

    def require_above_0(self, *names: str) -> None:
        """Refuse settings that are 0, negative or not finite; None is no setting.

        Raises:
            UserError: naming the flag and its value.
        """
        self._require("must be above 0", lambda value: value > 0, names)

    def require_at_least_0(self, *names: str) -> None:
        """Refuse settings that are negative or not finite, as `require_above_0`."""
        self._require("must be 0 or more", lambda value: value >= 0, names)

    def _require(self, what: str, holds: Callable[[float], bool], names: Sequence[str]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise UserError(f"--{name.replace('_', '-')} {value}: {what}")


def plain(config: Any) -> dict[str, Any]:
    """The configuration as JSON values."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def read_config(kind: type[C], path: Path, default: C | None = None) -> C:
    """A saved configuration (JSON), or one written by hand (YAML), checked field by field.

    Args:
        kind: of the configuration.
        path: of the file.
        default: gives what the file leaves out; None: the dataclass's own defaults do.

    Raises:
        UserError: when the file is missing, is no mapping, or a field is unknown or of the wrong kind.
    """
    try:
        values = yaml.safe_load(path.read_text())  # JSON is YAML
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not settings")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"cannot read the configuration {path} (line {line}: {error.problem}); mend it") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the configuration {path} ({reason}); give a run's config.json") from None
    values = _merged(plain(default or kind()), values, f"{path} is not a {kind.__name__}: it has no setting")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])  # empty when the settings do not go together
        setting = f"{where} is {first['input']!r}: " if where else ""
        raise UserError(f"{path}: {setting}{first['msg'].removeprefix('Value error, ')}") from None


def _merged(defaults: dict[str, Any], values: Mapping[str, Any], refusal: str) -> dict[str, Any]:
    """`defaults` with `values` in their place, group by group; an unknown name is refused."""
    if unknown := sorted(str(name) for name in values.keys() - defaults.keys()):
        raise UserError(f"{refusal} {', '.join(unknown)}")
    return {
        name: _merged(default, values[name], f"{refusal} {name}.")
        if isinstance(default, dict) and isinstance(values.get(name), Mapping)
        else values.get(name, default)
        for name, default in defaults.items()
    }


def named_early(arguments: Sequence[str], *flags: str) -> list[str | None]:
    """The values of flags that decide which recipes a command has; None where a flag is not given.

    What is wrong with them the parser of the whole command line says.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        early.add_argument(flag, nargs="?")
    found = vars(early.parse_known_args(arguments)[0])
    return [found[flag.lstrip("-")] for flag in flags]


def parse(recipes: Mapping[str, Callable[[], C]], description: str, arguments: Sequence[str] | None = None) -> C:
    """The configuration that a command line asks for.

    A recipe (`--recipe`) or a saved configuration (`--config FILE`) gives every default; flags change single
    fields. Without either, the recipe is `default` on the user's own data (`--data-root`) and `demo`, small enough
    for two CPU cores, on the embedded phantom.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = "python -m " + next(iter(recipes.values())).__module__.partition(".")[0]
    before = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    before.add_argument("--recipe")
    before.add_argument("--config", type=Path)
    before.add_argument("--data-root", "--data_root")
    early, rest = before.parse_known_args(arguments)
    name = early.recipe or ("default" if early.data_root else "demo")
    if name not in recipes:
        raise UserError(f"--recipe {name}: there is no such recipe; choose {', '.join(recipes)}")
    default = recipes[name]()
    if early.config:
        default = read_config(type(default), early.config, default)
    if early.data_root:
        rest += ["--data-root", early.data_root]
    description += (
        f"\n\n--recipe {'|'.join(recipes)}, or --config FILE (the config.json of a run), sets every default below; "
        "flags change single settings. Default recipe: `default` with --data-root, `demo` without."
    )
    return tyro.cli(type(default), prog=program, default=default, args=rest, description=description)
