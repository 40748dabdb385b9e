"""Configurations: dataclasses in, command lines and JSON out."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from data.errors import UserError

C = TypeVar("C")


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
