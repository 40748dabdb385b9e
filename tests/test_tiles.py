"""Large slices: training cuts full-resolution crops out of tiles, prediction goes through windows, row by row."""

import logging
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_segment import Fake
from torch import Tensor, nn

import data.preprocessing
import data.slices
import segment.windows
from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.duplicates import fingerprint
from data.readers.folder import index_folder
from data.readers.label_maps import IGNORED, counts_of
from data.samples.one_view import OneView
from data.samples.slices import AugmentedSlices, TwoViews
from data.samples.unlabelled import Pool, cells_in
from data.slices import Slices
from data.sources import FolderSource
from data.tiles import Foreground, draw_tile, say_large_slices
from engine.model_file import save_model
from segment.ensemble import Ensemble
from segment.figures import foreground_window
from segment.inference import padded_sizes, probabilities_by_part, segment_stack, uncertainty_by_class
from segment.metrics import score_volume
from segment.model import ModelCard, build_unet
from segment.predict import Predict
from segment.predict import run as predict

SIDE = 512
CROP = 64
PLAIN = Augmentation(crop="fixed", flip=0.0, jitter=0.0)
CELLS = ((40, 450), (300, 60), (480, 500))
"""Corners of the objects of 6 x 6 pixels in the label map."""


@pytest.fixture
def large(monkeypatch) -> None:
    """Slices of more than 256 x 256 pixels are large, and windows have 128 pixels."""
    monkeypatch.setattr(data.preprocessing, "LARGE_SLICE", 2**16)
    monkeypatch.setattr(segment.windows, "WINDOW", 128)


def cells() -> np.ndarray:
    label = np.zeros((SIDE, SIDE), np.uint8)
    for row, column in CELLS:
        label[row : row + 6, column : column + 6] = 1
    label[200:210] = IGNORED
    return label


def slices_of(image: np.ndarray, label: np.ndarray | None = None, **settings) -> Slices:
    """Slices of a store of one image, which is not z-scored."""
    about = {"mean": 0.0, "std": 1.0, "row_mm": 1.0, "column_mm": 1.0, "file": "a.png"}
    about |= {"subject": "a", "frame": 1, "slice": 0}
    table = pd.DataFrame([about | {"dtype": "float32", "rows": image.shape[0], "columns": image.shape[1]}])
    store = SimpleNamespace(table=table, image=lambda _: image, label=lambda _: label)
    return Slices(store=store, positions=np.array([0]), **settings)  # type: ignore[arg-type]


def numbered() -> np.ndarray:
    """An image whose pixels are their own numbers, exact in float32."""
    return np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)


def corner(crop: Tensor) -> tuple[int, int]:
    """Where a crop of `numbered` lies, which shows every pixel of its place as it is."""
    first = int(crop.flatten()[0])
    expected = first + SIDE * torch.arange(CROP)[:, None] + torch.arange(CROP)
    assert torch.equal(crop.reshape(CROP, CROP), expected.float())
    return divmod(first, SIDE)


@pytest.mark.usefixtures("large")
def test_labelled_crops_are_pixels_of_the_file():
    samples = AugmentedSlices(slices_of(numbered(), cells()), Augmenter(PLAIN, CROP))
    places = []
    for seed in range(60):
        image, label = samples[0, seed]
        row, column = corner(image)
        np.testing.assert_array_equal(label, cells()[row : row + CROP, column : column + CROP])
        places.append((row, column))
    assert np.min(places) < 60
    assert np.max(places) > SIDE - CROP - 60
    assert torch.equal(samples[0, 7][0], samples[0, 7][0])


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("affine", [0.0, 1.0])
def test_crops_find_the_foreground_as_often_as_asked(affine):
    slices = slices_of(np.zeros((SIDE, SIDE), np.float32), cells())
    share = {}
    for asked in (0.0, 0.7, 1.0):
        samples = AugmentedSlices(slices, Augmenter(replace(PLAIN, foreground=asked, affine=affine), CROP))
        share[asked] = np.mean([(samples[0, seed][1] == 1).any() for seed in range(200)])
    assert share[0.0] < 0.2
    assert share[0.7] == pytest.approx(0.7 + 0.3 * share[0.0], abs=0.1)  # 3 standard deviations
    assert share[1.0] >= (0.95 if affine else 1)  # a zoom may move objects at the edge of the image out of it


