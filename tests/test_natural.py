import cv2
import numpy as np
import pytest

from core.errors import UserError
from data.readers.natural import FolderImages


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
    with pytest.raises(UserError, match=r"x.jpg cannot be decoded as an image"):
        FolderImages(tmp_path).image(0)
