import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from classify.config import demo as demo_classifier
from core.errors import UserError
from core.files import write_json
from data.sources import AcdcSource, MrnetSource
from data.splits import labelled_count, labelled_exams
from encoders import hub
from engine.command_line import parse
from engine.config import plain, read_config
from segment.config import SegmentConfig, Selection
from segment.config import demo as demo_unet
from sweep.analysis.study_files import SELECTIONS, display_name, start_and_endings, with_selections
from sweep.study.config import EXAM_PRESETS, FRACTIONS, PRESETS, SEEDS, SweepConfig, presets_for
from sweep.study.grid import plan
from sweep.study.jobs import failure, run_config
from sweep.study.rates import chosen_rate
from sweep.study.run import count_labels
from sweep.study.weights import missing_weights

FOUR = ("random", "generalist", "specialist", "hierarchical")


def jobs_of(**settings):
    return plan(SweepConfig(**settings), 1498)


@pytest.mark.slow
def test_the_papers_grid():
    jobs = plan(PRESETS["paper"](), 1498)
    cells = [job for job in jobs if job.is_cell]
    assert len(cells) == 6 * 10 * 10  # the paper's five pipelines and a random start
    assert all(job.config.test for job in cells)
    assert sorted({job.key["labels"] for job in cells}) == [1, 3, 7, 15, 30, 75, 150, 300, 749, 1498]
    assert {job.key["seed"] for job in cells} == set(SEEDS)
    byol = "resnet50_byol_imagenet2012.pth.tar"
    assert [job.name for job in jobs if not job.is_cell] == [
        "encoders/generalist", f"encoders/generalist-{byol}", "encoders/specialist", "encoders/hierarchical",
        f"encoders/hierarchical={byol}",
    ]  # fmt: skip
    needs = {job.name: job.needs for job in jobs}
    assert needs["encoders/hierarchical"] == ("encoders/generalist",)
    assert needs[f"encoders/hierarchical={byol}"] == (f"encoders/generalist-{byol}",)
    assert len({job.name for job in jobs}) == len(jobs)
    assert len({job.hash for job in cells}) == len(cells)


def test_each_fold_has_its_own_encoders_and_the_same_numbers_of_labels():
    folds = AcdcSource(split="five-fold")
    cfg = SweepConfig(data=folds, folds=(0, 3), pipelines=("random", "specialist"), fractions=(0.05,), seeds=(0,))
    jobs = {job.name: job for job in plan(cfg, {0: 1520, 3: 1400})}
    assert list(jobs)[:2] == ["encoders/specialist-fold0", "encoders/specialist-fold3"]
    for fold, total in ((0, 1520), (3, 1400)):
        cell = jobs[f"cells/specialist-n76-seed0-fold{fold}"]  # 5 % of the first fold
        assert cell.key["fold"] == cell.config.data.fold == fold
        assert cell.needs == (f"encoders/specialist-fold{fold}",)
        assert labelled_count(cell.config.labelled_fraction, total) == 76
        assert jobs[cell.needs[0]].config.data.fold == fold
    generalists = [
        next(job for job in plan(replace(cfg, folds=few, pipelines=("generalist",)), {0: 1520, 3: 1400}))
        for few in ((0,), (0, 3))
    ]
    assert generalists[0].name == "encoders/generalist"
    assert generalists[0].hash == generalists[1].hash  # a study may be extended by folds
    with pytest.raises(UserError, match=r"^--test-set both: a study reports one mean score"):
        SweepConfig(data=AcdcSource(test_set="both"), test=True)
    with pytest.raises(UserError, match="--folds goes with --dataset acdc --split five-fold"):
        SweepConfig(folds=(0,))
    with pytest.raises(UserError, match="--folds 5: must lie between 0 and 4, and"):
        SweepConfig(data=folds, folds=(5,))


