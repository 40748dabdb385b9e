"""Geometry of a pair of files: axis, direction, spacing and origin are those of the image, or of the reference."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image

from core.errors import UserError
from data.inspect import inspect_dataset
from data.readers.exams import load_exams, read_exam
from data.readers.geometry import align, common_plane, slice_axis_to_save, slicing_like
from data.readers.images import read_shape, read_volume
from data.readers.label_maps import ReadingOptions
from data.slices import load_dataset
from data.sources import FolderSource, open_slices
from segment.evaluate import Evaluate
from segment.evaluate import run as evaluate

RNG = np.random.default_rng(0)
SHAPE = (14, 12, 5)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 8, 7], [0, 0, 0, 1.0]])
ACDC = np.diag([-1.0, -1, 1, 1])
OBLIQUE = np.array([[1.4, 0.2, 0, -50], [-0.2, 1.4, 0, 30], [0, 0, 8, 12], [0, 0, 0, 1.0]])


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, zooms: tuple | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    if zooms:
        image.header.set_zooms(zooms)
    image.to_filename(path)
    return path


def pair(shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An image that is bright in its one labelled block, which no flip or swap of axes leaves in place."""
    labels = np.zeros(shape, np.uint8)
    labels[2:5, 1:4, : max(1, shape[2] // 3)] = 1
    return (RNG.normal(300, 9, shape) + 300.0 * labels).astype(np.int16), labels


def stored(values: np.ndarray, codes: str, affine: np.ndarray = AFFINE) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places, stored with axes in other directions."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(values, turn), affine @ inv_ornt_aff(turn, values.shape)


def aligned(folder: Path) -> np.ndarray:
    return align(read_volume(folder / "label.nii"), read_volume(folder / "image.nii")).values


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPI", "SLA", "PIR"])
def test_label_maps_are_brought_onto_the_image(tmp_path, codes):
    image, labels = pair()
    nifti(tmp_path / "images/a.nii.gz", image)
    nifti(tmp_path / "labels/a.nii.gz", *stored(labels, codes))
    store = load_dataset("folder", tmp_path).store
    assert len(store) == SHAPE[2]
    bright = [(store.image(k) > 450) == (store.label(k) == 1) for k in range(len(store))]
    assert np.all(bright)
    assert inspect_dataset("folder", tmp_path)["problems"] == []


def test_a_cine_and_its_labels(tmp_path):
    values = RNG.integers(0, 3, (*SHAPE, 2)).astype(np.uint8)
    nifti(tmp_path / "image.nii", values)
    nifti(tmp_path / "label.nii", *stored(values, "PIR"))
    np.testing.assert_array_equal(aligned(tmp_path), values)


@pytest.mark.parametrize(
    ("image_affine", "label_affine", "label_zooms"),
    [
        (ACDC, ACDC, (1.5, 1.5, 8)),
        (AFFINE, ACDC, None),
        (ACDC, np.eye(4), (1, 1, 1)),
        (AFFINE, np.eye(4), (1.5, 1.5, 8)),
        (np.eye(4), AFFINE, (1.5, 1.5, 8)),
        (AFFINE, None, (1.5, 1.5, 8)),
        (OBLIQUE, OBLIQUE + 1e-5, None),
        (AFFINE, AFFINE * [[1.01, 1, 1, 1]], (1.515, 1.5, 8)),
    ],
    ids=["both unit", "ITK's default", "two units", "unit label", "unit image", "no code", "float noise", "rounded"],
)
def test_label_maps_without_a_place_or_rounded(tmp_path, image_affine, label_affine, label_zooms):
    """Their array is taken as it is."""
    image, labels = pair()
    nifti(tmp_path / "image.nii", image, image_affine, (1.5, 1.5, 8))
    nifti(tmp_path / "label.nii", labels, label_affine, label_zooms)
    np.testing.assert_array_equal(aligned(tmp_path), labels)


def moved(x: float = 0, y: float = 0, z: float = 0) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += (x, y, z)
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "difference"),
    [
        (SHAPE, moved(x=1.5), "origin"),
        (SHAPE, moved(y=0.5), "origin"),
        (SHAPE, moved(z=-16), "origin"),
        (SHAPE, AFFINE @ np.diag([1, 1, 2, 1.0]), "spacing 1.5 x 1.5 x 16 for 1.5 x 1.5 x 8 mm"),
        (SHAPE, OBLIQUE, "direction"),
        ((14, 12, 6), AFFINE, "shape 14 x 12 x 6 for 14 x 12 x 5"),
        ((14, 12, 6), np.eye(4), "shape 14 x 12 x 6 for 14 x 12 x 5"),
    ],
)
def test_another_grid_is_refused(tmp_path, shape, affine, difference):
    nifti(tmp_path / "images/a.nii.gz", pair()[0])
    nifti(tmp_path / "labels/a.nii.gz", np.zeros(shape, np.uint8), affine)
    with pytest.raises(UserError, match=rf"labels/a\.nii\.gz .*images/a\.nii\.gz \(.*{difference}.*\): save"):
        load_dataset("folder", tmp_path)
    problems = inspect_dataset("folder", tmp_path)["problems"]
    assert [Path(problem["file"]).parent.name for problem in problems] == ["labels"]


