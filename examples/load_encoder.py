"""Load a pretrained encoder into plain timm and into a U-Net of segmentation_models_pytorch, without fewslice.

uv run python examples/load_encoder.py [runs/pretrain-hierarchical/encoder.safetensors]

The file is that of a finished `python -m pretrain`, with its card encoder.json beside it.
"""

import json
import sys
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch


def load_encoder(file: Path) -> None:
    """Load `encoder.safetensors` twice and print the shapes of the outputs."""
    card = json.loads(file.with_suffix(".json").read_text())
    name, channels = card["architecture"], card["in_channels"]
    image = torch.randn(1, channels, 96, 96)  # a z-scored slice: mean 0, standard deviation 1

    encoder = timm.create_model(name, in_chans=channels, num_classes=0, checkpoint_path=str(file)).eval()
    print(f"{name} in timm: {tuple(encoder(image).shape)} features")

    unet = smp.create_model("unet", encoder_name=f"tu-{name}", encoder_weights=None, in_channels=channels, classes=4)
    timm.models.load_checkpoint(unet.encoder.model, str(file), strict=True)
    print(f"{name} in a U-Net: {tuple(unet.eval()(image).shape)} logits")


if __name__ == "__main__":
    load_encoder(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/pretrain-hierarchical/encoder.safetensors"))
