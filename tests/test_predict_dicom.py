"""`segment.predict` on DICOM series: label maps, and DICOM segmentations that lie on the images voxel by voxel."""

from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from made_up_dicom import CR, RAS_AFFINE, cine, enhanced, header, image, save, volume, with_pixels
from pydicom.dataset import Dataset

from core.errors import SomeFilesFailed, UserError
from data.convert import Convert
from data.convert import run as convert
from engine.model_file import save_model
from segment.model import ModelCard, build_unet
from segment.predict import Predict, run

CLASSES = ["background", "RV", "MYO", "LV"]
TO_RAS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A U-Net of random weights, whose label maps have no meaning but all classes."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    card = ModelCard(
        encoder="test_resnet",
        norm="batch",
        classes=CLASSES,
        normalisation="image",
        statistics=(0, 1),
        spacing_mm=None,
        dataset="folder",
        init="random",
    )
    save_model(build_unet("test_resnet", 4), folder, card)
    return folder


def noise(z: int, t: int = 0) -> np.ndarray:
    return np.random.default_rng((z, t)).integers(0, 4000, (24, 20)).astype(np.uint16)


def predict(trained: Path, source: Path, output: Path, **settings):
    return run(Predict(run=trained, input=source, output=output, device="cpu", **settings))


def read(file: Path) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """A segmentation, its class indices (slices, rows, columns) and its affine to NIfTI's (slice, row, column)."""
    segmentation = highdicom.seg.segread(file)
    block = segmentation.get_volume(combine_segments=True)
    return segmentation, block.array, TO_RAS @ block.affine


