"""Nothing leaves the machine: the commands work where no socket can be opened."""

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from made_up_dicom import cine
from test_class_images import write_classes

from core.console import COMMANDS

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


def run(program: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE + program]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_guard_of_these_tests_refuses_connections():
    done = run("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')")
    assert "a connection was tried" in done.stderr


def write_scans(acdc: Path, root: Path) -> Path:
    """The frame of patient 1, and of patient 2 as well without a label map, as a data set in folders."""
    for patient, kinds in (("patient001", ("images", "labels")), ("patient002", ("images",))):
        for kind in kinds:
            (root / kind).mkdir(parents=True, exist_ok=True)
            source = acdc / "training" / patient / f"{patient}_frame01{'_gt' if kind == 'labels' else ''}.nii.gz"
            shutil.copyfile(source, root / kind / f"{patient}.nii.gz")
    return root


NETWORK = "--encoder test_resnet --image-size 32 --batch-size 4 --steps 2 --device cpu"
UNET = f"{NETWORK} --evaluate-every 2 --spacing-mm 4 --no-figures --labelled-fraction 0.2 --data-root ACDC"
CLASSIFIER = f"{NETWORK} --task acl --plane sagittal --clip-frames 2 --test-clips 1 --data-root KNEES"
OF_IMAGES = "--dataset images --data-root CLASSES --encoder test_resnet --image-size 32 --batch-size 4 --device cpu"
BYOL = "--stage specialist --projector-hidden 8 --predictor-hidden 8 --projection 8"
STUDY = "--data-root ACDC --pipelines random --fractions 0.5 --seeds 0 --device cpu --pretrain.encoder test_resnet"
STUDY += " --pretrain.image-size 32 --segment.encoder test_resnet --segment.image-size 32 --segment.batch-size 4"
STUDY += " --segment.steps 2 --segment.evaluate-every 2 --segment.spacing-mm 4"
TRACKER = "mlflow" if find_spec("mlflow") else "tensorboard"
PIPELINE = f"""
data.phantom --out phantom --subjects 1 --frames 4
data.inspect --data-root ACDC --html inspected.html
data.convert --input DICOM --out converted
pretrain {NETWORK} {BYOL} --data-root ACDC --out pre
segment {UNET} --out seg --init pre/encoder.safetensors --track {TRACKER}
copy seg other
segment.predict --run seg other --input SCANS/images --output masks --device cpu
segment.evaluate --prediction masks --reference SCANS/labels --partial
segment.agreement --run seg other --device cpu
encoders.export seg --format timm --out exported
annotate first --dataset folder --data-root SCANS --encoder test_resnet --patients 1 --slices 1 --out plan --device cpu
annotate next --run seg --slices 1 --out next --device cpu
annotate collect --plan next --accept-unchanged --out collected
classify {CLASSIFIER} --out cls --init pre/encoder.safetensors
copy cls other-cls
classify.predict --run cls --input KNEES/valid/sagittal/1130.npy --device cpu
classify.compare cls other-cls
classify.images {OF_IMAGES} --epochs 0.3 --out images
classify.probe {OF_IMAGES} --init images/encoder.safetensors --out probe
sweep {STUDY} --out study
sweep.report study
sweep.forecast --results study --target 0.85 --draws 100
sweep.tables study
data.cache
"""
"""Every command, each on what those before it have written; `engine.replay` starts one of them in another process."""

IN_THIS_PROCESS = """
import shutil, sys, sweep.study.local
from core.console import main
from sweep.study.jobs import run_job

def run_here(jobs, report, **_):
    for job in jobs:
        run_job(job, threads=1)
        report(job, "done")

sweep.study.local.run_locally, failed = run_here, []
for name, *arguments in LINES:
    print("$", name, *arguments, flush=True)
    if name == "copy":  # a second run, of which nobody looks at the numbers
        shutil.copytree(*arguments)
        continue
    sys.argv = ["fewslice", name, *arguments]
    try:
        main()
    except SystemExit as end:
        failed += [name] * bool(end.code)
assert not failed, failed
"""


@pytest.mark.slow
def test_no_command_connects_to_anything(tmp_path, tiny_acdc, tiny_knees):
    places = {"ACDC": tiny_acdc, "KNEES": tiny_knees, "SCANS": write_scans(tiny_acdc, tmp_path / "scans")}
    places["CLASSES"] = write_classes(tmp_path / "classes", [6, 5, 5], size=32)
    places["DICOM"] = tmp_path / "dicom"
    cine(places["DICOM"])
    text = PIPELINE
    for name, place in places.items():
        text = text.replace(name, str(place))
    lines = [shlex.split(line) for line in text.splitlines() if line]
    program = f"LINES = {lines!r}\n{IN_THIS_PROCESS}"
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert {line[0] for line in lines} - {"copy"} == COMMANDS.keys() - {"engine.replay"}
    assert (tmp_path / "seg/mlflow.db").is_file() == bool(find_spec("mlflow"))
