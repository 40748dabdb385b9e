"""Load and save encoder weights.

Weights are saved as ``encoder.safetensors`` with timm's key names, which timm and segmentation_models load without this
package, and ``encoder.json`` (``EncoderCard``), which describes their origin. Files of other software load as well.
``unet.safetensors`` holds encoder and decoder of a pretrained U-Net with segmentation_models' key names.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import UserError
from core.files import write_atomically, write_text
from core.hashes import sha256
from encoders.card import (
    MODEL,
    UNET,
    EncoderCard,
    Network,
    norm_of_model,
    read_card,
    read_lineage,
    require_channels,
    unet_source,
)
from encoders.channels import adapt_channels, how_adapted, require_adaptable
from encoders.formats import HEADS, State, find_encoder, fits, norm_in, read_weights, with_epsilons_of
from encoders.hub import hub_weights, kinetics_weights, timm_weights
from encoders.identify import recognise
from encoders.names import HUB, is_file, is_video
from encoders.norm import Norm, norm_of
from encoders.patches import resample_patches
from encoders.stem import stem_of

log = logging.getLogger("fewslice")

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of weights that are loaded: 8-bit ones mean nothing without the scales that belong to them."""
MAX_CHANNELS = 4096
"""Input channels of a file's first convolution that are adapted to the network's."""


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
        source: "imagenet" for timm's weights, "kinetics" for torchvision's of a video network, "hf-hub:NAME" for a
            repository of the Hugging Face hub (these need a network connection), an ``encoder.safetensors`` or its
            folder, a trained U-Net or classifier, or a foreign file: safetensors or a torch file of plain tensors,
            whatever the prefixes of its keys (``find_encoder``). Files with Python code are never opened.
        name: timm's or torchvision's name of the encoder.
        in_channels: input channels of the encoder; ``adapt_channels`` adapts weights for another number.

    Raises:
        UserError: if the file cannot be read or is of another architecture: if anything but a head is missing or a
            shape differs. The encoder is unchanged then.
    """
    encoder = getattr(encoder, "frame_encoder", encoder)
    return _load(encoder, {key: key for key in encoder.state_dict()}, source, name, in_channels)


def load_into_unet(unet: nn.Module, source: str | Path, name: str) -> LoadReport:
    """Load weights into a network of ``encoders.decoders.build_segmenter``: SMP's U-Net or DPT.

    The ``unet.safetensors`` of a pretrained U-Net, or a run folder that holds one, sets encoder and decoder; the output
    layer keeps its weights. Any other ``source`` of ``load_weights`` sets the encoder; its layers after the last
    feature map are not in a U-Net and are reported as unexpected.

    Raises:
        UserError: as ``load_weights``, or if a U-Net's norm is another than the file's. The U-Net is unchanged then.
    """
    source = unet_source(source)
    card = read_card(source) if is_file(source) else None
    if card is None or card.part != "unet":
        encoder: Any = unet.encoder
        return _load(encoder.model, timm_names(encoder.model, name), source, name, _channels_of(encoder))
    require_channels(source, _channels_of(unet.encoder), "the images here")
    path, body = Path(source), body_of(unet)
    _require_architecture(card, name, path)
    norm = norm_of(body)
    if card.norm != norm and {card.norm, norm} != {"batch", "frozen"}:
        raise UserError(
            f"{path} is a U-Net with {card.norm} norm, this one has {norm} norm: pass --norm {card.norm}, or as --init "
            "the encoder.safetensors beside it"
        )
    load_whole(body, read_weights(path), path)
    matched = len(body.state_dict())
    log.info("%s into a U-Net with %s: %d matched, encoder and decoder", path, name, matched)
    return LoadReport(matched=matched, missing=[], unexpected=[], lineage=card.lineage, card=card)


def _channels_of(encoder: Any) -> int:
    """Input channels of an encoder of segmentation_models; of transformers their patches say it."""
    channels: int | None = getattr(encoder, "_in_channels", None)
    return encoder.model.patch_embed.proj.in_channels if channels is None else channels


def load_whole(network: nn.Module, tensors: Mapping[str, Any], path: Path) -> None:
    """Load the content of a file that holds exactly the tensors of a network, by its own names.

    Raises:
        UserError: if names, shapes or types differ, or values are not finite. The network is unchanged then.
    """
    wanted = network.state_dict()
    differing = wanted.keys() ^ tensors.keys()
    differing |= {key for key in wanted.keys() - differing if tensors[key].shape != wanted[key].shape}
    if differing:
        raise UserError(
            f"{path} does not hold the network that the file beside it describes ({_few(sorted(differing))}); "
            "restore both files of the same run"
        )
    loaded = {key: _converted(tensors[key], value, f"{path}: {key}") for key, value in wanted.items()}
    _require_sane(loaded, path)
    network.load_state_dict(loaded)


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

    ``timm.create_model(name, in_chans=in_channels, num_classes=0, checkpoint_path=FILE)`` loads the file, unless its
    stem is "small", which timm does not build by itself. If its norm is "group", timm's ResNets take it with
    ``norm_layer=timm.layers.GroupNorm``; for "group+ws" their convolutions must then become ``timm.layers.StdConv2d``
    (docs/methods.md). Of a ``MaxPoolFrames`` the 2D encoder is written.

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
    network_2d = getattr(encoder, "frame_encoder", encoder)
    state = network_2d.state_dict()
    if hasattr(encoder, "out_channels"):  # of segmentation_models
        features: Any = encoder.model
        names = timm_names(features, name)
        state = {names[key]: value for key, value in features.state_dict().items()}
    facts: dict[str, Any] = {"network": network, "normalisation": normalisation, "norm": norm, "lineage": lineage}
    return _save(path, state, architecture=name, in_channels=in_channels, stem=stem_of(network_2d), **facts)


def save_unet(unet: nn.Module, folder: str | Path, *, name: str, in_channels: int, **facts: Any) -> Path:
    """Write ``unet.safetensors`` and ``unet.json``: the encoder and the decoder of a U-Net, without its output layer.

    Args:
        unet: a ``tu-`` U-Net of segmentation_models, whose names the tensors keep.
        folder: made if absent.
        name, in_channels, **facts: as in ``save_encoder``.

    Returns:
        The path of the safetensors file.
    """
    state = body_of(unet).state_dict()
    return _save(Path(folder) / UNET, state, part="unet", architecture=name, in_channels=in_channels, **facts)


def body_of(unet: Any) -> nn.ModuleDict:
    """All of a U-Net but its output layer, its tensors with the names that they have in the U-Net."""
    return nn.ModuleDict({"encoder": unet.encoder, "decoder": unet.decoder})


def _save(path: Path, state: State, **facts: Any) -> Path:
    """Write tensors, and beside them the ``EncoderCard`` with these facts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    card = EncoderCard(sha256=sha256(path), **facts)
    write_text(path.with_suffix(".json"), card.model_dump_json(indent=2) + "\n")
    return path


