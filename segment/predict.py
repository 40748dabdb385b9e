"""`python -m segment.predict --run RUN --input FILE|DIR --output DIR`: label maps on the images' own grids.

Of DICOM images they are written as NIfTI and as DICOM segmentations, see `segment.dicom_images`.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from core.command_line import parse_command
from core.errors import SomeFilesFailed, UserError, first_and_count, user_errors
from core.files import remove_leftovers, write_csv
from core.hashes import sha256
from core.settings import Settings
from core.subjects import anonymised
from core.terminal import terminal
from data.preprocessing import resampled_size
from data.readers.acdc import parse_name, phase_of, read_info
from data.readers.discovery import discover
from data.readers.file_search import VOLUME_COLUMNS, VOLUMES, is_output
from data.readers.images import PLANAR_SUFFIXES, Volume, is_image, one_channel, read_volume, stem, write_label_map
from data.readers.roles import names_label_map
from segment.dicom_images import DicomImage, dicom_images, write_segmentations
from segment.tables import table_of

if TYPE_CHECKING:
    from segment.model import ModelCard

log = logging.getLogger("fewslice")

EXAMPLES = ("--run RUN --input scan.nii.gz --output OUT", "--run RUN --input DIR --output OUT")


@dataclass(frozen=True, kw_only=True)
class Predict(Settings):
    """Segment images with a trained U-Net."""

    run: Path
    """Run folder of `python -m segment`."""
    input: Path
    """An image (3D or 4D NIfTI, PNG, TIFF, DICOM), or a folder of images, searched with its subfolders. Label maps in
    it are left out; of nnU-Net's channels case_0000, case_0001, ... the one that was trained on is used."""
    output: Path
    """Folder for the label maps, which keep the images' names (without channel) and folders, and for volumes.csv. Of
    DICOM series they are NIfTI files under hashed names, as by `python -m data.convert`, and DICOM segmentations, which
    carry the patient's name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    anonymous: bool = False
    """Write codes in place of the names of subjects and files into volumes.csv; the label maps keep their names."""


def run(cfg: Predict) -> pd.DataFrame:
    """Write a label map per image and `volumes.csv`; print volumes and, where phases are known, ejection fractions.

    A file that cannot be segmented does not stop the others; it is reported at the end.

    Returns:
        One row per image and frame: file, subject, phase, frame, and `volume_ml_CLASS` (in units of 1000 pixels for
        2D images, which have no spacing).

    Raises:
        UserError: if there is no image.
        SomeFilesFailed: after all others are done, if some files could not be segmented.
    """
    _check_paths(cfg.input, cfg.output)
    from engine.devices import make_fabric, show_messages  # torch is slow to import: mistakes in the paths come first
    from segment.inference import segment_stack
    from segment.model import load_unet

    show_messages()
    unet, card = load_unet(cfg.run)
    from_dicom = dicom_images(cfg.input)
    if from_dicom is None:
        targets, problems = _targets(cfg.input, cfg.output, card)
        dicom: dict[Path, DicomImage] = {}
    else:
        dicom, targets, problems = _dicom_targets(*from_dicom, cfg)
    unet.to(make_fabric(cfg.device).device)
    remove_leftovers(cfg.output)
    names = [f"volume_ml_{name}" for name in card.classes[1:]]
    _write_volumes(pd.DataFrame(columns=[*VOLUME_COLUMNS, *names]), cfg.output)  # marks the folder as an output
    model = sha256(cfg.run / "model.safetensors")[:16] if dicom else ""
    rows = []
    for file, target in targets.items():
        try:
            volume = dicom[file].read() if file in dicom else read_volume(file)
            volume = replace(volume, slicing=card.slice_axis)
            is_channel = card.channels is not None and volume.shape.frames > 1
            if card.channels is not None and is_channel:
                volume = one_channel(volume, card.channels)
            if not np.isfinite(volume.stack).all():
                raise UserError(f"{file} holds NaN or infinite values; repair it")
            row_mm, column_mm, slice_mm = volume.shape.slice_spacing
            resampled_size(volume.stack.shape[2:], (row_mm, column_mm), card.spacing_mm, str(file))
            labels = np.stack([segment_stack(unet, frame, (row_mm, column_mm), card) for frame in volume.stack])
            write_label_map(target, labels, volume)
        except UserError as error:
            problems.append(f"{file}: {error}" if file in dicom else str(error))
            continue
        if file in dicom:
            frame = card.channels if is_channel and card.channels is not None else 0
            problems += _write_dicom(target, labels, volume, dicom[file], card, model, frame)
        counts = [np.bincount(frame.ravel(), minlength=len(card.classes)) for frame in labels]
        known = [(dicom[file].subject, "", t + 1) for t in range(len(labels))] if file in dicom else None
        for (subject, phase, frame), count in zip(known or _frames(file, target, len(labels)), counts, strict=True):
            millilitres = count * row_mm * column_mm * slice_mm / 1000
            volumes = dict(zip(names, millilitres[1:], strict=True))
            rows.append({"file": str(target), "subject": subject, "phase": phase, "frame": frame} | volumes)
    table = pd.DataFrame(rows)
    if cfg.anonymous:
        table = anonymised(table)
    if rows:
        _write_volumes(table, cfg.output)
        _print(table, cfg.output)
    if problems:
        raise SomeFilesFailed(problems, table["file"].nunique() if rows else 0)
    return table


def ejection_fractions(table: pd.DataFrame, chamber: str) -> pd.DataFrame:
    """End-diastolic and end-systolic volume and ejection fraction of each 4D file, and of each subject's 3D files.

    ED and ES are the frames of these phases; in a 4D file without phases, the largest and the smallest volume.

    Args:
        table: rows of `run`.
        chamber: class name, "LV" or "RV".

    Returns:
        One row per 4D file or subject that has both phases: source (its name), ed_ml, es_ml, ejection_fraction (%).
    """
    volume, fractions = f"volume_ml_{chamber}", []
    cine = table.groupby("file")["frame"].transform("size") > 1
    source = table["subject"].where(~cine, table["file"].map(lambda file: stem(Path(file))))
    for name, rows in table.groupby(source):
        ed, es = (rows.loc[rows["phase"] == phase, volume] for phase in ("ED", "ES"))
        if len(ed) and len(es):
            full, empty = float(ed.iloc[0]), float(es.iloc[0])
        elif len(rows) > 1 and cine[rows.index].all():
            full, empty = float(rows[volume].max()), float(rows[volume].min())
        else:
            continue
        if full > 0:
            fraction = 100 * (full - empty) / full
            fractions.append({"source": name, "ed_ml": full, "es_ml": empty, "ejection_fraction": fraction})
    return pd.DataFrame(fractions, columns=["source", "ed_ml", "es_ml", "ejection_fraction"])


def _check_paths(path: Path, output: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist; --input takes an image or a folder of images")
    if output.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UserError(f"--output {output} is the folder of the images, which would be overwritten; choose another")
    if path.is_dir() and is_output(path, os.listdir(path)):
        raise UserError(f"{path} is the output of an earlier command; --input takes the folder of the images")
    if path.is_file() and names_label_map(stem(path)):
        raise UserError(f"{path} is a label map by its name; --input takes an image or a folder of images")


def _targets(path: Path, output: Path, card: "ModelCard") -> tuple[dict[Path, Path], list[str]]:
    """{image: label map to write}, without images in the output folder; and sentences about cases without an image."""
    targets: dict[Path, Path] = {}
    problems: list[str] = []
    if path.is_file():
        targets = {path: output / path.name} if is_image(path) else {}
    else:
        discovery = discover(path, channels=card.channels, expect_channels=card.numbered_channels)
        for message in (*discovery.search.messages(), *discovery.messages):
            log.info(message)
        problems += discovery.incomplete
        folder = output.resolve()
        taken: dict[Path, Path] = {}
        for image in discovery.images:
            if folder in image.file.resolve().parents:
                continue
            case = image.name.rsplit("/", 1)[-1]
            suffix = image.file.name[len(stem(image.file)) :]
            target = output / image.file.relative_to(path).with_name(case + suffix)
            if target in taken:
                problems.append(f"{image.file} would be written to the same file as {taken[target]}: rename one")
                continue
            taken[target] = image.file
            targets[image.file] = target
    _refuse_foreign_files(targets, output)
    if not targets and not problems:
        raise UserError(f"{path} holds no image (.nii, .nii.gz, .png, .tif, DICOM); pass a file or a folder of them")
    return targets, problems


def _dicom_targets(
    images: list[DicomImage], problems: list[str], cfg: Predict
) -> tuple[dict[Path, DicomImage], dict[Path, Path], list[str]]:
    """{name: image}, {name: label map to write}, and sentences about series that are left out."""
    if cfg.input.is_dir() and cfg.output.resolve().is_relative_to(cfg.input.resolve()):
        raise UserError(f"--output {cfg.output} lies within --input {cfg.input}: choose a folder outside")
    if not images:
        raise UserError(f"no DICOM series in {cfg.input} can be read: {first_and_count(problems or ['no images'])}")
    by_name = {Path(f"{image.name}.nii.gz"): image for image in images}
    targets = {name: cfg.output / name for name in by_name}
    _refuse_foreign_files(targets, cfg.output)
    return by_name, targets, problems


def _write_dicom(
    target: Path, labels: np.ndarray, volume: Volume, image: DicomImage, card: "ModelCard", model: str, frame: int
) -> list[str]:
    """Write DICOM segmentations beside a label map; returns why that is impossible, if it is.

    Args:
        target: the label map.
        labels: (frames, slices, rows, columns), as `volume.stack`.
        volume: the image.
        image: its DICOM planes.
        card: names the classes.
        model: see `write_segmentations`.
        frame: the image's time frame, from 0, of the first label map.
    """
    values = np.moveaxis(labels.T, 2, volume.shape.slice_axis)
    try:
        write_segmentations(target.with_name(f"{stem(target)}.dcm"), values, image, card.classes, model, frame)
    except UserError as error:
        return [f"{target} is written, but {error}"]
    return []


def _refuse_foreign_files(targets: dict[Path, Path], output: Path) -> None:
    """Raise a UserError if a file that this command did not write would be overwritten."""
    present = sorted(target for target in targets.values() if target.exists())
    if present and not is_output(output, os.listdir(output)):
        raise UserError(f"{present[0]} exists and was not written by this command; choose another --output")


def _write_volumes(table: pd.DataFrame, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / VOLUMES, table, float_format="%.3f")


def _frames(file: Path, target: Path, count: int) -> list[tuple[str, str, int]]:
    """(subject, phase, frame) of each frame in a file; from ACDC names and Info.cfg, else the case is the subject."""
    name = parse_name(stem(file))
    if name is None:
        return [(stem(target), "", frame) for frame in range(1, count + 1)]
    info = read_info(file.parent)
    frames = [name.frame] if name.frame is not None and count == 1 else range(1, count + 1)
    return [(name.subject, phase_of(info, frame), frame) for frame in frames]


def _print(table: pd.DataFrame, output: Path) -> None:
    console = terminal()
    classes = [column.removeprefix("volume_ml_") for column in table.columns if column.startswith("volume_ml_")]
    if not table["file"].str.lower().str.endswith(PLANAR_SUFFIXES).all():
        summary = table_of("volumes", "file", "phase", "frame", *(f"{name} mL" for name in classes))
        is_single = table.groupby("file")["frame"].transform("size") == 1
        for _, row in table[(table["phase"] != "") | is_single].iterrows():
            volumes = [f"{row[f'volume_ml_{name}']:.1f}" for name in classes]
            summary.add_row(Path(row["file"]).name, row["phase"], str(row["frame"]), *volumes)
        if summary.row_count:
            console.print(summary)
        for chamber in (name for name in ("LV", "RV") if name in classes):
            for _, row in ejection_fractions(table, chamber).iterrows():
                console.print(
                    f"{row['source']}: {chamber} {row['ed_ml']:.0f} mL at ED, {row['es_ml']:.0f} mL at ES, "
                    f"ejection fraction {row['ejection_fraction']:.0f} %",
                    soft_wrap=True,
                )
    console.print(f"written: {table['file'].nunique()} label maps and volumes.csv in {output}", soft_wrap=True)


if __name__ == "__main__":
    with user_errors():
        run(parse_command(Predict, "python -m segment.predict", EXAMPLES))
