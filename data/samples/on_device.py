"""Augmentation on a device, of slices kept in its memory: the draws of `data.augment`, applied to a batch at a time.

On a GPU this needs no worker process and no copy of images to the device; 25,000 slices of 256 x 256 take 3.3 GB.
On a CPU it is slower than `TwoViews`, because batched operations of torch are, and serves to compare the two.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter, draw_crop
from data.crops import Crop
from data.intensities import KERNEL, POWERS
from data.preprocessing import SHRINK, reflected
from data.samples.slices import Pairing
from data.slices import Slices


def can_cache(slices: Slices, augmenters: Sequence[Augmenter]) -> bool:
    """Whether the device can make all views; noise, bicubic interpolation, affine maps and several channels stay on
    the CPU."""
    on_device = all(a.cuts and not a.augmentation.bicubic and not a.augmentation.noise for a in augmenters)
    return on_device and slices.spacing_mm is None and slices.channels == 1


def bytes_needed(slices: Slices) -> int:
    """Memory that the slices take on a device, bytes."""
    table = slices.store.table.iloc[slices.positions]
    return int((table["rows"] * table["columns"]).sum()) * _dtype(slices).itemsize


class ViewsOnDevice(TorchDataset[Tensor]):
    """`TwoViews` of slices in a device's memory; the same draws, so the same views except for rounding.

    Args:
        slices: slices, whose pixels are copied to the device once.
        augmenters: of the first and the second view; `can_cache` must be true of them.
        device: device that holds the pixels and makes the views.
        pairing: what the views of a sample show.
    """

    def __init__(
        self,
        slices: Slices,
        augmenters: tuple[Augmenter, Augmenter],
        device: torch.device,
        pairing: Pairing | None = None,
    ) -> None:
        self.augmenters, self.device, self.pairing = augmenters, device, pairing or Pairing()
        images = [slices.raw(k) for k in range(len(slices))]
        self._shapes = [image.shape for image, _ in images]
        self._statistics = [statistics for _, statistics in images]
        ends = np.cumsum([rows * columns for rows, columns in self._shapes])
        self._starts = [0, *ends[:-1].tolist()]
        dtype = _dtype(slices)
        self._pixels = torch.empty(int(ends[-1]), dtype=dtype, device=device)
        for start, (image, _) in zip(self._starts, images, strict=True):
            flat = np.array(image.ravel(), "int16" if dtype == torch.int16 else "float32")  # the store is read-only
            self._pixels[start : start + flat.size] = torch.from_numpy(flat).to(device)

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(2, 1, size, size) float32, on the device."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> Tensor:
        """(samples, 2, 1, size, size) float32, on the device."""
        size = self.augmenters[0].size
        drawn = [
            _View(item, draw_crop(augmenter.augmentation, self._shapes[item], seed, centres), augmenter)
            for sample in samples
            for augmenter, (item, seed, centres) in zip(self.augmenters, self.pairing.of(sample), strict=True)
        ]
        views = torch.empty(len(drawn), size, size, device=self.device)
        for averaged in (False, True):  # apart, as averages are made of more pixels
            if chosen := [k for k, view in enumerate(drawn) if any(view.averaged(size)) == averaged]:
                views[chosen] = self._cut([drawn[k] for k in chosen], size)
        if biased := [k for k, view in enumerate(drawn) if view.crop.bias]:
            views[biased] = _bias_field(views[biased], [drawn[k].crop.bias for k in biased])
        if raised := [k for k, view in enumerate(drawn) if view.crop.power != 1]:
            views[raised] = _gamma(views[raised], [drawn[k].crop.power for k in raised])
        if blurred := [k for k, view in enumerate(drawn) if view.crop.sigma]:
            views[blurred] = _blur(views[blurred], [drawn[k].crop.sigma for k in blurred])
        if inverted := [k for k, view in enumerate(drawn) if view.crop.solarise]:
            views[inverted] = -views[inverted].abs()
        return views.view(len(samples), 2, 1, size, size)

    def _cut(self, drawn: Sequence["_View"], size: int) -> Tensor:
        """(views, size, size): weighted means of pixels within each crop, then gain and offset, as `data.crops.cut`."""
        rows = [
            (self._starts[view.item], self._shapes[view.item][1], *view.crop[:4], view.crop.flip, *view.averaged(size))
            for view in drawn
        ]
        numbers = torch.tensor(rows).to(self.device, non_blocking=True)
        start, columns, top, left, height, width, flip, tall, wide = numbers.view(-1, 9, 1).unbind(1)
        most = max(view.taps(size) for view in drawn)
        y, row_weights = _taps(height, size, tall > 0, most)
        x, column_weights = _taps(width, size, wide > 0, most)
        y = start[..., None] + (top[..., None] + y) * columns[..., None]
        x = left[..., None] + torch.where(flip[..., None] > 0, width[..., None] - 1 - x, x)
        views = torch.zeros(len(drawn), size, size, device=self.device)
        for i in range(most):
            line = torch.zeros_like(views)
            for j in range(most):
                line.addcmul_(self._at(y[..., i], x[..., j]), column_weights[:, None, :, j])
            views.addcmul_(line, row_weights[:, :, None, i])
        affine = [view.crop.affine(self._statistics[view.item]) for view in drawn]
        scale_and_offset = torch.tensor(affine, dtype=torch.float32).to(self.device, non_blocking=True)
        scale, offset = scale_and_offset.view(-1, 2, 1, 1).unbind(1)
        return views * scale + offset

    def _at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Pixels at the crossings of rows (views, size), as offsets of their first pixel, and columns (views, size)."""
        return self._pixels[rows[:, :, None] + columns[:, None, :]].float()


