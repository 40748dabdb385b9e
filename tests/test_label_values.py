"""Values of label maps: ignored voxels, grey and binary masks, palettes and colours, names of classes."""

import json
import re
import struct
import zlib
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.inspect import inspect_dataset
from data.labelled_list import with_labelled_list
from data.readers.images import read_shape, read_volume
from data.readers.label_maps import IGNORED, ReadingOptions, read_classes, read_ignore_label, read_labels
from data.slices import load_dataset
from data.sources import FolderSource, open_slices
from data.splits import labelled_subset
from segment.config import SegmentConfig
from segment.evaluate import Evaluate
from segment.evaluate import run as evaluate
from segment.figures import panel_case, prediction_panel
from segment.metrics import dice_per_class, score_volume
from segment.model import ModelCard, segmentation_loss
from segment.predict import Predict
from segment.predict import run as predict
from segment.training import run as train

RNG = np.random.default_rng(0)
AFFINE = np.diag([1.5, 1.5, 8, 1])
SUFFIXES = ["nii.gz", "png", "tif"]


def write(path: Path, values: np.ndarray) -> Path:
    """Write (X, Y, Z), or of a 2D format its first slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith("nii.gz"):
        nib.Nifti1Image(values, AFFINE).to_filename(path)
    else:
        Image.fromarray(np.ascontiguousarray(values[..., 0].T)).save(path)
    return path


def block(value: int = 1, dtype: str = "uint8") -> np.ndarray:
    labels = np.zeros((12, 10, 2), dtype)
    labels[2:7, 3:8] = value
    return labels


def folder(root: Path, *label_maps: np.ndarray, suffix: str = "nii.gz") -> Path:
    for number, labels in enumerate(label_maps):
        image = RNG.integers(0, 200, labels.shape).astype(np.uint8)
        write(root / f"images/a{number}.{suffix}", image)
        write(root / f"labels/a{number}.{suffix}", labels)
    return root


def values_of(file: Path, **options) -> list[int]:
    return np.unique(read_labels(file, options=ReadingOptions(**options)).indices).tolist()


def soft(size: int = 48, top: int = 255, radius: int = 12, sigma: float = 3) -> np.ndarray:
    mask = np.zeros((size, size), np.float32)
    cv2.circle(mask, (size // 2, size // 2), radius, float(top), -1)
    return cv2.GaussianBlur(mask, (0, 0), sigma).round()[..., None]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("top", "dtype"), [(255, "uint8"), (65535, "uint16"), (255, "int32")])
def test_binary_masks(tmp_path, suffix, top, dtype):
    if (suffix, dtype) != ("png", "int32"):
        assert values_of(write(tmp_path / f"a.{suffix}", block(top, dtype))) == [0, 1]


@pytest.mark.parametrize("offset", [1e-4, -1e-4])
def test_nearly_whole_numbers(tmp_path, offset):
    file = write(tmp_path / "a.nii.gz", (block(2) * (1 + offset)).astype(np.float32))
    assert values_of(file) == [0, 2]
    np.testing.assert_array_equal(read_labels(file).indices, np.where(block(2), 2, 0).T[None])


@pytest.mark.parametrize("value", [0.5, 1.01, np.nan, np.inf, -1, 256, 1e9])
def test_values_that_are_no_class(tmp_path, value):
    file = write(tmp_path / "a.nii.gz", np.where(block(), value, 0).astype(np.float32))
    with pytest.raises(UserError, match=r"a\.nii\.gz holds label values"):
        read_labels(file)


def test_boolean_tiff(tmp_path):
    Image.fromarray(block()[..., 0].astype(bool)).save(tmp_path / "a.tif")
    assert values_of(tmp_path / "a.tif") == [0, 1]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["8 bits", "dark", "16 bits", "resized", "blurred widely"])
def test_soft_edges(tmp_path, suffix, kind):
    mask = {
        "8 bits": soft().astype(np.uint8),
        "dark": soft(top=200).astype(np.uint8),
        "16 bits": (soft() * 257).astype(np.uint16),
        "resized": cv2.resize(255 * block()[..., 0], (37, 41), interpolation=cv2.INTER_CUBIC)[..., None],
        "blurred widely": soft(96, 180, 20, 9).astype(np.uint8),
    }[kind]
    file = write(tmp_path / f"a.{suffix}", mask)
    with pytest.raises(UserError, match=r"a\..*--mask-threshold"):
        read_labels(file)
    threshold = int(mask.max()) // 2
    labels = read_labels(file, options=ReadingOptions(mask_threshold=threshold)).indices
    np.testing.assert_array_equal(labels[0, 0], np.greater_equal(mask[..., 0].T, threshold))


def test_a_threshold_for_training(tmp_path):
    folder(tmp_path, *(soft().astype(np.uint8) for _ in range(2)), suffix="png")
    dataset = open_slices(FolderSource(data_root=tmp_path, mask_threshold=100))
    assert dataset.classes == ("background", "1")
    assert inspect_dataset("folder", tmp_path, options=ReadingOptions(mask_threshold=100))["problems"] == []
    assert len(inspect_dataset("folder", tmp_path)["problems"]) == 2


@pytest.mark.parametrize("count", [3, 12, 117])
def test_many_classes_are_no_soft_edges(tmp_path, count):
    labels = np.repeat(np.repeat(np.arange(count, dtype=np.uint8), 9)[:, None], 4, axis=1)[..., None]
    assert values_of(write(tmp_path / "a.nii.gz", labels)) == list(range(count))


def test_0_and_255_beside_several_classes(tmp_path):
    folder(tmp_path, block(255), block(1) + np.roll(block(2), 5, axis=0), block(1))
    with pytest.raises(UserError, match=r"a0\.nii\.gz holds only 0 and 255 .* --ignore-label 255"):
        load_dataset("folder", tmp_path)
    assert any("only 0 and 255" in p["problem"] for p in inspect_dataset("folder", tmp_path)["problems"])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_palettes(tmp_path, suffix):
    """Colours of an image, indices of a label map; but a grey palette, as optimisers make it, holds the values."""
    grey = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(grey).quantize(64).save(tmp_path / f"grey.{suffix}")
    seen = read_volume(tmp_path / f"grey.{suffix}").stack[0, 0]
    assert np.corrcoef(seen.ravel(), grey.ravel())[0, 1] > 0.99

    labels = block(2)[..., 0]
    coloured = Image.fromarray(labels).convert("P")
    coloured.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    coloured.save(tmp_path / f"classes.{suffix}")
    assert values_of(tmp_path / f"classes.{suffix}") == [0, 2]

    reduced = Image.fromarray((labels == 0).astype(np.uint8)).convert("P")
    reduced.putpalette([200, 0, 0, 0, 0, 0])
    reduced.save(tmp_path / f"reduced.{suffix}")
    with pytest.raises(UserError, match=rf"reduced.{suffix}: index 1 of its palette is black and index 0 is a colour"):
        read_labels(tmp_path / f"reduced.{suffix}")

    reordered = Image.fromarray((labels == 0).astype(np.uint8)).convert("P")
    reordered.putpalette([255, 255, 255, 0, 0, 0])
    reordered.save(tmp_path / f"white_first.{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"white_first.{suffix}").indices[0, 0], labels == 2)


def test_palettes_of_several_files(tmp_path):
    """A program that reduces colours file by file numbers them anew where a class is missing."""
    labels = block(2)[..., 0]
    colours = {0: (0, 0, 0), 1: (200, 0, 0), 2: (0, 200, 0)}
    for name, classes in (("a", (0, 1, 2)), ("b", (0, 2)), ("c", (0, 1))):
        mask = Image.fromarray(np.where(labels > 0, len(classes) - 1, 0).astype(np.uint8)).convert("P")
        mask.putpalette([value for k in classes for value in colours[k]])
        image = Image.fromarray(RNG.integers(0, 256, labels.shape, dtype=np.uint8))
        for kind, picture in (("images", image), ("labels", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            picture.save(tmp_path / kind / f"{name}.png")
    message = r"b\.png: the colour \(0, 200, 0\) is the class 1, in .*a\.png the class 2: save the classes as grey"
    with pytest.raises(UserError, match=message):
        load_dataset("folder", tmp_path)
    problems = inspect_dataset("folder", tmp_path)["problems"]
    assert [re.search(message, problem["problem"]) is not None for problem in problems] == [True]
    for kind in ("images", "labels"):
        (tmp_path / kind / "b.png").unlink()
    assert len(load_dataset("folder", tmp_path).store) == 2  # one palette, a class missing
    ignored = np.where(np.arange(labels.shape[1]) < 3, 255, labels > 0).astype(np.uint8)
    for name in "bc":  # filled up with black
        Image.fromarray(RNG.integers(0, 256, labels.shape, dtype=np.uint8)).save(tmp_path / f"images/{name}.png")
        mask = Image.fromarray(ignored).convert("P")
        mask.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
        mask.save(tmp_path / f"labels/{name}.png")
    assert len(load_dataset("folder", tmp_path, options=ReadingOptions(ignore_label=255)).store) == 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_masks(tmp_path, suffix):
    rgb = np.repeat(block(255)[..., :1], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / f"white.{suffix}")
    assert values_of(tmp_path / f"white.{suffix}") == [0, 1]
    Image.fromarray(rgb * np.uint8([1, 0, 0])).save(tmp_path / f"red.{suffix}")
    with pytest.raises(UserError, match=r"red\..* is a colour image"):
        read_labels(tmp_path / f"red.{suffix}")
    Image.fromarray(np.dstack([0 * rgb, rgb[..., 0]])).save(tmp_path / f"clear.{suffix}")
    with pytest.raises(UserError, match=r"clear\..* transparency"):
        read_labels(tmp_path / f"clear.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_deep_colour(tmp_path, suffix, channels):
    grey = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    file = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(file), np.stack([grey] * channels, axis=-1))
    assert read_shape(file).dtype == np.uint16
    np.testing.assert_array_equal(read_volume(file).stack[0, 0], grey)


def test_deep_colour_in_pages_and_with_transparency(tmp_path):
    pages = [RNG.integers(0, 65536, (20, 30), dtype=np.uint16) for _ in range(3)]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [np.dstack([page] * 3) for page in pages])
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").stack[0], pages)
    rows = np.dstack([pages[0], np.full_like(pages[0], 65535)]).astype(">u2")
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 4, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    with open(tmp_path / "a.png", "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            stream.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").stack[0, 0], pages[0])


@pytest.mark.parametrize("threshold", [0, -1, np.nan, np.inf])
def test_thresholds_that_make_no_mask(threshold):
    with pytest.raises(UserError, match="--mask-threshold"):
        ReadingOptions(mask_threshold=threshold)


def test_a_threshold_above_a_binary_mask_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.png holds only 0 and 1, below --mask-threshold 128"):
        values_of(write(tmp_path / "a.png", block()), mask_threshold=128)


# ---- ignored voxels


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ({"background": 0, "organ": 1, "ignore": 2}, 2),
        ({"ignore": 9, "organ": 1, "background": 0}, 9),
        ({"background": 0, "organ": 1, "Ignore": 255}, 255),
        ({"background": 0, "organ": 1, "ignore": 1000}, 1000),
    ],
)
def test_the_ignore_label_of_nnu_net(tmp_path, labels, value):
    """It is no class, whatever its value and its place in the file."""
    maps = [block().astype(np.int16) for _ in range(3)]
    for each in maps:
        each[:, :2] = value
    folder(tmp_path, *maps)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert read_classes(tmp_path / "dataset.json") == ("background", "organ")
    assert read_ignore_label(tmp_path / "dataset.json") == value
    dataset = load_dataset("folder", tmp_path)
    assert (dataset.classes, dataset.ignores) == (("background", "organ"), True)
    assert set(dataset.table["label_values"]) == {"0 1"}
    np.testing.assert_array_equal(np.unique(dataset.store.label(0)), [0, 1, IGNORED])
    report = inspect_dataset("folder", tmp_path)
    assert report["problems"] == []
    assert report["class_share"] == pytest.approx({"background": 75 / 100, "organ": 25 / 100}, abs=0.02)
    with pytest.raises(UserError, match="--ignore-label 7"):
        load_dataset("folder", tmp_path, options=ReadingOptions(ignore_label=7))


def test_a_dataset_json_inside_the_folder_counts_whole(tmp_path):
    """Its classes and its label to ignore, wherever the data set lies below the data root."""
    label = block().astype(np.int16)
    label[:, :2] = 2
    folder(tmp_path / "Dataset001", *(label.copy() for _ in range(3)))
    description = {"labels": {"background": 0, "organ": 1, "ignore": 2}}
    (tmp_path / "Dataset001" / "dataset.json").write_text(json.dumps(description))
    dataset = load_dataset("folder", tmp_path)
    assert (dataset.classes, dataset.ignores) == (("background", "organ"), True)
    assert inspect_dataset("folder", tmp_path)["problems"] == []


def test_an_ignore_label_between_the_classes_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ignore": 1, "organ": 2}}))
    with pytest.raises(UserError, match=r"values \[0, 2\].* below the one to ignore"):
        read_classes(tmp_path / "dataset.json")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ignored_voxels_of_other_folders(tmp_path, suffix):
    void = block()
    void[0] = 255
    folder(tmp_path, void, block(), np.where(void == 255, void, 0), suffix=suffix)
    with pytest.raises(UserError, match=r"holds label values \[255\].*--ignore-label 255"):
        load_dataset("folder", tmp_path)
    dataset = open_slices(FolderSource(data_root=tmp_path, ignore_label=255))
    assert dataset.classes == ("background", "1")
    assert sorted(set(dataset.table["label_values"])) == ["0", "0 1"]


def test_a_training_slice_without_any_label_does_not_count_as_labelled(tmp_path):
    """Of each scan one slice was annotated, as `annotate collect` writes it; the others are ignored as a whole."""
    void = block()
    void[..., 1:] = 255
    folder(tmp_path, *[void] * 6)
    dataset = open_slices(FolderSource(data_root=tmp_path, ignore_label=255))
    slices = void.shape[2]
    training = dataset.table["split"] == "train"
    annotated = dataset.positions("train", labelled=True)
    assert (dataset.table["slice"].iloc[annotated] == 0).all()
    assert len(annotated) == training.sum() // slices
    assert len(dataset.positions("train", labelled=False)) == training.sum() - len(annotated)
    assert len(dataset.positions("val", labelled=True)) == len(dataset.positions("val"))  # volumes are scored whole
    assert [*labelled_subset(dataset.table, 1.0)] == [*annotated]
    subject = dataset.table["subject"].iloc[annotated[0]]
    (tmp_path / "list").write_text(f"subject,slice\n{subject},1\n")
    with pytest.raises(UserError, match=f"names subject {subject}, slice 1, which has no labels: remove it"):
        with_labelled_list(dataset, tmp_path / "list")


@pytest.mark.parametrize("name", ["jaccard", "jaccard+ce"])
def test_ignored_pixels_add_nothing_to_the_loss(name):
    loss, plain = segmentation_loss(name, ignores=True), segmentation_loss(name)
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.from_numpy(RNG.integers(0, 3, (2, 8, 8)))
    torch.testing.assert_close(loss(logits, target), plain(logits, target))
    target[:, 4:] = IGNORED
    torch.testing.assert_close(loss(logits, target), plain(logits[:, :, :4], target[:, :4]))
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 4:].any()
    assert loss(logits, torch.full_like(target, IGNORED)).item() == 0


def test_ignored_voxels_add_nothing_to_scores():
    reference = RNG.integers(0, 3, (4, 12, 10)).astype(np.uint8)
    prediction = RNG.integers(0, 3, reference.shape).astype(np.uint8)
    classes, spacing = ("background", "a", "b"), (8, 1, 1)
    cropped = score_volume(prediction[:, :8], reference[:, :8], spacing, classes)
    ignored = reference.copy()
    ignored[:, 8:] = IGNORED
    assert score_volume(prediction, ignored, spacing, classes) == pytest.approx(
        cropped | {k: v for k, v in score_volume(prediction, ignored, spacing, classes).items() if "_mm_" in k}
    )
    assert dice_per_class(prediction, ignored, classes) == dice_per_class(prediction[:, :8], reference[:, :8], classes)
    # distances too, when the rows next to the ignored ones are background
    prediction[:, 7], reference[:, 7], ignored[:, 7] = 0, 0, 0
    whole = score_volume(prediction, ignored, spacing, classes)
    assert whole == pytest.approx(score_volume(prediction[:, :8], reference[:, :8], spacing, classes))


def test_crops_are_not_drawn_at_ignored_pixels():
    label = np.zeros((64, 64), np.uint8)
    label[:20], label[60, 60] = IGNORED, 1
    augmenter = Augmenter(Augmentation(crop="fixed", foreground=1, flip=0, jitter=0), 16)
    for seed in range(5):
        cut = augmenter(np.zeros((64, 64), np.float32), seed, label)[1]
        assert cut is not None
        assert 1 in cut


def test_evaluate_leaves_ignored_voxels_out(tmp_path):
    reference, prediction = block(), block()
    reference[:, 5:], prediction[:, 5:] = 255, 2
    write(tmp_path / "d/labelsTs/a.nii.gz", reference)
    write(tmp_path / "p/a.nii.gz", prediction)
    cfg = {"prediction": tmp_path / "p", "reference": tmp_path / "d/labelsTs"}
    with pytest.raises(UserError, match="--ignore-label 255"):
        evaluate(Evaluate(**cfg))
    assert evaluate(Evaluate(**cfg, ignore_label=255))["dice"] == {"mean": 1, "label_1": 1}
    (tmp_path / "d/dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "ignore": 255}}))
    assert evaluate(Evaluate(**cfg))["dice"] == {"mean": 1, "label_1": 1}
    write(tmp_path / "p/a.nii.gz", block(255))  # of a program that writes 255 for its one class
    assert evaluate(Evaluate(**cfg))["dice"] == {"mean": 1, "label_1": 1}


def test_evaluate_with_a_threshold(tmp_path):
    write(tmp_path / "p/a.png", soft().astype(np.uint8))
    write(tmp_path / "r/a.png", (255 * (soft() >= 100)).astype(np.uint8))
    result = evaluate(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r", mask_threshold=100))
    assert result["dice"]["mean"] == 1


def test_evaluate_refuses_0_and_255_beside_several_classes(tmp_path):
    write(tmp_path / "p/a.nii.gz", block(255))
    write(tmp_path / "r/a.nii.gz", block(1) + np.roll(block(2), 5, axis=0))
    with pytest.raises(UserError, match=r"p/a\.nii\.gz holds only 0 and 255"):
        evaluate(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "r"))


# ---- names of classes


@pytest.mark.parametrize(
    "names",
    [("mean",), ("Mean ",), ("background",), ("Background",), ("a", "b", "A"), ("left  lung", "left lung"), ("",)],
)
def test_names_that_would_replace_or_merge_scores(tmp_path, names):
    with_values = [("bg", 0), *((name, value) for value, name in enumerate(names, start=1))]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": dict(with_values)}))
    (tmp_path / "1.json").write_text(json.dumps({"labels": {str(value): name for name, value in with_values}}))
    for file in ("dataset.json", "1.json"):
        with pytest.raises(UserError, match=f"{file} .*rename"):
            read_classes(tmp_path / file)
    card = {"encoder": "test_resnet", "norm": "batch", "normalisation": "image", "statistics": (0, 1)}
    with pytest.raises(ValidationError, match="rename"):
        ModelCard(**card, spacing_mm=None, dataset="", init="", classes=["background", *names])
    write(tmp_path / "p/a.nii.gz", block())
    with pytest.raises(UserError, match=r"--classes .*rename"):
        evaluate(Evaluate(prediction=tmp_path / "p", reference=tmp_path / "p", classes=("first", *names)))


def test_figures_take_any_name(tmp_path):
    image, labels = RNG.normal(size=(1, 20, 20)), block().T[:1]
    case = panel_case("a $x_{ b", image[:, :10, :12], labels, labels, (1, 1, 1))
    prediction_panel([case], tmp_path / "a.svg", ("_x___", "$\\frac{", "a$b$"))
    assert (tmp_path / "a.svg").stat().st_size


@pytest.mark.slow
def test_training_and_prediction_with_an_ignored_label(tmp_path):
    maps = [np.repeat(np.repeat(block(), 4, axis=0), 4, axis=1) for _ in range(4)]
    for labels in maps:
        labels[:, :8] = 2
    folder(tmp_path, *maps)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1, "ignore": 2}}))
    few = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "steps": 2, "device": "cpu", "figures": False}
    source = FolderSource(data_root=tmp_path, slice_axis="axial")
    result = train(SegmentConfig(data=source, out=tmp_path / "run", loss="jaccard+ce", **few))
    assert list(result["dice"]) == ["mean", "organ"]
    card = json.loads((tmp_path / "run/model.json").read_text())
    assert (card["classes"], card["slice_axis"]) == (["background", "organ"], "axial")
    predict(Predict(run=tmp_path / "run", input=tmp_path / "images", output=tmp_path / "out", device="cpu"))
    scores = evaluate(Evaluate(prediction=tmp_path / "out", reference=tmp_path / "labels"))
    assert list(scores["dice"]) == ["mean", "label_1"]
