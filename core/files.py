"""Files that are complete or absent: written under a hidden temporary name, then moved into place."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

HOST = hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()
"""Digest of this machine's name: process numbers mean nothing on another one."""
ABANDONED = 24 * 3600
"""Seconds after which the temporary file of another machine counts as left over."""


def write_atomically(path: Path, write: Callable[[Path], object], *, sync: bool = False) -> None:
    """Write a file so that readers see the previous content or the new one, never a part.

    If several processes write the same file at once, the last one to finish determines its content.

    Args:
        path: the file; its folder must exist.
        write: writes the content to the path it receives, a hidden file of the same suffix in the same folder.
        sync: wait until the content is on the disk before the previous file is replaced.

    Raises:
        UserError: if there is a device, pipe or folder at the path.
        OSError: with the path, if the disk is full or the folder not writable. The previous file stays, the temporary
            one is removed.
    """
    if path.exists() and not path.is_file():  # replacing a device would destroy it for all programs
        raise UserError(f"{path} is no regular file and cannot be replaced: write to another path")
    temporary = temporary_name(path)
    with naming_file(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            if sync:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(mode)  # safetensors makes its files readable by their owner alone, whatever the umask
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def require_writable(option: str, path: Path, *, folder: bool = False) -> None:
    """Raise a UserError, before long work, if a file (or folder) cannot be made at a path; nothing is written.

    Args:
        option: how the path was passed: "--out".
        path: the file, or folder; folders above it need not exist.
        folder: whether it is a folder.
    """
    if path.is_dir() and not folder:
        raise UserError(f"{option} {path} is a folder: pass the path of a file in it")
    places = [*([path] if folder else []), *path.absolute().parents]
    place = next(each for each in places if each.exists())
    if not place.is_dir():
        raise UserError(f"{option} {path}: {place} is no folder; choose another path")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {place} cannot be written; change its permissions, or choose another path")


def temporary_name(path: Path) -> Path:
    """A hidden path beside a file or folder, with the same suffix, that names the process that writes it."""
    return path.with_name(f".partial-{HOST}-{os.getpid()}-{path.name[-100:]}")


def is_temporary(path: Path) -> bool:
    """Whether a path is one of `temporary_name`."""
    return _writer(path) is not None


def remove_leftovers(folder: Path, *, alone: bool = False, below: bool = True) -> None:
    """Remove the temporary files and folders that killed processes left in a folder.

    Args:
        folder: the folder; it need not exist.
        alone: no other process writes into the folder, so that all of them are left over.
        below: look into its subfolders as well.
    """
    for path in [path for path in (folder.rglob(".*") if below else folder.glob(".*")) if is_temporary(path)]:
        with contextlib.suppress(OSError):
            if alone or not _is_being_written(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _writer(path: Path) -> tuple[str, int] | None:
    """Machine and process number in a temporary name; None for other names."""
    # version 0.1 called them .NAME.PROCESS.partial
    name = re.fullmatch(r"\.partial-(\w{6})-(\d+)-.+", path.name) or re.fullmatch(r"\.(.+)\.(\d+)\.partial", path.name)
    return (name[1] if path.name.startswith(".partial") else HOST, int(name[2])) if name else None


def _is_being_written(path: Path) -> bool:
    host, process = _writer(path) or ("", 0)
    if host != HOST:
        return time.time() - path.stat().st_mtime < ABANDONED
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return process != os.getpid()  # in a container each start has the same few numbers


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn errors of writing, whichever library reports them, into an OSError that holds the path."""
    handled = sys.exception()
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause not in (None, handled) and not isinstance(cause, OSError):  # torch raises another in its place
            cause = cause and (cause.__cause__ or cause.__context__)
        if isinstance(cause, OSError) and cause.errno:
            raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error
        if number := re.search(r"os error (\d+)", str(error)):  # safetensors reports it as text
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if isinstance(error, OSError) or "short write" in str(error):
            raise OSError(errno.EIO, str(error), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; values of types that JSON lacks (paths, NumPy numbers) become strings."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_csv(path: Path, table: "pd.DataFrame", **options: Any) -> None:
    """Write a table atomically, without its index; `options` are those of `DataFrame.to_csv`.

    Names of files that are not UTF-8 stay the bytes that they are.
    """
    settings: dict[str, Any] = {"index": False, "errors": "surrogateescape"} | options
    write_atomically(path, lambda file: table.to_csv(file, **settings))


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a table atomically as Parquet, without its index."""
    write_atomically(path, lambda file: table.to_parquet(file, index=False))


def save_figure(path: Path, figure: "Figure", **options: Any) -> None:
    """Write a figure atomically; the suffix gives the format, `options` are those of `Figure.savefig`."""
    write_atomically(path, lambda file: figure.savefig(file, **options))
