from itertools import pairwise

import numpy as np
import pytest

from data.phantoms.procedural import ProceduralImages, procedural_image


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
