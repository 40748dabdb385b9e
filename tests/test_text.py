"""Text files of a user: every mistake in one sentence, no hang and no memory taken."""

import os
import time

import pytest

import core.text
from benchmarks.broken_files import CONFIGURATIONS, JSON_FILES
from classify.config import ClassifyConfig
from core.errors import UserError
from core.text import read_json, read_text, read_yaml, search
from data.readers.acdc import phase_of, read_info
from data.readers.folder import read_classes
from data.readers.mrnet import read_labels_csv
from data.splits import load_splits
from engine.config import read_config
from pretrain.config import PretrainConfig
from segment.config import SegmentConfig


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml])
def test_what_is_no_text_file(tmp_path, read, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(UserError, match="is no regular file"):
            read(path)
    for content in (b"\xff\xfea\0", b"\xfe\xff\0a", b"a: 1\0", "é".encode("latin-1")):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match="is not text in UTF-8"):
            read(tmp_path / "a")
    monkeypatch.setattr(core.text, "LARGEST_YAML", 100)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"large has 1,099,511,627,776 bytes"):
        read(tmp_path / "large")


@pytest.mark.parametrize("name", ["cut", "brackets", "long number", "empty", "HTML", "list", "number"])
def test_what_is_no_json(tmp_path, name):
    (tmp_path / "a.json").write_text(JSON_FILES[name])
    for read in (load_splits, read_classes):
        with pytest.raises(UserError, match=r"a\.json "):
            read(tmp_path / "a.json")


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS.keys() - {"brackets"}))
def test_what_is_no_configuration(tmp_path, name):
    (tmp_path / "a.yaml").write_text(CONFIGURATIONS[name])
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_config(SegmentConfig, tmp_path / "a.yaml")


VALUES = ["1e999", ".inf", ".nan", "1" + "0" * 40, "0x" + "f" * 5000, "-.inf", "[1]", "{}"]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_beyond_reason(tmp_path, value):
    for setting in ("seed", "steps", "batch_size", "lr"):
        (tmp_path / "a.yaml").write_text(f"{setting}: {value}\n")
        with pytest.raises(UserError, match=rf"(--{setting.replace('_', '-')} |{setting} is )"):
            read_config(SegmentConfig, tmp_path / "a.yaml")


@pytest.mark.parametrize("kind", [SegmentConfig, PretrainConfig, ClassifyConfig])
@pytest.mark.parametrize("name", ["seed", "steps", "batch_size", "image_size", "workers", "devices", "log_every"])
def test_settings_have_an_upper_bound(kind, name):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} 9223372036854775808: must be at most"):
        kind(**{name: 2**63})


@pytest.mark.parametrize("kind", [SegmentConfig, PretrainConfig, ClassifyConfig])
def test_a_batch_beyond_the_memory_of_the_machine(kind):
    with pytest.raises(UserError, match=r"--image-size 4096: a micro-batch of 65536 such images takes 4398 GB"):
        kind(image_size=4096, batch_size=2**16)
    assert kind(image_size=4096, batch_size=2**16, micro_batch_size=1).image_size == 4096


def test_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"labels": {"background": 0, "organ": 1}}')
    assert read_classes(tmp_path / "a") == ("background", "organ")
    (tmp_path / "b").write_bytes(b'\xef\xbb\xbf{"train": ["x"], "val": [], "test": []}')
    assert load_splits(tmp_path / "b") == {"x": "train"}
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf0001,1\r\n2,0\r\n")
    assert read_labels_csv(tmp_path / "c") == {"0001": 1, "0002": 0}
    (tmp_path / "d").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert read_config(SegmentConfig, tmp_path / "d").seed == 3
    (tmp_path / "Info.cfg").write_bytes(b"\xef\xbb\xbfED: 1\r\nES: 12\r\n")
    assert phase_of(read_info(tmp_path), 12) == "ES"
    assert phase_of(read_info(tmp_path), 1) == "ED"


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", "1.0", "", "1 2"])
def test_frame_numbers_that_are_none(number):
    assert phase_of({"ED": number}, 1) == ""


def test_csv_files(tmp_path):
    for content in (b'"' + b"x" * 200_000 + b'",1\n', b"0001,1\0\n", b"\xff\xfe0\0"):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.csv"):
            read_labels_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*$b", "(.*)*(.*)*(.*)*(.*)*b"])
def test_a_search_ends_in_time(pattern, monkeypatch):
    monkeypatch.setattr(core.text, "PATTERN_SECONDS", 0.05)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"takes more than .* avoid repetitions"):
        search(pattern, "a" * 60)
    assert time.monotonic() - began < 5
    assert search("b+", "abb")[0] == "bb"


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(?P<1>a)", "[z-a]"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(UserError, match="is no regular expression"):
        search(pattern, "a")
