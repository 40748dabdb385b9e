"""Digests of tensors and cards, which the files written here hold."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from core.errors import UserError

KEY = "sha256"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_card(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a card, without its own digest, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse_changed_card(path: Path, content: Mapping[str, Any]) -> None:
    """Raise a UserError if a card is not what its digest was computed from; those of version 0.1 have no digest."""
    rest = {key: value for key, value in content.items() if key != KEY}
    if content.get(KEY) not in (None, digest_of_card(rest)):
        raise UserError(f"{path} has changed since it was written; restore it, or remove its {KEY} to use it as it is")


def refuse_changed(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a UserError if the tensors of a file are not those that its digest was computed from.

    Files of other software and of version 0.1 have no digest.
    """
    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get(KEY)
    if expected not in (None, digest_of(tensors)):
        raise UserError(f"{path} has changed since it was written: a fault of the disk or of a copy; get it again")
