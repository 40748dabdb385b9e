import logging
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import data.readers.exams
from core.errors import UserError
from data.readers.exams import ExamSet, load_exams, load_mrnet, read_exam, require_both_classes
from data.readers.mrnet import index_mrnet, read_labels_csv, stratified_draw
from data.sources import ExamsSource, MrnetSource, open_exams, with_demo_data
from data.synthetic import mark_synthetic


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))


def knee(case: int) -> np.ndarray:
    rng = np.random.default_rng(case)
    return rng.integers(0, 256, (3 + case % 4, 6, 5)).astype(np.uint8)


@pytest.fixture
def mrnet(tmp_path) -> Path:
    """40 training exams, 8 of them torn, and 10 to test, 4 of them torn; two planes."""
    root = tmp_path / "knees"
    for half, cases, torn in (("train", range(40), 8), ("valid", range(40, 50), 4)):
        for plane in ("sagittal", "coronal"):
            (root / half / plane).mkdir(parents=True)
            for case in cases:
                np.save(root / half / plane / f"{case:04d}.npy", knee(case))
        for task, flip in (("acl", 0), ("meniscus", 1)):
            lines = (f"{case:04d},{int(k < torn) ^ flip}\n" for k, case in enumerate(cases))
            (root / f"{half}-{task}.csv").write_text("".join(lines))
    return root


def counts(exams: ExamSet) -> dict[str, tuple[int, int]]:
    """split -> (exams, positive ones)."""
    at = {split: exams.labels[exams.positions(split)] for split in ("train", "val", "test")}
    return {split: (len(labels), int(labels.sum())) for split, labels in at.items()}


def splits_of(exams: ExamSet) -> dict[str, str]:
    return dict(zip(exams.table["exam"], exams.table["split"], strict=True))


def test_mrnet(mrnet):
    exams = load_mrnet(mrnet)
    assert (exams.name, exams.task, exams.plane, exams.synthetic) == ("mrnet", "acl", "sagittal", False)
    # A tenth of 8 torn and of 32 whole exams, halves up, at least one: 1 + 3.
    assert counts(exams) == {"train": (36, 7), "val": (4, 1), "test": (10, 4)}
    assert list(exams.table["exam"].iloc[[0, 40]]) == ["train/0000", "valid/0040"]
    assert exams.table["file"].iloc[40] == "valid/sagittal/0040.npy"
    for i in (0, 7, 49):
        frames = exams.frames(i)
        assert isinstance(frames, np.memmap)
        assert not frames.flags.writeable
        np.testing.assert_array_equal(frames, knee(i))
        assert exams.table["frame_count"].iloc[i] == len(knee(i))
        assert exams.statistics(i) == pytest.approx((knee(i).mean(), knee(i).std()), rel=1e-12)
    for split in ("train", "val", "test"):
        require_both_classes(exams, split)


def test_planes_share_a_split_that_depends_on_the_seed(mrnet):
    one = load_mrnet(mrnet)
    assert splits_of(load_mrnet(mrnet, plane="coronal")) == splits_of(one)
    assert splits_of(load_mrnet(mrnet, split_seed=1)) != splits_of(one)
    (mrnet / "train/sagittal/0009.npy").unlink()
    (mrnet / "train-acl.csv").write_text((mrnet / "train-acl.csv").read_text().replace("0009,0\n", ""))
    assert "train/0009" not in splits_of(load_mrnet(mrnet))


def test_without_a_task_nothing_is_labelled_or_held_out(mrnet):
    for file in mrnet.glob("*.csv"):
        file.unlink()
    exams = load_mrnet(mrnet, task=None)
    assert set(exams.labels) == {-1}
    assert [len(exams.positions(split)) for split in ("train", "val", "test")] == [40, 0, 10]
    with pytest.raises(UserError, match="40 exams, all without label"):
        require_both_classes(exams, "train")


def test_the_same_number_in_both_halves(mrnet):
    np.save(mrnet / "valid/sagittal/0000.npy", knee(60))
    with open(mrnet / "valid-acl.csv", "a") as stream:
        stream.write("0000,1\n")
    exams = load_mrnet(mrnet)
    splits = splits_of(exams)
    assert splits["valid/0000"] == "test"
    assert splits["train/0000"] != "test"
    np.testing.assert_array_equal(exams.frames(list(exams.table["exam"]).index("valid/0000")), knee(60))