class _View(NamedTuple):
    """A view to be made."""

    item: int
    """Number of the slice."""
    crop: Crop
    augmenter: Augmenter

    def averaged(self, size: int) -> tuple[bool, bool]:
        """Whether rows and columns are averaged by area, as in `data.preprocessing.resize`."""
        antialias = self.augmenter.augmentation.antialias
        return antialias and self.crop.height > SHRINK * size, antialias and self.crop.width > SHRINK * size

    def taps(self, size: int) -> int:
        """Largest number of rows or columns of the slice that one of the view is made of."""
        sides = zip((self.crop.height, self.crop.width), self.averaged(size), strict=True)
        return max(1 + math.ceil(side / size) if averaged else 2 for side, averaged in sides)


def _taps(length: Tensor, size: int, averaged: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Source pixels of each of `size` resized pixels, and their weights: both (views, size, most).

    Bilinear interpolation with pixel centres at half integers and edges repeated, OpenCV's INTER_LINEAR; where
    `averaged`, the mean over what the resized pixel covers, INTER_AREA. `length` and `averaged` are (views, 1).
    """
    scale = (length / size).double()[..., None]
    begin = torch.arange(size, device=length.device, dtype=torch.float64)[:, None] * scale
    centre = (begin + scale / 2 - 0.5).clamp_min(0).minimum(length[..., None] - 1.0)
    first = torch.where(averaged[..., None], begin, centre).floor()
    pixel = first + torch.arange(most, device=length.device)
    overlap = (torch.minimum(begin + scale, pixel + 1) - torch.maximum(begin, pixel)).clamp_min(0) / scale
    weights = torch.where(averaged[..., None], overlap, (1 - (pixel - centre).abs()).clamp_min(0))
    return pixel.long().minimum(length[..., None] - 1), weights.float()


def _gamma(views: Tensor, powers: Sequence[float]) -> Tensor:
    """`data.intensities.gamma` of each view (views, size, size)."""
    low, high = views.amin((1, 2), keepdim=True), views.amax((1, 2), keepdim=True)
    power = torch.tensor(powers, device=views.device).view(-1, 1, 1)
    raised = ((views - low) / (high - low)) ** power
    return torch.where(high > low, _with_moments(raised, views), views)


def _bias_field(views: Tensor, coefficients: Sequence[Sequence[float]]) -> Tensor:
    """`data.intensities.bias_field` of each view (views, size, size)."""
    at = torch.linspace(-1, 1, views.shape[-1], device=views.device)
    exponent = torch.zeros_like(views)
    for (i, j), factor in zip(POWERS, torch.tensor(coefficients).to(views.device).T, strict=True):
        exponent.addcmul_(factor.view(-1, 1, 1), torch.outer(at**i, at**j))
    return _with_moments((views - views.amin((1, 2), keepdim=True)) * exponent.exp(), views)


def _blur(views: Tensor, sigmas: Sequence[float]) -> Tensor:
    """`data.intensities.blur` of each view (views, size, size). No convolution: a GPU may round those to TF32."""
    half, size = KERNEL // 2, views.shape[-1]
    at = torch.arange(-half, half + 1, dtype=torch.float64)
    kernels = torch.exp(-((at / torch.tensor(sigmas, dtype=torch.float64)[:, None]) ** 2) / 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).float().to(views.device)
    padding = torch.from_numpy(reflected(size, half, half)).to(views.device)
    for axis in (1, 2):
        padded, views = views.index_select(axis, padding), torch.zeros_like(views)
        for k in range(KERNEL):
            views.addcmul_(padded.narrow(axis, k, size), kernels[:, k, None, None])
    return views


def _with_moments(changed: Tensor, views: Tensor) -> Tensor:
    """The changed views with the mean and standard deviation that they had."""
    (sd, mean), (spread, level) = (torch.std_mean(v, (1, 2), correction=0, keepdim=True) for v in (changed, views))
    return torch.where(sd > 0, (changed - mean) * (spread / sd) + level, views)


def _dtype(slices: Slices) -> torch.dtype:
    small = set(slices.store.table["dtype"].iloc[slices.positions]) <= {"uint8", "int16"}
    return torch.int16 if small else torch.float32
