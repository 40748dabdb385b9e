"""`--channels K`: one channel of files that hold several, and the refusal of a channel that a file lacks."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_channels import case, colours, nnunet, rgb_nifti, save, write_png_folder
from PIL import Image

import segment.training
from annotate.plan import open_unlabelled
from core.errors import SomeFilesFailed, UserError
from data.augmentation import Augmentation
from data.inspect import Inspect, inspect_dataset, run
from data.readers.channels import has_numbered_channels
from data.readers.folder import index_folder
from data.slices import load_dataset
from data.sources import FolderSource
from segment.config import SegmentConfig
from segment.model import load_unet
from segment.predict import Predict, _read
from segment.predict import run as predict


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))


def grey_folder(root):
    for n in range(4):
        image, _, labels = case(n)
        save(root / f"images/a{n}.nii.gz", image)
        save(root / f"labels/a{n}.nii.gz", labels)
    return root


def test_a_file_of_one_channel_has_channel_0_alone(tmp_path):
    root = grey_folder(tmp_path / "set")
    message = r"a0\.nii\.gz has one channel, and channel 7 is missing: choose another by --channels.* with _0007"
    for labelled in (True, False):
        with pytest.raises(UserError, match=message):
            load_dataset("folder", root, channels=7, labelled=labelled)
    with pytest.raises(UserError, match=message):
        run(Inspect(dataset="folder", data_root=root, channels=7))
    keys = [load_dataset("folder", root, channels=each).store.key for each in (None, 0)]
    assert keys[0] == keys[1]
    save(root / "images/a3.nii.gz", np.stack(case(3)[:2], axis=-1))
    problems = [finding["problem"] for finding in inspect_dataset("folder", root, channels=1)["problems"]]
    assert [problem.partition(" has one channel, and channel 1")[0][-9:] for problem in problems[:3]] == [
        "a0.nii.gz", "a1.nii.gz", "a2.nii.gz",
    ]  # fmt: skip
    assert len(problems) == 3


@pytest.mark.parametrize("kind", ["png", "tif", "jpg", "nii", "vectors"])
def test_a_single_channel_chooses_a_colour(tmp_path, kind, caplog):
    root = tmp_path / "set"
    for n in range(4):
        file, values = root / f"images/a{n}.{kind}", colours(n, (12, 10, 3))
        if kind == "nii":
            rgb_nifti(file, values)
        elif kind == "vectors":
            save(file.with_suffix(".nii.gz"), values[:, :, :, None])
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[:, :, 0]).save(file)
        labels = (values[..., 0] > 99).astype(np.uint8)
        if kind in ("nii", "vectors"):
            save(root / f"labels/a{n}.nii.gz", labels)
        else:
            (root / "labels").mkdir(exist_ok=True)
            Image.fromarray(labels[..., 0]).save(root / f"labels/a{n}.png")
    several, green = (load_dataset("folder", root, channels=each) for each in ((0, 1), 1))
    assert green.store.channels == 1
    assert {*green.table["frame"]} == {1}
    assert len({several.store.key, green.store.key, load_dataset("folder", root, channels=0).store.key}) == 3
    for row in range(len(green.table)):
        np.testing.assert_array_equal(green.store.image(row), several.store.image(row)[1])
        np.testing.assert_array_equal(green.store.label(row), several.store.label(row))
    with pytest.raises(UserError, match="has the channels 0 to 2, and channel 3 is missing"):
        load_dataset("folder", root, channels=3)
    report = inspect_dataset("folder", root, channels=1)
    assert (report["files"], report["problems"]) == (4, [])
    assert "channels" not in report
    assert not [record for record in caplog.records if "grey" in record.message]


def test_colours_of_numbered_files(tmp_path):
    """`case_0000` alone holds all colours, as nnU-Net's; beside `case_0001` each file is a channel, in grey values."""
    root = write_png_folder(tmp_path / "set", number="_0000")
    dataset = load_dataset("folder", root, channels=2)
    np.testing.assert_array_equal(dataset.store.image(1), colours(1)[..., 2])
    assert not has_numbered_channels(dataset.table, 2)
    assert not has_numbered_channels(load_dataset("folder", root, channels=0).table, 0)
    for file in [*(root / "imagesTr").iterdir()]:
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file.with_name(file.name.replace("_0000", "_0001")))
    dataset = load_dataset("folder", root, channels=1)
    assert "channels" not in dataset.table
    assert dataset.table["file"].iloc[1] == "imagesTr/p1_0001.png"
    grey = np.asarray(Image.open(root / "imagesTr/p1_0001.png").convert("L"))
    np.testing.assert_array_equal(dataset.store.image(1), grey)
    assert has_numbered_channels(dataset.table, 1)


