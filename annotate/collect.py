"""`python -m annotate collect --plan PLAN --out DATA`: corrected masks as a data set that `segment` trains on.

DATA is a folder data set: every image of the original one (linked, not copied, where the disk allows it), the labels
that it has, and those of the plans; voxels of slices that nobody was asked to label are ignored in training and scores.
"""

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
import pandas as pd

from annotate.plan import (
    Plan,
    case_names,
    digest_of,
    file_names,
    mask_path,
    open_unlabelled,
    read_frame,
    read_plan,
    require_new,
    volumes_of,
    write_image,
)
from core.command_line import parse_command
from core.errors import UserError
from core.files import write_csv, write_json
from core.program import program
from core.settings import Settings
from core.terminal import terminal
from core.wording import count_of
from data.readers.images import Volume, stem, write_label_map
from data.readers.label_maps import IGNORED, read_labels
from data.readers.subjects import subjects_of
from data.slices import Dataset, with_splits
from data.sources import FolderSource, SliceSource
from data.splits import SPLITS, save_splits
from data.store import SliceStore

log = logging.getLogger("fewslice")

EXAMPLES = ("--plan PLAN --out DATA", "--plan PLAN-NEXT --out DATA-2")
LIST = "labelled_slices.csv"
MOST_NAMED = 5
"""Slices that a message names."""
SUBJECT = "(.+?)__"
"""Pattern of the subject in names that begin with it."""


@dataclass(frozen=True, kw_only=True)
class Collect(Settings):
    """Bring the masks of one or more plans back, as a data set to train on."""

    plan: tuple[Path, ...]
    """Folders of `annotate first` or `annotate next` whose masks have been drawn, all of one data set. Labels that it
    has already are kept, and listed if the run of `next` learned from them; where two label one slice, the later plan
    counts."""
    out: Path
    """Folder for the data set; it must not exist, or be empty."""
    classes: tuple[str, ...] = ()
    """Names of the classes 1, 2, ...; default: those of the plans, or their numbers."""
    accept_unchanged: bool = False
    """Take masks that are still as they were in the plan, drawn by the network or empty: somebody has looked at each of
    them, and they are right."""


def run(cfg: Collect) -> tuple[pd.DataFrame, str | None]:
    """Write the data set and its list of labelled slices.

    Returns:
        The rows of the list: subject, file, frame, slice; and the `--subject-pattern` that reads the subjects of the
        data set from its names, None if they are found without.

    Raises:
        UserError: if a plan or a mask is missing, damaged, on another grid, still empty or still as a network drew it,
            or the plans are of different data.
    """
    require_new(cfg.out)
    if not cfg.plan:
        raise UserError("--plan needs one or more folders")
    plans = [read_plan(folder) for folder in cfg.plan]
    if other := [plan.folder for plan in plans if plan.source.data_root != plans[0].source.data_root]:
        raise UserError(f"{other[0]} and {plans[0].folder} are plans for different data sets: collect them apart")
    source = plans[0].source
    dataset = with_splits(open_unlabelled(source), plans[0].splits)
    drawn = _masks(plans, dataset, accept_unchanged=cfg.accept_unchanged)
    _check_changes(plans, drawn, accept_unchanged=cfg.accept_unchanged)
    classes = _classes(cfg, plans, drawn)
    table = dataset.table[dataset.table["split"].isin(SPLITS)]  # not those whom the protocol leaves out
    files, pattern = _names(table)
    names = case_names(table, files)
    splits = dict(zip(table["file"], table["split"], strict=True))
    cfg.out.mkdir(parents=True, exist_ok=True)
    subjects = subjects_of([*files.values()], pattern)
    save_splits(cfg.out / "splits.json", dict(zip(subjects, [splits[file] for file in files], strict=True)))
    write_json(cfg.out / "dataset.json", {"labels": {name: k for k, name in enumerate(classes)} | {"ignore": IGNORED}})
    labelled = _with_present_labels(table, dataset.store, drawn)
    learned = _learned(plans)
    rows: list[dict[str, object]] = []
    unused = 0
    for file, frame, members in volumes_of(table):
        if (slices := labelled.get((file, frame))) is None:
            continue
        case, volume = names[file, frame], read_frame(dataset, source, file, frame)
        image = write_image(cfg.out / "images" / case, dataset, file, volume)
        _write_labels(cfg.out / "labels", case, volume, slices)
        if members["split"].iloc[0] == "train":
            place = {"subject": members["subject"].iloc[0], "file": f"images/{image.name}", "frame": 1}
            new = drawn.get((file, frame), {})
            used = [z for z in sorted(slices) if z in new or learned is None or (file, frame, z) in learned]
            unused += len(slices) - len(used)
            rows += [{**place, "slice": z} for z in used]
    if unused:
        log.info(f"{count_of(unused, 'labelled slice')} that the run did not learn from: not in {LIST}, as there")
    _add_others(cfg.out / "images", dataset, source, table, files, labelled)
    listed = pd.DataFrame(rows, columns=["subject", "file", "frame", "slice"])
    write_csv(cfg.out / LIST, listed.drop(columns="subject"))  # last: a folder with it is complete
    return listed, pattern


