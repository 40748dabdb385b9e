"""A name or value that is unknown is refused with the one that is meant; commands are printed as they were started."""

import io
import shlex
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from classify.tables import next_commands
from core.command_line import parse_command
from core.console import COMMANDS, main
from core.errors import UserError, user_errors
from core.nearest import nearest
from core.page import page_environment
from core.program import in_same_spelling, program
from encoders.formats import read_weights
from engine.command_line import parse
from engine.run_page import RunPage, render
from pretrain.config import PretrainConfig, presets_for
from pretrain.run_page import next_command
from pretrain.sources import natural_images
from segment.config import PRESETS, SegmentConfig
from segment.tables import next_command as next_of_unet
from sweep.study.config import SweepConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    decoder: Literal["unet", "dpt"] = "unet"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Made-up options."""

    input: Path
    selection: tuple[Literal["random", "next"], ...] = ("random",)
    spacing_mm: float | None = None
    segment: Inner = field(default_factory=Inner)


def refusal(line: str, parsing) -> str:
    """The last line on standard error of a command line that ends with exit code 2."""
    output = io.StringIO()
    with redirect_stderr(output), pytest.raises(SystemExit) as end:
        parsing(shlex.split(line))
    assert end.value.code == 2
    return output.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "correction"),
    [
        ("--input x --selection randm next", "--selection randm: did you mean random?"),
        ("--input x --spacing-mm none", "--spacing-mm none: did you mean None?"),
        ("--input x --spacing-mm NULL", "--spacing-mm NULL: did you mean None?"),
        ("--input x --segment.decoder=dtp", "--segment.decoder dtp: did you mean dpt?"),
        ("--inptu x", "--inptu: did you mean --input?"),
        ("--inptu=x", "--inptu: did you mean --input?"),
    ],
)
def test_the_option_or_value_that_is_meant(line, correction):
    assert refusal(line, lambda args: parse_command(Options, "python -m made.up", (), args=args)) == correction


@pytest.mark.parametrize("line", ["--input x --selection zzz", "--input x --spacing-mm 1,5", "--zzz x"])
def test_nothing_is_suggested_for_what_is_like_nothing(line):
    assert "did you mean" not in refusal(line, lambda args: parse_command(Options, "python -m made.up", (), args=args))


@pytest.mark.parametrize(
    ("presets", "line", "correction"),
    [
        (lambda early: PRESETS, "--decoder dtp", "--decoder dtp: did you mean dpt?"),
        (lambda early: PRESETS, "--track wandB", "--track wandB: did you mean wandb?"),
        (presets_for, "--method byool", "--method byool: did you mean byol?"),
    ],
)
def test_values_of_options_in_groups(presets, line, correction):
    assert refusal(line, lambda arguments: parse(presets, "", arguments)) == correction


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--recipe defualt", "choose demo, default, paper; did you mean default[?]$"),
        ("--dataset foldr", "--dataset foldr: choose acdc, folder; did you mean folder[?]$"),
    ],
)
def test_presets_and_layouts(line, message):
    with pytest.raises(UserError, match=message):
        parse(lambda early: PRESETS, "", line.split())


def test_names_that_are_no_file():
    with pytest.raises(UserError, match=r"no encoder file imagnet; check the path; did you mean imagenet[?]$"):
        read_weights(Path("imagnet"))
    with pytest.raises(UserError, match=r"kinetics or procedural; did you mean imagenet[?]$"):
        natural_images("imagnet", "test_resnet", (), 1, 0)
    with pytest.raises(UserError, match=r"masked=SOURCE; did you mean specialist[?]$"):
        SweepConfig(pipelines=("spezialist",))


def test_capitals_do_not_count():
    assert nearest("DPT", ["unet", "dpt"]) == "dpt"
    assert nearest("quux", ["unet", "dpt"]) == ""


@pytest.fixture
def by_console(monkeypatch):
    """As in a process that `fewslice segment` started."""
    monkeypatch.setattr(sys, "argv", ["fewslice segment", "--help"])


RUN = Path("runs/my run")
PAGE = RunPage(title="t", lead="l", what_was_run={})


def printed() -> list[str]:
    """Commands that are printed for the user."""
    pretraining = next_command(PretrainConfig(), {"encoder": "my encoder"})
    page = render(RUN, "segment", SegmentConfig(), PAGE)
    again = next(line for line in page.splitlines() if "--out NEW_FOLDER" in line)
    template = page_environment(Path("core")).from_string("{{ program('sweep') }}").render()
    return [next_of_unet(RUN, None), *next_commands(RUN, None).values(), pretraining, again, template]


def test_commands_are_printed_in_the_spelling_that_was_used(by_console, capsys):
    assert program("annotate next") == "fewslice annotate next"
    assert all("python -m" not in line and "fewslice " in line for line in printed())
    assert shlex.split(next_of_unet(RUN, None))[:4] == ["fewslice", "segment.predict", "--run", str(RUN)]
    with pytest.raises(SystemExit):
        parse_command(Options, "python -m data.inspect", ("--input x",), args=["--help"])
    assert capsys.readouterr().out.count("fewslice data.inspect") == 2  # usage, and the example
    with pytest.raises(SystemExit), user_errors():
        raise UserError("pass a run of `python -m segment`, not of python -m data.inspect or python -m segmentation")
    said = "error: pass a run of `fewslice segment`, not of fewslice data.inspect or python -m segmentation\n"
    assert capsys.readouterr().err == said


def test_commands_of_modules_are_printed_as_modules():
    assert all("python -m" in line for line in printed())
    assert in_same_spelling("run python -m data.inspect") == "run python -m data.inspect"


def test_every_package_with_commands_is_known(by_console):
    assert all(in_same_spelling(f"python -m {name}") == f"fewslice {name}" for name in COMMANDS)


def test_the_commands_of_annotate(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewslice", "annotate"])
    main()
    assert capsys.readouterr().out.startswith("usage: fewslice annotate COMMAND")


def test_the_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fewslice", "--version"])
    main()
    name, number = capsys.readouterr().out.split()
    assert name == "fewslice"
    assert number[0].isdigit()
    monkeypatch.setattr(sys, "argv", ["fewslice", "version"])
    with pytest.raises(SystemExit):
        main()
    assert "did you mean --version?" in capsys.readouterr().err
