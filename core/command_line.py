"""Command lines from dataclasses, with examples at the end of their help."""

from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse_command(kind: type[T], program: str, examples: Sequence[str], **settings: Any) -> T:
    """The instance of a dataclass that a command line describes.

    Args:
        kind: documented fields, which become the flags.
        program: shown in the help, e.g. "python -m data.inspect".
        examples: arguments of the program, shown at the end of the help.
        settings: further settings of `tyro.cli`.
    """
    try:
        return tyro.cli(kind, prog=program, **settings)
    except SystemExit as end:
        if not end.code:  # after --help
            print("\n".join(["examples:", *(f"  {program} {example}" for example in examples)]))
        raise
