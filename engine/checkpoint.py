"""Atomic checkpoint files."""

from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.files import write_atomically


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values; the previous file stays until the new one is safely on disk.

    Raises:
        UserError: if the disk is full or the folder not writable; the previous checkpoint stays.
    """

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            torch.save(state, stream)

    try:
        write_atomically(path, write, sync=True)
    except (OSError, RuntimeError) as error:  # torch.save reports a short write as RuntimeError
        kept = "the previous checkpoint is intact" if path.exists() else "there is no earlier one"
        reason: BaseException | None = error
        while reason and not isinstance(reason, OSError):  # torch raises another error in its place on a full disk
            reason = reason.__context__
        raise UserError(
            f"cannot write the checkpoint {path} ({reason or error}); {kept}: make room and continue with --resume"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without unpickling code; a UserError says if it is missing or damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path} to resume from; start again with --overwrite") from None
    except Exception as error:
        # torch goes on to recommend unsafe loading: its first sentence is enough
        reason = str(error).split("\n")[0].split(". ")[0]
        raise UserError(f"cannot read the checkpoint {path} ({reason}); start again with --overwrite") from error
