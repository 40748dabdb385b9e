"""Weight files of other software: safe reading, and where in a file an encoder's tensors are."""

import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import UserError
from core.nearest import did_you_mean
from encoders.digest import refuse_changed
from encoders.names import NO_FILES
from encoders.norm import Norm

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# Of equally complete networks in a file, the moving average (BYOL's target, DINO's teacher, timm's EMA) comes first, as
# the papers' official code exports it; MoCo's exports the network that is trained, not the momentum encoder.
AVERAGED = re.compile(r"(^|[._])(ema|target|teacher|momentum)([._]|$)")
MOMENTUM_ENCODER = re.compile(r"momentum_encoder|encoder_k|key_encoder")
# Names that wrappers of torch (compilation, sharding, activation checkpointing) insert anywhere in a key.
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# lightly saves nn.Sequential(*list(resnet.children())[:-1]), whose parts have numbers for names.
RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
HEADS = ("fc.", "classifier.", "head.")
# Classes of settings that training checkpoints hold besides their weights; empty objects replace their instances.
SETTINGS_CLASSES = (
    *("argparse.Namespace", "collections.defaultdict", "numpy.", "omegaconf.", "pathlib.", "typing."),
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *("lightning.", "lightning_fabric.", "pytorch_lightning."),
)


# Encoders of timm that torchvision has under another name, with the same architecture but other names of tensors.
TORCHVISION = {
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mnasnet_100": "mnasnet1_0",
}
MAX_DEPTH = 8
"""Mappings inside mappings that are searched for tensors."""
MAX_KEY = 500
"""Characters of the longest name of a tensor."""
MAX_HEADER = 2**24
"""Bytes of a safetensors header that are read; that of a ResNet-152 has 100,000."""


class Layout(NamedTuple):
    """An encoder's tensors in a file."""

    where: str
    """Keys that lead to the state dict in the file, then the prefix of the encoder's tensors, joined by " > "."""
    state: State
    """Tensors by timm's names."""
    outside: list[str]
    """Keys of the state dict's other tensors: projectors, decoders, heads, other networks."""
    rivals: list[str]
    """Other places in the file with a network that fits equally well."""
    epsilons: Mapping[str, float] = {}
    """What batch norm adds to a variance before its square root, by timm's name of the variance, in a network of
    torchvision; empty for other files, whose weights are of timm's networks."""


def find_encoder(payload: Mapping[str, Any], name: str, shapes: Shapes) -> Layout:
    """Find the tensors of a network in the content of a file, whatever the prefixes of their keys.

    Every prefix is tried after which names of the network follow ("model.encoder.", "module.", ...). The one with the
    most tensors of the network is taken, a tensor of the right shape counting twice.

    Args:
        payload: content of the file, in which mappings may contain mappings.
        name: timm's or torchvision's name of the network.
        shapes: shapes of the network's tensors, by timm's names.

    Returns:
        The tensors, not checked; none if the file has no key of the network.
    """
    aliases = _aliases(name, shapes)
    networks: list[tuple[tuple[int, int], str, dict[str, str], State]] = []
    for path, tensors in _state_dicts(payload):
        by_prefix: dict[str, dict[str, str]] = {}  # prefix -> timm's name -> key in the file
        for key in (key for key in tensors if len(key) <= MAX_KEY):
            for prefix, rest in _splits(WRAPPERS.sub("", key)):
                if rest in aliases:
                    by_prefix.setdefault(prefix, {})[aliases[rest]] = key
        for prefix, keys in by_prefix.items():
            fit = len(keys) + sum(fits(tensors[key], shapes[ours]) for ours, key in keys.items())
            place = [*path, *filter(None, [prefix])]
            networks.append(((fit, _preference(".".join(place))), " > ".join(place), keys, tensors))
    if not networks:
        return Layout("", {}, [], [])
    rank, where, keys, tensors = max(networks, key=lambda each: each[0])  # of equals the first in the file
    of_torchvision = sum(key.endswith(ours) for ours, key in keys.items()) < len(keys) / 2
    return Layout(
        where,
        {ours: tensors[key] for ours, key in keys.items()},
        sorted(tensors.keys() - keys.values()),
        [other for equal, other, *_ in networks if equal == rank and other != where],
        _torchvision_epsilons(name, shapes) if of_torchvision else {},
    )


