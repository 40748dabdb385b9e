"""Spacings and sizes that cannot be meant are refused before memory is taken, with the name of the file."""

import math

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from data.preprocessing import resample, resampled_size
from data.slices import require_possible_sizes


@pytest.mark.parametrize(
    ("shape", "spacing", "to_mm", "sentence"),
    [
        ((60, 50), (900, 900), 0.01, r"become 5,400,000 x 4,500,000 pixels of 0.01 mm: check the spacing"),
        ((60, 50), (1.5, 1e6), 1.5, r"pixels of 1.5 x 1e\+06 mm"),
        ((60, 50), (1e-5, 1e-5), 1.5, "become 1 x 1 pixels of 1.5 mm"),
        ((60, 50), (1.5, 1.5), 1000, "become 1 x 1 pixels"),
        ((60, 50), (1.5, 1.5), 1e-320, "become inf x inf pixels"),
        ((60, 50), (1, 1), -1.0, "the pixel size must be above 0"),
        ((60, 50), (1, 1), math.nan, "the pixel size must be above 0"),
        ((60, 50), (math.nan, 1.5), 1.5, "of nan x 1.5 mm"),
        ((3000, 3000), (1, 1), 0.5, "become 6,000 x 6,000 pixels of 0.5 mm: check the spacing"),
        ((9000, 9000), (1, 1), 0.9, "become 10,000 x 10,000 pixels of 0.9 mm"),
    ],
)
def test_sizes_that_cannot_be_meant(shape, spacing, to_mm, sentence):
    with pytest.raises(UserError, match=sentence):
        resampled_size(shape, spacing, to_mm)
    table = pd.DataFrame({"rows": [40, shape[0]], "columns": [40, shape[1]], "file": ["a.nii", "b.nii"]})
    table = table.assign(row_mm=[to_mm or 1, spacing[0]], column_mm=[to_mm or 1, spacing[1]])
    with pytest.raises(UserError, match=f"^[ab].nii .*{sentence}"):
        require_possible_sizes(table, to_mm)


def test_ordinary_sizes_are_rounded():
    assert resampled_size((216, 256), (1.5625, 1.4), 1.5) == (225, 239)
    assert resampled_size((3, 5), (1.0, 1.0), 1.0) == (3, 5)
    assert resampled_size((9000, 9500), (1.0, 1.0), None) == (9000, 9500)
    assert resampled_size((9000, 9500), (1.0, 1.0), 2.0) == (4500, 4750)
    assert resample(np.zeros((10, 12), np.float32), (1.0, 2.0), 2.0).shape == (5, 12)
