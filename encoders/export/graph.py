"""ONNX and TorchScript: graphs that hold network and weights, with the normalisation of fewslice if wanted."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError
from encoders.export.checks import require_same
from encoders.export.runs import Trained

STRIDE = 32
"""Sides of images of a segmentation network are multiples of this."""
OPTIONAL = ("onnx", "onnxruntime", "onnxscript")
"""Packages of the extra `onnx`."""


class RawImages(nn.Module):
    """A network for intensities in file units: z-score, padding to the stride, the network, and the cut back.

    Each image is z-scored by its own mean and standard deviation, or by those of the data set, and padded as
    `segment.inference` does it: mirrored at its edge pixels, the same amount before and after, or one pixel more after.

    Args:
        network: images (N, channels, H, W) -> logits of the same size, or features if `stride` is None.
        statistics: mean and standard deviation of the data set; None: those of each image.
        stride: sides are padded to multiples of it; None: no padding.
    """

    def __init__(self, network: nn.Module, statistics: tuple[float, float] | None, stride: int | None) -> None:
        super().__init__()
        self.network, self.statistics, self.stride = network, statistics, stride

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) in file units, float32; H and W at least 2."""
        x = self.z_score(images)
        if self.stride is None:
            return self.network(x)
        rows, columns = x.shape[2], x.shape[3]
        top, left = -rows % self.stride // 2, -columns % self.stride // 2
        x = x.index_select(2, self.reflected(rows)).index_select(3, self.reflected(columns))
        return self.network(x)[:, :, top : top + rows, left : left + columns]

    def z_score(self, images: Tensor) -> Tensor:
        """As `data.preprocessing.z_score`: mean and deviation in double precision; a constant image becomes 0."""
        if self.statistics is not None:
            mean, std = self.statistics
            return (images - torch.tensor(mean).float()) * (1 / std if std > 0 else 0.0)
        axes = (1, 2, 3)
        x = images.double()
        mean_of_each = x.mean(dim=axes, keepdim=True)
        std_of_each = (x - mean_of_each).square().mean(dim=axes, keepdim=True).sqrt()
        constant = images.amax(dim=axes, keepdim=True) == images.amin(dim=axes, keepdim=True)
        scale = torch.where(constant, torch.zeros_like(std_of_each), 1 / std_of_each).float()
        return (images - mean_of_each.float()) * scale

    def reflected(self, length: int) -> Tensor:
        """As `data.preprocessing.reflected`: positions of a row that is padded to the stride."""
        assert self.stride is not None
        missing = -length % self.stride
        positions = torch.arange(length + missing) - missing // 2
        period = 2 * (length - 1)
        # the remainder, which the ONNX exporter does not know for a length that is free
        positions = positions - torch.div(positions, period, rounding_mode="floor") * period
        return torch.minimum(positions, period - positions)


def graph_of(trained: Trained, merge: bool) -> nn.Module:
    """The network of a run, with its normalisation before it if `merge`.

    Raises:
        UserError: if the run's normalisation needs more than the image that the graph gets.
    """
    if not merge:
        return trained.network
    if trained.over == "exam":
        raise UserError(
            "--merge-normalisation: this network was trained on clips z-scored over their whole exam, of which a graph "
            "sees a clip alone; leave it out and normalise before"
        )
    return RawImages(trained.network, trained.statistics, STRIDE if trained.kind == "segmenter" else None).eval()


def examples(trained: Trained, merge: bool) -> tuple[Tensor, Tensor]:
    """Random inputs: two samples in the size of the training images, and one of another size."""
    generator = torch.Generator().manual_seed(0)
    side, frames = trained.side, () if trained.frames is None else (trained.frames,)
    odd = 5 if merge and trained.kind == "segmenter" else 0  # such a graph takes images of any size
    other = (side + STRIDE - odd, 2 * STRIDE + side)
    first = torch.randn((2, trained.in_channels, *frames, side, side), generator=generator)
    second = torch.randn((1, trained.in_channels, *frames, *other), generator=generator)
    return (100 * first + 300, 100 * second + 300) if merge else (first, second)


def export_torchscript(trained: Trained, folder: Path, *, merge: bool = False) -> dict[str, str]:
    """Write `model.pt`, traced; returns lines for the model card."""
    graph, file = graph_of(trained, merge), folder / "model.pt"
    first, second = examples(trained, merge)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes: both sizes are checked below
        torch.jit.save(torch.jit.trace(graph, (first,), check_trace=False), file)
        loaded = torch.jit.load(file)
        for images in (first, first[:1]):  # of any number of samples
            require_same(loaded(images), graph(images), "TorchScript")
        sizes = _sizes(lambda: require_same(loaded(second), graph(second), "TorchScript"), trained, merge)
    use = f'import torch\n\nnetwork = torch.jit.load("{file.name}")\noutput = network(images)'
    return {"sizes": sizes, "use": use}


def export_onnx(trained: Trained, folder: Path, *, merge: bool = False) -> dict[str, str]:
    """Write `model.onnx`, checked by onnxruntime; returns lines for the model card.

    Raises:
        UserError: if the packages of the extra `onnx` are not installed, or the network cannot be exported.
    """
    require_onnx()
    import onnxruntime  # type: ignore[import-untyped]

    graph, file = graph_of(trained, merge), folder / "model.onnx"
    first, second = examples(trained, merge)
    axes = [0, *range(2, first.ndim)] if trained.frames is None else [0, 3, 4]
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    names: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["features" if trained.kind == "encoder" else "logits"],
    }
    fixed = False
    with torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                graph, (first,), file, dynamo=True, external_data=False, verbose=False, dynamic_shapes=(free,), **names
            )
        except Exception:  # of many types, from a network whose code reads its sizes
            fixed = True
            _export_fixed(graph, first, file, names, trained.encoder)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

        for images in (first,) if fixed else (first, first[:1]):  # of any number of samples
            require_same(run(images), graph(images), "ONNX")
        sizes = (
            f"exactly {tuple(first.shape)}"
            if fixed
            else _sizes(lambda: require_same(run(second), graph(second), "ONNX"), trained, merge)
        )
    use = (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file.name}")\n'
        'output = session.run(None, {"images": images})[0]  # images: float32'
    )
    return {"sizes": sizes, "use": use}


def _export_fixed(graph: nn.Module, images: Tensor, file: Path, names: dict[str, Any], encoder: str) -> None:
    try:
        torch.onnx.export(graph, (images,), file, dynamo=True, external_data=False, verbose=False, **names)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{encoder} cannot be exported to ONNX ({reason}); pass --format torchscript or another"
        ) from None


def require_onnx() -> None:
    """Raise a UserError that says how to install them unless the packages of the extra `onnx` are there."""
    if missing := [name for name in OPTIONAL if find_spec(name) is None]:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: install the extra with `uv sync --extra onnx`, or "
            "`pip install 'fewslice[onnx]'`"
        )


def _sizes(check: object, trained: Trained, merge: bool) -> str:
    """Which images a graph takes, found by running it on others than those that it was made with."""
    assert callable(check)
    try:
        check()
    except Exception:
        frames = "" if trained.frames is None else f"{trained.frames} frames of "
        return f"{frames}{trained.side} x {trained.side} pixels only"
    if trained.frames is not None:
        return f"{trained.frames} frames of any height and width"
    if trained.kind == "segmenter" and not merge:
        return f"any height and width that are multiples of {STRIDE}"
    return "any height and width"


class _quiet:
    """Silence the exporter's log while a graph is exported; errors are reported by exceptions."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.before)
