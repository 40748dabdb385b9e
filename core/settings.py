"""Marks on the fields of configuration dataclasses: what a setting affects, and where `--help` shows it."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, TypeVar

T = TypeVar("T")


class Affects(Enum):
    """What a setting affects; a setting without a mark affects the result."""

    RESULT = "the result"
    EXECUTION = "only how and where the result is computed"
    OUTPUT = "only what is written, drawn or scored besides, and where files are"
    INVOCATION = "only this one invocation of the command; it is not saved"


Execution = Annotated[T, Affects.EXECUTION]
Output = Annotated[T, Affects.OUTPUT]
Invocation = Annotated[T, Affects.INVOCATION]


@dataclass(frozen=True)
class Group:
    """Mark of the first setting of a group in `--help`."""

    title: str


class SetBySweep:
    """Mark of settings that a sweep sets for each of its runs, or has no use for."""


class MayGrow:
    """Mark of settings of a study that `--extend` may add values to."""
