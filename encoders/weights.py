"""Encoder weights in and out: many foreign formats in, one native file out.

The native file is ``encoder.safetensors`` in timm's own key names, which timm and segmentation_models load
without this package, beside ``encoder.json`` (``EncoderCard``), which says where the weights come from.
"""

import hashlib
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.request import Request, urlopen

import huggingface_hub
import timm
import torch
import torchvision
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import UserError
from encoders.channels import adapt_channels
from encoders.norm import Norm
from encoders.video import VIDEO_ENCODERS

log = logging.getLogger("fewslice")

Network = Literal["target", "online", "segmentation", "foreign"]
State = dict[str, Tensor]

# Where foreign files keep their state dict, and what stands before the names of an encoder in it. All pairs
# are tried; the one that fits most tensors is taken, and of equals the first: EMA networks come first, as the
# papers' official code exports the target network.
UNWRAP: tuple[tuple[str, ...], ...] = (
    (),  # torchvision, timm, safetensors, lightly-train exports
    ("target_backbone",),  # yaox12/BYOL-PyTorch
    ("target_network_state_dict",),  # sthalles/PyTorch-BYOL
    ("state_dict_ema",),  # timm training checkpoints
    ("state_dict",),  # Lightning (solo-learn, lightly), MoCo, timm
    ("teacher",),  # DINO
    ("student",),
    ("model_state_dict",),
    ("model",),  # Barlow Twins, lightly-train, MONAI
    ("backbone",),
    ("encoder",),
    ("online_network_state_dict",),
    ("classy_state_dict", "base_model", "model", "trunk"),  # VISSL
)
PREFIXES: tuple[str, ...] = (
    "",
    "module.",  # DataParallel: yaox12/BYOL-PyTorch, SwAV
    "momentum_backbone.",  # solo-learn, target network
    "teacher_backbone.",  # lightly, target network
    "backbone_momentum.",  # lightly's BYOL, target network
    "backbone.",  # solo-learn, lightly
    "student_backbone.",  # lightly
    "module.encoder_q.",  # MoCo v1, v2
    "module.base_encoder.",  # MoCo v3
    "module.backbone.",  # DINO
    "_feature_blocks.",  # VISSL
    "encoder.model.",  # a U-Net of segmentation_models
    "encoder.",  # old solo-learn, sthalles/PyTorch-BYOL
    "model.",
    "_orig_mod.",  # torch.compile
)
# lightly keeps nn.Sequential(*list(resnet.children())[:-1]): numbers for names.
RESNET_CHILDREN = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
HEADS = ("fc.", "classifier.", "head.")
# Settings that training checkpoints keep beside their weights. They are read as inert stand-ins.
SETTINGS = (
    *("argparse.Namespace", "collections.defaultdict", "numpy.", "omegaconf.", "pathlib.", "typing."),
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *("lightning.", "lightning_fabric.", "pytorch_lightning."),
)


class EncoderCard(BaseModel):
    """What ``encoder.json`` says of the weights beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fewslice-encoder-1"] = "fewslice-encoder-1"
    architecture: str
    """timm's name of the network, or torchvision's of a video network."""
    clip: Literal["maxpool2d"] | None = None
    """How this 2D network was trained on clips; None: it was not, or sees clips as a whole."""
    in_channels: int
    norm: Norm
    network: Network
    """Which network it is: BYOL's target (EMA) or online one, a U-Net's encoder, or one not trained here."""
    normalisation: dict[str, Any]
    """How the intensities of its training images were normalised."""
    spacing_mm: float | None
    """In-plane pixel spacing of its training images where that was one value, in mm."""
    image_size: int | tuple[int, int] | None = None
    """(rows, columns) or side of its training views, in pixels."""
    lineage: list[dict[str, Any]]
    """Every training stage from the first: stage, source, data (name, hash), steps, versions."""
    sha256: str | None = None
    """Of the safetensors file."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a file's tensors."""

    source: str
    matched: int
    """Tensors of the network that came from the file."""
    missing: list[str]
    """Tensors of the network that the file lacks: heads and batch counters, never anything else."""
    unexpected: list[str]
    """Tensors of the file that the network has no place for."""
    lineage: list[dict[str, Any]]
    """Stages of the weights: from the sidecar, or one entry for a foreign file."""
    card: EncoderCard | None = None
    """The sidecar, of a file of ours."""


