"""The comparison of an exported network with the run's own."""

from torch import Tensor

from core.errors import UserError

TOLERANCE = 1e-3
"""Largest difference of an exported network's output, relative to the largest magnitude of the run's own output. Other
software adds numbers in another order; a wrong tensor changes far more."""


def require_same(exported: Tensor, own: Tensor, what: str) -> None:
    """Raise a UserError unless two outputs for one random input are the same to within `TOLERANCE`."""
    if exported.shape != own.shape:
        raise UserError(
            f"the {what} network gives {tuple(exported.shape)} and the run's {tuple(own.shape)}: not exported"
        )
    difference = float((exported - own).abs().max() / own.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:  # NaN is wrong too
        raise UserError(
            f"the {what} network's output differs from that of the run by {difference:.1%} on a random input: not "
            "exported; please report it with the name of the encoder"
        )
