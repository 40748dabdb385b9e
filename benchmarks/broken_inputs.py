"""`python -m benchmarks.broken_inputs`: every command on damaged, false and malicious inputs.

Each input is tried in a process of its own, forked from one that has imported everything. Counted are tracebacks,
processes that died, inputs that took longer than `--seconds`, and the most memory that a process took beyond its start.
The exit status is 1 if there was a traceback, a death, a hang, or more than `--gigabytes`.
"""

import contextlib
import json
import os
import re
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import broken_files as files
from core.command_line import parse_command
from core.files import write_json

Setup = Sequence[partial[None]]
"""Calls that make the files of an input in the working folder."""
Input = tuple[str, list[str], Setup]
"""Name, command line and files of an input."""

FEW = [
    "--encoder",
    "resnet10t",
    "--image-size",
    "32",
    "--batch-size",
    "4",
    "--steps",
    "1",
    "--device",
    "cpu",
    "--out",
    "run",
]
SLICES = [*FEW, "--dataset", "folder", "--data-root", "."]
EXAMS = [*FEW, "--clip-frames", "2", "--test-clips", "1"]
HEADS = ["--projector-hidden", "8", "--predictor-hidden", "8", "--projection", "8"]
PREDICT = ["--input", "images", "--output", "out", "--device", "cpu", "--run"]
COMMANDS = (
    "segment",
    "segment.predict",
    "segment.evaluate",
    "pretrain",
    "classify",
    "classify.predict",
    "data.inspect",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Try every command on broken inputs and count what goes wrong."""

    every: int = 1
    """Try every n-th input only."""
    only: str = ""
    """Regular expression; try only inputs with such a name."""
    seconds: float = 60
    """Time after which an input counts as a hang."""
    gigabytes: float = 1
    """Memory beyond a process's start that is allowed."""
    json: Path | None = None
    """File for the outcome of every input."""


def inputs() -> Iterator[Input]:
    """Every input."""
    inspect = ["data.inspect", "--dataset", "folder", "--data-root", "."]
    for name in files.IMAGES:
        yield f"inspect image: {name}", inspect, [partial(_image, name), partial(_whole, "images/whole.nii")]
        if not name.startswith("zeros"):  # whole volumes, which take minutes to predict
            yield f"predict image: {name}", ["segment.predict", *PREDICT, "../../unet"], [partial(_image, name)]
        if name.startswith(("spacing", "gzip", "huge", "PNG", "sform", "colours", "cut", "JPEG")):
            arguments = ["segment.evaluate", "--prediction", "images", "--reference", "whole"]
            whole = "whole/a" + Path(files.IMAGES[name][0]).suffix.replace(".gz", ".nii")
            yield f"evaluate: {name}", arguments, [partial(_image, name), partial(_whole, whole, 1)]
            yield f"label map: {name}", ["segment", *SLICES], [partial(_pairs), partial(_image, name, "labels")]
            arguments = ["pretrain", *FEW, *HEADS, "--stage", "generalist", "--generalist", "images"]
            yield f"photograph: {name}", arguments, [partial(_photographs), partial(_image, name)]
            yield f"exam: {name}", _classify_predict("images"), [partial(_image, name)]
    for name, content in files.ARRAYS.items():
        yield f"array: {name}", _classify_predict("images"), [partial(_write, "images/a.npy", content)]
        arguments = ["classify", *EXAMS, "--data-root", "."]
        yield (
            f"MRNet's array: {name}",
            arguments,
            [partial(_knees), partial(_write, "train/sagittal/0001.npy", content)],
        )
    for name, text in files.CONFIGURATIONS.items():
        for command in ("segment", "pretrain", "classify"):
            yield f"{command} --config: {name}", [command, "--config", "a.yaml"], [partial(_write, "a.yaml", text)]
    for name, text in files.JSON_FILES.items():
        yield f"dataset.json: {name}", ["segment", *SLICES], [partial(_pairs), partial(_write, "dataset.json", text)]
        yield f"splits.json: {name}", ["segment", *SLICES], [partial(_pairs), partial(_write, "splits.json", text)]
        yield f"model.json: {name}", ["segment.predict", *PREDICT, "."], [partial(_model, text)]
    for name, table in files.TABLES.items():
        arguments = ["classify", *EXAMS, "--dataset", "exams", "--labels", "a.csv", "--data-root", "."]
        yield f"--labels: {name}", arguments, [partial(_write, "a.csv", table)]
        arguments = ["classify", *EXAMS, "--data-root", "."]
        yield f"MRNet's csv: {name}", arguments, [partial(_knees), partial(_write, "train-acl.csv", table)]
    for name, number in (("superscript", "²"), ("long number", "9" * 5000), ("negative", "-1"), ("NUL", "\0")):
        arguments = ["data.inspect", "--data-root", "."]
        yield (
            f"Info.cfg: {name}",
            arguments,
            [partial(_heart), partial(_write, "patient001/Info.cfg", f"ED: {number}\n")],
        )
    yield from _settings()
    yield from _places()


def _settings() -> Iterator[Input]:
    """Values of flags that cannot be meant, and a regular expression without end."""
    huge, names = str(10**18), ("steps", "batch-size", "image-size", "workers", "devices", "nodes", "log-every")
    for name in names:
        for command in ("segment", "pretrain", "classify"):
            yield f"{command} --{name} {huge}", [command, "--data-root", ".", f"--{name}", huge], [partial(_pairs)]
    for value in (str(2**64), "-1", "9" * 5000, "1e3"):
        yield f"--seed {value[:25]}", ["segment", *SLICES, "--seed", value], [partial(_pairs)]
        arguments = ["classify", *EXAMS, "--split-seed", value, "--data-root", "."]
        yield f"--split-seed {value[:25]}", arguments, [partial(_knees)]
    for value in ("nan", "inf", "1e999", "1e-320", "0", "-1", "100000"):
        yield f"--spacing-mm {value}", ["segment", *SLICES, "--spacing-mm", value], [partial(_pairs)]
        yield f"--lr {value}", ["segment", *SLICES, "--lr", value], [partial(_pairs)]
    for pattern in ("(a+)+$", "(.*)*(.*)*(.*)*x", "(", "", "a{9999999999}", "(?R)"):
        arguments = ["data.inspect", "--dataset", "folder", "--data-root", ".", "--subject-pattern", pattern]
        yield f"--subject-pattern {pattern}", arguments, [partial(_whole, "images/" + "a" * 60 + "b.nii")]
    for field, value in (("spacing_mm", "0"), ("spacing_mm", "1e-9"), ("spacing_mm", "NaN"), ("spacing_mm", "1e30")):
        change = f'"{field}": {value}'
        arguments = ["segment.predict", *PREDICT, "."]
        yield f"model.json: {change}", arguments, [partial(_model, change=change)]


def _places() -> Iterator[Input]:
    """Names that are not UTF-8 or hold a line break, pipes and devices."""
    inspect = ["data.inspect", "--dataset", "folder", "--data-root", "."]
    for name in (b"M\xfcller.nii", b"a\nb.nii", b"$(x).nii", b"-o.nii", b"x" * 240 + b".nii"):
        text = os.fsdecode(name)
        yield (
            f"inspect name: {name!r:.30}",
            inspect,
            [partial(_whole, f"images/{text}"), partial(_whole, "images/w.nii")],
        )
        yield (
            f"predict name: {name!r:.30}",
            ["segment.predict", *PREDICT, "../../unet"],
            [partial(_whole, f"images/{text}")],
        )
        yield f"segment name: {name!r:.30}", ["segment", *SLICES], [partial(_pairs), partial(_pairs, text)]
    for command in ("segment", "pretrain", "classify"):
        yield f"{command} --config pipe", [command, "--config", "pipe"], [partial(os.mkfifo, "pipe")]
        yield f"{command} --config device", [command, "--config", "zero"], [partial(_device)]
    yield "--labels device", ["classify", *EXAMS, "--dataset", "exams", "--labels", "zero"], [partial(_device)]
    splits = ["segment", *SLICES, "--splits-file"]
    yield "--splits-file device", [*splits, "zero"], [partial(_pairs), partial(_device)]
    yield "--json device", [*inspect, "--json", "zero"], [partial(_pairs), partial(_device)]
    yield "--splits-file pipe", [*splits, "pipe"], [partial(_pairs), partial(os.mkfifo, "pipe")]
    yield "an image that is a pipe", inspect, [partial(_whole, "images/w.nii"), partial(os.mkfifo, "images/pipe.nii")]
    yield "a path that is not UTF-8", ["data.inspect", "--data-root", os.fsdecode(b"M\xfcller")], []


def _classify_predict(source: str) -> list[str]:
    return ["classify.predict", "--run", "../../classifier", "--input", source, "--output", "o.csv", "--device", "cpu"]


def _write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))


