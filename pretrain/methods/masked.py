"""Masked image modelling of the whole U-Net: fill in the hidden patches of an image (de Mooij et al. 2024).

The only method whose decoder travels: fine-tuning then starts with everything but the output layer.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import Dataset as TorchDataset

from encoders.weights import save_unet
from pretrain.methods.method import Exported, Method

IMAGES_FOR_STATISTICS = 512
"""Images from which the running statistics of batch norms are estimated again before an export."""


class Masked(Method):
    """A U-Net that sees an image with hidden patches, the same in all of its channels, and fills them in.

    Args:
        unet: from `encoders.build.build_unet` with a class for each channel of the images.
        patch: side of a patch in pixels.
        share: share of the patches that are hidden, in (0, 1).
    """

    views: ClassVar[Literal[1, 2]] = 1
    on_clips: ClassVar[bool] = False
    trains: ClassVar[Literal["encoder", "unet"]] = "unet"
    metrics: ClassVar[tuple[str, ...]] = ()  # no projections that could collapse, no moving average

    def __init__(self, unet: nn.Module, *, patch: int, share: float = 0.75) -> None:
        super().__init__(unet)
        self.patch, self.share = patch, share
        self.resolved = {"mask_share": share, "mask_patch": patch}

    @property
    def unet(self) -> Any:
        """The U-Net, encoder, decoder and output layer: all of it is trained."""
        return self.encoder

    def samples(self, views: TorchDataset[Tensor]) -> TorchDataset[Tensor]:
        """The images with their masks."""
        return MaskedImages(views, self.patch, self.share)

    def forward(self, samples: Tensor) -> Tensor:
        """Mean squared error of the hidden pixels.

        Args:
            samples: (N, channels + 1, H, W), z-scored images and their masks, see `MaskedImages`.
        """
        images, masks = samples[:, :-1], samples[:, -1:]
        # 0 is the mean of a z-scored slice, so that a hidden patch says nothing and does not stand out by its level.
        output = self.networks(_paired(images * (1 - masks)))[: len(images)]
        return reconstruction_loss(output, images, masks)

    def networks(self, samples: Tensor) -> Tensor:
        """The U-Net's output, (N, channels, H, W)."""
        return self.unet(samples)

    def encoder_to_export(self, network: Exported) -> nn.Module:
        """The U-Net's encoder."""
        return self.unet.encoder

    def prepare_export(self, batches: Iterator[Tensor]) -> None:
        """Estimate the running statistics of batch norms again, on images without masks.

        In training they saw images that were mostly zeros, which is not what fine-tuning and the probe show them. The
        new ones are the mean over batches, not a moving average. Training does not read them, so it goes on unchanged.
        Frozen batch norms keep theirs, as these are part of what was trained.

        Args:
            batches: images (n, channels, H, W) in the batches of training.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        if not norms:
            return
        dtype = next(self.parameters()).dtype
        with torch.random.fork_rng(devices=[]):  # dropout must not change the random numbers of the training to come
            update_bn((_paired(images).to(dtype) for images in _alike(batches)), self.unet)

    def save(self, folder: Path, network: Exported, **facts: Any) -> None:
        """Write `unet.safetensors`, encoder and decoder, beside `encoder.safetensors`, each with its card."""
        super().save(folder, network, **facts)
        save_unet(self.unet, folder, network=network, **facts)


def _paired(images: Tensor) -> Tensor:
    """The images; a single one twice, as one has no batch statistics where its deepest feature map is one pixel."""
    return images if len(images) > 1 else images.repeat(2, 1, 1, 1)


def _alike(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Batches of `IMAGES_FOR_STATISTICS` images in all, without those smaller than the first: all weigh the same."""
    first = next(batches)
    yield first
    left = math.ceil(IMAGES_FOR_STATISTICS / len(first)) - 1
    yield from islice((images for images in batches if len(images) == len(first)), left)


class MaskedImages(TorchDataset[Tensor]):
    """Images with a mask each, drawn from the sample's own seed: the same on any device and in any micro-batch.

    Args:
        images: data set of single views (channels, size, size), indexed by `engine.sampler.Sample`.
        patch: side of a patch in pixels.
        share: share of the patches that are hidden.
    """

    def __init__(self, images: Any, patch: int, share: float) -> None:
        self.images, self.patch, self.share = images, patch, share

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(channels + 1, size, size) float32."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Tensor:
        """(samples, channels + 1, size, size) float32: the image, and 1 where it is hidden, else 0."""
        images = self.images.__getitems__(samples)
        masks = np.stack([draw_mask(images.shape[-1], self.patch, self.share, seed) for _, seed in samples])
        return torch.cat([images, torch.from_numpy(masks)[:, None].to(images.device)], dim=1)


def draw_mask(size: int, patch: int, share: float, seed: int) -> np.ndarray:
    """Draw the hidden patches of one image.

    The patches form a grid from the top left corner; the last row and column are cut where `patch` does not divide
    `size`.

    Args:
        size: side of the image in pixels.
        patch: side of a patch in pixels, smaller than `size`.
        share: share of the patches to hide, in (0, 1); at least one patch is hidden, and one is not.
        seed: random seed.

    Returns:
        (size, size) float32, 1 where hidden, else 0.
    """
    side = math.ceil(size / patch)
    hidden = min(max(round(share * side**2), 1), side**2 - 1)
    grid = np.random.default_rng(seed).permutation(side**2).reshape(side, side) < hidden
    return grid.repeat(patch, 0).repeat(patch, 1)[:size, :size].astype(np.float32)


def reconstruction_loss(output: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """Squared error averaged over each image's hidden pixels and channels, then over the images.

    Visible pixels have no weight and so no gradient. Averaged within each image first, so that micro-batches sum up to
    the whole batch even where cut patches leave images with unequal numbers of hidden pixels. Computed in fp32 whatever
    the precision of the network.

    Args:
        output, images: (N, channels, H, W).
        masks: (N, 1, H, W), 1 where hidden, else 0.
    """
    errors = (output.float() - images.float()).square() * masks
    return (errors.sum(dim=(1, 2, 3)) / (images.shape[1] * masks.sum(dim=(1, 2, 3)))).mean()
