"""`python -m classify.predict --run RUN --input FILE|DIR`: probabilities of exams as CSV."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from rich.table import Table

from core.command_line import parse_command
from core.errors import SomeFilesFailed, UserError, user_errors
from core.files import remove_leftovers, write_csv
from core.messages import show_messages
from core.settings import Settings
from core.subjects import pseudonyms
from core.terminal import terminal
from data.readers.discovery import discover
from data.readers.exams import read_exam
from data.readers.images import NIFTI_SUFFIXES

if TYPE_CHECKING:
    from classify.model import Classifier, ModelCard

SUFFIXES = (".npy", *NIFTI_SUFFIXES)
EXAMPLES = ("--run RUN --input exam.npy", "--run RUN --input DIR --output scores.csv --explain heat")


@dataclass(frozen=True, kw_only=True)
class Predict(Settings):
    """Classify exams with a trained classifier."""

    run: Path
    """Run folder of `python -m classify`."""
    input: Path
    """An exam (.npy, .nii, .nii.gz), or a folder of exams, searched with its subfolders. Where it has folders named
    after planes, only those of the run's planes are read; a run of several planes needs them."""
    output: Path = Path("predictions.csv")
    """CSV file to write; an existing one is replaced if it is such a table."""
    explain: Path | None = None
    """Folder for a Grad-CAM montage per exam (and plane)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    anonymous: bool = False
    """Write codes in place of the exams' names into the table and the montages."""


def run(cfg: Predict) -> pd.DataFrame:
    """Write the table. A file that cannot be read does not stop the others; it is named at the end.

    Returns:
        One row per exam: exam (path below the input, in a run of several planes without the plane's folder),
        probability, in a run of several planes probability_PLANE, threshold (of the run), called (1 at or above it).

    Raises:
        UserError: if there is no exam.
        SomeFilesFailed: after all others are done, if some files could not be read.
    """
    if cfg.output.suffix.lower() != ".csv" or cfg.output.is_dir():
        raise UserError(f"--output {cfg.output} is not the name of a .csv file: pass one to write")
    if cfg.output.is_file() and not _start(cfg.output).startswith("exam,probability"):
        raise UserError(f"{cfg.output} exists and is no table of predictions; choose another --output")
    show_messages()
    files = _files(cfg.input)
    if not files:
        raise UserError(f"{cfg.input} holds no exam ({', '.join(SUFFIXES)}); pass a file or a folder of them")
    from classify.model import load_run  # torch is slow to import: mistakes in the paths should not wait for it
    from engine.devices import make_fabric

    models, combination = load_run(cfg.run)
    device = make_fabric(cfg.device).device
    for classifier, _ in models:
        classifier.to(device)
    exams = _by_exam(files, [card.plane for _, card in models], cfg.input)
    threshold = combination.threshold if combination else models[0][1].threshold
    code: Callable[[str], str] = pseudonyms() if cfg.anonymous else str
    rows: list[dict[str, Any]] = []
    problems: list[UserError] = []
    for exam, stacks in exams.items():
        try:
            if missing := [card.plane for _, card in models if card.plane not in stacks]:
                raise UserError(f"exam {exam} has no file of the plane {missing[0]}; a run of several planes needs all")
            each = [_probability(*model, stacks[model[1].plane], code(exam), cfg.explain) for model in models]
        except UserError as error:
            problems.append(error)
            continue
        probability = combination.probability(each) if combination else each[0]
        planes = {f"probability_{card.plane}": p for (_, card), p in zip(models, each, strict=True)}
        row = {"exam": code(exam), "probability": probability} | (planes if combination else {})
        rows.append(row | {"threshold": threshold, "called": int(probability >= threshold)})
    table = pd.DataFrame(rows)
    if rows:
        cfg.output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(cfg.output.parent, below=False)
        write_csv(cfg.output, table, float_format="%.6f")
        _print(table, cfg.output)
    if problems:
        raise SomeFilesFailed(problems, len(rows))
    return table


def _start(path: Path) -> str:
    with open(path, errors="replace") as stream:
        return stream.read(100)


def _files(path: Path) -> list[Path]:
    """The exams, without label maps."""
    if not path.exists():
        raise UserError(f"{path} does not exist; --input takes an exam or a folder of exams")
    if path.is_file():
        return [path] if path.name.lower().endswith(SUFFIXES) else []
    discovery = discover(path, suffixes=SUFFIXES)
    discovery.report()
    return [image.file for image in discovery.images]


def _by_exam(files: list[Path], planes: list[str], root: Path) -> dict[str, dict[str, Path]]:
    """exam -> plane -> file; the plane is the name of a folder between root and file, else the run's first plane."""
    exams: dict[str, dict[str, Path]] = {}
    inside = [file for file in files if set(planes) & set(file.relative_to(root).parts[:-1])]
    for file in inside or files:
        parts = file.relative_to(root).parts if root.is_dir() else (file.name,)
        plane = next((part for part in parts[:-1] if part in planes), planes[0])
        if len(planes) > 1:
            parts = tuple(part for part in parts if part != plane)
        stacks = exams.setdefault("/".join(parts), {})
        if plane in stacks:
            raise UserError(f"{stacks[plane]} and {file} are two files of one exam and plane; keep one of them")
        stacks[plane] = file
    return exams


def _probability(classifier: "Classifier", card: "ModelCard", file: Path, exam: str, explain: Path | None) -> float:
    """Mean probability over the clips of one exam; draws its montage as well if `explain` is a folder."""
    import torch

    from data.samples.clips import whole_clips

    frames, statistics = read_exam(file, card.slice_axis)
    if explain is not None:
        from classify.explain import montage, montage_path

        explain.mkdir(parents=True, exist_ok=True)
        name = f"{exam} {card.plane}".rstrip()
        return montage(classifier, card, frames, statistics, f"{name}: {card.task}", montage_path(explain, name))
    clips = whole_clips(frames, statistics, card.image_size, card.clip_frames, card.test_clips, card.test_seed)
    with torch.inference_mode():
        device = next(classifier.parameters()).device
        return float(np.mean([classifier(clip[None].to(device)).double().sigmoid().item() for clip in clips]))


def _print(table: pd.DataFrame, output: Path) -> None:
    console = terminal()
    summary = Table(title="probabilities")
    for heading in ("exam", "probability", "called"):
        summary.add_column(heading, justify="left" if heading == "exam" else "right")
    for _, row in table.head(20).iterrows():
        summary.add_row(row["exam"], f"{row['probability']:.3f}", "positive" if row["called"] else "negative")
    console.print(summary)
    more = f", the first 20 of {len(table)} above" if len(table) > 20 else ""
    console.print(f"written: {output}{more}; called positive from {table['threshold'].iloc[0]:.3f}", soft_wrap=True)


if __name__ == "__main__":
    with user_errors():
        run(parse_command(Predict, "python -m classify.predict", EXAMPLES))
