"""No initial weights that were trained on validation or test subjects, and no split that forgets what a pool holds."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import make_study
from PIL import Image

import segment.training
from classify.config import ClassifyConfig
from classify.training import prepare
from core.errors import UserError
from core.subjects import SubjectRecord
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.leakage import check_leakage, record_splits, record_subjects
from data.readers.exams import load_mrnet
from data.reserved_split import keep_reserved_split, reserve_split, with_splits
from data.slices import Dataset, load_dataset
from data.sources import AcdcSource, FolderSource, MrnetSource, open_exams
from data.splits import SplitTable
from encoders.build import build_encoder
from encoders.card import read_lineage
from encoders.weights import load_weights, save_encoder
from pretrain.sources import natural_images
from segment.config import SegmentConfig
from sweep.report.study_folder import Facts, warnings_of
from sweep.report.summary import caveats
from sweep.study.grid import plan
from sweep.study.leakage import check_study


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, np.diag([1.5, 1.5, 8, 1])).to_filename(path)


def cohort(root: Path, names: list[str], *, seed: int = 0, labelled: int | None = None) -> Path:
    """A folder with an image of its own for each name and seed; the first `labelled` names have label maps."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        values = np.random.default_rng((seed, k)).integers(0, 900, (20, 18, 3)).astype(np.int16)
        write(root / f"images/{name}.nii.gz", values)
        if labelled is None or k < labelled:
            write(root / f"labels/{name}.nii.gz", (values > 600).astype(np.uint8))
    return root


CASES = [f"case{k}" for k in range(6)]
SPLITS = {"train": CASES[:3], "val": CASES[3:4], "test": CASES[4:]}


def opened(root: Path, splits: dict[str, list[str]] = SPLITS) -> Dataset:
    (root / "splits.json").write_text(json.dumps(splits))
    return load_dataset("folder", root)


def stage(data: SplitTable, *subjects: str, use: str = "pool") -> dict:
    return {"stage": "specialist", "subjects": record_subjects(data, {use: subjects})}


