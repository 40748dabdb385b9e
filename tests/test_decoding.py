"""Damaged, false and malicious image files end in one sentence that names the file, before memory is taken."""

import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import data.readers.decoding as decoding
from core.errors import UserError
from data.readers.images import read_shape, read_volume
from data.readers.mrnet import read_array

SHAPE, ZOOMS, OFFSET, UNITS, SFORM = 40, 80, 108, 123, 252


def nifti(values: np.ndarray | None = None, *patches: tuple[int, bytes]) -> bytes:
    """The bytes of a NIfTI file, some of them replaced."""
    values = np.arange(60, dtype=np.int16).reshape(5, 4, 3) if values is None else values
    image = nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1]))
    image.header.set_zooms((1.5, 1.5, 8, 1, 1)[: values.ndim])
    content = bytearray(image.to_bytes())
    for position, new in patches:
        content[position : position + len(new)] = new
    return bytes(content)


def shorts(*numbers: int) -> bytes:
    return np.array(numbers, "<i2").tobytes()


def floats(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def png(size: tuple[int, int], *extra: tuple[bytes, bytes], mode: str = "1") -> bytes:
    """A PNG file without pixels, with further chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    depth, colour = {"1": (1, 0), "L": (8, 0), "RGB": (8, 2)}[mode]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = b"".join(chunk(*one) for one in extra) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def tiff(pages: int, size: int = 4) -> bytes:
    stream = io.BytesIO()
    images = [Image.fromarray(np.full((size, size), page, np.uint8)) for page in range(pages)]
    images[0].save(stream, "TIFF", save_all=True, append_images=images[1:])
    return stream.getvalue()


ZEROS = bytes(200_000)
HUGE = (SHAPE, shorts(3, 32767, 32767, 32767))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"

FILES: dict[str, tuple[str, bytes, str]] = {
    "sform of zeros": (
        "a.nii",
        nifti(None, (SFORM, shorts(0, 1)), (280, bytes(48))),
        "affine matrix .* that maps no volume: repair",
    ),
    "sform of NaN": ("a.nii", nifti(None, (SFORM, shorts(0, 1)), (280, floats(*[np.nan] * 12))), "affine matrix"),
    "qform of NaN": ("a.nii", nifti(None, (SFORM, shorts(1, 0)), (256, floats(np.nan, 2, 9))), "affine matrix"),
    "unknown unit": ("a.nii.gz", nifti(None, (UNITS, b"\7")), r"unknown unit of length \(xyzt_units 7\): repair"),
    "spacing of 5 m": ("a.nii", nifti(None, (ZOOMS, floats(5000))), "has a spacing of 5000 x 1.5 x 8 mm: repair"),
    "spacing of 1e30": ("a.nii.gz", nifti(None, (ZOOMS, floats(1, 1e30))), r"has a spacing of 1 x 1e\+30 x 8 mm"),
    "spacing of NaN": ("a.nii", nifti(None, (ZOOMS, floats(np.nan))), "has a spacing of nan x 1.5 x 8 mm"),
    "tiny spacing": ("a.nii", nifti(None, (ZOOMS, floats(1e-12))), "has a spacing of 1e-12"),
    "dimensions": ("a.nii", nifti(None, HUGE), "describes .* bytes, more than a file of 472 bytes can hold"),
    "dimensions, gz": ("a.nii.gz", nifti(None, HUGE), "describes .* bytes, more than a file of"),
    "more than limits": ("a.nii.gz", nifti(np.zeros((40, 40, 9))), "would take .* GB of memory from a file of .* MB"),
    "voxels far away": ("a.nii", nifti(None, (OFFSET, floats(1e30))), "puts the voxels at byte 1e"),
    "NaN offset": ("a.nii", nifti(None, (OFFSET, floats(np.nan))), "puts the voxels at byte nan"),
    "negative size": ("a.nii", nifti(None, (SHAPE, shorts(3, -5))), "cannot be read"),
    "no axis": ("a.nii", nifti(None, (SHAPE, shorts(0))), "cannot be read"),
    "nine axes": ("a.nii", nifti(None, (SHAPE, shorts(9))), "cannot be read"),
    "unknown type": ("a.nii", nifti(None, (70, shorts(9999))), "cannot be read"),
    "vectors": ("a.nii", nifti(np.zeros((5, 4, 3, 1, 3), np.int16)), r"shape \(5, 4, 3, 1, 3\), not .*save a file"),
    "complex": ("a.nii", nifti(np.zeros((5, 4, 3), np.complex64)), "numbers of type complex64, .*convert it"),
    "colours": ("a.nii", nifti(np.zeros((5, 4, 3), [(c, "u1") for c in "RGB"])), "holds colours.*grey values"),
    "gz named nii": ("a.nii", gzip.compress(nifti()), "it is compressed, name it .nii.gz"),
    "NIfTI-2 cut": ("a.nii", nib.Nifti2Image(np.zeros((9, 9, 9)), np.eye(4)).to_bytes()[:700], "describes 6,"),
    "endless gz": ("a.nii.gz", nifti() + bytes(17 * 2**20), "goes on after the 472 bytes"),
    "EPS": ("a.png", EPS, "cannot identify image file"),
    "large PNG": ("a.png", png((14_000, 14_000)), "slices of 196,000,000 pixels, 100,000,000 are possible: cut it"),
    "wide PNG": ("a.png", png((2**31 - 1, 2**31 - 1)), "cut it into tiles"),
    "APNG": (
        "a.png",
        png((9000, 9000), (b"acTL", struct.pack(">II", 2**30, 0)), mode="RGB"),
        "animation of 10737418",
    ),
    "text bomb": ("a.png", png((4, 4), (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))), "cannot be read"),
    "cut chunk": ("a.png", png((4, 4))[:40], "cannot be read"),
    "no pixels": ("a.png", b"\x89PNG\r\n\x1a\n", "cannot be read"),
    "TIFF of sizes": ("a.tif", b"", "has pages of 4 x 4 and 6 x 4 pixels"),
    "cut TIFF": ("a.tif", tiff(2)[:60], "cannot be read"),
}


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    """Memory limits that tiny arrays exceed."""
    monkeypatch.setattr(decoding, "BOMB_GB", 1e-4)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("read", [read_shape, read_volume])
def test_a_file_that_cannot_be_used(tmp_path, name: str, read: Callable[[Path], object]):
    file, content, sentence = FILES[name]
    path = tmp_path / file
    if name == "TIFF of sizes":
        Image.new("L", (4, 4)).save(path, save_all=True, append_images=[Image.new("L", (6, 4))])
    else:
        path.write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    if name in ("endless gz", "cut chunk") and read is read_shape:
        return  # the header is whole
    tracemalloc.start()
    with pytest.raises(UserError, match=sentence) as refusal:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(refusal.value)
    assert ("damaged" in str(refusal.value)) == ("cannot be read" in str(refusal.value))
    assert peak < 100e6


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


def npy(header: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()


ARRAYS = {
    "sizes": npy("{'descr': '<i2', 'fortran_order': False, 'shape': (32000, 32000, 32000), }"),
    "overflow": npy("{'descr': '<i2', 'fortran_order': False, 'shape': (" + "9" * 40 + ",), }"),
    "negative": npy("{'descr': '<i2', 'fortran_order': False, 'shape': (-3, 4, 5), }"),
    "long": npy("{" + " " * 30_000 + "}"),
    "brackets": npy("(" * 9000),
    "syntax": npy("{'descr': import os}"),
    "null": npy("\0" * 50),
    "text": b"hello",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array(tmp_path, name):
    (tmp_path / "a.npy").write_bytes(ARRAYS[name])
    with pytest.raises(UserError, match=r"a\.npy cannot be read") as refusal:
        read_array(tmp_path / "a.npy")
    assert "allow_pickle" not in str(refusal.value)
