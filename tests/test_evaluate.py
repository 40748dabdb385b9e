import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tyro
from forking import run_forked
from PIL import Image

from core.errors import UserError
from segment.evaluate import Evaluate, match_masks, run

SPACING = (1.5, 2.0, 8.0)  # x, y, z


def write(path, labels, spacing=SPACING):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels, np.diag([*spacing, 1.0]))
    nib.save(image, path)


def block(width, value=1, shape=(12, 10, 4)):
    labels = np.zeros(shape, np.uint8)
    labels[2 : 2 + width, 3:7, 1:3] = value
    return labels


@pytest.fixture
def acdc(tmp_path):
    """Reference in ACDC's layout, images beside the masks; flat predictions, one a voxel too wide."""
    for subject, group in (("patient001", "DCM"), ("patient002", "NOR")):
        folder = tmp_path / "reference" / subject
        for frame, width in ((1, 4), (12, 2)):
            write(folder / f"{subject}_frame{frame:02}.nii.gz", block(3, 200))
            write(folder / f"{subject}_frame{frame:02}_gt.nii.gz", block(width))
            wider = frame == 1 and subject == "patient001"
            write(tmp_path / "prediction" / f"{subject}_frame{frame:02}.nii.gz", block(width + wider))
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {group}\nNbFrame: 30\n")
    return tmp_path


def test_acdc_end_to_end(acdc, capsys):
    result = run(Evaluate(prediction=acdc / "prediction", reference=acdc / "reference", out=acdc / "out"))
    rows = pd.read_csv(acdc / "out" / "per_volume.csv")
    assert rows[["subject", "group", "phase", "frame"]].to_numpy().tolist() == [
        ["patient001", "DCM", "ED", 1],
        ["patient001", "DCM", "ES", 12],
        ["patient002", "NOR", "ED", 1],
        ["patient002", "NOR", "ES", 12],
    ]
    dice = 2 * 4 / (4 + 5)
    assert rows["dice_RV"].tolist() == pytest.approx([dice, 1, 1, 1])
    assert result["dice"]["RV"] == pytest.approx(((dice + 1) / 2 + 1) / 2)
    assert result["phases"]["ED"]["dice"]["RV"] == pytest.approx((dice + 1) / 2)
    assert result["not_counted"]["both_empty"] == {"RV": 0, "MYO": 4, "LV": 4}
    voxel_ml = np.prod(SPACING) / 1000
    assert rows["reference_ml_RV"][0] == pytest.approx(4 * 4 * 2 * voxel_ml)
    assert result["clinical"]["rv_ed_ml"]["bias"] == pytest.approx(4 * 2 * voxel_ml / 2)
    assert result["clinical"]["rv_ef_percent"]["mean_absolute_error"] == pytest.approx((60 - 50) / 2)
    assert result["clinical"]["lv_ef_percent"]["missing"] == 2
    assert rows["hd95_mm_RV"][0] == pytest.approx(1.5)  # one voxel along x, on the far face
    assert json.loads((acdc / "out" / "result.json").read_text()) == result
    printed = capsys.readouterr().out
    assert "2 patients, 4 volumes" in printed
    assert "rv_ef_percent" in printed


def test_scores_by_the_rules_of_ssl4mis_stand_beside_ours(acdc, capsys):
    settings = {"prediction": acdc / "prediction", "reference": acdc / "reference"}
    result = run(Evaluate(**settings, out=acdc / "out", parity="ssl4mis"))
    rows = pd.read_csv(acdc / "out" / "per_volume.csv")
    assert rows["ssl4mis_dice_RV"].iloc[0] < rows["ssl4mis_dice_RV"].iloc[1] == 1
    assert result["parity_ssl4mis"]["dice"]["RV"] == pytest.approx(rows["ssl4mis_dice_RV"].mean())
    assert "as SSL4MIS scores" in capsys.readouterr().out
    ours = run(Evaluate(**settings, out=acdc / "ours"))
    assert ours == {name: value for name, value in result.items() if name != "parity_ssl4mis"}


def test_spacing_is_the_reference_s_and_scores_go_beside_the_prediction(acdc):
    for file in (acdc / "prediction").iterdir():
        write(file, np.asarray(nib.load(file).dataobj), spacing=(1, 1, 1))
    result = run(Evaluate(prediction=acdc / "prediction", reference=acdc / "reference"))
    assert result["clinical"]["rv_ed_ml"]["bias"] == pytest.approx(4 * 2 * np.prod(SPACING) / 1000 / 2)
    assert (acdc / "prediction" / "scores" / "result.json").is_file()


def test_png_masks_of_0_and_255_and_numbered_classes(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:15] = 1
    for side, value in (("prediction", 255), ("reference", 1)):
        (tmp_path / side).mkdir()
        Image.fromarray(mask * value).save(tmp_path / side / "case7.png")
    result = run(Evaluate(prediction=tmp_path / "prediction", reference=tmp_path / "reference"))
    assert result["dice"] == {"mean": 1.0, "label_1": 1.0}
    assert result["hd95_mm"]["label_1"] == 0.0
    assert "phases" not in result


