import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from core.errors import SomeFilesFailed, UserError
from data.readers.images import read_volume
from engine.model_file import save_model
from segment.clinical import ejection_fractions
from segment.doubts import Doubts
from segment.model import ModelCard, build_unet, load_unet
from segment.predict import Predict, run
from segment.tables import print_volumes

CLASSES = ["background", "RV", "MYO", "LV"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A U-Net of random weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    card = ModelCard(
        encoder="test_resnet",
        norm="batch",
        classes=CLASSES,
        normalisation="image",
        statistics=(0, 1),
        spacing_mm=1.5,
        flip_tta=True,
        dataset="acdc",
        init="random",
    )
    save_model(build_unet("test_resnet", 4), folder, card)
    return folder


def predict(trained: Path, source: Path, output: Path) -> pd.DataFrame:
    return run(Predict(run=trained, input=source, output=output, device="cpu"))


def scan(shape: tuple[int, ...], zooms: tuple[float, ...], dtype="int16", affine=None, seed=0) -> nib.Nifti1Image:
    values = np.random.default_rng(seed).normal(300, 100, shape).astype(dtype)
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_zooms(zooms)
    return image


def same_grid(mask: Path, image: Path) -> np.ndarray:
    """Check that the label map lies on the grid of its image; return the labels."""
    mask_image, like = nib.load(mask), nib.load(image)
    assert mask_image.shape == like.shape
    assert mask_image.get_data_dtype() == np.uint8
    assert mask_image.header.get_zooms() == like.header.get_zooms()
    np.testing.assert_array_equal(mask_image.affine, like.affine)
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert mask_image.header[code] == like.header[code]
    labels = np.asarray(mask_image.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    return labels


OBLIQUE = np.array([[1.4, 0.2, 0, -50], [-0.2, 1.4, 0, 30], [0, 0, 8, 12], [0, 0, 0, 1.0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "zooms", "dtype", "affine"),
    [
        ((61, 47, 3), (1.5, 1.5, 10), "int16", None),
        ((61, 47, 3), (1.4, 1.4, 8), "float32", OBLIQUE),
        ((33, 40, 2, 3), (1.5, 1.25, 10, 0.03), "int16", None),
        ((3, 61, 47), (10, 1.5, 1.25), "int16", None),
        ((47, 3, 61, 2), (1.5, 10, 1.25, 1), "float32", None),
        ((41, 37, 1), (1.5, 1.5, 10), "uint16", None),
    ],
    ids=["3D", "oblique", "4D", "slices first", "4D slices second", "one slice"],
)
def test_label_maps_lie_on_the_images_grid(trained, tmp_path, shape, zooms, dtype, affine):
    file = tmp_path / "scan.nii.gz"
    scan(shape, zooms, dtype, affine).to_filename(file)
    table = predict(trained, file, tmp_path / "out")
    labels = same_grid(tmp_path / "out/scan.nii.gz", file)
    frames = shape[3] if len(shape) == 4 else 1
    assert table["frame"].tolist() == list(range(1, frames + 1))
    voxel_ml = np.prod(np.array(zooms[:3])) / 1000
    for k, name in enumerate(CLASSES[1:], start=1):
        counts = (labels.reshape(*shape[:3], frames) == k).sum(axis=(0, 1, 2))
        np.testing.assert_allclose(table[f"volume_ml_{name}"], counts * voxel_ml)


@pytest.mark.slow
def test_the_slice_axis_does_not_matter(trained, tmp_path):
    """The same slices stacked along another axis get the same labels."""
    image = scan((61, 47, 3), (1.5, 1.25, 10))
    image.to_filename(tmp_path / "last.nii")
    turned = nib.Nifti1Image(np.moveaxis(np.asarray(image.dataobj), 2, 0), np.eye(4))
    turned.header.set_zooms((10, 1.5, 1.25))
    turned.to_filename(tmp_path / "first.nii")
    predict(trained, tmp_path, tmp_path / "out")
    last, first = (np.asarray(nib.load(tmp_path / f"out/{name}.nii").dataobj) for name in ("last", "first"))
    np.testing.assert_array_equal(last, np.moveaxis(first, 0, 2))
    assert last.any()


@pytest.mark.slow
def test_isotropic_files_are_sliced_in_the_plane_of_training(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    card = json.loads((run / "model.json").read_text())
    assert card["plane"] is None  # of files without a place in the world
    (run / "model.json").write_text(json.dumps(card | {"plane": "sagittal", "sha256": None}))
    affine = np.diag([1.5, 1.5, 1.5, 1])
    image = scan((6, 45, 38), (1.5, 1.5, 1.5), affine=affine)
    image.to_filename(tmp_path / "a.nii")
    predict(run, tmp_path / "a.nii", tmp_path / "out")
    assert "another plane" not in capsys.readouterr().out
    stack = np.moveaxis(np.asarray(image.dataobj), 0, 2)  # its sagittal slices as those of an axial file
    nib.Nifti1Image(stack, np.diag([1.5, 1.5, 3, 1])).to_filename(tmp_path / "b.nii")
    predict(run, tmp_path / "b.nii", tmp_path / "out")
    ours, turned = (np.asarray(nib.load(tmp_path / f"out/{name}.nii").dataobj) for name in "ab")
    np.testing.assert_array_equal(np.moveaxis(ours, 0, 2), turned)
    assert ours.any()
    said = " ".join(capsys.readouterr().out.split())
    assert "slices in another plane than the sagittal ones that the model was trained on: 1 of 1 image" in said


def test_scaled_intensities_do_not_scale_the_labels(trained, tmp_path):
    image = scan((40, 36, 2), (1.5, 1.5, 10))
    image.header.set_slope_inter(2.5, -10)
    image.to_filename(tmp_path / "scan.nii.gz")
    predict(trained, tmp_path / "scan.nii.gz", tmp_path / "out")
    same_grid(tmp_path / "out/scan.nii.gz", tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("image", ["slice.png", "slice.jpg", "in/slice.JPEG"])
def test_planar_images(trained, tmp_path, capsys, image):
    values = np.random.default_rng(0).integers(0, 255, (45, 70), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(values).save(tmp_path / image)
    source = tmp_path / "in" if "/" in image else tmp_path / image
    table = predict(trained, source, tmp_path / "out")
    labels = np.asarray(Image.open(tmp_path / "out/slice.png"))
    assert labels.shape == (45, 70)
    assert labels.max() <= 3
    assert table["volume_ml_LV"].isna().all()  # pixels have no volume
    assert table["voxels_LV"].tolist() == [(labels == 3).sum()]
    saved = pd.read_csv(tmp_path / "out/volumes.csv", dtype=str, keep_default_na=False)
    assert saved[["volume_ml_LV", "voxels_LV"]].to_numpy().tolist() == [["", str((labels == 3).sum())]]
    printed = capsys.readouterr().out
    assert "mL" not in printed
    assert (
        "no pixel size is stated in 1 of 1 image: pixels of 1 mm are assumed, and resampled to the model's 1.5 mm"
        in printed
    )
    assert "no voxel size is stated in 1 of 1 image: volumes.csv has their voxels_CLASS" in printed
    assert "grey" not in printed


@pytest.mark.slow
def test_doubts_about_the_images(trained, tmp_path, capsys):
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    Image.fromarray(rng.integers(0, 255, (33, 34, 3), dtype=np.uint8)).save(folder / "colours.png")
    Image.fromarray(np.full((33, 34), 9, np.uint8)).save(folder / "constant.png")
    scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(folder / "known.nii.gz")
    nib.Nifti1Image(np.full((40, 36, 2), 7, np.int16), np.diag([1.5, 1.5, 8, 1])).to_filename(folder / "same.nii")
    scan((40, 36), (1.5, 1.5), affine=np.eye(4)).to_filename(folder / "thickness.nii")
    for name, axes in (("pixels.nii", [1, 2]), ("affine.nii", [1, 2, 3])):
        image = scan((40, 36, 2), (1, 1, 1), affine=np.diag([1.5, 1.5, 8, 1]) if name == "affine.nii" else np.eye(4))
        image.to_filename(folder / name)
        content = bytearray((folder / name).read_bytes())
        for axis in axes:
            content[76 + 4 * axis : 80 + 4 * axis] = bytes(4)  # pixdim
        (folder / name).write_bytes(content)
    table = predict(trained, folder, tmp_path / "out").set_index("subject")
    printed = capsys.readouterr().out
    assert "colours are read as grey in 1 of 7 images\n" in printed
    assert "no pixel size is stated in 3 of 7 images: pixels of 1 mm are assumed" in printed
    assert "2 images are constant: nothing can be found in them\n" in printed
    assert "no voxel size is stated in 4 of 7 images: " in printed
    assert sorted(table.index[table["volume_ml_LV"].notna()]) == ["affine", "known", "same"]
    assert sorted(table.index[table["voxels_LV"].notna()]) == ["colours", "constant", "pixels", "thickness"]
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "known.nii.gz", tmp_path / "one")
    predict(trained, tmp_path / "one", tmp_path / "out2")
    printed = capsys.readouterr().out
    assert not any(word in printed for word in ("grey", "stated", "constant"))
    plain = with_card(trained, tmp_path / "plain", spacing_mm=None)
    predict(plain, folder, tmp_path / "out3")
    assert "no pixel size" not in capsys.readouterr().out


def test_what_was_written_is_named(tmp_path, capsys):
    row = {"file": "a.png", "subject": "a", "phase": "", "frame": 1, "volume_ml_LV": np.nan, "predicted_dice": 0.5}
    print_volumes(pd.DataFrame([row]), tmp_path / "out", tmp_path / "maps", tmp_path / "sheet.png")
    assert capsys.readouterr().out.splitlines() == [
        f"written: 1 label map and volumes.csv in {tmp_path / 'out'}",
        f"uncertainty maps: {tmp_path / 'maps'}; their means are mean_entropy_nats in volumes.csv",
        f"contact sheet: {tmp_path / 'sheet.png'}",
        "agreement of the runs: predicted_dice in volumes.csv; check the lowest first",
    ]


@pytest.mark.slow
def test_a_folder_of_the_acdc_layout(trained, tiny_acdc, tmp_path, capsys):
    table = predict(trained, tiny_acdc, tmp_path / "out")
    images = [file for file in sorted(tiny_acdc.rglob("*.nii.gz")) if "_gt" not in file.name]
    assert len(images) == 13
    for image in images:
        same_grid(tmp_path / "out" / image.relative_to(tiny_acdc), image)
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 13
    frames = table[table["file"].str.endswith("patient004_frame03.nii.gz")]
    assert frames[["subject", "phase", "frame"]].to_numpy().tolist() == [["patient004", "ES", 3]]
    cine = table[table["file"].str.endswith("patient003_4d.nii.gz")]
    assert cine["phase"].tolist() == ["ED", "", "ES", ""]
    saved = pd.read_csv(tmp_path / "out/volumes.csv", keep_default_na=False)
    assert saved["subject"].tolist() == table["subject"].tolist()
    assert "written: 13 label maps" in capsys.readouterr().out


def test_one_bad_file_does_not_stop_the_others(trained, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "z"):
        scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:400])
    (folder / "c.nii").write_text("not an image")
    broken = np.full((9, 9, 2), np.nan, np.float32)
    nib.Nifti1Image(broken, np.eye(4)).to_filename(folder / "d.nii")
    page = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    page.save(folder / "e.tif", save_all=True, append_images=[page])
    with pytest.raises(UserError, match=r"3 of 6 failed, the other 3 are done:\n.*b\.nii\.gz cannot be read") as error:
        predict(trained, folder, out)
    assert error.value.exit_code == 1
    assert [Path(line.split()[0]).name for line in str(error.value).splitlines()[1:]] == ["b.nii.gz", "c.nii", "d.nii"]
    assert sorted(file.name for file in out.iterdir()) == ["a.nii.gz", "e.tif", "volumes.csv", "z.nii.gz"]


def test_a_second_run_does_not_segment_the_first_ones_output(trained, tmp_path, monkeypatch):
    scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(tmp_path / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert len(predict(trained, tmp_path, Path("out"))) == 1  # one path absolute, one relative
    assert sorted(file.name for file in (tmp_path / "out").rglob("*")) == ["a.nii.gz", "volumes.csv"]


def test_the_images_are_never_overwritten(trained, tmp_path, monkeypatch):
    file = tmp_path / "a.nii.gz"
    scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(file)
    before = file.read_bytes()
    monkeypatch.chdir(tmp_path)
    for source, output in ((tmp_path, tmp_path), (file, tmp_path), (Path(), tmp_path), (Path("a.nii.gz"), Path())):
        with pytest.raises(UserError, match="is the folder of the images, which would be overwritten; choose another"):
            predict(trained, source, output)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["images", "images/a.nii.gz"])
def test_label_maps_of_others_are_never_overwritten_and_named(trained, tmp_path, capsys, source):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        scan((20, 16, 2), (1, 1, 5)).to_filename(tmp_path / folder / "a.nii.gz")
    before = (tmp_path / "labels/a.nii.gz").read_bytes()
    with pytest.raises(UserError, match=r"labels/a\.nii\.gz exists and was not written by this command"):
        predict(trained, tmp_path / source, tmp_path / "labels")
    assert (tmp_path / "labels/a.nii.gz").read_bytes() == before
    assert not (tmp_path / "labels/volumes.csv").exists()
    capsys.readouterr()
    for _ in range(2):
        predict(trained, tmp_path / source, tmp_path / "out")
    assert "of earlier commands" not in capsys.readouterr().out
    scan((20, 16, 2), (1, 1, 5)).to_filename(tmp_path / "b.nii.gz")
    predict(trained, tmp_path / "b.nii.gz", tmp_path / "out")
    assert "also holds 1 label map of earlier commands, which volumes.csv does not list (a.nii.gz)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_images_in_which_nothing_is_found_are_counted(trained, tmp_path, caplog):
    scan((20, 16, 2), (1, 1, 5)).to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    doubts = Doubts(load_unet(trained)[1])
    for found in (0, 0, 1):
        doubts.add(volume, volume.stack, (True, True), np.full(volume.stack.shape, found))
    with caplog.at_level(logging.WARNING, "fewslice"):
        doubts.warn()
    assert caplog.messages == ["nothing was found in 2 of 3 images"]


def test_mistakes_in_the_paths(trained, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; --input takes"):
        predict(trained, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        predict(trained, tmp_path / "empty", tmp_path / "out")
    scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"no trained model \(model.safetensors is missing\); pass a finished --run"):
        predict(tmp_path, tmp_path / "a.nii.gz", tmp_path / "out")
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-100])
    (tmp_path / "model.json").write_bytes((trained / "model.json").read_bytes())
    with pytest.raises(UserError, match=r"cannot read the model in .*; train it again"):
        predict(tmp_path, tmp_path / "a.nii.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_folder_of_a_data_set(trained, tmp_path, capsys):
    """The next command that training prints: label maps are left out, and folders of images keep their names."""
    for name in ("images/a", "images/b", "labels/a", "c_seg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(tmp_path / f"d/{name}.nii.gz")
    (tmp_path / "d/notes.txt").touch()
    predict(trained, tmp_path / "d", tmp_path / "d/out")
    assert sorted(file.name for file in (tmp_path / "d/out").rglob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]
    assert "skipped 1 file: 1 .txt" in capsys.readouterr().out
    again = predict(trained, tmp_path / "d", tmp_path / "d/second")
    assert [Path(file).relative_to(tmp_path).as_posix() for file in again["file"]] == [
        "d/second/images/a.nii.gz",
        "d/second/images/b.nii.gz",
    ]
    for source in (tmp_path / "d/out", tmp_path / "d/c_seg.nii.gz"):
        with pytest.raises(UserError, match="--input takes"):
            predict(trained, source, tmp_path / "third")


def test_tiff_stacks_stay_tiff_stacks(trained, tmp_path):
    pages = [Image.fromarray(page) for page in np.random.default_rng(0).integers(0, 900, (3, 40, 36), dtype=np.uint16)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    predict(trained, tmp_path / "a.tif", tmp_path / "out")
    assert read_volume(tmp_path / "out/a.tif").stack.shape == (1, 3, 40, 36)
    scan((36, 40, 3), (1.5, 1.5, 10)).to_filename(tmp_path / "b.nii")
    for name in ("one.png", "two.TIFF"):
        pages[0].save(tmp_path / name)
        predict(trained, tmp_path / name, tmp_path / "out")
        assert read_volume(tmp_path / "out" / name).stack.shape == (1, 1, 40, 36)


def with_card(trained: Path, folder: Path, **changes) -> Path:
    shutil.copytree(trained, folder)
    card = json.loads((folder / "model.json").read_text())
    del card["sha256"]
    (folder / "model.json").write_text(json.dumps(card | changes))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "numbered", "channels", "names"),
    [
        ("imagesTs", False, None, ["a", "b"]),
        ("in", False, None, ["a_0000", "a_0001", "b_0000", "b_0001"]),
        ("in", True, None, ["a", "b"]),
        ("in", True, 1, ["a", "b"]),
    ],
)
def test_names_of_nnunet(trained, tmp_path, capsys, folder, numbered, channels, names):
    run_folder = with_card(trained, tmp_path / "run", numbered_channels=numbered, channels=channels)
    for case in "ab":
        for k in (0, 1):
            (tmp_path / folder).mkdir(exist_ok=True)
            scan((40, 36, 2), (1.5, 1.5, 10), seed=k).to_filename(tmp_path / f"{folder}/{case}_000{k}.nii.gz")
    table = predict(run_folder, tmp_path / folder, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").glob("*.nii.gz")) == [f"{name}.nii.gz" for name in names]
    assert table["subject"].tolist() == names
    assert (f"only channel {channels or 0} (_000{channels or 0}) is used" in capsys.readouterr().out) == (
        len(names) == 2
    )


@pytest.mark.slow
def test_the_channel_of_a_4d_image(trained, tmp_path):
    image = scan((33, 40, 2, 3), (1.5, 1.25, 10, 1))
    image.to_filename(tmp_path / "modalities.nii.gz")
    single = nib.Nifti1Image(np.asarray(image.dataobj)[..., 1], image.affine, image.header)
    for name in ("single_0001", "single"):
        single.to_filename(tmp_path / f"{name}.nii.gz")
    run_folder = with_card(trained, tmp_path / "run", channels=1)
    for name in ("modalities", "single_0001"):
        predict(run_folder, tmp_path / f"{name}.nii.gz", tmp_path / "out")
    labels = same_grid(tmp_path / "out/modalities.nii.gz", tmp_path / "single.nii.gz")
    np.testing.assert_array_equal(labels, same_grid(tmp_path / "out/single_0001.nii.gz", tmp_path / "single.nii.gz"))
    with pytest.raises(SomeFilesFailed, match=r"single\.nii\.gz has one channel, and channel 1 is missing"):
        predict(run_folder, tmp_path / "single.nii.gz", tmp_path / "out")
    with pytest.raises(SomeFilesFailed, match="has the channels 0 to 2, and channel 7 is missing"):
        predict(with_card(trained, tmp_path / "run7", channels=7), tmp_path / "modalities.nii.gz", tmp_path / "out")


def test_cases_without_an_image_are_failures(trained, tmp_path):
    (tmp_path / "imagesTs").mkdir()
    for name in ("a_0000", "a_0001", "b_0000"):
        scan((40, 36, 2), (1.5, 1.5, 10)).to_filename(tmp_path / f"imagesTs/{name}.nii.gz")
    run_folder = with_card(trained, tmp_path / "run", channels=1, numbered_channels=True)
    with pytest.raises(
        SomeFilesFailed, match=r"1 of 2 failed, the other 1 are done:\n.*b_0000\.nii\.gz .* no channel 1"
    ):
        predict(run_folder, tmp_path / "imagesTs", tmp_path / "out")


def rows(*values: tuple[str, str, str, int, float]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=["file", "subject", "phase", "frame", "volume_ml_LV"])


def test_ejection_fraction_by_hand():
    table = rows(
        ("p1_frame01.nii.gz", "p1", "ED", 1, 120.0),
        ("p1_frame09.nii.gz", "p1", "ES", 9, 48.0),
        ("p2_frame01.nii.gz", "p2", "ED", 1, 100.0),  # no ES
        ("cine.nii.gz", "cine", "", 1, 80.0),
        ("cine.nii.gz", "cine", "", 2, 100.0),
        ("cine.nii.gz", "cine", "", 3, 60.0),
        ("p3_4d.nii.gz", "p3", "", 1, 70.0),
        ("p3_4d.nii.gz", "p3", "ED", 2, 50.0),  # the named frames win over the largest and the smallest
        ("p3_4d.nii.gz", "p3", "ES", 3, 20.0),
        ("empty.nii.gz", "empty", "", 1, 0.0),
        ("empty.nii.gz", "empty", "", 2, 0.0),
    )
    fractions = ejection_fractions(table, "LV").set_index("source")
    assert fractions.T.to_dict("list") == {
        "cine": [100.0, 60.0, pytest.approx(40)],
        "p1": [120.0, 48.0, pytest.approx(60)],
        "p3_4d": [50.0, 20.0, pytest.approx(60)],
    }


def test_no_ejection_fraction_of_two_unnamed_images():
    table = rows(("a.nii.gz", "a", "", 1, 100.0), ("b.nii.gz", "b", "", 1, 50.0))
    assert ejection_fractions(table, "LV").empty


@pytest.mark.slow
def test_genuine_headers(trained, real_acdc, tmp_path):
    """One genuine 3D and one 4D file, cut to two slices under their own headers."""
    frame = min(real_acdc.glob("patient*/*_frame*[0-9].nii.gz"))
    for file in (frame, min(real_acdc.glob("patient*/*_4d.nii.gz"), default=frame)):
        image = nib.load(file)
        values = np.asarray(image.dataobj)[:, :, :2, ...]
        values = values[..., :2] if values.ndim == 4 else values
        small = nib.Nifti1Image(values, image.affine, image.header)
        small.to_filename(tmp_path / file.name)
        assert small.header.get_zooms()[:3] == image.header.get_zooms()[:3]
        predict(trained, tmp_path / file.name, tmp_path / "out")
        same_grid(tmp_path / "out" / file.name, tmp_path / file.name)
