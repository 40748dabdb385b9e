"""Class probabilities of slices too large for one forward pass, some rows at a time, by overlapping windows.

One slice on its way: MONAI slides windows along a strip as high as a window and blends them; strips are blended where
they overlap; finished rows are brought onto the grid of the file and handed out, so that the probabilities of no more
than a few strips are in memory.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.preprocessing import is_large

WINDOW = 1024
"""Side of a window in pixels that the network sees; a multiple of its stride."""
OVERLAP = 0.25
"""Share of a window's side that the next one overlaps (MONAI's default)."""
ROWS = 256
"""Rows of the file's grid that are handed out at a time at most, where it differs from that of the network."""

Network = Callable[[Tensor], Tensor]
"""(N, channels, H, W) -> class probabilities (N, classes, H, W), of any size up to `LARGE_SLICE`."""
ReadRows = Callable[[int, int], Tensor]
"""First row and the one after the last -> these rows of a slice as the network sees it, (1, channels, rows,
columns)."""
Rows = tuple[int, Tensor]
"""First row, and class probabilities (1, classes, rows, columns)."""


def seen_size(shape: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) that a network sees at once of a slice of some shape: all of it, of a large one a window."""
    return (min(WINDOW, shape[0]), min(WINDOW, shape[1])) if is_large(shape) else shape


def probabilities_by_row(
    network: Network, read: ReadRows, seen: tuple[int, int], shape: tuple[int, int]
) -> Iterator[Rows]:
    """Class probabilities of a slice on the grid of its file, some rows after the others.

    Args:
        network: segments what it sees at once.
        read: reads rows of the slice as the network sees it.
        seen: (rows, columns) of the slice as the network sees it.
        shape: (rows, columns) of the slice in its file.
    """
    strips = _strips(network, read, seen) if is_large(seen) else iter([(0, network(read(0, seen[0])))])
    return strips if seen == shape else _on_grid(strips, seen, shape)


def _strips(network: Network, read: ReadRows, seen: tuple[int, int]) -> Iterator[Rows]:
    """Rows that are finished after each strip; where two strips overlap, the lower one gains weight row by row."""
    from monai.inferers import sliding_window_inference  # MONAI takes seconds to import

    window = seen_size(seen)
    step = max(1, int(window[0] * (1 - OVERLAP)))
    starts = [*range(0, seen[0] - window[0], step), seen[0] - window[0]]
    above = None
    for start, following in pairwise([*starts, seen[0]]):
        strip = sliding_window_inference(
            read(start, start + window[0]), window, 1, network, overlap=OVERLAP, mode="gaussian"
        )
        assert isinstance(strip, Tensor)
        if above is not None:
            common = above.shape[2]
            weights = (torch.arange(common, device=strip.device) + 0.5) / common
            strip[:, :, :common] = torch.lerp(above, strip[:, :, :common], weights[:, None])
        yield start, strip[:, :, : following - start]
        above = strip[:, :, following - start :].clone()


def _on_grid(blocks: Iterator[Rows], seen: tuple[int, int], shape: tuple[int, int]) -> Iterator[Rows]:
    """Rows on the grid of the file, interpolated as by `F.interpolate` (bilinear, without aligned corners)."""
    # where the rows of the file lie among those that the network sees
    places = ((np.arange(shape[0]) + 0.5) * seen[0] / shape[0] - 0.5).clip(0, seen[0] - 1)
    done = 0
    last = None  # row before a block, which the first rows between them need
    for start, block in blocks:
        if last is not None:
            start, block = start - 1, torch.cat([last, block], dim=2)
        last = block[:, :, -1:].clone()
        end = start + block.shape[2]
        until = shape[0] if end == seen[0] else int(np.searchsorted(places, end - 1))
        for first in range(done, until, ROWS):
            at = torch.from_numpy(places[first : min(first + ROWS, until)]).to(block.device, torch.float64) - start
            low = at.floor().long()
            high = (low + 1).clamp_max(block.shape[2] - 1)
            share = (at - low).to(block.dtype)[:, None]
            rows = torch.lerp(block[:, :, low], block[:, :, high], share)
            size = (len(at), shape[1])
            yield first, F.interpolate(rows, size=size, mode="bilinear", align_corners=False)
        done = until
