"""The page of a run."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine.run_page
from core.page import jpeg_address
from core.resampling import mean_with_interval
from data.pictures import contact_sheet, draw_slice, spread_places
from data.sources import AcdcSource
from engine.run_folder import RunFolder
from engine.run_page import Case, CasePage, RunPage, Table, command_that_runs, render, write_run_page
from segment.config import SegmentConfig

BAD = "<script>alert('x')</script>&"


def page(**settings) -> RunPage:
    return RunPage(**({"title": "t", "lead": "l", "what_was_run": {"Data": "d"}} | settings))


def metrics(folder: Path) -> None:
    lines = ["step,loss,validation_dice", "1,2.5,", "2,2.0,0.25", "3,1.5,", "4,1.0,0.5"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def external(html: str) -> list[str]:
    """What a browser would load from elsewhere."""
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", html) + re.findall(r"url\(([^)]+)\)", html)
    return [address for address in addresses if not address.startswith(("data:", "#"))]


def test_everything_on_the_page_is_escaped_and_embedded(tmp_path):
    metrics(tmp_path)
    picture = jpeg_address(draw_slice(np.arange(64.0).reshape(8, 8), side=16))
    case = Case(title=BAD, pages=[CasePage(title=BAD, pictures={BAD: picture})])
    table = Table(title=BAD, text=BAD, heads=[BAD], rows=[[BAD]])
    everywhere = page(
        title=BAD, lead=BAD, notices=[BAD], what_was_run={BAD: BAD}, tables=[table], curves={"loss": ["loss"]},
        cases=[case], cases_text=BAD, legend={BAD: "#000000"}, following={BAD: BAD}, notes=[BAD],
    )  # fmt: skip
    html = render(tmp_path / "<b>", "segment", SegmentConfig(init=BAD), replace(everywhere, curves={}))
    html += render(tmp_path, "segment", SegmentConfig(), everywhere)
    assert "<script" not in html
    assert "<b>/" not in html
    assert html.count("&lt;script&gt;") > 20
    assert not external(html)
    assert "data:image/jpeg;base64," in html


def test_learning_curves_are_of_the_columns_that_exist(tmp_path):
    metrics(tmp_path)
    wanted = {"loss": ["loss"], "score": ["validation_dice", "validation_jaccard"], "probe": ["probe_jaccard"]}
    html = render(tmp_path, "segment", SegmentConfig(), page(curves=wanted))
    assert html.count("<svg") == 2
    assert "optimiser step" in html
    assert "var(--c0)" in html
    (tmp_path / "metrics.csv").unlink()
    assert "<svg" not in render(tmp_path, "segment", SegmentConfig(), page(curves=wanted))


def test_the_settings_and_commands_are_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/segment/__main__.py", "--init", "my file", "--seed", "3"])
    html = render(tmp_path, "segment", SegmentConfig(), page(following={"Next": "python -m segment.predict"}))
    assert "python -m segment --init &#39;my file&#39; --seed 3" in html
    assert f"python -m segment --config {tmp_path}/config.json --out NEW_FOLDER" in html
    assert "python -m segment.predict" in html
    assert "augmentation.crop" in html


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fewslice segment", "--seed", "1"], "fewslice segment --seed 1"),
        (["/a/segment/__main__.py", "--seed", "1"], "python -m segment --seed 1"),
        (["/a/sweep/__main__.py"], None),
        (["/bin/pytest"], None),
    ],
)
def test_the_exact_command(arguments, line, monkeypatch):
    monkeypatch.setattr("sys.argv", arguments)
    assert command_that_runs("segment") == line


def test_a_page_that_fails_loses_nothing(tmp_path, monkeypatch, caplog):
    def broken() -> RunPage:
        raise MemoryError("too large")

    cfg = SegmentConfig(out=tmp_path / "run")
    with caplog.at_level("WARNING", "fewslice"), RunFolder(cfg.run_folder, cfg) as run:
        run.write_result({"dice": 1})
        write_run_page(run, cfg, page)
        assert (run.path / "report.html").read_text().startswith("<!doctype html>")
        write_run_page(run, cfg, broken)
        assert not (run.path / "report.html").exists()  # nothing of an earlier attempt
        monkeypatch.setattr(engine.run_page, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
        write_run_page(run, cfg, page)
        assert (run.path / "result.json").exists()
    assert "report.html could not be written (too large)" in caplog.text
    assert "disk full" in caplog.text


def test_intervals_over_patients():
    values = np.array([0.5, 0.7, 0.9, np.nan])
    mean = mean_with_interval(values)
    assert mean["value"] == pytest.approx(0.7)
    assert 0.5 <= mean["low"] < 0.7 < mean["high"] <= 0.9
    assert mean == mean_with_interval(values)  # the same on every call
    assert np.isnan([mean_with_interval(values[:1])[end] for end in ("low", "high")]).all()
    assert np.isnan(mean_with_interval(values[3:])["value"])


def test_a_slice_as_a_picture():
    image, labels = np.zeros((20, 10)), np.zeros((20, 10), np.uint8)
    image[5:, :], labels[6:12, 2:8] = 100, 1
    image[0, 0] = np.inf
    picture = draw_slice(image, labels, aspect=0.5, side=40)
    assert picture.size == (40, 40)
    assert picture.mode == "RGB"
    values = np.asarray(picture)
    assert values[1, 20].tolist() == [0, 0, 0]
    assert values[38, 20].tolist() == [255, 255, 255]
    assert values[12, 20].tolist() == [0x56, 0xB4, 0xE9]  # the outline, which begins at row 6 of 20
    inside = [round(0.65 * 255 + 0.35 * channel) for channel in (0x56, 0xB4, 0xE9)]
    assert values[18, 20].tolist() == inside
    assert draw_slice(np.full((4, 4), np.nan), side=8).getextrema() == (0, 0)


def test_a_contact_sheet():
    pictures = [Image.new("L", (40, 20), 128)] * 3
    sheet = contact_sheet(pictures, ["a", "b" * 99, "c"], columns=2)
    assert sheet.size == (2 * 44, 2 * 60)
    assert sheet.getpixel((20, 20)) == (128, 128, 128)
    assert sheet.getpixel((20, 5)) == (255, 255, 255)


def test_spread_places():
    assert spread_places(3, 5) == [0, 1, 2]
    assert spread_places(101, 3) == [0, 50, 100]
    assert spread_places(1, 4) == [0]


@pytest.mark.slow
def test_the_page_of_a_segmentation_names_no_patient(tiny_acdc, tmp_path):
    from segment.training import run

    few = {
        "encoder": "test_resnet",
        "image_size": 32,
        "steps": 2,
        "evaluate_every": 1,
        "batch_size": 4,
        "device": "cpu",
    }
    cfg = SegmentConfig(data=AcdcSource(data_root=tiny_acdc), out=tmp_path / "run", anonymous=True, test=True, **few)
    run(cfg)
    html = (tmp_path / "run/report.html").read_text()
    assert "patient0" not in html
    assert "anonymous-" in html
    assert not external(html)
    for words in ("worst: ", "slice 1 of 3", "Scores by patient, test split", "95 % interval", "validation Dice"):
        assert words in html, words
    assert html.count("data:image/jpeg;base64,") == 2 * 3 * 3  # two volumes of three slices, three pictures each
    run(replace(cfg, out=tmp_path / "without", figures=False))
    assert not (tmp_path / "without/report.html").exists()
