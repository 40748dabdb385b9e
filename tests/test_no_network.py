"""Nothing leaves the machine: the commands work where no socket can be opened."""

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

REFUSE = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")

class Refused(socket.socket):
    def __init__(self, family=socket.AF_INET, *args, **kwargs):
        if family != socket.AF_UNIX:  # processes of this machine
            refuse(family)
        super().__init__(family, *args, **kwargs)

socket.socket = Refused
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE + program]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_guard_of_these_tests_refuses_connections():
    done = run("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')")
    assert "a connection was tried" in done.stderr


@pytest.mark.slow
def test_imports_pretraining_training_and_classifying_connect_to_nothing(tmp_path, tiny_acdc, tiny_knees):
    common = shlex.split("--encoder resnet10t --image-size 32 --batch-size 4 --steps 2 --device cpu")
    pretraining = [*common, "--stage", "specialist", "--data-root", str(tiny_acdc), "--out", str(tmp_path / "pre")]
    init = ["--init", str(tmp_path / "pre" / "encoder.safetensors")]
    segmenting = [*common, *init, "--data-root", str(tiny_acdc), "--out", str(tmp_path / "seg")]
    if find_spec("mlflow"):
        segmenting += ["--track", "mlflow"]
    classifying = [*common, *init, "--data-root", str(tiny_knees), "--out", str(tmp_path / "cls")]
    lines = {
        "pretrain": [*pretraining, *shlex.split("--projector-hidden 8 --predictor-hidden 8 --projection 8")],
        "segment": [*segmenting, *shlex.split("--evaluate-every 2 --spacing-mm None")],
        "classify": [*classifying, *shlex.split("--task acl --plane sagittal --clip-frames 2 --test-clips 1")],
    }
    rooms = "segment.training, segment.predict, pretrain.stages, classify.training, sweep.study.run, data.inspect"
    program = f"import {rooms}" + "".join(
        f"\nfrom {module}.__main__ import main\nsys.argv = {[module, *line]!r}\nmain()"
        for module, line in lines.items()
    )
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((tmp_path / name / "result.json").is_file() for name in ("pre", "seg", "cls"))
    assert (tmp_path / "seg/mlflow.db").is_file() == bool(find_spec("mlflow"))
