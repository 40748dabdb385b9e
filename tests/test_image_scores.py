"""Training on images with classes, linear evaluation, and views of images in colour."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_class_images import write_classes
from torch import nn

from classify import images as training
from classify import probe
from classify.image_scores import frequency_groups, print_scores, score_images
from classify.image_settings import ImagesConfig, ProbeConfig
from classify.statistics import mean_proportion, proportion
from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.colours import LUMA, draw_colours, hue_matrix, recolour, saturation_matrix
from data.duplicates import warn_of_test_duplicates
from data.readers.class_images import read_class_images, read_digits
from data.samples.images import LabelledImages, ViewsOfImages, augmented, square
from data.sources import ImagesSource

TINY = {"encoder": "test_resnet", "image_size": 32, "device": "cpu", "checkpoint_every": 0}
PROBE = {"encoder": "test_resnet", "image_size": 32, "device": "cpu", "regularisation": (0.1,)}


def save_image(path, seed):
    """An image in colour of 8 x 8 random pixels."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(path)


def test_matrices_of_colour():
    """Turning red half the circle in YIQ mirrors its colour and keeps its grey value, 0.299."""
    np.testing.assert_allclose(saturation_matrix(1), np.eye(3))
    np.testing.assert_allclose(saturation_matrix(0) @ [1, 0, 0], [0.299] * 3)
    np.testing.assert_allclose(hue_matrix(0), np.eye(3), atol=1e-12)
    turned = hue_matrix(0.5) @ [1, 0, 0]
    np.testing.assert_allclose(turned, [2 * 0.299 - 1, 2 * 0.299, 2 * 0.299], atol=2e-3)  # YIQ's weights have 3 digits
    assert LUMA @ turned == pytest.approx(0.299)
    for matrix in (hue_matrix(0.1), saturation_matrix(0.3)):
        np.testing.assert_allclose(matrix @ [1, 1, 1], [1, 1, 1], atol=2e-3)  # grey stays grey
    image = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    grey = recolour(image, saturation_matrix(0))
    assert np.ptp(grey, axis=0).max() < 1e-6
    np.testing.assert_allclose(grey[0], np.tensordot(LUMA, image, 1), atol=1e-6)


def test_colours_are_drawn_by_seed_and_probability():
    strong = Augmentation(colour=0.8, grey=0.2)
    drawn = [draw_colours(strong, seed) for seed in range(500)]
    grey = sum(matrix is not None and np.allclose(matrix, saturation_matrix(0)) for matrix in drawn)
    none = sum(matrix is None for matrix in drawn)
    assert 70 <= grey <= 130  # 100 expected, standard deviation 9
    assert 50 <= none <= 110  # 0.2 * 0.8 of 500 is 80
    np.testing.assert_array_equal(drawn[3], draw_colours(strong, 3))
    assert draw_colours(Augmentation(), 0) is None


def test_channels_share_one_view(tmp_path):
    images = read_class_images(write_classes(tmp_path, [3, 3]))
    plain = Augmenter(Augmentation(jitter=0.8), 32)
    view = augmented(images.image(0), plain, 5)
    assert view.shape == (3, 32, 32)
    of_grey = augmented(np.repeat(images.image(0)[..., :1], 3, axis=2), plain, 5)
    assert np.ptp(of_grey, axis=0).max() == 0
    coloured = ViewsOfImages(images, [Augmenter(Augmentation(colour=1.0), 32)] * 2)
    batch = coloured.__getitems__([(0, 7), (5, 8)])
    assert batch.shape == (2, 2, 3, 32, 32)
    assert torch.equal(batch[1], coloured[5, 8])
    assert not torch.equal(batch[0, 0], batch[0, 1])
    assert ViewsOfImages(images, [plain])[0, 7].shape == (3, 32, 32)
    digits = read_digits()
    assert ViewsOfImages(digits, [plain] * 2)[0, 7].shape == (2, 1, 32, 32)
    view, label = LabelledImages(digits, plain)[3, 7]
    assert (view.shape, label) == ((1, 32, 32), digits.labels[digits.train[3]])


