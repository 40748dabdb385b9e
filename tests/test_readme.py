"""Every command that the README and the pages of docs/ print runs, with the smallest settings, page by page.

The placeholders ACDC, MRNET, CIFAR, DIR, SCANS, FILE_OR_DIR, OUT, ENCODER and RUN become tiny data sets, files and
runs; `imagenet` becomes a file, as tests need no network, and ResNets become a smaller network. Commands that install
something or start the tests are only looked up.
"""

import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
import torchvision
from conftest import run_module
from made_up_dicom import cine
from test_class_images import write_classes

from data.phantoms.knee import write_mrnet
from encoders.build import build_encoder
from encoders.weights import save_encoder
from sweep.study.config import SweepConfig
from sweep.study.jobs import run_job

ROOT = Path(__file__).parents[1]
ONLY_LOOKED_UP = ("uv run pytest", "uv tool install", "source")
ENCODER = "test_resnet"
"""A network of timm for tests in place of the printed ones: 2.3 million weights as a U-Net, a ResNet-18 14.3."""
UNET = {"--image-size": "32", "--batch-size": "4", "--steps": "1", "--spacing-mm": "4", "--evaluate-every": "1"}
BYOL = {"--image-size": "32", "--batch-size": "4", "--steps": "1", "--projection": "8", "--predictor-hidden": "8"}
BYOL |= {"--projector-hidden": "8", "--generalist-images": "4", "--generalist-epochs": "1"}
CLIPS = {"--clip-frames": "2", "--micro-batch-size": "2", "--batch-size": "2"}
SMALLEST = {
    "pretrain": BYOL,
    "segment": UNET,
    "classify": {"--image-size": "32", "--steps": "2", "--test-clips": "1", **CLIPS},
    "sweep": {
        "--pipelines": "random generalist",
        "--fractions": "0.1 0.3 0.6",
        "--seeds": "0",
        "--processes": "1",
        "--threads": "1",
        "--pretrain.encoder": ENCODER,
        "--segment.encoder": ENCODER,
        **{f"--pretrain.{flag[2:]}": value for flag, value in BYOL.items()},
        **{f"--segment.{flag[2:]}": value for flag, value in UNET.items()},
    },
}
"""What makes a training command short; options that are printed in the README are overridden."""
SMALLEST_IMBALANCE = {"--ratios": "0.4", "--probe-images": "12", "--pretrain.batch-size": "4"}
SMALLEST_IMBALANCE |= {f"--{part}.epochs": "0.2" for part in ("pretrain", "supervised")}
"""The same for `sweep --task imbalance`."""


class Command(NamedTuple):
    page: str
    text: str


OF_SITE = re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text())
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in OF_SITE)]


def printed_commands() -> Iterator[Command]:
    """The commands of `sh` blocks, continued lines joined, and whole commands in the cells of tables.

    The tables of docs/methods.md describe commands and are left out.
    """
    for page in PAGES[:-1]:
        text = page.read_text()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield Command(page.stem, shlex.join(words))
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
            yield from (Command(page.stem, text) for text in re.findall(r"`(python -m [^`]+ [^`]+)`", row))


COMMANDS = list(printed_commands())
OF_PAGES = list(dict.fromkeys(command.page for command in COMMANDS))