def test_a_tile_is_cut_to_the_image():
    """Unlabelled slices look up the cell of each of its pixels."""
    part = draw_tile((90, 600), (128, 128), random.Random(0))
    assert (part[0].start, part[0].stop, part[1].stop - part[1].start) == (0, 90, 128)
    assert cells_in(np.zeros((32, 32)), part, (90, 600)).shape == (90, 128)


def test_pixels_of_the_foreground_are_drawn_alike():
    label = np.zeros((5, 7), np.uint8)
    label[1, 2], label[1, 6], label[4, 0] = 1, 3, 2
    label[3] = IGNORED
    draw, rng = Foreground(label), random.Random(0)
    drawn = [draw(rng) for _ in range(600)]
    assert {pixel: pytest.approx(200, abs=50) for pixel in ((1, 2), (1, 6), (4, 0))} == {
        pixel: drawn.count(pixel) for pixel in set(drawn)
    }
    assert Foreground(np.full((2, 2), IGNORED, np.uint8))(rng) is None


@pytest.mark.usefixtures("large")
def test_a_slice_without_foreground_is_cropped_anywhere():
    empty = slices_of(numbered(), np.zeros((SIDE, SIDE), np.uint8))
    samples = AugmentedSlices(empty, Augmenter(replace(PLAIN, foreground=1.0), CROP))
    assert len({corner(samples[0, seed][0]) for seed in range(10)}) == 10


@pytest.mark.usefixtures("large")
def test_crops_have_the_pixel_size_of_training():
    """Each pixel shows 2 x 2 of the file, whose numbers they average."""
    slices = slices_of(numbered(), cells(), spacing_mm=2.0)
    image, label = AugmentedSlices(slices, Augmenter(replace(PLAIN, foreground=1.0), CROP))[0, 3]
    assert image.shape == (1, CROP, CROP)
    assert (image[0, 1:] - image[0, :-1] == 2 * SIDE).all()
    assert (image[0, :, 1:] - image[0, :, :-1] == 2).all()
    assert 1 <= int((label == 1).sum()) <= 9


@pytest.mark.usefixtures("large")
def test_a_sample_touches_a_tile_alone(monkeypatch):
    seen = []
    original = data.slices.preprocess
    monkeypatch.setattr(
        data.slices, "preprocess", lambda image, *args: seen.append(image.shape) or original(image, *args)
    )
    samples = AugmentedSlices(slices_of(numbered(), cells()), Augmenter(replace(PLAIN, affine=1.0), CROP))
    for seed in range(5):
        assert samples[0, seed][0].shape == (1, CROP, CROP)
    assert set(seen) == {(2 * CROP, 2 * CROP)}


@pytest.mark.usefixtures("large")
def test_two_views_show_overlapping_places():
    views = TwoViews(slices_of(numbered()), Augmenter(PLAIN, CROP), Augmenter(PLAIN, CROP))
    firsts = []
    for seed in range(30):
        one, two = map(corner, views[0, seed])
        assert all(abs(a - b) <= CROP for a, b in zip(one, two, strict=True))
        firsts.append(one)
    assert np.min(firsts) < 80
    assert np.max(firsts) > SIDE - CROP - 80
    assert torch.equal(OneView(slices_of(numbered()), Augmenter(PLAIN, CROP))[0, 4], views[0, 4][0])


def test_other_slices_are_augmented_whole():
    whole = AugmentedSlices(slices_of(numbered(), cells()), Augmenter(replace(PLAIN, foreground=0.5), CROP))
    views = TwoViews(slices_of(numbered()), Augmenter(PLAIN, CROP))
    apart = 0
    for seed in range(8):
        expected = Augmenter(replace(PLAIN, foreground=0.5), CROP)(numbered(), seed, cells())
        assert all(np.array_equal(a.squeeze(), b) for a, b in zip(whole[0, seed], expected, strict=True))
        one, two = map(corner, views[0, seed])
        apart += any(abs(a - b) > CROP for a, b in zip(one, two, strict=True))
    assert apart


