"""timm, torchvision and segmentation_models: the weights by each library's names, loaded by it and compared."""

import json
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import UserError
from core.files import write_text
from encoders.channels import adapt_channels
from encoders.decoders import vit_settings
from encoders.export.checks import require_same
from encoders.export.runs import Trained
from encoders.names import is_video
from encoders.weights import timm_names

FILE = "model.safetensors"


def export_timm(trained: Trained, folder: Path) -> dict[str, str]:
    """Write the encoder as a folder that `timm.create_model("local-dir:FOLDER")` and timm's hub take.

    Raises:
        UserError: if timm cannot build the encoder as it was trained.
    """
    require_buildable(trained, "timm")
    if is_video(trained.encoder):
        raise UserError(f"{trained.encoder} is a network of torchvision, not of timm: pass --format torchvision")
    settings = vit_settings(trained.encoder) or {} if trained.decoder == "dpt" else {}
    encoder = timm.create_model(trained.encoder, in_chans=trained.in_channels, num_classes=0, **settings)
    state = encoder_state(trained)
    if lacking := sorted(encoder.state_dict().keys() - state.keys()):
        raise UserError(
            f"the U-Net has no {', '.join(lacking[:3])}, layers of timm's {trained.encoder} after its last feature "
            "map: pass --format smp"
        )
    _save(state, folder / FILE)
    config = {
        "architecture": trained.encoder.split(".")[0],
        "num_classes": 0,
        "num_features": encoder.num_features,
        "model_args": {"in_chans": trained.in_channels, "num_classes": 0, **settings},
        "pretrained_cfg": {
            "tag": "fewslice",
            "custom_load": False,
            "num_classes": 0,
            "input_size": [trained.in_channels, trained.side, trained.side],
            "fixed_input_size": False,
            "mean": [0.0] * trained.in_channels,  # images are z-scored each, see the model card
            "std": [1.0] * trained.in_channels,
            "first_conv": encoder.pretrained_cfg.get("first_conv"),
            "classifier": encoder.pretrained_cfg.get("classifier"),
        },
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    loaded = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    encoder.load_state_dict(load_file(folder / FILE), strict=True)
    images = _images(trained)
    with torch.no_grad():
        own = own_features(trained, images)
        require_same(encoder.eval().forward_features(images), own, "timm")
        require_same(loaded.forward_features(images), own, "timm")
    use = (
        'import timm\n\nencoder = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:USER/NAME\n'
        "features = encoder(images)"
    )
    return {"sizes": "any height and width" + " that are multiples of 16" * bool(settings), "use": use}


def export_torchvision(trained: Trained, folder: Path) -> dict[str, str]:
    """Write the encoder for torchvision's network of the same name, with three equal input channels.

    A grey image repeated to three channels gives what the image gave the encoder of one channel.

    Raises:
        UserError: if torchvision has no such network.
    """
    require_buildable(trained, "torchvision")
    name = trained.encoder.split(".")[0]
    known = name in torchvision.models.list_models() and (
        is_video(name) or name.startswith(("resnet", "resnext", "wide_resnet"))
    )
    if not known:
        raise UserError(f"torchvision has no network with the tensors of {name}: pass --format timm, smp or onnx")
    network: Any = torchvision.models.get_model(name, weights=None)
    network.fc = nn.Identity()
    first = "stem.0.weight" if is_video(name) else "conv1.weight"
    state = encoder_state(trained)
    if trained.in_channels == 1:
        state[first] = adapt_channels(state[first], 3)
    _save(state, folder / FILE)
    try:
        network.load_state_dict(load_file(folder / FILE), strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise UserError(f"torchvision's {name} is another network ({reason}): pass --format timm") from None
    images = _images(trained)
    repeated = images.repeat_interleave(3, dim=1) if trained.in_channels == 1 else images
    with torch.no_grad():
        features = own_features(trained, images)
        pooled = features.mean(dim=tuple(range(2, features.ndim)))
        require_same(network.eval()(repeated), pooled, "torchvision")
    use = (
        "import torch, torchvision\nfrom safetensors.torch import load_file\n\n"
        f'network = torchvision.models.get_model("{name}", weights=None)\nnetwork.fc = torch.nn.Identity()\n'
        f'network.load_state_dict(load_file("{FILE}"))\n'
        "features = network.eval()(images.repeat_interleave(3, dim=1))  # grey images, three times"
    )
    return {"sizes": "any height and width", "use": use}


def export_smp(trained: Trained, folder: Path) -> dict[str, str]:
    """Write a segmentation network as `smp.from_pretrained` takes it, or an encoder for `smp.Unet`.

    Raises:
        UserError: if segmentation_models cannot build the network as it was trained.
    """
    require_buildable(trained, "segmentation_models")
    if trained.kind == "segmenter":
        network: Any = trained.network
        network.save_pretrained(folder)
        loaded = smp.from_pretrained(folder).eval()
        images = _images(trained)
        with torch.no_grad():
            require_same(loaded(images), network(images), "segmentation_models")
        use = 'import segmentation_models_pytorch as smp\n\nnetwork = smp.from_pretrained("FOLDER").eval()\n'
        return {"sizes": "any height and width that are multiples of 32", "use": use + "logits = network(images)"}
    if is_video(trained.encoder):
        raise UserError(f"segmentation_models has no {trained.encoder}: pass --format torchvision")
    settings: dict[str, Any] = {"encoder_weights": None, "in_channels": trained.in_channels}
    unet: Any = smp.Unet(f"tu-{trained.encoder}", **settings).eval()
    names = timm_names(unet.encoder.model, trained.encoder)
    state = encoder_state(trained)
    _save({f"model.{key}": state[name] for key, name in names.items()}, folder / FILE)
    unet.encoder.load_state_dict(load_file(folder / FILE), strict=True)
    images = _images(trained)
    with torch.no_grad():
        own = own_features(trained, images)
        last = unet.encoder(images)[-1]
        if last.shape == own.shape:
            require_same(last, own, "segmentation_models")
        else:  # its features end before layers that the whole encoder has
            require_same(last, _last_map(trained, images), "segmentation_models")
    use = (
        "import segmentation_models_pytorch as smp\nfrom safetensors.torch import load_file\n\n"
        f'unet = smp.Unet("tu-{trained.encoder}", encoder_weights=None, in_channels={trained.in_channels}, classes=4)\n'
        f'unet.encoder.load_state_dict(load_file("{FILE}"))'
    )
    return {"sizes": "any height and width that are multiples of 32", "use": use}


def require_buildable(trained: Trained, library: str) -> None:
    """Raise a UserError if a library would build another network for the same weights."""
    if trained.norm not in ("batch", "frozen"):
        raise UserError(
            f"{library} builds {trained.encoder} with batch norm, and this one has --norm {trained.norm}: pass "
            "--format onnx or torchscript, which hold the network itself"
        )
    if trained.stem != "standard":
        raise UserError(
            f"{library} has no {trained.encoder} with the {trained.stem} stem: pass --format onnx or torchscript, "
            "which hold the network itself"
        )


def encoder_state(trained: Trained) -> dict[str, Tensor]:
    """The encoder's tensors by the names of timm, or of torchvision for video networks."""
    encoder = encoder_of(trained)
    if trained.kind != "segmenter":
        return dict(encoder.state_dict())
    names = timm_names(encoder, trained.encoder)
    return {names[key]: value for key, value in encoder.state_dict().items()}


def encoder_of(trained: Trained) -> nn.Module:
    """The encoder of a run's network, a network of timm or torchvision, or timm's feature extractor of one."""
    network: Any = trained.network if trained.kind == "encoder" else trained.network.encoder
    network = getattr(network, "frame_encoder", network)  # of a classifier of exams, the network of single frames
    return network.model if trained.kind == "segmenter" else network


def own_features(trained: Trained, images: Tensor) -> Tensor:
    """The run's own last feature map, (N, features, rows, columns); tokens (N, tokens, features) of a transformer."""
    encoder: Any = encoder_of(trained)
    if hasattr(encoder, "feature_maps"):
        return encoder.feature_maps(images)
    if trained.kind == "segmenter" and trained.decoder == "unet":
        return encoder(images)[-1]
    return encoder.forward_features(images)


def _last_map(trained: Trained, images: Tensor) -> Tensor:
    """The last map of timm's feature extractor with the run's weights."""
    features: Any = timm.create_model(trained.encoder, in_chans=trained.in_channels, features_only=True).eval()
    state, names = encoder_state(trained), timm_names(features, trained.encoder)
    features.load_state_dict({key: state[name] for key, name in names.items()})
    return features(images)[-1]


def _images(trained: Trained) -> Tensor:
    """Random inputs of the encoder: clips of a video network, else images."""
    frames = (trained.frames or 16,) if is_video(trained.encoder) else ()
    generator = torch.Generator().manual_seed(0)
    side = -(-trained.side // 32) * 32
    return torch.randn((2, trained.in_channels, *frames, side, side), generator=generator)


def _save(state: dict[str, Tensor], file: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, file, metadata={"format": "pt"})
