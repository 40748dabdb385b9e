"""Load and save encoder weights.

Weights are saved as ``encoder.safetensors`` with timm's key names, which timm and segmentation_models load without this
package, and ``encoder.json`` (``EncoderCard``), which describes their origin. Files of other software load as well.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from core.errors import UserError
from core.files import write_atomically, write_text
from core.hashes import sha256
from encoders.card import EncoderCard, Network, read_card, read_lineage
from encoders.channels import adapt_channels
from encoders.formats import HEADS, Layout, State, layouts, read_weights
from encoders.hub import kinetics_weights, timm_weights
from encoders.names import is_video
from encoders.norm import Norm

log = logging.getLogger("fewslice")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Result of loading a file."""

    matched: int
    """Tensors of the network that came from the file."""
    missing: list[str]
    """Tensors of the network that the file lacks: heads and batch counters, never anything else."""
    unexpected: list[str]
    """Tensors of the file that the network does not have."""
    lineage: list[dict[str, Any]]
    """Training stages of the weights: from the card, or one entry for a foreign file."""
    card: EncoderCard | None
    """None for a foreign file."""


def load_weights(encoder: nn.Module, source: str | Path, *, name: str, in_channels: int) -> LoadReport:
    """Load pretrained weights into an encoder made by ``build_encoder`` or ``build_clip_encoder``.

    Args:
        encoder: changed in place; in a ``MaxPoolFrames``, its 2D encoder is.
        source: "imagenet" for timm's weights, "kinetics" for torchvision's of a video network (both need a network
            connection), an ``encoder.safetensors`` or its folder, or a foreign file: safetensors or a torch file of
            plain tensors in any layout of ``UNWRAP`` and ``PREFIXES``. Files with Python code are never opened.
        name: timm's or torchvision's name of the encoder.
        in_channels: input channels of the encoder; ``adapt_channels`` adapts weights for another number.

    Raises:
        UserError: if the file cannot be read or is of another architecture: if anything but a head is missing or a
            shape differs. The encoder is unchanged then.
    """
    encoder = getattr(encoder, "frame_encoder", encoder)
    return _load(encoder, {key: key for key in encoder.state_dict()}, source, name, in_channels)


def load_into_unet(unet: nn.Module, path: str | Path, name: str) -> LoadReport:
    """Load any ``source`` of ``load_weights`` into the encoder of ``smp.Unet(encoder_name="tu-" + name)``.

    The layers after the last feature map are not in a U-Net and are reported as unexpected.
    """
    encoder: Any = unet.encoder
    return _load(encoder.model, _timm_names(encoder.model, name), path, name, encoder._in_channels)