def _image(name: str, folder: str = "images") -> None:
    file, content = files.content_of(name)
    _write(f"{folder}/{file}", content)


def _whole(path: str, most: int = 99) -> None:
    """An image in which nothing is wrong; with `most` 1 a label map."""
    import numpy as np

    values = np.random.default_rng(0).integers(0, most + 1, (40, 36, 3)).astype(np.int16)
    _write(path, files.encoded("PNG") if path.endswith(".png") else files.nifti(values))


def _device() -> None:
    """A link to a device: a command that replaced it would replace the link."""
    Path("zero").symlink_to("/dev/zero")


def _pairs(name: str = "a.nii") -> None:
    """Images and label maps of six cases, the first of the name."""
    for case in (name, *(f"c{number}.nii" for number in range(5))):
        _whole(f"images/{case}")
        _whole(f"labels/{case}", 1)


def _photographs() -> None:
    for number in range(4):
        _write(f"images/n{number}.png", files.encoded("PNG", (50 + number, 40), "RGB"))


def _knees() -> None:
    import numpy as np

    for half in ("train", "valid"):
        Path(half, "sagittal").mkdir(parents=True)
        for case in range(8):
            frames = np.random.default_rng(case).integers(0, 255, (3, 32, 32), dtype=np.uint8)
            np.save(f"{half}/sagittal/{case:04d}.npy", frames)
        _write(f"{half}-acl.csv", "".join(f"{case:04d},{case % 2}\n" for case in range(8)))