Drawn = dict[tuple[str, int], dict[int, np.ndarray]]
"""(file, frame) -> slice -> label map (rows, columns)."""


def _masks(plans: Sequence[Plan], dataset: Dataset, *, accept_unchanged: bool) -> Drawn:
    """The label maps of all slices of the plans."""
    known = {*zip(dataset.table["file"], dataset.table["frame"], dataset.table["slice"], strict=True)}
    drawn: Drawn = defaultdict(dict)
    for plan in plans:
        for file, frame, rows in volumes_of(plan.table):
            case = str(rows["case"].iloc[0])
            path = plan.mask(case)
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: {plan.folder / 'plan.csv'} lists slices of it; draw or remove them"
                )
            image = read_frame(dataset, plan.source, file, frame)
            stack = read_labels(path, image).indices[0]
            slices = [int(z) for z in rows["slice"]]
            if strange := [z for z in slices if (file, frame, z) not in known]:
                raise UserError(f"{plan.folder / 'plan.csv'} lists slice {strange[0]} of {file}, which is not there")
            began_empty = case not in (plan.predrawn or {})
            if began_empty and not accept_unchanged and not stack[slices].any():
                raise UserError(
                    f"{path} is still empty in the slices that {plan.folder / 'plan.csv'} lists: draw it, remove its "
                    "lines there, or pass --accept-unchanged if these slices hold nothing to draw"
                )
            if others := [z for z in range(len(stack)) if z not in slices and stack[z].any()]:
                log.warning(
                    f"{path} is drawn in slice {others[0]} (from 0, as in plan.csv) as well, which the plan does not "
                    "list: only the listed slices count; add a line to the plan to use it"
                )
            drawn[file, frame] |= {z: stack[z] for z in slices}
    if not drawn:
        raise UserError(f"{plans[0].folder / 'plan.csv'} lists no slice: make the plan again")
    return dict(drawn)


def _check_changes(plans: Sequence[Plan], drawn: Drawn, *, accept_unchanged: bool) -> None:
    """Refuse slices that are still as a network drew them, unless they are accepted, and name those that are empty."""
    unchanged: dict[tuple[str, int, int], str] = {}
    empty: dict[tuple[str, int, int], str] = {}
    for plan in plans:
        if plan.predrawn is None:
            log.warning(
                f"{plan.folder} is a plan of an earlier version, which did not note the masks it began with: those "
                "that nobody has corrected are not noticed"
            )
        for file, frame, rows in volumes_of(plan.table):
            case = str(rows["case"].iloc[0])
            predrawn = (plan.predrawn or {}).get(case, {})
            for z in map(int, rows["slice"]):
                mask, place = drawn[file, frame][z], f"{plan.mask(case)} slice {z}"
                if digest_of(mask) == predrawn.get(str(z)):
                    unchanged[file, frame, z] = place
                if not mask.any():
                    empty[file, frame, z] = place
    listed = sum(map(len, drawn.values()))
    if unchanged and not accept_unchanged:
        raise UserError(
            f"{len(unchanged)} of {listed} listed slices are still exactly as the network drew them "
            f"({_some([*unchanged.values()])}; slices from 0, as in plan.csv): correct them, or pass "
            "--accept-unchanged if somebody has looked at each and it is right"
        )
    if empty:
        log.warning(
            f"{len(empty)} of {listed} listed slices are empty and train as background ({_some([*empty.values()])}; "
            "slices from 0, as in plan.csv): draw them if they hold anything"
        )