@pytest.mark.usefixtures("large")
def test_unlabelled_crops_go_by_what_the_teacher_saw():
    label = cells()
    slices = slices_of(numbered(), label)
    weak, strong = Augmenter(replace(PLAIN, foreground=1.0), CROP), Augmenter(replace(PLAIN, foreground=0.0), CROP)
    pool = Pool(slices, weak, strong, 0.0, np.array([True]))
    corners = {corner(pool.views(seed)[0][0]) for seed in range(20)}
    assert max(row for row, _ in corners) > 250  # nothing is known yet: anywhere
    occupied = torch.zeros(SIDE, SIDE)
    occupied[100:106, 290:296] = 1
    pool.foreground[:] = pool.find_foreground(lambda image: occupied, 1, (0, 0))
    for seed in range(20):
        row, column = corner(pool.views(seed)[0][0])
        assert 96 - CROP < row < 112  # the cell of 16 pixels from (96, 288) on
        assert 288 - CROP < column < 304
        np.testing.assert_array_equal(pool.views(seed)[3], label[row : row + CROP, column : column + CROP])


@pytest.mark.usefixtures("large")
def test_what_is_said_of_large_slices(caplog):
    caplog.set_level(logging.INFO, "fewslice")
    table = slices_of(numbered()).store.table
    say_large_slices(table, PLAIN, CROP)
    assert "slices of up to 512 x 512 pixels are large: a sample is a crop of 64 x 64 pixels" in caplog.messages.pop()
    say_large_slices(table, Augmentation(), CROP)
    assert (
        "show up to 512 pixels as 64 along a side, in which objects of less than 8 pixels vanish" in caplog.messages[-1]
    )
    assert "--augmentation.crop fixed" in caplog.messages.pop()
    caplog.clear()
    say_large_slices(table, PLAIN, CROP, 1.5)
    assert "--spacing-mm 1.5 makes 512 x 512 pixels 341 x 341; pass --spacing-mm None" in caplog.messages[0]
    caplog.clear()
    say_large_slices(table, Augmentation(area=(0.01, 0.05)), CROP)
    say_large_slices(table.assign(rows=100, columns=100), Augmentation(), 8)
    assert not caplog.messages


# Prediction


def pointwise(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x), x, 0.5 - x.abs()], dim=1)


def card(**settings) -> ModelCard:
    about = {"encoder": "test_resnet", "norm": "batch", "classes": ["background", "a", "b"], "dataset": "", "init": "x"}
    return ModelCard(**(about | {"normalisation": "image", "statistics": (0, 1), "spacing_mm": None} | settings))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)


def assembled(network: nn.Module, stack: np.ndarray, settings: ModelCard) -> tuple[np.ndarray, int]:
    """Probabilities (slices, classes, rows, columns), and the most rows of a part."""
    result, most = np.full((len(stack), 3, *stack.shape[1:]), np.nan, np.float32), 0
    for (slices, rows), (probabilities,) in probabilities_by_part([(network, settings)], stack, (1.0, 1.0)):
        result[slices, :, rows] = probabilities
        most = max(most, probabilities.shape[2])
    return result, most


@pytest.mark.parametrize("spacing_mm", [None, 1.7, 0.8, 4.0])
@pytest.mark.parametrize("shape", [(2, 500, 300), (1, 130, 700), (1, 801, 100)])
def test_windows_give_what_whole_slices_give(monkeypatch, shape, spacing_mm):
    settings, stack = card(spacing_mm=spacing_mm, flip_tta=True), noise(*shape)
    whole, _ = assembled(Fake(pointwise), stack, settings)
    labels = segment_stack(Fake(pointwise), stack, (1.0, 1.0), settings)
    monkeypatch.setattr(data.preprocessing, "LARGE_SLICE", 2**14)
    monkeypatch.setattr(segment.windows, "WINDOW", 96)
    monkeypatch.setattr(segment.windows, "ROWS", 50)
    network = Fake(pointwise)
    windows, most = assembled(network, stack, settings)
    assert most <= 96
    assert max(math.prod(shape[2:]) for shape in network.shapes) < 2**15  # with the padding to the stride
    np.testing.assert_allclose(windows, whole, atol=1e-4)  # none is NaN: every row came once
    again = segment_stack(Fake(pointwise), stack, (1.0, 1.0), settings)
    assert np.mean(again != labels) < 1e-4


@pytest.mark.usefixtures("large")
def test_without_resampling_windows_change_nothing():
    stack = noise(1, SIDE, SIDE)
    z = (stack[0] - stack[0].mean()) / stack[0].std()
    expected = np.argmax(np.stack([np.zeros_like(z), z, 0.5 - np.abs(z)]), axis=0)
    np.testing.assert_array_equal(segment_stack(Fake(pointwise), stack, (1.0, 1.0), card())[0], expected)