def load_weights(encoder: nn.Module, source: str | Path, *, name: str, in_channels: int) -> LoadReport:
    """Load pretrained weights into an encoder made by ``build_encoder`` or ``build_clip_encoder``.

    Args:
        encoder: with timm's or torchvision's key names, changed in place; of ``MaxPoolFrames`` its 2D encoder.
        source: "imagenet" for timm's own weights, "kinetics" for torchvision's of a video network (both need
            a network connection), an ``encoder.safetensors`` or the folder that holds it, or a foreign file:
            safetensors or a torch file of plain tensors in any layout of ``UNWRAP`` and ``PREFIXES``. Files
            with Python code in them are never opened.
        name: timm's or torchvision's name of the encoder.
        in_channels: of the encoder; a first convolution of another number is adapted (``adapt_channels``).

    Raises:
        UserError: if the file cannot be read or is of another architecture: if anything but a head is
            missing or a shape differs. The encoder is unchanged then.
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
    spacing_mm: float | None,
    norm: Norm,
    lineage: list[dict[str, Any]],
    image_size: int | tuple[int, int] | None = None,
) -> Path:
    """Write ``encoder.safetensors`` and ``encoder.json``; both appear whole or not at all.

    ``timm.create_model(name, in_chans=in_channels, num_classes=0, checkpoint_path=FILE)`` loads the file,
    unless its norm is "group", which timm cannot build. Of a max-pool model its 2D encoder is written.

    Args:
        encoder: from ``build_encoder`` or ``build_clip_encoder``, or the ``encoder`` of a ``tu-`` U-Net of
            segmentation_models.
        folder_or_file: a folder, made if absent, or a file that ends in ``.safetensors``.
        name, in_channels, network, normalisation, spacing_mm, norm, lineage, image_size: see ``EncoderCard``.

    Returns:
        The path of the safetensors file.
    """
    path = Path(folder_or_file)
    path = path if path.suffix == ".safetensors" else path / "encoder.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame_encoder = getattr(encoder, "frame_encoder", None)
    state = (encoder if frame_encoder is None else frame_encoder).state_dict()
    if hasattr(encoder, "out_channels"):  # of segmentation_models
        features: Any = encoder.model
        names = _timm_names(features, name)
        state = {names[key]: value for key, value in features.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    _write(path, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    card = EncoderCard(
        architecture=name,
        clip=None if frame_encoder is None else "maxpool2d",
        in_channels=in_channels,
        norm=norm,
        network=network,
        normalisation=normalisation,
        spacing_mm=spacing_mm,
        image_size=image_size,
        lineage=lineage,
        sha256=_sha256(path),
    )
    _write(path.with_suffix(".json"), lambda file: file.write_text(card.model_dump_json(indent=2) + "\n"))
    return path


def read_card(path: str | Path) -> EncoderCard | None:
    """Read the sidecar of a safetensors file; None if there is none.

    Raises:
        UserError: if it is not a sidecar of ours, or belongs to other weights.
    """
    path, sidecar = Path(path), Path(path).with_suffix(".json")
    if path.suffix != ".safetensors" or not sidecar.is_file():
        return None
    try:
        card = EncoderCard.model_validate_json(sidecar.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{sidecar} is no sidecar of an encoder ({where}: {first['msg']}); restore it, or move it away "
            f"to load {path.name} as a foreign file."
        ) from None
    if card.sha256 not in (None, _sha256(path)):
        raise UserError(f"{sidecar} describes other weights than {path.name} holds (sha256 differs); export again.")
    return card


def versions() -> dict[str, str]:
    """Versions of the packages that decide a stage's result, for its lineage entry."""
    return {package: version(package) for package in ("fewslice", "torch", "timm")}


