"""Locks between processes, held on a file; the operating system frees them when their holder dies."""

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
    """Hold the lock of a file, which is made if absent and left behind empty.

    Args:
        path: the lock file.
        wait: wait for the holder to release it, or to die.

    Yields:
        True; False where the file system has no locks, so that nothing is held.

    Raises:
        Locked: without `wait`, if another process holds it.
        OSError: if the lock file cannot be made.
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
