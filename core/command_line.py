"""Command lines from dataclasses, with examples at the end of their help."""

from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse_command(kind: type[T], program: str, examples: Sequence[str], **settings: Any) -> T:
    """Parse a command line into an instance of a dataclass.

    Args:
        kind: the dataclass; its documented fields become the flags.
        program: name in the help, e.g. "python -m data.inspect".
        examples: arguments of the program, shown at the end of the help.
        settings: further arguments of `tyro.cli`.
    """
    try:
        return tyro.cli(kind, prog=program, **settings)
    except SystemExit as end:
        if not end.code:  # after --help
            print("\n".join(["examples:", *(f"  {program} {example}" for example in examples)]))
        raise
