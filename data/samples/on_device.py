"""Augmentation on a device, of slices kept in its memory: the draws of `data.augment`, applied to a batch at a time.

On a GPU this needs no worker process and no copy of images to the device; 25,000 slices of 256 x 256 take 3.3 GB.
On a CPU it is slower than `TwoViews`, because batched operations of torch are, and serves to compare the two.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter, Crop, draw_crop, pair_of_seeds
from data.slices import Slices


def can_cache(slices: Slices, augmenters: Sequence[Augmenter]) -> bool:
    """Whether all views are plain bilinear crops; blur, bicubic interpolation and affine maps stay on the CPU."""
    plain = all(a.cuts and not a.augmentation.bicubic and not a.augmentation.blur for a in augmenters)
    return plain and slices.spacing_mm is None


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
    """

    def __init__(self, slices: Slices, augmenters: tuple[Augmenter, Augmenter], device: torch.device) -> None:
        self.augmenters, self.device = augmenters, device
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
        items = [item for item, _ in samples for _ in self.augmenters]
        crops = [
            draw_crop(augmenter.augmentation, self._shapes[item], seed)
            for item, sample_seed in samples
            for augmenter, seed in zip(self.augmenters, pair_of_seeds(sample_seed), strict=True)
        ]
        size = self.augmenters[0].size
        return self._cut(items, crops, size).view(len(samples), 2, 1, size, size)

    def _cut(self, items: Sequence[int], crops: Sequence[Crop], size: int) -> Tensor:
        """(views, size, size): bilinear interpolation within the crop, then gain and offset, as `data.augment.cut`."""
        pairs = list(zip(items, crops, strict=True))
        whole = torch.tensor([(self._starts[i], self._shapes[i][1], *c[:4], c.flip, c.solarise) for i, c in pairs])
        whole = whole.to(self.device, non_blocking=True)
        start, columns, top, left, height, width, flip, solarise = whole.view(-1, 8, 1).unbind(1)
        y0, y1, wy = _between(height, size)
        x0, x1, wx = _between(width, size)
        x0, x1 = (left + torch.where(flip > 0, width - 1 - x, x) for x in (x0, x1))
        above, below = (start + (top + y) * columns for y in (y0, y1))
        corner = {(r, c): self._at(rows, cols) for r, rows in (("y0", above), ("y1", below))
                  for c, cols in (("x0", x0), ("x1", x1))}  # fmt: skip
        upper = torch.lerp(corner["y0", "x0"], corner["y0", "x1"], wx[:, None, :])
        lower = torch.lerp(corner["y1", "x0"], corner["y1", "x1"], wx[:, None, :])
        view = torch.lerp(upper, lower, wy[:, :, None])
        affine = torch.tensor([c.affine(self._statistics[i]) for i, c in pairs], dtype=torch.float32)
        scale, shift = affine.to(self.device, non_blocking=True).view(-1, 2, 1, 1).unbind(1)
        view = view * scale + shift
        return torch.where(solarise.view(-1, 1, 1) > 0, -view.abs(), view)

    def _at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Pixels at the crossings of rows (views, size), as offsets of their first pixel, and columns (views, size)."""
        return self._pixels[rows[:, :, None] + columns[:, None, :]].float()


def _between(length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source pixels before and after each of `size` resized pixels, and the weight of the latter; `length` (views, 1).

    Pixel centres at half integers, edges repeated: OpenCV's INTER_LINEAR.
    """
    centre = torch.arange(size, device=length.device, dtype=torch.float64) + 0.5
    at = (centre * (length / size) - 0.5).clamp_min(0).minimum(length - 1.0)
    before = at.floor().long()
    return before, torch.minimum(before + 1, length - 1), (at - before).float()


def _dtype(slices: Slices) -> torch.dtype:
    small = set(slices.store.table["dtype"].iloc[slices.positions]) <= {"uint8", "int16"}
    return torch.int16 if small else torch.float32