def _some(names: Sequence[str]) -> str:
    """The first few of some names, and how many there are besides."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _classes(cfg: Collect, plans: Sequence[Plan], drawn: Drawn) -> tuple[str, ...]:
    """Names of the classes, background first; a UserError if there are none, or the masks hold another label."""
    classes = ("background", *cfg.classes) if cfg.classes else plans[-1].classes
    top = max(int(mask.max()) for masks in drawn.values() for mask in masks.values())
    if len(classes) == 1 and not top:
        raise UserError("the masks hold no label: draw one, or name the classes with --classes")
    if len(classes) == 1:
        return "background", *map(str, range(1, top + 1))
    if top >= len(classes):
        raise UserError(
            f"the masks hold label {top} and the classes are {', '.join(classes[1:])}: name every label with --classes"
        )
    return classes


def _with_present_labels(table: pd.DataFrame, store: SliceStore, drawn: Drawn) -> Drawn:
    """The label maps of the plans and, of slices that these leave out, those that the data set has."""
    labelled: Drawn = {}
    for file, frame, members in volumes_of(table[table["labelled"]]):
        places = zip(members.index.to_numpy(int), members["slice"].to_numpy(int), strict=True)
        maps = {int(z): store.label(int(row)) for row, z in places}
        labelled[file, frame] = {z: label for z, label in maps.items() if not (label == IGNORED).all()}
    for key, slices in drawn.items():
        labelled[key] = labelled.get(key, {}) | slices
    return labelled


def _learned(plans: Sequence[Plan]) -> set[tuple[str, int, int]] | None:
    """(file, frame, slice) of the labels that the runs of the plans learned from, where a run used a part of those that
    there are; None if no plan follows a run."""
    of_runs = [plan.labelled for plan in plans if plan.labelled is not None]
    return {place for labels in of_runs for place in labels} if of_runs else None


def _write_labels(folder: Path, case: str, volume: Volume, labelled: dict[int, np.ndarray]) -> None:
    """Write a label map whose other slices are to be ignored."""
    stack = np.full(volume.stack.shape, IGNORED, np.uint8)
    for z, label in labelled.items():
        stack[0, z] = label
    write_label_map(mask_path(folder, case, volume), stack, volume)


def _add_others(
    folder: Path,
    dataset: Dataset,
    source: SliceSource,
    table: pd.DataFrame,
    files: Mapping[str, str],
    labelled: Drawn,
) -> None:
    """Add the images without labels, for pretraining and pseudo-labels: linked (or copied), of a cine the whole file.

    Where one channel of files with several was chosen, it alone is written.
    """
    cases = case_names(table, files)
    one_channel = isinstance(source, FolderSource) and source.channels is not None
    for name, frames in table.groupby("file")["frame"].unique().items():
        file = str(name)
        others = [int(frame) for frame in frames if (file, int(frame)) not in labelled]
        if one_channel:
            for frame in others:
                write_image(folder / cases[file, frame], dataset, file, read_frame(dataset, source, file, frame))
        elif others:
            original = dataset.root / file
            _link(original, folder / (files[file] + original.name[len(stem(original)) :]))


def _link(original: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(original.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(original, target)


def _names(table: pd.DataFrame) -> tuple[dict[str, str], str | None]:
    """The files' names, and the pattern that finds the subjects in them; None if they are found without."""
    names, subjects = file_names(table), dict(zip(table["file"], table["subject"], strict=True))
    if subjects_of([*names.values()], None) == [subjects[file] for file in names]:
        return names, None
    return {file: f"{subjects[file].replace('/', '-')}__{name}" for file, name in names.items()}, SUBJECT


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, collect and say how to train."""
    cfg = parse_command(Collect, "python -m annotate collect", EXAMPLES, args=arguments)
    table, pattern = run(cfg)
    subjects = f" --subject-pattern {quote(pattern)}" if pattern else ""
    terminal().print(
        f"{count_of(len(table), 'labelled training slice')} of {count_of(table['subject'].nunique(), 'subject')} in "
        f"{cfg.out}\n"
        f"next:    {program('segment')} --dataset folder --data-root {quote(str(cfg.out))}{subjects} "
        f"--labelled-list {quote(str(cfg.out / LIST))}",
        soft_wrap=True,
        highlight=False,
    )