@pytest.mark.slow
def test_the_patients_of_a_benchmark_in_its_order(tiny_acdc, tmp_path):
    settings = {"data": AcdcSource(split="ssl4mis"), "label_unit": "patient", "sizes": (3, 7), "seeds": (0,)}
    cfg = parse(presets_for, "", ["--label-order", "ssl4mis", "--label-unit", "patient"])
    assert cfg.label_order == "ssl4mis"
    cells = [job for job in plan(replace(cfg, **settings, lr=(1e-3, 1e-4)), 70) if not job.name.startswith("encoders")]
    assert {job.config.label_order for job in cells} == {"ssl4mis"}
    assert {job.config.label_unit for job in cells} == {"patient"}
    with pytest.raises(UserError, match="--label-order ssl4mis is an order of patients: pass --label-unit patient"):
        SweepConfig(label_order="ssl4mis")
    patients = [f"patient{n:03d}" for n in range(1, 7)]
    write_json(tmp_path / "splits.json", {"train": patients[1:], "val": patients[:1], "test": []})
    others = AcdcSource(data_root=tiny_acdc, split=str(tmp_path / "splits.json"))
    with pytest.raises(UserError, match="patient002 is no training patient of that benchmark; pass --split ssl4mis"):
        count_labels(replace(cfg, data=others))  # before any encoder is pretrained


def test_cells_of_a_size_and_seed_differ_in_their_start_alone():
    pairs = defaultdict(list)
    for job in jobs_of(pipelines=FOUR, fractions=(0.1, 0.5), seeds=(0, 13)):
        if job.is_cell:
            settings = plain(job.config)
            start = (settings.pop("init"), settings.pop("out"))
            pairs[job.key["labels"], job.key["seed"]].append((settings, start))
    assert len(pairs) == 4
    for cells in pairs.values():
        assert len({start for _, start in cells}) == 4
        assert all(settings == cells[0][0] for settings, _ in cells)


def test_jobs_come_after_what_they_need_and_start_from_its_file():
    seen: dict[str, object] = {}
    for job in jobs_of(pipelines=FOUR, fractions=(0.5,), seeds=(0,)):
        assert set(job.needs) <= seen.keys()
        seen[job.name] = job
        source = getattr(job.config, "init", None) or getattr(job.config, "generalist", None)
        for name in job.needs:
            assert str(seen[name].folder) in source
    assert seen["encoders/hierarchical"].needs == ("encoders/generalist",)
    assert seen["cells/random-n749-seed0"].config.init == "random"


def test_masked_image_modelling_from_random_weights_and_from_a_generalist(tmp_path):
    """Cells start from the whole U-Net; settings of another method's optimiser do not reach it."""
    pretraining = replace(SweepConfig().pretrain, lr=0.5, optimiser="lars", generalist="imagenet")
    pretraining = replace(pretraining, method="simclr", temperature=0.1)
    settings = {"fractions": (0.5,), "seeds": (0,), "out": tmp_path, "pretrain": pretraining}
    jobs = {job.name: job for job in jobs_of(pipelines=("specialist", "masked", "masked=procedural"), **settings)}
    random, given = jobs["encoders/masked"], jobs["encoders/masked=procedural"]
    assert (random.config.method, random.config.stage, random.needs) == ("masked", "specialist", ())
    assert (given.config.method, given.config.stage) == ("masked", "hierarchical")
    assert given.needs == ("encoders/generalist-procedural",)
    assert given.config.generalist == str(tmp_path / "encoders/generalist-procedural/encoder.safetensors")
    assert jobs["encoders/generalist-procedural"].config.method == "simclr"
    assert [job.config.peak_lr(False) for job in (random, given)] == [1e-3, 1e-3]
    assert jobs["encoders/specialist"].config.lr == 0.5
    for name in ("masked", "masked=procedural"):
        assert jobs[f"cells/{name}-n749-seed0"].config.init == str(tmp_path / "encoders" / name / "unet.safetensors")
    own = replace(pretraining, method="masked", lr=3e-4, optimiser=None, temperature=None)
    jobs = {job.name: job for job in jobs_of(pipelines=("masked",), **settings | {"pretrain": own})}
    assert jobs["encoders/masked"].config.lr == 3e-4
    with pytest.raises(UserError, match="--pipelines masked: masked image modelling takes single images, not exams"):
        replace(EXAM_PRESETS["demo"](), pipelines=("masked",))