@pytest.mark.parametrize("value", [50, 128, 254])
def test_masks_of_two_values_are_no_many_classes(tmp_path, value):
    for side in ("prediction", "reference"):
        write(tmp_path / side / "a.nii.gz", block(3, value))
    with pytest.raises(UserError, match=rf"the label values 0, {value}: renumber"):
        run(Evaluate(prediction=tmp_path / "prediction", reference=tmp_path / "reference"))
    thresholded = run(
        Evaluate(prediction=tmp_path / "prediction", reference=tmp_path / "reference", mask_threshold=value)
    )
    assert thresholded["dice"] == {"mean": 1.0, "label_1": 1.0}


@pytest.mark.parametrize("name", ["config.json", "study.json"])
def test_results_of_a_run_are_not_replaced(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="results would be replaced"):
        run(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r", out=tmp_path))


def test_frames_of_a_4d_mask_are_volumes_of_one_subject(tmp_path):
    labels = np.stack([block(4), block(3)], axis=3)
    write(tmp_path / "prediction" / "cine.nii", labels, (*SPACING,))
    write(tmp_path / "reference" / "cine_gt.nii", labels, (*SPACING,))
    result = run(Evaluate(prediction=tmp_path / "prediction", reference=tmp_path / "reference", classes=("heart",)))
    assert (result["patients"], result["volumes"], result["dice"]["heart"]) == (1, 2, 1.0)


def test_repeated_stems_match_by_path(tmp_path):
    for side in ("prediction", "reference"):
        for subject in ("a", "b"):
            write(tmp_path / side / subject / "mask.nii.gz", block(3))
    pairs = match_masks(tmp_path / "prediction", tmp_path / "reference")
    assert list(pairs) == ["a/mask", "b/mask"]
    assert all(prediction.parent.name == reference.parent.name for prediction, reference in pairs.values())


def test_unmatched_masks(acdc):
    (acdc / "prediction" / "patient002_frame01.nii.gz").unlink()
    cfg = {"prediction": acdc / "prediction", "reference": acdc / "reference"}
    with pytest.raises(UserError, match=r"prediction lacks 1 .*patient002_frame01\).*--partial"):
        run(Evaluate(**cfg))
    assert run(Evaluate(**cfg, partial=True))["volumes"] == 3
    write(acdc / "prediction" / "extra.nii.gz", block(2))
    (acdc / "reference" / "patient002" / "patient002_frame01_gt.nii.gz").unlink()
    with pytest.raises(UserError, match=r"reference lacks 1 .*extra"):
        run(Evaluate(**cfg))


def test_folders_without_masks(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "full" / "a.nii", block(2))
    write(tmp_path / "other" / "b.nii", block(2))
    with pytest.raises(UserError, match="empty holds no masks"):
        match_masks(tmp_path / "full", tmp_path / "empty")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        match_masks(tmp_path / "nowhere", tmp_path / "full")
    with pytest.raises(UserError, match=r"no mask in .*such as a and b"):
        match_masks(tmp_path / "full", tmp_path / "other", partial=True)
    write(tmp_path / "full" / "a.nii.gz", block(2))
    with pytest.raises(UserError, match="two masks of one name"):
        match_masks(tmp_path / "full", tmp_path / "full")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            block(3, shape=(12, 10, 5)),
            r"p/a.nii.gz .* grid of .*r/a.nii.gz \(shape 12 x 10 x 5 for 12 x 10 x 4\)",
        ),
        (block(3, 4), r"p/a.nii.gz holds label 4 and the classes are RV, MYO, LV"),
        (block(3) * np.float32(0.5), r"p/a.nii.gz holds label values \[0.5\]"),
        (block(3).astype(np.int16) * -1, r"p/a.nii.gz holds label values \[-1\]"),
    ],
)
def test_masks_that_cannot_be_scored(tmp_path, labels, message):
    write(tmp_path / "p" / "a.nii.gz", labels)
    write(tmp_path / "r" / "a.nii.gz", block(3))
    with pytest.raises(UserError, match=message):
        run(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r", classes=("RV", "MYO", "LV")))


@pytest.mark.slow
def test_a_mistake_on_the_command_line_ends_in_one_sentence(acdc):
    done = run_forked("segment.evaluate", "--prediction", acdc / "prediction", "--reference", "nowhere")
    assert done.returncode == 2
    assert done.stderr == "error: nowhere is not a folder: pass the folder that holds the masks\n"


def test_flags():
    cfg = tyro.cli(Evaluate, args=["--prediction", "p", "--reference", "r", "--classes", "RV", "LV", "--partial"])
    assert cfg == Evaluate(prediction=Path("p"), reference=Path("r"), classes=("RV", "LV"), partial=True)