def _load(network: nn.Module, names: dict[str, str], source: str | Path, name: str, channels: int) -> LoadReport:
    """Load ``source`` into ``network``, whose key k is called ``names[k]`` by timm."""
    payload: Mapping[str, Any]
    entry: dict[str, Any] = {}
    card, made_as = None, None
    if str(source) in ("imagenet", "kinetics"):
        payload, entry = _kinetics_weights(name) if str(source) == "kinetics" else _hub_weights(name, channels)
    else:
        path = Path(source)
        path = path / "encoder.safetensors" if path.is_dir() else path
        payload, card = _read(path), read_card(path)
        if card is None:
            entry = {"stage": "foreign", "source": path.name, "data": {"name": "unknown", "hash": None}}
            entry |= {"sha256": _sha256(path)}
        made_as = card.architecture if card else payload.get("arch")
    if card and card.architecture.split(".")[0] != name.split(".")[0]:
        raise UserError(f"{source} holds a {card.architecture}, not a {name}; build a {card.architecture} for it.")

    own = {names[key]: value for key, value in network.state_dict().items()}
    if card and card.norm == "group" and any(key.endswith("running_mean") for key in own):
        raise UserError(f"{source} was trained with group normalisation; build the encoder with norm 'group'.")
    layouts = [_adapted(layout, own, name, channels) for layout in _layouts(payload)]
    where, state, outside = max(layouts, key=lambda layout: _fit(layout.state, own), default=_Layout("", {}, []))
    missing = sorted(own.keys() - state.keys())
    lacking = [key for key in missing if not key.endswith("num_batches_tracked") and not key.startswith(HEADS)]
    differing = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if lacking or differing:
        wrong = [f"lacks {len(lacking)} of its {len(own)} tensors ({_few(lacking)})"] if lacking else []
        for key in sorted(differing)[:1]:
            shapes = f"{tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the network"
            wrong += [f"holds {len(differing)} of other shapes ({key}: {shapes})"]
        made = f" (it says it is a {made_as})" if isinstance(made_as, str) else ""
        wrong_file = f"{source} does not hold a {name}{made}: it {' and '.join(wrong)}"
        raise UserError(f"{wrong_file}; pass the architecture of the file.")

    loaded = {key: state.get(names[key], value) for key, value in network.state_dict().items()}
    if broken := [key for key, value in loaded.items() if not value.isfinite().all()]:
        raise UserError(f"{source} holds values that are not finite ({_few(broken)}); get the file again.")
    network.load_state_dict(loaded)
    report = LoadReport(
        source=str(source),
        matched=len(own) - len(missing),
        missing=missing,
        unexpected=sorted(state.keys() - own.keys()) + outside,
        lineage=card.lineage if card else [entry | ({"layout": where} if where else {})],
        card=card,
    )
    log.info(
        "%s into %s%s: %d matched, %d missing%s, %d unexpected%s",
        *(source, name, f", from {where}" if where else "", report.matched),
        *(len(missing), f" ({_few(missing)})" if missing else ""),
        *(len(report.unexpected), f" ({_few(report.unexpected)})" if report.unexpected else ""),
    )
    return report


class _Layout(NamedTuple):
    where: str
    state: State
    """By timm's names."""
    outside: list[str]
    """Keys beside the encoder: projectors, other networks."""


def _layouts(payload: Mapping[str, Any]) -> Iterator[_Layout]:
    for path in UNWRAP:
        inner: Any = payload
        for key in path:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping):
            continue
        tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
        for prefix in PREFIXES:
            state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            if "4.0.conv1.weight" in state:
                state = {_resnet_name(key): value for key, value in state.items()}
            if state:
                outside = sorted(key for key in tensors if not key.startswith(prefix))
                yield _Layout(" > ".join([*path, prefix]).removesuffix(" > "), state, outside)


def _resnet_name(key: str) -> str:
    index, _, rest = key.partition(".")
    return f"{RESNET_CHILDREN.get(index, index)}.{rest}"


