"""Marks for the annotations of configuration fields: what a setting affects, and its group in `--help`."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, TypeVar

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


@dataclass(frozen=True)
class Group:
    """Mark of the first setting of a group in `--help`; the settings after it join the group."""

    title: str


class SetBySweep:
    """Mark of settings of a run that `python -m sweep` does not offer, because it sets them itself or ignores them."""


class MayGrow:
    """Mark of settings of a study that `--extend` may add values to."""
