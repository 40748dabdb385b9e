import re

import cv2
import numpy as np
import PIL.Image
import pytest
from torch.utils.data import DataLoader

from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.readers.natural import FolderImages
from data.samples.slices import Standardised, TwoViews
from engine.loop import _next_batch


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


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut", "png", "jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_broken_images_are_found_at_once(tmp_path, content):
    with pytest.raises(UserError, match=r"holds no images \(.bmp, "):
        FolderImages(tmp_path / "nowhere")
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    if isinstance(content, str):  # cut short
        content = cv2.imencode(f".{content}", noise)[1].tobytes()[:-300]
    cv2.imwrite(str(tmp_path / "whole.png"), noise)
    (tmp_path / "x.jpg").write_bytes(content)
    (tmp_path / "y.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.jpg cannot be read .* copy it again \(and 1 more\)"):
        FolderImages(tmp_path)
    for name in "xy":
        (tmp_path / f"{name}.jpg").unlink()
    images = FolderImages(tmp_path)
    images.files[0].write_bytes(bytes(images.files[0].stat().st_size))  # damaged later, the size unchanged
    assert len(FolderImages(tmp_path)) == 1
    with pytest.raises(UserError, match=r"whole\.png cannot be read"):
        images.image(0)


def test_a_large_photograph_is_refused(tmp_path):
    PIL.Image.new("1", (14_000, 14_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has slices of 196,000,000 pixels"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_one_sentence(tmp_path, workers):
    """torch puts the traceback of the worker into the message."""
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(12, dtype=np.uint8).reshape(3, 4))
    images = FolderImages(tmp_path)
    (tmp_path / "a.png").unlink()
    samples = TwoViews(Standardised(images), Augmenter(Augmentation(), 32))
    loader = iter(DataLoader(samples, sampler=[(0, 0)], num_workers=workers, batch_size=1))
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/a\.png does not exist: check the path$"):
        _next_batch(loader)
