"""Errors that a user can fix, and how a command line reports them."""

import atexit
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from core.program import in_same_spelling

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """A mistake in a setting or file of the user. Its one sentence says what, which value or file, and what to do."""

    exit_code = 2


class SomeFilesFailed(UserError):
    """Some files of many failed, each a line of the message; the results of the others are written."""

    exit_code = 1

    def __init__(self, problems: Sequence[object], done: int) -> None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = len(problems) + done
        super().__init__(f"{len(problems)} of {count} failed, the other {done} are done:\n{lines}")


ADVICE = {
    errno.ENOSPC: "make room, or choose a folder on another disk; what was saved before is intact",
    errno.EDQUOT: "make room, or choose a folder on another disk; what was saved before is intact",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another",
}
"""Advice for errors of the operating system, by number."""


def first_and_count(problems: Sequence[object]) -> str:
    """The first of several problems, and how many more there are: "a.nii cannot be read (and 2 more)"."""
    return f"{problems[0]} (and {len(problems) - 1} more)" if len(problems) > 1 else str(problems[0])


def first_violation(error: "ValidationError") -> str:
    """The first value that a pydantic model refuses, and why: "steps: Input should be greater than 0"."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def sentence(error: Exception) -> str:
    """An error as one sentence; of the operating system's, the file, the reason and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    file = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE and ";" not in (error.strerror or "") else ""
    return f"{file}{error.strerror}{advice}"


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
    """On a ``UserError`` or ``OSError``, print one sentence and exit with code 2, or 1 if only some files failed.

    It wraps the body of every ``__main__``.

    Ctrl-C ends it with one line and exit code 130. Any other exception is a bug and keeps its traceback, as all do
    with ``FEWSLICE_TRACEBACK=1``.
    """
    escape_unprintable()
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    previous: Any = None
    with suppress(ValueError):  # not in the main thread: the program that started the thread handles signals
        previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("FEWSLICE_TRACEBACK"):
            raise
        # a library that is interrupted while it is imported or called may raise another error in its place
        if interrupts or isinstance(error, KeyboardInterrupt):
            print("stopped by Ctrl-C", file=sys.stderr)
            raise SystemExit(130) from None
        if not isinstance(error, UserError | OSError):
            raise
        say(f"error: {in_same_spelling(sentence(error))}")
        raise SystemExit(getattr(error, "exit_code", 2)) from None
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
            if previous is signal.default_int_handler:
                # the work is done: Ctrl-C while the interpreter shuts down ends it without a traceback
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
