"""Errors that a user can fix, and how a command line reports them."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a setting or file of the user. Its one sentence says what, which value or file, and what to do."""


def first_and_count(problems: Sequence[object]) -> str:
    """The first of several problems, and how many more there are: "a.nii cannot be read (and 2 more)"."""
    return f"{problems[0]} (and {len(problems) - 1} more)" if len(problems) > 1 else str(problems[0])


def escape_unprintable() -> None:
    """Let the process print a character that its output's encoding lacks as an escape, such as \\u2019."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(sentence: str) -> None:
    """Print the sentence of an error; a run of several processes replaces this function by `engine.process_group`'s."""
    print(sentence, file=sys.stderr)


@contextmanager
def user_errors() -> Iterator[None]:
    """On a ``UserError`` or ``OSError``, print one sentence and exit with code 2; wraps the body of every ``__main__``.

    Any other exception is a bug and keeps its traceback, as all do with ``FEWSLICE_TRACEBACK=1``.
    """
    escape_unprintable()
    try:
        yield
    except (UserError, OSError) as error:
        if os.environ.get("FEWSLICE_TRACEBACK"):
            raise
        say(f"error: {error}")
        raise SystemExit(2) from None
