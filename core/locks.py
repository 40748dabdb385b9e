"""File locks between processes; the operating system releases a lock when the process that holds it dies."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

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
