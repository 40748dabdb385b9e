"""A trained model on disk: `model.safetensors` and its card, `model.json`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file
from torch import nn

from core.errors import UserError, first_violation
from core.files import write_atomically, write_json
from core.hashes import sha256
from core.text import read_text
from encoders import digest
from encoders.formats import read_weights
from encoders.names import is_file
from encoders.norm import Norm
from encoders.weights import load_whole


class ModelCard(BaseModel):
    """Content of `model.json`: what is needed to build and use any trained model; tasks add fields."""

    encoder: str
    """Name of the encoder."""
    norm: Norm
    """See `encoders.norm.replace_norm`."""
    dataset: str
    """Name and digest of the training data."""
    init: str
    """Start of the encoder: random, imagenet, kinetics, or the name and digest of a file."""
    lineage: list[dict[str, Any]] = []
    """Training stages of the encoder before this run, see `encoders.card.EncoderCard`."""
    subjects: dict[str, Any] | None = None
    """Salted hashes of the training, validation and test subjects, a `core.subjects.SubjectRecord`; version 0.1 wrote
    none."""
    warnings: list[str] = []
    """Reasons why the model's scores may be too high, which the user chose to ignore."""


MAX_CARD = 2**24
"""Bytes of a card that is read."""

Card = TypeVar("Card", bound=ModelCard)
Network = TypeVar("Network", bound=nn.Module)


def name_of_init(init: str) -> str:
    """The setting `init` for a card: a file by its name and digest, as its folder may name a patient or a user."""
    if not is_file(init):
        return init
    path = Path(init).expanduser()
    path = path / "encoder.safetensors" if path.is_dir() else path
    return f"{path.name} sha256 {sha256(path)}" if path.is_file() else path.name


def save_model(network: nn.Module, folder: Path, card: ModelCard) -> None:
    """Write the weights and the card into a folder, each completely or not at all."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    metadata = {digest.KEY: digest.digest_of(tensors)}
    write_atomically(folder / "model.safetensors", lambda file: save_file(tensors, file, metadata=metadata))
    write_card(folder / "model.json", card)


def write_card(path: Path, card: BaseModel) -> None:
    """Write a card with the digest of its content."""
    content = card.model_dump(mode="json")
    write_json(path, content | {digest.KEY: digest.digest_of_card(content)})


def load_model(folder: Path, kind: type[Card], build: Callable[[Card], Network]) -> tuple[Network, Card]:
    """Read back what `save_model` wrote, in evaluation mode on the CPU.

    Args:
        folder: the run folder.
        kind: the card's class.
        build: builds a network for a card, with any weights.

    Raises:
        UserError: if the folder holds no finished model, or its two files do not belong together.
    """
    weights, sidecar = folder / "model.safetensors", folder / "model.json"
    for path in (weights, sidecar):
        if not path.is_file():
            way_out = "pass a finished --run, or train it again with --overwrite"
            if (folder / "encoder.safetensors").is_file():
                way_out = "it is a run of python -m pretrain: pass a run that was trained on labels from it (--init)"
            raise UserError(f"{folder} holds no trained model ({path.name} is missing); {way_out}")
    card = read_json_card(sidecar, kind)
    try:
        with torch.random.fork_rng(devices=[]):  # the discarded initial weights must not shift later random numbers
            network = build(card)
        load_whole(network, read_weights(weights), weights)
    except (UserError, RuntimeError) as error:
        reason = str(error).splitlines()[0].partition(";")[0]  # without the advice for files of encoders
        raise UserError(f"cannot read the model in {folder} ({reason}); train it again") from error
    network.eval()
    return network, card


def read_json_card(path: Path, kind: type[BaseModel]) -> Any:
    """Read a card; those of version 0.1 have no digest.

    Raises:
        UserError: if the file is not such a card, or has changed since it was written.
    """
    try:
        text = read_text(path, MAX_CARD)
        card = kind.model_validate_json(text)
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # pydantic's, JSON's and that of text which is not UTF-8
        reason = first_violation(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise UserError(f"cannot read the model in {path.parent} ({reason}); train it again") from error
    digest.refuse_changed_card(path, content)
    return card
