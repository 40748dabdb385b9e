"""Data are identified by content; the cache of packed data can be listed and pruned."""

import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

import core.contents
from core.contents import content_digests
from data.cache import CacheConfig, packed_sets, run
from data.store import files_digest, open_store
from tests.test_store import make

NAMES = ["a.png", "b.nii"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(root: Path) -> Path:
    root.mkdir()
    for name in NAMES:
        (root / name).write_bytes(name.encode() * 100_000)
        os.utime(root / name, (1e9, 1e9))
    return root


def test_a_copy_has_the_same_digests(tmp_path):
    root, copy = write(tmp_path / "a"), tmp_path / "b"
    copy.mkdir()
    for name in NAMES:
        shutil.copyfile(root / name, copy / name)  # as cp without -p
    table = pd.DataFrame({"file": NAMES, "label_file": "", "frame": 1, "slice": 0})
    assert content_digests(root, NAMES) == content_digests(copy, NAMES)
    assert files_digest(table, root) == files_digest(table, copy)
    assert files_digest(table, root) != files_digest(table.assign(slice=1), root)


def test_a_byte_in_the_middle_counts_even_with_the_old_time_stamp(tmp_path):
    root = write(tmp_path / "a")
    before = content_digests(root, NAMES)
    content = bytearray((root / "b.nii").read_bytes())
    content[250_000] ^= 1
    (root / "b.nii").write_bytes(content)
    os.utime(root / "b.nii", (1e9, 1e9))
    after = content_digests(root, NAMES)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_unchanged_files_are_read_once(tmp_path, monkeypatch, cache):
    root = write(tmp_path / "a")
    monkeypatch.setattr(core.contents, "SETTLED", -1)  # files that were written just now are not trusted
    expected = content_digests(root, NAMES)
    assert list((cache / "digests").iterdir())
    monkeypatch.setattr(core.contents, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert content_digests(root, NAMES) == expected


@pytest.mark.parametrize("content", ["", "[]", '{"a.png": 3}', "\0"])
def test_a_damaged_cache_of_digests_is_made_again(tmp_path, monkeypatch, cache, content):
    root = write(tmp_path / "a")
    monkeypatch.setattr(core.contents, "SETTLED", -1)
    expected = content_digests(root, NAMES)
    for file in (cache / "digests").iterdir():
        file.write_text(content)
    assert content_digests(root, NAMES) == expected == content_digests(root, NAMES)


def test_list_and_prune(tmp_path, capsys):
    table = make(tmp_path / "root")
    place = open_store(table, tmp_path / "root").file.parent
    assert run(CacheConfig()) == 0
    assert str(tmp_path / "root") in capsys.readouterr().out
    assert run(CacheConfig(prune=True)) == 0
    old = time.time() - 40 * 86400
    for file in place.iterdir():
        os.utime(file, (old, old))
    open_store(table, tmp_path / "root")  # used: it stays
    assert run(CacheConfig(prune=True)) == 0
    for file in place.iterdir():
        os.utime(file, (old, old))
    assert run(CacheConfig(prune=True)) == 1
    assert packed_sets() == []


@pytest.mark.parametrize("reason", ["files are gone", "other format"])
def test_packed_data_that_nothing_can_use_is_pruned(tmp_path, reason):
    place = open_store(make(tmp_path / "root"), tmp_path / "root").file.parent
    (place.parent / f"{place.name}.tmp-killed").mkdir()
    if reason == "files are gone":
        shutil.rmtree(tmp_path / "root")
    else:
        (place / "origin.json").write_text('{"format": 1}')
    assert run(CacheConfig(prune=True)) == 1
    assert not [path for path in place.parent.iterdir() if path.is_dir()]