@pytest.mark.usefixtures("large")
def test_strips_are_blended():
    """A network that says something else of each strip: one turns into the next over the rows that both have."""
    calls = []

    def scores(x: Tensor) -> Tensor:
        calls.append(len(calls))
        p = torch.full_like(x, 0.1 * len(calls))
        return torch.cat([1 - p, p, torch.full_like(p, 1e-9)], dim=1).log()

    column = assembled(Fake(scores), noise(1, 800, 100), card())[0][0, 1, :, 0]
    assert len(calls) == 8
    assert (np.diff(column) > -1e-6).all()
    assert column[0] == pytest.approx(0.1)
    assert column[-1] == pytest.approx(0.8)
    assert np.diff(column).max() < 0.01


@pytest.mark.usefixtures("large")
def test_ensembles_and_uncertainty_go_by_rows():
    stack = noise(1, SIDE, SIDE)
    members = [(Fake(pointwise), card()), (Fake(lambda x: pointwise(-x)), card())]
    prediction = Ensemble(members=members).segment(stack, (1.0, 1.0), entropy=True)
    parts = [assembled(*[network], stack, settings)[0] for network, settings in members]
    mean = (parts[0] + parts[1]) / 2
    np.testing.assert_array_equal(prediction.labels, mean.argmax(axis=1))
    assert prediction.entropy is not None
    np.testing.assert_allclose(prediction.entropy, -(mean * np.log(mean)).sum(axis=1), atol=1e-5)
    assert set(prediction.agreement) == {"a", "b"}


def test_uncertainty_of_large_slices(monkeypatch):
    image = noise(300, 400)
    whole = uncertainty_by_class(Fake(pointwise), image, (1.0, 1.0), card())
    monkeypatch.setattr(data.preprocessing, "LARGE_SLICE", 2**14)
    monkeypatch.setattr(segment.windows, "WINDOW", 96)
    np.testing.assert_allclose(uncertainty_by_class(Fake(pointwise), image, (1.0, 1.0), card()), whole, rtol=1e-5)
    nowhere = uncertainty_by_class(Fake(lambda x: torch.cat([x, x - 9, x - 9], dim=1)), image, (1.0, 1.0), card())
    assert np.isnan(nowhere).tolist() == [False, True, True]


@pytest.mark.usefixtures("large")
def test_networks_are_asked_for_windows():
    table = pd.DataFrame({"rows": [500, 40], "columns": [600, 36], "row_mm": 1.0, "column_mm": 1.0})
    assert padded_sizes(table, None) == [(64, 64), (128, 128)]
    assert padded_sizes(table, 3.0) == [(32, 32), (192, 224)]


# Whole commands


@pytest.fixture
def folder(tmp_path):
    """Six images of 512 x 512 pixels with bright objects of 6 pixels, and their label maps."""
    label = np.where(cells() == IGNORED, 0, cells()).astype(np.uint8)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for k in range(6):
        image = np.random.default_rng(k).integers(0, 60, (SIDE, SIDE)) + 150 * label
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "data" / "images" / f"p{k}.png")
        Image.fromarray(label).save(tmp_path / "data" / "labels" / f"p{k}.png")
    return tmp_path / "data"


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_predicted_label_map_has_the_size_of_its_image(tmp_path, suffix):
    torch.manual_seed(0)
    for name in ("run", "in"):
        (tmp_path / name).mkdir()
    save_model(build_unet("test_resnet", 3), tmp_path / "run", card())
    Image.fromarray(noise(270, 300)).save(tmp_path / "in" / f"a{suffix}")
    table = predict(Predict(run=(tmp_path / "run",), input=tmp_path / "in", output=tmp_path / "out", device="cpu"))
    labels = np.asarray(Image.open(tmp_path / "out" / f"a{suffix}"))
    assert labels.shape == (270, 300)
    assert table["voxels_a"].item() == (labels == 1).sum()


