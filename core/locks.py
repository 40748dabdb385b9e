"""File locks between processes; the operating system releases a lock when the process that holds it dies."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import UserError
from core.files import is_temporary

LOCK = ".lock"
"""File that is locked while a process works in a folder."""

UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""Error numbers of file systems without locks, such as some network mounts."""


class Locked(Exception):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock on a file.

    Args:
        path: the lock file; created if absent, and never removed.
        wait: wait until no other process holds the lock.

    Yields:
        True; False, without a lock, on a file system that has none.

    Raises:
        Locked: if `wait` is False and another process holds the lock.
        OSError: if the lock file cannot be created.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive its holder
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise Locked(f"{path} is held by another process") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def folder_lock(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder; a UserError if another process does, `what` says which ("another sweep")."""
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / LOCK, wait=False))
        except Locked:
            raise UserError(f"{what} is working in {folder}: wait until it ends, or choose another --out") from None
        yield


def is_unused(folder: Path) -> bool:
    """Whether a folder is absent or empty, but for what a process left that was killed before it began."""
    if not folder.is_dir():
        return not folder.is_symlink() and not folder.exists()
    return all(each.name == LOCK or is_temporary(each) for each in folder.iterdir())
