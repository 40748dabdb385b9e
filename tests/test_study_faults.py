"""A study whose cells are damaged, killed, locked or finished before; the cells are written by hand, not trained."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_study

import sweep.report.page
import sweep.study.local
import sweep.study.run
from core.errors import UserError
from core.files import temporary_name, write_json
from core.locks import file_lock
from engine.config import plain
from sweep.study.grid import plan
from sweep.study.jobs import failure, is_done, note_failure, run_job, tidy
from sweep.study.results import collect, collected
from sweep.study.run import _require_epochs, run

SUBJECTS = ("NA", "001", "1e5")


def write_cell(job) -> None:
    """The files of a finished cell."""
    job.folder.mkdir(parents=True, exist_ok=True)
    scores = {name: {"mean": 0.5, "LV": 0.5} for name in ("dice", "jaccard", "hd95_mm", "assd_mm")}
    scores |= {"not_counted": {"both_empty": {"LV": 0}, "one_empty": {"LV": 0}}, "slice_jaccard": 0.4}
    result = scores | {"patients": 3, "volumes": 3, "labelled_slices": 2, "labelled_subjects": 1, "steps": 4}
    result |= {"seed": job.key["seed"], "subset_seed": job.key["subset_seed"], "synthetic": False, "seconds": 1.0}
    write_json(job.folder / "config.json", plain(job.config))
    write_json(job.folder / "result.json", result)
    columns = {"subject": SUBJECTS, "group": "", "phase": "", "frame": 1, "dice_LV": 0.5, "slices": 3}
    pd.DataFrame(columns).to_csv(job.folder / "per_volume.csv", index=False)
    curve = {"step": [2, 4], "loss": [1.0, 0.5], "validation_dice": [0.2, 0.5]}
    pd.DataFrame(curve).to_csv(job.folder / "metrics.csv", index=False)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of two cells, both finished; nothing is trained and no report is drawn."""
    cfg = make_study(tmp_path, tmp_path / "out", pipelines=("random",), fractions=(0.1,))
    monkeypatch.setattr(sweep.study.run, "count_labels", lambda cfg: 24)
    monkeypatch.setattr(sweep.study.run, "decided", lambda cfg: cfg)
    monkeypatch.setattr(sweep.study.run, "check_study", lambda cfg, jobs: None)
    monkeypatch.setattr(sweep.study.run, "_execute", lambda cfg, jobs, board: None)
    monkeypatch.setattr(sweep.report.page, "report", lambda folder: folder / "report.html")
    jobs = plan(cfg, 24)
    for job in jobs:
        write_cell(job)
    write_json(cfg.out / "study.json", json.loads(json.dumps(sweep.study.run.saved(cfg))))
    return cfg, jobs


def tables(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.*") if file.suffix in (".csv", ".parquet")}


def test_names_go_through_the_tables_of_a_study(study):
    cfg, jobs = study
    assert collect(cfg, jobs) == {}
    text = (cfg.out / "per_volume.csv").read_text()
    assert [line.split(",")[9] for line in text.splitlines()[1:]] == [*SUBJECTS, *SUBJECTS]


def damage_json(name, value):
    def damage(folder):
        result = json.loads((folder / "result.json").read_text())
        result[name] = value
        write_json(folder / "result.json", result)

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        damage_json("seed", "1"),
        damage_json("seed", 12),
        damage_json("subset_seed", None),
        damage_json("synthetic", "no"),
        damage_json("seconds", "<b>"),
        damage_json("dice", [0.5]),
        damage_json("dice", {"mean": "<b>"}),
        damage_json("jaccard", {"mean": 7.0}),
        damage_json("volumes", 4),
        write("result.json", b""),
        write("result.json", b"\0" * 100),
        write("result.json", b"[1, 2]"),
        write("result.json", b"\xff\xfe"),
        write("per_volume.csv", b""),
        write("per_volume.csv", b"<html></html>\n"),
        write("per_volume.csv", b"subject,slices\nA,1\n"),
        write("per_volume.csv", b"subject,slices\nA,1\nB,1\nC"),
        write("metrics.csv", b"step,loss\n1,2\n"),
        write("metrics.csv", b"step,loss,validation_dice\n1,2,<b>\n"),
        write("metrics.csv", b"step,loss,validation_dice\n1,2,1e999\n"),
        write("metrics.csv", b"step,loss,validation_dice\n2,1,0.5\n\0\0\0\0"),
        lambda folder: (folder / "metrics.csv").unlink(),
        lambda folder: (folder / "per_volume.csv").unlink(),
    ],
)
def test_a_damaged_cell_is_left_out_and_the_rest_goes_on(study, damage, capsys):
    cfg, (sound, damaged) = study
    damage(damaged.folder)
    assert run(cfg) == cfg.out / "report.html"
    assert pd.read_csv(cfg.out / "results.csv")["cell"].tolist() == [sound.name.removeprefix("cells/")]
    assert len(pd.read_csv(cfg.out / "per_volume.csv")) == len(SUBJECTS)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"failed {damaged.name}: " in printed
    assert "remove the folder" in failure(damaged)


