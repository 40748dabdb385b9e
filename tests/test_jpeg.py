"""Photographs as JPEG files: dermoscopy, endoscopy, fundus images."""

import nibabel as nib
import numpy as np
import pytest
from PIL import ExifTags, Image

from core.errors import UserError
from data.readers.discovery import discover
from data.readers.images import read_shape, read_volume
from data.slices import load_dataset


def photograph(path, orientation=None):
    values = np.zeros((24, 32, 3), np.uint8)
    values[:, 16:] = 200, 100, 50
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, quality=100, subsampling=0, exif=exif)
    return values


def mask(path):
    values = np.zeros((24, 32), np.uint8)
    values[:, 16:] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("image", "label"), [("{}.jpg", "{}_segmentation.png"), ("images/{}.JPEG", "masks/{}.png")], ids=["beside", "apart"]
)
@pytest.mark.parametrize("channels", [None, (0, 1, 2)])
def test_images_with_their_masks(tmp_path, image, label, channels):
    for case in "abcdef":
        values = photograph(tmp_path / "set" / image.format(case))
        mask(tmp_path / "set" / label.format(case))
    dataset = load_dataset("folder", tmp_path / "set", channels=channels)
    assert dataset.table["labelled"].all()
    assert len(dataset.splits) == 6
    assert dataset.classes == ("background", "1")
    assert (dataset.store.label(0) == (values[..., 0] > 100)).all()
    volume = read_volume(tmp_path / "set" / image.format("a"), channels=channels is not None)
    assert volume.values.shape == read_shape(volume.path, channels=channels is not None).shape
    if channels:
        assert np.abs(volume.values[:, :, 0].swapaxes(0, 1) - values.astype(float)).max() < 5


@pytest.mark.parametrize("read", [read_volume, read_shape])
def test_a_photograph_that_viewers_turn_is_refused(tmp_path, read):
    photograph(tmp_path / "a.jpg", orientation=6)
    with pytest.raises(UserError, match=r"a.jpg is stored turned or mirrored .*: save it upright, e.g. by ImageMagick"):
        read(tmp_path / "a.jpg")
    photograph(tmp_path / "b.jpg", orientation=1)
    assert read(tmp_path / "b.jpg")


@pytest.mark.parametrize("name", ["masks/a.jpg", "masks/a.png"])
def test_a_label_map_with_blurred_classes_is_refused(tmp_path, name):
    photograph(tmp_path / "images/a.jpg")
    mask(tmp_path / "mask.jpg")
    (tmp_path / "masks").mkdir()
    (tmp_path / "mask.jpg").rename(tmp_path / name)  # some programs name JPEG files .png
    with pytest.raises(UserError, match=rf"{name} is a JPEG image, which blurs the classes .*: make it again as PNG"):
        load_dataset("folder", tmp_path)


def test_previews_of_volumes_are_no_images(tmp_path):
    photograph(tmp_path / "case/preview.jpg")
    nib.Nifti1Image(np.zeros((4, 4, 2), np.int16), np.eye(4)).to_filename(tmp_path / "case/scan.nii")
    found = discover(tmp_path)
    assert [image.file.name for image in found.images] == ["scan.nii"]
    assert found.search.messages() == [f"{tmp_path}: skipped 1 file: 1 .jpg"]
