"""DICOM series to NIfTI: geometry by hand, time, rescaling, and refusals with a reason."""

import csv
import shutil
from contextlib import suppress
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import run_module
from made_up_dicom import (
    ALONG_COLUMN,
    ALONG_ROW,
    CR,
    NORMAL,
    ORIGIN,
    RAS_AFFINE,
    SLICE_MM,
    cine,
    enhanced,
    header,
    image,
    numbers,
    pattern,
    save,
    volume,
    with_pixels,
)
from pydicom import dcmread
from pydicom.data import get_testdata_file

from core.errors import SomeFilesFailed, UserError
from data.convert import Convert, run
from data.dicom.cached import readable_root
from data.dicom.names import alike_patients
from data.readers.images import read_shape, read_volume
from data.readers.subjects import subjects_of

SALT = "a salt for tests"


def convert(source: Path, out: Path, **settings) -> list[dict[str, str]]:
    """Convert and return the rows of converted.csv, whether or not some series failed."""
    with suppress(SomeFilesFailed):
        run(Convert(input=source, out=out, **{"salt": SALT, **settings}))
    with (out / "converted.csv").open() as stream:
        return [*csv.DictReader(stream)]


def reason(source: Path, out: Path, **settings) -> str:
    """Why nothing in a folder could be converted."""
    with pytest.raises(UserError, match="can be converted") as failure:
        run(Convert(input=source, out=out, **{"salt": SALT, **settings}))
    assert not list(out.rglob("*.nii.gz"))
    return str(failure.value)


def test_an_oblique_cine_with_shuffled_instance_numbers(tmp_path):
    images = cine(tmp_path / "in")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    assert (row["result"], row["files"], row["slices"], row["frames"]) == ("converted", "12", "4", "3")
    assert (row["row_mm"], row["column_mm"], row["slice_mm"], row["frame_s"]) == ("1.5", "1.25", "8.0", "0.04")
    assert row["remark"] == "3 frames by trigger time"
    nifti = nib.load(tmp_path / "out" / row["file"])
    np.testing.assert_allclose(nifti.affine, RAS_AFFINE, atol=1e-5)
    np.testing.assert_allclose(nifti.get_qform(), RAS_AFFINE, atol=1e-5)
    np.testing.assert_allclose(nifti.header.get_zooms(), (1.25, 1.5, 8, 0.04))
    assert nifti.header.get_xyzt_units() == ("mm", "sec")
    assert nifti.get_data_dtype() == np.int16
    values = np.asarray(nifti.dataobj)
    for t, z in product(range(3), range(4)):
        np.testing.assert_array_equal(values[..., z, t], pattern(z, t).T)
        np.testing.assert_array_equal(images[t][z].pixel_array, pattern(z, t))
    stack = read_volume(tmp_path / "out" / row["file"]).stack  # slices in the plane that they were acquired in
    np.testing.assert_array_equal(stack[2, 1], pattern(1, 2))


