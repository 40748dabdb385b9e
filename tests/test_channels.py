"""Several channels: `--channels 0 1` from files to networks and back."""

import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
from made_up_channels import case, colours, nnunet, rgb_nifti, save, write_png_folder
from PIL import Image

from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.duplicates import fingerprint
from data.inspect import Inspect, inspect_dataset, run
from data.preprocessing import z_score
from data.readers.channels import read_channels
from data.readers.folder import index_folder
from data.samples.slices import AugmentedSlices, TwoViews
from data.slices import Slices, load_dataset, pooled_statistics
from data.sources import FolderSource
from data.store import statistics_columns


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))


def test_numbered_files_become_channels_in_the_order_of_the_option(tmp_path):
    root = nnunet(tmp_path / "set")
    both = load_dataset("folder", root, channels=(1, 0))
    alone = [load_dataset("folder", root, channels=channel).store for channel in (1, 0)]
    assert both.store.channels == 2
    row = both.table.index[both.table["subject"] == "case03"][1]
    assert both.table["file"].iloc[row] == "imagesTr/case03_0001.nii.gz"
    assert both.table["channel_files"].iloc[row] == ("imagesTr/case03_0001.nii.gz", "imagesTr/case03_0000.nii.gz")
    first, second, labels = case(3)
    np.testing.assert_array_equal(both.store.image(row), np.stack([second[..., 1].T, first[..., 1].T.astype("f4")]))
    np.testing.assert_array_equal(both.store.label(row), labels[..., 1].T)
    for store, statistics in zip(alone, statistics_columns(both.table), strict=True):
        wanted = store.table[["mean", "std"]].to_numpy()
        np.testing.assert_allclose(both.table[[*statistics]].to_numpy(), wanted, rtol=1e-6)
    assert both.table["digest"].tolist() == alone[0].table["digest"].tolist()  # of the first channel: leaks are found


