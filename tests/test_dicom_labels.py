"""DICOM segmentations and structure sets as label maps, and DICOM folders read directly."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
from made_up_dicom import COLUMN_MM, ROW_MM, STRUCTURES, cine, enhanced, header, image, save, structures, volume
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from core.errors import SomeFilesFailed, UserError
from data.cache import CacheConfig, packed_sets
from data.cache import run as run_cache
from data.convert import Convert, run
from data.inspect import Inspect
from data.inspect import run as run_inspect
from data.sources import FolderSource, open_slices


def convert(source: Path, out: Path, **settings) -> list[dict[str, str]]:
    with suppress(SomeFilesFailed):
        run(Convert(input=source, out=out, salt="a salt for tests", **settings))
    with (out / "converted.csv").open() as stream:
        return [*csv.DictReader(stream)]


def segmentation(sources: list[Dataset], pixels: np.ndarray, names: list[str], kind: str = "BINARY", **settings):
    """A segmentation that highdicom makes: pixels (slices, rows, columns) hold segment numbers."""
    algorithm = highdicom.AlgorithmIdentificationSequence("none", codes.DCM.ArtificialIntelligence, "0")
    segments = [
        highdicom.seg.SegmentDescription(
            number, name, codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", algorithm_identification=algorithm
        )
        for number, name in enumerate(names, 1)
    ]
    return highdicom.seg.Segmentation(
        sources,
        pixels,
        kind,
        segments,
        series_instance_uid=generate_uid(),
        series_number=99,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        **settings,
    )


def masks(slices: int = 4) -> np.ndarray:
    """(slices, rows, columns) segment numbers 0 to 2, different in each slice, empty in the first."""
    labels = np.zeros((slices, 6, 5), np.uint8)
    for z in range(1, slices):
        labels[z, z, 1:4] = 1
        labels[z, 5, z:] = 2
    return labels


def of_result(rows: list[dict[str, str]], result: str) -> dict[str, str]:
    (row,) = (row for row in rows if row["result"] == result)
    return row


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_a_segmentation_on_the_grid_of_its_series(tmp_path, kind):
    images = volume(tmp_path / "in")
    segmentation(images, masks(), ["myocardium", "LV"], kind).save_as(tmp_path / "in" / "seg")
    rows = convert(tmp_path / "in", tmp_path / "out")
    row = of_result(rows, "converted")
    assert row["label_file"] == row["file"].replace("images/", "labels/")
    assert of_result(rows, "label map")["modality"] == "SEG"
    labels, source = nib.load(tmp_path / "out" / row["label_file"]), nib.load(tmp_path / "out" / row["file"])
    np.testing.assert_array_equal(labels.affine, source.affine)
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert described == {"background": 0, "LV": 1, "myocardium": 2}  # by name, not by segment number
    renumbered = np.array([0, 2, 1])[masks()]
    np.testing.assert_array_equal(labels.dataobj, renumbered.T)


def test_a_segmentation_that_is_stored_in_other_directions(tmp_path):
    """Slices from the other side and mirrored rows: the same voxels in the world."""
    images = volume(tmp_path / "in")
    flipped = []
    for source in reversed(images):
        plane = Dataset()
        plane.update(source)
        plane.file_meta = source.file_meta
        along_row, along_column = np.reshape([float(v) for v in source.ImageOrientationPatient], (2, 3))
        position = np.array([float(v) for v in source.ImagePositionPatient]) + 4 * COLUMN_MM * along_row
        plane.ImagePositionPatient = [f"{value:.9g}" for value in position]
        plane.ImageOrientationPatient = [f"{value:.9g}" for value in (*-along_row, *along_column)]
        flipped.append(plane)
    segmentation(flipped, masks()[::-1, :, ::-1].copy(), ["a", "b"]).save_as(tmp_path / "in" / "seg")
    row = of_result(convert(tmp_path / "in", tmp_path / "out"), "converted")
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / row["label_file"]).dataobj, masks().T)


def test_a_labelled_frame_of_a_cine_is_a_file_of_its_own(tmp_path):
    images = cine(tmp_path / "in")
    segmentation(images[1], masks(), ["a", "b"]).save_as(tmp_path / "in" / "seg")
    row = of_result(convert(tmp_path / "in", tmp_path / "out"), "converted")
    assert row["label_file"].endswith("_frame02.nii.gz")
    frame = nib.load(tmp_path / "out" / row["label_file"].replace("labels/", "images/"))
    whole = nib.load(tmp_path / "out" / row["file"])
    np.testing.assert_array_equal(frame.dataobj, whole.dataobj[..., 1])
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / row["label_file"]).dataobj, masks().T)
    dataset = open_slices(FolderSource(data_root=tmp_path / "out"))
    assert dataset.classes == ("background", "a", "b")
    assert (len(dataset.table), int(dataset.table["labelled"].sum())) == (12, 4)  # each image once, of three frames
    assert dataset.table["subject"].nunique() == 1


def test_segmentations_of_every_frame_make_a_labelled_cine(tmp_path):
    images = cine(tmp_path / "in", slices=2, frames=2)
    for t in range(2):
        segmentation(images[t], np.roll(masks(2), t, axis=1), ["a", "b"]).save_as(tmp_path / "in" / f"seg{t}")
    row = of_result([r for r in convert(tmp_path / "in", tmp_path / "out") if r["modality"] == "MR"], "converted")
    expected = np.stack([np.roll(masks(2), t, axis=1).T for t in range(2)], axis=3)
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / row["label_file"]).dataobj, expected)


def test_a_segmentation_of_an_enhanced_image(tmp_path):
    source = enhanced([(2, 0), (0, 0), (1, 0)])
    save([source], tmp_path / "in")
    segmentation([source], masks(3)[[2, 0, 1]], ["a", "b"]).save_as(tmp_path / "in" / "seg")
    row = of_result(convert(tmp_path / "in", tmp_path / "out"), "converted")
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / row["label_file"]).dataobj, masks(3).T)


def test_segments_that_overlap_are_refused(tmp_path):
    images = volume(tmp_path / "in")
    for number in range(2):
        segmentation(images, (masks() == 1).astype(np.uint8), ["ab"[number]]).save_as(tmp_path / "in" / f"seg{number}")
    rows = convert(tmp_path / "in", tmp_path / "out")
    refused = [row["remark"] for row in rows if row["result"] == "refused"]
    assert len(refused) == 2
    assert "overlap in 3 voxels of one plane" in refused[0]
    assert of_result(rows, "converted")["label_file"] == ""
    rows = convert(tmp_path / "in", tmp_path / "chosen", classes=("B",))
    row = of_result(rows, "converted")
    assert np.asarray(nib.load(tmp_path / "chosen" / row["label_file"]).dataobj).sum() == 9
    assert of_result(rows, "left out")["remark"] == "none of its segments is in --classes"
    with pytest.raises(UserError, match=r"--classes liver: the files have a, b"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "none", salt="a salt for tests", classes=("liver",)))


def test_segmentations_on_another_grid_or_of_nothing(tmp_path):
    images = volume(tmp_path / "in")
    shifted = [image(z + 0.4) for z in range(4)]
    for one, other in zip(shifted, images, strict=True):
        one.SOPInstanceUID = other.SOPInstanceUID
    segmentation(shifted, masks(), ["a", "b"]).save_as(tmp_path / "in" / "shifted")
    stranger = [image(z, SeriesInstanceUID="1.2.3.44") for z in range(4)]
    segmentation(stranger, masks(), ["a", "b"]).save_as(tmp_path / "in" / "stranger")
    remarks = {row["remark"] for row in convert(tmp_path / "in", tmp_path / "out") if row["result"] == "refused"}
    assert remarks == {
        "the segmentation does not lie on the voxel grid of its images: resample it onto them first",
        "it refers to a series that is not among the files: add that series",
    }


def square(low: float, high: float) -> np.ndarray:
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def test_a_structure_set_with_a_hole(tmp_path):
    """Pixels whose centres lie within 0.5 and 3.5 are 3 x 3, without the middle one."""
    images = volume(tmp_path / "in")
    ring = [(images[1], square(0.5, 3.5)), (images[1], square(1.6, 2.4)), (images[3], square(-0.5, 1.5))]
    ring.append(ring[0])  # drawn twice, which is no hole as large as itself
    dataset = structures({"wall": ring, "BODY": [(images[1], square(-1, 9))]})
    save([dataset], tmp_path / "in" / "rt")
    rows = convert(tmp_path / "in", tmp_path / "out", classes=("Wall",))
    expected = np.zeros((4, 6, 5), np.uint8)
    expected[1, 1:4, 1:4], expected[1, 2, 2], expected[3, :2, :2] = 1, 0, 1
    row = of_result(rows, "converted")
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / row["label_file"]).dataobj, expected.T)
    assert of_result(rows, "label map")["remark"] == (
        "left out: BODY; 'wall' has no contour on 1 slice between its first and last"
    )
    assert of_result(convert(tmp_path / "in", tmp_path / "all"), "refused")["remark"].startswith(
        "'wall' and 'BODY' over"
    )


def test_contours_that_are_not_read(tmp_path):
    images = volume(tmp_path / "in")
    crossing = {"a": [(images[1], square(-0.5, 2.5)), (images[1], square(1.5, 3.5))]}
    between = image(1.5, SOPInstanceUID=images[1].SOPInstanceUID)
    for name, dataset, why in [
        ("points", structures({"a": [(images[1], square(0, 2))]}, kind="POINT"), "it has no segments or regions"),
        ("open", structures({"a": [(images[1], square(0, 2))]}, kind="OPEN_PLANAR"), "contours of type OPEN_PLANAR"),
        ("crossing", structures(crossing), "cross each other within a slice"),
        ("between", structures({"a": [(between, square(0, 2))]}), "between, across or outside the slices"),
        ("other", structures({"a": [(images[1], square(0, 2))]}, patient="Someone"), "another patient"),
        ("empty", header(STRUCTURES, SeriesInstanceUID="1.2.3.9"), "refers to a series that is not among"),
    ]:
        files = save([dataset], tmp_path / "in" / "rt")
        remark = of_result(convert(tmp_path / "in", tmp_path / name), "refused")["remark"]
        assert why in remark
        files[0].unlink()


def test_a_folder_of_dicom_files_is_read_directly(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    for patient in range(4):
        uid, folder = f"1.2.3.4.{patient}", tmp_path / "in" / f"p{patient}"
        images = volume(folder, patient=f"patient-{patient}", SeriesInstanceUID=uid, RescaleIntercept=f"{patient}")
        segmentation(images, masks(), ["a", "b"]).save_as(folder / "seg.dcm")
    (tmp_path / "in" / "icon.png").write_bytes(b"of a viewer")
    source = FolderSource(data_root=tmp_path / "in")
    with caplog.at_level("INFO", "fewslice"):
        dataset = open_slices(source)
    assert "4 images of 4 subjects from DICOM, 4 with labels; " in caplog.text
    assert (dataset.classes, len(dataset.table)) == (("background", "a", "b"), 16)
    assert dataset.table["subject"].nunique() == 4
    assert "patient-" not in dataset.table.to_csv()
    (row,) = dataset.table.drop_duplicates("row_mm").itertuples()
    assert (row.row_mm, row.column_mm, row.slice_mm) == (ROW_MM, COLUMN_MM, 8)
    assert "converting them once" in capsys.readouterr().err
    assert open_slices(source).digest == dataset.digest
    assert "converting" not in capsys.readouterr().err
    assert run_inspect(Inspect(dataset="folder", data_root=tmp_path / "in")) == 0
    assert len([packed for packed in packed_sets() if packed.folder.name.startswith("dicom-")]) == 1
    assert run_cache(CacheConfig(prune=True)) == 0
    assert run_cache(CacheConfig(prune=True, unused_days=0)) == 2
    assert not packed_sets()


def test_a_folder_of_nothing_but_localisers(tmp_path):
    save([image(z) for z in (0, 1, 3)], tmp_path / "in")
    with pytest.raises(
        UserError, match=r"none of the DICOM series in .*in \(1\) can be converted: the slices are 8 to"
    ):
        open_slices(FolderSource(data_root=tmp_path / "in"))