def test_every_voxel_lies_where_dicom_says(tmp_path):
    """DICOM PS3.3, equation C.7.6.2.1-1, for a stack that is oblique to all three axes."""
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    orientation = numbers([*rotation[0], *rotation[1]])
    places = [ORIGIN + 3.3 * z * rotation[2] for z in range(3)]
    slices = [
        image(z, ImageOrientationPatient=orientation, ImagePositionPatient=numbers(place))
        for z, place in enumerate(places)
    ]
    save(slices, tmp_path / "in")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    nifti = nib.load(tmp_path / "out" / row["file"])
    for z, y, x in product(range(3), (0, 5), (0, 4)):
        lps = places[z] + rotation[0] * 1.25 * x + rotation[1] * 1.5 * y
        np.testing.assert_allclose(nifti.affine @ [x, y, z, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-4)
        assert nifti.dataobj[x, y, z] == pattern(z)[y, x]


def test_slices_stored_from_the_other_side_keep_their_place(tmp_path):
    """The normal, not the instance number or the file's name, gives the order."""
    volume(tmp_path / "in", slices=[3, 2, 1, 0])
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose(nib.load(tmp_path / "out" / row["file"]).affine, RAS_AFFINE, atol=1e-5)


@pytest.mark.parametrize(("slope", "dtype"), [("2", np.int16), ("0.5", np.float32)])
def test_each_file_has_its_own_rescaling(tmp_path, slope, dtype):
    slices = [image(0, RescaleSlope="1", RescaleIntercept="-1000"), image(1, RescaleSlope=slope, RescaleIntercept="3")]
    save(slices, tmp_path / "in")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    nifti = nib.load(tmp_path / "out" / row["file"])
    assert nifti.get_data_dtype() == dtype
    np.testing.assert_array_equal(nifti.dataobj[..., 0], pattern(0).T.astype(float) - 1000)
    np.testing.assert_array_equal(nifti.dataobj[..., 1], pattern(1).T.astype(float) * float(slope) + 3)


def test_an_enhanced_multi_frame_cine(tmp_path):
    places = [(z, t) for t in range(2) for z in range(3)]
    shuffled = [places[k] for k in (4, 0, 5, 2, 1, 3)]
    save([enhanced(shuffled, slope=2)], tmp_path / "in")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    assert (row["files"], row["slices"], row["frames"], row["frame_s"]) == ("1", "3", "2", "0.04")
    nifti = nib.load(tmp_path / "out" / row["file"])
    np.testing.assert_allclose(nifti.affine, RAS_AFFINE, atol=1e-5)
    for z, t in places:
        np.testing.assert_array_equal(nifti.dataobj[..., z, t], pattern(z, t).T * 2 * (z + 1) + z)


@pytest.mark.parametrize(
    ("times", "remark", "step"),
    [
        ([{"TemporalPositionIdentifier": t} for t in (3, 1, 2)], "3 frames by temporal position", ""),
        ([{"AcquisitionTime": f"10000{t}.5"} for t in (3, 1, 2)], "3 frames by acquisition time", "1.0"),
        ([{"AcquisitionDateTime": f"2020010110000{t}"} for t in (3, 1, 2)], "3 frames by acquisition time", "1.0"),
    ],
)
def test_time_without_a_trigger(tmp_path, times, remark, step):
    ranked = [*zip((2, 0, 1), times, strict=True)]
    save([image(z, pixels=pattern(z, t), **time) for z in range(2) for t, time in ranked], tmp_path / "in")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    assert row["remark"].startswith(remark)
    assert row["frame_s"] == step
    nifti = nib.load(tmp_path / "out" / row["file"])
    np.testing.assert_array_equal(nifti.dataobj[0, 0, 1], [100, 1100, 2100])


def test_echoes_are_images_of_their_own(tmp_path):
    save([image(z, pixels=pattern(z, k), EchoTime=f"{5 * k}") for z in range(3) for k in (1, 2)], tmp_path / "in")
    rows = convert(tmp_path / "in", tmp_path / "out")
    assert {(row["part"], row["slices"], row["frames"]) for row in rows} == {
        ("echo time 5.00 ms", "3", "1"),
        ("echo time 10.00 ms", "3", "1"),
    }
    second = next(row for row in rows if row["part"] == "echo time 10.00 ms")
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / second["file"]).dataobj[..., 2], pattern(2, 2).T)


def _without_spacing(dataset):
    dataset.PixelSpacing = ["0", "0"]
    return dataset