def test_each_channel_is_normalised_by_itself(tmp_path):
    dataset = load_dataset("folder", nnunet(tmp_path / "set"), channels=(0, 1))
    positions = np.arange(4)
    slices = Slices(store=dataset.store, positions=positions)
    image, statistics = slices.raw(2)
    assert statistics == (0.0, 1.0)
    np.testing.assert_allclose(image.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(image.std(axis=(1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(slices.image(2), image)
    pooled = pooled_statistics(dataset.store, positions)
    pixels = np.stack([dataset.store.image(k) for k in positions]).swapaxes(0, 1).reshape(2, -1).astype(float)
    np.testing.assert_allclose(pooled, [(channel.mean(), channel.std()) for channel in pixels], rtol=1e-6)
    of_dataset = replace(slices, normalisation="dataset", statistics=pooled, spacing_mm=3.0).image(1)
    assert of_dataset.shape == (2, 18, 20)
    grey = [z_score(channel, *each) for channel, each in zip(dataset.store.image(1), pooled, strict=True)]
    np.testing.assert_allclose(of_dataset.mean(axis=(1, 2)), [each.mean() for each in grey], atol=0.02)


def test_the_choice_and_the_files_of_channels_are_part_of_the_stores_identity(tmp_path):
    root = nnunet(tmp_path / "set")
    keys = [load_dataset("folder", root, channels=each).store.key for each in (None, 0, 1, (0, 1), (1, 0))]
    assert keys[0] == keys[1]
    assert len({*keys}) == 4
    save(root / "imagesTr/case00_0001.nii.gz", case(0)[1] + 1)
    assert load_dataset("folder", root, channels=0).store.key == keys[0]
    assert load_dataset("folder", root, channels=(0, 1)).store.key != keys[3]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_case_without_a_channel_is_refused_by_name(tmp_path, labelled):
    root = nnunet(tmp_path / "set")
    (root / "imagesTr/case05_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case05_0000\.nii\.gz is of a case that has no channel 1 \(_0001\)"):
        load_dataset("folder", root, channels=(0, 1), labelled=labelled)
    save(root / "imagesTr/case05_0001.nii.gz", case(5)[1])
    save(root / "imagesTr/case05_0001.nii", case(5)[1])
    with pytest.raises(UserError, match="are the same channel of one case: keep one"):
        load_dataset("folder", root, channels=(0, 1), labelled=labelled)


def test_channels_on_another_grid_with_frames_or_constant_are_refused(tmp_path):
    root = nnunet(tmp_path / "set")
    file = root / "imagesTr/case02_0001.nii.gz"
    save(file, case(2)[1], np.diag([1.5, 1.5, 4, 1]))
    with pytest.raises(UserError, match=r"case02_0001.* does not lie on the voxel grid of .*case02_0000.*spacing"):
        load_dataset("folder", root, channels=(0, 1))
    save(file, np.zeros((40, 36, 2), np.int16))
    with pytest.raises(UserError, match=r"case02_0001\.nii\.gz has the value 0 everywhere: remove it, or leave it out"):
        load_dataset("folder", root, channels=(0, 1))
    save(root / "imagesTr/case02_0000.nii.gz", np.zeros((40, 36, 2, 3), np.int16))
    with pytest.raises(UserError, match=r"case02_0000\.nii\.gz has 3 frames and is one of several channels"):
        load_dataset("folder", root, channels=(0, 1))


def test_a_flipped_channel_is_brought_onto_the_first_ones_grid(tmp_path):
    values = case(0)[0]
    flip = np.diag([-1.5, 1.5, 8, 1.0])
    flip[0, 3] = 1.5 * 39
    save(tmp_path / "a_0000.nii", values, np.diag([1.5, 1.5, 8, 1]))
    save(tmp_path / "a_0001.nii", values[::-1], flip)
    one, other = read_channels([tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"], (0, 1))
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("choice", [(), (0, 0), (0, -1)])
def test_impossible_choices_are_refused(choice):
    with pytest.raises(UserError, match="--channels"):
        FolderSource(channels=choice)


def test_a_single_channel_stays_a_number():
    assert FolderSource(channels=(1,)) == FolderSource(channels=1)
    assert FolderSource(channels=(0, 1)).channels == (0, 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("number", ["", "_0000"])
def test_colours_of_png_images_are_channels_without_transparency(tmp_path, mode, number):
    root = write_png_folder(tmp_path / "set", mode=mode, number=number)
    dataset = load_dataset("folder", root, channels=(2, 0))
    assert dataset.store.image(1).dtype == np.uint8
    np.testing.assert_array_equal(dataset.store.image(1), colours(1)[..., [2, 0]].transpose(2, 0, 1))
    np.testing.assert_array_equal(dataset.store.label(1), colours(1)[..., 2] > 128)
    assert dataset.table["digest"].iloc[1] == fingerprint([colours(1)[..., 2]])
    with pytest.raises(UserError, match="has the channels 0 to 2, and channel 3 of the chosen 0 3 is missing"):
        load_dataset("folder", root, channels=(0, 3))
    grey = np.asarray(Image.fromarray(colours(1)).convert("L"))
    np.testing.assert_array_equal(load_dataset("folder", root).store.image(1), grey)  # as ever


def test_grey_images_and_pages_of_colours(tmp_path):
    root = write_png_folder(tmp_path / "set")
    Image.fromarray(colours(9)[..., 0]).save(root / "images/p9.png")
    Image.fromarray((colours(9)[..., 0] > 9).astype(np.uint8)).save(root / "labels/p9.png")
    with pytest.raises(UserError, match=r"p9\.png has one channel, and channel 2 of the chosen 0 1 2 is missing"):
        load_dataset("folder", root, channels=(0, 1, 2))
    pages = [Image.fromarray(colours(k)) for k in (1, 2)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    red, green = read_channels([tmp_path / "stack.tif"], (0, 1))
    np.testing.assert_array_equal(green.stack[0], np.stack([colours(1)[..., 1], colours(2)[..., 1]]))
    assert red.values.shape == (20, 24, 2)


def test_colours_read_as_grey_are_reported_once(tmp_path, caplog):
    def messages(**choice) -> list[str]:
        caplog.clear()
        index_folder(tmp_path / "set", **choice)
        return [record.message for record in caplog.records if "colours" in record.message]

    caplog.set_level(logging.INFO, "fewslice")
    root = write_png_folder(tmp_path / "set")
    advice = "colours are read as grey in 6 of 6 images; --channels 0 1 2 gives the network all three"
    assert messages() == messages(labelled=False) == [advice]
    assert messages(channels=(0, 1, 2)) == messages(channels=0) == []
    for n in range(6):  # colours of 16 bits, of a palette, and of a TIFF file
        (root / f"images/p{n}.png").unlink()
        image = colours(n)
        if n < 2:
            cv2.imwrite(str(root / f"images/p{n}.png"), image.astype(np.uint16) * 200)
        elif n < 4:
            Image.fromarray(image).quantize(16).save(root / f"images/p{n}.png")
        else:
            Image.fromarray(image).save(root / f"images/p{n}.tif")
    assert messages() == [advice]
    Image.fromarray(colours(5)[..., 0]).save(root / "images/p5.tif")
    assert messages() == ["colours are read as grey in 5 of 6 images"]  # all channels of the sixth cannot be had
    for n in range(6):
        (file,) = (root / "images").glob(f"p{n}.*")
        file.unlink()
        Image.fromarray(colours(n)[..., 0]).convert("P").save(root / f"images/p{n}.png")  # a palette of greys
    assert messages() == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["rgb", "4d", "5d"])
def test_channels_of_one_nifti_file(tmp_path, kind, suffix):
    values = colours(3, (12, 10, 4))
    for n in range(4):
        file = tmp_path / f"set/images/a{n}{suffix}"
        if kind == "rgb":
            rgb_nifti(file, values + np.uint8(n))
        else:
            save(file, values + np.uint8(n) if kind == "4d" else (values + np.uint8(n))[:, :, :, None])
        save(tmp_path / f"set/labels/a{n}{suffix}", (values[..., 0] > 99).astype(np.uint8))
    dataset = load_dataset("folder", tmp_path / "set", channels=(2, 1))
    assert len(dataset.table) == 4 * 4
    assert {*dataset.table["frame"]} == {1}
    np.testing.assert_array_equal(dataset.store.image(2), values[:, :, 2, [2, 1]].transpose(2, 1, 0))
    np.testing.assert_array_equal(dataset.store.label(2), values[:, :, 2, 0].T > 99)
    with pytest.raises(UserError, match="has the channels 0 to 2, and channel 3 of the chosen 0 3 is missing"):
        load_dataset("folder", tmp_path / "set", channels=(0, 3))
    if kind != "4d":
        with pytest.raises(UserError, match="a0"):
            load_dataset("folder", tmp_path / "set")


def test_colours_over_time_are_refused(tmp_path):
    structured = np.zeros((6, 5, 3, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save(tmp_path / "set/a.nii", structured)
    with pytest.raises(UserError, match="save a file for each volume"):
        index_folder(tmp_path / "set", channels=(0, 1))


def test_channels_are_augmented_by_one_draw(tmp_path):
    dataset = load_dataset("folder", nnunet(tmp_path / "set"), channels=(0, 1))
    slices = Slices(store=dataset.store, positions=np.arange(4))
    image, label = slices.image(0), slices.label(0)
    for augmentation in (
        Augmentation(jitter=1.0, blur=1.0, noise=1.0, solarise=1.0),
        Augmentation(crop="fixed", foreground=1.0, affine=1.0, jitter=1.0, blur=1.0),
    ):
        augmenter = Augmenter(augmentation, 32)
        both, cut = augmenter(image, 5, label)
        assert both.shape == (2, 32, 32)
        for channel in range(2):
            alone, cut_alone = augmenter(image[channel], 5, label)
            # OpenCV turns two channels with coarser weights than one
            np.testing.assert_allclose(both[channel], alone, rtol=0, atol=0.05 if augmentation.affine else 0)
            np.testing.assert_array_equal(cut, cut_alone)
        sample, target = AugmentedSlices(slices, augmenter)[0, 5]
        np.testing.assert_array_equal(sample.numpy(), both)
        assert target.shape == (32, 32)
        views = TwoViews(slices, augmenter) if not augmentation.foreground else None
        if views is not None:
            assert views[0, 5].shape == (2, 2, 32, 32)
            np.testing.assert_array_equal(views[0, 5][0].numpy(), both)


@pytest.mark.slow
def test_inspection_describes_each_channel(tmp_path):
    root = nnunet(tmp_path / "set")
    report = inspect_dataset("folder", root, channels=(1, 0))
    assert report["problems"] == []
    assert report["files"] == 16
    assert report["dtypes"] == {"float32": 8, "int16": 8}
    assert report["channels"]["0"]["percentile 50"][1] == pytest.approx(300, abs=10)
    assert report["channels"]["1"]["percentile 50"][1] == pytest.approx(-18, abs=10)
    page = tmp_path / "page.html"
    assert run(Inspect(dataset="folder", data_root=root, channels=(1, 0), html=page)) == 0
    assert "case05_0001.nii.gz" in page.read_text()  # the picture is of the first channel
    html = " ".join(page.read_text().split())
    assert html.count("<svg") == 6  # histogram, and each channel's intensities, wide and narrow
    assert "Intensities of each image, channel 1: a point" in html
    assert "Intensities of each image, channel 0: a point" in html
    assert "Of the chosen channels the first is shown." in html
    assert "of every image, all channels together, without" in html
    (root / "imagesTr/case05_0001.nii.gz").unlink()
    save(root / "imagesTr/case02_0001.nii.gz", case(2)[1], np.diag([1.5, 1.5, 4, 1]))
    problems = [finding["problem"] for finding in inspect_dataset("folder", root, channels=(0, 1))["problems"]]
    assert any("case05_0000.nii.gz is of a case that has no channel 1" in problem for problem in problems)
    assert any("case02_0001.nii.gz does not lie on the voxel grid" in problem for problem in problems)
    colourful = inspect_dataset("folder", write_png_folder(tmp_path / "png"), channels=(0, 1, 2))
    assert (colourful["files"], colourful["dtypes"], colourful["problems"]) == (6, {"uint8": 6}, [])
    Image.fromarray(colours(9)[..., 0]).save(tmp_path / "png/images/p9.png")
    (finding,) = inspect_dataset("folder", tmp_path / "png", channels=(0, 1, 2))["problems"]
    assert "p9.png has one channel" in finding["problem"]
    assert "channels" not in inspect_dataset("folder", root, channels=0)