def fits(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a file has a shape, possibly with dimensions of length 1 more or less, or as a matrix."""
    sizes = tuple(value.shape)
    long, expected = [n for n in sizes if n != 1], [n for n in shape if n != 1]
    return long == expected or sizes == (*shape[:1], math.prod(shape[1:]))


def _state_dicts(payload: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every mapping in a file that holds tensors, with the keys that lead to it; each once."""
    visited: set[int] = set()
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), payload)]
    for _ in range(MAX_DEPTH):
        inner = []
        for path, mapping in level:
            if id(mapping) in visited:
                continue
            visited.add(id(mapping))
            tensors = {str(k): v for k, v in mapping.items() if isinstance(v, Tensor) and not v.is_nested}
            if tensors:
                yield path, tensors
            inner += [((*path, str(key)), value) for key, value in mapping.items() if isinstance(value, Mapping)]
        level = inner


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """A key cut at each of its dots: the prefix with its dot, and the rest; first without a prefix."""
    yield "", key
    for dot in re.finditer(r"\.", key):
        yield key[: dot.end()], key[dot.end() :]


def _preference(where: str) -> int:
    if MOMENTUM_ENCODER.search(where):
        return 0
    return 2 if AVERAGED.search(where) else 1


def _aliases(name: str, shapes: Shapes) -> dict[str, str]:
    """From names of tensors in files to timm's names: timm's, those in its feature extractors, and torchvision's."""
    sequential = {key: key.partition(".") for key in shapes if name.startswith(("resnet", "resnext", "wide_resnet"))}
    children = {first: number for number, first in RESNET_CHILDREN.items()}
    return {
        **_torchvision_names(name, shapes),
        **{f"{children[first]}.{rest}": key for key, (first, _, rest) in sequential.items() if first in children},
        **{key.replace(".", "_", 1): key for key in shapes},  # timm's features_only joins the first two parts
        **{key: key for key in shapes},
    }


def _torchvision_names(name: str, shapes: Shapes) -> dict[str, str]:
    """From torchvision's names of an encoder's tensors to timm's; empty where both agree or torchvision has none."""
    architecture = name.split(".")[0]
    if architecture.startswith("regnet"):
        return {_regnet_name(key): key for key in shapes}
    if (network := _torchvision_network(architecture)) is None:
        return {}
    # Both libraries register the layers in the same order; the classifier comes last.
    names = list(zip(network.state_dict().items(), shapes.items(), strict=False))
    if all(fits(value, shape) for (_, value), (_, shape) in names[1:]):  # the first has other input channels
        return {theirs: ours for (theirs, _), (ours, _) in names}
    return {}


def with_epsilons_of(network: nn.Module, layout: Layout, names: Mapping[str, str]) -> State:
    """The tensors of a layout for a network, with what the file's network adds to variances, and this one does not, in
    the variances. A tensor k of the network has the name `names[k]` in timm."""
    state = dict(layout.state)
    for path, norm in network.named_modules() if layout.epsilons else ():
        variance = names.get(f"{path}.running_var")
        if isinstance(norm, nn.BatchNorm2d) and variance in layout.epsilons and variance in state:
            state[variance] = state[variance] + (layout.epsilons[variance] - norm.eps)
    return state


def norm_in(keys: Iterable[str], wanted: Iterable[str]) -> Norm | None:
    """ "batch" if the other tensors of a file are the running statistics of a network's norms, else None."""
    norms = [key.removesuffix("weight") for key in wanted if key.endswith(".weight")]
    statistics = tuple(f"{norm}running_mean" for norm in norms)
    return "batch" if any(key.endswith(statistics) for key in keys) else None


