"""Mistakes that a user can mend, and how a command line ends on one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in what the user gave. The message is one sentence: what, which file or value, what to do."""


@contextmanager
def user_errors() -> Iterator[None]:
    """End the process with exit code 2 and one sentence when a command meets a mistake of its user.

    Wraps the body of every ``__main__``. ``FEWSLICE_TRACEBACK=1`` shows the traceback as well.
    Anything but ``UserError`` and ``OSError`` is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if os.environ.get("FEWSLICE_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