def test_numbered_files_of_frames_are_refused(tmp_path):
    root = nnunet(tmp_path / "set", cases=4)
    save(root / "imagesTr/case02_0001.nii.gz", np.stack([case(2)[1]] * 3, axis=-1))
    with pytest.raises(UserError, match=r"case02_0001\.nii\.gz has 3 frames and is one of several channels"):
        index_folder(root, channels=1)


def test_files_of_one_colour_and_of_one_channel_go_together(tmp_path):
    root = write_png_folder(tmp_path / "set")
    Image.fromarray(colours(9)[..., 1]).save(root / "images/p9.png")
    Image.fromarray((colours(9)[..., 0] > 9).astype(np.uint8)).save(root / "labels/p9.png")
    dataset = load_dataset("folder", root, channels=0)
    np.testing.assert_array_equal(dataset.store.image(6), colours(9)[..., 1])
    np.testing.assert_array_equal(dataset.store.image(1), colours(1)[..., 0])
    with pytest.raises(UserError, match=r"p9\.png has one channel, and channel 1 is missing"):
        load_dataset("folder", root, channels=1)


def test_annotation_takes_no_single_colour(tmp_path):
    root = write_png_folder(tmp_path / "set")
    with pytest.raises(UserError, match="takes no single colour of"):
        open_unlabelled(FolderSource(data_root=root, channels=1))
    assert len(open_unlabelled(FolderSource(data_root=root)).table) == 6


def config(root, out, channels):
    small = {"encoder": "test_resnet", "image_size": 32, "steps": 1, "batch_size": 4, "device": "cpu", "figures": False}
    source = FolderSource(data_root=root, channels=channels)
    return SegmentConfig(data=source, out=out, augmentation=Augmentation(crop="resized"), **small)


@pytest.mark.slow
def test_a_colour_is_trained_on_and_predicted(tmp_path):
    root, runs = write_png_folder(tmp_path / "set", cases=8), tmp_path / "run"
    segment.training.run(config(root, runs, 1))
    card = load_unet(runs)[1]
    assert (card.channels, card.numbered_channels, card.in_channels) == (1, False, 1)
    (tmp_path / "new").mkdir()
    Image.fromarray(colours(50)).save(tmp_path / "new/x.png")
    Image.fromarray(colours(51)[..., 0]).save(tmp_path / "new/grey.png")
    _, stack, _ = _read(tmp_path / "new/x.png", (), None, card)
    np.testing.assert_array_equal(stack[0, 0], colours(50)[..., 1])
    _, stack, _ = _read(tmp_path / "new/x.png", (), None, card.model_copy(update={"channels": None}))
    np.testing.assert_array_equal(stack[0, 0], np.asarray(Image.open(tmp_path / "new/x.png").convert("L")))
    call = Predict(run=runs, input=tmp_path / "new", output=tmp_path / "out", device="cpu")
    with pytest.raises(
        SomeFilesFailed, match=r"1 of 2 failed.*\n.*grey\.png has one channel, and channel 1 is missing"
    ):
        predict(call)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/x.png")).shape, (24, 20))

    # a grey file is the channel that its name says
    for name, refused in (("t2_0001.png", False), ("t2_0002.png", True)):
        Image.fromarray(colours(51)[..., 0]).save(tmp_path / name)
        each = replace(call, input=tmp_path / name, output=tmp_path / "numbered")
        if refused:
            with pytest.raises(SomeFilesFailed, match="channel 1 is missing"):
                predict(each)
        else:
            predict(each)


@pytest.mark.slow
def test_another_channel_of_a_case_is_not_predicted(tmp_path):
    root, runs = nnunet(tmp_path / "set", cases=4), tmp_path / "run"
    segment.training.run(config(root, runs, None))
    assert load_unet(runs)[1].numbered_channels
    call = Predict(run=runs, input=root / "imagesTr/case00_0001.nii.gz", output=tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match=r"case00_0001\.nii\.gz is another channel than 0, .* pass .*case00_0000\.nii"):
        predict(call)
    predict(replace(call, input=root / "imagesTr/case00_0000.nii.gz"))


@pytest.mark.parametrize("channels", [1, (0, 1, 2)])
def test_nifti_files_of_colours_are_trained_on(tmp_path, channels):
    for n in range(6):
        values = colours(n, (36, 40, 2))
        rgb_nifti(tmp_path / f"set/images/a{n}.nii.gz", values)
        save(tmp_path / f"set/labels/a{n}.nii.gz", (values[..., 1] > 99).astype(np.uint8))
    segment.training.run(config(tmp_path / "set", tmp_path / "run", channels))
    assert load_unet(tmp_path / "run")[1].channels == channels