def _require_architecture(card: EncoderCard, name: str, source: str | Path) -> None:
    if card.architecture.split(".")[0] != name.split(".")[0]:
        raise UserError(f"{source} holds a {card.architecture}, not a {name}; build a {card.architecture} for it.")


def _load(network: nn.Module, names: dict[str, str], source: str | Path, name: str, channels: int) -> LoadReport:
    """Load ``source`` into ``network``, whose tensor k has the name ``names[k]`` in timm."""
    payload: Mapping[str, Any]
    entry: dict[str, Any] = {}
    card, declared = None, None
    if str(source) in ("imagenet", "kinetics"):
        kinetics, known = str(source) == "kinetics", 1 if channels == 1 else 3  # other numbers are adapted below
        payload, entry = kinetics_weights(name) if kinetics else timm_weights(name, known)
    elif str(source).startswith(HUB):
        payload, entry = hub_weights(str(source))
    else:
        path = Path(source)
        path = path / "encoder.safetensors" if path.is_dir() else path
        payload, card = read_weights(path), read_card(path)
        if card is None:
            data = {"name": "unknown", "hash": None}
            entry = {"stage": "foreign", "source": path.name, "data": data, "sha256": sha256(path)}
        declared = card.architecture if card else payload.get("arch")
    if card:
        _require_architecture(card, name, source)
    if card and card.stem != (stem := stem_of(network)):
        raise UserError(
            f"{source} has the {card.stem} stem and the network here the {stem} one: pass --stem {card.stem} where "
            "there is such a setting, or an encoder that was pretrained with the other"
        )

    wanted = {names[key]: value for key, value in network.state_dict().items()}
    layout = find_encoder(payload, name, {key: tuple(value.shape) for key, value in wanted.items()})
    trained_norm = card.norm if card else norm_of_model(source) or norm_in(layout.outside, wanted)
    _check_norm(source, trained_norm, norm_of(network))
    where = _few([layout.where]) if layout.where else ""
    lineage = card.lineage if card else read_lineage(source) or [entry | ({"layout": where} if where else {})]
    state, trained = _adapted(with_epsilons_of(network, layout, names), wanted, name, channels, source)
    if trained != channels:
        foreign = card is None and Path(source).name != MODEL
        require_adaptable(source, trained, channels, lineage, foreign=foreign)
    if trained != channels > 1 and lineage:
        log.info("%s: the first convolution is adapted, %s", source, how_adapted(trained, channels))
        lineage = [*lineage[:-1], lineage[-1] | {"first_convolution": how_adapted(trained, channels)}]
    missing = sorted(wanted.keys() - state.keys())
    lacking = _weights_below_head(missing)
    if lacking and lacking == _weights_below_head(_after_features(name)):
        log.warning("%s has no layers after the last feature map (%s); they start at random", source, _few(lacking))
        lacking = []
    differing = [key for key in sorted(state) if not fits(state[key], tuple(wanted[key].shape))]
    if lacking or differing:
        wrong = [f"lacks {len(lacking)} of its {len(wanted)} tensors ({_few(lacking)})"] if lacking else []
        for key in differing[:1]:
            shapes = f"{tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the network"
            wrong += [f"holds {len(differing)} of other shapes ({key}: {shapes})"]
        declaration = f" (the file says it is a {_few([declared])})" if isinstance(declared, str) else ""
        wrong_file = f"{source} does not hold a {name}{declaration}: it {' and '.join(wrong)}"
        raise UserError(f"{wrong_file}; {_advice(payload, name, lacking, differing)}")

    loaded = {key: _converted(state[key], value, f"{source}: {key}") for key, value in wanted.items() if key in state}
    _require_sane(loaded, source)
    network.load_state_dict({key: loaded.get(names[key], value) for key, value in network.state_dict().items()})
    if layout.rivals:
        place, other = (_few([where]) if where else "the outermost" for where in (layout.where, layout.rivals[0]))
        log.info("%s holds several networks of this kind: %s is loaded, not %s", source, place, other)
    report = LoadReport(
        matched=len(loaded),
        missing=missing,
        unexpected=layout.outside,
        lineage=lineage,
        card=card,
    )
    log.info(
        "%s into %s%s: %d matched, %d missing%s, %d unexpected%s",
        *(source, name, f", from {where}" if where else "", report.matched),
        *(len(missing), f" ({_few(missing)})" if missing else ""),
        *(len(report.unexpected), f" ({_few(report.unexpected)})" if report.unexpected else ""),
    )
    return report


