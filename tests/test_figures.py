import numpy as np
import pandas as pd
from PIL import Image

from engine.learning_curve import draw_learning_curve
from segment.figures import panel_case, prediction_panel, titles_of_cases, worst_median_best


def dice_table(*values):
    return pd.DataFrame({"dice_RV": values, "dice_LV": values})


def test_worst_median_best():
    assert worst_median_best(dice_table(0.9, 0.1, 0.5, np.nan, 0.7), ("RV", "LV")) == {
        "worst": 1,
        "median": 2,
        "best": 0,
    }
    assert worst_median_best(dice_table(0.9, 0.1), ("RV", "LV")) == {"worst": 1, "best": 0}
    assert worst_median_best(dice_table(0.9), ("RV", "LV")) == {"worst": 0}
    assert worst_median_best(dice_table(np.nan), ("RV", "LV")) == {}


def test_titles_of_cases_tell_files_and_frames_apart():
    files = ["images/MR004_a.nii.gz", "images/MR004_b.nii.gz", "MR005/cine.nii.gz", "MR005/cine.nii.gz"]
    table = dice_table(0.25, 0.5, 0.75, 1).assign(subject="MR004", file=files, phase="", frame=[1, 1, 1, 2])
    assert [*titles_of_cases(table[:2], ("RV", "LV")).values()] == [
        "worst: MR004_a, Dice 0.250",
        "best: MR004_b, Dice 0.500",
    ]
    assert titles_of_cases(table[2:].reset_index(), ("RV", "LV")) == {
        0: "worst: MR005/cine 1, Dice 0.750",
        1: "best: MR005/cine 2, Dice 1.000",
    }
    assert titles_of_cases(table[:1].assign(phase="ED"), ("RV", "LV")) == {0: "worst: MR004 ED, Dice 0.250"}
    assert not titles_of_cases(table[:0], ("RV", "LV"))


def test_panel_case_takes_the_fullest_slice_of_the_reference():
    image = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    reference, prediction = np.zeros_like(image), np.zeros_like(image)
    reference[1, :2] = 2
    prediction[2] = 1
    case = panel_case("a", image, reference, prediction, (10, 3, 1.5))
    assert case["title"] == "a, slice 2 of 3"
    assert case["aspect"] == 2
    np.testing.assert_array_equal(case["image"], image[1])
    assert panel_case("a", image, reference * 0, prediction, (10, 3, 1.5))["title"] == "a, slice 3 of 3"


def test_prediction_panel_draws_empty_and_full_masks(tmp_path):
    random = np.random.default_rng(0)
    reference = np.zeros((2, 40, 60), np.uint8)
    reference[1, 10:20, 30:50] = 1
    reference[1, 12:18, 35:40] = 3
    cases = [
        panel_case("one", random.normal(size=reference.shape), reference, reference * 0, (8, 1.5, 1)),
        panel_case("two", np.zeros(reference.shape), reference * 0, reference * 0, (8, 1, 1)),
    ]
    prediction_panel(cases, tmp_path / "panel.png")
    pixels = np.asarray(Image.open(tmp_path / "panel.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == (0x56, 0xB4, 0xE9)).all(axis=1).any()  # RV, in the legend at least
    assert pixels.std() > 10


def test_learning_curve_with_rare_or_no_validation(tmp_path):
    metrics = pd.DataFrame(
        {"step": [1, 2, 3, 4], "loss": [1.0, 0.8, 0.7, 0.6], "validation_dice": [np.nan, 0.3, np.nan, 0.5]}
    )
    draw_learning_curve(metrics, tmp_path / "curve.png", score="validation_dice")
    draw_learning_curve(metrics.assign(validation_dice=np.nan), tmp_path / "none.png", score="validation_dice")
    assert (tmp_path / "curve.png").read_bytes() != (tmp_path / "none.png").read_bytes()