def test_partial_copies(mrnet, caplog):
    whole = splits_of(load_mrnet(mrnet))
    for file in (mrnet / "valid/sagittal").iterdir():
        file.unlink()
    for case in range(15, 40):
        (mrnet / f"train/sagittal/{case:04d}.npy").unlink()
    np.save(mrnet / "train/sagittal/0077.npy", knee(77))
    with caplog.at_level(logging.INFO, "fewslice"):
        exams = load_mrnet(mrnet)
    messages = " | ".join(record.getMessage() for record in caplog.records)
    assert "a partial copy, 16 of the 40 exams in train-acl.csv" in messages
    assert "files without a row in train-acl.csv are left out: 1" in messages
    assert "no valid exams of plane sagittal with a label of acl" in messages
    # The exams that are there keep the split they have in the whole copy.
    assert splits_of(exams) == {name: whole[name] for name in splits_of(exams)}
    assert len(exams) == 15
    with pytest.raises(UserError, match=r"the test split of mrnet acl sagittal in .* has no exams"):
        require_both_classes(exams, "test")


def test_statistics_come_from_the_cache(mrnet, monkeypatch):
    first = load_mrnet(mrnet)
    monkeypatch.setattr(data.readers.exams, "exam_statistics", lambda *_: pytest.fail("read again"))
    again = load_mrnet(mrnet, split_seed=5)
    assert again.key == first.key
    assert again.table["std"].tolist() == first.table["std"].tolist()


def test_a_changed_file_is_checked_again(mrnet):
    first = load_mrnet(mrnet)
    np.save(mrnet / "train/sagittal/0003.npy", knee(99))
    os.utime(mrnet / "train/sagittal/0003.npy", ns=(1, 1))
    again = load_mrnet(mrnet)
    assert again.key != first.key
    assert again.statistics(3) == pytest.approx((knee(99).mean(), knee(99).std()))


def test_the_demonstration(mrnet, monkeypatch):
    monkeypatch.setattr("data.phantoms.knee.demo_knee_root", lambda: mrnet)
    mark_synthetic(mrnet)
    exams = open_exams(with_demo_data(MrnetSource()), labelled=True)
    assert (exams.root, exams.task, exams.synthetic) == (mrnet, "acl", True)
    assert open_exams(MrnetSource(data_root=mrnet, plane="coronal"), labelled=False).task == ""


def test_a_copy_for_a_worker_process(mrnet):
    exams = load_mrnet(mrnet)
    copy = pickle.loads(pickle.dumps(exams))
    np.testing.assert_array_equal(copy.frames(4), knee(4))


def test_stratified_draw():
    labels = {f"e{k}": int(k < 208) for k in range(1130)}
    drawn = stratified_draw(labels, 0.1, 0)
    assert (len(drawn), sum(labels[name] for name in drawn)) == (113, 21)  # of MRNet: 20.8 and 92.2
    assert stratified_draw(dict(reversed(labels.items())), 0.1, 0) == drawn
    assert stratified_draw({"a": 1, "b": 0, "c": 0}, 0.1, 0) <= {"b", "c"}  # the only positive trains


def test_labels_from_a_spreadsheet(tmp_path):
    (tmp_path / "train-acl.csv").write_text("\ufeff0,1\r\n17, 0\r\n\r\nleft-3,1\r\n", encoding="utf-8")
    assert read_labels_csv(tmp_path / "train-acl.csv") == {"0000": 1, "0017": 0, "left-3": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0041,2", r"train-acl.csv, line 41: the label '2' of exam 0041 is not 0 or 1: correct it"),
        ("case,label", r"line 41: the label 'label' of exam case is not 0 or 1.*no header line"),
        ("0041,1.5", r"the label '1.5'"),
        ("0041,", r"the label ''"),
        ("0041", r"line 41: '0041' is not a case and its label, like 0042,1"),
        ("0003,1", r"line 41: exam 0003 comes a second time"),
        ("0041,1", r"names exam 0041, but .*0041.npy is missing: copy it, or remove the row"),
        ("0041,1\n0042,1", r"names exam 0041 \(and 1 more\)"),
    ],
)
def test_bad_csv(mrnet, line, message):
    with open(mrnet / "train-acl.csv", "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=message):
        load_mrnet(mrnet)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def npy(**arrays: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((6, 5), np.uint8), r"0003.npy has the shape \(6, 5\): three axes \(frames, rows, columns\)"),
        (np.zeros((4, 6, 5, 3), np.uint8), r"has the shape \(4, 6, 5, 3\)"),
        (np.zeros((0, 6, 5), np.uint8), r"has 0 frames of 6 x 5 pixels: an exam needs at least 2"),
        (np.ones((1, 6, 5), np.uint8), r"has 1 frame of 6 x 5 pixels"),
        (np.full((4, 6, 5), 7, np.uint8), r"has the value 7 everywhere"),
        (np.array([Trap()], object), r"0003.npy holds Python objects, which would run code when read"),
        (np.zeros((4, 6, 5), complex), r"numbers of type complex128"),
        (np.where(np.arange(120).reshape(4, 6, 5) == 70, np.nan, 1), r"0003.npy holds NaN or infinite values"),
        (np.where(np.arange(120).reshape(4, 6, 5) == 70, -np.inf, 1), r"infinite values \(frame 2\)"),
        (b"", r"cannot be read \(no data\)"),
        (pickle.dumps({"frames": 3}), r"holds Python objects"),
        (npy(a=np.ones(3)), r"is an .npz archive"),
    ],
)
def test_bad_array(mrnet, content, message):
    file = mrnet / "train/sagittal/0003.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    with pytest.raises(UserError, match=message):
        load_mrnet(mrnet)
    with pytest.raises(UserError, match=message):
        read_exam(file)


