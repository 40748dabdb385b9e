"""Whole studies on six tiny patients: run, killed, continued, extended, failing."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_study, run_here, run_killed
from forking import run_forked

import sweep.__main__
from core.errors import UserError
from core.files import write_json
from engine.config import plain
from sweep.study.config import SweepConfig
from sweep.study.grid import plan
from sweep.study.local import name_of_gpu
from sweep.study.results import collect
from sweep.study.run import count_labels, decided, run

TABLES = ("results.csv", "per_volume.csv")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_acdc) -> SweepConfig:
    """A finished study whose jobs ran in this process; every executor must give the same results."""
    cfg = make_study(tiny_acdc, tmp_path_factory.mktemp("study") / "out")
    run_here(cfg)
    return cfg


def scores_of_seed_0(folder: Path) -> dict[str, list[str]]:
    return {name: [row for row in (folder / name).read_text().splitlines() if "-seed1" not in row] for name in TABLES}


def test_tables(finished):
    results = pd.read_csv(finished.out / "results.csv")
    assert len(results) == 2 * 2 * 2
    assert set(results["labels"]) == {2, 12}
    assert results.groupby(["labels", "seed"])["labelled_subjects"].nunique().eq(1).all()
    assert results["dice"].between(0, 1).all()
    assert not {"seconds", "images_per_second"} & set(results.columns)
    volumes = pd.read_csv(finished.out / "per_volume.csv")
    assert len(volumes) == 8 * 2  # one validation patient at ED and ES
    mean = volumes.groupby("cell")[["dice_RV", "dice_MYO", "dice_LV"]].mean().mean(axis=1)
    assert mean.to_numpy() == pytest.approx(results.set_index("cell")["dice"][mean.index].to_numpy())
    curves = pd.read_parquet(finished.out / "curves.parquet")
    assert curves.groupby("cell")["step"].apply(list).map(lambda steps: steps == [2, 4]).all()
    assert set(pd.read_csv(finished.out / "timings.csv")["cell"]) == set(results["cell"])


def test_networks_are_not_kept(finished):
    assert not list(finished.out.glob("cells/*/*.safetensors"))
    assert not list(finished.out.glob("cells/*/checkpoint.pt"))
    assert list(finished.out.glob("cells/*/predictions.png"))


def config_file(cfg: SweepConfig) -> Path:
    file = cfg.out.with_suffix(".json")
    write_json(file, plain(cfg))
    return file


def test_killed_and_continued(finished, tmp_path):
    """SIGKILL in the middle, then the same command: the same scores as in a run without a break."""
    cfg = replace(finished, out=tmp_path / "out", processes=1, seeds=(0,))
    options = ["--config", config_file(cfg)]
    # the encoder and a cell; the pool has begun another
    finishing = "[state for _, _, state in calls].count('done') == 2"
    run_killed("sweep", *options, at="sweep.study.progress:Board.note", when=finishing)
    assert len(list(cfg.out.glob("cells/*/result.json"))) < 4
    continued = run_forked("sweep", *options)  # its workers are real ones
    assert continued.returncode == 0, continued.stderr
    assert "of them finished before" in continued.stdout
    assert continued.stdout.count(" is running; a line follows for each that ends") == 1
    assert "report:" in continued.stdout
    assert (cfg.out / "report.html").exists()
    assert scores_of_seed_0(cfg.out) == scores_of_seed_0(finished.out)


def test_a_failure_does_not_stop_the_others(finished, tmp_path, capsys, forked_workers):
    """A cell has a damaged checkpoint and an encoder cannot be made: both are named, the rest is reported."""
    weights_file = tmp_path / "weights.pth"
    weights_file.write_text("no weights")
    cfg = replace(finished, out=tmp_path / "out", processes=1, fractions=(0.1,), seeds=(0,))
    cfg = decided(replace(cfg, pipelines=(f"generalist={weights_file}", "random", "specialist")))
    jobs = {job.name: job for job in plan(cfg, count_labels(cfg))}
    shutil.copytree(finished.out / "encoders", cfg.out / "encoders")
    shutil.copytree(finished.out / "cells" / "random-n2-seed0", cfg.out / "cells" / "random-n2-seed0")
    damaged = jobs["cells/specialist-n2-seed0"]
    damaged.folder.mkdir(parents=True)
    write_json(damaged.folder / "config.json", plain(damaged.config))
    (damaged.folder / "checkpoint.pt").write_text("half of it")
    write_json(cfg.out / "study.json", plain(cfg))
    assert run(cfg) is not None
    output = " ".join(capsys.readouterr().out.split())
    assert "failed cells/specialist-n2-seed0: cannot read the checkpoint" in output
    assert re.search(r"failed encoders/generalist-weights-\w+: .*weights.pth is neither a safetensors file", output)
    assert output.count("a job it depends on failed") == 1
    results = pd.read_csv(cfg.out / "results.csv")
    assert results["cell"].tolist() == ["random-n2-seed0"]
    assert (
        results["dice"].item() == pd.read_csv(finished.out / "results.csv").set_index("cell")["dice"]["random-n2-seed0"]
    )


def test_runs_of_other_settings_are_not_taken(finished, tmp_path, capsys, forked_workers):
    """Copied into the study from elsewhere, they would stand in its tables under a name that is not theirs."""
    cfg = replace(finished, out=tmp_path / "out", processes=1, seeds=(0,))
    shutil.copytree(finished.out, cfg.out)
    write_json(cfg.out / "study.json", plain(cfg))
    shutil.rmtree(cfg.out / "cells" / "random-n2-seed0")
    shutil.copytree(finished.out / "cells" / "random-n12-seed0", cfg.out / "cells" / "random-n2-seed0")
    (cfg.out / "results.csv").unlink()
    assert run(cfg) is not None
    output = " ".join(capsys.readouterr().out.split())
    assert re.search(r"failed cells/random-n2-seed0: .* other settings than this study's \(labelled_fr", output)
    assert "random-n2-seed0" not in (cfg.out / "results.csv").read_text()

    config = cfg.out / "encoders" / "specialist" / "config.json"
    config.write_text(config.read_text().replace('"stage": "specialist"', '"stage": "hierarchical"'))
    with pytest.raises(UserError, match=r"specialist holds a run with .* \(stage was 'hierarchical' and is now 'spec"):
        run(cfg)


def test_a_learning_rate_is_chosen_on_training_patients(tiny_acdc, tmp_path):
    cfg = make_study(tiny_acdc, tmp_path / "out", pipelines=("random",), fractions=(0.5,), seeds=(0,), lr=(1e-4, 1e-2))
    run_here(cfg)
    rates = pd.read_csv(cfg.out / "rates.csv")
    assert rates["lr"].tolist() == [1e-4, 1e-2]
    assert rates["score"].between(0, 1).all()
    best = rates.loc[rates["chosen"], "lr"].item()
    assert rates.loc[rates["chosen"], "score"].item() == rates["score"].max()
    assert pd.read_csv(cfg.out / "results.csv")["lr"].tolist() == [best]
    config = json.loads((cfg.out / "cells" / "random-n12-seed0" / "config.json").read_text())
    assert (config["lr"], config["inner_split"]) == (best, False)
    trial = cfg.out / "rates" / "random" / "lr0.01"
    splits = json.loads((trial / "splits.json").read_text())
    assert len(splits["val"]) == 1
    assert {*splits["val"], *splits["train"]} == {f"patient{n:03d}" for n in (3, 4, 5, 6)}
    assert set(pd.read_csv(trial / "per_volume.csv")["subject"]) == {*splits["val"]}
    assert set(pd.read_csv(trial / "labelled_slices.csv")["subject"]) <= {*splits["train"]}
    assert not (trial / "model.safetensors").exists()


def test_another_study_is_refused(finished):
    with pytest.raises(UserError, match=r"segment was \(steps 4\) and is now \(steps 8\)"):
        run(replace(finished, segment=replace(finished.segment, steps=8)))
    with pytest.raises(UserError, match=r"seeds was \[0, 1\] and is now \[0, 1, 2\]\); add to it with --extend"):
        run(replace(finished, seeds=(0, 1, 2)))
    with pytest.raises(UserError, match="was defined with --fractions; --extend cannot switch it to --sizes"):
        run(replace(finished, sizes=(2, 4), extend=True))


def test_a_study_stays_anonymous_or_not(finished):
    with pytest.raises(UserError, match="holds a study that was begun without --anonymous: keep it so, or choose"):
        run(replace(finished, anonymous=True))


def test_an_extension_that_the_encoders_refuse_leaves_the_study_as_it_was(finished, tmp_path):
    cfg = replace(finished, out=tmp_path / "out")
    shutil.copytree(finished.out, cfg.out)
    write_json(cfg.out / "study.json", plain(cfg))
    before = (cfg.out / "study.json").read_bytes()
    config = cfg.out / "encoders" / "specialist" / "config.json"
    config.write_text(config.read_text().replace('"stage": "specialist"', '"stage": "hierarchical"'))
    with pytest.raises(UserError, match="specialist holds a run with other settings than this study's"):
        run(replace(cfg, seeds=(0, 1, 2), extend=True))
    assert (cfg.out / "study.json").read_bytes() == before


def test_a_data_set_that_was_changed_between_the_runs_is_said(finished, tmp_path):
    cfg = decided(replace(finished, out=tmp_path / "out"))
    shutil.copytree(finished.out, cfg.out)
    cells = [job for job in plan(cfg, count_labels(cfg)) if job.is_cell]
    assert collect(cfg, cells) == {}
    assert pd.read_csv(cfg.out / "results.csv")["warnings"].isna().all()
    file = cells[0].folder / "result.json"
    result = json.loads(file.read_text())
    write_json(file, result | {"data_set": "another", "versions": result["versions"] | {"torch": "1.0"}})
    assert collect(cfg, cells) == {}
    results = pd.read_csv(cfg.out / "results.csv")
    assert results["warnings"].eq("the data set was changed between the runs of this study, so that they are not "
                                  "comparable").all()  # fmt: skip
    assert results["versions"].str.contains("torch=1.0 ").tolist() == [True] + [False] * (len(results) - 1)


def test_a_folder_of_something_else_is_refused(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        run(replace(finished, out=tmp_path))


def test_dry_run(finished, tmp_path, capsys):
    assert run(replace(finished, out=tmp_path / "out", dry_run=True, lr=(1e-4, 1e-3))) is None
    output = capsys.readouterr().out
    assert "8 cells and 4 trials of learning rates one by one, without 1 pretrainings" in output
    assert "rates/random/lr0.0001" in output
    assert "8 cells" in output
    assert "per optimiser step" in output
    assert not (tmp_path / "out").exists()


def test_dry_run_tells_cells_with_unlabelled_slices_apart(tiny_acdc, tmp_path, capsys):
    two = ("random", "random+unlabelled")
    cfg = make_study(tiny_acdc, tmp_path / "out", pipelines=two, fractions=(0.5,), seeds=(0,))
    assert run(replace(cfg, segment=replace(cfg.segment, ema_decay=0.9), dry_run=True)) is None
    output = capsys.readouterr().out
    assert re.search(r"min per cell; .* min per cell with unlabelled slices; [\d.]+ hours for 2 cells", output)


def test_mistakes_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "--pipelines", "randm"])
    with pytest.raises(SystemExit) as stop:
        sweep.__main__.main()
    assert stop.value.code == 2
    assert "--pipelines randm: there is no such pipeline" in " ".join(capsys.readouterr().err.split())


def test_gpus_are_counted_among_those_that_may_be_seen():
    assert [name_of_gpu(k, None) for k in (0, 1)] == ["0", "1"]
    assert [name_of_gpu(k, "3,GPU-8932f937") for k in (0, 1)] == ["3", "GPU-8932f937"]
