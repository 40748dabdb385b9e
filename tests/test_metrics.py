import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from segment.clinical import clinical_errors, read_outs
from segment.metrics import score_volume, summarise, surface_distances

CLASSES = ("RV", "MYO", "LV")
UNIT = (1.0, 1.0, 1.0)


def test_overlap_by_hand():
    reference, prediction = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    reference[0, 0] = 1  # 4 voxels
    prediction[0, 0, :3] = 1  # 3 of them,
    prediction[1, 2, 0] = 1  # and one elsewhere
    row = score_volume(prediction, reference, (10, 2, 1.5), ("RV",))
    assert row["dice_RV"] == pytest.approx(2 * 3 / (4 + 4))
    assert row["jaccard_RV"] == pytest.approx(3 / 5)
    assert row["volume_ml_RV"] == row["reference_ml_RV"] == pytest.approx(4 * 30 / 1000)


def test_slice_jaccard_by_hand():
    reference, prediction = np.zeros((2, 1, 4), np.uint8), np.zeros((2, 1, 4), np.uint8)
    reference[0, 0] = [0, 0, 1, 1]
    prediction[0, 0] = [0, 0, 0, 1]
    prediction[1, 0] = [0, 0, 0, 2]
    row = score_volume(prediction, reference, UNIT, ("A", "B"))
    first = (2 / 3 + 1 / 2 + 1) / 3  # background, A, B absent
    second = (3 / 4 + 1 + 0) / 3  # background, A absent, B only predicted
    assert row["slice_jaccard"] == pytest.approx((first + second) / 2)
    assert row["slices"] == 2


def test_empty_classes():
    reference, prediction = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    reference[:, :2] = 1
    prediction[:, 2:] = 3
    row = score_volume(prediction, reference, UNIT, CLASSES)
    assert row["dice_RV"] == row["jaccard_RV"] == row["dice_LV"] == row["jaccard_LV"] == 0
    assert math.isnan(row["hd95_mm_RV"])
    assert math.isnan(row["assd_mm_LV"])
    assert all(math.isnan(row[f"{measure}_MYO"]) for measure in ("dice", "jaccard", "hd95_mm", "assd_mm"))


def test_a_leading_background_is_dropped():
    labels = np.ones((1, 2, 2), np.uint8)
    assert score_volume(labels, labels, UNIT, ("background", "RV"))["dice_RV"] == 1


def test_bad_input_is_refused():
    labels = np.full((1, 2, 2), 2, np.uint8)
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(2, 2, 2\)"):
        score_volume(labels, np.zeros((2, 2, 2), np.uint8), UNIT, ("RV",))
    with pytest.raises(ValueError, match="label 2 has no name"):
        score_volume(labels, labels, UNIT, ("RV",))
    with pytest.raises(ValueError, match="label -1 has no name"):
        score_volume(labels * 0, labels * 0 - np.int8(1), UNIT, ("RV",))


