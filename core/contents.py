"""Digests of the contents of many files, kept in the cache so that a file is read again only when it has changed."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from core.cache import cache_folder
from core.files import write_text
from core.hashes import sha256
from core.progress import progress

SETTLED = 2.0
"""Seconds after which a change of a file also changes its time stamps, on any file system."""


def content_digests(root: Path, names: Sequence[str]) -> list[str]:
    """SHA-256 of each file's content: copies have the same, whatever their time stamps and the place of `root`.

    A file counts as unchanged while size, time stamps and inode are those of the last reading.

    Args:
        root: a folder.
        names: files, relative to `root`.

    Raises:
        OSError: if a file cannot be read.
    """
    place = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    kept_in = cache_folder() / "digests" / f"{place}.json"
    known: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(kept_in.read_text(encoding="utf-8")))
    digests, current = [], {}
    for name in progress(names, "reading files", len(names)):
        stat = (root / name).stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = known.get(name)
        digest = entry[-1] if isinstance(entry, list) and entry[:-1] == state else sha256(root / name)
        digests.append(digest)
        if max(stat.st_mtime, stat.st_ctime) < time.time() - SETTLED:
            current[name] = [*state, digest]
    if not current.items() <= known.items():
        with contextlib.suppress(OSError):  # without it the files are read again next time
            kept_in.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept_in, json.dumps(known | current))
    return digests
