import numpy as np
import pytest
import torch

from data.augment import Augmenter
from data.augmentation import Augmentation
from data.preprocessing import resample, z_score
from data.samples.slices import AugmentedSlices, Standardised, TwoViews
from data.slices import Dataset, Slices, load_dataset, pooled_statistics
from engine.loop import collate
from engine.sampler import Sample


@pytest.fixture(scope="module")
def dataset(tiny_acdc) -> Dataset:
    return load_dataset("acdc", tiny_acdc)


def test_z_score_by_hand():
    scored = z_score(np.array([[2, 4], [6, 8]], np.int16), 5, 2)
    assert scored.dtype == np.float32
    np.testing.assert_array_equal(scored, [[-1.5, -0.5], [0.5, 1.5]])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_z_scored_slices_of_every_dtype(dtype):
    image = np.random.default_rng(0).integers(0, 250, (40, 30)).astype(dtype)
    scored = z_score(image, float(image.mean()), float(image.std()))
    assert scored.mean(dtype=float) == pytest.approx(0, abs=1e-5)
    assert scored.std(dtype=float) == pytest.approx(1, abs=1e-5)


def test_a_constant_image_becomes_zeros():
    assert not z_score(np.full((3, 4), 700, np.uint16), 700, 0).any()
    assert z_score(np.full((3, 4), 700, np.uint16), 700, 0).dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "spacing", "to_mm", "size"),
    [
        ((216, 256), (1.5625, 1.5625), 1.5, (225, 267)),
        ((100, 80), (1.0, 2.0), 2.0, (50, 80)),
        ((100, 80), (2.0, 1.0), 2.0, (100, 40)),
        ((7, 7), (0.1, 0.1), 0.4, (2, 2)),
        ((64, 48), (1.5, 1.5), 1.5, (64, 48)),
    ],
)
def test_resampled_sizes(shape, spacing, to_mm, size):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    label = (image > 1).astype(np.uint8) * 3
    assert resample(image, spacing, to_mm).shape == size
    again = resample(label, spacing, to_mm, label=True)
    assert again.shape == size
    assert again.dtype == np.uint8
    assert set(np.unique(again)) <= {0, 3}
    if size == shape:
        np.testing.assert_array_equal(resample(image, spacing, to_mm), image)


@pytest.mark.parametrize("to_mm", [0.7, 1.0, 1.6, 2.9])
def test_resampled_label_maps_lie_on_resampled_images(to_mm):
    y, x = np.mgrid[:120, :100]
    image = (25 - np.hypot(y - 58, x - 47)).astype(np.float32)
    small, label = resample(image, (1, 1), to_mm), resample((image > 0).astype(np.uint8), (1, 1), to_mm, label=True)
    away = np.abs(small) > 1.5 * max(1, to_mm)  # mm from the edge
    np.testing.assert_array_equal(label[away], small[away] > 0)


@pytest.mark.parametrize("to_mm", [0.7, 1.1, 1.6])
def test_resampled_label_maps_are_not_displaced(to_mm):
    y, x = np.mgrid[:240, :200]
    image = (60 - np.hypot(y - 119.3, x - 100.4)).astype(np.float32)
    small, label = resample(image, (1, 1), to_mm), resample((image > 0).astype(np.uint8), (1, 1), to_mm, label=True)
    shift = np.mean(np.nonzero(label), axis=1) - np.mean(np.nonzero(small > 0), axis=1)
    np.testing.assert_allclose(shift, 0, atol=0.1)


def test_shrinking_averages():
    image = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(resample(image, (1, 1), 2), [[2.5, 4.5], [10.5, 12.5]])


def test_pooled_statistics_are_those_of_all_pixels(dataset):
    positions = dataset.positions("train")[::3]
    pixels = np.concatenate([dataset.store.image(i).ravel() for i in positions]).astype(float)
    mean, std = pooled_statistics(dataset.store, positions)
    assert mean == pytest.approx(pixels.mean(), rel=1e-10)
    assert std == pytest.approx(pixels.std(), rel=1e-10)


