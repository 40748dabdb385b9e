import contextlib
import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import data.store
from core.errors import UserError
from data.preprocessing import mean_and_std
from data.readers.label_maps import read_labels
from data.slices import check_labels, load_dataset
from data.sources import FolderSource, with_demo_data
from data.store import SliceStore, open_store

DTYPES = ("uint8", "int16", "uint16", "float32")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slices"


def save(path: Path, values: np.ndarray, zooms: tuple[float, ...] = (1.5, 1.25, 8)) -> None:
    image = nib.Nifti1Image(values, np.eye(4))
    image.header.set_zooms((*zooms, 1)[: values.ndim])
    image.to_filename(path)


def make(root: Path) -> pd.DataFrame:
    """One labelled 3D file of each stored dtype (frame 7, as ACDC numbers them) and an unlabelled 4D one."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    rows = []
    for n, dtype in enumerate(DTYPES):
        save(root / f"{dtype}.nii.gz", rng.integers(0, 250, (5 + n, 4, 3)).astype(dtype))
        save(root / f"{dtype}_gt.nii.gz", rng.integers(0, 4, (5 + n, 4, 3)).astype(np.uint8))
        rows += [(dtype, 7, z, f"{dtype}.nii.gz", f"{dtype}_gt.nii.gz", True) for z in range(3)]
    save(root / "cine.nii", rng.integers(-9, 250, (5, 4, 2, 3)).astype(np.int16))
    rows += [("cine", t, z, "cine.nii", "", False) for t in (1, 3) for z in range(2)]
    table = pd.DataFrame(rows, columns=["subject", "frame", "slice", "file", "label_file", "labelled"])
    return table.assign(group="", phase="", split="train").sample(frac=1, random_state=0)


def test_slices_come_back_bit_for_bit(tmp_path):
    table = make(tmp_path / "root")
    store = open_store(table, tmp_path / "root")
    assert len(store) == len(table) == 16
    for i, row in enumerate(store.table.itertuples()):
        values = np.asarray(nib.load(tmp_path / "root" / row.file).dataobj)
        plane = values[:, :, row.slice, row.frame - 1] if values.ndim == 4 else values[:, :, row.slice]
        image = store.image(i)
        assert image.dtype == values.dtype == row.dtype
        assert image.shape == (row.rows, row.columns)
        np.testing.assert_array_equal(image, plane.T)
        assert (row.row_mm, row.column_mm, row.slice_mm) == (1.25, 1.5, 8)
        np.testing.assert_allclose([row.mean, row.std], [plane.mean(dtype=float), plane.std(dtype=float)], 1e-12)
        if row.labelled:
            truth = np.asarray(nib.load(tmp_path / "root" / row.label_file).dataobj)[:, :, row.slice]
            np.testing.assert_array_equal(store.label(i), truth.T)
            assert row.label_values == " ".join(map(str, np.unique(truth)))
        else:
            assert (row.label_offset, row.label_values) == (-1, "")
            with pytest.raises(ValueError, match="has no label map"):
                store.label(i)


def test_views_are_read_only_and_survive_pickling(tmp_path):
    store = open_store(make(tmp_path / "root"), tmp_path / "root")
    with pytest.raises(ValueError, match="read-only"):
        store.image(0)[0, 0] = 1
    payload = pickle.dumps(store)
    again = pickle.loads(payload)
    assert isinstance(again, SliceStore)
    np.testing.assert_array_equal(again.image(3), store.image(3))


def test_files_are_decoded_once(tmp_path, monkeypatch):
    table = make(tmp_path / "root")
    first = open_store(table, tmp_path / "root")
    monkeypatch.setattr(data.store, "read_volume", None)  # reading any file again would fail
    again = open_store(table.assign(split="val", subject="other"), tmp_path / "root")
    assert first.file == again.file
    pd.testing.assert_frame_equal(
        first.table.drop(columns=["split", "subject"]), again.table.drop(columns=["split", "subject"])
    )
    (tmp_path / "root").rename(tmp_path / "moved")
    assert open_store(table, tmp_path / "moved").file == first.file


def test_a_changed_file_is_packed_anew(tmp_path):
    table = make(tmp_path / "root")
    first = open_store(table, tmp_path / "root")
    values = np.asarray(nib.load(tmp_path / "root/int16.nii.gz").dataobj).copy()
    values[0, 0, 0] += 1
    save(tmp_path / "root/int16.nii.gz", values)
    second = open_store(table, tmp_path / "root")
    assert first.file != second.file
    i = int(np.flatnonzero((second.table["file"] == "int16.nii.gz") & (second.table["slice"] == 0))[0])
    assert second.image(i)[0, 0] == first.image(i)[0, 0] + 1


def test_a_store_cut_short_is_packed_anew(tmp_path):
    table = make(tmp_path / "root")
    store = open_store(table, tmp_path / "root")
    expected = store.image(5).copy()
    os.truncate(store.file, 100)
    np.testing.assert_array_equal(open_store(table, tmp_path / "root").image(5), expected)


def test_leftovers_of_dead_builders_go(tmp_path, cache):
    cache.mkdir(parents=True)
    (cache / "0123.tmp-dead").mkdir()
    (cache / "0123.tmp-dead" / "slices.bin").write_bytes(b"half")
    store = open_store(make(tmp_path / "root"), tmp_path / "root")
    assert [path for path in cache.iterdir() if path.is_dir()] == [store.file.parent]


def _open_in_child(table: pd.DataFrame, root: Path) -> tuple[str, int]:
    store = open_store(table, root)
    return store.file.as_posix(), int(sum(store.image(i).sum() for i in range(len(store))))


def test_processes_may_pack_at_once(tmp_path, cache):
    table = make(tmp_path / "root")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.starmap(_open_in_child, [(table, tmp_path / "root")] * 3)
    assert len(set(results)) == 1
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_without_locks_the_first_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(data.store, "file_lock", lambda path, wait: contextlib.nullcontext(False))
    table = make(tmp_path / "root")
    pack = data.store._pack

    def overtaken(*args):
        pack(*args)  # another process finishes first
        return pack(*args)

    monkeypatch.setattr(data.store, "_pack", overtaken)
    store = open_store(table, tmp_path / "root")
    assert len(list(store.file.parent.parent.glob("*.tmp-*"))) == 0
    assert store.image(0).size


def test_bad_files_are_named_and_counted(tmp_path, cache):
    table = make(tmp_path / "root")
    values = np.asarray(nib.load(tmp_path / "root/float32.nii.gz").dataobj).copy()
    values[1, 2, 2] = np.nan
    save(tmp_path / "root/float32.nii.gz", values)
    with pytest.raises(UserError, match=r"float32\.nii\.gz holds NaN or infinite.*data\.inspect"):
        open_store(table, tmp_path / "root")
    save(tmp_path / "root/int16_gt.nii.gz", np.zeros((6, 4, 2), np.uint8))
    with pytest.raises(UserError, match=r"\(and 1 more\).*data\.inspect"):
        open_store(table, tmp_path / "root")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_label_shape_and_values(tmp_path):
    table = make(tmp_path / "root")
    save(tmp_path / "root/int16_gt.nii.gz", np.zeros((6, 4, 2), np.uint8))
    with pytest.raises(UserError, match=r"int16_gt.* voxel grid of .*int16\.nii.* \(shape 6 x 4 x 2 for 6 x 4 x 3\)"):
        open_store(table, tmp_path / "root")
    for wrong, value in ((np.float32(1.5), "1.5"), (np.int16(-1), "-1"), (np.int16(300), "300")):
        save(tmp_path / "root/int16_gt.nii.gz", np.full((6, 4, 3), wrong))
        with pytest.raises(UserError, match=rf"int16_gt.*holds label values \[{value}\]"):
            open_store(table, tmp_path / "root")
    save(tmp_path / "root/int16_gt.nii.gz", np.full((6, 4, 3), 2.0, np.float64))
    assert read_labels(tmp_path / "root/int16_gt.nii.gz").indices.dtype == np.uint8
    store = open_store(table, tmp_path / "root")
    assert check_labels(store.table, ("background", "RV", "MYO", "LV")) == ("background", "RV", "MYO", "LV")
    with pytest.raises(UserError, match=r"holds label values among \[3\]: the classes are 0\.\.2"):
        check_labels(store.table, ("background", "a", "b"))


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.png"])
def test_masks_of_0_and_255_are_classes_0_and_1(tmp_path, name):
    """In every format; beside other values 255 is refused."""
    for values, expected in (([0, 255], [0, 1]), ([255], [0, 1]), ([0, 1], [0, 1]), ([0], [0]), ([0, 2, 255], None)):
        mask = np.zeros((6, 4), np.uint8)
        mask[: len(values), 0] = values
        if name.endswith("png"):
            Image.fromarray(mask).save(tmp_path / name)
        else:
            save(tmp_path / name, mask[..., None])
        if expected is None:
            with pytest.raises(UserError, match=r"holds label values \[255\].*--ignore-label 255"):
                read_labels(tmp_path / name)
        else:
            assert np.unique(read_labels(tmp_path / name).indices).tolist() == expected


def test_classes_are_numbered_as_found():
    table = pd.DataFrame({"labelled": True, "label_file": ["a", "b"], "label_values": ["0 2", "1"]})
    assert check_labels(table, ()) == ("background", "1", "2")
    with pytest.raises(UserError, match=r"\[0, 2\], which leave a gap"):
        check_labels(table.iloc[:1], ())
    assert check_labels(table.assign(labelled=False), ()) == ("background",)


def test_constant_slices_are_allowed_and_wide_types_narrowed(tmp_path):
    slices = np.ones((4, 4, 2)) * [1, 2]  # each slice constant, the volume not
    save(tmp_path / "int32.nii", (20_000 * slices).astype(np.int32))
    save(tmp_path / "float64.nii", 0.25 * slices)
    files = ["int32.nii", "int32.nii", "float64.nii", "float64.nii"]
    table = pd.DataFrame({"file": files, "label_file": "", "frame": 1, "slice": [0, 1, 0, 1], "labelled": False})
    store = open_store(table, tmp_path)
    assert store.table["dtype"].tolist() == ["uint16", "uint16", "float32", "float32"]
    assert store.table["std"].tolist() == [0, 0, 0, 0]
    assert store.table["mean"].tolist() == [20_000, 40_000, 0.25, 0.5]


def test_a_constant_volume_is_refused(tmp_path):
    save(tmp_path / "flat.nii", np.full((4, 4, 2), 7.0))
    table = pd.DataFrame({"file": ["flat.nii"], "label_file": "", "frame": 1, "slice": 0, "labelled": False})
    with pytest.raises(UserError, match=r"flat\.nii has the value 7.0 everywhere: remove it"):
        open_store(table, tmp_path)


def test_full_disk_names_the_cache_and_leaves_nothing(tmp_path, cache, monkeypatch):
    table = make(tmp_path / "root")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data.store, "_append", full)
    with pytest.raises(OSError, match=r"No space left on device; the slice cache .*slices .*FEWSLICE_CACHE"):
        open_store(table, tmp_path / "root")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_load_dataset_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UserError, match="needs --data-root"):
        with_demo_data(FolderSource())
    with pytest.raises(UserError, match="choose acdc or folder"):
        load_dataset("mrnet", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--subject-pattern"):
        load_dataset("acdc", tmp_path, subject_pattern="a")


@pytest.mark.slow
def test_real_acdc(real_acdc):
    dataset = load_dataset("acdc", real_acdc)
    assert not dataset.synthetic
    assert len(dataset.positions("train", labelled=True)) == 1498
    assert len(dataset.positions("val", labelled=True)) == 206
    assert len(dataset.splits) == 100
    i = int(dataset.positions("val", labelled=True)[3])
    row = dataset.table.iloc[i]
    image = nib.load(real_acdc / row["file"])
    np.testing.assert_array_equal(dataset.store.image(i), np.asarray(image.dataobj)[:, :, row["slice"]].T)
    np.testing.assert_allclose((row["column_mm"], row["row_mm"], row["slice_mm"]), image.header.get_zooms())
    assert dataset.table["mean"].max() > 255 or dataset.table["dtype"].isin(["int16", "float32"]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_mean_and_standard_deviation(dtype):
    limits = np.iinfo(dtype) if dtype != "float32" else np.iinfo("int16")
    for shape in ((3, 5), (217, 253), (1448, 1449)):  # 16-bit sums of squares beyond what is taken as exact too
        image = np.random.default_rng(0).integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)
        np.testing.assert_allclose(mean_and_std(image), (image.mean(dtype=float), image.std(dtype=float)), rtol=1e-12)
        constant = mean_and_std(np.full(shape, 200, dtype))
        np.testing.assert_allclose(constant, (200, 0), atol=1e-5 if dtype == "float32" else 0)