REFUSED = {
    "missing": (
        [image(z) for z in (0, 1, 3)],
        r"slices are 8 to 16 mm apart: slices are missing.*; export the whole series",
    ),
    "orientations": (
        [image(0), image(1, ImageOrientationPatient=numbers([*ALONG_COLUMN, *ALONG_ROW]))],
        "2 orientations, as those of a localiser do: if a stack is among them, export it",
    ),
    "twice": (
        [image(z) for z in (0, 1, 0, 1)],
        "2 images at each slice position, and neither trigger time.*: export the series again with its times",
    ),
    "incomplete": (
        [image(0, 0), image(0, 1), image(1, 0)],
        "1 to 2 images at the 2 slice positions: .*; export all of them once",
    ),
    "sizes": (
        [image(0), image(1, pixels=pattern(1, rows=9))],
        r"differ in size \(1 of 6 x 5, 1 of 9 x 5 pixels\): export each size",
    ),
    "shifted": (
        [image(0), image(1, ImagePositionPatient=numbers(ORIGIN + 8 * NORMAL + ALONG_ROW)), image(2)],
        "shifted against each other within their planes: resample them",
    ),
    "tilted": (
        [image(z, ImagePositionPatient=numbers(ORIGIN + z * (8 * NORMAL + ALONG_ROW))) for z in range(3)],
        "stacked at an angle .*: resample them",
    ),
    "placeless": (
        [with_pixels(header("1.2.840.10008.5.1.4.1.1.4"), pattern(0))],
        "no position, orientation or pixel spacing: export",
    ),
    "colour": ([image(0, PhotometricInterpretation="RGB")], "colour images .*; export them in grey"),
    "screenshot": (
        [with_pixels(header("1.2.840.10008.5.1.4.1.1.7", Modality="OT"), pattern(0))],
        "may show the patient's name: export the original images",
    ),
    "skewed": (
        [image(0, ImageOrientationPatient=numbers([1, 0, 0, 0.3, 0.954, 0]))],
        "no pair of perpendicular unit vectors: export it again",
    ),
    "slope 0": ([image(z, RescaleSlope="0", RescaleIntercept="5") for z in (0, 1)], "slope of 0, .*: export it again"),
    "slope 0 of one": ([image(0), image(1, RescaleSlope="0")], r"slope of 0, .* \(1 of 2 files\)"),
    "slope 0 of a frame": ([enhanced([(0, 0), (1, 0)], slope=0)], "slope of 0, "),
    "spacing 0": ([_without_spacing(image(0))], "pixel spacing of 0 x 0 mm: export it again with its spacing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_series(tmp_path, name):
    datasets, why = REFUSED[name]
    save(datasets, tmp_path / "in")
    with pytest.raises(UserError, match=why):
        run(Convert(input=tmp_path / "in", out=tmp_path / "out", salt=SALT))
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_refused_series_does_not_stop_the_others(tmp_path, capsys):
    volume(tmp_path / "in" / "good", SeriesInstanceUID="1.2.3.1")
    volume(tmp_path / "in" / "gap", slices=[0, 1, 3], SeriesInstanceUID="1.2.3.2")
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    (tmp_path / "in" / "cut").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0")
    with pytest.raises(SomeFilesFailed, match=r"gap/IM000\d: the slices are 8 to 16 mm apart"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "out", salt=SALT))
    with (tmp_path / "out" / "converted.csv").open() as stream:
        rows = [*csv.DictReader(stream)]
    assert sorted(row["result"] for row in rows) == ["converted", "refused", "refused"]


def test_copies_of_a_file_are_used_once(tmp_path):
    volume(tmp_path / "in")
    shutil.copytree(tmp_path / "in", tmp_path / "in" / "copy")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    assert (row["slices"], row["remark"]) == ("4", "4 images present more than once, used once")


def test_two_images_under_one_identifier(tmp_path):
    save([image(0, SOPInstanceUID="1.2"), image(1, SOPInstanceUID="1.2")], tmp_path / "in")
    assert "the same SOP Instance UID" in reason(tmp_path / "in", tmp_path / "out")


def test_radiographs_have_no_place_and_one_polarity(tmp_path):
    common = {"Modality": "CR", "ImagerPixelSpacing": ["0.2", "0.1"]}
    light = with_pixels(header(CR, **common), pattern(0))
    dark = with_pixels(header(CR, PhotometricInterpretation="MONOCHROME1", **common), pattern(0))
    save([light, dark], tmp_path / "in")
    rows = convert(tmp_path / "in", tmp_path / "out")
    assert [row["part"] for row in rows] == ["image 1", "image 2"]
    shapes = [read_shape(tmp_path / "out" / row["file"]) for row in rows]
    assert {shape.affine for shape in shapes} == {None}
    np.testing.assert_allclose([shape.slice_spacing[:2] for shape in shapes], [(0.2, 0.1)] * 2)
    values = sorted(int(nib.load(tmp_path / "out" / row["file"]).dataobj[0, 0, 0]) for row in rows)
    assert values == [0, 65535]


def test_names_are_hashed_and_stable(tmp_path):
    volume(tmp_path / "in" / "Doe_Jane", patient="Jane-7")
    volume(tmp_path / "in" / "Doe_John", patient="John-8", SeriesInstanceUID="1.2.3.77")
    rows = convert(tmp_path / "in", tmp_path / "out")
    again = convert(tmp_path / "in" / "Doe_John", tmp_path / "again")
    other = convert(tmp_path / "in", tmp_path / "other", salt="another salt")
    everything = "".join(map(str, (tmp_path / "out").rglob("*"))) + (tmp_path / "out" / "converted.csv").read_text()
    for secret in ("Jane", "John", "Doe", "1.2.3", "cine", str(tmp_path / "in")):
        assert secret not in everything.replace(str(tmp_path), "")
    assert again[0]["subject"] in {row["subject"] for row in rows}
    assert not {row["subject"] for row in rows} & {row["subject"] for row in other}
    assert {row["subject"] for row in rows} == {*subjects_of([row["file"][7:-7] for row in rows], None)}
    header_bytes = nib.load(tmp_path / "out" / rows[0]["file"]).header.binaryblock
    assert b"Jane" not in header_bytes


def test_names_are_kept_on_demand(tmp_path):
    volume(tmp_path / "in" / "first", patient="Jane-7")
    volume(tmp_path / "in" / "second", patient="mask", SeriesInstanceUID="1.2.3.77")
    rows = convert(tmp_path / "in", tmp_path / "out", keep_names=True)
    assert [(row["patient_id"], row["description"], row["folder"]) for row in rows] == [
        ("Jane-7", "cine SAX", "first"),
        ("mask", "cine SAX", "second"),
    ]
    assert rows[0]["file"].startswith("images/sub-Jane7/sub-Jane7_")
    assert rows[1]["file"].startswith("images/sub-maskx")  # else the file would be taken for a label map


def test_the_salt_is_kept_for_the_user(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    volume(tmp_path / "in")
    first = convert(tmp_path / "in", tmp_path / "out", salt=None)
    second = convert(tmp_path / "in", tmp_path / "again", salt=None)
    assert first[0]["subject"] == second[0]["subject"]
    file = tmp_path / "config" / "fewslice" / "dicom.salt"
    assert file.stat().st_mode & 0o77 == 0
    assert str(file) in capsys.readouterr().out
    with pytest.raises(UserError, match="--salt has 3 characters"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "third", salt="abc"))


def test_series_are_chosen_by_description(tmp_path):
    volume(tmp_path / "in" / "a", SeriesInstanceUID="1.2.3.1")
    volume(tmp_path / "in" / "b", SeriesInstanceUID="1.2.3.2", SeriesDescription="LGE")
    rows = convert(tmp_path / "in", tmp_path / "out", series="sax")
    assert sorted((row["result"], row["remark"]) for row in rows) == [
        ("converted", ""),
        ("left out", "left out by --series"),
    ]


def test_the_descriptions_that_there_are(tmp_path):
    for number, description in enumerate(["LGE", "", "cine SAX", "T1", "T2", "scout"]):
        volume(tmp_path / "in" / str(number), SeriesInstanceUID=f"1.2.3.{number}", SeriesDescription=description)
    why = reason(tmp_path / "in", tmp_path / "out", series="nomatch")
    assert (
        "left out by --series, which matches none of the descriptions (none), LGE, T1, T2, cine SAX and 1 more" in why
    )


def test_reasons_are_counted_where_nothing_is_converted(tmp_path):
    volume(tmp_path / "in" / "gap", slices=[0, 1, 3], SeriesInstanceUID="1.2.3.1")
    volume(tmp_path / "in" / "hole", slices=[0, 1, 3], SeriesInstanceUID="1.2.3.2")
    volume(tmp_path / "in" / "LGE", SeriesInstanceUID="1.2.3.3", SeriesDescription="LGE")
    report = header("1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", SeriesInstanceUID="1.2.3.4")
    report.SeriesDescription = "cine report"
    save([report], tmp_path / "in" / "report")
    (tmp_path / "in" / "cut").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0")
    lines = reason(tmp_path / "in", tmp_path / "out", series="cine", keep_names=True).splitlines()
    assert lines[0].endswith("(4) can be converted:")
    assert lines[1].startswith("  2: the slices are 8 to 16 mm apart")
    assert sorted(line[:14] for line in lines[2:5]) == ["  1: a file is", "  1: left out ", "  1: no image "]
    table = tmp_path / "out" / "converted.csv"
    assert lines[5:] == [f"{table} lists every series"]
    with table.open() as stream:
        assert sorted(row["result"] for row in csv.DictReader(stream)) == ["left out", "no image", *["refused"] * 3]
    assert len(convert(tmp_path / "in", tmp_path / "out", series="LGE")) == 5  # the table may be replaced
    with pytest.raises(UserError, match="is not empty"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "out", salt=SALT))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "converted.csv").write_text("mine\n")
    with pytest.raises(UserError, match="is not empty"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "own", salt=SALT))


