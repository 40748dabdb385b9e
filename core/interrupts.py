"""Ctrl-C while a command is still being imported: one line in place of a traceback.

Every package that holds a command imports this module first. It acts only if Python was started as
`python -m PACKAGE...`, not where a program of the user imports the packages.
"""

import os
import signal
import sys
from types import FrameType

PACKAGES = ("data", "engine", "pretrain", "segment", "classify", "sweep")


def end_quietly() -> None:
    """End the process with one line and exit code 130 on Ctrl-C, until `core.errors.user_errors` takes over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # Nothing was begun that needs an orderly end, and an exception in the middle of an import may be swallowed.
    os.write(2, b"stopped by Ctrl-C\n")
    os._exit(130)


def _started_module() -> str:
    arguments = sys.orig_argv
    return arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] and sys.argv[:1] == ["-m"] else ""


if _started_module().partition(".")[0] in PACKAGES:
    end_quietly()
