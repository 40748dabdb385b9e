"""Two views of each image together with the places that they show, for methods that compare places."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.samples.slices import TwoViews


class TwoViewsWithBoxes(TwoViews):
    """`TwoViews` that are resized crops, and the box of each in its image; indexed by `engine.sampler.Sample`."""

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(2, channels, size, size) and (2, 5), see `__getitems__`."""
        views, boxes = self.__getitems__([sample])
        return views[0], boxes[0]

    def __getitems__(self, samples: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Views (samples, 2, channels, size, size) float32, and boxes (samples, 2, 5) float32: top, left, height and
        width in pixels of the image, and 1 if the view is flipped left-right."""
        views, crops = self.fill(samples)
        boxes = [[crop.top, crop.left, crop.height, crop.width, crop.flip] for crop in crops if crop is not None]
        return views, torch.tensor(boxes, dtype=torch.float32).view(len(samples), 2, 5)
