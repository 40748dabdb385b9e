"""Download pretrained weights: timm's of natural images, torchvision's of videos, and repositories of the hub.

These functions raise a UserError if there are no weights for an encoder or they cannot be downloaded.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import huggingface_hub
import timm
import torch
import torchvision

from core.errors import UserError
from core.hashes import sha256
from encoders.card import versions
from encoders.formats import State, read_weights
from encoders.names import HUB, VIDEO_ENCODERS, is_video

OF_IMAGENET = re.compile("in1k|in12k|in21k|in22k|imagenet")
"""Tags of timm's weights that were trained on ImageNet, perhaps among other data."""
HUB_FILE = "model.safetensors"


def timm_weights(name: str, channels: int) -> tuple[State, dict[str, Any]]:
    """timm's weights of a 2D network, adapted to `channels` input channels, and their entry in the lineage."""
    if is_video(name):
        raise UserError(f"{name} has no ImageNet weights; pass kinetics or a file instead.")
    _require_imagenet(name)
    try:
        _require_timm(name)
        encoder = timm.create_model(name, pretrained=True, in_chans=channels, num_classes=0)
    except Exception as error:  # no network, no such weights, a broken download: many types
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the ImageNet weights of {name} could not be fetched ({reason}); pass a file instead: download "
            f"{_timm_url(name)}, put it anywhere and pass its path in place of imagenet."
        ) from error
    # timm's tag names training data and procedure ("a1_in1k"); the data are not always ImageNet, nor that alone
    config = encoder.pretrained_cfg
    tag = config.get("tag") or "unknown"
    entry = {
        "stage": "generalist",
        "source": f"timm {name.split('.')[0]}.{tag}",
        "data": {"name": f"timm {tag}", "hash": None},
        "weights": config.get("hf_hub_id") or config.get("url") or "unknown",
        "versions": versions(),
    }
    return encoder.state_dict(), entry


def hub_weights(source: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The tensors of a repository of the Hugging Face hub, by the names in its file, and their entry in the lineage.

    Args:
        source: "hf-hub:OWNER/NAME", as in timm; "@" and a revision may follow.
    """
    repository, _, revision = source.removeprefix(HUB).partition("@")
    try:
        file = Path(_hub_file(repository, revision or None))
    except Exception as error:  # no network, no such repository, one that asks for a licence to be accepted: many types
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"the weights {source} could not be fetched ({reason}); download {_hub_url(repository, revision)}, put the "
            f"file anywhere and pass its path in place of {source}, with --encoder and timm's name of its network"
        ) from error
    tag = repository.partition("/")[2].partition(".")[2] if repository.startswith("timm/") else ""
    entry = {
        "stage": "foreign",
        "source": source,
        "data": {"name": f"timm {tag}" if tag else "unknown", "hash": None},
        "weights": repository,
        "revision": file.parent.name,  # of the commit: files of the cache lie in folders named after it
        "sha256": sha256(file),
        "versions": versions(),
    }
    return read_weights(file), entry


def _hub_file(repository: str, revision: str | None) -> str:
    """The path of a repository's weights, from the cache if they are there."""
    return _require_hub(repository, revision) or huggingface_hub.hf_hub_download(
        repository, HUB_FILE, revision=revision
    )


def _require_hub(repository: str, revision: str | None) -> str | None:
    """The path of a repository's weights in the cache; an error if they are not there and there is no connection."""
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE, revision=revision)
    if isinstance(cached, str):
        return cached
    # Fails at once without a connection; the hub's client would retry for most of a minute.
    huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    return None


def _hub_url(repository: str, revision: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{HUB_FILE}"


def _timm_url(name: str) -> str:
    repository = _timm_repository(name)
    return _hub_url(repository, "") if repository else "them"


def _require_imagenet(name: str) -> None:
    """Raise a UserError if timm's weights of a network are of other images: they are never called ImageNet's."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    tag = getattr(config, "tag", None) or ""
    if tag and not OF_IMAGENET.search(tag):
        repository = config.hf_hub_id if "/" in (config.hf_hub_id or "") else f"timm/{name.split('.')[0]}.{tag}"
        raise UserError(
            f"the weights that timm has of {name} were not trained on ImageNet (their tag is {tag}): pass "
            f"hf-hub:{repository} in place of imagenet"
        )


def kinetics_weights(name: str) -> tuple[State, dict[str, Any]]:
    """torchvision's Kinetics-400 weights of a video network, and their entry in the lineage."""
    if not is_video(name):
        raise UserError(f"{name} has no Kinetics-400 weights, only {', '.join(VIDEO_ENCODERS)} have; pass imagenet.")
    weights = torchvision.models.get_model_weights(name).KINETICS400_V1
    try:
        _require_kinetics(name)
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a broken download: many types
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the Kinetics-400 weights of {name} could not be fetched ({reason}); pass a file instead, or put "
            f"{weights.url} into {_torch_folder()}."
        ) from error
    entry = {"stage": "generalist", "source": f"torchvision {weights}", "data": {"name": "kinetics400", "hash": None}}
    return state, entry | {"versions": versions()}


def missing_download(source: str, name: str, flag: str) -> str:
    """What to do about weights that are neither in the cache nor to be downloaded now; empty if they can be had.

    Args:
        source: "imagenet", "kinetics" or "hf-hub:NAME".
        name: name of the encoder.
        flag: the option that takes a file instead.

    Raises:
        UserError: if there are no such weights of the encoder.
    """
    if source.startswith(HUB):
        named, _, revision = source.removeprefix(HUB).partition("@")
        try:
            _require_hub(named, revision or None)
        except Exception:  # no network, a refusal by the server: many types
            return f"{source} (download {_hub_url(named, revision)}, put the file anywhere and pass {flag})"
        return ""
    if (source == "kinetics") != is_video(name):
        raise UserError(f"{name} has no {source} weights; 3D encoders take kinetics, all others imagenet.")
    try:
        (_require_kinetics if source == "kinetics" else _require_timm)(name)
    except Exception:  # no network, a refusal by the server: many types
        if source == "kinetics":
            url = torchvision.models.get_model_weights(name).KINETICS400_V1.url
            return f"the Kinetics-400 weights of {name} (download {url} and put it into {_torch_folder()})"
        return f"the ImageNet weights of {name} (download {_timm_url(name)}, put the file anywhere and pass {flag})"
    return ""


def _require_timm(name: str) -> None:
    """Raise an error if timm's weights are neither in the cache nor is there a connection."""
    repository = _timm_repository(name)
    if repository and not huggingface_hub.try_to_load_from_cache(repository, "model.safetensors"):
        # Fails at once without a connection; the hub's client would retry for most of a minute.
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)


def _require_kinetics(name: str) -> None:
    """Raise an error if torchvision's weights are neither in the cache nor is there a connection."""
    url = torchvision.models.get_model_weights(name).KINETICS400_V1.url
    if not (_torch_folder() / Path(url).name).is_file():
        urlopen(Request(url, method="HEAD"), timeout=10).close()  # torch.hub would wait without end


def _timm_repository(name: str) -> str | None:
    return getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "hf_hub_id", None)


def _torch_folder() -> Path:
    """Folder in which torch.hub looks for downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"
