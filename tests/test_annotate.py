"""Choosing what to label, and bringing labels back."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import run_module

from annotate import collect, first
from annotate import next as following
from annotate.plan import read_plan, write_plan
from core.errors import UserError
from core.files import write_json
from core.text import read_json
from data.labelled_list import with_labelled_list
from data.phantoms.cardiac import write_acdc
from data.sources import AcdcSource, FolderSource, open_slices
from data.splits import save_splits
from engine.config import saved
from pretrain.config import PretrainConfig
from segment.choice import foreground_aware, sharpness_of, spread_slices, typical_subjects, uncertain_slices
from segment.config import SegmentConfig, demo
from segment.training import run as segment


def test_subjects_are_typical_of_their_clusters():
    cross = np.array([[0.1, 0], [-0.1, 0], [0, 0], [0, 0.1], [0, -0.1]])  # the third lies in the middle
    features = np.concatenate([cross, 3 + cross[:4], [[9, -9]]])
    chosen = typical_subjects(features, 3)
    assert [k for k, _ in chosen] == [2, 7, 9]  # larger clusters first
    assert chosen[0][1] == "most typical of 5 alike subjects"
    assert chosen[2][1] == "unlike all other subjects"
    assert sorted(k for k, _ in typical_subjects(features, 99)) == list(range(10))


def test_a_third_of_foreground_aware_draws_are_among_the_foreground():
    has_foreground = np.arange(3000) % 10 == 0
    chosen = foreground_aware(has_foreground, 600, seed=1)
    assert len({*chosen}) == 600
    assert foreground_aware(has_foreground, 50, seed=1) == chosen[:50]  # nested
    assert has_foreground[chosen[:300]].mean() == pytest.approx(1 / 3 + 2 / 3 / 10, abs=0.08)
    assert sorted(foreground_aware(has_foreground[:12], 99)) == [*range(12)]
    assert not foreground_aware(np.zeros(5, bool), 2)[2:]


def test_slices_of_a_volume_begin_in_the_middle_and_spread():
    features = np.array([[0.0], [1.0], [5.0], [5.1], [5.2], [20.0]])
    assert [k for k, _ in spread_slices(features, 4)] == [3, 5, 0, 1]
    assert sorted(k for k, _ in spread_slices(features, 99)) == list(range(6))
    assert spread_slices(features[:0], 2) == []


def test_uncertain_slices_are_stratified_over_classes_and_places():
    entropy = np.array([[0.5, 0.9, np.nan], [0.4, 0.8, 0.2], [0.3, 0.1, 0.7], [0.2, np.nan, np.nan], [0.9, 0.85, 0.1]])
    chosen = uncertain_slices(entropy, ["a", "b", "c", "d", "a"], 4, sharpness=1e9, seed=0)
    assert chosen == [(0, 1), (2, 2), (1, 1), (3, 0)]  # 66 % class by class; not 4, whose place is taken
    assert len(uncertain_slices(entropy, ["a"] * 5, 4, 1e9, 0)) == 1
    noisy = [uncertain_slices(entropy, range(5), 1, sharpness_of(1, 5), seed)[0][0] for seed in range(30)]
    assert len(set(noisy)) > 2  # the first round explores
    assert (sharpness_of(1, 5), sharpness_of(5, 5)) == (1, pytest.approx(100))


@pytest.fixture
def unlabelled(tiny_acdc, tmp_path) -> Path:
    """The tiny heart scans without the label maps of the training subjects."""
    return without_training_labels(tiny_acdc, tmp_path / "scans")


def without_training_labels(truth: Path, root: Path) -> Path:
    shutil.copytree(truth, root)
    for number in (3, 4, 5, 6):
        for file in root.glob(f"training/patient00{number}/*_gt.nii.gz"):
            file.unlink()
    return root


def draw(folder: Path, truth: Path) -> None:
    """Draw the masks of a plan as the reference has them, all slices of a volume."""
    for mask in sorted((folder / "masks").iterdir()):
        case = mask.name.removesuffix(".nii.gz")
        reference = nib.load(truth / f"training/{case[:10]}/{case}_gt.nii.gz")
        assert nib.load(mask).shape == reference.shape
        nib.Nifti1Image(np.asarray(reference.dataobj), reference.affine, reference.header).to_filename(mask)


def plan_first(root: Path, out: Path, **settings) -> pd.DataFrame:
    return first.run(first.First(data=AcdcSource(data_root=root), encoder="test_resnet", out=out, **settings))


@pytest.mark.slow
def test_a_first_plan_is_complete_and_a_labelled_list(unlabelled, tiny_acdc, tmp_path):
    table = plan_first(unlabelled, tmp_path / "plan", patients=2, slices=5)
    assert list(table["subject"].value_counts()) == [3, 2]
    assert {*table["subject"]} <= {f"patient00{n}" for n in (3, 4, 5, 6)}  # no validation or test subject
    assert table["why"].str.contains("middle of the volume").sum() == 2
    assert (tmp_path / "plan/contact_sheet.png").stat().st_size > 1000
    for case in {*table["case"]}:
        image, mask = (nib.load(tmp_path / "plan" / kind / f"{case}.nii.gz") for kind in ("images", "masks"))
        assert image.shape == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        assert not np.asarray(mask.dataobj).any()
    assert read_plan(tmp_path / "plan").splits["patient002"] == "val"
    labelled = with_labelled_list(open_slices(AcdcSource(data_root=tiny_acdc)), tmp_path / "plan/plan.csv")
    keys = ["subject", "file", "frame", "slice"]
    listed = labelled.table.iloc[labelled.positions("train", labelled=True)][keys]
    assert {*listed.itertuples(index=False, name=None)} == {*table[keys].itertuples(index=False, name=None)}
    with pytest.raises(UserError, match="exists and is not empty"):
        plan_first(unlabelled, tmp_path / "plan")
    with pytest.raises(UserError, match="is still empty in the slices"):
        collect.run(collect.Collect(plan=(tmp_path / "plan",), out=tmp_path / "data"))
    with pytest.raises(UserError, match=r"holds no plan\.csv"):
        collect.run(collect.Collect(plan=(tmp_path,), out=tmp_path / "data"))


def with_official_patient(root: Path) -> None:
    """Add a labelled patient of the official test set."""
    for file in sorted((root / "training/patient002").iterdir()):
        target = root / "testing/patient101" / file.name.replace("patient002", "patient101")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


@pytest.mark.slow
def test_what_a_protocol_leaves_out_is_neither_collected_nor_proposed(unlabelled, tiny_acdc, tmp_path):
    with_official_patient(unlabelled)
    plan_first(unlabelled, tmp_path / "plan", patients=1, slices=2)
    draw(tmp_path / "plan", tiny_acdc)
    collect.run(collect.Collect(plan=(tmp_path / "plan",), out=tmp_path / "data"))
    dataset = open_slices(FolderSource(data_root=tmp_path / "data"))
    assert sorted(dataset.splits) == [f"patient00{n}" for n in range(1, 7)]
    assert (tmp_path / "data/images/patient003_4d.nii.gz").exists()  # the whole cine

    run = tmp_path / "run"
    cfg = SegmentConfig(data=AcdcSource(data_root=unlabelled, test_set="official"), out=run)
    run.mkdir()
    write_json(run / "config.json", saved(cfg))
    write_json(run / "result.json", {})
    save_splits(run / "splits.json", open_slices(cfg.data).splits)
    splits = following._data_of(run)[0].splits
    assert (splits["patient001"], splits["patient101"]) == ("unused", "test")  # the paper's test patient must not train


def test_one_channel_of_files_with_several_is_collected(tmp_path):
    rng = np.random.default_rng(0)
    for subject in "abcd":
        (tmp_path / "scans" / subject).mkdir(parents=True)  # files of one name in folders of their own
        image = nib.Nifti1Image(rng.random((20, 18, 3, 2), np.float32), np.diag([1, 1, 8, 1]))
        image.to_filename(tmp_path / f"scans/{subject}/image.nii.gz")
    source = FolderSource(data_root=tmp_path / "scans", channels=1, subject_pattern="([a-d])/")
    table = first.run(first.First(data=source, encoder="test_resnet", patients=1, slices=1, out=tmp_path / "plan"))
    (case,) = table["case"]
    mask = nib.load(tmp_path / f"plan/masks/{case}.nii.gz")
    assert mask.shape == (20, 18, 3)
    nib.Nifti1Image(np.ones(mask.shape, np.uint8), mask.affine, mask.header).to_filename(mask.get_filename())
    settings = {"plan": (tmp_path / "plan",), "out": tmp_path / "data", "classes": ("organ",)}
    collected, pattern = collect.run(collect.Collect(**settings))
    assert len(collected) == 1
    dataset = open_slices(FolderSource(data_root=tmp_path / "data", subject_pattern=pattern), labelled=False)
    assert sorted(dataset.splits) == [*"abcd"]  # which the new names must say by themselves
    assert dataset.splits == read_plan(tmp_path / "plan").splits
    images = sorted((tmp_path / "data/images").iterdir())
    assert [file.name for file in images] == [f"{subject}__{subject}_image.nii.gz" for subject in "abcd"]
    for file in images:
        expected = nib.load(tmp_path / f"scans/{file.name[0]}/image.nii.gz").get_fdata()[..., 1]
        np.testing.assert_array_equal(nib.load(file).get_fdata(), expected)
    labels = np.asarray(nib.load(tmp_path / f"data/labels/{case[0]}__{case}.nii.gz").dataobj)
    assert sorted(labels[0, 0].tolist()) == [1, 255, 255]  # only the slice that was asked for


def test_a_plan_without_lines_is_refused(unlabelled, tmp_path):
    plan_first(unlabelled, tmp_path / "plan", patients=1, slices=1)
    lines = (tmp_path / "plan/plan.csv").read_text().splitlines()
    (tmp_path / "plan/plan.csv").write_text(lines[0] + "\n")
    with pytest.raises(UserError, match="lists no slice"):
        collect.run(collect.Collect(plan=(tmp_path / "plan",), out=tmp_path / "data"))


def collected(plan: Path, **settings) -> pd.DataFrame:
    """What `collect` makes of a plan, in a new folder beside it."""
    out = plan.with_name(f"{plan.name}-data{len([*plan.parent.glob('*-data*')])}")
    return collect.run(collect.Collect(plan=(plan,), out=out, **settings))[0]


def warnings_of(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def change(mask: Path, *slices: int, to: int) -> None:
    """Fill the same square of slices of a mask with one label."""
    image = nib.load(mask)
    values = np.array(image.dataobj)
    values[8:14, 8:14, list(slices)] = to
    nib.Nifti1Image(values, image.affine, image.header).to_filename(mask)


@pytest.fixture
def predrawn(unlabelled, tmp_path) -> Path:
    """A plan of three slices of one scan as `annotate next` writes it: in the first, the network found nothing."""
    source = AcdcSource(data_root=unlabelled)
    dataset = open_slices(source, labelled=False)
    scan = (dataset.table["file"] == "training/patient003/patient003_frame01.nii.gz").to_numpy()
    chosen = [
        (int(row), f"unsure of {what}")
        for row, what in zip(np.flatnonzero(scan), ("the slice", "LV", "RV"), strict=True)
    ]

    def drawn(row: int) -> np.ndarray:
        mask = np.zeros(dataset.store.image(row).shape, np.uint8)
        mask[5:12, 6:9] = 1 if row != chosen[0][0] else 0
        return mask

    classes = ("background", "RV", "MYO", "LV")
    write_plan(tmp_path / "plan", dataset, source, chosen, classes=classes, drawn=drawn)
    return tmp_path / "plan"


def test_masks_that_nobody_has_corrected_are_refused(predrawn, caplog):
    (mask,) = (predrawn / "masks").iterdir()
    sentence = (
        r"^{} of 3 listed slices are still exactly as the network drew them \({}; slices from 0.*--accept-unchanged"
    )
    with pytest.raises(UserError, match=sentence.format(3, rf"{mask} slice 0, {mask} slice 1, {mask} slice 2")):
        collected(predrawn)
    image = nib.load(mask)
    nib.Nifti1Image(np.array(image.dataobj, np.float32), image.affine).to_filename(mask)  # saved by another tool
    with pytest.raises(UserError, match=sentence.format(3, f"{mask} slice 0, .*")):
        collected(predrawn)
    assert len(collected(predrawn, accept_unchanged=True)) == 3
    change(mask, 0, 2, to=3)
    with pytest.raises(UserError, match=sentence.format(1, f"{mask} slice 1")):
        collected(predrawn)
    assert len(collected(predrawn, accept_unchanged=True)) == 3
    change(mask, 1, to=2)
    caplog.clear()
    assert len(collected(predrawn)) == 3
    assert not warnings_of(caplog)


def test_a_mask_that_was_emptied_is_corrected_and_named(predrawn, caplog):
    (mask,) = (predrawn / "masks").iterdir()
    image = nib.load(mask)
    nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_filename(mask)
    with pytest.raises(UserError, match=f"^1 of 3 listed slices are still exactly .*{mask} slice 0;"):  # empty before
        collected(predrawn)
    lines = (predrawn / "plan.csv").read_text().splitlines()
    (predrawn / "plan.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert len(collected(predrawn)) == 2
    (warning,) = warnings_of(caplog)
    assert warning.startswith(
        f"2 of 2 listed slices are empty and train as background ({mask} slice 1, {mask} slice 2;"
    )


def test_a_later_plan_corrects_what_an_earlier_one_left(predrawn, tmp_path):
    later = Path(shutil.copytree(predrawn, tmp_path / "later"))
    (mask,) = (later / "masks").iterdir()
    change(mask, 0, 1, 2, to=3)
    rows, _ = collect.run(collect.Collect(plan=(predrawn, later), out=tmp_path / "data"))
    assert len(rows) == 3
    with pytest.raises(UserError, match=r"^3 of 3 listed slices are still exactly"):
        collect.run(collect.Collect(plan=(later, predrawn), out=tmp_path / "data2"))


def test_a_plan_of_an_earlier_version_is_collected_with_a_warning(predrawn, caplog):
    about = read_json(predrawn / "plan.json")
    write_json(predrawn / "plan.json", {name: value for name, value in about.items() if name != "predrawn"})
    assert len(collected(predrawn)) == 3
    assert [message.partition(",")[0] for message in warnings_of(caplog)] == [
        f"{predrawn} is a plan of an earlier version",
        f"1 of 3 listed slices are empty and train as background ({next((predrawn / 'masks').iterdir())} slice 0; "
        "slices from 0",
    ]
    write_json(predrawn / "plan.json", about | {"predrawn": {"patient003_frame01": 3}})
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        collected(predrawn)


def test_slices_are_counted_as_the_plan_counts_them(unlabelled, tmp_path, caplog):
    table = plan_first(unlabelled, tmp_path / "plan", patients=1, slices=2)
    (mask,) = (tmp_path / "plan/masks").iterdir()
    listed, left_empty = table["slice"]
    (other, *_) = {0, 1, 2} - {listed, left_empty}
    with pytest.raises(
        UserError, match=r"is still empty in the slices .*--accept-unchanged if these slices hold nothing"
    ):
        collected(tmp_path / "plan")
    change(mask, listed, other, to=1)
    caplog.clear()
    assert {*collected(tmp_path / "plan")["slice"]} == {listed, left_empty}
    assert [message.partition(",")[0] for message in warnings_of(caplog)] == [
        f"{mask} is drawn in slice {other} (from 0",
        f"1 of 2 listed slices are empty and train as background ({mask} slice {left_empty}; slices from 0",
    ]
    added = f"\n{table['subject'][0]},{table['file'][0]},{table['frame'][0]},{other},{table['case'][0]},added\n"
    (tmp_path / "plan/plan.csv").write_text((tmp_path / "plan/plan.csv").read_text().strip() + added)
    caplog.clear()
    assert {*collected(tmp_path / "plan")["slice"]} == {listed, left_empty, other}
    assert "is drawn in" not in caplog.text


@pytest.mark.slow
def test_masks_without_any_label(unlabelled, tmp_path):
    plan_first(unlabelled, tmp_path / "plan", patients=1, slices=2, classes=("LV",))
    assert len(collected(tmp_path / "plan", accept_unchanged=True)) == 2
    plan_first(unlabelled, tmp_path / "nameless", patients=1, slices=1)
    write_json(
        tmp_path / "nameless/plan.json", read_json(tmp_path / "nameless/plan.json") | {"classes": ["background"]}
    )
    with pytest.raises(UserError, match=r"^the masks hold no label: draw one, or name the classes"):
        collected(tmp_path / "nameless", accept_unchanged=True)


def test_no_place_is_left_to_choose(unlabelled, tmp_path):
    dataset = open_slices(AcdcSource(data_root=unlabelled), labelled=False)
    with pytest.raises(UserError, match=r"^every place in the training subjects of .* is labelled"):
        following._candidates(dataset, dataset.table[following.KEYS], following.Next(run=tmp_path))


def cines(root: Path, subjects: str) -> None:
    """A 4D file of four frames of each subject; those of a name are alike."""
    for subject in subjects:
        values = np.random.default_rng(ord(subject.lower())).random((20, 18, 3, 4), np.float32)
        (root / f"{subject}.nii.gz").parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(values, np.diag([1, 1, 8, 1])).to_filename(root / f"{subject}.nii.gz")


def test_a_labelled_frame_of_a_cine_is_one_image_of_its_place(tmp_path):
    """It becomes a file of its own beside the whole cine, from which it is then left out."""
    cines(tmp_path / "scans", "pqrs")
    source = FolderSource(data_root=tmp_path / "scans")
    dataset = open_slices(source, labelled=False)
    row = int(np.flatnonzero(dataset.table[["file", "frame", "slice"]].eq(["p.nii.gz", 2, 1]).all(axis=1))[0])
    table = write_plan(tmp_path / "plan", dataset, source, [(row, "")], classes=("background", "A"))
    (case,) = table["case"]
    change(tmp_path / f"plan/masks/{case}.nii.gz", 1, to=1)
    assert len(collected(tmp_path / "plan")) == 1
    dataset = open_slices(FolderSource(data_root=tmp_path / "plan-data0"))
    of_p = dataset.table[dataset.table["subject"] == "p"]
    frames = of_p.groupby("file")["frame"].unique().map(list).to_dict()
    assert frames == {"images/p.nii.gz": [1, 3, 4], "images/p_frame02.nii.gz": [1]}
    listed = pd.read_csv(tmp_path / "plan-data0/labelled_slices.csv")
    offered = dataset.table.iloc[following._candidates(dataset, listed[following.KEYS], following.Next(run=tmp_path))]
    assert {*offered.loc[offered["subject"] == "p", "slice"]} == {0, 2}
    assert {*offered.loc[offered["subject"] == "q", "slice"]} == {0, 1, 2}


def test_names_of_a_test_subject_are_not_offered(tmp_path, caplog):
    cines(tmp_path / "images", "Ppqrs")  # P is p
    (tmp_path / "splits.json").write_text('{"train": ["P", "q", "r"], "val": ["s"], "test": ["p"]}')
    dataset = open_slices(FolderSource(data_root=tmp_path), labelled=False)
    assert {*first._first_volumes(dataset)} == {"q", "r"}
    nothing = dataset.table[following.KEYS].iloc[:0]
    offered = dataset.table.iloc[following._candidates(dataset, nothing, following.Next(run=tmp_path))]
    assert {*offered["subject"]} == {"q", "r"}
    assert "1 subjects are left out" in caplog.text


def test_labels_that_a_run_did_not_learn_from_are_not_listed(tiny_acdc, tmp_path, caplog):
    """A run of one labelled slice of a data set that is labelled throughout, and one slice more."""
    source = AcdcSource(data_root=tiny_acdc)
    dataset = open_slices(source)
    learned, chosen, *others = dataset.positions("train", labelled=True).tolist()
    labelled = [*dataset.table.iloc[[learned]][following.KEYS].itertuples(index=False, name=None)]
    drawn = dataset.store.label
    classes = dataset.classes
    write_plan(tmp_path / "plan", dataset, source, [(chosen, "")], classes=classes, drawn=drawn, labelled=labelled)
    caplog.set_level("INFO")
    assert len(collected(tmp_path / "plan", accept_unchanged=True)) == 2
    assert f"{len(others)} labelled slices that the run did not learn from" in caplog.text
    write_plan(tmp_path / "first", dataset, source, [(chosen, "")], classes=classes, drawn=drawn)
    assert len(collected(tmp_path / "first", accept_unchanged=True)) == 2 + len(others)


def test_next_says_what_a_run_of_another_command_is(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "config.json", saved(PretrainConfig()))
    write_json(tmp_path / "result.json", {})
    with pytest.raises(SystemExit) as end:
        run_module("annotate", ["next", "--run", tmp_path, "--out", tmp_path / "plan"], monkeypatch)
    assert end.value.code == 2
    sentence = f"error: {tmp_path}/config.json is of a run of python -m pretrain: pass one of python -m segment\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.slow
def test_the_whole_round_on_the_phantom(tmp_path):
    """First plan, the reference's labels, training, next plan, its labels, training again."""
    truth = tmp_path / "truth"
    write_acdc(truth, subjects=6, seed=1, frames=4)
    for file in truth.rglob("*_4d.nii.gz"):
        file.unlink()  # the reference labels two frames of it, which are files of their own
    scans = without_training_labels(truth, tmp_path / "scans")
    plan_first(scans, tmp_path / "plan", patients=2, slices=4, classes=("RV", "MYO", "LV"))
    draw(tmp_path / "plan", truth)
    collected, pattern = collect.run(collect.Collect(plan=(tmp_path / "plan",), out=tmp_path / "data"))
    assert pattern is None
    assert len(collected) == 4
    dataset = open_slices(FolderSource(data_root=tmp_path / "data"))
    assert dataset.classes == ("background", "RV", "MYO", "LV")
    assert dataset.splits["patient002"] == "val"  # with its labels
    validating = open_slices(AcdcSource(data_root=truth)).positions("val", labelled=True)
    assert len(dataset.positions("val", labelled=True)) == len(validating) > 0
    assert dataset.ignores
    listed = with_labelled_list(dataset, tmp_path / "data/labelled_slices.csv")
    assert len(listed.positions("train", labelled=True)) == 4

    def train(data: Path, out: Path) -> dict:
        settings = {"data": FolderSource(data_root=data), "labelled_list": data / "labelled_slices.csv", "out": out}
        small = {"encoder": "test_resnet", "steps": 2, "image_size": 32, "batch_size": 4, "figures": False}
        return segment(replace(demo(), **settings, **small, spacing_mm=6.0, evaluate_every=2))

    assert train(tmp_path / "data", tmp_path / "run")["labelled_slices"] == 4
    later = following.run(following.Next(run=tmp_path / "run", slices=3, out=tmp_path / "plan2"))
    assert len(later) == 3
    places = {*zip(later["subject"], later["slice"], strict=True)}
    assert len(places) == 3
    assert not places & {*zip(collected["subject"], collected["slice"], strict=True)}
    assert later["why"].str.startswith("unsure of").all()
    with pytest.raises(UserError, match=r"^3 of 3 listed slices are still exactly as the network drew them"):
        collect.run(collect.Collect(plan=(tmp_path / "plan2",), out=tmp_path / "data2"))
    draw(tmp_path / "plan2", truth)
    again, _ = collect.run(collect.Collect(plan=(tmp_path / "plan2",), out=tmp_path / "data2"))
    assert len(again) == 4 + 3  # the labels of the first round are kept
    assert train(tmp_path / "data2", tmp_path / "run2")["labelled_slices"] == 7