def test_a_file_cut_short(mrnet):
    file = mrnet / "train/sagittal/0003.npy"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"0003.npy cannot be read \(mmap length .*copy it again"):
        load_mrnet(mrnet)


def test_several_bad_arrays_are_counted(mrnet):
    for case in (3, 5):
        np.save(mrnet / f"train/sagittal/{case:04d}.npy", np.full((4, 6, 5), np.nan))
    with pytest.raises(UserError, match=r"0003.npy.*\(and 1 more\)"):
        load_mrnet(mrnet)


def test_wrong_choices(mrnet, tmp_path):
    with pytest.raises(UserError, match=r"the plane 'axial' does not exist in .*: choose coronal, sagittal"):
        load_mrnet(mrnet, plane="axial")
    with pytest.raises(UserError, match=r"the task 'cartilage' does not exist in .*: choose acl, meniscus"):
        load_mrnet(mrnet, task="cartilage")
    with pytest.raises(UserError, match="is not a folder"):
        load_mrnet(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no train/PLANE/NNNN.npy"):
        load_mrnet(tmp_path / "empty")
    with pytest.raises(UserError, match="--split-seed -1"):
        open_exams(MrnetSource(data_root=mrnet, split_seed=-1), labelled=True)
    for file in mrnet.glob("*.csv"):
        file.unlink()
    with pytest.raises(UserError, match=r"holds no train-TASK.csv"):
        index_mrnet(mrnet, "acl", "sagittal")


def test_one_class_in_a_split(mrnet):
    (mrnet / "valid-acl.csv").write_text("".join(f"{case:04d},0\n" for case in range(40, 50)))
    exams = load_mrnet(mrnet)
    require_both_classes(exams, "train")
    with pytest.raises(UserError, match=r"the test split of mrnet acl sagittal in .* has 10 exams, all labelled 0"):
        require_both_classes(exams, "test")


# --- exams named by a csv


def volume(frames: int = 1, slices: int = 4, seed: int = 0) -> np.ndarray:
    """(X, Y, Z[, T]) int16."""
    values = np.random.default_rng(seed).integers(-5, 900, (7, 6, slices, frames)).astype(np.int16)
    return values if frames > 1 else values[..., 0]


def nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.eye(4))
    image.header.set_zooms((1.5, 1.5, 8.0, 1.0)[: values.ndim])
    image.to_filename(path)


@pytest.fixture
def cines(tmp_path) -> Path:
    """Twenty subjects with a volume and a cine each; the first eight are dilated."""
    root = tmp_path / "hearts"
    lines = ["path,label"]
    for k in range(20):
        nifti(root / f"p{k:02d}/scan.nii.gz", volume(1, 4, k))
        nifti(root / f"p{k:02d}/cine.nii.gz", volume(5, 3, 100 + k))
        lines += [f"p{k:02d}/{name}.nii.gz,{int(k < 8)}" for name in ("scan", "cine")]
    (root / "dilated.csv").write_text("\n".join(lines) + "\n")
    return root


def test_volumes_and_cines(cines):
    exams = load_exams(cines, labels=cines / "dilated.csv", subject_pattern=r"p\d+")
    assert (exams.task, exams.plane, len(exams)) == ("dilated", "", 40)
    # Subjects: 20 % of 8 and 12 test (2 + 2), then 12.5 % of 6 and 10 validate (1 + 1); two exams each.
    assert counts(exams) == {"train": (28, 10), "val": (4, 2), "test": (8, 4)}
    for k in (0, 11):
        scan, cine = exams.frames(2 * k), exams.frames(2 * k + 1)
        np.testing.assert_array_equal(scan, volume(1, 4, k).T)  # its slices
        np.testing.assert_array_equal(cine, volume(5, 3, 100 + k)[:, :, 1].T)  # the middle slice in time
        assert not cine.flags.writeable
        for i, frames in ((2 * k, scan), (2 * k + 1, cine)):
            assert exams.statistics(i) == pytest.approx((frames.mean(), frames.std()), rel=1e-9)
            alone, statistics = read_exam(cines / exams.table["file"].iloc[i])
            np.testing.assert_array_equal(alone, frames)
            assert statistics == pytest.approx(exams.statistics(i), rel=1e-9)
    assert exams.table["frame_count"].tolist() == [4, 5] * 20
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(exams)).frames(3), exams.frames(3))


