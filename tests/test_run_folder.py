import csv
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.errors import UserError
from engine.config import RunSettings, plain
from engine.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """A run with one setting besides those of every run."""

    lr: float = 0.5


def start(path: Path, *, main: bool = True, **settings) -> RunFolder:
    return RunFolder(path, Settings(**settings), main=main)


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_folder_holds_the_configuration(tmp_path):
    start(tmp_path / "deep" / "run").close()
    saved = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert saved == {k: v for k, v in plain(Settings()).items() if k not in ("resume", "overwrite")}


def test_a_saved_configuration_does_not_repeat_overwrite(tmp_path):
    start(tmp_path, overwrite=True).close()
    assert not {"resume", "overwrite"} & json.loads((tmp_path / "config.json").read_text()).keys()


def test_the_error_of_a_folder_in_use_names_resume_and_overwrite(tmp_path):
    start(tmp_path).close()
    with pytest.raises(UserError, match=r"holds an earlier run.*--resume.*--overwrite"):
        start(tmp_path)


def test_overwriting_removes_the_earlier_run(tmp_path):
    start(tmp_path).close()
    (tmp_path / "checkpoint.pt").touch()
    start(tmp_path, overwrite=True, seed=7).close()
    assert not (tmp_path / "checkpoint.pt").exists()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


@pytest.mark.parametrize(
    "content", [None, "{}", "[1]", "not json", '{"model_type": "bert", "seed": 1, "out": "x", "device": "cpu"}']
)
def test_a_foreign_folder_is_never_touched(tmp_path, content):
    """`config.json` is a common name: a folder is a run folder only if the file holds the settings of a run."""
    (tmp_path / "thesis.tex").write_text("years of work")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for choice in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="not empty and holds no fewslice run; choose another --out"):
            start(tmp_path, **choice)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert content is None or (tmp_path / "config.json").read_text() == content
    assert not (tmp_path / "train.log").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="holds no fewslice run"):
        start(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").read_text() == "a file"


def test_resuming_with_other_settings_names_both_values(tmp_path):
    start(tmp_path).close()
    with pytest.raises(UserError, match=r"cannot resume .*\(lr was 0\.5 and is now 0\.1, seed was 0 and is now 3\)"):
        start(tmp_path, resume=True, seed=3, lr=0.1)
    start(tmp_path, resume=True, workers=4, device="cuda", log_every=2).close()  # where and how, not what


def test_resuming_into_an_empty_folder_starts(tmp_path):
    start(tmp_path / "run", resume=True).close()
    assert (tmp_path / "run" / "config.json").exists()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    run = start(tmp_path)
    run.open_metrics(["step", "loss", "dice"], 0)
    for step in range(1, 8):
        run.record({"step": step, "loss": 1 / step} | ({"dice": 0.5} if step == 4 else {}))
    run.close()
    assert [row["step"] for row in rows(tmp_path)] == list("1234567")

    run = start(tmp_path, resume=True)
    run.open_metrics(["step", "loss", "dice"], 5)
    assert [row["step"] for row in rows(tmp_path)] == list("12345")
    run.record({"step": 6, "loss": 0.25})
    run.close()
    assert [(row["step"], row["dice"]) for row in rows(tmp_path)[3:]] == [("4", "0.5"), ("5", ""), ("6", "")]
    assert rows(tmp_path)[-1]["loss"] == "0.25"


def test_rows_are_on_disk_as_soon_as_they_are_recorded(tmp_path):
    run = start(tmp_path)
    run.open_metrics(["step", "loss"], 0)
    run.record({"step": 1, "loss": 3.0})
    assert rows(tmp_path) == [{"step": "1", "loss": "3.0"}]
    run.close()


def test_other_processes_write_nothing(tmp_path):
    run = start(tmp_path / "run", main=False)
    run.open_metrics(["step"], 0)
    run.record({"step": 1})
    run.write_result({"steps": 1})
    run.close()
    assert not (tmp_path / "run").exists()


def test_the_log_ends_with_the_run(tmp_path):
    log = logging.getLogger("fewslice")
    log.setLevel(logging.INFO)
    run = start(tmp_path)
    log.info("during")
    run.write_result({"steps": 3})
    run.close()
    run.close()  # twice does no harm
    log.info("after")
    text = (tmp_path / "train.log").read_text()
    assert "during" in text
    assert "after" not in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 3
    assert result.keys() == {"steps", "data_digest", "versions", "commit"}
