"""The `fewslice` command."""

import os
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


@pytest.mark.slow
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


MODULES = ["segment", "segment.predict", "segment.evaluate", "sweep", "sweep.report"]


@pytest.fixture
def folder_of_others(tmp_path):
    """A working folder with packages and modules of other people that have our names."""
    for name in ("data", "core", "engine", "encoders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    return tmp_path


def run_in(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        command, cwd=folder, env=os.environ | path | environment, capture_output=True, text=True, check=False
    )


def test_packages_of_our_names_are_not_imported(folder_of_others):
    program = "import segment, core.errors, engine; import data.preprocessing as ours; print(ours.__file__)"
    done = run_in(folder_of_others, sys.executable, "-c", program)
    assert done.stdout.strip() == str(REPOSITORY / "data" / "preprocessing.py"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_packages_of_our_names_in_the_working_folder_are_not_imported(folder_of_others, module):
    done = run_in(folder_of_others, sys.executable, "-m", module, "--help")
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.slow
def test_the_command_does_not_import_a_module_of_ours_from_the_path(folder_of_others):
    (folder_of_others / "segment.py").write_text("raise RuntimeError('the wrong module')\n")
    for name in ("core", "engine"):  # the script itself is core.console
        (folder_of_others / name / "__init__.py").unlink()
        (folder_of_others / name).rmdir()
    program = "import sys; sys.argv = ['fewslice', 'segment', '--help']; from core.console import main; main()"
    done = run_in(folder_of_others, sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr


def test_the_search_path_is_left_as_it_was():
    program = "import sys; before = list(sys.path); import sweep, data; assert sys.path == before"
    done = run_in(REPOSITORY, sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["seg"], ["segment", "segment.predict", "segment.agreement", "segment.evaluate"]),
        (["annotate", ""], ["first", "next", "collect"]),
        (["segment", "--labelled-f"], ["--labelled-fraction"]),
        (["segment", "--dataset", ""], ["acdc", "folder"]),
        (["segment", "--slice-a"], []),
        (["segment", "--dataset", "folder", "--slice-a"], ["--slice-axis"]),
        (["sweep", "--selection", "random", "f"], ["foreground", "first"]),
        (["segment", "--no-such-flag", "--decod"], ["--decoder"]),
        (["segment", "--data-root", ""], []),
    ],
)
def test_what_the_shell_suggests(words, found, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewslice", "--complete", *words])
    console.main()
    assert capsys.readouterr().out.split() == found


@pytest.mark.slow
def test_bash_completes(tmp_path):
    typed = 'COMP_WORDS=(fewslice annotate fi); COMP_CWORD=2; _fewslice; echo "${COMPREPLY[@]}"'
    lines = ["bash", "--norc", "-c", f'eval "$(fewslice --completion bash)"; complete -p fewslice; {typed}']
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(lines, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["complete -o default -F _fewslice fewslice", "first"], done.stderr


def test_completion_of_another_shell_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewslice", "--completion", "fish"])
    with pytest.raises(SystemExit) as end:
        console.main()
    assert end.value.code == 2
    assert "name a shell, bash or zsh" in capsys.readouterr().err
