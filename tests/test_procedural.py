from itertools import pairwise

import cv2
import numpy as np
import pytest

from data.errors import UserError
from data.procedural import FolderImages, ProceduralImages, procedural_image


def power_slope(image: np.ndarray) -> float:
    """Slope of log power against log frequency, averaged over rings."""
    size = len(image)
    power = np.abs(np.fft.fft2(image)) ** 2
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    edges = np.geomspace(2 / size, 0.4, 10)
    rings = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    centre = [np.log(frequency[ring].mean()) for ring in rings]
    return float(np.polyfit(centre, [np.log(power[ring].mean()) for ring in rings], 1)[0])


def test_procedural_images_repeat_and_differ():
    images = ProceduralImages(count=5, size=64, seed=3)
    assert len(images) == 5
    # In any order, and however many there are: image i depends on the size, the seed and i.
    np.testing.assert_array_equal(images.image(4), ProceduralImages(count=9, size=64, seed=3).image(4))
    assert not np.array_equal(images.image(4), images.image(3))
    assert not np.array_equal(images.image(4), ProceduralImages(count=5, size=64, seed=4).image(4))
    with pytest.raises(IndexError, match="image 5 of 5"):
        images.image(5)


@pytest.mark.parametrize("size", [16, 65, 128])
def test_procedural_images_can_be_normalised(size):
    for seed in range(8):
        image = procedural_image(size, np.random.default_rng(seed))
        assert image.shape == (size, size)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert abs(image.mean()) < 1e-3
        assert image.std() == pytest.approx(1, abs=1e-3)


def test_procedural_images_have_the_spectrum_of_natural_ones():
    # Natural images: power falls with the frequency to the 2 or so; white noise has slope 0.
    slopes = [power_slope(ProceduralImages(count=40).image(i)) for i in range(40)]
    assert -3.2 < np.mean(slopes) < -1.8
    assert max(slopes) < -1.2


def test_folder_images_are_grey_in_the_file_units(tmp_path):
    (tmp_path / "deep").mkdir()
    eight = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sixteen = eight.astype(np.uint16) * 1000
    cv2.imwrite(str(tmp_path / "a.PNG"), eight)
    cv2.imwrite(str(tmp_path / "deep" / "b.png"), sixteen)
    cv2.imwrite(str(tmp_path / "c.png"), np.full((2, 2, 3), (0, 0, 255), np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    images = FolderImages(tmp_path)
    assert [path.name for path in images.files] == ["a.PNG", "c.png", "b.png"]
    np.testing.assert_array_equal(images.image(0), eight.astype(np.float32))
    np.testing.assert_array_equal(images.image(2), sixteen.astype(np.float32))
    np.testing.assert_array_equal(images.image(1), np.full((2, 2), 76, np.float32))  # 0.299 of red
    assert images.image(0).dtype == np.float32
    assert images.hash == FolderImages(tmp_path).hash
    (tmp_path / "c.png").unlink()
    assert images.hash != FolderImages(tmp_path).hash


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_folder_images_name_what_is_wrong(tmp_path, content):
    with pytest.raises(UserError, match=r"holds no images \(.bmp, "):
        FolderImages(tmp_path / "nowhere")
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"x.jpg is not an image"):
        FolderImages(tmp_path).image(0)