def test_crossed_seeds():
    cells = jobs_of(pipelines=("random",), fractions=(1.0,), seeds=(0, 1, 2), cross_seeds=True)
    assert {(job.config.subset_seed, job.config.seed) for job in cells} == {(a, b) for a in range(3) for b in range(3)}


def test_pretraining_seeds_repeat_what_is_trained_only(tmp_path):
    weights_file = tmp_path / "weights.pth"
    weights_file.touch()
    pipelines = ("random", f"generalist={weights_file}", "specialist", f"hierarchical={weights_file}")
    jobs = jobs_of(pipelines=pipelines, fractions=(1.0,), seeds=(0,), pretrain_seeds=(0, 1))
    per_pipeline = [sum(job.key.get("pipeline") == name for job in jobs) for name in pipelines]
    assert per_pipeline == [1, 1, 2, 2]
    assert sorted({job.config.seed for job in jobs if job.name.startswith("encoders/specialist")}) == [0, 1]


def test_epochs_of_pretraining_share_one_pretraining():
    jobs = jobs_of(pipelines=("random", "specialist"), fractions=(1.0,), seeds=(0,), pretrain_epochs=(0, 1, 5))
    (encoder,) = [job for job in jobs if not job.is_cell]
    assert encoder.config.keep_epochs == (0, 1, 5)
    assert encoder.config.stop_after_epochs == 5
    assert encoder.config.target_epochs == 400  # the schedule is that of the whole stage
    epochs = {job.key["pretrain_epochs"]: job.config.init for job in jobs if job.key.get("pipeline") == "specialist"}
    assert {epoch: init.split("/")[-2:] for epoch, init in epochs.items()} == {
        epoch: [f"epoch-{epoch}", "encoder.safetensors"] for epoch in (0, 1, 5)
    }
    jobs = jobs_of(pipelines=("masked",), fractions=(1.0,), seeds=(0,), pretrain_epochs=(1,))
    assert jobs[-1].config.init.endswith("epoch-1/unet.safetensors")


def test_epochs_beyond_the_end_of_pretraining():
    study = {"pipelines": ("hierarchical",), "fractions": (1.0,), "seeds": (0,)}
    with pytest.raises(UserError, match=r"--pretrain-epochs 50: .* after 25 epochs \(hierarchical\)"):
        jobs_of(**study, pretrain_epochs=(0, 50))
    longer = replace(SweepConfig().pretrain, epochs=400)
    jobs = jobs_of(**study, pretrain_epochs=(0, 400), pretrain=longer)
    assert [job.config.stop_after_epochs for job in jobs if job.name == "encoders/hierarchical"] == [400]


def test_learning_rates_are_tried_on_an_inner_part_of_the_training_patients(tmp_path):
    settings = {"pipelines": ("random", "specialist"), "fractions": (0.5,), "seeds": (3, 4), "out": tmp_path}
    jobs = jobs_of(**settings, lr=(1e-4, 1e-3), pretrain_epochs=(1, 5), test=True)
    trials = {job.name: job for job in jobs if job.is_trial}
    assert list(trials) == ["rates/random/lr0.0001", "rates/random/lr0.001",
                            "rates/specialist/lr0.0001", "rates/specialist/lr0.001"]  # fmt: skip
    for job in trials.values():
        assert job.config.inner_split
        assert not job.config.test  # the test split is not even scored
        assert job.config.labelled_fraction * 2 / 3 * 1498 == pytest.approx(75, abs=0.2)
        assert job.name.endswith(f"lr{job.config.lr:g}")
    assert trials["rates/specialist/lr0.001"].config.init.endswith("specialist/epoch-5/encoder.safetensors")
    for cell in (job for job in jobs if job.is_cell):
        tried = [job for name, job in trials.items() if name.split("/")[1] == cell.key["pipeline"]]
        assert cell.trials == tuple((job.config.lr, job.folder) for job in tried)
        assert {job.name for job in tried} < {*cell.needs, "x"}
        assert cell.config.test
        assert not cell.config.inner_split
    assert {job.config.lr for job in jobs_of(**settings, lr=(0.02,)) if job.is_cell} == {0.02}
    assert not any(job.is_trial for job in jobs_of(**settings, lr=(0.02,)))


