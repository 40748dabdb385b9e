"""Two cheap metrics of a batch's projections that show whether the representation collapses."""

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 0.1
"""`projection_std` below which a run warns of collapse."""


@torch.no_grad()
def collapse_metrics(projections: Tensor) -> dict[str, float]:
    """How spread out the projections are.

    Args:
        projections: (N, D), N at least 2.

    Returns:
        `projection_std`: mean over dimensions of the standard deviation of the L2-normalised projections, as a
        share of the value when spread evenly, 1 / sqrt(D): about 1 when spread, 0 when collapsed
        (Chen & He 2021, SimSiam, section 4.1).
        `effective_rank`: exponential of the entropy of the normalised singular values of the centred
        projections, between 1 and min(N - 1, D) (Roy & Vetterli 2007).
    """
    unit = F.normalize(projections.float(), dim=1)
    spread = unit.std(dim=0).mean() * unit.shape[1] ** 0.5
    singular = torch.linalg.svdvals(unit - unit.mean(dim=0))
    share = singular / singular.sum().clamp_min(1e-12)
    rank = torch.exp(-(share * share.clamp_min(1e-12).log()).sum())
    return {"projection_std": float(spread), "effective_rank": float(rank)}