def test_an_unusable_out_is_refused_before_reading(tmp_path, monkeypatch):
    volume(tmp_path / "in")
    (tmp_path / "file").touch()
    monkeypatch.setattr("data.convert.read_archive", lambda *_: pytest.fail("headers were read"))
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=r"--out .*file is no folder; choose another path"):
            run(Convert(input=tmp_path / "in", out=out, salt=SALT))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=r"--out .* cannot be written; change its permissions"):
        run(Convert(input=tmp_path / "in", out=tmp_path / "new" / "out", salt=SALT))


def test_constant_images_are_mentioned(tmp_path, capsys):
    volume(tmp_path / "in" / "good", SeriesInstanceUID="1.2.3.1")
    same = np.full((6, 5), 7, np.uint16)
    save([image(z, pixels=same, SeriesInstanceUID="1.2.3.2") for z in range(3)], tmp_path / "in" / "same")
    rows = convert(tmp_path / "in", tmp_path / "out")
    assert sorted(row["remark"] for row in rows) == ["", "constant: every voxel is 7"]
    assert "1 image has one value everywhere (converted.csv marks them): leave them out" in capsys.readouterr().out


def test_identifiers_that_may_be_one_patients(tmp_path, capsys, monkeypatch, caplog):
    patients = ["jane-7", "Jane-7 x", "JANE7X", "Jane 7", "John-8"]
    for number, patient in enumerate(patients):
        volume(tmp_path / "in" / str(number), patient=patient, SeriesInstanceUID=f"1.2.3.{number}")
    rows = convert(tmp_path / "in", tmp_path / "out")
    doubt = "4 subjects have a Patient ID or name that is another's but for case, spaces, punctuation or issuer"
    printed = capsys.readouterr().out
    assert doubt in printed
    assert not any(patient in printed for patient in patients)
    doubtful = [
        row["subject"] for row in rows if row["remark"].startswith("Patient ID or name like another's but for case")
    ]
    assert len(set(doubtful)) == 4
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for _ in range(2):  # also where the folder is read directly, each time
        caplog.clear()
        with caplog.at_level("INFO", logger="fewslice"):
            readable_root(tmp_path / "in")
        assert doubt in caplog.text


