"""Projectors and predictors."""

from itertools import pairwise

from torch import nn

from encoders.norm import Norm, replace_norm


def mlp(
    inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm: Norm = "batch", of_cells: bool = False
) -> nn.Sequential:
    """Projector or predictor: linear layers with batch norm and ReLU between them.

    Initialised as in Kalapos and Gyires-Toth 2022.

    Args:
        inputs, hidden, outputs: widths.
        layers: linear layers, 2 or more.
        norm: see `replace_norm`.
        of_cells: for each cell of a map, (N, inputs, h, w) -> (N, outputs, h, w), in place of (N, inputs) -> (N,
            outputs).
    """
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    linear = [_linear(before, after, of_cells) for before, after in pairwise(widths)]
    for layer in linear:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    batch_norm = nn.BatchNorm2d if of_cells else nn.BatchNorm1d
    between = [[layer, batch_norm(hidden), nn.ReLU(inplace=True)] for layer in linear[:-1]]
    return replace_norm(nn.Sequential(*[module for group in between for module in group], linear[-1]), norm)


def _linear(inputs: int, outputs: int, of_cells: bool) -> nn.Linear | nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1) if of_cells else nn.Linear(inputs, outputs)
