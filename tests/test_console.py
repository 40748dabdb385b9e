"""The `fewslice` command."""

import subprocess
import sys
from pathlib import Path

import pytest

from core import console

REPOSITORY = Path(__file__).parents[1]


def test_every_command_is_a_module_that_explains_itself():
    for name in console.COMMANDS:
        path = REPOSITORY / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_commands_run_from_any_folder(tmp_path):
    """A folder named like one of our packages in the working directory is not in the way."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    command = [Path(sys.executable).with_name("fewslice"), "data.phantom", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--subjects" in done.stdout


@pytest.mark.parametrize(("name", "hint"), [("segmnt", "did you mean segment?"), ("qqq", "choose among pretrain")])
def test_an_unknown_command_is_refused_with_a_hint(name, hint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewslice", name])
    with pytest.raises(SystemExit) as end:
        console.main()
    assert end.value.code == 2
    assert hint in capsys.readouterr().err


def test_the_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewslice"])
    console.main()
    listed = capsys.readouterr().out
    assert all(name in listed for name in console.COMMANDS)
