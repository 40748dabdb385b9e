"""Import directions: core -> data -> encoders, engine -> pretrain, segment, classify -> sweep."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "core": set(),
    "data": {"core"},
    "encoders": {"core", "data"},
    "engine": {"core", "data", "encoders"},
    "pretrain": {"core", "data", "encoders", "engine"},
    "segment": {"core", "data", "encoders", "engine"},
    "classify": {"core", "data", "encoders", "engine"},
    "annotate": {"core", "data", "encoders", "engine", "segment"},
    "sweep": {"core", "data", "encoders", "engine", "pretrain", "segment", "classify"},
}
"""What each package may import, besides itself. Between the stages an encoder travels as a file."""
FILES = [file for room in BELOW for file in sorted((ROOT / room).rglob("*.py"))]
HANDS_OVER = "samples"
"""Folder of `data` with the PyTorch data sets."""
SLOW = {"torch", "torchvision", "timm", "monai", "lightning_fabric", "segmentation_models_pytorch"}


def imported(nodes: list[ast.stmt] | ast.AST) -> Iterator[str]:
    """First parts of the modules that are imported, relative imports as '.'."""
    for node in ast.walk(nodes) if isinstance(nodes, ast.AST) else nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or ".").split(".")[0] if not node.level else "."


def test_files_of_every_room_are_checked():
    assert {"data", "encoders", "engine", "pretrain", "segment"} <= {file.relative_to(ROOT).parts[0] for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    """Imports inside functions count as well."""
    room = file.relative_to(ROOT).parts[0]
    modules = set(imported(ast.parse(file.read_text())))
    assert "." not in modules, "imports are absolute"
    wrong = modules & (BELOW.keys() | {"tests", "benchmarks"}) - BELOW[room] - {room}
    assert not wrong, f"{room} must not import {', '.join(sorted(wrong))}"


def test_a_reader_never_draws_a_phantom():
    for file in [*(ROOT / "data/readers").glob("*.py"), ROOT / "data/slices.py", ROOT / "data/store.py"]:
        assert "data.phantoms" not in file.read_text(), file


def test_no_file_is_over_400_lines():
    assert not [file for file in FILES if len(file.read_text().splitlines()) > 400]


def test_reading_data_does_not_wait_for_torch():
    """Importing torch takes seconds; only the modules of `data/samples` may import it at the top."""
    slow = {
        file.name
        for file in (ROOT / "data").rglob("*.py")
        if SLOW & set(imported(ast.parse(file.read_text()).body)) and file.parent.name != HANDS_OVER
    }
    assert not slow


@pytest.mark.slow
def test_help_does_not_wait_for_training_libraries():
    """The configurations are imported for --help and for mistakes in flags; these take seconds to import."""
    program = "import sys, sweep.study.config; print(*{'lightning_fabric', 'timm', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_file_is_a_noun():
    vague = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not [file for file in FILES if file.name in vague]


@pytest.mark.slow
def test_only_augment_knows_albumentations():
    users = {
        file.relative_to(ROOT).as_posix() for file in FILES if "albumentations" in imported(ast.parse(file.read_text()))
    }
    assert users == {"data/augment.py"}
