"""`python -m encoders.export RUN --format timm`: write a trained network in the format of another library."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.files import write_text
from core.messages import show_messages
from core.settings import Settings
from core.terminal import terminal

EXAMPLES = (
    "runs/pretrain-hierarchical --format timm",
    "runs/segment-imagenet-1-seed0 --format onnx --merge-normalisation --out exported",
)
GRAPHS = ("onnx", "torchscript")


@dataclass(frozen=True, kw_only=True)
class Export(Settings):
    """Write the network of a finished run for another library, load it there, and compare the two on a random input."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run of pretrain, segment or classify, or an encoder.safetensors with its card."""
    format: Literal["timm", "torchvision", "smp", "onnx", "torchscript"]
    """timm, torchvision: the encoder; smp (segmentation_models): the segmentation network, or the encoder of another
    run; onnx, torchscript: the whole network as a graph."""
    out: Path | None = None
    """Folder to write, new or empty; default: export-FORMAT in the run folder."""
    merge_normalisation: bool = False
    """Let the graph take intensities in file units: it z-scores each image itself, and the graph of a segmentation
    network also pads images to multiples of 32 pixels. For onnx and torchscript."""
    name: str | None = None
    """Name of the model in its card, README.md; default: encoder and kind of network, without the run's name."""


def run(cfg: Export) -> Path:
    """Export a network and write its model card.

    Returns:
        The folder.

    Raises:
        UserError: if there is no trained network, the format does not suit it, or the exported network differs; nothing
            is written then.
    """
    show_messages()
    if cfg.merge_normalisation and cfg.format not in GRAPHS:
        raise UserError(
            f"--merge-normalisation is for --format {' and '.join(GRAPHS)}: {cfg.format} holds weights alone"
        )
    out = cfg.out or (cfg.run if cfg.run.is_dir() else cfg.run.parent) / f"export-{cfg.format}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty: choose another, or remove it")
    from encoders.export import graph, libraries  # torch is slow to import: mistakes in the paths come first
    from encoders.export.model_card import model_card
    from encoders.export.runs import open_run

    if cfg.format == "onnx":
        graph.require_onnx()
    trained = open_run(cfg.run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        writers: dict[str, Any] = {
            "timm": libraries.export_timm,
            "torchvision": libraries.export_torchvision,
            "smp": libraries.export_smp,
            "onnx": graph.export_onnx,
            "torchscript": graph.export_torchscript,
        }
        settings = {"merge": cfg.merge_normalisation} if cfg.format in GRAPHS else {}
        lines = writers[cfg.format](trained, folder, **settings)
        name = cfg.name or f"{trained.encoder}-{trained.kind}"
        write_text(folder / "README.md", model_card(trained, cfg.format, name, lines, cfg.merge_normalisation))
        if out.exists():
            out.rmdir()
        folder.rename(out)
    files = ", ".join(sorted(file.name for file in out.iterdir()))
    terminal().print(
        f"written and compared with the run's network: {files} in {out} (images: {lines['sizes']})", soft_wrap=True
    )
    return out


def main() -> None:
    """Parse the command line and export."""
    with user_errors():
        run(parse_command(Export, "python -m encoders.export", EXAMPLES))


if __name__ == "__main__":
    main()
