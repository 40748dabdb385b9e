"""The folder of a synthetic data set: complete, or absent and free to be written again."""

import os

import pytest

from core.errors import UserError
from core.files import temporary_name
from data.phantoms.checks import new_data_set


def _write(out, error=None):
    with new_data_set(out, ["training"], 0) as folder:
        (folder / "training").mkdir()
        (folder / "training/a.nii").touch()
        if error:
            raise error
        (folder / "notes.csv").touch()


def test_what_a_killed_phantom_left_is_replaced(tmp_path):
    left = temporary_name(tmp_path / "data")
    dead = left.with_name(left.name.replace(str(os.getpid()), "4000000"))
    for folder in (left, dead):  # in a container each start may have the same number
        (folder / "training").mkdir(parents=True)
        (folder / "training/half.nii").touch()
    _write(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"training/a.nii", "notes.csv"} < files
    assert not [name for name in files if "half" in name or "partial" in name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_phantom_can_be_started_again(tmp_path, error):
    with pytest.raises((KeyboardInterrupt, OSError)):
        _write(tmp_path / "out", error)
    assert list((tmp_path / "out").iterdir()) == []
    _write(tmp_path / "out")
    with pytest.raises(UserError, match="training exists already"):
        _write(tmp_path / "out")
