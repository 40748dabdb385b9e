"""Damaged, false and malicious image files end in one sentence that names the file, before memory is taken."""

import contextlib
import gzip
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import data.readers.decoding as decoding
from benchmarks.broken_files import ARRAYS, content_of, encoded, nifti
from core.errors import UserError
from data.readers.images import read_shape, read_volume
from data.readers.mrnet import read_array

SENTENCES = {
    "sform of zeros": "affine matrix .* that maps no volume: repair",
    "sform of NaN": "affine matrix",
    "qform of NaN": "affine matrix",
    "unknown unit": r"unknown unit of length \(xyzt_units 7\): repair",
    "spacing of 5 m": "has a spacing of 5000 x 1.5 x 8 mm: repair",
    "spacing of 1e30 mm": r"has a spacing of 1 x 1e\+30 x 8 mm",
    "spacing of NaN": "has a spacing of nan x 1.5 x 8 mm",
    "spacing of infinity": "has a spacing of inf x 1.5 x 8 mm",
    "spacing of 1e-12 mm": "has a spacing of 1e-12",
    "huge dimensions": "describes .* bytes, more than a file of 472 bytes can hold",
    "huge dimensions, compressed": "describes .* bytes, more than a file of",
    "huge dimensions, NIfTI-2": "describes .* bytes, more than a file of",
    "many frames": "would take .* GB of memory from a file of .* MB|a line of voxels is no image",
    "many slices": " slices, 200,000 are possible: divide it",
    "cut NIfTI-2": "describes 6,",
    "offset of 1e30": "puts the voxels at byte 1e",
    "offset of NaN": "puts the voxels at byte nan",
    "offset, NIfTI-2": "puts the voxels at byte 4.6",
    "negative size": "cannot be read",
    "no axis": "cannot be read",
    "nine axes": "cannot be read",
    "unknown type": "cannot be read",
    "vectors": r"shape \(5, 4, 3, 1, 3\), not .*save a file",
    "complex numbers": "numbers of type complex64, .*convert it",
    "colours": "holds colours.*grey values",
    "compressed, named nii": "it is compressed, name it .nii.gz",
    "empty": "no NIfTI header",
    "EPS named PNG": "cannot identify image file",
    "GIF named PNG": "cannot identify image file",
    "PNG of 14,000 pixels a side": "slices of 196,000,000 pixels, 100,000,000 are possible: cut it",
    "PNG of 2^31 pixels a side": "cut it into tiles",
    "animation": "is an animation of 10737418.. images: save them as pages of a TIFF",
    "text that unpacks": "cannot be read",
    "TIFF of 60,000 pixels a side": "cut it into tiles",
    "pages of other sizes": "has pages of 4 x 4 and 6 x 4 pixels",
    "cut TIFF": "cannot be read",
}


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    """Memory limits that tiny arrays exceed."""
    monkeypatch.setattr(decoding, "BOMB_GB", 1e-4)


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("read", [read_shape, read_volume])
def test_a_file_that_cannot_be_used(tmp_path, name: str, read: Callable[[Path], object]):
    file, content = content_of(name)
    path = tmp_path / file
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=SENTENCES[name]) as refusal:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(refusal.value)
    assert ("damaged" in str(refusal.value)) == ("cannot be read" in str(refusal.value))
    assert peak < 100e6


@pytest.mark.parametrize("rest", [b"", b"padding", bytes(17 * 2**20)])
def test_what_follows_the_voxels_is_bounded(tmp_path, rest):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti() + rest, 1))
    if len(rest) < 1000:
        assert read_volume(path).values.shape == (5, 4, 3)
    else:
        with pytest.raises(UserError, match="it goes on after the 472 bytes that its header describes"):
            read_volume(path)


def test_the_limit_is_a_setting(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti(np.zeros((40, 40, 9)))))
    monkeypatch.setenv("FEWSLICE_MAX_VOLUME_GB", "1")
    assert read_volume(path).values.shape == (40, 40, 9)
    monkeypatch.setenv("FEWSLICE_MAX_VOLUME_GB", "much")
    with pytest.raises(UserError, match="FEWSLICE_MAX_VOLUME_GB=much is no number"):
        read_volume(path)


@pytest.mark.parametrize("slope", [(1, 0), (0.5, -3), (np.float32(1 / 3), 1000)])
@pytest.mark.parametrize("dtype", ["uint8", "<i2", ">i2", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_numbers_are_those_of_nibabel(tmp_path, slope, dtype, suffix):
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (5, 4, 3, 2)).astype(dtype), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a header with an extension" * 40))
    image.header.set_slope_inter(*slope)
    image.to_filename(tmp_path / f"a{suffix}")
    expected = nib.load(tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    scaled = np.asarray(expected.dataobj, np.float32) if slope != (1, 0) else np.asarray(expected.dataobj)
    np.testing.assert_array_equal(volume.values, scaled)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.header == expected.header
    assert volume.values.dtype == (scaled.dtype.newbyteorder("=") if slope == (1, 0) else np.float32)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array(tmp_path, name):
    (tmp_path / "a.npy").write_bytes(ARRAYS[name])
    with pytest.raises(
        UserError, match=r"a\.npy (cannot be read|holds Python objects|is an \.npz|holds numbers)"
    ) as refusal:
        read_array(tmp_path / "a.npy")
    assert "allow_pickle" not in str(refusal.value)


def damaged(content: bytes, count: int) -> Iterator[bytes]:
    """The content with a few random bytes changed, cut out or repeated, in many ways."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        changed = bytearray(content)
        for position in rng.integers(0, min(len(changed), 400), rng.integers(1, 6)):
            changed[position] = rng.choice([0, 1, 127, 255, int(rng.integers(256))])
        first, last = sorted(rng.integers(0, len(changed), 2))
        yield bytes((changed, changed[:last], changed[:first] + changed[last:], changed + changed)[rng.integers(4)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nii", "nii.gz", "PNG", "TIFF", "JPEG", "npy"])
def test_random_damage_is_a_user_error_or_an_image(tmp_path, kind):
    content = nifti() if kind.startswith("nii") else encoded(kind) if kind != "npy" else b""
    if kind == "npy":
        np.save(tmp_path / "whole.npy", np.zeros((3, 8, 8), np.uint8))
        content = (tmp_path / "whole.npy").read_bytes()
    path = tmp_path / f"a.{'png' if kind in ('JPEG', 'PNG') else 'tif' if kind == 'TIFF' else kind}"
    read = 0
    for changed in damaged(content, 150):
        path.write_bytes(gzip.compress(changed, 1) if kind == "nii.gz" else changed)
        with contextlib.suppress(UserError):
            read_array(path) if kind == "npy" else read_volume(path)
            read += 1
    assert read < 150


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "png"])
@pytest.mark.parametrize("read", [read_shape, read_volume])
def test_a_name_that_is_not_utf8(tmp_path, suffix, read):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller." + suffix.encode()))
    path.write_bytes(gzip.compress(nifti()) if suffix == "nii.gz" else nifti())
    with pytest.raises(UserError, match=r"M\\udcfcller\..* is not UTF-8: rename the file or folder"):
        read(path)