@pytest.mark.parametrize("zooms", [(1.5, 8, 1.5), (1.5, 1.5, 4)])
def test_another_spacing_without_a_place_is_refused(tmp_path, zooms):
    nifti(tmp_path / "image.nii", pair()[0], ACDC, (1.5, 1.5, 8))
    nifti(tmp_path / "label.nii", pair()[1], ACDC, zooms)
    with pytest.raises(UserError, match="spacing"):
        aligned(tmp_path)


def test_units_do_not_matter(tmp_path):
    image, labels = pair()
    nifti(tmp_path / "image.nii", image)
    metres = nib.Nifti1Image(labels, np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE)
    metres.header.set_xyzt_units("meter")
    metres.to_filename(tmp_path / "label.nii")
    np.testing.assert_array_equal(aligned(tmp_path), labels)


def test_2d_files(tmp_path):
    """A 2D file, one slice of a volume and a PNG agree, wherever the first says its slice lies."""
    image, labels = (values[..., 0] for values in pair())
    nifti(tmp_path / "image.nii", image, moved(z=24))
    nifti(tmp_path / "label.nii", labels[..., None], AFFINE)
    np.testing.assert_array_equal(aligned(tmp_path)[..., 0], labels)
    Image.fromarray(labels.T).save(tmp_path / "label.png")
    mask = align(read_volume(tmp_path / "label.png"), read_volume(tmp_path / "image.nii"))
    np.testing.assert_array_equal(mask.values[..., 0], labels)


@pytest.mark.parametrize("shape", [(32, 30, 28), (12, 30, 28)])
def test_the_image_decides_the_slice_axis(tmp_path, shape):
    image, labels = pair(shape)
    nifti(tmp_path / "images/a.nii.gz", image, np.diag([3.0, 1, 1, 1]))
    nifti(tmp_path / "labels/a.nii.gz", labels, np.eye(4))
    store = load_dataset("folder", tmp_path).store
    assert len(store) == shape[0]
    assert all(np.array_equal(store.image(k) > 450, store.label(k) == 1) for k in range(len(store)))


@pytest.mark.parametrize(
    ("shape", "zooms", "axis"),
    [
        ((1, 64, 48), (1, 1, 1), 0),
        ((64, 1, 48), (1, 1, 8), 1),
        ((64, 48, 1), (3, 1, 1), 2),
        ((64, 48), (1, 1), 2),
        ((20, 20, 20), (1.02, 1, 1), 2),
        ((20, 20, 20), (1, 1.000001, 1), 2),
        ((20, 20, 20), (1, 3, 1), 1),
    ],
)
def test_slice_axis(tmp_path, shape, zooms, axis):
    file = nifti(tmp_path / "a.nii", np.zeros(shape, np.int16), np.eye(4), zooms)
    assert read_shape(file).slice_axis == axis


