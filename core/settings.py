"""Marks for the annotations of configuration fields: what a setting affects, and its group in `--help`."""

from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

from core.errors import UserError

T = TypeVar("T")


class Affects(Enum):
    """What a setting affects; a setting without a mark affects the result."""

    RESULT = "the result"
    EXECUTION = "only how and where the result is computed"
    OUTPUT = "only additional files, plots and scores, and where files are"
    INVOCATION = "only this one invocation of the command; it is not saved"


Execution = Annotated[T, Affects.EXECUTION]
Output = Annotated[T, Affects.OUTPUT]
Invocation = Annotated[T, Affects.INVOCATION]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every class of settings: `~` at the beginning of a path is the home folder, wherever the path is from.

    A shell leaves it in `--out=~/runs`, and so do configuration files. Settings that are text may hold paths as well
    (`--init ~/encoder.safetensors`).
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if (expanded := _in_home_folder(value)) != value:
                object.__setattr__(self, each.name, expanded)


def _in_home_folder(value: Any) -> Any:
    if isinstance(value, Path) and value.parts[:1] and value.parts[0].startswith("~"):
        try:
            return value.expanduser()
        except RuntimeError:
            if value.exists():
                return value
            raise UserError(f"{value}: there is no home folder {value.parts[0]}; check the path") from None
    if isinstance(value, tuple):
        return tuple(map(_in_home_folder, value))
    if isinstance(value, str) and (value == "~" or value.startswith("~/")):
        return str(Path(value).expanduser())
    if isinstance(value, str) and "=~/" in value:  # a pipeline, generalist=FILE
        name, _, path = value.partition("=")
        return f"{name}={_in_home_folder(path)}" if name.isidentifier() else value
    return value


@dataclass(frozen=True)
class Group:
    """Mark of the first setting of a group in `--help`; the settings after it join the group."""

    title: str


class SetBySweep:
    """Mark of settings of a run that `python -m sweep` does not offer, because it sets them itself or ignores them."""


class OfStudyAlone:
    """Mark of settings of a study that do not replace those of the same name of its runs."""


class MayGrow:
    """Mark of settings of a study that `--extend` may add values to."""