@pytest.mark.slow
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("unlabelled", [False, True])
def test_training_and_validation_on_large_images(folder, tmp_path, caplog, unlabelled):
    from segment.config import demo
    from segment.training import run

    caplog.set_level(logging.INFO, "fewslice")
    cfg = replace(
        demo(), data=FolderSource(data_root=folder), encoder="test_resnet", image_size=32, spacing_mm=None, steps=2,
        batch_size=2, labelled_fraction=0.5, unlabelled=unlabelled, confidence=0.0, out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    result = run(cfg)
    assert "a sample is a crop of 32 x 32 pixels" in caplog.text
    assert result["labelled_slices"] == 2
    assert (tmp_path / "run" / "predictions.png").is_file()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("method", ["byol", "masked"])
def test_pretraining_on_large_images(folder, tmp_path, caplog, method):
    from pretrain.config import demo, with_method
    from pretrain.stages import run

    caplog.set_level(logging.INFO, "fewslice")
    cfg = replace(
        with_method(demo(), method), stage="specialist", data=FolderSource(data_root=folder), encoder="test_resnet",
        image_size=32, steps=1, batch_size=2, out=tmp_path / "run", device="cpu",
        augmentation=Augmentation(crop="fixed"),
    )  # fmt: skip
    run(cfg)
    assert "a sample is a crop of 32 x 32 pixels" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("large")
def test_several_channels_of_large_images(folder, tmp_path):
    """Colours are cut, predicted by windows, and each z-scored as a whole channel."""
    from pretrain.config import demo as demo_of_pretraining
    from pretrain.stages import run as pretrain
    from segment.config import demo
    from segment.training import run

    for k, file in enumerate(sorted((folder / "images").iterdir())):
        grey = np.asarray(Image.open(file)).astype(int)
        Image.fromarray(np.stack([grey, 255 - grey, np.roll(grey, k, 0)], 2).astype(np.uint8)).save(file)
    few = {"data": FolderSource(data_root=folder, channels=(0, 1, 2)), "encoder": "test_resnet", "image_size": 32}
    few |= {"batch_size": 2, "device": "cpu"}
    pretrain(
        replace(
            demo_of_pretraining(), stage="specialist", steps=1, projector_hidden=16, predictor_hidden=16, projection=8,
            augmentation=Augmentation(crop="fixed"), out=tmp_path / "encoder", **few,
        )
    )  # fmt: skip
    start = {"spacing_mm": None, "steps": 2, "figures": False, "init": str(tmp_path / "encoder/encoder.safetensors")}
    run(replace(demo(), out=tmp_path / "run", **start, **few))
    predict(Predict(run=(tmp_path / "run",), input=folder / "images", output=tmp_path / "out", device="cpu"))
    assert np.asarray(Image.open(tmp_path / "out" / "p0.png")).shape == (SIDE, SIDE)


def test_windows_of_several_channels_give_what_whole_slices_give(monkeypatch):
    stack, settings = np.stack([noise(3, 500, 300), noise(3, 500, 300)[::-1] + 7]), card(spacing_mm=1.7, flip_tta=True)
    whole = segment_stack(Fake(lambda x: x * x.new_tensor([1, 2, 3])[:, None, None]), stack, (1.0, 1.0), settings)
    monkeypatch.setattr(data.preprocessing, "LARGE_SLICE", 2**14)
    monkeypatch.setattr(segment.windows, "WINDOW", 96)
    network = Fake(lambda x: x * x.new_tensor([1, 2, 3])[:, None, None])
    windows = segment_stack(network, stack, (1.0, 1.0), settings)
    assert max(math.prod(shape[2:]) for shape in network.shapes) < 2**15
    assert np.mean(windows != whole) < 1e-4
    assert len(np.unique(whole)) == 3


def test_slide_formats_are_refused(tmp_path):
    (tmp_path / "slide.svs").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"holds no .nii, .nii.gz, .png, .tif or .jpg images"):
        index_folder(tmp_path)


# Numbers of large images are counted part by part


def test_counting_by_parts_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 3, (2, 3, 40, 50)).astype(np.uint8)
    image = rng.normal(size=(3, 40, 50)).astype(np.float32)
    digest, scores = fingerprint(image), score_volume(prediction, reference, (1, 1, 1), ["a", "b"])
    for module in ("segment.metrics", "data.duplicates", "data.readers.label_maps"):
        monkeypatch.setattr(f"{module}.LARGE_SLICE", 333)
    assert fingerprint(image) == digest
    assert score_volume(prediction, reference, (1, 1, 1), ["a", "b"]) == scores
    np.testing.assert_array_equal(counts_of(prediction[0], 5), np.bincount(prediction[0].ravel(), minlength=5))


def test_pictures_of_large_foreground_leave_out_rows():
    foreground = np.zeros((5000, 3000), bool)
    foreground[100, 200] = foreground[4000, 2000] = True
    rows, columns = foreground_window(foreground, 1.0)
    assert rows.step == columns.step == 5
    assert max(foreground[rows, columns].shape) <= 1024
    assert foreground_window(foreground[:500, :500], 1.0)[0].step is None