@pytest.mark.parametrize(("setting", "axis"), [("0", 0), ("2", 2), ("axial", 1), ("coronal", 0), ("sagittal", 2)])
def test_the_slice_axis_can_be_set(tmp_path, setting, axis):
    image, labels = pair((9, 8, 7))
    affine = np.array([[0, 0, 1, 4], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    nifti(tmp_path / "images/a.nii", image, affine)
    nifti(tmp_path / "labels/a.nii", labels, affine)
    store = open_slices(FolderSource(data_root=tmp_path, slice_axis=setting)).store
    assert len(store) == image.shape[axis]
    np.testing.assert_array_equal(store.image(3), np.take(image, 3, axis).T)
    np.testing.assert_array_equal(store.label(3), np.take(labels, 3, axis).T)
    assert inspect_dataset("folder", tmp_path, options=ReadingOptions(slice_axis=setting))["shape"]["slices"][0] == len(
        store
    )


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("case", ["isotropic and coarse", "isotropic, turned"])
def test_files_of_different_planes(tmp_path, caplog, case, labelled):
    for number in range(2):
        image, labels = pair((9, 8, 7))
        affine = np.diag([1.2 if number else 1.0, 1, 1, 1]) + 0.0
        affine[0, 3] = 5  # a place in the world
        if case == "isotropic, turned":
            affine = affine[:, [2, 0, 1, 3]] if number else affine
            affine = affine / [[*np.linalg.norm(affine[:3, :3], axis=0), 1]]
        nifti(tmp_path / f"images/a{number}.nii", image, affine)
        if labelled:
            nifti(tmp_path / f"labels/a{number}.nii", labels, affine)
    (tmp_path / "labels").mkdir(exist_ok=True)
    warnings = inspect_dataset("folder", tmp_path)["warnings"]
    assert any("different planes" in warning["problem"] for warning in warnings)
    if labelled:
        with pytest.raises(UserError, match=r"a0\.nii: axial, across axis 2; .*a1\.nii: .*--slice-axis"):
            load_dataset("folder", tmp_path)
    else:
        load_dataset("folder", tmp_path)
        assert "different planes" in caplog.text
    load_dataset("folder", tmp_path, options=ReadingOptions(slice_axis="axial"))


@pytest.mark.parametrize("other", ["oblique", "slices first"])
def test_files_of_one_plane(tmp_path, other):
    """Oblique stacks whose slices lie across one axis of the arrays; an axial scan stored slices first."""
    image, labels = pair()
    for kind in ("images", "labels"):
        values = image if kind == "images" else labels
        nifti(tmp_path / kind / "a.nii", values)
        turned = (values, AFFINE[[2, 1, 0, 3]]) if other == "oblique" else stored(values, "SLA")
        nifti(tmp_path / kind / "b.nii", *turned)
    assert len(load_dataset("folder", tmp_path).store) == 2 * SHAPE[2]


def test_a_model_keeps_the_plane_of_isotropic_scans(tmp_path):
    affine = np.array([[0, 0, 1, 4], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    isotropic = read_shape(nifti(tmp_path / "a.nii", np.zeros((9, 8, 7)), affine))
    coarse = read_shape(nifti(tmp_path / "b.nii", np.zeros(SHAPE)))
    assert slice_axis_to_save([isotropic]) == "sagittal"
    assert slice_axis_to_save([isotropic, coarse]) == slice_axis_to_save([coarse]) == "auto"
    assert slice_axis_to_save([isotropic._replace(slicing="1")]) == "1"
    assert (common_plane([coarse]), common_plane([coarse, isotropic])) == ("axial", None)
    assert slicing_like("coronal", "auto", isotropic) == "coronal"
    assert slicing_like("coronal", "auto", coarse) == slicing_like(None, "auto", isotropic) == "auto"
    assert slicing_like("coronal", "1", isotropic) == "1"
    c, s = np.cos(0.7), np.sin(0.7)  # 40 degrees
    oblique = np.array([[1, 0, 0, 0], [0, c, -4 * s, 0], [0, s, 4 * c, 0], [0, 0, 0, 1.0]])
    assert common_plane([read_shape(nifti(tmp_path / "c.nii", np.zeros((9, 8, 7)), oblique))]) is None


def test_exams_of_different_planes(tmp_path):
    nifti(tmp_path / "a.nii", pair((9, 8, 7))[0], moved(x=1))
    nifti(tmp_path / "b.nii", pair((9, 8, 7))[0], np.diag([4.0, 1, 1, 1]))
    (tmp_path / "labels.csv").write_text("path,label,split\na.nii,0,train\nb.nii,1,train\n")
    with pytest.raises(UserError, match="different planes"):
        load_exams(tmp_path, labels=tmp_path / "labels.csv")
    exams = load_exams(tmp_path, slice_axis="axial")
    assert exams.table["frame_count"].tolist() == [7, 7]
    assert read_exam(tmp_path / "b.nii")[0].shape == (9, 7, 8)
    assert read_exam(tmp_path / "b.nii", "axial")[0].shape == (7, 8, 9)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_the_same_mask_in_the_same_place_scores_1(tmp_path, codes):
    labels = pair()[1]
    nifti(tmp_path / "r/a.nii.gz", labels)
    nifti(tmp_path / "p/a.nii.gz", *stored(labels, codes))
    result = evaluate(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r"))
    assert result["dice"]["mean"] == result["slice_jaccard"] == 1
    assert json.loads((tmp_path / "p/scores/result.json").read_text())["hd95_mm"]["mean"] == 0


def test_a_reference_without_spacing_takes_that_of_the_prediction(tmp_path, caplog):
    labels = pair()[1]
    nifti(tmp_path / "r/a.nii.gz", labels, np.eye(4))
    nifti(tmp_path / "p/a.nii.gz", np.roll(labels, 1, axis=0))
    result = evaluate(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r"))
    assert result["hd95_mm"]["mean"] == pytest.approx(1.5)
    assert "has no spacing" in caplog.text


def test_a_mask_elsewhere_is_not_scored(tmp_path):
    labels = pair()[1]
    nifti(tmp_path / "r/a.nii.gz", labels)
    nifti(tmp_path / "p/a.nii.gz", labels, moved(x=-3))
    with pytest.raises(UserError, match=r"p/a\.nii\.gz does not lie .* r?.*/a\.nii\.gz \(origin"):
        evaluate(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r"))


def test_spacing_of_the_affine_where_pixdim_has_none(tmp_path):
    file = nifti(tmp_path / "a.nii", pair()[0])
    content = bytearray(file.read_bytes())
    content[80:92] = bytes(12)
    file.write_bytes(content)
    assert read_volume(file).shape.slice_spacing == read_shape(file).slice_spacing == (1.5, 1.5, 8)
    (warning,) = inspect_dataset("folder", tmp_path)["warnings"]
    assert "has no spacing in its header" in warning["problem"]
    content[252:256] = bytes(4)  # neither qform nor sform
    file.write_bytes(content)
    (warning,) = inspect_dataset("folder", tmp_path)["warnings"]
    assert "1 mm is assumed" in warning["problem"]


@pytest.mark.parametrize("what", ["qform", "pixdim"])
def test_a_header_that_contradicts_itself_is_named(tmp_path, what):
    image = nib.Nifti1Image(pair()[0], AFFINE)
    if what == "qform":
        image.set_qform(moved(x=3), code=1)
    else:
        image.header.set_zooms((1.5, 1.5, 10))
    image.to_filename(tmp_path / "a.nii")
    (warning,) = inspect_dataset("folder", tmp_path)["warnings"]
    assert what in warning["problem"]


def test_a_label_map_takes_the_geometry_of_its_image(tmp_path):
    image, labels = pair()
    nifti(tmp_path / "image.nii", image)
    nifti(tmp_path / "label.nii", *stored(labels, "PIR"))
    scan = replace(read_volume(tmp_path / "image.nii"), slicing="0")
    mask = align(read_volume(tmp_path / "label.nii"), scan)
    assert mask.stack.shape == scan.stack.shape