def _heart() -> None:
    for frame in ("frame01", "frame01_gt"):
        _whole(f"patient001/patient001_{frame}.nii", 3)


def _model(card: str | None = None, change: str = "") -> None:
    """A copy of the trained U-Net with another card, or with another value of a field."""
    Path("model.safetensors").symlink_to("../../unet/model.safetensors")
    text = Path("../../unet/model.json").read_text() if card is None else card
    field = change.partition(":")[0]
    _write("model.json", re.sub(rf"{field}: [^,\n]*", change, text) if change else text)
    _whole("images/whole.nii")


def _save_models() -> None:
    """Untrained networks for the commands that predict."""
    from classify.model import ModelCard as ClassifierCard
    from classify.model import build_classifier
    from engine.model_file import save_model
    from segment.model import ModelCard, build_unet

    common: dict[str, Any] = {"encoder": "resnet10t", "norm": "batch", "dataset": "made up", "init": "random"}
    slices = {"classes": ["background", "1"], "normalisation": "image", "statistics": (0, 1), "spacing_mm": 1.5}
    Path("unet").mkdir()
    save_model(build_unet("resnet10t", 2), Path("unet"), ModelCard.model_validate(common | slices))
    clips = {"image_size": 32, "clip_frames": 2, "test_clips": 1, "test_seed": 0, "task": "acl", "plane": ""}
    Path("classifier").mkdir()
    save_model(
        build_classifier("resnet10t", "batch"), Path("classifier"), ClassifierCard.model_validate(common | clips)
    )


