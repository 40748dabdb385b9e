"""Check the Dice that an ensemble predicts for itself: ``python -m segment.agreement --run A B C``.

It is compared with the true one. The runs' own data sets and validation split are used, which no member was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from core.command_line import parse_command
from core.errors import UserError, user_errors
from core.files import remove_leftovers, write_csv, write_json
from core.settings import Settings
from core.subjects import anonymised
from core.terminal import terminal
from core.wording import count_of
from segment.tables import table_of

if TYPE_CHECKING:
    from data.slices import Dataset
    from segment.ensemble import Ensemble

EXAMPLES = ("--run RUN1 RUN2 RUN3", "--run RUN1 RUN2 RUN3 --out DIR")
FEWEST = 3
"""Volumes that a correlation takes."""


@dataclass(frozen=True, kw_only=True)
class CheckAgreement(Settings):
    """Compare the Dice predicted from the agreement of several networks with the true one on the validation split."""

    run: tuple[Path, ...]
    """Two or more run folders of `python -m segment`, of the same data set and validation subjects."""
    out: Path | None = None
    """Folder for agreement.csv, a row per volume, and agreement.json; None: only print."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    anonymous: bool = False
    """Write codes in place of the names of subjects into agreement.csv."""


def run(cfg: CheckAgreement) -> dict[str, Any]:
    """Predict the labelled validation volumes, print and write how the predicted Dice relates to the true one.

    Returns:
        ``volumes``, ``patients``, and ``classes``: for "mean" and each class `relation`.

    Raises:
        UserError: with fewer than two runs, or if they cannot be combined or have different validation subjects.
    """
    if len(cfg.run) < 2:
        raise UserError("--run takes two runs or more here: a single network agrees with itself")
    if cfg.out is not None and any((cfg.out / name).exists() for name in ("config.json", "study.json")):
        raise UserError(f"--out {cfg.out} is the folder of a run or study: choose another")
    from engine.devices import make_fabric, show_messages  # torch is slow to import
    from segment.ensemble import load_ensemble

    show_messages()
    ensemble = load_ensemble(cfg.run, make_fabric(cfg.device).device)
    table = compare(ensemble, common_dataset(cfg.run))
    classes = ["mean", *ensemble.card.classes[1:]]
    result = {
        "volumes": len(table),
        "patients": int(table["subject"].nunique()),
        "classes": {name: relation(table[f"predicted_dice_{name}"], table[f"dice_{name}"]) for name in classes},
    }
    if cfg.out is not None:
        cfg.out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(cfg.out)
        write_csv(cfg.out / "agreement.csv", anonymised(table) if cfg.anonymous else table, float_format="%.6g")
        write_json(cfg.out / "agreement.json", result)
    _print(result, cfg.out)
    return result


def common_dataset(runs: Sequence[Path]) -> "Dataset":
    """The data set of some runs, with the split that all of them have.

    Raises:
        UserError: if they were trained on other data or have other validation subjects: a volume would be scored that a
            member was trained on.
    """
    from engine.config import read_config
    from segment.config import SegmentConfig
    from segment.training import split_as_trained

    datasets = [split_as_trained(read_config(SegmentConfig, each / "config.json")) for each in runs]
    first = datasets[0]
    for path, dataset in zip(runs[1:], datasets[1:], strict=True):
        if dataset.store.key != first.store.key:
            raise UserError(f"{runs[0]} and {path} were trained on different data: pass runs of one data set")
        if _validation(dataset) != _validation(first):
            raise UserError(
                f"{runs[0]} and {path} have different validation subjects, so that one was trained on subjects that "
                "the other is scored on: pass runs of one split"
            )
    return first


def _validation(dataset: "Dataset") -> set[str]:
    return {subject for subject, split in dataset.splits.items() if split == "val"}


def compare(ensemble: "Ensemble", dataset: "Dataset") -> pd.DataFrame:
    """Predicted and true Dice of the labelled validation volumes.

    Returns:
        A row per volume: subject, phase, frame, and for "mean" and each class X ``predicted_dice_X`` and ``dice_X``.
    """
    from segment.ensemble import mean_agreement
    from segment.metrics import dice_per_class
    from segment.scoring import labelled_volumes

    rows = []
    for volume in labelled_volumes(dataset, "val"):
        prediction = ensemble.segment(volume.image, volume.spacing[1:])
        row = {"subject": volume.subject, "phase": volume.phase, "frame": volume.frame}
        dice = dice_per_class(prediction.labels, volume.reference, dataset.classes)
        for prefix, values in (("predicted_dice", prediction.agreement), ("dice", dice)):
            row |= {f"{prefix}_mean": mean_agreement(values)} | {f"{prefix}_{k}": v for k, v in values.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def relation(predicted: pd.Series, true: pd.Series) -> dict[str, float | int | None]:
    """How predicted scores relate to true ones, over the volumes that have both.

    Returns:
        ``volumes``; ``pearson`` and ``spearman`` correlation (None with fewer than 3 volumes or constant scores);
        ``mean_error``, predicted less true; ``mean_absolute_error``; means of both as ``predicted`` and ``true``.
    """
    both = pd.DataFrame({"predicted": predicted, "true": true}).dropna()
    values = both["predicted"].to_numpy(float), both["true"].to_numpy(float)
    correlated = len(both) >= FEWEST and all(np.ptp(each) > 0 for each in values)
    error = values[0] - values[1]
    known = len(both) > 0
    return {
        "volumes": len(both),
        "pearson": float(pearsonr(*values).statistic) if correlated else None,
        "spearman": float(spearmanr(*values).statistic) if correlated else None,
        "predicted": float(values[0].mean()) if known else None,
        "true": float(values[1].mean()) if known else None,
        "mean_error": float(error.mean()) if known else None,
        "mean_absolute_error": float(np.abs(error).mean()) if known else None,
    }


def _print(result: dict[str, Any], out: Path | None) -> None:
    console = terminal()
    title = f"predicted and true Dice of {count_of(result['volumes'], 'validation volume')} of "
    title += f"{count_of(result['patients'], 'patient')}; "
    title += "errors are predicted less true"
    heads = ("volumes", "predicted", "true", "mean error", "absolute error", "Pearson", "Spearman")
    keys = ("predicted", "true", "mean_error", "mean_absolute_error", "pearson", "spearman")
    table = table_of(title, "class", *heads)
    for name, values in result["classes"].items():
        numbers = ["–" if values[key] is None else f"{values[key]:.3f}" for key in keys]
        table.add_row(name, str(values["volumes"]), *numbers)
    console.print(table)
    if out is not None:
        console.print(f"written: {out / 'agreement.csv'}, {out / 'agreement.json'}", soft_wrap=True)


if __name__ == "__main__":
    with user_errors():
        run(parse_command(CheckAgreement, "python -m segment.agreement", EXAMPLES))
