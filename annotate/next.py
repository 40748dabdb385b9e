"""`python -m annotate next --run RUN --slices 10`: the slices a trained U-Net is most unsure of, with its masks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

import numpy as np
import pandas as pd

from annotate.plan import open_unlabelled, require_new, write_plan
from core.command_line import parse_command
from core.errors import UserError
from core.program import program
from core.settings import Settings
from core.tables import read_table
from core.terminal import terminal
from core.wording import count_of
from data.cines import same_places
from data.duplicates import subjects_of_pool
from data.slices import Dataset, Slices, with_splits
from data.sources import SliceSource
from data.splits import load_splits
from segment.choice import sharpness_of, uncertain_slices

log = logging.getLogger("fewslice")

EXAMPLES = ("--run RUN --slices 10 --out PLAN", "--run RUN --slices 10 --round 2 --rounds 5 --out PLAN")
MOST_CANDIDATES = 2000
"""Unlabelled slices that are looked at, drawn at random where there are more."""
KEYS = ["file", "frame", "slice"]


@dataclass(frozen=True, kw_only=True)
class Next(Settings):
    """Choose the next slices to label by what a trained U-Net is unsure of; its masks are drawn to be corrected."""

    run: Path
    """Run folder of `python -m segment`, whose data set and labelled slices are gone on with."""
    slices: int = 10
    """Number of slices to label, of any training subject, at most one of each place of a scan."""
    round: int = 1
    """Number of this round, from 1; early rounds choose with more chance."""
    rounds: int = 5
    """Number of rounds that are planned."""
    seed: int = 0
    """Random seed, 0 or more."""
    out: Path = Path("plan-next")
    """Folder for the plan; it must not exist, or be empty."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("slices", "round", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be 1 or more")
        if self.round > self.rounds:
            raise UserError(f"--round {self.round}: there are --rounds {self.rounds}")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")


def run(cfg: Next) -> pd.DataFrame:
    """Write the plan, see `annotate.plan`.

    Returns:
        Its rows, in the order of choice.

    Raises:
        UserError: for a mistake in the configuration, the run or the data, or if no slice is left.
    """
    require_new(cfg.out)
    from engine.devices import make_fabric, show_messages
    from segment.inference import segment_stack
    from segment.model import load_unet
    from segment.selection import entropy_by_class

    show_messages()
    dataset, source = _data_of(cfg.run)
    unet, card = load_unet(cfg.run)
    unet.to(make_fabric(cfg.device).device)
    labelled = read_table(cfg.run / "labelled_slices.csv", KEYS)[KEYS]
    candidates = _candidates(dataset, labelled, cfg)
    entropy = entropy_by_class(unet, card, dataset, candidates)
    places = same_places(Slices(store=dataset.store, positions=candidates)).tolist()
    chosen = uncertain_slices(entropy, places, cfg.slices, sharpness_of(cfg.round, cfg.rounds), cfg.seed)
    if len(chosen) < cfg.slices:
        log.info(f"only {len(chosen)} places are left to choose from")
    whys = {label: f"unsure of {name}" for label, name in enumerate(card.classes)} | {0: "unsure of the slice"}

    def drawn(row: int) -> np.ndarray:
        row_mm, column_mm = dataset.table.iloc[row][["row_mm", "column_mm"]].astype(float)
        labels: np.ndarray = segment_stack(unet, dataset.store.image(row)[None], (row_mm, column_mm), card)[0]
        return labels

    rows = [(int(candidates[k]), whys[label]) for k, label in chosen]
    places_of_labels = [(str(file), int(frame), int(z)) for file, frame, z in labelled.itertuples(index=False)]
    return write_plan(cfg.out, dataset, source, rows, classes=card.classes, drawn=drawn, labelled=places_of_labels)


def _data_of(folder: Path) -> tuple[Dataset, SliceSource]:
    """The data set of a run with the run's split, and its settings."""
    from segment.selection import finished_run

    config = finished_run(folder)
    dataset = open_unlabelled(config.data)
    # the run's file leaves out the subjects that its protocol leaves out
    return with_splits(dataset, dataset.splits | load_splits(folder / "splits.json")), config.data


def _candidates(dataset: Dataset, labelled: pd.DataFrame, cfg: Next) -> np.ndarray:
    """Rows of training slices of places that carried no label in the run in any frame, ascending.

    Subjects that are in the validation or test split under another name are left out: labels of theirs may not be used.
    """
    table = dataset.table[KEYS].assign(
        place=same_places(Slices(store=dataset.store, positions=np.arange(len(dataset.table))))
    )
    known = table.loc[pd.MultiIndex.from_frame(table[KEYS]).isin(pd.MultiIndex.from_frame(labelled)), "place"]
    subjects = dataset.table["subject"].isin(subjects_of_pool(dataset, ["train"]))
    rows = np.flatnonzero((dataset.table["split"] == "train") & subjects & ~table["place"].isin(known))
    if not len(rows):
        raise UserError(f"every place in the training subjects of {dataset.root} is labelled: none is left to choose")
    if len(rows) > MOST_CANDIDATES:
        rows = np.sort(np.random.default_rng(cfg.seed).choice(rows, MOST_CANDIDATES, replace=False))
    return rows


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, choose and say where the plan is."""
    cfg = parse_command(Next, "python -m annotate next", EXAMPLES, args=arguments)
    table = run(cfg)
    terminal().print(
        f"{count_of(len(table), 'slice')} of {count_of(table['subject'].nunique(), 'subject')}: "
        f"{cfg.out / 'plan.csv'}, {cfg.out / 'contact_sheet.png'}\ncorrect the masks in {cfg.out / 'masks'}\n"
        f"next:    {program('annotate collect')} --plan {quote(str(cfg.out))} --out DATA",
        soft_wrap=True,
        highlight=False,
    )