def cube(start, shape=(12, 30, 30), size=(4, 6, 6)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def test_distances_of_shifted_planes():
    """Two sheets one voxel thick: every surface voxel of one is exactly 3 slices from the other."""
    size = (1, 6, 6)
    hd95, assd = surface_distances(cube((2, 5, 5), size=size), cube((5, 5, 5), size=size), (8.0, 1.5, 1.25))
    assert (hd95, assd) == pytest.approx((24.0, 24.0))


def test_distances_of_shifted_cubes_by_hand():
    """Blocks of 4 x 6 x 6 voxels, one column (1.25 mm) apart, have 4*6*6 - 2*4*4 = 112 surface voxels each.

    Of those, the 24 of the leading face and the 2*4 inside the rim of the trailing face are 1.25 mm from the
    other surface; all others lie on it.
    """
    hd95, assd = surface_distances(cube((4, 10, 10)), cube((4, 10, 11)), (8.0, 1.5, 1.25))
    assert hd95 == pytest.approx(1.25)
    assert assd == pytest.approx((24 + 8) * 1.25 / 112)


def reference_distances(a, b, spacing):
    surface_a, surface_b = (np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in (a, b))
    ab, ba = cKDTree(surface_b).query(surface_a)[0], cKDTree(surface_a).query(surface_b)[0]
    return max(np.percentile(ab, 95), np.percentile(ba, 95)), np.concatenate([ab, ba]).mean()


@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_a_tree_over_the_whole_image(seed):
    """Whole volume, no bounding box, anisotropic; blobs touch the border of the image as well."""
    random = np.random.default_rng(seed)
    z, y, x = np.mgrid[:9, :40, :36]
    masks = []
    for _ in range(2):
        centre = random.uniform((0, 0, 0), (9, 40, 36))
        distance = np.hypot(np.hypot((z - centre[0]) * 4, y - centre[1]), x - centre[2])
        masks.append(distance + random.normal(0, 2, distance.shape) < 11)
    spacing = (9.5, 1.4, 1.1)
    assert surface_distances(*masks, spacing) == pytest.approx(reference_distances(*masks, spacing), rel=1e-5)


def test_the_bounding_box_changes_nothing():
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    a, b = cube((0, 3, 24)), cube((5, 10, 20), size=(7, 9, 5))
    spacing = [7.0, 1.5, 1.25]
    whole = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
    hd95 = compute_hausdorff_distance(*whole, include_background=True, percentile=95, spacing=spacing)
    assd = compute_average_surface_distance(*whole, include_background=True, symmetric=True, spacing=spacing)
    assert surface_distances(a, b, spacing) == pytest.approx((hd95.item(), assd.item()), rel=1e-5)


def test_a_single_slice_is_measured_in_its_plane():
    a, b = np.zeros((1, 12, 12), bool), np.zeros((1, 12, 12), bool)
    a[0, 2:10, 2:10] = b[0, 3:9, 3:9] = True
    hd95, assd = surface_distances(a, b, (8.0, 2.0, 2.0))
    # 28 outline voxels of a: 24 at 2 mm and 4 corners at 2 sqrt 2; 20 of b, all at 2 mm
    assert hd95 == pytest.approx(2 * math.sqrt(2))
    assert assd == pytest.approx((44 * 2 + 4 * 2 * math.sqrt(2)) / 48)


def rows_of(*volumes):
    """(subject, phase, {class: Dice}) as rows; a Dice of 0 counts as one empty, None as both empty."""
    rows = []
    for subject, phase, dice in volumes:
        row = {"subject": subject, "group": "", "phase": phase, "frame": 1, "slice_jaccard": 0.5, "slices": 4}
        for name in CLASSES:
            score = math.nan if dice.get(name, 0.5) is None else dice.get(name, 0.5)
            distance = score * 10 if score > 0 else math.nan
            row |= {f"dice_{name}": score, f"jaccard_{name}": score / 2}
            row |= {f"hd95_mm_{name}": distance, f"assd_mm_{name}": distance / 10}
            row |= {f"volume_ml_{name}": 10.0, f"reference_ml_{name}": 10.0}
        rows.append(row)
    return pd.DataFrame(rows)


def test_patients_weigh_the_same_whatever_their_volumes():
    per_volume = rows_of(("a", "ED", {"RV": 0.8}), ("a", "ES", {"RV": 0.6}), ("b", "ED", {"RV": 0.1}))
    result = summarise(per_volume, CLASSES)
    assert result["dice"]["RV"] == pytest.approx(((0.8 + 0.6) / 2 + 0.1) / 2)
    assert result["dice"]["mean"] == pytest.approx(((0.7 + 0.5 + 0.5) / 3 + (0.1 + 0.5 + 0.5) / 3) / 2)
    assert result["hd95_mm"]["RV"] == pytest.approx((7 + 1) / 2)
    assert (result["patients"], result["volumes"]) == (2, 3)
    assert result["phases"]["ED"]["dice"]["RV"] == pytest.approx(0.45)
    assert result["phases"]["ES"]["dice"]["RV"] == pytest.approx(0.6)
    assert (result["phases"]["ES"]["patients"], result["phases"]["ES"]["volumes"]) == (1, 1)


def test_empty_classes_are_counted():
    per_volume = rows_of(("a", "ED", {"RV": 0}), ("a", "ES", {"RV": None}), ("b", "ED", {"RV": 0.4, "LV": None}))
    result = summarise(per_volume, CLASSES)
    assert result["not_counted"] == {
        "both_empty": {"RV": 1, "MYO": 0, "LV": 1},
        "one_empty": {"RV": 1, "MYO": 0, "LV": 0},
    }
    assert result["dice"]["RV"] == pytest.approx((0 + 0.4) / 2)  # a: 0 alone, the other volume has none
    assert result["hd95_mm"]["RV"] == pytest.approx(4)  # b alone
    assert result["dice"]["LV"] == pytest.approx(0.5)  # a alone
    assert result["dice"]["mean"] == pytest.approx(((0 + 0.5 + 0.5) / 3 + (0.4 + 0.5) / 2) / 2)
    assert result["phases"]["ES"]["dice"]["RV"] is None
    assert result["phases"]["ES"]["not_counted"]["both_empty"]["RV"] == 1


def test_the_summary_is_clean_json_without_phases_too():
    per_volume = rows_of(("a", "", {"RV": None}))
    result = summarise(per_volume, CLASSES)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["dice"]["RV"] is None
    assert "phases" not in result
    assert "clinical" not in result


def test_slices_that_are_ignored_as_a_whole_have_no_slice_jaccard():
    reference = np.full((3, 4, 4), 255, np.uint8)
    reference[1] = 0
    reference[1, :2] = 1
    prediction = np.ones((3, 4, 4), np.uint8)
    row = score_volume(prediction, reference, (1, 1, 1), ("background", "A"))
    assert (row["slice_jaccard"], row["slices"]) == ((0 + 0.5) / 2, 1)
    nothing = score_volume(prediction, np.full_like(reference, 255), (1, 1, 1), ("background", "A"))
    assert math.isnan(nothing["slice_jaccard"])
    table = pd.DataFrame([row, nothing]).assign(subject=["a", "b"], phase="", group="", frame=1)
    assert summarise(table, ("background", "A"))["slice_jaccard"] == row["slice_jaccard"]
    assert summarise(table.iloc[1:], ("background", "A"))["slice_jaccard"] is None


def test_slice_jaccard_is_over_slices():
    per_volume = rows_of(("a", "", {}), ("b", "", {}))
    per_volume["slice_jaccard"], per_volume["slices"] = [0.5, 1.0], [3, 1]
    assert summarise(per_volume, CLASSES)["slice_jaccard"] == pytest.approx((0.5 * 3 + 1.0) / 4)


def disc(radius):
    y, x = np.mgrid[:100, :100]
    return np.hypot(y - 50, x - 50) < radius


def cylinder(radius):
    """Ten slices: an LV of that radius in voxels, a MYO wall of 5 about it, an RV block beside."""
    plane = np.zeros((100, 100), np.uint8)
    plane[:, :20] = 1
    plane[disc(radius + 5)] = 2
    plane[disc(radius)] = 3
    return np.repeat(plane[None], 10, axis=0)


def test_clinical_read_outs_of_a_cylinder():
    spacing = (10.0, 1.0, 1.0)
    ml = {radius: disc(radius).sum() * 10 * 10 / 1000 for radius in (15, 24, 25, 30)}
    assert ml[25] == pytest.approx(math.pi * 25**2 * 100 / 1000, rel=0.02)
    rows = []
    for phase, predicted, true in (("ED", 24, 25), ("ES", 15, 15)):
        row = score_volume(cylinder(predicted), cylinder(true), spacing, CLASSES)
        rows.append({"subject": "a", "phase": phase, **row})
    rows.append({**rows[0], "subject": "b"})  # never seen at ES
    per_volume = pd.DataFrame(rows)

    true = read_outs(per_volume)["reference"].loc["a"]
    assert true["lv_ed_ml"] == pytest.approx(ml[25])
    assert true["lv_es_ml"] == pytest.approx(ml[15])
    assert true["lv_ef_percent"] == pytest.approx(100 * (ml[25] - ml[15]) / ml[25])
    assert true["myo_mass_g"] == pytest.approx(1.05 * (ml[30] - ml[25]))
    assert true["rv_ed_ml"] == pytest.approx(20 * 100 * 10 * 10 / 1000)
    assert true["rv_ef_percent"] == pytest.approx(0, abs=1e-9)

    clinical = summarise(per_volume, CLASSES)["clinical"]
    assert clinical["lv_ed_ml"]["bias"] == pytest.approx(ml[24] - ml[25])
    assert clinical["lv_ed_ml"]["mean_absolute_error"] == pytest.approx(ml[25] - ml[24])
    assert (clinical["lv_ed_ml"]["count"], clinical["lv_ed_ml"]["missing"]) == (2, 0)
    assert clinical["lv_ef_percent"]["bias"] == pytest.approx(100 * (ml[15] / ml[25] - ml[15] / ml[24]))
    assert (clinical["lv_ef_percent"]["count"], clinical["lv_ef_percent"]["missing"]) == (1, 1)
    assert clinical["lv_es_ml"]["bias"] == pytest.approx(0, abs=1e-9)


def test_bias_and_absolute_error_differ():
    rows = []
    for subject, predicted in (("a", 12.0), ("b", 7.0)):
        volumes = {f"volume_ml_{name}": predicted for name in CLASSES}
        volumes |= {f"reference_ml_{name}": 10.0 for name in CLASSES}
        rows += [{"subject": subject, "phase": phase, **volumes} for phase in ("ED", "ES")]
    error = clinical_errors(pd.DataFrame(rows))["rv_ed_ml"]
    assert (error["bias"], error["mean_absolute_error"]) == ((2 - 3) / 2, (2 + 3) / 2)


def test_an_empty_ventricle_has_no_ejection_fraction():
    clinical_row = {f"{side}_{name}": 0.0 for side in ("volume_ml", "reference_ml") for name in CLASSES}
    per_volume = pd.DataFrame([{"subject": "a", "phase": phase, **clinical_row} for phase in ("ED", "ES")])
    table = read_outs(per_volume)
    assert math.isnan(table.loc["a", ("reference", "lv_ef_percent")])
    assert table.loc["a", ("reference", "lv_ed_ml")] == 0
