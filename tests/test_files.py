import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from core.errors import UserError
from core.files import write_atomically, write_json
from core.locks import Locked, file_lock
from data.splits import save_splits


def test_a_failed_write_keeps_the_previous_file(tmp_path):
    write_json(tmp_path / "a.json", {"path": Path("x")})
    before = (tmp_path / "a.json").read_text()
    assert before == '{\n  "path": "x"\n}\n'

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a.json", fail)
    assert (tmp_path / "a.json").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def _hold(path: Path, held) -> None:
    with file_lock(path, wait=True):
        held.send(True)
        signal.pause()


def test_a_lock_is_refused_while_held_and_freed_when_its_holder_dies(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", there))
    holder.start()
    assert here.recv()
    with pytest.raises(Locked), file_lock(tmp_path / "lock", wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with file_lock(tmp_path / "lock", wait=True) as held:
        assert held


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(38, os.strerror(38))  # ENOSYS

    monkeypatch.setattr("fcntl.flock", refuse)
    with file_lock(tmp_path / "lock", wait=True) as held:
        assert not held


@pytest.mark.parametrize("write", [write_json, lambda path, content: save_splits(path, content)])
def test_a_device_or_pipe_is_never_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder"):
        with pytest.raises(UserError, match=f"{name} is no regular file and cannot be replaced"):
            write(tmp_path / name, {"a": "train"})
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "device").is_char_device()
    assert len(list(tmp_path.iterdir())) == 3
