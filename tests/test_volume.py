import gzip
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.readers.images import read_shape, read_volume, stem, write_label_map

RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray, zooms: tuple[float, ...], affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_zooms(zooms)
    if affine is None:  # as in genuine ACDC files: unit affine, true spacing in pixdim only
        image.header.set_sform(np.eye(4), code=2)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_values_keep_their_units_and_type(tmp_path, dtype, suffix):
    values = RNG.integers(0, 200, (5, 4, 3)).astype(dtype) * (1 if dtype == "uint8" else 100)
    volume = read_volume(save(tmp_path / f"scan{suffix}", values, (1.5, 1.25, 10)))
    assert volume.values.dtype == dtype
    np.testing.assert_array_equal(volume.values, values)
    np.testing.assert_allclose(volume.spacing, (1.5, 1.25, 10))
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    assert volume.stack.shape == (1, 3, 4, 5)
    np.testing.assert_array_equal(volume.stack[0, 2], values[:, :, 2].T)
    assert volume.stack[0, 2].flags.c_contiguous


def test_stored_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "scan.nii")  # integers are written as they are: value = 0.5 * stored - 3
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.values.dtype == np.float32
    np.testing.assert_array_equal(volume.values, 0.5 * np.arange(24).reshape(2, 3, 4) - 3)


def test_big_endian_becomes_native(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    values = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    nib.Nifti1Image(values, np.eye(4), header).to_filename(tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.values.dtype.isnative
    np.testing.assert_array_equal(volume.values, values)


def test_4d_stack_and_header_only_reading(tmp_path):
    values = RNG.integers(0, 99, (5, 4, 3, 2)).astype(np.int16)
    path = save(tmp_path / "cine.nii.gz", values, (1.5, 1.5, 10, 0.03))
    shape = read_shape(path)
    assert (shape.shape, shape.frames, shape.slices, shape.dtype) == ((5, 4, 3, 2), 2, 3, np.int16)
    assert shape.slice_spacing == (1.5, 1.5, 10)
    np.testing.assert_array_equal(read_volume(path).stack[1, 2], values[:, :, 2, 1].T)


@pytest.mark.parametrize(
    ("zooms", "axis", "rows_columns"),
    [((1, 1, 1), 2, (4, 5)), ((3, 1, 1), 0, (3, 4)), ((1, 3, 1), 1, (3, 5)), ((1.005, 1, 1), 2, (4, 5))],
)
def test_slices_run_across_the_coarsest_axis(tmp_path, zooms, axis, rows_columns):
    values = RNG.integers(0, 99, (5, 4, 3)).astype(np.int16)
    path = save(tmp_path / "scan.nii.gz", values, zooms)
    volume = read_volume(path)
    assert volume.shape.slice_axis == read_shape(path).slice_axis == axis
    assert volume.stack.shape == (1, values.shape[axis], *rows_columns)
    np.testing.assert_array_equal(volume.stack[0, 1], np.take(values, 1, axis).T)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 2), (5, 4), (5, 4, 3, 1)])