def test_every_code_block_is_tested():
    for page in PAGES[:-1]:
        assert set(re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE)) <= {"sh"}, page.name
    assert len(COMMANDS) > 25
    pages = "README tutorial data pipelines labelling studies exams papers recipes"
    assert set(OF_PAGES) == {*pages.split()}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_links_exist():
    """mkdocs checks those of docs/ once more; it does not know the README."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_sites_index():
    assert PAGES[-1].name == "methods.md"
    assert {page.name for page in PAGES[1:]} == {file.name for file in (ROOT / "docs").glob("*.md")}


def test_commands_that_are_not_run_exist():
    """`uv tool install .` offers `fewslice`; the benchmarks are a module."""
    assert "fewslice" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert importlib.util.find_spec("benchmarks.__main__")


FOREIGN = {"--group", "--extra", "--nproc-per-node", "--completion", "--backend-store-uri"}
"""Options of uv, torchrun, the program `fewslice` and MLflow."""
HELPS = [
    *(("pretrain", "--dataset", layout) for layout in ("acdc", "folder", "mrnet", "exams")),
    *(("segment", "--dataset", layout) for layout in ("acdc", "folder")),
    *(("classify", "--dataset", layout) for layout in ("mrnet", "exams")),
    *(("sweep",), ("sweep", "--task", "classify"), ("sweep", "--task", "imbalance"), ("sweep.forecast",)),
    *(("segment.predict",), ("segment.evaluate",), ("data.inspect",), ("data.convert",), ("encoders.export",)),
    ("segment.agreement",),
    *(("annotate", command) for command in ("first", "next", "collect")),
]


@pytest.mark.slow
def test_printed_options_exist(monkeypatch, capsys):
    """Options in the text as well."""
    monkeypatch.setenv("COLUMNS", "400")
    offered: set[str] = set()
    for module, *arguments in HELPS:
        with pytest.raises(SystemExit):
            run_module(module, [*arguments, "--help"], monkeypatch)
        offered |= set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out.replace("_", "-")))
    for page in PAGES:
        printed = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", page.read_text()))
        assert not printed - offered - FOREIGN - {"--help"}, page.name


@pytest.fixture(scope="module")
def placeholders(tmp_path_factory, tiny_acdc) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("readme")
    write_mrnet(folder / "knees", exams=12, seed=0)
    write_classes(folder / "classes", [12, 10, 9], size=32)
    write_folder(tiny_acdc, folder / "own")
    cine(folder / "dicom")
    shutil.copytree(tiny_acdc, folder / "scans")
    for number in (3, 4, 5, 6):
        for file in (folder / "scans").glob(f"training/patient00{number}/*_gt.nii.gz"):
            file.unlink()
    torch.manual_seed(0)
    facts = {"name": ENCODER, "in_channels": 3, "network": "online", "norm": "batch", "normalisation": {}}
    lineage = [{"stage": "generalist", "source": "timm a1_in1k", "data": {"name": "imagenet", "hash": None}}]
    encoder = str(save_encoder(build_encoder(ENCODER, 3), folder / "imagenet", lineage=lineage, **facts))
    return {
        "ACDC": str(tiny_acdc),
        "MRNET": str(folder / "knees"),
        "CIFAR": str(folder / "classes"),
        "FILE_OR_DIR": str(folder / "own/images"),
        "DIR": str(folder / "own"),
        "DICOM_DIR": str(folder / "dicom"),
        "SCANS": str(folder / "scans"),
        "ENCODER": encoder,
        "OUT": str(folder / "masks"),
        "imagenet": encoder,
    }


def write_folder(acdc: Path, root: Path) -> None:
    """The labelled frames of ACDC files as images/ and labels/ of the same names."""
    for label in acdc.rglob("*_gt.nii.gz"):
        name = label.name.replace("_gt", "")
        for kind, file in (("images", label.with_name(name)), ("labels", label)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, root / kind / name)


def draw_masks(plan: Path) -> None:
    """Stand in for the person who draws the masks of a plan: a square in each slice."""
    for file in (plan / "masks").iterdir():
        mask = nib.load(file)
        values = np.zeros(mask.shape, np.uint8)
        values[10:14, 10:14] = 1
        nib.Nifti1Image(values, mask.affine, mask.header).to_filename(file)


def write_published_byol(file: Path) -> None:
    """A ResNet-18, for a ResNet-50, in the layout of yaox12/BYOL-PyTorch's checkpoint."""
    torch.manual_seed(0)
    state = {f"module.{key}": value for key, value in torchvision.models.resnet18().state_dict().items()}
    torch.save({"target_backbone": state, "epoch": 300}, file)