def test_which_patients_are_alike():
    jane = {"|Jane-7", "Hospital|jane 7", "|JANE_7"}
    assert alike_patients([*jane, "|Jane-8"]) == jane
    assert alike_patients(["A|7", "B|7"]) == set()  # numbers of two hospitals
    names = {"name|Doe^Jane|19700101", "name|DOE^JANE|19700101"}
    assert alike_patients([*names, "name|Doe^Jane|19710101"]) == names
    assert alike_patients(["study|1.23", "study|12.3", "|-", "|+"]) == set()


def test_pydicoms_own_files(tmp_path):
    """CT and MR as scanners write them: big and little endian, explicit and implicit, compressed."""
    for name in ("CT_small.dcm", "MR_small_bigendian.dcm", "examples_overlay.dcm", "J2K_pixelrep_mismatch.dcm"):
        shutil.copy(get_testdata_file(name, download=False), tmp_path / name)
    rows = convert(tmp_path, tmp_path.with_name("converted"))
    assert {row["result"] for row in rows} == {"converted"}
    small = next(row for row in rows if row["rows"] == "128")
    nifti = nib.load(tmp_path.with_name("converted") / small["file"])
    source = dcmread(tmp_path / "CT_small.dcm")
    np.testing.assert_array_equal(nifti.dataobj[..., 0], source.pixel_array.T.astype(int) - 1024)
    x, y, z = source.ImagePositionPatient
    np.testing.assert_allclose(nifti.affine[:3, 3], [-x, -y, z], atol=1e-4)
    np.testing.assert_allclose(nifti.affine[:3, :3], np.diag([-0.661468, -0.661468, 5]), atol=1e-5)


