"""Scores by the rules of other benchmarks."""

import numpy as np
import pandas as pd
import pytest

from data.readers.label_maps import IGNORED
from segment.parity import ssl4mis_scores, ssl4mis_summary

CLASSES = ("background", "A")


def volume(rows: slice, columns: slice, shape=(1, 256, 256)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[:, rows, columns] = 1
    return labels


def test_distances_are_in_voxels_and_of_both_directions_together():
    # two lines of voxels, three apart: every distance is 3, the mean and the 95th percentile as well
    row = ssl4mis_scores(volume(slice(10, 11), slice(20, 60)), volume(slice(13, 14), slice(20, 60)), CLASSES)
    assert row == {
        "ssl4mis_dice_A": 0,
        "ssl4mis_jaccard_A": 0,
        "ssl4mis_hd95_voxels_A": 3,
        "ssl4mis_asd_voxels_A": 3,
    }


def test_the_mean_distance_is_from_the_prediction_alone():
    # a prediction inside a larger reference: its own surface lies 2 voxels inside, the reference's up to 2 * sqrt(2)
    row = ssl4mis_scores(volume(slice(12, 18), slice(12, 18)), volume(slice(10, 20), slice(10, 20)), CLASSES)
    assert row["ssl4mis_dice_A"] == pytest.approx(2 * 36 / (36 + 100))
    assert row["ssl4mis_asd_voxels_A"] == 0  # a volume of one slice is surface everywhere in 3D, as in MedPy


def test_an_empty_prediction_scores_0_throughout():
    row = ssl4mis_scores(volume(slice(0), slice(0)), volume(slice(10, 20), slice(10, 20)), CLASSES)
    assert set(row.values()) == {0}


def test_predictions_go_through_256_by_256_pixels():
    shape = (1, 512, 512)
    fine = volume(slice(100, 101), slice(100, 300), shape)  # a line one pixel wide is lost or doubled at half the size
    assert ssl4mis_scores(fine, fine, CLASSES)["ssl4mis_dice_A"] < 0.9
    square = volume(slice(100, 200), slice(100, 300), (1, 256, 256))
    assert ssl4mis_scores(square, square, CLASSES)["ssl4mis_dice_A"] == 1


def test_what_is_ignored_counts_as_background_in_both():
    reference = volume(slice(10, 20), slice(10, 20))
    reference[:, 30:40] = IGNORED
    prediction = volume(slice(10, 20), slice(10, 20))
    prediction[:, 32:38, 10:20] = 1
    assert ssl4mis_scores(prediction, reference, CLASSES)["ssl4mis_dice_A"] == 1


def test_the_summary_is_a_mean_over_volumes():
    pairs = [(volume(slice(0, 9), slice(0, 9)), volume(slice(0, 9), slice(0, 9)))]
    pairs += [(volume(slice(0), slice(0)), volume(slice(0, 9), slice(0, 9)))]
    table = pd.DataFrame([ssl4mis_scores(*pair, CLASSES) for pair in pairs])
    summary = ssl4mis_summary(table, CLASSES)
    assert summary["dice"] == {"mean": 0.5, "A": 0.5}
    assert summary["hd95_voxels"] == {"mean": 0, "A": 0}
