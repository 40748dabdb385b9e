"""Configurations: dataclasses in, command lines and JSON out."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
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
    workers: int = 0
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints."""
    log_every: int = 10
    """Optimiser steps between rows of metrics."""

    out: Path | None = None
    """Run directory; None: a folder in runs/ named after the settings that matter."""
    resume: bool = False
    """Continue the run in `out`, to the very weights it would have reached."""
    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        self.require_above_0("micro_batch_size", "devices", "nodes", "checkpoint_every", "log_every")
        self.require_at_least_0("seed", "workers")

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


def read_config(kind: type[C], path: Path) -> C:
    """A saved configuration, checked field by field.

    Raises:
        UserError: when the file is missing, is no JSON, or a field is unknown or of the wrong kind.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not settings")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the configuration {path} ({reason}); give a run's config.json") from None
    unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise UserError(f"{path} is not a {kind.__name__}: it has no setting {', '.join(unknown)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])  # empty when the settings do not go together
        setting = f"{where} is {first['input']!r}: " if where else ""
        raise UserError(f"{path}: {setting}{first['msg'].removeprefix('Value error, ')}") from None


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
        default = read_config(type(default), early.config)
    if early.data_root:
        rest += ["--data-root", early.data_root]
    description += (
        f"\n\n--recipe {'|'.join(recipes)}, or --config FILE (the config.json of a run), sets every default below; "
        "flags change single settings. Default recipe: `default` with --data-root, `demo` without."
    )
    return tyro.cli(type(default), prog=program, default=default, args=rest, description=description)