def averaged() -> SegmentConfig:
    return replace(SweepConfig().segment, ema_decay=0.9)


def test_a_pipeline_with_unlabelled_slices_differs_from_that_without_in_these_alone(tmp_path):
    names = ("specialist", "specialist+unlabelled", "generalist=/a/b.pth+unlabelled")
    study = {"fractions": (0.5,), "seeds": (3,), "lr": (1e-4, 1e-3), "out": tmp_path, "segment": averaged()}
    jobs = jobs_of(pipelines=names, **study)
    assert sum(job.name.startswith("encoders/specialist") for job in jobs) == 1
    pair = [job for job in jobs if job.is_cell and job.key["pipeline"].startswith("specialist")]
    settings = [plain(job.config) for job in pair]
    assert [cell.pop("unlabelled") for cell in settings] == [False, True]
    assert [Path(cell.pop("out")).name for cell in settings] == [f"{name}-n749-seed3" for name in names[:2]]
    assert settings[0] == settings[1]
    for trial in (job for job in jobs if job.is_trial):  # its rate is chosen for it
        assert trial.config.unlabelled == ("+unlabelled" in trial.name)
    (other,) = [job for job in jobs if job.is_cell and job.key["pipeline"] == names[2]]
    assert other.folder.name == f"{display_name(names[2])}-n749-seed3"
    assert display_name(names[2]).startswith("generalist=b-")
    assert display_name(names[2]).endswith("+unlabelled")


def test_rules_of_selection_are_pipelines_of_their_own_and_next_goes_on_from_the_size_before(tmp_path):
    study = {"pipelines": ("hierarchical=/a/b.pth", "specialist"), "fractions": (0.02, 0.05, 0.1), "out": tmp_path}
    jobs = jobs_of(**study, seeds=(3,), selection=("random", "foreground", "next"))
    assert sum(job.name.startswith("encoders/specialist") for job in jobs) == 1
    cells = {job.name.removeprefix("cells/"): job for job in jobs if job.is_cell}
    assert len(cells) == 2 * 3 * 3
    for number, labels in enumerate((30, 75, 150)):
        plain_cell, other = cells[f"specialist-n{labels}-seed3"], cells[f"specialist+foreground-n{labels}-seed3"]
        assert (plain_cell.key["pipeline"], other.key["pipeline"]) == ("specialist", "specialist+foreground")
        assert replace(other.config, selection="random", out=plain_cell.folder) == plain_cell.config
        cell = cells[f"specialist+next-n{labels}-seed3"]
        assert cell.is_gone_on_from == (labels < 150)
        if number == 0:
            assert cell.config.selection == "foreground"
            continue
        earlier = cells[f"specialist+next-n{(30, 75)[number - 1]}-seed3"]
        assert (cell.config.selection_run, cell.config.selection_round) == (earlier.folder, (number, 2))
        assert cell.needs == ("encoders/specialist", earlier.name)
        moved = replace(cell, config=replace(cell.config, selection_run=tmp_path / "elsewhere"))
        assert moved.hash == cell.hash
    every = jobs_of(**study | {"pipelines": ("random", "specialist")}, seeds=(3,), selection=SELECTIONS)
    names = {job.key["pipeline"] for job in every if job.is_cell}
    assert names == {*with_selections(["specialist"], SELECTIONS), "random", "random+foreground", "random+next"}
    assert get_args(Selection) == SELECTIONS  # the analysis imports no stage
    name = "hierarchical=/a/b.pth+unlabelled+next"
    assert display_name(name).endswith("+unlabelled+next")
    assert start_and_endings(name) == ("hierarchical=/a/b.pth", "+unlabelled+next")
    with pytest.raises(UserError, match="--selection first goes by the view of a pretrained encoder"):
        SweepConfig(pipelines=("random+unlabelled",), segment=averaged(), selection=("foreground", "first"))
    with pytest.raises(UserError, match=r"--selection random next: a rule has to beat foreground, .*; add it"):
        SweepConfig(selection=("random", "next"))
    with pytest.raises(UserError, match="--selection next: rules choose slices"):
        SweepConfig(label_unit="patient", selection=("next",))


