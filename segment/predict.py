"""`python -m segment.predict --run RUN --input FILE|DIR --output DIR`: label maps on the images' own grids.

Of DICOM images they are written as NIfTI and as DICOM segmentations, see `segment.dicom_images`.
"""

import logging
from collections.abc import Sequence
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
from core.subjects import anonymised, pseudonyms
from core.wording import count_of
from data.preprocessing import resampled_size
from data.readers.acdc import parse_name, phase_of, read_info
from data.readers.channels import files_of_channels, read_channels, refuse_frames, refuse_several, several
from data.readers.discovery import discover
from data.readers.file_search import UNCERTAINTY, VOLUME_COLUMNS, VOLUMES, is_output, search_files
from data.readers.geometry import known_spacing, slicing_like
from data.readers.images import (
    Volume,
    is_image,
    label_suffix,
    one_channel,
    read_volume,
    stem,
    write_label_map,
    write_map,
)
from data.readers.label_maps import counts_of
from data.readers.roles import names_label_map
from segment.contact_sheet import is_contact_sheet
from segment.dicom_images import DicomImage, dicom_images, write_segmentations
from segment.map_places import map_targets, refuse_image_folders, require_outside
from segment.tables import print_volumes

if TYPE_CHECKING:
    from segment.model import ModelCard

log = logging.getLogger("fewslice")

ENTROPY = "mean_entropy_nats"
EXAMPLES = (
    "--run RUN --input scan.nii.gz --output OUT",
    "--run RUN --input DIR --output OUT",
    "--run RUN1 RUN2 RUN3 --input DIR --output OUT --uncertainty MAPS --contact-sheet sheet.png",
)


@dataclass(frozen=True, kw_only=True)
class Predict(Settings):
    """Segment images with a trained U-Net."""

    run: tuple[Path, ...]
    """Run folder of `python -m segment`, or several of the same classes, pixel size and normalisation: the mean of
    their class probabilities is used, and volumes.csv gains the Dice predicted from how far they agree."""
    input: Path
    """An image (3D or 4D NIfTI, PNG, TIFF, JPEG, DICOM), or a folder of images, searched with its subfolders. Label
    maps in it are left out; of nnU-Net's channels case_0000, case_0001, ... those that were trained on are used."""
    output: Path
    """Folder for the label maps, which keep the images' names (without channel) and folders, and for volumes.csv. Of
    DICOM series they are NIfTI files under hashed names, as by `python -m data.convert`, and DICOM segmentations, which
    carry the patient's name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    anonymous: bool = False
    """Write codes in place of the names of subjects and files into volumes.csv and onto the contact sheet; the label
    maps keep their names."""
    flip_tta: Literal["auto", "yes", "no"] = "auto"
    """Average each prediction with that of the left-right flipped slice; auto: as the runs were trained to."""
    uncertainty: Path | None = None
    """Folder, outside the input and output and without other images, for uncertainty maps on the images' grids: the
    entropy of the mean class probabilities in nats, from 0 (certain) to the logarithm of the number of classes, as
    float32. NIfTI images get NIfTI maps, PNG, TIFF and JPEG images TIFF maps."""
    contact_sheet: Path | None = None
    """PNG file, outside the input and output in a folder without images, for a picture of up to 60 predictions: of an
    ensemble those of the lowest predicted Dice, else the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.run, Path):  # from Python
            object.__setattr__(self, "run", (self.run,))
        for name, path in (("--uncertainty", self.uncertainty), ("--contact-sheet", self.contact_sheet)):
            require_outside(name, path, self.input, self.output)
        if self.contact_sheet is not None and self.contact_sheet.suffix.lower() != ".png":
            raise UserError(f"--contact-sheet {self.contact_sheet}: must end in .png")


