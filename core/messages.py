"""Messages of a command on standard output."""

import logging
import sys
from typing import Any


class _StandardOutput(logging.StreamHandler):
    """Writes to standard output as it is at the time of each message, which tests and notebooks replace."""

    @property
    def stream(self) -> Any:
        return sys.stdout

    @stream.setter
    def stream(self, _: Any) -> None:
        pass


def show_messages(main: bool = True) -> None:
    """Show fewslice's log messages on standard output; `main` is False in all processes but the first."""
    log = logging.getLogger("fewslice")
    log.setLevel(logging.INFO if main else logging.ERROR)
    if not any(isinstance(handler, _StandardOutput) for handler in log.handlers):
        handler = _StandardOutput()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
