import numpy as np
import pytest

from core.errors import UserError
from data.phantom import PhantomConfig, run
from data.phantoms import knee as phantom_knee
from data.phantoms.knee import (
    FIRST_VALID,
    PLANES,
    TASKS,
    demo_knee_root,
    draw_exam,
    image_exam,
    locate,
    write_knee_sheet,
    write_mrnet,
)
from data.phantoms.knee_anatomy import MUSCLES, draw_knee
from data.phantoms.painting import LEVELS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three training exams and one validation exam."""
    return run(PhantomConfig(out=tmp_path_factory.mktemp("knees"), dataset="mrnet", subjects=3))


def exams(split, count, seed=0):
    return [draw_exam(seed, split, place) for place in range(count)]


def find(state, seed=0):
    return next(exam for exam in exams("train", 200, seed) if exam.knee.acl == state)


def notch(exam, plane="sagittal"):
    """Voxels around the middle of the ACL, relative to the mean of the image."""
    stack = image_exam(exam, 0, plane).astype(float)
    frame, row, column = np.rint(locate(exam, 0, plane, (3, 1, -12))).astype(int)
    return stack[frame, row - 4 : row + 5, column - 4 : column + 5].mean() / stack[stack > 20].mean()


@pytest.mark.slow
def test_layout_is_mrnets(root):
    tables = [f"{split}-{task}.csv" for split in ("train", "valid") for task in TASKS]
    assert sorted(entry.name for entry in root.iterdir()) == sorted(["SYNTHETIC.txt", "train", "valid", *tables])
    for split, cases in (("train", ["0000", "0001", "0002"]), ("valid", [f"{FIRST_VALID}"])):
        assert {entry.name for entry in (root / split).iterdir()} == set(PLANES)
        for plane in PLANES:
            files = sorted((root / split / plane).iterdir())
            assert [file.name for file in files] == [f"{case}.npy" for case in cases]
            for file in files:
                stack = np.load(file, allow_pickle=False)
                assert stack.dtype == np.uint8
                assert 16 <= stack.shape[0] <= 28
                assert stack.shape[1:] == (104, 104)
        for task in TASKS:
            lines = [line.split(",") for line in (root / f"{split}-{task}.csv").read_text().splitlines()]
            assert [line[0] for line in lines] == cases
            assert {line[1] for line in lines} <= {"0", "1"}


@pytest.mark.slow
def test_large_is_mrnets_own_size():
    stack = image_exam(draw_exam(0, "train", 0), 0, "axial", "large")
    assert stack.shape[1:] == (256, 256)
    assert 17 <= len(stack) <= 61


@pytest.mark.slow
def test_tables_say_what_was_drawn(root):
    for split, count in (("train", 3), ("valid", 1)):
        for task in TASKS:
            expected = "".join(f"{exam.case},{exam.labels[task]}\n" for exam in exams(split, count))
            assert (root / f"{split}-{task}.csv").read_text() == expected


@pytest.mark.slow
def test_same_seed_same_exam_whatever_the_number_of_exams(root):
    for plane in PLANES:
        written = np.load(root / "train" / plane / "0001.npy")
        np.testing.assert_array_equal(image_exam(draw_exam(0, "train", 1), 0, plane), written)
    other = image_exam(draw_exam(1, "train", 1), 1, "axial")
    assert not np.array_equal(other, np.load(root / "train" / "axial" / "0001.npy"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prevalence_holds_for_any_number_of_exams(seed):
    for split, rate in (("train", 0.18), ("valid", 0.45)):
        tears = np.array([exam.labels["acl"] for exam in exams(split, 200, seed)])
        for count in (10, 40, 120, 200):
            assert abs(tears[:count].sum() - rate * count) <= 1
    labels = [exam.labels for exam in exams("train", 200, seed)]
    assert 0.25 < np.mean([label["meniscus"] for label in labels]) < 0.45
    assert 0.68 < np.mean([label["abnormal"] for label in labels]) < 0.92


def test_labels_agree_with_the_knee_and_with_each_other():
    seen = exams("train", 300)
    assert {exam.knee.acl for exam in seen} == {"intact", "wavy", "gap", "gone"}
    for exam in seen:
        knee, labels = exam.knee, exam.labels
        assert labels["acl"] == (knee.acl != "intact")
        assert labels["meniscus"] == (knee.tear != 0)
        assert labels["abnormal"] >= max(labels["acl"], labels["meniscus"])
        if not labels["abnormal"]:
            assert knee.effusion <= 2
            assert len(knee.bruises) == knee.defect[2] == knee.cyst == 0
    # effusion goes with tears, but proves nothing
    fluid = {torn: [e.knee.effusion for e in seen if e.labels["acl"] == torn] for torn in (0, 1)}
    assert np.mean(fluid[1]) > np.mean(fluid[0])
    assert max(fluid[0]) > 7
    assert min(fluid[1]) < 2.5


def test_sides_and_frame_counts_vary():
    seen = exams("train", 8)
    assert {exam.left for exam in seen} == {True, False}
    frames = {len(image_exam(exam, 0, "sagittal")) for exam in seen}
    assert len(frames) > 2


@pytest.mark.slow
def test_planes_show_the_same_knee():
    """At the same places of the body two fat-saturated planes agree, and T1 shows their fluid dark and fat bright."""
    x, y, z = np.meshgrid(np.arange(-36, 37, 4.0), np.arange(-50, 40, 3.0), np.arange(-36, 28, 4.0))
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)

    def sample(exam, plane, points):
        places = np.rint(locate(exam, 0, plane, points)).astype(int)
        stack = image_exam(exam, 0, plane)
        return stack[tuple(np.clip(places, 0, np.array(stack.shape) - 1).T)].astype(float)

    def correlate(first, second):
        return np.corrcoef(first, second)[0, 1]

    for exam in [find("intact"), find("gone")]:
        sagittal, coronal, axial = (sample(exam, plane, points) for plane in PLANES)
        mirrored = sample(exam, "axial", points * (-1, 1, 1))
        assert correlate(sagittal, axial) > 0.4
        assert correlate(sagittal, axial) > correlate(sagittal, mirrored) + 0.05  # left and right are kept apart
        low, high = np.quantile(sagittal, (0.5, 0.95))
        assert coronal[sagittal > high].mean() < 0.8 * coronal[sagittal < low].mean()


def test_an_intact_ligament_is_dark_and_its_loss_is_bright():
    normal = [exam for exam in exams("train", 60) if not exam.labels["abnormal"] and exam.knee.swelling == 0][:3]
    lost = [exam for exam in exams("train", 60) if exam.knee.acl == "gone" and exam.knee.swelling > 0.4][:3]
    assert max(notch(exam) for exam in normal) < min(notch(exam) for exam in lost)


@pytest.mark.slow
def test_the_label_is_not_in_the_brightness():
    dark, bright = (
        [image_exam(e, 0, "sagittal").mean() for e in exams("train", 34) if e.labels["acl"] == torn][:4]
        for torn in (0, 1)
    )
    assert min(dark) < np.mean(bright) < max(dark)
    assert min(bright) < np.mean(dark) < max(bright)


def test_femur_is_above_and_patella_in_front():
    for exam in exams("train", 3):
        femur, tibia = (locate(exam, 0, "sagittal", (0, 0, z)) for z in (-40, 40))
        assert femur[1] < tibia[1]
        patella = locate(exam, 0, "sagittal", (0, -45, -35))
        assert patella[2] < femur[2]
        assert locate(exam, 0, "axial", (0, -45, -35))[1] < 52


def test_drawing_needs_no_state():
    knee, *labels = draw_knee(np.random.default_rng(3), True)
    again, *same = draw_knee(np.random.default_rng(3), True)
    assert labels == same
    np.testing.assert_array_equal(knee.warp, again.warp)
    assert knee.muscles.shape == (len(MUSCLES), 3)
    assert np.diff(LEVELS) == pytest.approx(0.5)


@pytest.mark.slow
def test_mistakes_are_named(root, tmp_path):
    with pytest.raises(UserError, match="train exists already"):
        write_mrnet(root, 3, seed=0)
    with pytest.raises(UserError, match=r"--subjects 2 is out of range: choose 3\.\.1130"):
        write_mrnet(tmp_path, 2, seed=0)
    with pytest.raises(UserError, match="--seed -1 is negative"):
        write_mrnet(tmp_path, 3, seed=-1)
    with pytest.raises(UserError, match="--frames 9 applies to --dataset acdc"):
        run(PhantomConfig(out=tmp_path, dataset="mrnet", frames=9))


@pytest.mark.slow
def test_contact_sheet(tmp_path):
    write_knee_sheet(tmp_path / "new" / "sheet.png", seed=0)
    assert 10_000 < (tmp_path / "new" / "sheet.png").stat().st_size < 400_000


def test_demo_is_made_once_and_the_loser_of_a_race_gives_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    name = f"phantom-mrnet-v{phantom_knee.KNEE_VERSION}"
    winner = tmp_path / "cache" / name / "train-acl.csv"

    def slow(out, *_):
        (out / "train").mkdir(parents=True)
        winner.parent.mkdir(parents=True)  # meanwhile another process finishes
        winner.write_text("the winner's")

    monkeypatch.setattr(phantom_knee, "write_mrnet", slow)
    assert demo_knee_root() == tmp_path / "cache" / name
    assert winner.read_text() == "the winner's"
    assert [entry.name for entry in (tmp_path / "cache").glob("[!.]*")] == [name]
    assert capsys.readouterr().err.count("\n") == 1
    assert demo_knee_root() == tmp_path / "cache" / name
    assert capsys.readouterr().err == ""


def test_a_demo_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path))

    def full(out, *_):
        (out / "train").mkdir(parents=True)
        raise OSError("no space left on device")

    monkeypatch.setattr(phantom_knee, "write_mrnet", full)
    with pytest.raises(OSError, match="no space left"):
        demo_knee_root()
    assert list(tmp_path.glob("[!.]*")) == []
