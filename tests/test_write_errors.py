"""Writing: modes, leftovers, full disks; how commands end on errors and on Ctrl-C."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from forking import REPOSITORY
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import save_file

from core.errors import UserError, sentence, user_errors
from core.files import (
    is_temporary,
    naming_file,
    remove_leftovers,
    save_figure,
    temporary_name,
    write_atomically,
    write_csv,
    write_text,
)

WRITERS = {
    "a.csv": lambda path: write_csv(path, pd.DataFrame({"a": [1]})),
    "a.png": lambda path: save_figure(path, Figure()),
    "a.safetensors": lambda path: write_atomically(path, lambda file: save_file({"a": torch.zeros(9)}, file)),
    "a.txt": lambda path: write_text(path, "text"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_have_the_mode_of_the_umask(tmp_path, name):
    before = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_leaves_the_previous_file(tmp_path, name, monkeypatch):
    (tmp_path / name).write_text("previous")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / name)
    assert (tmp_path / name).read_text() == "previous"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_error_of_any_library_names_the_file(error):
    with (
        pytest.raises(OSError, match=r"No space left on device.*/out/model") as raised,
        naming_file(Path("/out/model")),
    ):
        raise error
    assert sentence(raised.value).startswith("/out/model: No space left on device; make room")


def test_other_errors_stay():
    with pytest.raises(TypeError), naming_file(Path("a")):
        raise TypeError("a bug")


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "below").mkdir()
    name = temporary_name(tmp_path / "below/model.safetensors").name
    dead = [name.replace(str(os.getpid()), "4000000"), ".model.safetensors.4000000.partial"]
    alive = [name.replace(str(os.getpid()), str(os.getppid())), ".hidden", "file.partial", ".a.partial"]
    for each in [*dead, *alive]:
        (tmp_path / "below" / each).touch()
    remove_leftovers(tmp_path, below=False)
    assert len(list((tmp_path / "below").iterdir())) == 6
    remove_leftovers(tmp_path)
    assert sorted(file.name for file in (tmp_path / "below").iterdir()) == sorted(alive)
    remove_leftovers(tmp_path, alone=True)
    assert not [file for file in tmp_path.rglob("*") if is_temporary(file)]


def test_temporary_files_of_another_machine_are_kept_for_a_day(tmp_path):
    path = tmp_path / ".partial-zzzzzz-4000000-a.csv"
    path.touch()
    remove_leftovers(tmp_path)
    assert path.exists()
    os.utime(path, (1e9, 1e9))
    remove_leftovers(tmp_path)
    assert not path.exists()


def _interrupted(swallow: bool) -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        if swallow:
            raise ImportError("a library failed to import") from None
        raise


@pytest.mark.parametrize("swallow", [False, True])
def test_ctrl_c_ends_with_one_line(capsys, swallow):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end, user_errors():
        _interrupted(swallow)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("what to do"), "error: what to do\n"),
        (OSError(errno.EROFS, "Read-only file system", "/out/a.csv"), "error: /out/a.csv: Read-only file system; "),
        (OSError("of a library"), "error: of a library\n"),
    ],
)
def test_errors_of_users_and_files_are_sentences(capsys, error, said):
    with pytest.raises(SystemExit) as end, user_errors():
        raise error
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(("module", "imported"), [("segment", "tyro"), ("segment.predict", "pandas")])
def test_ctrl_c_during_imports(tmp_path, module, imported):
    """The interrupt comes while a library is imported: inside `user_errors`, and before it."""
    (tmp_path / f"{imported}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", module, "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "stopped by Ctrl-C\n", "")


def test_ctrl_c_during_shutdown_ends_without_a_traceback():
    """The signal then ends the process as the system does, which a shell shows as 130, too."""
    program = (
        "import atexit, os, signal\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"  # called after those registered later
        "from core.errors import user_errors\n"
        "with user_errors(): pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