def run(cfg: Predict) -> pd.DataFrame:
    """Write a label map per image and `volumes.csv`; print volumes and, where phases are known, ejection fractions.

    A file that cannot be segmented does not stop the others; it is reported at the end.

    Returns:
        One row per image and frame: file, subject, phase, frame, and `volume_ml_CLASS`; of images that state no voxel
        size, such as PNG, TIFF and JPEG, that is NaN, and `voxels_CLASS` counts voxels. Of an ensemble also
        `predicted_dice` and `predicted_dice_CLASS`, see `segment.ensemble.Agreement`; with `uncertainty`
        `mean_entropy_nats`.

    Raises:
        UserError: if there is no image.
        SomeFilesFailed: after all others are done, if some files could not be segmented.
    """
    _check_paths(cfg.input, cfg.output)
    refuse_image_folders(cfg.uncertainty, cfg.contact_sheet)
    from engine.devices import make_fabric, show_messages  # torch is slow to import: mistakes in the paths come first
    from segment.contact_sheet import ContactSheet
    from segment.doubts import Doubts
    from segment.ensemble import load_ensemble, mean_agreement
    from segment.trained_on import TrainedOn

    show_messages()
    ensemble = load_ensemble(cfg.run, make_fabric(cfg.device).device, cfg.flip_tta)
    card, trained_on = ensemble.card, TrainedOn(card for _, card in ensemble.members)
    from_dicom = dicom_images(cfg.input)
    if from_dicom is None:
        targets, channel_files, problems = _targets(cfg.input, cfg.output, card)
        dicom: dict[Path, DicomImage] = {}
    else:
        refuse_several(card.channels, f"{cfg.input} holds DICOM files, which have")
        channel_files = {}
        dicom, targets, problems = _dicom_targets(*from_dicom, cfg)
    maps = map_targets(targets, cfg.output, cfg.uncertainty, cfg.contact_sheet)
    sheet, doubts = ContactSheet(), Doubts(card)
    remove_leftovers(cfg.output)
    earlier = search_files(cfg.output).files if is_output(cfg.output) else []
    names = [f"volume_ml_{name}" for name in card.classes[1:]]
    _write_volumes(pd.DataFrame(columns=[*VOLUME_COLUMNS, *names]), cfg)  # marks the folders as outputs
    model = "+".join(sha256(folder / "model.safetensors")[:16] for folder in cfg.run)[:64] if dicom else ""
    rows = []
    for file, target in targets.items():
        try:
            volume, stack, first = _read(file, channel_files.get(file, ()), dicom.get(file), card)
            if not all(np.isfinite(image).all() for frame in stack for image in frame):
                raise UserError(f"{file} holds NaN or infinite values; repair it")
            row_mm, column_mm, slice_mm = volume.shape.slice_spacing
            resampled_size(volume.stack.shape[2:], (row_mm, column_mm), card.spacing_mm, str(file))
            spacing, entropy = (row_mm, column_mm), file in maps
            predictions = [ensemble.segment(frame, spacing, entropy=entropy) for frame in stack]
            labels = _stacked([prediction.labels for prediction in predictions])
            write_label_map(target, labels, volume)
            if entropy:
                frames = [prediction.entropy for prediction in predictions if prediction.entropy is not None]
                write_map(maps[file], _stacked(frames), volume)
        except UserError as error:
            problems.append(f"{file}: {error}" if file in dicom else str(error))
            continue
        if file in dicom:
            problems += _write_dicom(target, labels, volume, dicom[file], card, model, first)
        stated = dicom[file].known_spacing if file in dicom else known_spacing(volume)
        doubts.add(volume, stack, stated, labels)
        counts = [np.sum([counts_of(page, len(card.classes)) for page in frame], axis=0) for frame in labels]
        known = [(dicom[file].subject, "", t + 1) for t in range(len(labels))] if file in dicom else None
        of_frames = zip(known or _frames(file, target, len(labels)), stack, counts, predictions, strict=True)
        for (subject, phase, frame), image, count, prediction in of_frames:
            trained_on.add(subject, target.relative_to(cfg.output), image)
            row = {"file": str(target), "subject": subject, "phase": phase, "frame": frame}
            millilitres = count * (row_mm * column_mm * slice_mm / 1000 if all(stated) else np.nan)
            row |= dict(zip(names, millilitres[1:], strict=True))
            if not all(stated):
                row |= {f"voxels_{name}": number for name, number in zip(card.classes[1:], count[1:], strict=True)}
            if agreement := prediction.agreement:
                row["predicted_dice"] = mean_agreement(agreement)
                row |= {f"predicted_dice_{name}": value for name, value in agreement.items()}
            if prediction.entropy is not None:
                row[ENTROPY] = float(prediction.entropy.mean(dtype=np.float64))
            rows.append(row)
        if cfg.contact_sheet is not None:
            sheet.add(target, volume.stack, labels, spacing, mean_agreement(predictions[0].agreement))
    table = pd.DataFrame(rows)
    voxels = [f"voxels_{name}" for name in card.classes[1:]]
    table = table.astype({column: "Int64" for column in voxels if column in table})
    if cfg.anonymous:
        table = anonymised(table)
    if rows:
        _write_volumes(table, cfg)
        if cfg.contact_sheet is not None:
            sheet.write(cfg.contact_sheet, pseudonyms() if cfg.anonymous else str)
        print_volumes(table, cfg.output, cfg.uncertainty, cfg.contact_sheet)
    doubts.warn()
    trained_on.warn()
    _warn_of_earlier_maps(earlier, [Path(str(row["file"])) for row in rows], cfg.output)
    if problems:
        raise SomeFilesFailed(problems, table["file"].nunique() if rows else 0)
    return table


def _stacked(frames: Sequence[np.ndarray]) -> np.ndarray:
    """(frames, slices, rows, columns); a single frame, which may be large, is not copied."""
    return frames[0][None] if len(frames) == 1 else np.stack(frames)


