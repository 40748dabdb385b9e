"""Damaged, false and malicious files, made from nothing: images, arrays and text. Most are a few hundred bytes."""

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise

import nibabel as nib
import numpy as np
from PIL import Image

# Positions of fields in a NIfTI-1 header.
DIMENSIONS, KIND, ZOOMS, OFFSET, SLOPE, UNITS, FORMS, QFORM, SFORM, MAGIC = (
    40,
    70,
    80,
    108,
    112,
    123,
    252,
    256,
    280,
    344,
)
HUGE = (DIMENSIONS, np.array([3, 32767, 32767, 32767], "<i2").tobytes())


def nifti(values: np.ndarray | None = None, *patches: tuple[int, bytes], kind: type = nib.Nifti1Image) -> bytes:
    """The bytes of a NIfTI file, some of them replaced; without `values` a ramp of 5 x 4 x 3 int16."""
    values = np.arange(60, dtype=np.int16).reshape(5, 4, 3) if values is None else values
    image = kind(values, np.diag([1.5, 1.5, 8, 1]))
    image.header.set_zooms((1.5, 1.5, 8, 1, 1)[: values.ndim])
    content = bytearray(image.to_bytes())
    for position, new in patches:
        content[position : position + len(new)] = new
    return bytes(content)


def shorts(*numbers: int) -> bytes:
    """Little-endian 16-bit integers."""
    return np.array(numbers, "<i2").tobytes()


def floats(*numbers: float) -> bytes:
    """Little-endian 32-bit floating-point numbers."""
    return np.array(numbers, "<f4").tobytes()


def png(
    size: tuple[int, int], *chunks: tuple[bytes, bytes], depth: int = 1, colour: int = 0, pixels: int = 100
) -> bytes:
    """A PNG file with further chunks (kind, data), cut short after some bytes of black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = b"".join(chunk(*one) for one in chunks) + chunk(b"IDAT", zlib.compress(bytes(pixels)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def encoded(kind: str, size: tuple[int, int] = (40, 36), mode: str = "L", **options: object) -> bytes:
    """Noise as an image file of some kind."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def pages(*sizes: tuple[int, int]) -> bytes:
    """A TIFF file with pages of these sizes."""
    images = [Image.new("L", size, number) for number, size in enumerate(sizes)]
    stream = io.BytesIO()
    images[0].save(stream, "TIFF", save_all=True, append_images=images[1:])
    return stream.getvalue()


