"""Command lines from dataclasses, with examples at the end of their help."""

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from core.text import require_utf8

T = TypeVar("T")


def parse_command(kind: type[T], program: str, examples: Sequence[str], **settings: Any) -> T:
    """Parse a command line into an instance of a dataclass.

    Args:
        kind: the dataclass; its documented fields become the flags.
        program: name in the help, e.g. "python -m data.inspect".
        examples: arguments of the program, shown at the end of the help.
        settings: further arguments of `tyro.cli`.

    Raises:
        UserError: if an argument is not UTF-8.
    """
    arguments = settings.get("args") or sys.argv[1:]
    for argument in arguments:
        require_utf8(argument, "the argument")
    try:
        return tyro.cli(kind, prog=program, **settings)
    except SystemExit as end:
        if not end.code:  # after --help
            print("\n".join(["examples:", *(f"  {program} {example}" for example in examples)]))
        elif path := _path_in_parts(arguments):
            print(f'"{path}" exists: write a path with spaces in quotes', file=sys.stderr)
        raise


def _path_in_parts(arguments: Sequence[str]) -> str:
    """The first existing path that the shell has split at its spaces into several arguments; empty if there is none."""
    for first, argument in enumerate(arguments):
        path = argument.partition("=")[2] if argument.startswith("--") else argument
        for following in arguments[first + 1 :] if path else ():
            path += f" {following}"
            if not following.startswith("--") and os.path.exists(os.path.expanduser(path)):
                return path
    return ""