def _memory(field: str) -> float:
    """VmRSS, what this process takes, or VmHWM, the most it took, GB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) * 1024 / 1e9  # type: ignore[index]


def _child(arguments: list[str], setup: Setup, place: Path) -> None:
    """Run one command line in this forked process; write its outcome beside its files, and end."""
    place.mkdir()
    os.chdir(place)
    outcome: dict[str, Any] = {"code": 0}
    for make_file in setup:
        make_file()
    with open("../output", "w", errors="backslashreplace") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        sys.stdout = sys.stderr = output
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = _memory("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        sys.argv = arguments
        try:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=False)
        except SystemExit as end:
            outcome["code"] = end.code if isinstance(end.code, int) else 1
        except BaseException:
            outcome["code"] = "traceback"
            traceback.print_exc()
        outcome["gigabytes"] = max(0.0, _memory("VmHWM") - start)
    Path("../outcome.json").write_text(json.dumps(outcome))
    os._exit(0)


def attempt(arguments: list[str], setup: Setup, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a command line on one input.

    Returns:
        code (exit status, or "traceback", "hang", "died"), seconds, gigabytes (beyond the start), message (last line).
    """
    for name in ("outcome.json", "output"):
        (folder / name).unlink(missing_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder))
    began = time.monotonic()
    if (process := os.fork()) == 0:
        os.setsid()
        try:
            _child(arguments, setup, place / "files")
        finally:
            traceback.print_exc()
            os._exit(1)
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() - began > seconds:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return {"code": "hang", "seconds": seconds, "gigabytes": 0.0, "message": ""}
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    took = time.monotonic() - began
    # written by the process into the folder above its own
    outcome, output = place / "outcome.json", place / "output"
    lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
    result = json.loads(outcome.read_text()) if outcome.exists() else {"code": "died", "gigabytes": 0.0}
    if any("Traceback (most recent call last)" in line for line in lines):
        result["code"] = "traceback"
    return result | {"seconds": took, "message": lines[-1] if lines else ""}


def run(cfg: Config) -> int:
    """Try the inputs, print what went wrong and the sums; return the number of faults."""
    console, results = Console(soft_wrap=True, markup=False, highlight=False), {}
    with tempfile.TemporaryDirectory(prefix="fewslice-broken-") as folder:
        os.environ |= {"FEWSLICE_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        for command in COMMANDS:
            __import__(command)
            if command in ("segment", "pretrain", "classify"):
                __import__(f"{command}.training" if command != "pretrain" else "pretrain.stages")
        import cv2
        import torch

        torch.set_num_threads(1)  # threads do not survive a fork
        cv2.setNumThreads(0)
        os.chdir(folder)
        _save_models()
        (Path(folder) / "inputs").mkdir()
        for model in ("unet", "classifier"):
            (Path(folder) / "inputs" / model).symlink_to(Path(folder) / model)
        chosen = [one for one in inputs() if re.search(cfg.only, one[0])][:: cfg.every]
        for name, arguments, setup in chosen:
            result = results[name] = attempt(arguments, setup, Path(folder) / "inputs", cfg.seconds)
            if isinstance(result["code"], str) or result["gigabytes"] > cfg.gigabytes:
                console.print(f"{name}: {result['code']}, {result['gigabytes']:.2f} GB: {result['message'][:200]}")
    codes = Counter(str(result["code"]) for result in results.values())
    peak = max(results, key=lambda name: results[name]["gigabytes"])
    slowest = max(results, key=lambda name: results[name]["seconds"])
    console.print(
        f"tried {len(results)}, tracebacks {codes['traceback']}, died {codes['died']}, hangs {codes['hang']}, "
        f"peak memory {results[peak]['gigabytes']:.2f} GB ({peak}), "
        f"longest {results[slowest]['seconds']:.1f} s ({slowest}); exit codes "
        + ", ".join(f"{code}: {codes[code]}" for code in sorted(codes))
    )
    if cfg.json is not None:
        write_json(cfg.json, results)
    faults = [result for result in results.values() if isinstance(result["code"], str)]
    return len(faults) + sum(result["gigabytes"] > cfg.gigabytes for result in results.values())


if __name__ == "__main__":
    raise SystemExit(int(run(parse_command(Config, "python -m benchmarks.broken_inputs", ("--every 10",))) > 0))