def _tiff_of(width: int, height: int) -> bytes:
    """A TIFF file of 8-bit pixels whose header claims a size."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _bomb(header: bytes, megabytes: int) -> bytes:
    """A compressed file of a few MB that unpacks to a header and then zeros."""
    return gzip.compress(header) + gzip.compress(bytes(2**24)) * (megabytes // 16)


def _extension_of(size: int) -> tuple[int, bytes]:
    """A header extension, after byte 348, that claims a size."""
    return 348, b"\1\0\0\0" + struct.pack("<ii", size, 6)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
COLOURS = np.dtype([(channel, "u1") for channel in "RGB"])

IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "sform of zeros": ("a.nii", lambda: nifti(None, (FORMS, shorts(0, 1)), (SFORM, bytes(48)))),
    "sform of NaN": ("a.nii", lambda: nifti(None, (FORMS, shorts(0, 1)), (SFORM, floats(*[np.nan] * 12)))),
    "sform of infinity": ("a.nii.gz", lambda: nifti(None, (FORMS, shorts(0, 1)), (SFORM, floats(*[np.inf] * 12)))),
    "qform of NaN": ("a.nii", lambda: nifti(None, (FORMS, shorts(1, 0)), (QFORM, floats(np.nan, 2, 9)))),
    "qform of large quaternions": ("a.nii", lambda: nifti(None, (FORMS, shorts(1, 0)), (QFORM, floats(7, 7, 7)))),
    "unknown unit": ("a.nii.gz", lambda: nifti(None, (UNITS, b"\7"))),
    "spacing of 5 m": ("a.nii", lambda: nifti(None, (ZOOMS, floats(5000)))),
    "spacing of 1e30 mm": ("a.nii.gz", lambda: nifti(None, (ZOOMS, floats(1, 1e30)))),
    "spacing of NaN": ("a.nii", lambda: nifti(None, (ZOOMS, floats(np.nan)))),
    "spacing of infinity": ("a.nii", lambda: nifti(None, (ZOOMS, floats(np.inf)))),
    "spacing of 1e-12 mm": ("a.nii", lambda: nifti(None, (ZOOMS, floats(1e-12)))),
    "spacing of 1e-5 mm": ("a.nii", lambda: nifti(None, (ZOOMS, floats(1e-5, 1e-5)))),
    "huge dimensions": ("a.nii", lambda: nifti(None, HUGE)),
    "huge dimensions, compressed": ("a.nii.gz", lambda: nifti(None, HUGE)),
    "huge dimensions of 5 kB": ("a.nii.gz", lambda: nifti(None, HUGE) + bytes(5_000_000)),
    "many frames": ("a.nii.gz", lambda: nifti(None, (DIMENSIONS, shorts(4, 1, 1, 32767, 300))) + bytes(20_000_000)),
    "many slices": ("a.nii", lambda: nifti(None, (DIMENSIONS, shorts(4, 2, 2, 32767, 7))) + bytes(2_000_000)),
    "seven axes": ("a.nii", lambda: nifti(None, (DIMENSIONS, shorts(7, 5, 4, 3, 1, 1, 1, 1)))),
    "huge dimensions, NIfTI-2": (
        "a.nii",
        lambda: nifti(None, (16, np.array([3, *[2**40] * 3], "<i8").tobytes()), kind=nib.Nifti2Image),
    ),
    "offset, NIfTI-2": ("a.nii.gz", lambda: nifti(None, (168, struct.pack("<q", 2**62)), kind=nib.Nifti2Image)),
    "cut NIfTI-2": ("a.nii", lambda: nifti(np.zeros((9, 9, 9)), kind=nib.Nifti2Image)[:700]),
    "offset of 1e30": ("a.nii", lambda: nifti(None, (OFFSET, floats(1e30)))),
    "offset of NaN": ("a.nii", lambda: nifti(None, (OFFSET, floats(np.nan)))),
    "offset below 0": ("a.nii.gz", lambda: nifti(None, (OFFSET, floats(-9)))),
    "negative size": ("a.nii", lambda: nifti(None, (DIMENSIONS, shorts(3, -5)))),
    "no axis": ("a.nii", lambda: nifti(None, (DIMENSIONS, shorts(0)))),
    "nine axes": ("a.nii", lambda: nifti(None, (DIMENSIONS, shorts(9)))),
    "unknown type": ("a.nii", lambda: nifti(None, (KIND, shorts(9999)))),
    "bits": ("a.nii", lambda: nifti(None, (KIND, shorts(1, 1)))),
    "slope of NaN": ("a.nii", lambda: nifti(None, (SLOPE, floats(np.nan, 5)))),
    "slope of infinity": ("a.nii.gz", lambda: nifti(None, (SLOPE, floats(np.inf, 5)))),
    "slope of 1e38": ("a.nii.gz", lambda: nifti(None, (SLOPE, floats(1e38, 1e38)))),
    "no magic": ("a.nii", lambda: nifti(None, (MAGIC, b"abcd"))),
    "magic of a pair": ("a.nii", lambda: nifti(None, (MAGIC, b"ni1\0"))),
    "long extension": ("a.nii", lambda: nifti(None, _extension_of(2**31 - 8), (OFFSET, floats(400)))),
    "negative extension": ("a.nii.gz", lambda: nifti(None, _extension_of(-16), (OFFSET, floats(400)))),
    "vectors": ("a.nii", lambda: nifti(np.zeros((5, 4, 3, 1, 3), np.int16))),
    "complex numbers": ("a.nii", lambda: nifti(np.zeros((5, 4, 3), np.complex64))),
    "colours": ("a.nii", lambda: nifti(np.zeros((5, 4, 3), COLOURS))),
    "all NaN": ("a.nii", lambda: nifti(np.full((5, 4, 3), np.nan, np.float32))),
    "infinities": ("a.nii.gz", lambda: nifti(np.array([np.inf, -np.inf] * 30, np.float32).reshape(5, 4, 3))),
    "one value": ("a.nii", lambda: nifti(np.full((5, 4, 3), 7, np.int16))),
    "one pixel": ("a.nii", lambda: nifti(np.full((1, 1, 1), 7, np.int16))),
    "header alone": ("a.nii", lambda: nifti()[:348]),
    "cut voxels": ("a.nii", lambda: nifti()[:-20]),
    "empty": ("a.nii", lambda: b""),
    "empty, compressed": ("a.nii.gz", lambda: b""),
    "text": ("a.nii.gz", lambda: b"no image" * 100),
    "compressed, named nii": ("a.nii", lambda: gzip.compress(nifti())),
    "gzip bomb": ("a.nii.gz", lambda: _bomb(nifti(), 4096)),
    "gzip bomb of its size": ("a.nii.gz", lambda: _bomb(nifti(None, (DIMENSIONS, shorts(3, 2048, 2048, 512))), 4096)),
    "zeros within the limit": (
        "a.nii.gz",
        lambda: _bomb(nifti(None, (DIMENSIONS, shorts(3, 512, 512, 300)), (KIND, shorts(64, 64))), 608),
    ),
    "zeros within the limit, scaled": (
        "a.nii.gz",
        lambda: _bomb(nifti(None, (DIMENSIONS, shorts(3, 512, 512, 150)), (SLOPE, floats(2, 1))), 80),
    ),
    "EPS named PNG": ("a.png", lambda: EPS),
    "GIF named PNG": ("a.png", lambda: encoded("GIF")),
    "PDF named TIFF": ("a.tif", lambda: b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n"),
    "PNG of 14,000 pixels a side": ("a.png", lambda: png((14_000, 14_000))),
    "PNG of 13,000 pixels a side": ("a.png", lambda: png((13_000, 13_000), depth=8)),
    "PNG of 9,000 pixels a side": ("a.png", lambda: png((9000, 9000), depth=16)),
    "PNG of 9,000 pixels a side, whole": ("a.png", lambda: png((9000, 9000), pixels=9000 * 1126)),
    "PNG of 2^31 pixels a side": ("a.png", lambda: png((2**31 - 1, 2**31 - 1))),
    "PNG of no pixels": ("a.png", lambda: png((0, 0))),
    "animation": ("a.png", lambda: png((8000, 8000), (b"acTL", struct.pack(">II", 2**30, 0)), depth=8, colour=2)),
    "text that unpacks": ("a.png", lambda: png((4, 4), (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))))),
    "profile that unpacks": ("a.png", lambda: png((4, 4), (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7))))),
    "chunk of no letters": ("a.png", lambda: png((4, 4), (b"\1\2\3\4", b""))),
    "cut PNG": ("a.png", lambda: encoded("PNG")[:-200]),
    "PNG signature": ("a.png", lambda: b"\x89PNG\r\n\x1a\n"),
    "cut TIFF": ("a.tif", lambda: pages((4, 4), (4, 4))[:60]),
    "TIFF of 60,000 pixels a side": ("a.tif", lambda: _tiff_of(60_000, 60_000)),
    "TIFF of 9,000 pixels a side": ("a.tif", lambda: _tiff_of(9000, 9000)),
    "pages of other sizes": ("a.tif", lambda: pages((4, 4), (6, 4))),
    "JPEG named TIFF, cut": ("a.tif", lambda: encoded("JPEG")[:-300]),
}
"""name -> (file name, content, which `content_of` compresses if the name ends in .gz)."""


def content_of(name: str) -> tuple[str, bytes]:
    """File name and bytes of one of `IMAGES`."""
    file, make = IMAGES[name]
    content = make()
    plain = not file.endswith(".gz") or content[:2] == b"\x1f\x8b" or name in ("text", "empty, compressed")
    return file, content if plain else gzip.compress(content, 1)


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()


def _npy_of(shape: str, kind: str = "'<i2'") -> bytes:
    return _npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}")


ARRAYS = {
    "sizes": _npy_of("(32000, 32000, 32000)"),
    "overflow": _npy_of("(" + "9" * 40 + ",)"),
    "negative": _npy_of("(-3, 4, 5)"),
    "objects": _npy_of("(3, 4, 5)", "'|O'") + b"\x80\4N.",
    "fields": _npy_of("(3, 4, 5)", "[('a', '<i2')]") + bytes(120),
    "long header": _npy("{" + " " * 30_000 + "}"),
    "brackets": _npy("(" * 9000),
    "syntax": _npy("{'descr': import os}"),
    "NUL bytes": _npy("\0" * 50),
    "text": b"hello",
    "pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x06frames\x94K\x03s.",
    "zip": b"PK\3\4" + bytes(40),
    "empty": b"",
}
"""Contents of .npy files."""

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnop"))
CONFIGURATIONS = {
    "a billion laughs": LAUGHS,
    "brackets": "[" * 50_000,
    "no truth": "a: !!bool maybe",
    "no time": "a: !!timestamp x",
    "no integer": "a: !!int x",
    "code": "a: !!python/name:os.system ''",
    "list as a key": "? [a]\n: 1\n",
    "no date": "a: 9999-99-99",
    "long number": "seed: " + "9" * 5000,
    "long hexadecimal number": "seed: 0x" + "f" * 5000,
    "1e999": "lr: 1e999",
    "infinite steps": "steps: .inf",
    "NaN": "weight_decay: .nan",
    "seed beyond 64 bits": f"seed: {2**64}",
    "negative seed": "seed: -1",
    "steps without end": "steps: 1000000000000000000",
    "batch without end": "batch_size: 1000000000000",
    "image without end": "image_size: 1000000000",
    "data that are a list": "data: [1, 2]",
    "data of another kind": "data: {dataset: [acdc]}",
    "augmentation that is text": "augmentation: yes please",
    "number as a key": "1: 2\nnull: 3\n",
    "scalar": "1",
    "nothing": "",
    "control character": "\x07",
    "HTML": "<html><body>404</body></html>",
    "undefined alias": "a: *b",
}
"""Contents of files for --config."""

JSON_FILES = {
    "cut": "{",
    "brackets": "[" * 100_000,
    "long number": '{"labels": {"background": ' + "9" * 5000 + "}}",
    "infinity": '{"labels": {"background": 1e999}}',
    "NaN": '{"labels": {"background": NaN}}',
    "list": "[1, 2]",
    "number": "7",
    "text as a number": '{"labels": {"background": "none"}}',
    "superscript": '{"labels": {"²": "organ", "0": "background"}}',
    "null": '{"labels": null, "train": null}',
    "huge value": '{"labels": {"background": 0, "organ": 1000000000000}}',
    "nested names": json.dumps({"labels": {"background": 0, "organ": {"a": [1]}}}),
    "HTML": "<html>",
    "empty": "",
}
"""Contents of dataset.json and splits.json."""

TABLES = {
    "long field": b'path,label\n"' + b"x" * 200_000 + b'",1\n',
    "open quote": b'path,label\n"a,1\n' + b"b,0\n" * 1000,
    "NUL": b"path,label\na\0b,1\n",
    "UTF-16": "path,label\na,1\n".encode("utf-16"),
    "Latin-1": "path,label\nMüller,1\n".encode("latin-1"),
    "no label": b"path\na\n",
    "superscript": "path,label\na,²\n".encode(),
    "long number": b"path,label\na," + b"9" * 5000 + b"\n",
    "only a mark": b"\xef\xbb\xbf",
    "binary": bytes(range(256)) * 10,
    "empty": b"",
}
"""Contents of .csv files."""