def test_the_central_square_is_z_scored():
    image = np.zeros((4, 8), np.uint8)
    image[:, 2:4], image[:, :2] = 2, 200  # the square is columns 2 to 5: half 2, half 0
    np.testing.assert_allclose(square(image, 4)[0], [[1, 1, -1, -1]] * 4)
    assert square(np.zeros((9, 8, 3), np.uint8), 32).shape == (3, 32, 32)


def test_thirds_of_the_classes():
    assert frequency_groups([50, 30, 20, 10, 5, 2, 1]) == {"frequent": [0, 1, 2], "medium": [3, 4], "rare": [5, 6]}
    assert frequency_groups([2, 30, 10]) == {"frequent": [1], "medium": [2], "rare": [0]}
    assert frequency_groups([4, 4, 3]) == {}
    assert frequency_groups([9, 1]) == {}


def test_scores_by_hand(tmp_path):
    """Two test images of each of three classes; right: both of a, one of b, none of c."""
    images = read_class_images(write_classes(tmp_path / "data", [8, 4, 2]))
    result = score_images(images, np.array([0, 0, 1, 2, 0, 0]), images.counts, tmp_path)
    assert result["accuracy"]["value"] == 0.5
    assert result["accuracy"]["low"] == pytest.approx(0.188, abs=1e-3)  # Wilson, 3 of 6
    assert [row["value"] for row in result["per_class"]] == [1.0, 0.5, 0.0]
    assert [row["training_images"] for row in result["per_class"]] == [8, 4, 2]
    assert {name: row["value"] for name, row in result["groups"].items()} == {"frequent": 1, "medium": 0.5, "rare": 0}
    matrix = pd.read_csv(tmp_path / "confusion.csv", index_col="class")
    assert matrix.to_numpy().tolist() == [[2, 0, 0], [0, 1, 1], [2, 0, 0]]
    assert Image.open(tmp_path / "confusion.png").size[0] > 100
    rows = pd.read_csv(tmp_path / "per_image.csv")
    assert rows["file"].tolist()[:2] == ["test/a/000.png", "test/a/001.png"]
    assert rows["predicted"].tolist() == [0, 0, 1, 2, 0, 0]
    score_images(images, np.array([0, 0, 1, 2, 0, 0]), images.counts, tmp_path, anonymous=True)
    assert pd.read_csv(tmp_path / "per_image.csv")["file"].str.fullmatch(r"anonymous-\w{10}\.png").all()


def test_each_class_counts_the_same(tmp_path):
    """Of a 2 images, both right; of b 6, all wrong: 0.5, not 0.25; worth 2^2 / (1/2 + 1/6) = 6 images."""
    root = write_classes(tmp_path / "data", [4, 4])
    for k in range(2, 6):
        save_image(root / f"test/b/{k:03d}.png", k)
    images = read_class_images(root)
    accuracy = score_images(images, np.zeros(8, int), images.counts, tmp_path)["accuracy"]
    assert accuracy == pytest.approx(proportion(3, 6))


