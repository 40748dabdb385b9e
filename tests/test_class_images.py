"""Images in class folders, CIFAR-10's files and the digits; long-tailed and balanced parts of them."""

import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.imbalance import balanced_counts, counts_to_keep, draw_images, long_tailed_counts
from data.readers.class_images import PackedPixels, read_class_image, read_class_images, read_digits
from data.sources import ImagesSource, open_images


def write_classes(root, counts, channels=3, size=8, suffix=".png"):
    """train/ with `counts` images and test/ with two images of each class a, b, c, ...; class k is brighter by 40 k."""
    rng = np.random.default_rng(0)
    for split, of_split in (("train", counts), ("test", [2] * len(counts))):
        for k, count in enumerate(of_split):
            folder = root / split / chr(ord("a") + k)
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (size, size) if channels == 1 else (size, size, 3)
                pixels = (rng.integers(0, 40, shape) + 40 * k).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}{suffix}")
    return root


def test_counts_of_cifar10_lt():
    """Cao et al. 2019; Ray 2022, section 3.2."""
    counts = long_tailed_counts(5000, 0.01, 10)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert balanced_counts(sum(counts), 10) == [1241] * 6 + [1240] * 4


def test_draws_are_seeded_and_nested():
    labels = np.repeat([0, 1, 2], 20)
    large, small = draw_images(labels, [20, 10, 5], 3), draw_images(labels, [10, 4, 1], 3)
    assert np.bincount(labels[small]).tolist() == [10, 4, 1]
    assert {*small} < {*large}
    assert {*small} != {*draw_images(labels, [10, 4, 1], 4)}
    assert large.tolist() == sorted(set(large.tolist()))


def test_the_tail_begins_with_the_smallest_class():
    labels = np.repeat([0, 1, 2], [50, 30, 40])
    assert counts_to_keep(labels, "abc", 0.1, None) == [30, 9, 3]
    assert counts_to_keep(labels, "abc", 1.0, None) == [50, 30, 40]
    assert counts_to_keep(labels, "abc", 1.0, 11) == [4, 4, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imbalance": 0.0}, r"--imbalance 0.0: must lie in \(0, 1\]"),
        ({"imbalance": 1.5}, r"--imbalance 1.5: must lie in \(0, 1\]"),
        ({"imbalance": float("nan")}, "--imbalance nan"),
        ({"imbalance": 0.1, "total": 100}, "pass one of them"),
        ({"total": 0}, "--total 0: must be above 0"),
        ({"draw_seed": -1}, "--draw-seed -1"),
    ],
)
def test_impossible_parts_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ImagesSource(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imbalance": 0.001}, "9 would keep none; pass 0.0"),
        ({"total": 5000}, "500 images of each class are needed and 0 has 142; pass 1390 or fewer"),
        ({"total": 19}, "10 classes need at least 20"),
    ],
)
def test_parts_larger_than_the_data_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        open_images(ImagesSource(**settings))


def test_digits_split_by_a_rule():
    digits = read_digits()
    assert (len(digits.train), len(digits.test), digits.channels) == (1438, 359, 1)
    for label in range(10):
        assert (
            digits.train[digits.labels[digits.train] == label].max()
            < digits.test[digits.labels[digits.test] == label].min()
        )
    assert digits.digest == read_digits().digest != digits.selected(0.1, None, 0).digest
    assert digits.image(0).max() == 15


def test_folders_keep_grey_and_colour(tmp_path):
    grey = read_class_images(write_classes(tmp_path / "grey", [4, 3], channels=1))
    assert (grey.channels, grey.classes, grey.counts, len(grey.test)) == (1, ("a", "b"), [4, 3], 4)
    assert grey.image(0).shape == (8, 8)
    root = write_classes(tmp_path / "mixed", [3, 2])
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "train/a/000.png")
    mixed = read_class_images(root)
    assert mixed.channels == 3
    assert mixed.image(0).shape == (8, 8, 3)
    assert (mixed.image(0) == np.arange(64).reshape(8, 8, 1)).all()
    assert (mixed.image(1) == np.asarray(Image.open(root / "train/a/001.png"))).all()
    assert mixed.image(1).tolist() == pickle.loads(pickle.dumps(mixed.pixels))[1].tolist()  # for worker processes


def test_every_kind_of_picture_is_read(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    for mode, shape in {
        "RGB": (6, 5, 3),
        "RGBA": (6, 5, 3),
        "L": (6, 5),
        "LA": (6, 5),
        "P": (6, 5, 3),
        "1": (6, 5),
    }.items():
        Image.fromarray(rgb).convert(mode).save(tmp_path / f"{mode}.png")
        assert read_class_image(tmp_path / f"{mode}.png").shape == shape
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    assert read_class_image(tmp_path / "deep.png").max() > 255
    Image.fromarray(rgb).save(tmp_path / "x.jpg", quality=100)
    assert np.abs(read_class_image(tmp_path / "x.jpg").astype(int) - rgb).mean() < 40


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="neither train/CLASS/"):
        read_class_images(tmp_path)
    root = write_classes(tmp_path / "one", [3, 1])
    with pytest.raises(UserError, match=r"one/train/b holds 1 image: a class needs two or more"):
        read_class_images(root)
    root = write_classes(tmp_path / "unknown", [2, 2])
    (root / "test/z").mkdir()
    with pytest.raises(UserError, match="there is no class z in"):
        read_class_images(root)
    root = write_classes(tmp_path / "single", [2])
    with pytest.raises(UserError, match="holds 1 class folders"):
        read_class_images(root)
    root = write_classes(tmp_path / "damaged", [3, 3])
    for name in ("train/a/001.png", "test/b/000.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    with pytest.raises(UserError, match=r"a/001.png cannot be read .*and 1 more"):
        read_class_images(root)


def test_files_of_other_formats_are_not_decoded(tmp_path):
    root = write_classes(tmp_path, [2, 2])
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "train/a/x.bmp")
    (root / "train/a/x.bmp").rename(root / "train/a/x.png")
    with pytest.raises(UserError, match=r"x.png cannot be read"):
        read_class_images(root)


def test_copies_have_one_digest_and_are_decoded_once(tmp_path, monkeypatch):
    first = read_class_images(write_classes(tmp_path / "first", [3, 2], suffix=".jpg"))
    monkeypatch.setattr("data.readers.class_images.read_class_image", None)
    again = read_class_images(write_classes(tmp_path / "again", [3, 2], suffix=".jpg"))
    assert first.digest == again.digest
    assert isinstance(again.pixels, PackedPixels)


def test_cifar10_of_torchvision(tmp_path, monkeypatch):
    """Two images in torchvision's format; its checksums guard the pickles, so those of these files replace them."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072) % 251

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    names = [f"class{k}" for k in range(10)]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(
        CIFAR10, "train_list", [write("data_batch_1", {"data": pixels.astype(np.uint8), "labels": [1, 0]})]
    )
    monkeypatch.setattr(
        CIFAR10, "test_list", [write("test_batch", {"data": pixels[:1].astype(np.uint8), "labels": [9]})]
    )
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    for root in (tmp_path, folder):
        images = read_class_images(root)
        assert (images.name, images.channels, images.classes) == ("cifar10", 3, tuple(names))
        assert images.labels.tolist() == [1, 0, 9]
        assert images.image(0).shape == (32, 32, 3)
        assert images.image(0)[0, 0].tolist() == [0, 1024 % 251, 2048 % 251]
    (folder / "data_batch_1").write_bytes(b"other")
    with pytest.raises(UserError, match="incomplete or damaged"):
        read_class_images(tmp_path)
