import numpy as np
import pandas as pd
import pytest
import torch

from data.augment import Augmenter
from data.augmentation import Augmentation
from data.cines import centre_map
from data.samples.on_device import ViewsOnDevice, bytes_needed, can_cache
from data.samples.slices import Pairing, TwoViews
from data.slices import Slices
from engine.sampler import Sample


class Store:
    """Slices of several shapes and one dtype, as `SliceStore` hands them out."""

    def __init__(self, dtype: str, constant: bool = False) -> None:
        rng = np.random.default_rng(0)
        shapes = [(60, 50), (90, 40), (33, 71)]
        self.images = [rng.gamma(2, 60, shape).clip(0, 250).astype(dtype) for shape in shapes]
        if constant:
            self.images[1][:] = 7
        self.table = pd.DataFrame(
            {
                "rows": [i.shape[0] for i in self.images],
                "columns": [i.shape[1] for i in self.images],
                "dtype": dtype,
                "mean": [i.mean(dtype=float) for i in self.images],
                "std": [i.std(dtype=float) for i in self.images],
                "row_mm": 1.0,
                "column_mm": 1.0,
            }
        )

    def image(self, i: int) -> np.ndarray:
        view = self.images[i].view()
        view.flags.writeable = False
        return view


def slices(dtype: str = "int16", *, constant: bool = False, spacing_mm: float | None = None) -> Slices:
    store = Store(dtype, constant)
    return Slices(store=store, positions=np.array([2, 0, 1]), spacing_mm=spacing_mm)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("size", [32, 80], ids=["shrunk", "enlarged"])
def test_the_device_makes_the_views_of_the_cpu(dtype, size):
    """The same samples get the same neighbours, crops and changes, pixel by pixel; shrunk ones are averaged by area."""
    second = Augmentation(solarise=0.5, area=(0.3, 0.9), gamma=0.5, bias_field=0.5, blur=0.5)
    views = Augmenter(Augmentation(), size), Augmenter(second, size)
    of = slices(dtype)
    pairing = Pairing(neighbours=[(1, 2), (), (0,)], centres=[centre_map()] * 3)
    ours, theirs = ViewsOnDevice(of, views, torch.device("cpu"), pairing), TwoViews(of, *views, pairing)
    draws = [Sample(k % 3, seed) for k, seed in enumerate([*range(20), 2**31, 2**32 - 1])]
    batch = ours.__getitems__(draws)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, theirs.__getitems__(draws), rtol=0, atol=2e-3)
    torch.testing.assert_close(ours[draws[4]], batch[4], rtol=0, atol=1e-5)


def test_without_averaging_the_device_interpolates_as_the_cpu():
    views = (Augmenter(Augmentation(antialias=False), 24),) * 2
    of, draws = slices(), [Sample(k % 3, k) for k in range(12)]
    made = [kind.__getitems__(draws) for kind in (ViewsOnDevice(of, views, torch.device("cpu")), TwoViews(of, *views))]
    torch.testing.assert_close(*made, rtol=0, atol=2e-3)


def test_a_constant_slice_becomes_its_offset():
    views = Augmenter(Augmentation(jitter=0), 16), Augmenter(Augmentation(jitter=0, gamma=1, bias_field=1), 16)
    made = ViewsOnDevice(slices(constant=True), views, torch.device("cpu"))[Sample(2, 0)]
    torch.testing.assert_close(made, torch.zeros_like(made), rtol=0, atol=1e-5)


def test_which_slices_can_be_cached():
    plain = Augmenter(Augmentation(), 32)
    assert can_cache(slices(), [plain, plain])
    assert not can_cache(slices(spacing_mm=2.0), [plain, plain])
    for recipe in (
        Augmentation(noise=0.1),
        Augmentation(bicubic=True),
        Augmentation(affine=0.5),
        Augmentation(crop="fixed"),
    ):
        assert not can_cache(slices(), [plain, Augmenter(recipe, 32)])


@pytest.mark.slow
def test_memory():
    pixels = 60 * 50 + 90 * 40 + 33 * 71
    assert [bytes_needed(slices(dtype)) for dtype in ("uint8", "int16", "uint16")] == [2 * pixels] * 2 + [4 * pixels]
