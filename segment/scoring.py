"""Score a U-Net on the labelled volumes of a split, each reassembled on its own grid."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from core.files import write_csv
from core.subjects import anonymised
from data.slices import Dataset
from segment.figures import panel_case, prediction_panel, titles_of_cases
from segment.inference import segment_stack
from segment.metrics import dice_per_class, score_volume, summarise
from segment.model import ModelCard
from segment.parity import ssl4mis_scores, ssl4mis_summary


@dataclass(frozen=True, kw_only=True)
class LabelledVolume:
    """One labelled volume of a data set."""

    subject: str
    file: str
    """Path of the image below the folder of the data set."""
    group: str
    phase: str
    frame: int
    image: np.ndarray
    """(slices, rows, columns), file units, or (slices, channels, rows, columns)."""
    reference: np.ndarray
    """(slices, rows, columns) uint8 class indices, or `label_maps.IGNORED`."""
    spacing: tuple[float, float, float]
    """(slice_mm, row_mm, column_mm)."""

    @property
    def pictured(self) -> np.ndarray:
        """(slices, rows, columns): the image, or its first channel, which figures show."""
        return self.image if self.image.ndim == 3 else self.image[:, 0]


def labelled_volumes(dataset: Dataset, split: str) -> Iterator[LabelledVolume]:
    """The labelled volumes of a split, one at a time."""
    positions = dataset.positions(split, labelled=True)
    table = dataset.table.iloc[positions].assign(position=positions)
    for _, rows in table.groupby(["subject", "file", "frame"], sort=True):
        rows = rows.sort_values("slice")
        first = rows.iloc[0]
        yield LabelledVolume(
            subject=str(first["subject"]),
            file=str(first["file"]),
            group=str(first["group"]),
            phase=str(first["phase"]),
            frame=int(first["frame"]),
            image=_volume_of([dataset.store.image(i) for i in rows["position"]]),
            reference=_volume_of([dataset.store.label(i) for i in rows["position"]]),
            spacing=(float(first["slice_mm"]), float(first["row_mm"]), float(first["column_mm"])),
        )


def _volume_of(slices: Sequence[np.ndarray]) -> np.ndarray:
    """(slices, rows, columns); a single slice, which may be large, is not copied."""
    return slices[0][None] if len(slices) == 1 else np.stack(slices)


def predict_split(unet: nn.Module, card: ModelCard, dataset: Dataset, split: str) -> list[np.ndarray]:
    """Label maps (slices, rows, columns) of the `labelled_volumes` of a split; the network's mode is restored."""
    training = unet.training
    unet.eval()
    predictions = [segment_stack(unet, v.image, v.spacing[1:], card) for v in labelled_volumes(dataset, split)]
    unet.train(training)
    return predictions


def split_scores(predictions: Sequence[np.ndarray], dataset: Dataset, split: str) -> dict[str, float]:
    """The mean Dice and Jaccard of `score_split` alone, cheap enough to follow training with.

    Returns:
        dice and jaccard; 0 if no class was counted.
    """
    subjects, rows = [], []
    for volume, prediction in zip(labelled_volumes(dataset, split), predictions, strict=True):
        subjects.append(volume.subject)
        rows.append(dice_per_class(prediction, volume.reference, dataset.classes))
    dice = pd.DataFrame(rows)
    tables = {"dice": dice, "jaccard": dice / (2 - dice)}  # of one class of one volume each follows from the other
    patients = {name: table.groupby(subjects).mean().mean(axis=1) for name, table in tables.items()}
    return {name: float(np.nan_to_num(of_patients.mean())) for name, of_patients in patients.items()}


def score_split(
    predictions: Sequence[np.ndarray],
    dataset: Dataset,
    split: str,
    folder: Path,
    *,
    figures: bool = True,
    anonymous: bool = False,
    parity: bool = False,
    part_of: Callable[[str], str] | None = None,
) -> dict[str, Any]:
    """Score the predictions of `predict_split`; write `per_volume.csv` and `predictions.png` into `folder`.

    With `anonymous` both have codes in place of the names of subjects and files; with `parity` the scores of
    `segment.parity` stand beside ours; with `part_of`, which names the part of the split that a subject belongs to,
    each part is summarised by itself, too.

    Returns:
        The summary of `segment.metrics.summarise`; with `parity` that of `segment.parity` as ``parity_ssl4mis``;
        with `part_of` a summary of each part in ``parts``.
    """
    classes = dataset.classes[1:]
    rows = []
    for volume, prediction in zip(labelled_volumes(dataset, split), predictions, strict=True):
        score = score_volume(prediction, volume.reference, volume.spacing, classes)
        score |= ssl4mis_scores(prediction, volume.reference, classes) if parity else {}
        names = ("subject", "file", "group", "phase", "frame")
        rows.append({name: getattr(volume, name) for name in names} | score)
    folder.mkdir(parents=True, exist_ok=True)
    per_volume = pd.DataFrame(rows)
    parts = per_volume["subject"].map(part_of) if part_of else None
    if anonymous:
        per_volume = anonymised(per_volume)
    write_csv(folder / "per_volume.csv", per_volume)
    if figures:
        _draw_panel(per_volume, labelled_volumes(dataset, split), predictions, classes, folder / "predictions.png")
    result = summarise(per_volume, classes)
    if parity:
        result["parity_ssl4mis"] = ssl4mis_summary(per_volume, classes)
    if parts is not None:
        result["parts"] = {str(name): summarise(table, classes) for name, table in per_volume.groupby(parts)}
    return result


def _draw_panel(
    per_volume: pd.DataFrame,
    volumes: Iterable[LabelledVolume],
    predictions: Sequence[np.ndarray],
    classes: Sequence[str],
    file: Path,
) -> None:
    """Draw the worst, the median and the best volume."""
    titles = titles_of_cases(per_volume, classes)
    cases = {}
    for k, v in enumerate(volumes):  # one at a time in memory
        if k in titles:
            cases[k] = panel_case(titles[k], v.pictured, v.reference, predictions[k], v.spacing)
    if cases:
        prediction_panel([cases[k] for k in titles], file, classes)
