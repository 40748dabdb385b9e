"""BYOL with a dense term: cells of the feature map that show the same place predict each other, too."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from encoders.norm import Norm
from engine.ema import Decay, update_average
from pretrain.methods.byol import Byol
from pretrain.methods.heads import mlp

STRIDE = 8
"""Stride of the feature map whose cells are compared."""
WIDEST = 512
"""Largest hidden width of the heads of cells, of which a view has dozens: at the width of the heads of views
a step takes four times as long (64 pixels, one CPU core)."""
NEAR = 0.7
"""Largest distance of the centres of two cells that match, in diagonals of the larger cell (Xie et al. 2021, section
3.1)."""


class DenseByol(Byol):
    """`Byol`, and the same loss over cells of stride 8 in the overlap of both views' crops.

    Args:
        encoder: a 2D network of `build_encoder`.
        dense_weight: weight of the dense term.
        projector_hidden, predictor_hidden, outputs, norm: of the heads of the whole view and of the cells, which are at
            most `WIDEST` wide.
        features, decay: see `Byol`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        *,
        dense_weight: float,
        projector_hidden: int,
        predictor_hidden: int,
        outputs: int,
        norm: Norm = "batch",
        decay: Decay | None = None,
    ) -> None:
        super().__init__(
            encoder,
            features,
            projector_hidden=projector_hidden,
            predictor_hidden=predictor_hidden,
            outputs=outputs,
            norm=norm,
            decay=decay,
        )
        self.dense_weight = dense_weight
        self.resolved |= {"dense_weight": dense_weight}
        self.cell_projector = mlp(_channels(encoder), min(projector_hidden, WIDEST), outputs, norm=norm, of_cells=True)
        self.cell_predictor = mlp(outputs, min(predictor_hidden, WIDEST), outputs, norm=norm, of_cells=True)
        self.target_cell_projector = copy.deepcopy(self.cell_projector).requires_grad_(False)

    def forward(self, samples: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """BYOL's loss plus the weighted dense term, each summed over both directions and averaged over samples.

        Args:
            samples: views (N, 2, channels, H, W) and boxes (N, 2, 5) of `data.samples.boxes`.
        """
        views, boxes = samples
        online, targets = self.networks(views)
        (*_, first), (*_, second) = online
        matches = matching_cells(boxes, (first.shape[-2], first.shape[-1]))
        there = dense_loss(first, targets[1][-1], matches)
        back = dense_loss(second, targets[0][-1], matches.transpose(1, 2))
        return self.view_loss(online, targets) + self.dense_weight * (there + back)

    def _online(self, view: Tensor) -> tuple[Tensor, ...]:
        features, cells = features_and_cells(self.encoder, view)
        projection = self.projector(features)
        return projection, self.predictor(projection), self.cell_predictor(self.cell_projector(cells))

    @torch.no_grad()
    def _targets(self, view: Tensor) -> tuple[Tensor, ...]:
        features, cells = features_and_cells(self.target_encoder, view)
        return self.target_projector(features), self.target_cell_projector(cells)

    def move_target(self, tau: float) -> None:
        """Move the target towards the online network, the cells' projector included."""
        super().move_target(tau)
        update_average(self.target_cell_projector.parameters(), self.cell_projector.parameters(), tau)


def features_and_cells(encoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """An encoder's features (N, features) and its feature map of stride 8, (N, channels, h, w), in one pass."""
    last, maps = encoder.forward_intermediates(images)
    side = -(-images.shape[-1] // STRIDE)
    return encoder.forward_head(last), next(cells for cells in maps if cells.shape[-1] <= side)


def _channels(encoder: Any) -> int:
    """Channels of the feature map of stride 8."""
    found = [each["num_chs"] for each in getattr(encoder, "feature_info", ()) if each["reduction"] == STRIDE]
    if not found or not hasattr(encoder, "forward_intermediates"):
        raise UserError(f"--dense needs an encoder with a feature map of stride {STRIDE}, such as resnet18")
    return found[-1]


def matching_cells(boxes: Tensor, cells: tuple[int, int]) -> Tensor:
    """Which cells of two views show the same place: centres within 0.7 diagonals of the larger cell.

    Args:
        boxes: (N, 2, 5) of `data.samples.boxes`.
        cells: rows and columns of the feature map.

    Returns:
        (N, rows * columns, rows * columns) bool: cells of the first view by cells of the second.

    Source: Xie et al. 2021, Propagate yourself (PixPro), section 3.1.
    """
    rows, columns = cells
    row = ((torch.arange(rows, device=boxes.device) + 0.5) / rows).repeat_interleave(columns)
    column = ((torch.arange(columns, device=boxes.device) + 0.5) / columns).repeat(rows)
    top, left, height, width, flipped = boxes[..., None, :].unbind(-1)  # each (N, 2, 1)
    column = torch.where(flipped > 0, 1 - column, column.expand(*boxes.shape[:2], -1))
    centres = torch.stack([top + row * height, left + column * width], dim=-1)  # (N, 2, cells, 2)
    diagonals = torch.hypot(height / rows, width / columns).amax(dim=1)  # of the larger cell, (N, 1)
    return torch.cdist(centres[:, 0], centres[:, 1]) <= NEAR * diagonals[..., None]


def dense_loss(predictions: Tensor, targets: Tensor, matches: Tensor) -> Tensor:
    """Mean of 2 - 2 cos over the matching cells of each sample, then over samples; samples without a match count 0.

    Args:
        predictions: (N, D, h, w) of one view.
        targets: (N, D, h, w) of the other.
        matches: (N, h * w, h * w) bool.
    """
    first, second = (F.normalize(cells.flatten(2).float(), dim=1) for cells in (predictions, targets))
    with torch.autocast(first.device.type, enabled=False):
        cosines = first.transpose(1, 2) @ second
    distances = ((2 - 2 * cosines) * matches).sum(dim=(1, 2))
    return (distances / matches.sum(dim=(1, 2)).clamp_min(1)).mean()