def test_an_error_with_markup_is_printed_and_ends_nothing(study, capsys):
    cfg, (_, failed) = study
    (failed.folder / "result.json").unlink()
    note_failure(failed, "cannot read [/data/x.nii] [bold]é\udcfc\n\nTraceback")
    assert run(cfg) == cfg.out / "report.html"
    assert f"failed {failed.name}: cannot read [/data/x.nii] [bold]é" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_finished_study_is_not_written_again(study):
    cfg, jobs = study
    run(cfg)
    before = {name: (cfg.out / name).stat().st_mtime_ns for name in tables(cfg.out)}
    assert run(cfg) == cfg.out / "report.html"
    assert before == {name: (cfg.out / name).stat().st_mtime_ns for name in tables(cfg.out)}
    assert collected(cfg, jobs)
    contents = tables(cfg.out)
    for name in ("results.csv", "per_volume.csv", "curves.parquet"):  # what the messages advise for a damaged table
        (cfg.out / name).unlink()
        run(cfg)
        assert tables(cfg.out) == contents


def test_a_sweep_that_the_lock_refuses_has_changed_nothing(study):
    cfg, _ = study
    before = (cfg.out / "study.json").read_bytes()
    with file_lock(cfg.out / ".lock", wait=False), pytest.raises(UserError, match="another sweep is working"):
        run(replace(cfg, seeds=(0, 1, 2), extend=True))
    assert (cfg.out / "study.json").read_bytes() == before
    assert not (cfg.out / "plan.json").exists()
    run(cfg)  # the original command still goes on


def test_a_folder_of_a_sweep_that_was_killed_before_it_began_is_free(study):
    cfg, _ = study
    out = cfg.out.with_name("other")
    out.mkdir()
    (out / ".lock").touch()
    left = temporary_name(out / "study.json")
    left.touch()
    with pytest.raises(UserError, match="every run of the study"):
        run(replace(cfg, out=out))
    assert (out / "study.json").exists()
    assert not left.exists()


def test_a_mistake_in_the_data_leaves_no_folder(study, monkeypatch):
    def broken(cfg):
        raise UserError("no data")

    monkeypatch.setattr(sweep.study.run, "count_labels", broken)
    cfg = replace(study[0], out=study[0].out.with_name("other"))
    with pytest.raises(UserError, match="no data"):
        run(cfg)
    assert not cfg.out.exists()


def test_what_a_killed_cell_leaves_is_removed_once(study):
    """A kill between the result and the removal of checkpoint and network; a kept network stays."""
    _, (killed, kept) = study
    for job in (killed, kept):
        for name in ("checkpoint.pt", "model.safetensors", ".model.safetensors.12.partial"):
            (job.folder / name).write_bytes(b"x")
    killed.folder.with_name(f".{killed.folder.name}.unfinished").touch()
    for job in (killed, kept):
        tidy(job, keep_model=False)
    left = {file.name for file in killed.folder.iterdir()}
    assert left == {"config.json", "result.json", "per_volume.csv", "metrics.csv"}
    assert (kept.folder / "model.safetensors").exists()