def refused(data: SplitTable, *stages: dict) -> str:
    with pytest.raises(UserError) as error:
        check_leakage(data, stages, "enc", allow=False)
    return str(error.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return opened(cohort(tmp_path_factory.mktemp("data"), CASES))


def test_a_pool_of_training_subjects_is_no_leak(data):
    assert check_leakage(data, [stage(data, *CASES[:3])], "enc", allow=False) is None


@pytest.mark.parametrize(
    ("pool", "count"),
    [(CASES[3:4], "1 validation subject"), (CASES[4:], "2 test subjects"), (CASES, "1 validation and 2 test subjects")],
)
def test_a_pool_with_scored_subjects_is_refused(data, pool, count):
    message = refused(data, stage(data, *pool))
    assert f"--init enc was trained on {count} of this data set" in message
    assert "--allow-leakage" in message


def test_a_leak_in_the_first_of_two_stages_is_refused(data):
    first, second = stage(data, "case5"), stage(data, "case0", "case1")
    assert "1 test subject " in refused(data, first, second)
    assert "1 test subject " in refused(data, {"stage": "generalist"}, second, first)


def test_leakage_that_is_allowed_is_stated(data, caplog):
    caplog.set_level("INFO", logger="fewslice")
    sentence = check_leakage(data, [stage(data, "case5")], "enc", allow=True)
    assert sentence == "scores may be too high: the initial weights were trained on 1 test subject of this data set"
    assert "scores may be too high" in caplog.text


@pytest.mark.parametrize(
    ("use", "subject", "leaks"),
    [
        *(("train", "case3", True), ("train", "case4", True), ("val", "case4", True)),
        *(("val", "case3", False), ("test", "case4", False), ("test", "case3", False)),
    ],
)
def test_subjects_of_a_trained_model_count(data, use, subject, leaks):
    """Its validation subjects chose its weights; weights that were only scored on a subject know nothing of it."""
    stages = [stage(data, subject, use=use)]
    assert leaks == (check_leakage(data, stages, "enc", allow=True) is not None)


def test_renamed_images_are_found(data, tmp_path):
    renamed = opened(cohort(tmp_path, [f"p{k}" for k in range(6)]), {"train": [f"p{k}" for k in range(6)]})
    assert "1 test subject " in refused(data, stage(renamed, "p5"))


def test_single_slices_of_a_volume_are_found(data, tmp_path):
    for k in range(6):
        values = np.asarray(nib.load(data.root / f"images/case{k}.nii.gz").dataobj)[:, :, 1]
        Image.fromarray(np.ascontiguousarray(values.T).astype(np.uint16)).save(tmp_path / f"export{k}.png")
    exports = load_dataset("folder", tmp_path)
    assert "1 validation subject " in refused(data, stage(exports, "export3"))


def test_scans_in_a_folder_of_natural_images_are_found(data, tmp_path):
    for k, name in enumerate(("photo", "scan")):
        source = np.asarray(nib.load(data.root / f"images/case{k + 3}.nii.gz").dataobj)[:, :, 1].T
        values = source if name == "scan" else source[::-1]
        Image.fromarray(np.ascontiguousarray(values).astype(np.uint16)).save(tmp_path / f"{name}.png")
    augmenters = (Augmenter(Augmentation(), 32),) * 2
    images = natural_images(str(tmp_path), "test_resnet", augmenters, 1, 0)
    assert "1 test subject " in refused(data, {"stage": "generalist", "subjects": images.subjects})
    assert natural_images("procedural", "test_resnet", augmenters, 1, 0).subjects is None


def test_equal_names_of_another_cohort_are_no_leak_but_are_said(data, tmp_path, caplog):
    other = opened(cohort(tmp_path, CASES, seed=1))
    assert check_leakage(data, [stage(other, *CASES)], "enc", allow=False) is None
    assert "3 validation and test subjects have names of subjects that enc was trained on" in caplog.text


def test_another_image_of_a_subject_counts_within_one_cohort(data, tmp_path):
    """A second visit: other images, the same names, and some images in common."""
    later = cohort(tmp_path, CASES)
    write(later / "images/case5.nii.gz", np.random.default_rng(99).integers(0, 9, (20, 18, 3)).astype(np.int16))
    assert "1 test subject " in refused(data, stage(opened(later), "case0", "case5"))


def test_subjects_without_labels_are_not_scored(tmp_path):
    data = opened(cohort(tmp_path, CASES, labelled=5))
    assert check_leakage(data, [stage(data, "case5")], "enc", allow=False) is None


def test_unknown_subjects_are_said(data, caplog):
    caplog.set_level("INFO", logger="fewslice")
    for lineage in ([{"stage": "specialist", "data": {"name": "acdc"}}], [{"stage": "foreign", "source": "x.pth"}]):
        caplog.clear()
        assert check_leakage(data, lineage, "enc", allow=False) is None
        assert caplog.text.count("leakage cannot be checked") == 1
    caplog.clear()
    assert check_leakage(data, [{"stage": "generalist"}], "enc", allow=False) is None
    assert not caplog.text


@pytest.mark.parametrize("damage", [{"salt": 1}, {"subjects": ["x"]}, {"images": {"pool": 3}}, "text"])
def test_a_damaged_record_is_a_sentence(data, damage):
    entry = stage(data, "case0")
    entry["subjects"] = {**entry["subjects"], **damage} if isinstance(damage, dict) else damage
    assert "record of subjects in the card of enc is damaged" in refused(data, entry)


def test_slices_that_a_network_saw_without_labels_count_as_seen(data):
    """case1 was in the pool of unlabelled slices of a run that is now an initial network, and validates here."""
    train, pool = (np.flatnonzero(data.table["subject"] == name) for name in ("case0", "case1"))
    entry = {"stage": "supervised", "subjects": record_splits(data, train, pool)}
    assert "trained on 1 validation" in refused(with_splits(data, data.splits | {"case1": "val"}), entry)


def test_records_name_nobody_and_repeat(data):
    record = record_splits(data, np.array([0]))
    assert record == record_splits(data, np.array([0]))
    text = json.dumps(record)
    assert "case" not in text
    assert str(data.root) not in text
    assert [len(text.split()) for text in SubjectRecord(**record).subjects.values()] == [1, 1, 2]


def test_the_lineage_of_files(tmp_path, data):
    """An encoder's own stages; those of a model and, as the last, its own training."""
    entry = stage(data, "case5")
    encoder = build_encoder("test_resnet")
    about = {"name": "test_resnet", "in_channels": 1, "norm": "batch", "network": "target", "normalisation": {}}
    save_encoder(encoder, tmp_path, lineage=[entry], **about)
    assert read_lineage(tmp_path) == read_lineage(tmp_path / "encoder.safetensors") == [entry]
    for name in ("random", "imagenet", "kinetics", str(tmp_path / "absent.pth")):
        assert read_lineage(name) == []

    (tmp_path / "run").mkdir()
    (tmp_path / "encoder.safetensors").rename(tmp_path / "run/model.safetensors")
    record = record_subjects(data, {"train": ["case4"]})
    card = {"dataset": "folder 1", "lineage": [entry], "subjects": record, "encoder": "test_resnet"}
    (tmp_path / "run/model.json").write_text(json.dumps(card))
    model = tmp_path / "run/model.safetensors"
    assert [each["stage"] for each in read_lineage(model)] == ["specialist", "supervised"]
    assert load_weights(encoder, model, name="test_resnet", in_channels=1).lineage == read_lineage(model)
    assert "2 test subjects" in refused(data, *read_lineage(model))
    (tmp_path / "run/model.json").write_text("[]")
    with pytest.raises(UserError, match=r"model\.json is not the card of a model"):
        read_lineage(model)


# the split that pretraining reserves

FOLDER = FolderSource()


def split_of(data: Dataset) -> dict[str, list[str]]:
    return {
        split: sorted(name for name, of in data.splits.items() if of == split) for split in ("train", "val", "test")
    }


def test_three_labelled_subjects_are_split_as_ever(tmp_path):
    data = load_dataset("folder", cohort(tmp_path, CASES, labelled=4))
    assert reserve_split(data, FOLDER) is data


@pytest.mark.parametrize("labelled", [0, 1, 2])
def test_few_labels_reserve_subjects_to_be_labelled_later(tmp_path, labelled, caplog):
    caplog.set_level("INFO", logger="fewslice")
    names = [f"p{k:02d}" for k in range(20)]
    data = reserve_split(load_dataset("folder", cohort(tmp_path, names, labelled=labelled)), FOLDER)
    counts = {split: len(subjects) for split, subjects in split_of(data).items()}
    assert sum(counts.values()) == 20
    assert 1 <= counts["val"] <= 3
    assert 3 <= counts["test"] <= 4
    assert "reserved to be labelled later" in caplog.text
    if labelled == 2:  # both halves of a first run
        assert {data.splits["p00"], data.splits["p01"]} == {"train", "val"}


def test_test_images_stay_test_images(tmp_path):
    for name in ("imagesTr/a", "imagesTr/b", "imagesTr/c", "imagesTs/d", "imagesTs/e"):
        write(
            tmp_path / f"{name}.nii.gz", np.random.default_rng(sum(map(ord, name))).integers(0, 9, (8, 8, 2), np.uint8)
        )
    (tmp_path / "labelsTr").mkdir()
    splits = split_of(reserve_split(load_dataset("folder", tmp_path), FOLDER))
    assert splits["test"] == ["d", "e"]
    assert [len(splits[split]) for split in ("train", "val")] == [2, 1]


def test_a_split_that_the_user_chose_is_kept(tmp_path):
    data = opened(cohort(tmp_path / "a", CASES, labelled=0))
    assert reserve_split(data, FOLDER) is data
    data = load_dataset("folder", cohort(tmp_path / "b", CASES, labelled=0))
    assert reserve_split(data, replace(FOLDER, splits_file=tmp_path / "x.json")) is data


@pytest.mark.slow
def test_labels_that_come_later_move_no_pool_subject(tmp_path):
    names = [f"p{k:02d}" for k in range(20)]
    before = reserve_split(load_dataset("folder", cohort(tmp_path / "d", names, labelled=0)), FOLDER)
    run = tmp_path / "run"
    run.mkdir()
    (run / "splits.json").write_text(json.dumps(split_of(before)))
    entry = stage(before, *split_of(before)["train"])

    after = load_dataset("folder", cohort(tmp_path / "d", [*names, "new"]))  # all labelled, one more subject
    assert "of this data set" in refused(after, entry)
    for init in (run, run / "encoder.safetensors", run / "epoch-3"):
        kept = keep_reserved_split(after, FOLDER, str(init), same_data=True)
        assert kept.splits == before.splits | {"new": "train"}
        assert kept.store.table is kept.table
        assert check_leakage(kept, [entry], "enc", allow=False) is None
    more = load_dataset("folder", cohort(tmp_path / "e", [*names, "new"], labelled=0))  # no labels yet
    assert keep_reserved_split(more, FOLDER, str(run), same_data=True).splits == before.splits | {"new": "train"}
    assert keep_reserved_split(after, FOLDER, str(run), same_data=False) is after
    assert keep_reserved_split(after, replace(FOLDER, splits_file=Path("x")), str(run), same_data=True) is after


# MRNet


@pytest.mark.parametrize("plane", ["sagittal", "coronal"])
def test_the_pool_of_mrnet_leaves_out_the_inner_validation(tiny_knees, plane):
    pool = open_exams(MrnetSource(data_root=tiny_knees, plane=plane, split_seed=3), labelled=False)
    scored = load_mrnet(tiny_knees, plane=plane, split_seed=3)
    assert (pool.labels == -1).all()
    assert pool.splits == scored.splits
    assert len(pool.positions("val")) == 3
    other = load_mrnet(tiny_knees, plane=plane, split_seed=4)
    entry = {
        "stage": "specialist",
        "subjects": record_subjects(pool, {"pool": pool.table.loc[pool.positions("train"), "subject"]}),
    }
    assert check_leakage(scored, [entry], "enc", allow=False) is None
    assert "validation subjects" in refused(other, entry)
    across = load_mrnet(tiny_knees, plane={"sagittal": "coronal", "coronal": "sagittal"}[plane], split_seed=4)
    assert "validation subjects" in refused(across, entry)  # other images of the same knees


def test_exams_without_a_label_are_in_the_pool(tiny_knees, tmp_path):
    root = tmp_path / "knees"
    (root / "train").mkdir(parents=True)
    (root / "train/sagittal").symlink_to(tiny_knees / "train/sagittal")
    rows = (tiny_knees / "train-acl.csv").read_text().splitlines()
    (root / "train-acl.csv").write_text("\n".join(rows[5:]))
    pool = open_exams(MrnetSource(data_root=root), labelled=False)
    assert len(pool) == 30
    assert {"train/0000", "train/0004"} <= {*pool.table.loc[pool.positions("train"), "subject"]}
    (root / "train-acl.csv").unlink()
    assert len(open_exams(MrnetSource(data_root=root), labelled=False).positions("train")) == 30


# commands


def leaky_encoder(folder: Path, *stages: dict) -> str:
    about = {"name": "test_resnet", "in_channels": 1, "norm": "batch", "network": "target", "normalisation": {}}
    return str(save_encoder(build_encoder("test_resnet"), folder, lineage=list(stages), **about))


@pytest.mark.slow
def test_segment_refuses_a_leak_before_it_writes(tiny_acdc, tmp_path):
    data = load_dataset("acdc", tiny_acdc)
    init = leaky_encoder(tmp_path / "enc", stage(data, "patient001"), stage(data, "patient003"))
    cfg = SegmentConfig(data=AcdcSource(data_root=tiny_acdc), out=tmp_path / "run", init=init, encoder="test_resnet")
    with pytest.raises(UserError, match="was trained on 1 test subject of this data set"):
        segment.training.run(replace(cfg, device="cpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_classify_refuses_a_leak_before_it_writes(tiny_knees, tmp_path):
    exams = load_mrnet(tiny_knees)
    test, train = (exams.table["subject"].iloc[exams.positions(split)[0]] for split in ("test", "train"))
    init = leaky_encoder(tmp_path / "enc", stage(exams, test), stage(exams, train))
    cfg = ClassifyConfig(data=MrnetSource(data_root=tiny_knees), init=init, encoder="test_resnet", image_size=32)
    with pytest.raises(UserError, match="was trained on 1 test subject of this data set"):
        prepare(cfg)
    card = prepare(replace(cfg, allow_leakage=True))[2]
    (warning,) = card.warnings
    assert "the initial weights were trained on 1 test subject of this data set" in warning
    assert str(tmp_path) not in card.model_dump_json()
    assert "train/0" not in card.model_dump_json()


def test_a_reserved_split_without_labels_says_whom_to_label(tmp_path):
    data = opened(cohort(tmp_path, CASES, labelled=3))
    with pytest.raises(UserError, match=r"label a val subject, e\.g\. case3 of the 1 that have no labels yet"):
        segment.training._require_labels(data, ("val",))


# studies


def test_a_study_on_a_leak_is_refused_before_it_starts(tiny_acdc, tmp_path):
    def check(**settings):
        cfg = replace(make_study(tiny_acdc, tmp_path / "study"), **settings)
        check_study(cfg, plan(cfg, 24))

    check()
    everyone = replace(make_study(tiny_acdc, tmp_path).pretrain, unlabelled_splits="all")
    with pytest.raises(UserError, match=r"--pretrain.unlabelled-splits all .*--allow-leakage"):
        check(pretrain=everyone)
    check(pretrain=everyone, allow_leakage=True)
    check(pretrain=everyone, pipelines=("random", "generalist"))

    data = load_dataset("acdc", tiny_acdc)
    leaky_encoder(tmp_path / "enc", stage(data, "patient001"))
    ready = (f"hierarchical={tmp_path / 'enc'}", "random")
    with pytest.raises(UserError, match="trained on 1 test subject "):
        check(pipelines=ready)
    check(pipelines=ready, allow_leakage=True)
    assert not (tmp_path / "study").exists()


def test_the_report_states_leakage_that_was_allowed():
    results = pd.DataFrame(
        {"pipeline": ["random", "specialist", "specialist"], "warnings": [np.nan, "scores may", "scores may"]}
    )
    assert warnings_of(results) == ["Scores may (specialist)."]
    assert warnings_of(results.drop(columns="warnings")) == []
    facts = {"pipelines": ("random",), "score": "Dice", "unit": "slices", "split": "test", "unit_scored": "patients"}
    facts |= {"seeds": 5, "dataset": "d", "synthetic": False, "settings": "", "natural_image_starts": {}}
    assert caveats(Facts(**facts, warnings=["Scores may be too high."]))[0] == "Scores may be too high."


# end to end


@pytest.mark.slow
def test_pretrained_on_a_test_subject_through_one_and_two_stages(tmp_path):
    import pretrain.stages
    from pretrain.config import PretrainConfig

    root = cohort(tmp_path / "data", [f"p{k}" for k in range(8)])
    few = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "device": "cpu"}
    heads = {"projector_hidden": 8, "predictor_hidden": 8, "projection": 8, "stage": "specialist", "steps": 1}
    source = FolderSource(data_root=root)

    def pretrained(out: str, **settings) -> str:
        cfg = PretrainConfig(data=source, out=tmp_path / out, **{**few, **heads, **settings})
        return pretrain.stages.run(cfg)["encoder"]

    def fine_tuned(out: str, init: str, **settings) -> dict:
        steps = {"steps": 1, "evaluate_every": 1, "figures": False}
        return segment.training.run(
            SegmentConfig(data=source, out=tmp_path / out, init=init, **few, **steps, **settings)
        )

    leaky = pretrained("leaky", unlabelled_splits="all")
    chained = pretrained("chained", stage="hierarchical", generalist=leaky)
    for init in (leaky, chained):
        with pytest.raises(UserError, match="trained on 1 validation and 2 test subjects"):
            fine_tuned("refused", init)
    assert not (tmp_path / "refused").exists()
    result = fine_tuned("allowed", chained, allow_leakage=True)
    assert "trained on 1 validation and 2 test subjects" in result["warnings"][0]
    assert json.loads((tmp_path / "allowed/model.json").read_text())["warnings"] == result["warnings"]

    clean = pretrained("clean")
    assert fine_tuned("first", clean)["warnings"] == []
    model = tmp_path / "first/model.safetensors"
    assert fine_tuned("second", str(model))["warnings"] == []  # a model as the start of another, on its split
    for name in ("clean/encoder.json", "first/model.json", "second/model.json", "second/result.json"):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in json.dumps({**json.loads(text), "init": ""})
        assert '"p0"' not in text
    assert str(tmp_path) not in (tmp_path / "second/model.json").read_text()
