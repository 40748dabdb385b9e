import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from data.phantoms import cardiac as phantom
from data.phantoms.cardiac import demo_root, draw_subject, group_of, write_acdc, write_sheet
from data.phantoms.checks import new_data_set
from data.phantoms.heart import ANGLES, GROUPS, RANGES, cycle, draw_heart, end_systole, fit, volumes, walls
from data.phantoms.short_axis import LV, MYO, RV
from data.readers.acdc import index_acdc, read_info
from data.splits import acdc_split

FRAMES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One subject of each group."""
    folder = tmp_path_factory.mktemp("phantom")
    write_acdc(folder, 5, seed=0, frames=FRAMES)
    return folder


def load(file):
    return np.asarray(nib.load(file).dataobj)


@pytest.mark.slow
def test_layout_is_acdcs(root):
    folder = root / "training" / "patient001"
    info = read_info(folder)
    assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
    assert info["Group"] == "NOR"
    assert info["NbFrame"] == str(FRAMES)
    frames = [f"patient001_frame{int(info[phase]):02d}" for phase in ("ED", "ES")]
    names = {"Info.cfg", "patient001_4d.nii.gz", *(f"{f}{end}.nii.gz" for f in frames for end in ("", "_gt"))}
    assert {file.name for file in folder.iterdir()} == names

    cine = load(folder / "patient001_4d.nii.gz")
    for phase, frame in zip(("ED", "ES"), frames, strict=True):
        image, label = load(folder / f"{frame}.nii.gz"), load(folder / f"{frame}_gt.nii.gz")
        np.testing.assert_array_equal(image, cine[..., int(info[phase]) - 1])
        assert label.shape == image.shape
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(np.unique(label), [0, RV, MYO, LV])


@pytest.mark.slow
def test_the_index_reads_it(root):
    table = index_acdc(root)
    firsts = table.drop_duplicates("subject").set_index("subject")
    assert tuple(firsts["group"]) == GROUPS
    assert tuple(firsts["split"]) == ("test", "val", "train", "train", "train")
    assert set(table.loc[table["labelled"], "phase"]) == {"ED", "ES"}
    slices = {k: len(draw_subject(0, k).scan.heights) for k in range(1, 6)}
    assert len(table) == FRAMES * sum(slices.values())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 6))
def test_volumes_of_the_labels_are_the_groups(root, number):
    folder = root / "training" / f"patient{number:03d}"
    info, heart = read_info(folder), draw_subject(0, number).heart
    assert info["Group"] == heart.group
    ml = []
    for phase in ("ED", "ES"):
        image = nib.load(folder / f"{folder.name}_frame{int(info[phase]):02d}_gt.nii.gz")
        label, voxel = np.asarray(image.dataobj), np.prod(image.header.get_zooms()) / 1000
        ml.append([float((label == value).sum() * voxel) for value in (LV, RV)])
    (lv, rv), (lv_es, rv_es) = ml
    assert lv == pytest.approx(heart.lv_volume, rel=0.03)
    assert rv == pytest.approx(heart.rv_volume, rel=0.05)
    assert 1 - lv_es / lv == pytest.approx(heart.lv_fraction, abs=0.03)
    assert 1 - rv_es / rv == pytest.approx(heart.rv_fraction, abs=0.05)


@pytest.mark.slow
def test_labels_nest_and_blood_is_brighter_than_muscle(root):
    for folder in sorted((root / "training").iterdir()):
        base = folder / f"{folder.name}_frame{int(read_info(folder)['ED']):02d}"
        image, label = load(f"{base}.nii.gz").astype(float), load(f"{base}_gt.nii.gz")
        for axis in (0, 1):
            one, other = np.moveaxis(label, axis, 0)[1:], np.moveaxis(label, axis, 0)[:-1]
            beside_lv = np.concatenate([other[one == LV], one[other == LV]])
            assert set(beside_lv) <= {MYO, LV}  # the cavity is closed by its wall everywhere
        assert image[label == LV].mean() > 2 * image[label == MYO].mean()
        assert image[label == RV].mean() > 2 * image[label == MYO].mean()


def test_traps_are_there():
    subjects = [draw_subject(0, number) for number in range(1, 31)]
    assert {subject.dtype for subject in subjects} == {np.int16, np.float32}
    diagonals = {(*np.sign(s.affine.diagonal()[:2]), abs(s.affine[0, 0]) == 1) for s in subjects}
    assert diagonals == {(-1, -1, True), (1, 1, True), (-1, -1, False)}
    assert 1 <= sum(subject.first > 0 for subject in subjects) <= 6
    assert {subject.scan.thickness for subject in subjects} <= {5, 7, 8, 9, 10}
    assert all(96 <= side <= 144 for s in subjects for side in (s.scan.rows, s.scan.columns))


@pytest.mark.slow
def test_traps_reach_the_files(root):
    for number in range(1, 6):
        subject = draw_subject(0, number)
        image = nib.load(root / "training" / f"patient{number:03d}" / f"patient{number:03d}_4d.nii.gz")
        pixel, thickness = subject.scan.pixel, subject.scan.thickness
        np.testing.assert_allclose(image.header.get_zooms(), (pixel, pixel, thickness, 1))
        np.testing.assert_allclose(image.affine, subject.affine)
        assert image.get_data_dtype() == subject.dtype
        assert np.isnan(image.header["scl_slope"])
        assert image.shape == (subject.scan.columns, subject.scan.rows, len(subject.scan.heights), FRAMES)
    assert load(root / "training" / "patient001" / "patient001_4d.nii.gz").max() > 255


def test_end_diastole_is_not_always_first(tmp_path):
    late = next(n for n in range(1, 31) if draw_subject(0, n).first % FRAMES > 0)
    phantom._write_subject(tmp_path / "patient001", draw_subject(0, late), 0, FRAMES)
    info = read_info(tmp_path / "patient001")
    assert info["ED"] != "1"
    lv = {
        phase: (load(tmp_path / "patient001" / f"patient001_frame{int(info[phase]):02d}_gt.nii.gz") == LV).sum()
        for phase in ("ED", "ES")
    }
    assert lv["ED"] > lv["ES"]


@pytest.mark.slow
def test_same_seed_same_bytes_whatever_the_number_of_subjects(root, tmp_path):
    write_acdc(tmp_path / "one", 1, seed=0, frames=FRAMES)
    write_acdc(tmp_path / "other", 1, seed=1, frames=FRAMES)
    for file in sorted((root / "training" / "patient001").iterdir()):
        assert (tmp_path / "one" / "training" / "patient001" / file.name).read_bytes() == file.read_bytes()
    cine = "training/patient001/patient001_4d.nii.gz"
    assert (tmp_path / "other" / cine).read_bytes() != (root / cine).read_bytes()


def test_groups_are_even_and_reach_every_split():
    groups = pd.Series({number: group_of(number) for number in range(1, 101)})
    assert set(groups.value_counts()) == {20}
    assert set(groups[:30].value_counts()) == {6}
    splits = groups[:30].groupby([acdc_split(f"patient{number:03d}") for number in groups.index[:30]])
    assert {name: len(set(part)) for name, part in splits} == {"test": 3, "val": 3, "train": 5}
    for ending in (1, 2):  # the test and the validation patients
        assert set(groups[ending::10].value_counts()) == {2}


@pytest.mark.parametrize("group", GROUPS)
def test_a_fitted_heart_has_the_volume_asked_for(group):
    heart = draw_heart(np.random.default_rng(3), group)
    heights = np.arange(-5.0, heart.length + 10, 8)
    phase = cycle(heart, 20)
    assert phase[0] == 0
    assert phase[end_systole(heart, 20)] == phase.max()
    where = walls(heart, fit(heart, heights, 8), heights, phase)
    lv, rv = volumes(where, 8)
    assert lv[0] == pytest.approx(heart.lv_volume, rel=1e-3)
    assert rv[0] == pytest.approx(heart.rv_volume, rel=1e-3)
    assert RANGES[group][0][0] <= lv[0] <= RANGES[group][0][1] * 1.001
    assert (where.outside >= where.cavity).all()
    assert (where.right >= where.outside).all()
    middle = np.argmin(np.abs(where.height[:, 0] - 0.4))
    assert len(ANGLES) == where.cavity.shape[2]
    assert where.cavity[middle, 0].mean() == pytest.approx(
        np.sqrt(heart.lv_volume / heart.length * 1000 / np.pi), rel=0.25
    )


def test_the_infarct_stands_still_and_is_thin():
    heart = draw_heart(np.random.default_rng(4), "MINF")
    heights = np.array([0.7 * heart.length])
    where = walls(heart, fit(heart, np.arange(0, 100, 8.0), 8), heights, np.array([0.0, 1.0]))
    scar = np.abs(np.angle(np.exp(1j * (ANGLES - heart.scar[1])))) < 0.3
    remote = np.abs(np.angle(np.exp(1j * (ANGLES - heart.scar[1] - np.pi)))) < 0.5
    wall, moved = (where.outside - where.cavity)[0, 0], where.cavity[0, 0] - where.cavity[0, 1]
    assert wall[scar].mean() < 0.75 * wall[remote].mean()
    assert moved[scar].mean() < 0.5 * moved[remote].mean()


def test_other_files_are_never_marked_as_synthetic(tmp_path):
    (tmp_path / "images").mkdir()
    with (
        pytest.raises(UserError, match="holds other files, which would be marked as synthetic"),
        new_data_set(tmp_path, ["training"], seed=0),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.slow
def test_mistakes_are_named(root, tmp_path):
    with pytest.raises(UserError, match="training exists already"):
        write_acdc(root, 1, seed=0)
    with pytest.raises(UserError, match=r"--subjects 101 is out of range: choose 1\.\.100"):
        write_acdc(tmp_path, 101, seed=0)
    with pytest.raises(UserError, match=r"--frames 3 is out of range"):
        write_acdc(tmp_path, 1, seed=0, frames=3)
    with pytest.raises(UserError, match="--seed -1 is negative"):
        write_acdc(tmp_path, 1, seed=-1)


def test_large_matrix_is_a_clinical_one():
    scan = draw_subject(0, 1, "large").scan
    assert min(scan.rows, scan.columns) >= 192
    assert 1.2 <= scan.pixel <= 1.8


def test_demo_is_made_once_and_the_loser_of_a_race_gives_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(phantom, "DEMO_SUBJECTS", 1)
    name = f"phantom-acdc-v{phantom.DEMO_VERSION}"
    winner = tmp_path / "cache" / name / "training" / "patient001" / "Info.cfg"

    def slow(out, *_):
        (out / "training").mkdir(parents=True)
        winner.parent.mkdir(parents=True)  # meanwhile another process finishes
        winner.write_text("the winner's")

    monkeypatch.setattr(phantom, "write_acdc", slow)
    assert demo_root() == tmp_path / "cache" / name
    assert winner.read_text() == "the winner's"
    assert [entry.name for entry in (tmp_path / "cache").glob("[!.]*")] == [name]
    assert "writing 1 synthetic subjects" in capsys.readouterr().err
    assert demo_root() == tmp_path / "cache" / name
    assert capsys.readouterr().err == ""


def test_a_demo_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path))

    def full(out, *_):
        (out / "training").mkdir(parents=True)
        raise OSError("no space left on device")

    monkeypatch.setattr(phantom, "write_acdc", full)
    with pytest.raises(OSError, match="no space left"):
        demo_root()
    assert list(tmp_path.glob("[!.]*")) == []


@pytest.mark.slow
def test_contact_sheet(root, tmp_path):
    write_sheet(root, tmp_path / "new" / "sheet.png")
    assert 10_000 < (tmp_path / "new" / "sheet.png").stat().st_size < 400_000