@pytest.mark.slow
def test_rates_of_a_study_and_of_its_runs_on_the_command_line():
    flags = ["--recipe", "demo", "--lr", "1e-4", "1e-3", "--segment.lr", "0.5", "--pretrain.lr", "0.1"]
    cfg = parse(presets_for, "", flags)
    assert (cfg.lr, cfg.segment.lr, cfg.pretrain.lr) == ((1e-4, 1e-3), 0.5, 0.1)


def test_the_best_rate_is_chosen_once(tmp_path):
    trials = tuple((rate, tmp_path / "random" / f"lr{rate:g}") for rate in (1e-3, 1e-4, 1e-2, 1e-1))
    for (_, folder), dice in zip(trials, (0.7, 0.7, 0.6, None), strict=True):
        folder.mkdir(parents=True)
        if dice:  # the highest rate diverged
            write_json(folder / "result.json", {"dice": {"mean": dice}})
    (cell,) = jobs_of(pipelines=("random",), fractions=(1.0,), seeds=(0,))
    assert run_config(replace(cell, trials=trials)).lr == 1e-4  # of equal ones the lowest
    write_json(trials[3][1] / "result.json", {"dice": {"mean": 0.9}})  # run again later: the choice stands
    assert chosen_rate(trials) == 1e-4
    (tmp_path / "random" / "chosen.json").unlink()
    assert chosen_rate(trials) == 1e-1
    exam = tmp_path / "exams" / "lr1"
    exam.mkdir(parents=True)
    write_json(exam / "result.json", {"val": {"auc": {"value": 0.8}}})
    assert chosen_rate([(1.0, exam)]) == 1.0
    with pytest.raises(UserError, match="no learning rate could be tried"):
        chosen_rate([(1.0, tmp_path / "none" / "lr1")])