def test_a_job_that_was_killed_is_marked(study, monkeypatch):
    _, (job, _) = study
    (job.folder / "result.json").unlink()
    marker = job.folder.with_name(f".{job.folder.name}.unfinished")

    def killed(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("sweep.study.jobs._run", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    assert marker.exists()
    monkeypatch.setattr("sweep.study.jobs._run", lambda config: write_cell(job))
    run_job(job)
    assert is_done(job)
    assert not marker.exists()


class AtOnce:
    """A worker that finishes every job as soon as it is started, but the trial of the rate 0.1, which fails."""

    def __init__(self, *_: object) -> None:
        self.job = None

    def start(self, job) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        if not job.name.endswith("lr0.1"):
            write_json(job.folder / "result.json", {})

    def finish(self):
        job, self.job = self.job, None
        return job

    def close(self) -> None:
        pass


def test_a_rate_that_fails_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.study.local, "_Worker", AtOnce)
    monkeypatch.setattr(sweep.study.local, "_finished", lambda pool: [worker for worker in pool if worker.job])
    jobs = plan(make_study(tmp_path, tmp_path / "out", pipelines=("random",), fractions=(0.1,), lr=(1e-3, 0.1)), 24)
    states: dict[str, list[str]] = {}
    note = lambda job, state: states.setdefault(state, []).append(job.name)  # noqa: E731
    sweep.study.local.run_locally(jobs, note, logs=tmp_path, processes=3, threads=1)
    assert states["failed"] == ["rates/random/lr0.1"]
    assert states["done"] == ["rates/random/lr0.001", "cells/random-n2-seed0", "cells/random-n2-seed1"]
    assert states["running"][:2] == ["rates/random/lr0.001", "rates/random/lr0.1"]
    assert "blocked" not in states


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_processes_of_a_study_leave_ctrl_c_to_it(tmp_path):
    """From their first moment: one that was interrupted while it imported printed a traceback."""
    before = signal.getsignal(signal.SIGINT)
    worker = sweep.study.local._Worker(0, tmp_path, 1, None, False)
    worker.start(None)
    try:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn"))
    finally:
        worker.process.kill()
        worker.process.join()
    assert ignored & 1 << (signal.SIGINT - 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_decision_on_components_for_all_sizes(tiny_acdc, tmp_path, monkeypatch):
    """auto is decided on the labels of the largest size, recorded, and kept when the study is continued."""
    cfg = make_study(tiny_acdc, tmp_path / "out", pipelines=("random",), fractions=(0.1, 0.5), seeds=(0,))
    assert cfg.segment.keep_largest_component == "auto"
    seen = []
    monkeypatch.setattr(sweep.study.run, "is_one_component", lambda dataset, positions: seen.append(len(positions)))
    monkeypatch.setattr(sweep.study.run, "_finish", lambda cfg, jobs: jobs)
    cells = sweep.study.run.run(cfg)
    assert seen == [12]  # half of 24
    assert {cell.config.keep_largest_component for cell in cells} == {"no"}
    assert json.loads((cfg.out / "study.json").read_text())["segment"]["keep_largest_component"] == "no"
    monkeypatch.setattr(sweep.study.run, "is_one_component", lambda dataset, positions: True)
    more = sweep.study.run.run(replace(cfg, seeds=(0, 1), extend=True))
    assert {cell.config.keep_largest_component for cell in more} == {"no"}


def test_epochs_beyond_the_steps_of_pretraining(tiny_acdc, tmp_path):
    """30 slices of training patients are 8 steps an epoch with batch size 4, the last on two slices."""
    cfg = make_study(tiny_acdc, tmp_path / "out", pipelines=("specialist",), fractions=(0.5,), pretrain_epochs=(0, 1))
    for steps in (2, 7):
        short = replace(cfg, pretrain=replace(cfg.pretrain, steps=steps))
        with pytest.raises(UserError, match=rf"--pretrain-epochs 1: pretraining ends after the {steps} steps of --pre"):
            run(short)
    _require_epochs(replace(cfg, pretrain=replace(cfg.pretrain, steps=8)))
    assert not cfg.out.exists()