def _check_paths(path: Path, output: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist; --input takes an image or a folder of images")
    if output.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise UserError(f"--output {output} is the folder of the images, which would be overwritten; choose another")
    if is_output(path):
        raise UserError(f"{path} is the output of an earlier command; --input takes the folder of the images")
    if path.is_file() and names_label_map(stem(path)):
        raise UserError(f"{path} is a label map by its name; --input takes an image or a folder of images")


def _read(
    file: Path, channel_files: Sequence[Path], dicom: DicomImage | None, card: "ModelCard"
) -> tuple[Volume, np.ndarray, int]:
    """An image as a network gets it.

    Args:
        file: its file.
        channel_files: the files of the chosen channels; () where `file` holds them itself.
        dicom: its DICOM planes in place of a file.
        card: card of the network.

    Returns:
        The volume on whose grid its label map lies; (frames, slices, rows, columns), or (1, slices, channels, rows,
        columns); and the first time frame, from 0.
    """
    if channels := several(card.channels):
        volumes = read_channels(channel_files or (file,), channels)
        slicing = slicing_like(card.plane, card.slice_axis, volumes[0].shape)
        volumes = [replace(volume, slicing=slicing) for volume in volumes]
        return volumes[0], np.stack([volume.stack for volume in volumes], axis=2), 0
    in_file = card.channels is not None and not channel_files
    volume = dicom.read() if dicom else read_volume(file, channels=in_file)
    volume = replace(volume, slicing=slicing_like(card.plane, card.slice_axis, volume.shape))
    if channel_files:
        refuse_frames(file, volume.shape.frames)
    if isinstance(card.channels, int) and in_file:
        volume = one_channel(volume, card.channels)
        return volume, volume.stack, card.channels
    return volume, volume.stack, 0


def _targets(
    path: Path, output: Path, card: "ModelCard"
) -> tuple[dict[Path, Path], dict[Path, tuple[Path, ...]], list[str]]:
    """{image: label map to write}, without images in the output folder; {image: files of its channels}, as in `_read`;
    and sentences about cases without an image."""
    targets: dict[Path, Path] = {}
    channel_files: dict[Path, tuple[Path, ...]] = {}
    problems: list[str] = []
    if path.is_file():
        targets = {path: output / (stem(path) + label_suffix(path))} if is_image(path) else {}
        channel_files[path] = files_of_channels(path, card.channels) if card.numbered_channels else ()
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
            target = output / image.file.relative_to(path).with_name(case + label_suffix(image.file))
            if target in taken:
                problems.append(f"{image.file} would be written to the same file as {taken[target]}: rename one")
                continue
            taken[target] = image.file
            targets[image.file] = target
            channel_files[image.file] = image.channels
    _refuse_foreign_files(targets, output)
    if not targets and not problems:
        raise UserError(
            f"{path} holds no image (.nii, .nii.gz, .png, .tif, .jpg, DICOM); pass a file or a folder of them"
        )
    return targets, channel_files, problems


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
    if present and not is_output(output):
        raise UserError(f"{present[0]} exists and was not written by this command; choose another --output")


def _warn_of_earlier_maps(earlier: Sequence[Path], written: Sequence[Path], output: Path) -> None:
    """Log a warning if label maps that earlier commands wrote lie beside those of this one."""
    if left := sorted(file for file in {*earlier} - {*written} if not is_contact_sheet(file)):
        log.warning(
            f"{output} also holds {count_of(len(left), 'label map')} of earlier commands, which volumes.csv does not "
            f"list ({left[0].relative_to(output)})"
        )


def _write_volumes(table: pd.DataFrame, cfg: Predict) -> None:
    """Write volumes.csv beside the label maps and uncertainty.csv beside the uncertainty maps."""
    cfg.output.mkdir(parents=True, exist_ok=True)
    write_csv(cfg.output / VOLUMES, table, float_format="%.6g")
    if cfg.uncertainty is not None:
        cfg.uncertainty.mkdir(parents=True, exist_ok=True)
        write_csv(cfg.uncertainty / UNCERTAINTY, table.reindex(columns=[*VOLUME_COLUMNS, ENTROPY]), float_format="%.6g")


def _frames(file: Path, target: Path, count: int) -> list[tuple[str, str, int]]:
    """(subject, phase, frame) of each frame in a file; from ACDC names and Info.cfg, else the case is the subject."""
    name = parse_name(stem(file))
    if name is None:
        return [(stem(target), "", frame) for frame in range(1, count + 1)]
    info = read_info(file.parent)
    frames = [name.frame] if name.frame is not None and count == 1 else range(1, count + 1)
    return [(name.subject, phase_of(info, frame), frame) for frame in frames]


if __name__ == "__main__":
    with user_errors():
        run(parse_command(Predict, "python -m segment.predict", EXAMPLES))