def assert_on_grid(block: np.ndarray, affine: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> None:
    """Every voxel of a segmentation has the class of the label map (columns, rows, slices) at its place."""
    assert block.any()
    places = np.stack(np.meshgrid(*map(np.arange, block.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    voxels = (world - reference[:3, 3]) @ np.linalg.inv(reference[:3, :3]).T
    np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-3)
    assert block.size == labels.size
    np.testing.assert_array_equal(block.ravel(), labels[tuple(np.rint(voxels).astype(int).T)])


@pytest.mark.slow
def test_a_segmentation_lies_on_its_series(trained, tmp_path):
    images = [image(z, pixels=noise(z)) for z in range(4)]
    save(images, tmp_path / "in")
    sheet = tmp_path / "sheet.png"
    table = predict(trained, tmp_path / "in", tmp_path / "out", uncertainty=tmp_path / "maps", contact_sheet=sheet)
    (file,) = tmp_path.rglob("out/*/*.dcm")
    nifti = nib.load(file.with_suffix(".nii.gz"))
    np.testing.assert_allclose(nifti.affine, RAS_AFFINE, atol=1e-5)
    (entropy,) = map(nib.load, (tmp_path / "maps").rglob("*.nii.gz"))
    np.testing.assert_array_equal(entropy.affine, nifti.affine)
    assert entropy.shape == nifti.shape
    assert sheet.exists()
    segmentation, block, affine = read(file)
    assert_on_grid(block, affine, np.asarray(nifti.dataobj), RAS_AFFINE)
    names = [segmentation.get_segment_description(k).segment_label for k in segmentation.segment_numbers]
    assert names == CLASSES[1:]
    description = segmentation.get_segment_description(1)
    assert description.algorithm_type.value == "AUTOMATIC"
    assert description.algorithm_identification.name == "fewslice U-Net"
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert segmentation[keyword].value == images[0][keyword].value
    assert segmentation.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert (segmentation.Modality, segmentation.SegmentationType) == ("SEG", "BINARY")
    referred = {
        item.ReferencedSOPInstanceUID for item in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred == {each.SOPInstanceUID for each in images}
    for each in images:  # the classes drawn on each image are those of its slice
        z = images.index(each)
        pixels = segmentation.get_pixels_by_source_instance([each.SOPInstanceUID], combine_segments=True)
        np.testing.assert_array_equal(pixels[0], np.asarray(nifti.dataobj)[..., z].T)
    assert table["subject"].str.match(r"sub-[0-9a-f]{12}$").all()
    (tmp_path / "in" / "seg").write_bytes(file.read_bytes())  # and `data.convert` reads what was written
    convert(Convert(input=tmp_path / "in", out=tmp_path / "data", salt="a salt for tests", classes=("RV", "MYO", "LV")))
    (label_map,) = (tmp_path / "data" / "labels").rglob("*.nii.gz")
    np.testing.assert_array_equal(nib.load(label_map).dataobj, nifti.dataobj)
    counts = np.bincount(np.asarray(nifti.dataobj).ravel(), minlength=4)
    np.testing.assert_allclose(table[[f"volume_ml_{name}" for name in CLASSES[1:]]].iloc[0], counts[1:] * 0.015)


def test_volumes_of_dicom_images_whose_voxels_have_no_size(trained, tmp_path, capsys):
    common = {"Modality": "CR", "PhotometricInterpretation": "MONOCHROME2"}
    plain = with_pixels(header(CR, **common, SeriesInstanceUID="1.2.3.21"), noise(0))
    spaced = with_pixels(header(CR, **common, SeriesInstanceUID="1.2.3.22", PixelSpacing=["0.2", "0.1"]), noise(1))
    single = image(0, pixels=noise(2), SeriesInstanceUID="1.2.3.23")
    del single.SliceThickness
    save([plain, spaced, single], tmp_path / "in")
    with pytest.raises(SomeFilesFailed, match="is written, but"):  # a segmentation needs the thickness
        predict(trained, tmp_path / "in", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "volumes.csv")
    assert table["volume_ml_LV"].isna().tolist() == [True, True, True]
    assert table["voxels_LV"].notna().all()
    assert "no voxel size is stated in 3 of 3 images" in capsys.readouterr().out


def test_a_cine_has_a_segmentation_for_each_frame(trained, tmp_path):
    images = [[image(z, t, pixels=noise(z, t)) for z in range(3)] for t in range(2)]
    save([each for frame in images for each in frame], tmp_path / "in")
    table = predict(trained, tmp_path / "in", tmp_path / "out")
    assert table["frame"].tolist() == [1, 2]
    files = sorted(tmp_path.rglob("out/*/*.dcm"))
    assert [file.stem[-8:] for file in files] == ["_frame01", "_frame02"]
    nifti = nib.load(next(tmp_path.rglob("out/*/*.nii.gz")))
    for t, file in enumerate(files):
        segmentation, block, affine = read(file)
        assert_on_grid(block, affine, np.asarray(nifti.dataobj)[..., t], RAS_AFFINE)
        referred = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert {item.ReferencedSOPInstanceUID for item in referred} == {each.SOPInstanceUID for each in images[t]}
    assert len({read(file)[0].SeriesInstanceUID for file in files}) == 1


def test_a_multi_frame_image(trained, tmp_path):
    """The frames that a segmentation refers to are those of the file, whatever their order."""
    places = [(1, 1), (0, 0), (2, 1), (2, 0), (0, 1), (1, 0)]
    save([enhanced(places, pixels=np.stack([noise(*place) for place in places]))], tmp_path / "in")
    predict(trained, tmp_path / "in", tmp_path / "out")
    nifti = nib.load(next(tmp_path.rglob("out/*/*.nii.gz")))
    for t, file in enumerate(sorted(tmp_path.rglob("out/*/*.dcm"))):
        segmentation, block, affine = read(file)
        assert_on_grid(block, affine, np.asarray(nifti.dataobj)[..., t], RAS_AFFINE)
        referred = {
            int(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber)
            for group in segmentation.PerFrameFunctionalGroupsSequence
        }
        assert referred == {number for number, place in enumerate(places, 1) if place[1] == t}


@pytest.mark.slow
def test_single_files_and_failures(trained, tmp_path):
    images = volume(tmp_path / "in", slices=[0, 1, 3])
    with pytest.raises(UserError, match=r"no DICOM series in .* can be read: .*slices are 8 to 16 mm apart"):
        predict(trained, tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="lies within --input"):
        predict(trained, tmp_path / "in", tmp_path / "in" / "out")
    cine(tmp_path / "in" / "more", slices=2, frames=2, SeriesInstanceUID="1.2.3.77")
    with pytest.raises(SomeFilesFailed, match=r"1 of 2 failed.*\n.*slices are 8 to 16 mm apart"):
        predict(trained, tmp_path / "in", tmp_path / "out")
    assert len([*tmp_path.rglob("out/*/*.dcm")]) == 2
    (single,) = save(images[:1], tmp_path / "single")
    predict(trained, single.rename(tmp_path / "scan.dcm"), tmp_path / "one")
    assert len([*tmp_path.rglob("one/*/*.dcm")]) == 1


def test_images_that_allow_no_segmentation(trained, tmp_path):
    """The label map is written all the same."""
    images = [image(z, pixels=noise(z)) for z in range(2)]
    for each in images:
        del each.StudyInstanceUID
    save(images, tmp_path / "in")
    with pytest.raises(SomeFilesFailed, match=r"is written, but .* allow no DICOM segmentation"):
        predict(trained, tmp_path / "in", tmp_path / "out")
    assert len([*tmp_path.rglob("out/*/*.nii.gz")]) == 1
    assert (tmp_path / "out" / "volumes.csv").is_file()