def _adapted(layout: _Layout, own: State, name: str, channels: int) -> _Layout:
    """The layout with its first convolutions brought to the network's input channels."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    first = "stem.0" if name in VIDEO_ENCODERS else config.first_conv if config else None
    state = dict(layout.state)
    for module in (first,) if isinstance(first, str) else first or ():
        key = f"{module}.weight"
        if key in own and key in state and state[key].shape[1] != own[key].shape[1]:
            folded = own[key].shape[1] // channels  # pixels per channel in stems that fold space into depth
            state[key] = adapt_channels(state[key].float(), channels, state[key].shape[1] // folded)
    return layout._replace(state=state)


def _fit(state: State, own: State) -> int:
    common = own.keys() & state.keys()
    return len(common) + sum(own[key].shape == state[key].shape for key in common)


def _timm_names(features: nn.Module, name: str) -> dict[str, str]:
    """Names in timm's whole network of the tensors of its ``features_only`` one, which is a part of it.

    Source: ``timm.models._features``, which keeps a name, joins its first two parts by an underscore, or
    wraps the whole network as ``body`` or ``model``.
    """
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=0).state_dict()
    table = {new: key for key in whole for new in (f"model.{key}", f"body.{key}", key.replace(".", "_", 1), key)}
    return {key: table[key] for key in features.state_dict()}


def _hub_weights(name: str, channels: int) -> tuple[State, dict[str, Any]]:
    if name in VIDEO_ENCODERS:
        raise UserError(f"{name} has no ImageNet weights; pass kinetics or a file instead.")
    repository = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "hf_hub_id", None)
    try:
        if repository and not huggingface_hub.try_to_load_from_cache(repository, "model.safetensors"):
            # Without a connection the hub's own client tries again for most of a minute.
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
        encoder = timm.create_model(name, pretrained=True, in_chans=channels, num_classes=0)
    except Exception as error:  # no network, no such weights, a broken download: many types
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the ImageNet weights of {name} could not be fetched ({reason}); pass a file instead, e.g. --init FILE."
        ) from error
    origin = f"{name.split('.')[0]}.{encoder.pretrained_cfg.get('tag', '')}"
    entry = {"stage": "generalist", "source": f"timm {origin}", "data": {"name": "imagenet", "hash": None}}
    return encoder.state_dict(), entry | {"versions": versions()}


def _kinetics_weights(name: str) -> tuple[State, dict[str, Any]]:
    if name not in VIDEO_ENCODERS:
        raise UserError(f"{name} has no Kinetics-400 weights, only {', '.join(VIDEO_ENCODERS)} have; pass imagenet.")
    weights = torchvision.models.get_model_weights(name).KINETICS400_V1
    try:
        if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file():
            urlopen(Request(weights.url, method="HEAD"), timeout=10).close()  # torch.hub would wait without end
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, a broken download: many types
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the Kinetics-400 weights of {name} could not be fetched ({reason}); pass a file instead: "
            f"{weights.url} holds them."
        ) from error
    entry = {"stage": "generalist", "source": f"torchvision {weights}", "data": {"name": "kinetics400", "hash": None}}
    return state, entry | {"versions": versions()}


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a safetensors file or of a torch file without code."""
    if not path.is_file():
        raise UserError(f"there is no encoder file {path}; check the path.")
    neither = f"{path} is neither a safetensors file nor a torch file of tensors; pass one of these"
    with path.open("rb") as file:
        start = file.read(9)
    try:
        # Eight bytes of length, then a JSON header.
        payload = load_file(path) if start[8:9] == b"{" else _read_torch(path)
    except SafetensorError as error:
        raise UserError(f"{neither} ({error}).") from None
    except pickle.UnpicklingError as error:
        if "Unsupported " in str(error) or "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds Python objects beside its tensors and was not opened, as they can run code; "
                "load it where you trust it and save its state dict alone."
            ) from None
        raise UserError(f"{neither}.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{neither}.") from None
    if not isinstance(payload, Mapping):
        raise UserError(
            f"{path} holds a {type(payload).__name__}, not a state dict; save the state dict of the network."
        )
    return payload


def _read_torch(path: Path) -> Any:
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    # Checkpoints of training frameworks keep their settings beside the weights. Their classes are not
    # imported: something empty stands for each. Anything else that is not a tensor stays refused.
    stand_ins: list[Any] = [(_stand_in(name), name) for name in unsafe if name.startswith(SETTINGS)]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _stand_in(name: str) -> type:
    """A class that takes whatever a pickle does to it and does nothing."""

    def new(cls: type, *args: Any) -> Any:
        return {} if name.endswith(("AttributeDict", "defaultdict")) else object.__new__(cls)

    nothing = {"__new__": new, "__init__": lambda self, *args: None, "__setstate__": lambda self, state: None}
    return type(name, (), nothing)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
