"""`python -m segment.predict --run RUN --input FILE|DIR --output DIR`: label maps on the images' own grids."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from data.acdc import read_info
from data.errors import UserError, user_errors
from data.volume import PLANAR_SUFFIXES, is_image, read_volume, stem, write_label_map

log = logging.getLogger("fewslice")


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Segment images with a trained U-Net."""

    run: Path
    """Run directory of `python -m segment`."""
    input: Path
    """An image (3D or 4D NIfTI, PNG, TIFF), or a folder of images, searched with its subfolders."""
    output: Path
    """Folder for the label maps, which keep the images' names and folders, and for volumes.csv."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def run(cfg: Predict) -> pd.DataFrame:
    """Write a label map per image and `volumes.csv`; print volumes and, where phases are known, ejection fractions.

    A file that cannot be read does not stop the others; it is named at the end.

    Returns:
        One row per image and frame: file, subject, phase, frame, and `volume_ml_CLASS` (for 2D images without
        spacing, thousandths of pixels).

    Raises:
        UserError: when nothing can be read, or when some files could not, after the others are done.
    """
    files = list(_images(cfg.input, cfg.output))
    if not files:
        raise UserError(f"{cfg.input} holds no image (.nii, .nii.gz, .png, .tif); give a file or a folder of them")
    from engine.devices import make_fabric  # torch is slow to import: mistakes in the paths should not wait for it
    from segment.inference import segment_stack
    from segment.model import load_unet

    unet, card = load_unet(cfg.run)
    unet.to(make_fabric(cfg.device).device)
    rows, problems = [], []
    for file in files:
        try:
            volume = read_volume(file)
            if not np.isfinite(volume.stack).all():
                raise UserError(f"{file} holds NaN or infinite values; repair it")
            row_mm, column_mm, slice_mm = volume.shape.slice_spacing
            labels = np.stack([segment_stack(unet, frame, (row_mm, column_mm), card) for frame in volume.stack])
            target = cfg.output / (file.relative_to(cfg.input) if cfg.input.is_dir() else file.name)
            write_label_map(target, labels, volume)
        except UserError as error:
            problems.append(str(error))
            continue
        counts = [np.bincount(frame.ravel(), minlength=len(card.classes)) for frame in labels]
        who = _frames(file, len(labels))
        for (subject, phase, frame), count in zip(who, counts, strict=True):
            millilitres = count * row_mm * column_mm * slice_mm / 1000
            named = {f"volume_ml_{name}": millilitres[k] for k, name in enumerate(card.classes) if k}
            rows.append({"file": str(target), "subject": subject, "phase": phase, "frame": frame} | named)
    table = pd.DataFrame(rows)
    if rows:
        table.to_csv(cfg.output / "volumes.csv", index=False, float_format="%.3f")
        _print(table, cfg.output)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; the other {len(files) - len(problems)} files are done")
    return table


def ejection_fractions(table: pd.DataFrame, chamber: str) -> pd.DataFrame:
    """End-diastolic and end-systolic volume and ejection fraction of each 4D file, and of each subject's 3D files.

    ED and ES are the frames so named; in a 4D file without names, those of the largest and the smallest volume.

    Args:
        table: rows of `run`.
        chamber: class name, "LV" or "RV".

    Returns:
        One row per source that has both: source (4D file or subject), ed_ml, es_ml, ejection_fraction (%).
    """
    volume, found = f"volume_ml_{chamber}", []
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
            found.append({"source": name, "ed_ml": full, "es_ml": empty, "ejection_fraction": fraction})
    return pd.DataFrame(found, columns=["source", "ed_ml", "es_ml", "ejection_fraction"])


def _images(path: Path, output: Path) -> Iterator[Path]:
    """The images to segment: not label maps (`_gt`), and nothing in the output folder."""
    if not path.exists():
        raise UserError(f"{path} does not exist; --input takes an image or a folder of images")
    if output.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UserError(f"--output {output} is the folder of the images, which would be overwritten; choose another")
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        ours = output.resolve() in file.resolve().parents
        if file.is_file() and is_image(file) and not stem(file).endswith("_gt") and not ours:
            yield file


def _frames(file: Path, count: int) -> list[tuple[str, str, int]]:
    """(subject, phase, frame) of each frame in a file; ACDC names and Info.cfg tell, else the stem is the subject."""
    named = re.fullmatch(r"(.+?)_(?:frame(\d+)|4d)", stem(file))
    if named is None:
        return [(stem(file), "", frame) for frame in range(1, count + 1)]
    info = read_info(file.parent)
    phases = {info[phase]: phase for phase in ("ED", "ES") if phase in info}
    frames = [int(named[2])] if named[2] and count == 1 else range(1, count + 1)
    return [(named[1], phases.get(str(frame), ""), frame) for frame in frames]


def _print(table: pd.DataFrame, output: Path) -> None:
    console = Console()
    classes = [column.removeprefix("volume_ml_") for column in table.columns if column.startswith("volume_ml_")]
    planar = table["file"].str.lower().str.endswith(PLANAR_SUFFIXES).all()
    if not planar:
        shown = Table(title="volumes")
        for heading in ("file", "phase", "frame", *(f"{name} mL" for name in classes)):
            shown.add_column(heading, justify="left" if heading in ("file", "phase") else "right")
        for _, row in table[
            (table["phase"] != "") | (table.groupby("file")["frame"].transform("size") == 1)
        ].iterrows():
            volumes = [f"{row[f'volume_ml_{name}']:.1f}" for name in classes]
            shown.add_row(Path(row["file"]).name, row["phase"], str(row["frame"]), *volumes)
        if shown.row_count:
            console.print(shown)
        for chamber in ("LV", "RV"):
            if chamber in classes:
                for _, row in ejection_fractions(table, chamber).iterrows():
                    console.print(
                        f"{row['source']}: {chamber} {row['ed_ml']:.0f} mL at ED, {row['es_ml']:.0f} mL at ES, "
                        f"ejection fraction {row['ejection_fraction']:.0f} %"
                    )
    console.print(f"written: {table['file'].nunique()} label maps and volumes.csv in {output}", soft_wrap=True)


if __name__ == "__main__":
    with user_errors():
        run(tyro.cli(Predict, prog="python -m segment.predict"))
