"""`python -m annotate first --data-root DIR --init ENCODER`: the first subjects and slices to label, without labels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import numpy as np
import pandas as pd

from annotate.plan import open_unlabelled, require_new, volumes_of, write_plan
from core.errors import UserError
from core.program import program
from core.settings import Affects, Group, Settings
from core.terminal import terminal
from core.wording import count_of
from data.duplicates import subjects_of_pool
from data.leakage import was_trained_on
from data.reserved_split import keep_reserved_split, reserve_split
from data.slices import Dataset
from data.sources import AcdcSource, FolderSource
from encoders.names import Norm
from segment.choice import typical_slices

log = logging.getLogger("fewslice")

EXAMPLES = (
    "--dataset folder --data-root DIR --init runs/pretrain-hierarchical/encoder.safetensors",
    "--data-root ACDC --init ENCODER --patients 3 --slices 30 --out PLAN",
)


@dataclass(frozen=True, kw_only=True)
class First(Settings):
    """Choose the first subjects and slices to label by an encoder's view of all of them; no label is needed."""

    data: AcdcSource | FolderSource = field(default_factory=AcdcSource)
    """Data set."""
    init: Annotated[str, Group("network")] = "random"
    """Weights of the encoder: an encoder FILE, pretrained on these scans if possible, which determines `--encoder` and
    `--norm`; imagenet (timm's, downloaded); or random."""
    encoder: str = "resnet18"
    """Name of the encoder: any convolutional network of timm, e.g. resnet18."""
    norm: Norm = "batch"
    """Normalisation layers of the encoder."""
    patients: Annotated[int, Group("choice")] = 3
    """Number of subjects to label slices of; they are training subjects."""
    slices: int = 30
    """Number of slices to label, shared out evenly over the subjects."""
    seed: int = 0
    """Random seed, 0 or more."""
    classes: tuple[str, ...] = ()
    """Names of the classes 1, 2, ... that will be drawn; default: those of the data set."""
    out: Annotated[Path, Affects.OUTPUT] = Path("plan")
    """Folder for the plan; it must not exist, or be empty."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Affects.EXECUTION] = "auto"
    """Device to compute on; auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patients", "slices"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be 1 or more")
        if self.slices < self.patients:
            raise UserError(f"--slices {self.slices}: must be at least --patients {self.patients}, one slice of each")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")


PRESETS = {"demo": First, "default": First}


def run(cfg: First) -> pd.DataFrame:
    """Write the plan, see `annotate.plan`.

    Returns:
        Its rows, those of one subject together, in the order of choice.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file.
    """
    require_new(cfg.out)
    import torch

    from encoders.build import build_encoder
    from encoders.weights import load_weights
    from engine.devices import make_fabric, show_messages
    from segment.selection import embed

    show_messages()
    dataset = _with_reserved_split(open_unlabelled(cfg.data), cfg)
    torch.manual_seed(cfg.seed)
    encoder = build_encoder(cfg.encoder, 1, cfg.norm)
    if cfg.init == "random":
        log.warning("the encoder has random weights, whose view of a scan says little: pass a pretrained one by --init")
    else:
        load_weights(encoder, cfg.init, name=cfg.encoder, in_channels=1)
    encoder.to(make_fabric(cfg.device).device).eval()

    volumes = _first_volumes(dataset)
    if not volumes:
        raise UserError(f"{dataset.root} has no training subject without labels: nothing is left to choose from")
    if len(volumes) < cfg.patients:
        log.info(f"training subjects without labels: {len(volumes)}; all of them are chosen")
    features = {subject: embed(encoder, dataset, rows) for subject, rows in volumes.items()}
    picked = typical_slices(features, cfg.patients, cfg.slices, cfg.seed)
    chosen = [(int(volumes[subject][z]), why) for subject, z, why in picked]
    if len(chosen) < cfg.slices:
        log.info(f"the chosen volumes have {count_of(len(chosen), 'slice')}, fewer than the {cfg.slices} asked for")
    classes = ("background", *cfg.classes) if cfg.classes else dataset.classes
    return write_plan(cfg.out, dataset, cfg.data, chosen, classes=classes)


def _with_reserved_split(dataset: Dataset, cfg: First) -> Dataset:
    """The split of the encoder's pretraining, or one that reserves subjects to validate and to test on."""
    from encoders.card import read_lineage

    same = was_trained_on(dataset, read_lineage(cfg.init), cfg.init)
    kept = keep_reserved_split(dataset, cfg.data, cfg.init, same_data=same)
    return kept if kept is not dataset else reserve_split(dataset, cfg.data)


def _first_volumes(dataset: Dataset) -> dict[str, np.ndarray]:
    """Subject -> rows of its first volume, slice by slice, of the training subjects without labels.

    Those that are in the validation or test split under another name are left out. A scan that is a file of its own
    comes before the frames of a cine: somebody has chosen it.
    """
    table = dataset.table.assign(row=np.arange(len(dataset.table)))
    table["frames"] = table.groupby("file")["frame"].transform("nunique")
    subjects = subjects_of_pool(dataset, ["train"]) - dataset.labelled_subjects
    table = table[(table["split"] == "train") & table["subject"].isin(subjects)]
    first: dict[str, tuple[int, np.ndarray]] = {}
    for _, _, rows in volumes_of(table):
        subject, frames = rows["subject"].iloc[0], int(rows["frames"].iloc[0])
        if subject not in first or frames < first[subject][0]:
            first[subject] = frames, rows["row"].to_numpy()
    return {subject: rows for subject, (_, rows) in sorted(first.items())}


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, choose and say where the plan is."""
    from engine.command_line import parse, with_data

    cfg = with_data(
        parse(lambda flags: PRESETS, __doc__ or "", arguments, examples=EXAMPLES, program="python -m annotate first")
    )
    table = run(cfg)
    console = terminal()
    console.print(
        f"{count_of(len(table), 'slice')} of {count_of(table['subject'].nunique(), 'subject')}: "
        f"{cfg.out / 'plan.csv'}, {cfg.out / 'contact_sheet.png'}\n"
        f"label the slices in {cfg.out / 'masks'} (images of the same names in {cfg.out / 'images'}), with ITK-SNAP, "
        f"3D Slicer or another tool\nnext:    {program('annotate collect')} --plan {quote(str(cfg.out))} --out DATA",
        soft_wrap=True,
        highlight=False,
    )