def _torchvision_epsilons(name: str, shapes: Shapes) -> dict[str, float]:
    """`Layout.epsilons`. Those of RegNets are timm's."""
    network, names = _torchvision_network(name.split(".")[0]), _torchvision_names(name, shapes)
    norms = [] if network is None else [(key, m) for key, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    return {names[variance]: norm.eps for key, norm in norms if (variance := f"{key}.running_var") in names}


@cache
def _torchvision_network(architecture: str) -> nn.Module | None:
    """torchvision's network of an architecture of timm, without memory for weights; None if it has none."""
    if not architecture.startswith(("vgg", "convnext_", "efficientnet_b", *TORCHVISION)):
        return None
    try:
        with torch.device("meta"):
            network: nn.Module = torchvision.models.get_model(TORCHVISION.get(architecture, architecture), weights=None)
    except ValueError:
        return None
    return network


def _regnet_name(key: str) -> str:
    """torchvision's name of a tensor of a RegNet."""
    key = re.sub(r"^s(\d)\.b(\d+)", lambda m: f"trunk_output.block{m[1]}.block{m[1]}-{int(m[2]) - 1}", key)
    for ours, theirs in (
        ("conv1", "f.a"),
        ("conv2", "f.b"),
        ("conv3", "f.c"),
        ("downsample", "proj"),
        ("stem", "stem"),
    ):
        key = key.replace(f"{ours}.conv.", f"{theirs}.0.").replace(f"{ours}.bn.", f"{theirs}.1.")
    return key.replace(".se.", ".f.se.")


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a safetensors file, or a torch file that holds no code.

    Raises:
        UserError: if there is no such file, it is neither, or it holds Python objects that could run code.
    """
    if not path.is_file():
        model = path.with_name("model.safetensors")
        near = did_you_mean(str(path), NO_FILES)
        todo = f"pass {model}, the encoder of a trained model" if model.is_file() else "check the path" + near
        raise UserError(f"there is no encoder file {path}; {todo}")
    neither = f"{path} is neither a safetensors file nor a torch file of tensors; pass one of these"
    with path.open("rb") as file:
        start = file.read(9)
    try:
        # Eight bytes of length, then a JSON header.
        if start[8:9] == b"{":
            if int.from_bytes(start[:8], "little") > MAX_HEADER:
                raise UserError(f"{neither} (its header has more than {MAX_HEADER} bytes).")
            payload: Any = load_file(path)
            refuse_changed(path, payload)
        elif start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as torch wrote it before version 1.6
            payload = _read_torch(path)
        else:
            raise UserError(f"{neither}.")
    except (UserError, OSError):
        raise
    except SafetensorError as error:
        raise UserError(f"{neither} ({error}).") from None
    except Exception as error:  # a damaged pickle raises errors of almost any type
        if isinstance(error, pickle.UnpicklingError) and re.search("Unsupported |GLOBAL", str(error)):
            raise UserError(
                f"{path} holds Python objects beside its tensors and was not opened, as they can run code; "
                "load it where you trust it and save its state dict alone."
            ) from None
        raise UserError(f"{neither}.") from None
    if not isinstance(payload, Mapping):
        kind = type(payload).__name__
        raise UserError(f"{path} holds a {kind}, not a state dict; save the state dict of the network.")
    return payload


def _read_torch(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        # torch stores tensors without compression: a small file that unpacks to a large one is not torch's
        if unpacked > path.stat().st_size:
            raise UserError(f"{path} would unpack to {unpacked} bytes, more than it has; pass a file saved by torch.")
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    # Classes of SETTINGS_CLASSES are not imported; anything else that is not a tensor is refused.
    stand_ins: list[Any] = [(_stand_in(name), name) for name in unsafe if name.startswith(SETTINGS_CLASSES)]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def _stand_in(name: str) -> type:
    """An empty class that accepts any arguments and any state from a pickle, and ignores them."""

    def new(cls: type, *args: Any) -> Any:
        return {} if name.endswith(("AttributeDict", "defaultdict")) else object.__new__(cls)

    methods = {"__new__": new, "__init__": lambda self, *args: None, "__setstate__": lambda self, state: None}
    return type(name, (), methods)