def test_pydicoms_archive(tmp_path):
    """A folder with a DICOMDIR: scouts and localisers are refused, one gated CT is whole."""
    archive = Path(get_testdata_file("DICOMDIR", download=False)).parent
    rows = convert(archive, tmp_path / "out")
    whole = [row for row in rows if row["result"] == "converted" and row["slices"] == "5"]
    assert [(row["modality"], row["row_mm"], row["slice_mm"]) for row in whole] == [("CT", "0.488281", "2.5")]
    refusals = [row["remark"] for row in rows if row["result"] == "refused"]
    assert sum("as those of a localiser do" in remark for remark in refusals) == 4
    assert sum("slices are missing" in remark for remark in refusals) == 1


def test_pixels_that_are_cut_short(tmp_path):
    datasets = [image(z) for z in range(2)]
    datasets[1].PixelData = datasets[1].PixelData[:20]
    save(datasets, tmp_path / "in")
    assert "pixels cannot be decoded" in reason(tmp_path / "in", tmp_path / "out")


def test_slices_far_apart_are_mentioned(tmp_path):
    volume(tmp_path / "in", slices=[0, 2, 4])
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    assert row["remark"] == "slices of 6 mm lie 16 mm apart: some may be missing"
    assert row["slice_mm"] == f"{2 * SLICE_MM}"


def test_patients_without_an_identifier(tmp_path):
    volume(tmp_path / "in", PatientID="", patient="x")
    (row,) = convert(tmp_path / "in", tmp_path / "out")
    assert row["remark"] == "no Patient ID: name and birth date tell subjects"


def test_settings_that_cannot_be_meant(tmp_path, monkeypatch, capsys):
    volume(tmp_path / "in")
    for settings, message in [
        (["--out", tmp_path / "in"], "is not empty"),
        (["--out", tmp_path / "in" / "out"], "lies within --input"),
        (["--out", tmp_path / "out", "--classes", "LV"], "holds no segmentation or structure set"),
        (["--out", tmp_path / "out", "--series", "("], "is no regular expression"),
    ]:
        with pytest.raises(SystemExit) as end:
            run_module("data.convert", ["--input", tmp_path / "in", "--salt", SALT, *settings], monkeypatch)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no DICOM images"):
        run(Convert(input=Path(__file__).parent, out=tmp_path / "out", salt=SALT))


def test_other_objects_do_not_stop_a_series(tmp_path):
    volume(tmp_path / "in")
    state = header("1.2.840.10008.5.1.4.1.1.11.1", Modality="PR")
    report = header("1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", SeriesInstanceUID="1.2.3.77")
    save([state, report], tmp_path / "in" / "others")
    run(Convert(input=tmp_path / "in", out=tmp_path / "out", salt=SALT))  # without a failure
    with (tmp_path / "out" / "converted.csv").open() as stream:
        assert sorted((row["result"], row["remark"]) for row in csv.DictReader(stream)) == [
            ("converted", "1 file without an image left out"),
            ("no image", "no image (Basic Text SR Storage)"),
        ]