def test_missing_weights_are_named_before_anything_runs(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_require_timm", offline)
    monkeypatch.setattr(hub, "_require_kinetics", offline)
    cfg = replace(PRESETS["paper"](), out=tmp_path / "study")
    assert missing_weights(cfg, plan(replace(cfg, fractions=(1.0,), seeds=(0,)), 1498)) == (
        "the study starts from weights that are not here: the ImageNet weights of resnet50 (download "
        "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors, put the file anywhere and pass "
        "--pretrain.generalist FILE); resnet50_byol_imagenet2012.pth.tar (linked in the readme of "
        f"https://github.com/yaox12/BYOL-PyTorch, under Model Checkpoints; put it into {tmp_path})"
    )
    (tmp_path / "resnet50_byol_imagenet2012.pth.tar").touch()
    here = replace(cfg, pipelines=("generalist=resnet50_byol_imagenet2012.pth.tar", "specialist"))
    assert missing_weights(here, plan(here, 1498)) == ""
    exams = replace(EXAM_PRESETS["paper"](), out=tmp_path / "study")
    jobs = plan(exams, 1000)
    (kinetics,) = [job for job in jobs if job.name == "encoders/generalist-kinetics"]
    assert {job.needs for job in jobs if job.key.get("pipeline") == "kinetics"} == {(kinetics.name,)}
    assert (kinetics.config.generalist, kinetics.config.encoder) == ("kinetics", "r3d_18")
    sentence = missing_weights(exams, jobs)
    assert re.search(r"Kinetics-400 weights of r3d_18 \(download https://\S+/r3d_18-\S+ and put it into /", sentence)


def test_sizes_count_labels():
    cells = jobs_of(pipelines=("random",), sizes=(80, 8), seeds=(0,))
    assert [(job.key["labels"], job.config.labelled_fraction) for job in cells] == [(8, 8 / 1498), (80, 80 / 1498)]
    with pytest.raises(UserError, match="--sizes 1499: there are 1498 labelled training slices"):
        jobs_of(sizes=(1499,))
    (cell,) = jobs_of(pipelines=("random",), fractions=(0.001, 0.0009), seeds=(0,))
    assert (cell.key["labels"], cell.key["fraction"]) == (1, 0.0009)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pipelines": ("randm",)}, "--pipelines randm: there is no such pipeline; choose among random, generalist"),
        ({"pipelines": ("random=FILE",)}, "--pipelines random=FILE"),
        ({"pipelines": ("random+unlabeled",)}, r"--pipelines random\+unlabeled: there is no such pipeline"),
        ({"pipelines": ("random+unlabelled",)}, r"--pipelines random\+unlabelled: keeps a moving average .*0\.99"),
        ({"pipelines": ("kinetics",)}, "--pipelines kinetics: these are weights of r3d_18, mc3_18, r2plus1d_18; pass"),
        ({"fractions": (0.5, 1.5)}, r"--fractions 1\.5: must lie in \(0, 1\]"),
        ({"fractions": (0.0,)}, r"--fractions 0\.0"),
        ({"seeds": ()}, "--seeds is empty"),
        ({"seeds": (2**70,)}, "--seeds 1180591620717411303424: must be below 2 to the power of 63"),
        ({"processes": 10**9}, "--processes 1000000000: must be at most 1024"),
        ({"threads": 10**9}, "--threads 1000000000: must be at most 1024"),
        ({"slurm_minutes": 10**9}, "--slurm-minutes 1000000000: must be at most 527040"),
        ({"slurm_memory_gb": float("nan")}, "--slurm-memory-gb nan: must be above 0"),
        ({"slurm_memory_gb": float("inf")}, "--slurm-memory-gb inf: must be above 0 and at most"),
        ({"slurm_partition": "gpu\ntouch x #"}, r"--slurm-partition 'gpu\\ntouch x #': may hold letters"),
        ({"slurm_partition": "--wrap=x"}, "--slurm-partition '--wrap=x'"),
        ({"slurm_partition": ""}, "--slurm-partition ''"),
        ({"slurm_gres": "gpu:1;touch x"}, "--slurm-gres 'gpu:1;touch x': may hold letters"),
        ({"slurm_gres": "$(touch x)"}, "--slurm-gres"),
        ({"slurm_gres": "gpu:1\r#SBATCH --uid=0"}, "--slurm-gres"),
        ({"slurm_partition": "gpu\u2028x"}, "--slurm-partition"),
        ({"executor": "slurm", "out": Path("a\n#SBATCH --wrap=x")}, r"--out .*Slurm cannot write to a path with '\\n'"),
        ({"executor": "slurm", "out": Path("100%j")}, r"Slurm cannot write to a path with '%'"),
        ({"lr": (1e-3, 0.0)}, r"--lr 0\.001 0\.0: each must be above 0, and none repeated"),
        ({"seeds": (3, 3)}, "--seeds 3 3: a value is repeated"),
        ({"data": MrnetSource()}, "--dataset mrnet does not go with --task segment"),
        (
            {"task": "classify", "data": MrnetSource(), "label_unit": "patient"},
            "--label-unit patient goes with --task segment",
        ),
        ({"segment": replace(demo_unet(), seed=7)}, r"--segment\.seed 7 belongs to single runs: the sweep sets it"),
        ({"segment": replace(demo_unet(), test=True)}, r"--segment\.test True belongs to single runs: pass --test"),
        ({"segment": replace(demo_unet(), unlabelled=True)}, r"--segment\.unlabelled True belongs to single runs"),
        ({"classify": replace(demo_classifier(), init="x")}, r"--classify\.init x belongs to single runs"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SweepConfig(**settings)


def test_settings_of_slurm_that_sbatch_takes():
    settings = {"slurm_partition": "gpu-a100,cpu_2.long", "slurm_gres": "gpu:a100:2,gres/shard=1", "executor": "slurm"}
    SweepConfig(**settings, slurm_memory_gb=0.5, out=Path("my studies/first"))


def test_a_study_written_by_hand_cannot_add_lines_to_the_batch_script(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text('executor: slurm\nslurm_partition: "gpu\\ntouch x #"\n')
    with pytest.raises(UserError, match="--slurm-partition"):
        read_config(SweepConfig, file)


def test_more_cells_than_anyone_can_train():
    with pytest.raises(UserError, match=r"the study would have .* cells, more than 100,000"):
        jobs_of(seeds=tuple(range(30_000)))
    with pytest.raises(UserError, match="--cross-seeds with 1,000 seeds"):
        jobs_of(seeds=tuple(range(1000)), cross_seeds=True)


def test_recipes():
    assert PRESETS["paper"]().fractions == FRACTIONS
    for task, recipes in (("segment", PRESETS), ("classify", EXAM_PRESETS)):
        assert presets_for({"task": task}) is recipes
        for make in recipes.values():
            cfg = make()
            assert cfg.task == task
            assert cfg.run_config.steps  # the same at every size
            assert plan(cfg, 1000)
    demo = PRESETS["demo"]()
    assert (len(demo.pipelines), len(demo.fractions), len(demo.seeds)) == (2, 3, 2)


def test_a_study_written_by_hand(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("seeds: [4, 5]\nsegment: {steps: 7, views: {flip: 0.25}}\n")
    cfg = read_config(SweepConfig, file, PRESETS["demo"]())
    assert cfg.seeds == (4, 5)
    assert (cfg.segment.steps, cfg.segment.augmentation.flip, cfg.segment.encoder) == (7, 0.25, "resnet10t")
    file.write_text("segment: {stepz: 7}\n")
    with pytest.raises(UserError, match=r"study.yaml is not a SweepConfig: it has no setting segment\. stepz"):
        read_config(SweepConfig, file, PRESETS["demo"]())
    file.write_text("seeds: [4\n")
    with pytest.raises(UserError, match=r"study.yaml is not YAML \(line 2"):
        read_config(SweepConfig, file, PRESETS["demo"]())


def test_a_study_of_exams_counts_those_it_trains_on():
    exams = {"task": "classify", "data": MrnetSource(), "pipelines": ("random",), "seeds": (0,)}
    table = pd.DataFrame({"exam": [f"{n:04}" for n in range(27)], "split": "train", "label": [0, 1, 0] * 9})
    cells = plan(SweepConfig(**exams, fractions=(0.01, 0.05, 0.1)), len(table))
    assert [cell.key["labels"] for cell in cells] == [2, 3]  # 1 % and 5 % are one exam at most: two are drawn
    for cell in cells:
        assert len(labelled_exams(table, cell.config.labelled_fraction)) == cell.key["labels"]
    with pytest.raises(UserError, match="--sizes 1: a classifier takes one exam of each class; pass 2 or more"):
        plan(SweepConfig(**exams, sizes=(1, 4)), len(table))


def test_labelled_exams():
    labels = np.tile([0, 0, 0, 0, 1], 20)
    table = pd.DataFrame({"exam": [f"{i:03d}" for i in range(100)], "split": "train", "label": labels})
    table.loc[90:, "split"] = "val"
    drawn = {f: labelled_exams(table, f, seed=3) for f in (0.01, 0.1, 0.3, 1.0)}
    assert [len(own) for own in drawn.values()] == [2, 9, 27, 90]
    assert sorted(labels[drawn[0.01]]) == [0, 1]
    assert labels[drawn[0.3]].mean() == pytest.approx(0.2, abs=0.04)
    for small, large in zip(list(drawn.values())[:-1], list(drawn.values())[1:], strict=True):
        assert set(small) <= set(large)
    assert not np.array_equal(drawn[0.1], labelled_exams(table, 0.1, seed=4))
    with pytest.raises(UserError, match="all training exams are of class 0"):
        labelled_exams(table[table["label"] == 0], 0.5)


def test_failure_is_the_first_line(tmp_path):
    (job,) = plan(SweepConfig(pipelines=("random",), fractions=(1.0,), seeds=(0,), out=tmp_path), 10)
    assert failure(job) == ""
    job.folder.mkdir(parents=True)
    (job.folder / "error.txt").write_text("too bad\n\nTraceback\n")
    assert failure(job) == "too bad"
