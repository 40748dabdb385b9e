"""Weight files of other software: safe reading, and the layouts in which they store an encoder."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.errors import UserError

State = dict[str, Tensor]

# Where foreign files keep their state dict, and the prefix of the encoder's names in it. All pairs are tried; the one
# that fits most tensors is taken, and of equals the first: EMA networks come first, as the papers' official code
# exports the target network.
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
# lightly saves nn.Sequential(*list(resnet.children())[:-1]), whose parts have numbers for names.
RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
HEADS = ("fc.", "classifier.", "head.")
# Classes of settings that training checkpoints hold besides their weights; empty objects replace their instances.
SETTINGS_CLASSES = (
    *("argparse.Namespace", "collections.defaultdict", "numpy.", "omegaconf.", "pathlib.", "typing."),
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *("lightning.", "lightning_fabric.", "pytorch_lightning."),
)


class Layout(NamedTuple):
    """One way to read a file's content as an encoder's tensors."""

    where: str
    """Keys that lead to the state dict in the file, then the prefix of the encoder's tensors, joined by " > "."""
    state: State
    """Tensors by timm's names."""
    outside: list[str]
    """Keys of tensors that are not the encoder's: projectors, other networks."""


def layouts(payload: Mapping[str, Any]) -> Iterator[Layout]:
    """Every way to read the content of a file as an encoder's tensors."""
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
                parts = {key: key.partition(".") for key in state}
                state = {f"{RESNET_CHILDREN.get(n, n)}.{rest}": state[key] for key, (n, _, rest) in parts.items()}
            if state:
                outside = sorted(key for key in tensors if not key.startswith(prefix))
                yield Layout(" > ".join([*path, prefix]).removesuffix(" > "), state, outside)


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a safetensors file, or a torch file that holds no code.

    Raises:
        UserError: if there is no such file, it is neither, or it holds Python objects that could run code.
    """
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
        kind = type(payload).__name__
        raise UserError(f"{path} holds a {kind}, not a state dict; save the state dict of the network.")
    return payload


def _read_torch(path: Path) -> Any:
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
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