def save_encoder(
    encoder: nn.Module,
    folder_or_file: str | Path,
    *,
    name: str,
    in_channels: int,
    network: Network,
    normalisation: dict[str, Any],
    norm: Norm,
    lineage: list[dict[str, Any]],
) -> Path:
    """Write ``encoder.safetensors`` and ``encoder.json``, each atomically.

    ``timm.create_model(name, in_chans=in_channels, num_classes=0, checkpoint_path=FILE)`` loads the file,
    unless its norm is "group", which timm cannot build. Of a ``MaxPoolFrames`` the 2D encoder is written.

    Args:
        encoder: from ``build_encoder`` or ``build_clip_encoder``, or the ``encoder`` of a ``tu-`` U-Net of
            segmentation_models.
        folder_or_file: a folder, made if absent, or a file that ends in ``.safetensors``.
        name, in_channels, network, normalisation, norm, lineage: see ``EncoderCard``.

    Returns:
        The path of the safetensors file.
    """
    path = Path(folder_or_file)
    path = path if path.suffix == ".safetensors" else path / "encoder.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = getattr(encoder, "frame_encoder", encoder).state_dict()
    if hasattr(encoder, "out_channels"):  # of segmentation_models
        features: Any = encoder.model
        names = _timm_names(features, name)
        state = {names[key]: value for key, value in features.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    card = EncoderCard(
        architecture=name,
        in_channels=in_channels,
        norm=norm,
        network=network,
        normalisation=normalisation,
        lineage=lineage,
        sha256=sha256(path),
    )
    write_text(path.with_suffix(".json"), card.model_dump_json(indent=2) + "\n")
    return path


def _load(network: nn.Module, names: dict[str, str], source: str | Path, name: str, channels: int) -> LoadReport:
    """Load ``source`` into ``network``, whose tensor k has the name ``names[k]`` in timm."""
    payload: Mapping[str, Any]
    entry: dict[str, Any] = {}
    card, declared = None, None
    if str(source) in ("imagenet", "kinetics"):
        payload, entry = kinetics_weights(name) if str(source) == "kinetics" else timm_weights(name, channels)
    else:
        path = Path(source)
        path = path / "encoder.safetensors" if path.is_dir() else path
        payload, card = read_weights(path), read_card(path)
        if card is None:
            data = {"name": "unknown", "hash": None}
            entry = {"stage": "foreign", "source": path.name, "data": data, "sha256": sha256(path)}
        declared = card.architecture if card else payload.get("arch")
    if card and card.architecture.split(".")[0] != name.split(".")[0]:
        raise UserError(f"{source} holds a {card.architecture}, not a {name}; build a {card.architecture} for it.")

    wanted = {names[key]: value for key, value in network.state_dict().items()}
    if card and card.norm == "group" and any(key.endswith("running_mean") for key in wanted):
        raise UserError(f"{source} was trained with group normalisation; build the encoder with norm 'group'.")
    adapted = [_adapted(layout, wanted, name, channels) for layout in layouts(payload)]
    where, state, outside = max(adapted, key=lambda layout: _fit(layout.state, wanted), default=Layout("", {}, []))
    missing = sorted(wanted.keys() - state.keys())
    lacking = [key for key in missing if not key.endswith("num_batches_tracked") and not key.startswith(HEADS)]
    differing = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    if lacking or differing:
        wrong = [f"lacks {len(lacking)} of its {len(wanted)} tensors ({_few(lacking)})"] if lacking else []
        for key in sorted(differing)[:1]:
            shapes = f"{tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the network"
            wrong += [f"holds {len(differing)} of other shapes ({key}: {shapes})"]
        declaration = f" (the file says it is a {declared})" if isinstance(declared, str) else ""
        wrong_file = f"{source} does not hold a {name}{declaration}: it {' and '.join(wrong)}"
        raise UserError(f"{wrong_file}; pass the architecture of the file.")

    loaded = {key: state.get(names[key], value) for key, value in network.state_dict().items()}
    if broken := [key for key, value in loaded.items() if not value.isfinite().all()]:
        raise UserError(f"{source} holds values that are not finite ({_few(broken)}); get the file again.")
    network.load_state_dict(loaded)
    report = LoadReport(
        matched=len(wanted) - len(missing),
        missing=missing,
        unexpected=sorted(state.keys() - wanted.keys()) + outside,
        lineage=card.lineage if card else read_lineage(source) or [entry | ({"layout": where} if where else {})],
        card=card,
    )
    log.info(
        "%s into %s%s: %d matched, %d missing%s, %d unexpected%s",
        *(source, name, f", from {where}" if where else "", report.matched),
        *(len(missing), f" ({_few(missing)})" if missing else ""),
        *(len(report.unexpected), f" ({_few(report.unexpected)})" if report.unexpected else ""),
    )
    return report


def _adapted(layout: Layout, wanted: State, name: str, channels: int) -> Layout:
    """The layout with its first convolutions adapted to the network's input channels."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    first = "stem.0" if is_video(name) else config.first_conv if config else None
    state = dict(layout.state)
    for module in (first,) if isinstance(first, str) else first or ():
        key = f"{module}.weight"
        if key in wanted and key in state and state[key].shape[1] != wanted[key].shape[1]:
            pixels = wanted[key].shape[1] // channels  # more than 1 in stems that rearrange pixels into channels
            state[key] = adapt_channels(state[key].float(), channels, state[key].shape[1] // pixels)
    return layout._replace(state=state)


def _fit(state: State, wanted: State) -> int:
    """How well a file's tensors fit the network: one point for each name, one more for an equal shape."""
    common = wanted.keys() & state.keys()
    return len(common) + sum(wanted[key].shape == state[key].shape for key in common)


def _timm_names(features: nn.Module, name: str) -> dict[str, str]:
    """From tensor names in timm's ``features_only`` network to those in its whole network.

    Source: ``timm.models._features``, which keeps a name, joins its first two parts by an underscore, or wraps the
    whole network as ``body`` or ``model``.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=0).state_dict()
    table = {new: key for key in whole for new in (f"model.{key}", f"body.{key}", key.replace(".", "_", 1), key)}
    return {key: table[key] for key in features.state_dict()}


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