def with_smallest_settings(module: str, arguments: list[str], data_root: str) -> list[str]:
    """`arguments` with the settings of SMALLEST put in their place, on one CPU and tiny data."""
    if module not in SMALLEST:
        return [*arguments, "--device", "cpu"] if module == "segment.predict" else arguments
    groups: list[list[str]] = []  # a flag with its values
    for word in arguments:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    options = {flag: values for flag, *values in groups}
    smallest = SMALLEST_IMBALANCE if "imbalance" in options.get("--task", []) else SMALLEST[module]
    settings = {flag: value.split() for flag, value in smallest.items()} | {"--device": ["cpu"]}
    if "ssl4mis" in options.get("--split", []):  # the tiny data have none of its patients
        settings |= {"--split": ["paper"], "--label-order": ["random"], "--labelled-fraction": ["0.5"]}
    if "--data-root" not in options:
        settings |= {"--data-root": [data_root], "--recipe": ["demo"]}
    if module == "sweep" and "--pipelines" in options:
        SweepConfig(pipelines=tuple(options["--pipelines"]))  # refuses what is no pipeline
        settings["--pipelines"] = ["random"]  # two of them are in a study that prints none
    if module == "pretrain" and "mrnet" in options.get("--dataset", []):
        settings |= {flag: [value] for flag, value in CLIPS.items()}
    if module == "segment":
        settings["--no-figures"] = []  # drawing them takes longer than training
    if module in ("pretrain", "segment") and not {"--encoder", "--init", "--generalist"} & options.keys():
        settings["--encoder"] = [ENCODER]
    if options.get("--encoder") in (["resnet18"], ["resnet10t"]):
        settings["--encoder"] = [ENCODER]
    return [word for flag, values in (options | settings).items() for word in (flag, *values)]


def newest_run(folder: Path) -> str:
    """The last trained network in `runs/`."""
    return str(max(folder.glob("runs/*/model.json"), key=lambda file: file.stat().st_mtime_ns).parent)


def execute(command: str, placeholders: dict[str, str], monkeypatch) -> None:
    """Run a command in this process, as `python -m MODULE` or as the console command."""
    words = shlex.split(command.removeprefix("uv run "))
    module, arguments = (words[2], words[3:]) if words[:2] == ["python", "-m"] else (words[1], words[2:])
    arguments = [newest_run(Path.cwd()) if word == "RUN" else placeholders.get(word, word) for word in arguments]
    if arguments[:1] == ["collect"]:
        draw_masks(Path(arguments[arguments.index("--plan") + 1]))
    for word in arguments:
        if word.startswith("resnet50_byol") and not Path(word).exists():
            write_published_byol(Path(word))
    arguments = with_smallest_settings(module, arguments, placeholders["ACDC"])
    try:
        if words[0] == "fewslice":
            target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["fewslice"]
            monkeypatch.setattr(sys, "argv", ["fewslice", module, *arguments])
            EntryPoint("fewslice", target, "console_scripts").load()()
        else:
            assert words[0] == "python", command
            run_module(module, arguments, monkeypatch)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{command} ended with exit code {end.code}")


def run_in_this_process(jobs, report, **_) -> None:
    """Replace the processes of a study, which `test_study.py` tests."""
    for job in jobs:
        run_job(job, threads=1)
        report(job, "done")


@pytest.mark.slow
@pytest.mark.parametrize("page", OF_PAGES)
def test_commands_run_as_printed(page, placeholders, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp(page)
    monkeypatch.setenv("FEWSLICE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))  # the salt of DICOM names
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sweep.study.local.run_locally", run_in_this_process)
    for command in COMMANDS:
        if command.page == page and not command.text.startswith(ONLY_LOOKED_UP):
            print("$", command.text)
            execute(command.text, placeholders, monkeypatch)
