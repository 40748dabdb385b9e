"""Text files of a user, read with limits: JSON, YAML, and regular expressions that end in time."""

import json
import re
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from core.errors import UserError

LARGEST_TEXT = 2**26
"""Bytes of a text file."""
LARGEST_YAML = 2**18
"""Bytes of a YAML file, whose parser takes seconds for so many."""
PATTERN_SECONDS = 2.0
"""Time for one search of a regular expression."""


def read_text(path: Path, most: int = LARGEST_TEXT, errors: str = "strict") -> str:
    """The content of a text file in UTF-8, without a byte order mark.

    Raises:
        UserError: if it is no regular file (a device, a pipe), has more than `most` bytes, or is not UTF-8.
        OSError: if it does not exist or cannot be opened.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file: pass a text file")
    if status.st_size > most:
        raise UserError(f"{path} has {status.st_size:,} bytes, {most:,} are allowed for such a file: check the path")
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise UserError(f"{path} is not text in UTF-8 but in UTF-16, or binary: save it as UTF-8")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not text in UTF-8 (line {line}): save it as UTF-8") from None


def printable(name: object) -> str:
    r"""A name as text that every file and terminal takes: bytes that are not UTF-8 become \\udcfc and the like."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def require_utf8(name: object, what: str) -> None:
    """Raise a UserError if the name of a file is not UTF-8, which tables and JSON files cannot hold."""
    if (text := printable(name)) != str(name):
        raise UserError(f"{what} {text} is not UTF-8: rename the file or folder")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: if it is not JSON, or as `read_text`.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON (line {error.lineno}: {error.msg}): correct it") from None
    except UserError:
        raise
    except (ValueError, RecursionError):  # an integer of thousands of digits, brackets in thousands of brackets
        raise UserError(f"{path} is not usable JSON (numbers too long or brackets too deep): correct it") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML or JSON file. Aliases are refused: a few of them can stand for billions of values.

    Raises:
        UserError: if it is not YAML, or as `read_text`.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path} is not YAML (line {line}: {error.problem}); correct it") from None
    except Exception as error:  # values that are not of their !!type raise errors of many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is not YAML ({reason}); correct it") from None


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)


def search(pattern: str, text: str) -> re.Match[str] | None:
    """`re.search` that ends after `PATTERN_SECONDS` at the latest.

    Nested repetitions such as ``(a+)+b`` can take longer than the universe is old. The limit holds on Unix in the main
    thread, where all searches in names of files are made.

    Raises:
        UserError: if the pattern is no regular expression, or takes too long.
    """
    try:
        with _time_limit(PATTERN_SECONDS):
            return re.search(pattern, text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{pattern!r} is no regular expression ({error}): correct it") from None
    except TimeoutError:
        raise UserError(
            f"the regular expression {pattern!r} takes more than {PATTERN_SECONDS:g} s on {text[:100]!r}: "
            "avoid repetitions inside repetitions, like (a+)+"
        ) from None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body after so many seconds."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
