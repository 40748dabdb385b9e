"""Atomic checkpoint files that end with a digest of their content."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from core.errors import UserError
from core.files import write_atomically

MARK = b"fewslice sha256 "
"""Stands before the digest, after the last byte of torch's file; torch ignores both."""
DIGEST_SIZE = hashlib.sha256().digest_size


class _Hashing:
    """A file that computes the digest of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the previous file stays until the new one is safely on disk.

    Raises:
        UserError: if the disk is full or the folder not writable; the previous checkpoint stays.
    """

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            hashing = _Hashing(stream)
            torch.save(state, hashing)  # type: ignore[arg-type]  # torch needs write and flush only
            stream.write(MARK + hashing.digest.digest())

    try:
        write_atomically(path, write, sync=True)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        kept = "the previous checkpoint is intact" if path.exists() else "there is no earlier one"
        raise UserError(
            f"cannot write the checkpoint {path} ({getattr(error, 'strerror', None) or error}); {kept}: "
            "make room and continue with --resume"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without unpickling code; a UserError says if it is missing or damaged.

    Checkpoints of version 0.1, which have no digest, are read unverified.
    """
    try:
        if not _is_intact(path):
            raise ValueError("its content has changed since it was written: a fault of the disk or of a copy")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path} to resume from; start again with --overwrite") from None
    except Exception as error:
        # torch goes on to recommend unsafe loading: its first sentence is enough
        reason = str(error).split("\n")[0].split(". ")[0]
        reason = reason if " " in reason else "it is damaged, or no checkpoint"  # of a pickle, the key that is missing
        raise UserError(f"cannot read the checkpoint {path} ({reason}); start again with --overwrite") from error


def _is_intact(path: Path) -> bool:
    """Whether the content has the digest at the end of the file, or the file has none."""
    with path.open("rb") as file:
        size = path.stat().st_size - len(MARK) - DIGEST_SIZE
        if size < 0:
            return True
        file.seek(size)
        mark, expected = file.read(len(MARK)), file.read()
        if mark != MARK:
            return True
        file.seek(0)
        digest = hashlib.sha256()
        while content := file.read(min(1 << 20, size)):
            digest.update(content)
            size -= len(content)
    return digest.digest() == expected