def test_every_file_is_decoded_once(cines, monkeypatch):
    load_exams(cines, labels=cines / "dilated.csv")
    monkeypatch.setattr("data.store.read_volume", lambda _: pytest.fail("decoded again"))
    load_exams(cines, labels=cines / "dilated.csv", split_seed=4)


def test_the_split_and_subject_columns(cines, tmp_path):
    table = tmp_path / "mine.csv"
    rows = [f"p{k:02d}/scan.nii.gz,{k % 2},{'test' if k >= 14 else 'train'},s{k // 2}" for k in range(20)]
    table.write_text("path, label, split, subject\n" + "\n".join(rows))
    exams = load_exams(cines, labels=table)  # the paths are below --data-root, the csv is elsewhere
    splits = exams.table["split"].tolist()
    assert splits[14:] == ["test"] * 6
    assert splits[:14].count("val") == 2  # one subject (two exams) of the seven, none named val
    assert exams.table["subject"].tolist() == [f"s{k // 2}" for k in range(20)]
    table.write_text("path,label,split,subject\np00/scan.nii.gz,0,train,a\np01/scan.nii.gz,1,test,a\n")
    with pytest.raises(UserError, match=r"subject a is in two splits, train \(p00.*and test \(p01"):
        load_exams(cines, labels=table)


def test_paths_beside_the_csv(cines):
    alone = open_exams(ExamsSource(labels=cines / "dilated.csv"), labelled=True)
    assert alone.root == cines
    assert alone.table["file"].iloc[0] == "p00/scan.nii.gz"
    elsewhere = load_exams(cines / "p00", labels=cines / "dilated.csv")
    np.testing.assert_array_equal(elsewhere.frames(4), alone.frames(4))


def test_unlabelled_exams(cines):
    nifti(cines / "p00/scan_gt.nii.gz", volume(1, 4))
    exams = load_exams(cines)
    assert len(exams) == 40
    assert (set(exams.labels), set(exams.table["split"])) == ({-1}, {"train"})
    with pytest.raises(UserError, match="--dataset exams needs --labels"):
        with_demo_data(ExamsSource())
    with pytest.raises(UserError, match="columns path,label"):
        open_exams(ExamsSource(data_root=cines), labelled=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\np99/scan.nii.gz,1\n", r"line 2: the exam 'p99/scan.nii.gz' is neither below"),
        ("path,label\n,1\n", r"line 2: the exam '' is neither below"),
        ("path,label\np00/scan.nii.gz,yes\n", r"line 2: the label 'yes' of exam p00/scan.nii.gz is not 0 or 1"),
        ("path,label\np00/scan.nii.gz\n", r"the label ''"),
        ("path,label,split\np00/scan.nii.gz,1,dev\n", r"the split 'dev' of exam .*: choose train, val, test"),
        ("path,label,subject\np00/scan.nii.gz,1,\n", r"exam p00/scan.nii.gz has no subject"),
        ("path,label\np00/scan.nii.gz,1\np00/scan.nii.gz,1\n", r"names exam p00/scan.nii.gz more than once"),
        ("p00/scan.nii.gz,1\n", r"has the columns p00/scan.nii.gz, 1: path and label must be among them"),
        ("", r"has the columns none"),
        ("path,label\n", r"names no exams"),
        (b"path,label\n\xff\xfe,1\n", r"is not text in UTF-8 \(line 2\)"),
    ],
)
def test_bad_exam_csv(cines, content, message):
    file = cines / "dilated.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load_exams(cines, labels=file)


def test_bad_exam_files(cines):
    with pytest.raises(UserError, match=r"nowhere.csv cannot be opened \(No such file"):
        load_exams(cines, labels=cines / "nowhere.csv")
    nifti(cines / "p00/scan.nii.gz", volume(1, 1))
    with pytest.raises(UserError, match=r"scan.nii.gz has 1 frame of shape \(7, 6, 1\): an exam needs at least 2"):
        load_exams(cines, labels=cines / "dilated.csv")
    nifti(cines / "p00/scan.nii.gz", np.full((7, 6, 4), np.nan, np.float32))
    with pytest.raises(UserError, match=r"p00/scan.nii.gz holds NaN or infinite values"):
        load_exams(cines, labels=cines / "dilated.csv")
    (cines / "p00/scan.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"p00/scan.nii.gz cannot be read"):
        load_exams(cines, labels=cines / "dilated.csv")
    (cines / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes.txt is no exam: expected .npy"):
        read_exam(cines / "notes.txt")
