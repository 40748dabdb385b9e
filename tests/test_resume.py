"""Run folders after kills, damage and second processes; what a resumed run keeps."""

import csv
import json
import logging
import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

import engine.run_folder
from core.errors import UserError
from core.files import temporary_name
from engine.config import RunSettings
from engine.run_folder import RunFolder

COLUMNS = ["step", "loss", "dice"]


def start(path: Path, **settings) -> RunFolder:
    return RunFolder(path, RunSettings(**settings))


def begun(path: Path, rows: int = 6) -> Path:
    """A run folder with rows of metrics and a checkpoint."""
    with start(path) as run:
        run.open_metrics(COLUMNS, 0)
        for step in range(1, rows + 1):
            run.record({"step": step, "loss": 1 / step} | ({"dice": 0.5} if step == 4 else {}))
    (path / "checkpoint.pt").write_text("weights")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("choice", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "partial"), (".lock", ".config.json.4000000.partial")])
def test_a_folder_of_a_run_that_was_killed_before_it_began(tmp_path, choice, left):
    for name in left:
        (temporary_name(tmp_path / "config.json") if name == "partial" else tmp_path / name).write_text("{")
    start(tmp_path, **choice).close()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "config.json", "train.log"]


@pytest.mark.parametrize("killed_at", range(6))
@pytest.mark.parametrize("choice", [{"resume": True}, {"overwrite": True}])
def test_a_kill_in_the_middle_of_overwrite(tmp_path, monkeypatch, killed_at, choice):
    """The folder stays one of a run, and nothing of the earlier one is taken for the state of the new."""
    path = begun(tmp_path / "run")
    for name in ("result.json", "kept.json", "model.json"):
        (path / name).write_text("{}")
    unlink, calls = Path.unlink, []

    def killed(self: Path, **options: bool) -> None:
        if self.suffix in (".json", ".pt", ".csv"):
            if len(calls) == killed_at:
                raise KeyboardInterrupt
            calls.append(self)
        unlink(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with suppress(KeyboardInterrupt):
            start(path, overwrite=True).close()
    assert (path / "config.json").exists()
    if killed_at:
        assert not (path / "result.json").exists()  # else it would count as finished
    start(path, **choice).close()


@pytest.mark.parametrize("choice", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_process_is_refused(tmp_path, choice):
    with start(tmp_path) as run:
        (tmp_path / "checkpoint.pt").touch()
        with pytest.raises(UserError, match="another process is working in"):
            start(tmp_path, **choice)
        assert (tmp_path / "checkpoint.pt").exists()
        run.write_result({})
    start(tmp_path, resume=True).close()


def _hold(path: Path, held) -> None:
    with start(path):
        held.send(True)
        signal.pause()


def test_a_dead_process_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    holder = context.Process(target=_hold, args=(tmp_path, there))
    holder.start()
    assert here.recv()
    with pytest.raises(UserError, match="another process"):
        start(tmp_path, resume=True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    start(tmp_path, resume=True).close()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr("fcntl.flock", refuse)
    start(tmp_path).close()
    start(tmp_path, resume=True).close()


def test_a_mistyped_folder_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fewslice"):
        start(tmp_path / "no/such", resume=True).close()
    assert "nothing to resume" in caplog.text
    assert "nothing to resume" in (tmp_path / "no/such/train.log").read_text()


@pytest.mark.parametrize(
    ("change", "kept", "said"),
    [
        (lambda text: text, "12345", ""),
        (lambda text: text + "\0\0\0\0", "12345", ""),
        (lambda text: text + "7,0.1", "12345", "damaged"),
        (lambda text: text[: text.index("6,")] + "6,0.\0\0", "12345", "damaged"),
        (lambda text: text.replace("3,0.333", "3,\0x333"), "1245", "damaged"),
        (lambda text: text.replace("dice", "score"), "12345", "another version"),
        (lambda text: text.replace("step", "steps"), "", "damaged"),
        (lambda text: "<html>\nnot found\n", "", "damaged"),
        (lambda text: "", "", "damaged"),
        (lambda text: text.replace("\n2,", "\n[2],"), "1345", "damaged"),
    ],
)
def test_damaged_metrics(tmp_path, caplog, change, kept, said):
    path = begun(tmp_path / "run")
    file = path / "metrics.csv"
    file.write_text(change(file.read_text()))
    with caplog.at_level(logging.INFO, "fewslice"), start(path, resume=True) as run:
        run.open_metrics(COLUMNS, 5)
        run.record({"step": 6, "loss": 0.25})
    assert "".join(row["step"] for row in rows(path)) == kept + "6"
    assert list(rows(path)[0]) == COLUMNS
    assert bool(caplog.text) == bool(said)
    assert said in caplog.text
    assert (path / "metrics.damaged.csv").exists() == bool(said)


def test_missing_metrics_are_said(tmp_path, caplog):
    path = begun(tmp_path / "run")
    (path / "metrics.csv").unlink()
    with start(path, resume=True) as run:
        run.open_metrics(COLUMNS, 5)
    assert "metrics.csv is missing" in caplog.text


def test_a_kill_while_metrics_are_rewritten_loses_nothing(tmp_path, monkeypatch):
    path = begun(tmp_path / "run")
    before = rows(path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, start(path, resume=True) as run:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.open_metrics(COLUMNS, 5)
    assert rows(path) == before


def test_the_last_metrics_of_a_resumed_run(tmp_path):
    path = begun(tmp_path / "run")
    with start(path, resume=True) as run:
        run.open_metrics(COLUMNS, 5)
        assert run.latest == {"loss": 0.2, "dice": 0.5}
        run.record({"step": 6, "loss": 0.125})
        assert run.latest == {"loss": 0.125, "dice": 0.5}


def test_the_result_of_a_finished_run_stays(tmp_path):
    with start(tmp_path) as run:
        run.note_data("a")
        first = run.write_result({"dice": 0.5, "test": {"dice": 0.4}, "seconds": 9.0, "images_per_second": 3.0})
    assert first["data_digest"] == "a"
    with start(tmp_path, resume=True) as run:
        assert run.finished == first
        with pytest.raises(UserError, match=r"other data, labels or splits .*a, now b"):
            run.note_data("b")
        again = run.write_result({"dice": 0.5, "seconds": 0.1, "images_per_second": 0.0})
    assert again == first == json.loads((tmp_path / "result.json").read_text())


@pytest.mark.parametrize("content", ["", "[1]", "<html>", "\0\0"])
def test_a_damaged_result_is_refused(tmp_path, content):
    start(tmp_path).close()
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json .*remove it"):
        start(tmp_path, resume=True)


@pytest.mark.parametrize("file", ["metrics.csv", "train.log"])
def test_a_full_disk_names_the_folder_of_the_file(tmp_path, file, monkeypatch):
    """/dev/full takes no byte."""
    path = begun(tmp_path / "run")
    (path / file).unlink()
    (path / file).symlink_to("/dev/full")
    monkeypatch.setattr(engine.run_folder, "write_text", lambda *_: None)
    logging.getLogger("fewslice").setLevel(logging.INFO)

    def work() -> None:
        with start(path, resume=True) as run:
            run.open_metrics(COLUMNS, 0)
            logging.getLogger("fewslice").info("message")
            run.record({"step": 6, "loss": 0.25})

    with pytest.raises(OSError, match=r"No space left on device.*/run"):
        work()