@pytest.mark.parametrize("coarse", [0, 2])
def test_label_maps_are_written_on_the_image_grid(tmp_path, shape, coarse):
    zooms = [1.5, 1.25, 2.0, 0.5][: len(shape)]
    if coarse < len(shape):
        zooms[coarse] = 8.0
    affine = np.diag([-1.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (4, 5, 6)
    image = nib.Nifti1Image(RNG.normal(size=shape).astype(np.float32), affine)
    image.header.set_zooms(zooms)
    image.header.set_sform(affine, code=2)
    image.header["cal_max"] = 300
    image.to_filename(tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    labels = RNG.integers(0, 4, volume.stack.shape)
    write_label_map(tmp_path / "new" / "labels.nii.gz", labels, volume)

    written = nib.load(tmp_path / "new" / "labels.nii.gz")
    assert written.shape == shape
    assert written.get_data_dtype() == np.uint8
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(written.affine, image.affine)
    np.testing.assert_allclose(written.header.get_zooms(), zooms)
    np.testing.assert_array_equal(read_volume(tmp_path / "new" / "labels.nii.gz").stack, labels)


def test_label_map_of_another_shape_is_refused(tmp_path):
    volume = read_volume(save(tmp_path / "scan.nii", np.zeros((5, 4, 3), np.int16), (1, 1, 5)))
    with pytest.raises(ValueError, match=r"\(1, 3, 5, 4\) does not fit .* \(1, 3, 4, 5\)"):
        write_label_map(tmp_path / "labels.nii", np.zeros((1, 3, 5, 4), np.uint8), volume)


def test_truncated_file_is_named(tmp_path):
    path = save(tmp_path / "scan.nii.gz", RNG.integers(0, 99, (40, 40, 9)).astype(np.int16), (1, 1, 5))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"scan\.nii\.gz cannot be read"):
        read_volume(path)
    plain = save(tmp_path / "scan.nii", RNG.integers(0, 99, (40, 40, 9)).astype(np.int16), (1, 1, 5))
    plain.write_bytes(plain.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"scan\.nii cannot be read"):
        read_volume(plain)


def test_wrong_checksum_is_noticed(tmp_path):
    path = save(tmp_path / "scan.nii.gz", RNG.integers(0, 99, (40, 40, 9)).astype(np.int16), (1, 1, 5))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="CRC"):
        read_volume(path)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"no image" * 100))
    for name in ("text.nii", "text.png", "text.nii.gz"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_volume(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_shape(tmp_path / name)
    with pytest.raises(UserError, match=r"absent\.nii does not exist"):
        read_volume(tmp_path / "absent.nii")
    nib.Nifti1Image(np.zeros((3, 3, 3), np.complex64), np.eye(4)).to_filename(tmp_path / "complex.nii")
    with pytest.raises(UserError, match="complex64"):
        read_volume(tmp_path / "complex.nii")


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "uint8"), (".png", "uint16"), (".tif", "float32")])
def test_planar_images(tmp_path, suffix, dtype):
    values = (RNG.integers(0, 200, (3, 5)) * (1 if dtype == "uint8" else 257)).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"slice{suffix}")
    volume = read_volume(tmp_path / f"slice{suffix}")
    assert volume.stack.dtype == dtype
    np.testing.assert_array_equal(volume.stack, values[None, None])
    shape = read_shape(tmp_path / f"slice{suffix}")
    assert (shape.shape, shape.spacing, shape.dtype) == ((5, 3, 1), (1, 1, 1), dtype)
    labels = RNG.integers(0, 4, (1, 1, 3, 5))
    for name in ("labels.png", "labels.nii.gz"):
        write_label_map(tmp_path / name, labels, volume)
        np.testing.assert_array_equal(read_volume(tmp_path / name).stack, labels)


def test_tiff_pages_are_slices_and_colour_becomes_grey(tmp_path):
    pages = [Image.fromarray(np.full((3, 5), page, np.uint8)) for page in range(4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert read_volume(tmp_path / "stack.tif").stack[0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert read_shape(tmp_path / "stack.tif").slices == 4
    Image.fromarray(np.full((3, 5, 3), 7, np.uint8)).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "colour.png").stack, np.full((1, 1, 3, 5), 7))


def test_stem():
    assert [stem(Path(name)) for name in ("a.b.nii.gz", "a.nii", "a.PNG", "a.txt")] == ["a.b", "a", "a", "a"]


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("rest", [b"", b"padding"])
def test_a_gzip_file_of_several_members_or_with_more_than_the_header_promises(tmp_path, members, rest):
    values = np.random.default_rng(0).integers(-300, 300, (7, 8, 5, 3)).astype(">i2")
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes() + rest
    cuts = np.linspace(0, len(content), members + 1).astype(int)
    packed = b"".join(gzip.compress(content[a:b]) for a, b in pairwise(cuts))
    (tmp_path / "a.nii.gz").write_bytes(packed)
    read = read_volume(tmp_path / "a.nii.gz").values
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("offset", "field"), [(108, np.float32(1e30)), (40, np.int16([3, 32767, 32767, 32767]))])
def test_a_header_that_asks_for_more_than_there_is(tmp_path, suffix, offset, field):
    """Damaged in its offset to the numbers or in its shape."""
    path = save(tmp_path / "scan.nii", RNG.integers(0, 99, (4, 4, 3)).astype(np.int16), (1, 1, 5))
    content = bytearray(path.read_bytes())
    content[offset : offset + field.nbytes] = field.tobytes()
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(UserError, match="damaged"):
        read_volume(damaged)