def _check_norm(source: str | Path, trained: Norm | None, norm: Norm | None) -> None:
    """Warn of a network whose norms are not those that the weights were trained with; None is an unknown norm.

    Raises:
        UserError: if the weights were trained without batch statistics, or with standardised weights, and the network
            computes another function.
    """
    if None in (trained, norm) or trained == norm or {trained, norm} == {"batch", "frozen"}:
        return
    if trained == "group+ws" or (trained == "group" and norm != "group+ws"):
        standardised = " and weight standardisation" if trained == "group+ws" else ""
        raise UserError(f"{source} was trained with group normalisation{standardised}: pass --norm {trained}")
    log.warning(
        f"{source} was trained with {'batch' if trained != 'group' else 'group'} norm and gives other features with "
        f"--norm {norm}, which training has to repair"
    )


def _adapted(state: State, wanted: State, name: str, channels: int, source: str | Path) -> tuple[State, int]:
    """The tensors with the first convolutions adapted to the network's input channels, and patches to its size; and the
    channels of the images that they were trained on."""
    trained = channels
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    first = "stem.0" if is_video(name) else config.first_conv if config else None
    state = resample_patches(state, wanted)
    for module in (first,) if isinstance(first, str) else first or ():
        key = f"{module}.weight"
        if key not in wanted or key not in state:
            continue
        value, shape = state[key], wanted[key].shape
        pixels = shape[1] // channels  # more than 1 in stems that rearrange pixels into channels
        same_kernel = value.ndim == len(shape) and (value.shape[0], *value.shape[2:]) == (shape[0], *shape[2:])
        if same_kernel and value.shape[1] != shape[1] and value.shape[1] in range(pixels, MAX_CHANNELS, pixels):
            value = _converted(value, wanted[key], f"{source}: {key}")
            trained = value.shape[1] // pixels
            state[key] = adapt_channels(value, channels, trained)
    return state, trained


