import errno
import os
import resource

import pytest
import torch

from core.errors import UserError
from engine.checkpoint import read_checkpoint, write_checkpoint


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    state = {"step": 7, "model": {"weight": torch.arange(6.0).reshape(2, 3)}, "rng": torch.get_rng_state()}
    write_checkpoint(tmp_path / "checkpoint.pt", state)
    again = read_checkpoint(tmp_path / "checkpoint.pt")
    assert again["step"] == 7
    assert torch.equal(again["model"]["weight"], state["model"]["weight"])
    assert torch.equal(again["rng"], state["rng"])
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("room", [100, 5000])
def test_a_file_that_does_not_fit_leaves_the_old_checkpoint(tmp_path, room):
    """A limit on the size of files cuts the write short as a full disk does, after `room` real bytes."""
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*checkpoint\.pt .*too large.*previous .* intact.*--resume"):
            write_checkpoint(path, {"step": 2, "model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_when_the_file_is_synchronised(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoint\.pt .*No space left on device.*previous checkpoint is intact"):
        write_checkpoint(path, {"step": 2})
    assert read_checkpoint(path) == {"step": 1}


def test_a_first_checkpoint_that_fails_says_that_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="there is no earlier one"):
        write_checkpoint(tmp_path / "checkpoint.pt", {"step": 1})
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*checkpoint\.pt.*--overwrite"):
        read_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"model": torch.zeros(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cannot read .*checkpoint\.pt"):
        read_checkpoint(path)


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pickled code ran",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, "checkpoint.pt")
    with pytest.raises(UserError, match=r"cannot read .*checkpoint\.pt") as refused:
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "pickled code ran").exists()
    assert "weights_only" not in str(refused.value)  # torch's advice to load it all the same
    assert "\n" not in str(refused.value)