@pytest.mark.parametrize(("right", "of"), [(0, 4), (3, 9), (5, 5), (40, 60)])
def test_the_mean_of_classes_of_one_size_is_the_proportion(right, of):
    successes = np.array([right // 2, right - right // 2, of // 2])
    whole = proportion(int(successes.sum()), 3 * of)
    assert mean_proportion(successes, np.full(3, of)) == pytest.approx(whole)
    assert mean_proportion(np.full(3, of), np.full(3, of))["high"] == pytest.approx(1)


def test_classes_without_test_images_are_named(tmp_path, capsys, caplog):
    """Neither the table nor the groups count them."""
    root = write_classes(tmp_path / "data", [12, 5, 2])
    for name in "bc":
        shutil.rmtree(root / "test" / name)
    cfg = ProbeConfig(**PROBE, data=ImagesSource(data_root=root), out=tmp_path / "probe")
    with caplog.at_level(logging.WARNING, "fewslice"):
        result = probe.run(cfg)
    doubt = "2 of 3 classes have no test images and no score: b, c"
    assert result["warnings"] == [doubt]
    assert doubt in caplog.text
    assert result["untested_classes"] == ["b", "c"]
    assert {name: row["classes"] for name, row in result["groups"].items()} == {"frequent": ["a"]}
    capsys.readouterr()
    print_scores(result, cfg.out)
    printed = capsys.readouterr().out
    assert "mean of 1 of 3 classes" in printed
    assert "all" not in printed
    assert printed.count(" no test images ") == 2


def test_training_images_among_the_test_images_are_a_warning(tmp_path, caplog):
    """Under another name, in another class, in another format and type; another image of the same class is none."""
    root = write_classes(tmp_path / "data", [4, 3])
    shutil.copyfile(root / "train/a/001.png", root / "test/b/copy.png")
    Image.open(root / "train/b/002.png").save(root / "test/b/copy.tif")
    images = read_class_images(root)
    warning = "scores may be too high: 2 of 6 test images are training images under another name: train/a/001.png and "
    assert warn_of_test_duplicates(images) == [warning + "test/b/copy.png (and 1 more)"]
    assert warn_of_test_duplicates(replace(images, train=images.train[:1])) == []  # of the images that are trained on
    as_float = [np.asarray(image, np.float32) if k % 2 else image for k, image in enumerate(images.pixels)]
    assert warn_of_test_duplicates(replace(images, pixels=as_float)) == warn_of_test_duplicates(images)
    result = probe.run(ProbeConfig(**PROBE, data=ImagesSource(data_root=root), out=tmp_path / "probe"))
    assert result["warnings"][0].startswith(warning)
    assert json.loads((tmp_path / "probe/result.json").read_text())["warnings"] == result["warnings"]
    assert warning in caplog.text
    cfg = ImagesConfig(**TINY, steps=1, batch_size=4, data=ImagesSource(data_root=root), out=tmp_path / "run")
    assert training.run(cfg)["warnings"][0].startswith(warning)


def test_the_digits_and_good_folders_hold_no_such_pair(tmp_path):
    assert warn_of_test_duplicates(read_digits()) == []
    assert warn_of_test_duplicates(read_class_images(write_classes(tmp_path, [3, 3]))) == []


def test_the_part_that_chooses_c():
    labels = np.repeat([0, 1, 2], [10, 2, 1])
    held = probe.held_out_part(labels, 0.2, 0)
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 1, 0]
    np.testing.assert_array_equal(held, probe.held_out_part(labels, 0.2, 0))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 5)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(int)
    strength, accuracy = probe.choose_regularisation(features, labels, (1.0, 1e-6), 0.2, 0)
    assert accuracy is not None
    assert accuracy > 0.9
    assert strength in (1e-6, 1.0)
    assert probe.choose_regularisation(features, labels, (0.3,), 0.2, 0) == (0.3, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier of a long-tailed part of the digits, and the linear evaluation of its encoder."""
    folder = tmp_path_factory.mktemp("images")
    part = ImagesSource(imbalance=0.2)
    cfg = ImagesConfig(**TINY, data=part, augmentation=Augmentation(flip=0.0, jitter=0.0, area=(0.5, 1.0)), steps=12)
    cfg = replace(cfg, batch_size=64, out=folder / "run", lr=3e-3)
    result = training.run(cfg)
    file = folder / "run/encoder.safetensors"
    evaluation = ProbeConfig(
        init=str(file),
        encoder="test_resnet",
        out=folder / "probe",
        device="cpu",
        regularisation=(0.01,),
        data=ImagesSource(total=300),
    )
    return cfg, result, evaluation, probe.run(evaluation)


@pytest.mark.slow
def test_training_and_linear_evaluation(trained):
    cfg, result, evaluation, probed = trained
    counts = [int(139 * 0.2 ** (i / 9)) for i in range(10)]
    assert result["train"]["by_class"] == counts
    losses = pd.read_csv(cfg.out / "metrics.csv")["loss"]
    assert losses.iloc[-1] < 1.5  # log(10) = 2.3 by chance
    assert sum(row["test_images"] for row in result["per_class"]) == 359
    assert set(result["groups"]) == {"frequent", "medium", "rare"}
    assert probed["accuracy"]["value"] > 0.6  # 0.1 by chance; 30 images of each digit suffice for more
    assert probed["image_size"] == 32
    assert probed["train"]["images"] == 300
    assert [row["training_images"] for row in probed["per_class"]] == counts  # of the encoder, not of the regression
    card = json.loads((cfg.out / "encoder.json").read_text())
    assert (card["network"], card["in_channels"], card["stem"]) == ("supervised", 1, "standard")
    assert json.loads((evaluation.out / "result.json").read_text())["accuracy"] == probed["accuracy"]


@pytest.mark.slow
def test_the_moving_average_is_scored_and_written(trained, tmp_path, monkeypatch):
    scored: list[nn.Module] = []
    predict = training.predict
    monkeypatch.setattr(training, "predict", lambda network, *a: scored.append(network) or predict(network, *a))
    run = replace(trained[0], steps=2, ema_decay=0.99, out=tmp_path / "run")
    training.run(run)
    written = load_file(run.out / "encoder.safetensors")
    network = scored[-1].encoder.state_dict()
    assert all(torch.equal(value, network[name]) for name, value in written.items())
    (run.out / "result.json").unlink()  # as if killed while the test images were scored
    training.run(replace(run, resume=True))
    network = scored[-1].encoder.state_dict()
    assert all(torch.equal(value, network[name]) for name, value in written.items())


@pytest.mark.slow
def test_linear_evaluation_repeats(trained, tmp_path):
    evaluation, probed = trained[2:]
    again = probe.run(replace(evaluation, out=tmp_path))
    assert again["accuracy"] == probed["accuracy"]


@pytest.mark.slow
def test_a_finished_run_is_resumed_without_training(trained, monkeypatch):
    cfg, result = trained[:2]
    monkeypatch.setattr(training, "_fit", None)
    assert training.run(replace(cfg, resume=True))["accuracy"] == result["accuracy"]


@pytest.mark.slow
def test_channels_must_agree(trained, tmp_path):
    root = write_classes(tmp_path / "rgb", [4, 4])
    evaluation = replace(trained[2], data=ImagesSource(data_root=root), out=tmp_path / "probe")
    with pytest.raises(UserError, match=r"takes grey images \(one channel\) and the images of rgb are RGB"):
        probe.run(evaluation)
    assert not (tmp_path / "probe").exists()


def test_impossible_settings(tmp_path):
    with pytest.raises(UserError, match=r"--held-out 1\.0"):
        ProbeConfig(held_out=1.0)
    with pytest.raises(UserError, match=r"--regularisation 0\.1 0\.0"):
        ProbeConfig(regularisation=(0.1, 0.0))
    with pytest.raises(UserError, match=r"--labelled-fraction 0\.5: with images pass --total or --imbalance"):
        ImagesConfig(labelled_fraction=0.5)
    for name, value in (("inner_split", True), ("subset_seed", 3), ("allow_leakage", True)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is for subjects"):
            ImagesConfig(**{name: value})
    root = write_classes(tmp_path, [4, 4])
    for file in root.glob("test/*/*.png"):
        file.unlink()
    with pytest.raises(UserError, match="holds no test images"):
        probe.run(ProbeConfig(data=ImagesSource(data_root=root), out=tmp_path / "out"))