def _converted(value: Tensor, like: Tensor, what: str) -> Tensor:
    """A tensor of a file in the type of the network's tensor, and in its shape where ``fits`` allows it.

    Raises:
        UserError: if it is not a plain tensor of floating-point numbers (of whole ones, for counters).
    """
    plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    kinds = FLOATS if like.is_floating_point() else (*FLOATS, torch.int64, torch.int32)
    if not plain or value.dtype not in kinds:
        kind = "meta" if value.is_meta else "sparse" if value.layout != torch.strided else value.dtype
        raise UserError(
            f"{what} is a {kind} tensor, which cannot be loaded; save the network's weights as plain float32 tensors"
        )
    value = value.detach().to(like.dtype)
    return value.reshape(like.shape) if fits(value, tuple(like.shape)) else value


def _require_sane(state: State, source: str | Path) -> None:
    """Raise a UserError if values are NaN or infinite, or a variance is negative."""
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"{source} holds values that are not finite ({_few(broken)}); get the file again.")
    if broken := [key for key, value in state.items() if key.endswith("running_var") and (value < 0).any()]:
        raise UserError(f"{source} holds negative variances ({_few(broken)}); get the file again.")


@cache
def _after_features(name: str) -> frozenset[str]:
    """Tensors of timm's whole network that its feature extractor, and so a U-Net, lacks; DPT lacks none."""
    if is_video(name):
        return frozenset()
    with torch.device("meta"):
        try:
            features: Any = smp.encoders.get_encoder(f"tu-{name}", weights=None).model
        except Exception:  # a transformer has no pyramid: errors of several types
            return frozenset()
        return frozenset(
            timm.create_model(name, num_classes=0).state_dict().keys() - timm_names(features, name).values()
        )


def timm_names(features: nn.Module, name: str) -> dict[str, str]:
    """From tensor names in timm's ``features_only`` network to those in its whole network.

    Source: ``timm.models._features``, which keeps a name, joins its first two parts by an underscore, or wraps the
    whole network as ``body`` or ``model``.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=0).state_dict()
    table = {new: key for key in whole for new in (f"model.{key}", f"body.{key}", key.replace(".", "_", 1), key)}
    return {key: table[key] for key in features.state_dict()}


def _weights_below_head(keys: Iterable[str]) -> list[str]:
    """Names of tensors without batch counters and classifiers, sorted."""
    return sorted(key for key in keys if not key.endswith("num_batches_tracked") and not key.startswith(HEADS))


def _advice(payload: Mapping[str, Any], name: str, lacking: list[str], differing: list[str]) -> str:
    """What to do about a file that does not fit."""
    if lacking and not differing and all(key.endswith(("running_mean", "running_var")) for key in lacking):
        return "it was trained without batch normalisation: pass --norm group"
    if (identity := recognise(payload)) and identity.architecture != name:
        return f"it holds a {identity.architecture}: pass --encoder {identity.architecture}"
    return f"pass a file of a {name}, or with --encoder the architecture of this one"


def _few(keys: list[str]) -> str:
    keys = [f"{key:.100}" if key.isprintable() else repr(key)[:100] for key in keys[:4]]
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
