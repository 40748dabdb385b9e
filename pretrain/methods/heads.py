"""Projectors and predictors."""

from itertools import pairwise

from torch import nn

from encoders.norm import Norm, replace_norm


def mlp(inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm: Norm = "batch") -> nn.Sequential:
    """Projector or predictor: linear layers with batch norm and ReLU between them.

    Initialised as in Kalapos and Gyires-Toth 2022.

    Args:
        inputs, hidden, outputs: widths.
        layers: linear layers, 2 or more.
        norm: see `replace_norm`.
    """
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    linear = [nn.Linear(before, after) for before, after in pairwise(widths)]
    for layer in linear:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    between = [[layer, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)] for layer in linear[:-1]]
    return replace_norm(nn.Sequential(*[module for group in between for module in group], linear[-1]), norm)
