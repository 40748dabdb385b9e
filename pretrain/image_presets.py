"""Presets of pretraining on images with classes: demo, default and thesis (Ray 2022, chapter 3)."""

from dataclasses import replace

from data.augmentation import Augmentation
from data.sources import ImagesSource
from pretrain.config import MethodName, Presets, PretrainConfig

METHOD: MethodName = "simclr"
COLOURS = Augmentation(brightness=0.8, contrast=0.4, colour=0.8, saturation=0.4, hue=0.1, grey=0.2)
"""Views of Chen et al. 2020 (SimCLR), appendix B.9: crops of 8 to 100 % of the area, flips, colour jitter of strength
0.5, grey with probability 0.2, no blur. Their brightness, a factor of 0.6 to 1.4, comes to about 0.8 standard
deviations of a z-scored photograph."""


def thesis() -> PretrainConfig:
    """The experiment of Ray 2022, section 3.3: SimCLR for 200 epochs with Adam and learning rate 0.001.

    The thesis states neither encoder, batch, projector, schedule nor augmentation: the ResNet-18 of its supervised
    result, with the stem for CIFAR, and the settings of Chen et al. 2020 for CIFAR-10 take their place.
    """
    return PretrainConfig(
        stage="specialist",
        method=METHOD,
        data=ImagesSource(),
        image_size=32,
        augmentation=COLOURS,
        encoder="resnet18",
        stem="small",
        epochs=200,
        batch_size=256,
        optimiser="adam",
        lr=1e-3,
        warmup_epochs=0,
        weight_decay=0.0,
    )


def default() -> PretrainConfig:
    """The thesis' settings with 100 epochs and a warm-up."""
    return replace(thesis(), epochs=100, warmup_epochs=5, weight_decay=1e-4)


def demo() -> PretrainConfig:
    """Digits in minutes on two CPU cores: their 8 x 8 pixels, enlarged to 32, lose nothing in the standard stem."""
    return replace(
        thesis(),
        augmentation=Augmentation(area=(0.3, 1.0), flip=0.0),  # a mirrored digit is another sign
        encoder="resnet10t",
        stem="standard",
        projector_hidden=512,  # small ones for barlow as well
        projection=128,
        epochs=None,
        steps=100,
        batch_size=128,
        checkpoint_every=0,
        log_every=10,
    )


IMAGE_PRESETS: Presets = {"demo": demo, "default": default, "thesis": thesis}
