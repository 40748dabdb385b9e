"""Compressed DICOM files: JPEG Lossless by an encoder of our own, others by the files that pydicom comes with."""

from pathlib import Path

import numpy as np
import pytest
from made_up_dicom import image, pattern, save, volume
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from test_convert import SALT, convert, reason

from core.errors import UserError
from data.convert import Convert, run
from data.dicom import pixels
from data.readers.images import read_volume

LOSSLESS, FIRST_ORDER = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"


def jpeg_lossless(values: np.ndarray, predictor: int, bits: int) -> bytes:
    """Code (rows, columns) values by process 14 of ISO/IEC 10918-1, annex H, with a table of 17 codes of 5 bits."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content

    rows, columns = values.shape
    v, text = values.astype(int), ""
    for y, x in np.ndindex(rows, columns):
        a, b, c = (int(v[y - j, x - i]) if y >= j and x >= i else 0 for j, i in ((0, 1), (1, 0), (1, 1)))
        inner = (a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)[predictor - 1]
        predicted = inner if y and x else a if x else b if y else 1 << (bits - 1)
        difference = (int(v[y, x]) - predicted + 32767) % 65536 - 32767  # modulo 2^16, up to 32768
        size = abs(difference).bit_length()
        text += f"{size:05b}"
        if 0 < size < 16:
            text += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    text += "1" * (-len(text) % 8)
    frame = bytes([bits]) + rows.to_bytes(2) + columns.to_bytes(2) + bytes([1, 1, 0x11, 0])
    table = bytes([0, *[0] * 4, 17, *[0] * 11, *range(17)])
    coded = int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")
    segments = segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, bytes([1, 1, 0, predictor, 0, 0]))
    return b"\xff\xd8" + segments + coded + b"\xff\xd9"


def compressed(dataset: Dataset, data: bytes, syntax: str = FIRST_ORDER, **attributes: int) -> Dataset:
    """An image whose pixels are the compressed data of one frame."""
    dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def stored(dataset: Dataset, folder: Path) -> np.ndarray:
    """The pixels of an image as they are read from its file."""
    save([dataset], folder)
    (file,) = (each for each in folder.rglob("*") if each.is_file())
    pixels.require_readable(dcmread(file, stop_before_pixels=True))
    return pixels._stored(file)[0]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_is_lossless(tmp_path, predictor, bits):
    values = np.random.default_rng(predictor).integers(0, 1 << bits, (9, 7)).astype(np.uint16)
    syntax = FIRST_ORDER if predictor == 1 else LOSSLESS
    dataset = compressed(image(0, pixels=values), jpeg_lossless(values, predictor, bits), syntax, BitsStored=bits)
    np.testing.assert_array_equal(stored(dataset, tmp_path), values)


@pytest.mark.parametrize(("bits", "said"), [(12, 12), (16, 12), (16, 16)])
def test_signed_jpeg_lossless(tmp_path, bits, said):
    values = np.random.default_rng(0).integers(-2048, 2048, (9, 7))
    data = jpeg_lossless(values & ((1 << bits) - 1), 1, bits)
    dataset = compressed(image(0, pixels=values), data, BitsStored=said, PixelRepresentation=1)
    np.testing.assert_array_equal(stored(dataset, tmp_path), values)


@pytest.mark.parametrize(
    ("bits", "attributes", "message"),
    [
        (16, {"BitsStored": 12}, "pixels hold values outside their 12 bits"),  # GDCM alone would cut them off
        (12, {"BitsStored": 8}, "pixels hold values outside their 8 bits"),
        (12, {"PixelRepresentation": 1}, r"values of 12 bits, its header says 16 of 16, with a sign"),
        (12, {"BitsAllocated": 8, "BitsStored": 8}, "values of 12 bits, its header says 8 of 8"),
        (16, {"Rows": 8}, "damaged, or of another size than the header says"),
    ],
)
def test_jpeg_data_that_contradicts_the_header_is_refused(tmp_path, bits, attributes, message):
    values = np.random.default_rng(0).integers(0, 1 << bits, (9, 7)).astype(np.uint16)
    dataset = compressed(image(0, pixels=values), jpeg_lossless(values, 1, bits), **attributes)
    with pytest.raises(UserError, match=message):
        stored(dataset, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_jpeg_data_that_is_cut_short_is_refused(tmp_path, share):
    values = np.random.default_rng(0).integers(0, 4096, (32, 24)).astype(np.uint16)
    data = jpeg_lossless(values, 1, 12)
    dataset = compressed(image(0, pixels=values), data[: int(share * len(data))] or b"\0\0", BitsStored=12)
    with pytest.raises(UserError, match=r"pixels cannot be decoded \((damaged, or of|it holds no JPEG)"):
        stored(dataset, tmp_path)


def test_a_compressed_series_converts_to_the_same_volume(tmp_path):
    volume(tmp_path / "plain", slices=[0, 1, 2])
    slices = [compressed(image(z), jpeg_lossless(pattern(z), 1, 16)) for z in range(3)]
    save(slices, tmp_path / "jpeg")
    read = []
    for name in ("plain", "jpeg"):
        (row,) = convert(tmp_path / name, tmp_path / f"{name} out")
        assert row["result"] == "converted"
        (file,) = (tmp_path / f"{name} out").rglob("*.nii.gz")
        read.append(read_volume(file))
    np.testing.assert_array_equal(read[0].stack, read[1].stack)
    np.testing.assert_array_equal(read[0].affine, read[1].affine)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"]
)
def test_pydicoms_compressed_images_equal_its_plain_one(name):
    plain, file = (Path(get_testdata_file(each, download=False)) for each in ("MR_small.dcm", name))
    pixels.require_readable(dcmread(file, stop_before_pixels=True))
    np.testing.assert_array_equal(pixels._stored(file), pixels._stored(plain))


def test_pydicoms_jpeg_lossless_image_equals_that_of_rle():
    """In colour, which is not read here, and by GDCM's own encoder."""
    plain, jpeg = (dcmread(get_testdata_file(f"SC_rgb_{name}.dcm", download=False)) for name in ("rle", "jpeg_gdcm"))
    assert jpeg.file_meta.TransferSyntaxUID == FIRST_ORDER
    np.testing.assert_array_equal(pixel_array(jpeg, **pixels._decoding(jpeg)), pixel_array(plain))


@pytest.mark.parametrize(
    ("syntax", "advice"),
    [
        ("1.2.840.10008.1.2.4.201", "install the packages pylibjpeg and pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.51", "decompress it first with dcmdjpeg of DCMTK"),
        ("1.2.840.10008.1.2.4.102", r"decompress it first \(gdcmconv --raw\), or export it uncompressed"),
    ],
)
def test_compression_without_a_decoder(tmp_path, syntax, advice):
    save([compressed(image(0), b"\0\0", syntax)], tmp_path / "in")
    with pytest.raises(UserError, match=f"compressed as .*, which cannot be decoded here: {advice}"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "out", salt=SALT))


def test_damaged_jpeg_is_a_reason_in_the_table(tmp_path):
    slices = [compressed(image(z), jpeg_lossless(pattern(z), 1, 16)) for z in range(2)]
    compressed(slices[1], jpeg_lossless(pattern(1), 1, 16)[:60])
    save(slices, tmp_path / "in")
    assert "pixels cannot be decoded (damaged" in reason(tmp_path / "in", tmp_path / "out")
