"""Presets of pretraining on clips of exams: demo, default and paper (Manna et al. 2022; Ray 2022)."""

from dataclasses import replace

from data.augmentation import Augmentation
from data.sources import MrnetSource
from pretrain.config import Presets, PretrainConfig


def paper() -> PretrainConfig:
    """Manna et al. 2022, BYOLMed3D; with `--encoder resnet18` Ray 2022, BYOLMed2D.

    These papers state no weight decay and no trust coefficient: both stay as in `pretrain.config.paper`. They state no
    decay rate of the average either: it is chosen by the number of steps.
    """
    return PretrainConfig(
        stage="specialist",
        data=MrnetSource(),
        encoder="r3d_18",
        augmentation=Augmentation(bicubic=True, brightness=0.4, contrast=0.4, blur=1.0),
        second_blur=0.1,
        second_solarise=0.2,
        epochs=200,
        batch_size=256,
        micro_batch_size=4,
        lr=0.2,
        warmup_epochs=0,
        tau_schedule="constant",
        predictor_hidden=4096,
    )


def default() -> PretrainConfig:
    """The paper's numbers with smaller images, fewer epochs, and micro-batches large enough for batch norm."""
    return replace(paper(), image_size=112, epochs=50, batch_size=64, micro_batch_size=8, lr=None)


def demo() -> PretrainConfig:
    """`pretrain.config.demo` for exams."""
    return replace(
        paper(),
        encoder="resnet18",
        clip_frames=8,
        image_size=64,
        batch_size=16,
        micro_batch_size=8,
        projector_hidden=512,
        predictor_hidden=512,
        projection=128,
        epochs=None,
        steps=8,
        lr=None,
        tau_schedule="cosine",
        checkpoint_every=20,
        log_every=2,
    )


def video_demo() -> PretrainConfig:
    """`demo` for 3D encoders, of which a step costs several times as much."""
    return replace(demo(), encoder="r3d_18", image_size=32, clip_frames=14, steps=2)


EXAM_PRESETS: Presets = {"demo": demo, "default": default, "paper": paper}
