"""What the page of a segmentation run shows: scores with intervals, and its worst, median and best case."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

from core.page import interval, jpeg_address, number
from core.program import program
from core.resampling import mean_with_interval
from core.tables import read_table
from core.wording import count_of
from data.pictures import colour_of, draw_slice, spread_places
from data.readers.label_maps import without_ignored
from data.slices import Dataset
from data.sources import chosen_channels
from engine.run_page import Case, CasePage, RunPage, Table
from segment.config import SegmentConfig
from segment.figures import foreground_window, titles_of_cases
from segment.metrics import MEASURES
from segment.scoring import LabelledVolume, labelled_volumes
from segment.tables import next_command

MOST_PAGES = 12
"""Slices of a case on the page."""
SIDE = 200
"""Longer side of a picture in pixels."""
NAMES = {"val": "validation", "test": "test"}
MEASURE_NAMES = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}


def run_page(
    cfg: SegmentConfig,
    folder: Path,
    dataset: Dataset,
    predictions: Mapping[str, Sequence[np.ndarray]],
    result: Mapping[str, Any],
) -> RunPage:
    """The page of a finished run.

    Args:
        cfg: its configuration.
        folder: its folder, with `per_volume.csv`.
        dataset: the data set.
        predictions: by split, the label maps of its `labelled_volumes`.
        result: content of `result.json`.
    """
    classes = dataset.classes[1:]
    files = {"val": folder / "per_volume.csv", "test": folder / "test" / "per_volume.csv"}
    scored = {split: read_table(files[split]) for split in predictions}
    split = "test" if "test" in scored else "val"
    patients = _patients(scored[split], ["dice"], classes)
    mean = mean_with_interval(patients.mean(axis=1).to_numpy())
    spread = "" if np.isnan(mean["low"]) else f" (95 % interval {interval(mean)})"
    notices = list(result["warnings"])
    if result["synthetic"]:
        notices.insert(0, "Synthetic data: this checks that the software runs; it is no evidence about any method.")
    if split == "val" and cfg.select == "best":
        notices.append("The weights were chosen by the validation score, which is therefore too high.")
    return RunPage(
        title=f"Segmentation with {result['labelled_slices']} labelled slices",
        lead=f"Mean Dice {number(mean['value'])}{spread} over {count_of(len(patients), f'{NAMES[split]} patient')}.",
        notices=notices,
        what_was_run=_what_was_run(cfg, dataset, result),
        tables=list(_tables(scored, classes)),
        curves={"loss": ["loss"], "validation score": ["validation_dice", "validation_jaccard"]},
        cases=list(_cases(scored[split], dataset, split, predictions[split])),
        cases_text=(
            f"The worst, the median and the best volume of the {NAMES[split]} split by mean Dice, cut to its "
            f"foreground; up to {MOST_PAGES} slices each, to be scrolled sideways.{_pictured_channel(cfg)}"
        ),
        legend={name: colour_of(label) for label, name in enumerate(classes, start=1)},
        following={
            "Segment other images": next_command(folder, cfg.data.data_root),
            "Score masks against references": f"{program('segment.evaluate')} --prediction OUT --reference DIR",
            "Choose what to label next": f"{program('annotate next')} --run {quote(str(folder))} --help",
        },
        notes=[
            "Scores are of whole volumes, averaged per patient and then over patients. An interval is the 95 % "
            "percentile interval of 2000 bootstrap resamples of the patients; it does not cover how much another seed "
            f"or another labelled subset would differ, which a study does ({program('sweep')}).",
            "A class that is empty in prediction and reference is not counted; one that is empty in either has Dice "
            "0 and no distance.",
        ],
    )


def _what_was_run(cfg: SegmentConfig, dataset: Dataset, result: Mapping[str, Any]) -> dict[str, str]:
    rows = {
        "Data": dataset.name,
        "Labels": f"{count_of(result['labelled_slices'], 'slice')} of "
        f"{count_of(result['labelled_subjects'], 'subject')} "
        f"(--labelled-fraction {cfg.labelled_fraction:g})",
        "Start of the encoder": cfg.init,
        "Network": f"U-Net, {cfg.encoder}, {cfg.norm} norm",
        "Training": f"{count_of(cfg.steps, 'step')} of {count_of(cfg.batch_size, 'slice')}, {cfg.image_size} pixels",
        "Learning rate": f"{cfg.lr:g}, encoder {cfg.lr * result['encoder_lr_factor']:g}",
        "Seed": str(cfg.seed),
    }
    if chosen := chosen_channels(cfg.data):
        rows["Channels"] = " ".join(map(str, chosen))
    if "unlabelled" in result:
        rows["Unlabelled"] = f"{count_of(result['unlabelled']['slices'], 'slice')}, by pseudo-labels"
    return rows


def _pictured_channel(cfg: SegmentConfig) -> str:
    """A sentence on the channel that pictures show, with a space before it; empty for images of one channel."""
    chosen = chosen_channels(cfg.data)
    return f" The images show channel {chosen[0]}, the first that was chosen." if chosen else ""


def _patients(per_volume: pd.DataFrame, measures: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """Scores of each patient, the mean over its volumes: subject -> MEASURE_CLASS."""
    return per_volume.groupby("subject")[[f"{measure}_{name}" for measure in measures for name in classes]].mean()


def _tables(scored: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> Iterator[Table]:
    for split, per_volume in scored.items():
        patients = _patients(per_volume, MEASURES, classes)
        yield Table(
            title=f"Scores by class, {NAMES[split]} split",
            text=f"Means over {count_of(len(patients), 'patient')}, with 95 % intervals over patients.",
            heads=["class", *(f"{name} (95 % interval)" for name in MEASURE_NAMES.values())],
            rows=[_class_row(patients, name, classes) for name in ("all", *classes)],
            open=True,
        )
        yield Table(
            title=f"Scores by patient, {NAMES[split]} split",
            text="Means over the volumes of each patient, the worst patient first.",
            heads=["patient", "volumes", "mean Dice", *(f"Dice {name}" for name in classes),
                   *(f"HD95 mm {name}" for name in classes)],
            rows=list(_patient_rows(per_volume, patients, classes)),
        )  # fmt: skip


def _class_row(patients: pd.DataFrame, name: str, classes: Sequence[str]) -> list[str]:
    row = [name]
    for measure in MEASURES:
        columns = [f"{measure}_{each}" for each in (classes if name == "all" else [name])]
        mean = mean_with_interval(patients[columns].mean(axis=1).to_numpy())
        form = ".2f" if measure.endswith("mm") else ".3f"
        row.append(f"{number(mean['value'], form)} ({interval(mean, form)})")
    return row


def _patient_rows(per_volume: pd.DataFrame, patients: pd.DataFrame, classes: Sequence[str]) -> Iterator[list[str]]:
    volumes = per_volume.groupby("subject").size()
    mean = patients[[f"dice_{name}" for name in classes]].mean(axis=1).sort_values(kind="stable")
    for subject in mean.index:
        of_patient = patients.loc[subject]
        dice = [number(of_patient[f"dice_{name}"]) for name in classes]
        distance = [number(of_patient[f"hd95_mm_{name}"], ".2f") for name in classes]
        yield [str(subject), str(volumes[subject]), number(mean[subject]), *dice, *distance]


def _cases(per_volume: pd.DataFrame, dataset: Dataset, split: str, predictions: Sequence[np.ndarray]) -> Iterator[Case]:
    """The worst, the median and the best volume."""
    titles = titles_of_cases(per_volume, dataset.classes)
    drawn: dict[int, Case] = {}
    for row, volume in enumerate(labelled_volumes(dataset, split)):  # one at a time in memory
        if row in titles:
            drawn[row] = Case(title=titles[row], pages=list(_pages(volume, predictions[row])))
    yield from (drawn[row] for row in titles)


def _pages(volume: LabelledVolume, prediction: np.ndarray) -> Iterator[CasePage]:
    """The slices of a case that have foreground in either label map, in order; the middle one if none has."""
    prediction, reference = without_ignored(prediction, volume.reference)
    marked = (prediction > 0) | (reference > 0)
    places = np.flatnonzero(marked.any(axis=(1, 2)))
    if not len(places):
        places = np.array([len(marked) // 2])
    aspect = volume.spacing[1] / volume.spacing[2]
    window = foreground_window(np.any(marked, axis=0), aspect)
    for place in places[spread_places(len(places), MOST_PAGES)]:
        image = volume.pictured[place][window]
        labels = {"image": None, "reference": reference[place][window], "prediction": prediction[place][window]}
        pictures = {
            name: jpeg_address(draw_slice(image, label_map, aspect=aspect, side=SIDE))
            for name, label_map in labels.items()
        }
        yield CasePage(title=f"slice {place + 1} of {len(marked)}", pictures=pictures)
