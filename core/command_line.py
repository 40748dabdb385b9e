"""Command lines from dataclasses, with examples at the end of their help."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from core.nearest import nearest
from core.program import in_same_spelling
from core.text import require_utf8

T = TypeVar("T")


def parse_command(
    kind: type[T], program: str, examples: Sequence[str], description: str | None = None, **settings: Any
) -> T:
    """Parse a command line into an instance of a dataclass.

    A refused name that is like a known one, of a value or of a required flag, is followed by a line with the known one.

    Args:
        kind: the dataclass; its documented fields become the flags.
        program: name in the help, e.g. "python -m data.inspect"; after the console command "fewslice data.inspect".
        examples: arguments of the program, shown at the end of the help.
        description: shown at the top of the help; None: the docstring of the dataclass.
        settings: further arguments of `tyro.cli`.

    Raises:
        UserError: if an argument is not UTF-8.
    """
    program = in_same_spelling(program)
    arguments = settings.get("args") or sys.argv[1:]
    for argument in arguments:
        require_utf8(argument, "the argument")
    try:
        return tyro.cli(kind, prog=program, description=description and in_same_spelling(description), **settings)
    except SystemExit as end:
        if not end.code:  # after --help
            print("\n".join(["examples:", *(f"  {program} {example}" for example in examples)]))
        elif path := _path_in_parts(arguments):
            print(f'"{path}" exists: write a path with spaces in quotes', file=sys.stderr)
        else:
            for line in _corrections(kind, arguments):
                print(line, file=sys.stderr)
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


@dataclass(frozen=True)
class _Flag:
    """What is known of a flag: its name with the groups around it, the values listed for it, if they are, and whether
    it may be None and must be passed."""

    name: str
    choices: Sequence[str]
    optional: bool
    required: bool


def _corrections(kind: type, arguments: Sequence[str]) -> Iterator[str]:
    """A line for each value that is not among the choices of its flag, and each flag that is unknown while a required
    one is missing, if a known name is like it."""
    flags = sorted(_flags(kind), key=lambda each: len(each.name))
    typed = {word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")}
    missing = [f"--{each.name}" for each in flags if each.required and f"--{each.name}" not in typed]
    flag, current = "", None
    for word in arguments:
        value = word
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            ending = "." + flag[2:].replace("_", "-")  # --decoder is in a group, whose name it may leave out
            current = next((each for each in flags if f".{each.name}".endswith(ending)), None)
            if current is None and (near := nearest(flag, missing)):
                yield f"{flag}: did you mean {near}?"
        if current is None or not value or value in current.choices:
            continue
        is_none = current.optional and value != "None" and value.lower() in ("none", "null")
        if near := "None" if is_none else nearest(value, current.choices):
            yield f"{flag} {value}: did you mean {near}?"


def _flags(kind: type, groups: str = "") -> Iterator[_Flag]:
    """The flags of a dataclass and of those nested in it."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        name, hint = groups + each.name.replace("_", "-"), hints[each.name]
        if is_dataclass(hint):
            yield from _flags(hint, f"{name}.")  # type: ignore[arg-type]
        else:
            required = each.default is MISSING and each.default_factory is MISSING
            yield _Flag(name, _listed(hint), NoneType in get_args(hint), required)


def _listed(hint: Any) -> list[str]:
    """The values that a type lists; none if any text will do."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [] if str in get_args(hint) else [value for part in get_args(hint) for value in _listed(part)]
