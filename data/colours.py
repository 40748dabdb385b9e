"""Random changes of colour, as 3 x 3 matrices that work on z-scored pixels as well as on any others.

Every matrix keeps grey pixels (its rows add up to 1), so it commutes with the z-scoring of all channels together, and
nothing needs to be clipped to [0, 1].
"""

import math
import random

import numpy as np

from data.augmentation import Augmentation

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""From RGB to luminance and two axes of colour (NTSC), about which the hue turns."""


def saturation_matrix(factor: float) -> np.ndarray:
    """(3, 3): 0 makes grey, 1 changes nothing, more makes colours stronger; the grey value stays."""
    return factor * np.eye(3) + (1 - factor) * LUMA[None]


def hue_matrix(turn: float) -> np.ndarray:
    """(3, 3): turn the hue by a share of the whole circle, in the plane of colours of YIQ; the grey value stays."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    return np.linalg.solve(YIQ, np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ YIQ)


def draw_colours(augmentation: Augmentation, seed: int) -> np.ndarray | None:
    """The matrix of one view's random change of saturation and hue, or to grey; None if nothing changes."""
    rng = random.Random(seed + 2**32)  # other numbers than those of the view's crop
    matrix = None
    if rng.random() < augmentation.colour:
        factor = rng.uniform(max(0.0, 1 - augmentation.saturation), 1 + augmentation.saturation)
        matrix = hue_matrix(rng.uniform(-augmentation.hue, augmentation.hue)) @ saturation_matrix(factor)
    return saturation_matrix(0.0) if rng.random() < augmentation.grey else matrix


def recolour(view: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Apply a matrix to the channels of (3, rows, columns) float32."""
    return view if matrix is None else np.tensordot(matrix.astype(np.float32), view, 1)