def test_pooled_statistics_weigh_slices_by_their_pixels(dataset):
    """Made up: 2 pixels of mean 0 and 6 of mean 4, both of variance 1."""

    class Store:
        table = dataset.table.iloc[:2].assign(rows=[1, 2], columns=[2, 3], mean=[0.0, 4.0], std=[1.0, 1.0])

    mean, std = pooled_statistics(Store(), np.array([0, 1]))  # type: ignore[arg-type]
    assert mean == 3
    assert std**2 == pytest.approx(1 + (2 * 9 + 6 * 1) / 8)


def test_slices_count_within_their_positions(dataset):
    positions = dataset.positions("train", labelled=True)[[5, 2]]
    slices = Slices(store=dataset.store, positions=positions)
    assert len(slices) == 2
    for k, i in enumerate(positions):
        raw = dataset.store.image(i).astype(float)
        np.testing.assert_allclose(slices.image(k), (raw - raw.mean()) / raw.std(), atol=1e-5)
        np.testing.assert_array_equal(slices.label(k), dataset.store.label(i))
        assert slices.spacing(k) == (1.5, 1.5)
    assert slices.image(0).shape == (56, 64)  # rows are the file's second axis


def test_dataset_statistics_and_spacing(dataset):
    positions = dataset.positions("train", labelled=True)
    slices = Slices(
        store=dataset.store, positions=positions, normalisation="dataset", statistics=(100, 50), spacing_mm=3.0
    )
    assert slices.image(0).shape == slices.label(0).shape == (28, 32)
    plain = (dataset.store.image(positions[0]).astype(np.float32) - 100) / 50
    np.testing.assert_allclose(slices.image(0), resample(plain, (1.5, 1.5), 3.0), atol=1e-5)


def test_two_views_differ_and_depend_on_the_sample_alone(dataset):
    pairs = TwoViews(Slices(store=dataset.store, positions=dataset.positions("train")), Augmenter(Augmentation(), 32))
    one = pairs[Sample(3, 2**32 - 1)]
    assert one.shape == (2, 1, 32, 32)
    assert one.dtype == torch.float32
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one, pairs[Sample(3, 2**32 - 1)])
    assert not torch.equal(one, pairs[Sample(3, 7)])
    assert not torch.equal(one, pairs[Sample(4, 2**32 - 1)])


def test_a_batch_made_whole_is_its_samples(dataset):
    slices = Slices(store=dataset.store, positions=dataset.positions("train"))
    draws = [Sample(3, 2**32 - 1), Sample(0, 5), Sample(3, 6)]
    for recipe in (Augmentation(), Augmentation(affine=1)):
        pairs = TwoViews(slices, Augmenter(recipe, 32), Augmenter(Augmentation(solarise=1), 32))
        batch = collate(pairs.__getitems__(draws))
        assert torch.equal(batch, torch.stack([pairs[draw] for draw in draws]))
        for k, (item, seed) in enumerate(draws):  # and what the views give one by one
            expected = pairs.augmenters[0](slices.image(item), seed)[0]
            np.testing.assert_allclose(batch[k, 0, 0], expected, atol=1e-4)


def test_labelled_views_move_image_and_label_together(dataset):
    slices = Slices(store=dataset.store, positions=dataset.positions("train", labelled=True))
    image, label = AugmentedSlices(slices, Augmenter(Augmentation(crop="fixed", jitter=0), 32))[Sample(0, 5)]
    assert (image.shape, label.shape) == ((1, 32, 32), (32, 32))
    assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
    bright, dark = image[0][label == 3], image[0][label == 2]  # as the fixture draws them
    assert bright.numel() > 20
    assert bright.min() > dark.max()


def test_images_in_any_units_are_standardised():
    class Photographs:
        def __len__(self) -> int:
            return 2

        def image(self, k: int) -> np.ndarray:
            return np.full((4, 4), 9.0, np.float32) if k else np.arange(16, dtype=np.float32).reshape(4, 4)

    images = Standardised(Photographs())
    assert len(images) == 2
    varied, constant = (z_score(image, *statistics) for image, statistics in map(images.raw, range(2)))
    assert varied.mean() == pytest.approx(0, abs=1e-6)
    assert varied.std() == pytest.approx(1, abs=1e-6)
    assert not constant.any()
