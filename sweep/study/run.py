"""A study from its configuration to its report."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from core.errors import UserError
from core.files import remove_leftovers, write_json
from core.locks import folder_lock, is_unused
from core.settings import MayGrow
from core.terminal import terminal
from core.wording import count_of
from data.labelled_list import with_labelled_list
from data.protocols import LABEL_ORDERS
from data.sources import AcdcSource, ExamsSource, FolderSource, MrnetSource, open_exams, open_slices
from data.splits import labelled_subset
from engine.config import marked, read_config, result_settings, saved
from engine.sampler import StepSampler
from segment.components import is_one_component
from sweep.analysis.study_files import goes_with
from sweep.study.config import SweepConfig
from sweep.study.cost import estimate
from sweep.study.grid import Job, epochs_beyond, plan, unit
from sweep.study.jobs import failure, is_done, require_own, tidy
from sweep.study.leakage import check_study
from sweep.study.networks import require_networks
from sweep.study.plan_file import write_plan
from sweep.study.progress import Board
from sweep.study.results import collect, collected
from sweep.study.weights import missing_weights

MOST_PER_CORE = 16
"""Processes per core: more only take memory."""

console = terminal()


def run(cfg: SweepConfig) -> Path | None:
    """Finish every run of the study, then write its tables and its report.

    Returns:
        The report's path; None after `--dry-run`.

    Raises:
        UserError: for a mistake in the configuration or the data, or a folder that holds another study.
    """
    asked, joined = cfg, _joined(cfg)
    cfg = decided(joined)
    jobs = _planned(cfg)  # before the folder is made: a mistake in the data leaves nothing behind
    missing = missing_weights(cfg, jobs)
    if cfg.dry_run:
        console.print(missing, soft_wrap=True, highlight=False) if missing else None
        estimate(cfg, jobs, console)
        return None
    if missing:
        raise UserError(missing)
    cfg.out.mkdir(parents=True, exist_ok=True)
    with folder_lock(cfg.out, "another sweep"):  # two at once would run every cell twice
        remove_leftovers(cfg.out, alone=True, below=False)
        if (again := _joined(asked)) != joined:  # another sweep has begun or extended the study meanwhile
            cfg = decided(again)
            jobs = _planned(cfg)
        for job in jobs:
            if not job.is_cell:  # a cell is checked when the tables are written: it costs only itself
                require_own(job)
        write_json(cfg.out / "study.json", saved(cfg))
        write_plan(cfg.out, jobs, unit(cfg), cfg.task)
        return _finish(cfg, jobs)


def _planned(cfg: SweepConfig) -> list[Job]:
    """The jobs of the study, its splits checked; a line says if there are fewer sizes than fractions."""
    of_folds = {fold: count_labels(cfg.of_fold(fold)) for fold in cfg.folds}
    jobs = plan(cfg, of_folds or count_labels(cfg))
    sizes = {job.key["labels"] for job in jobs if job.is_cell}
    if len(sizes) < len(cfg.sizes or cfg.fractions):
        console.print(f"some fractions come to the same number of {unit(cfg)}: {len(sizes)} sizes are left")
    without = [name for name in cfg.pipelines if not all(goes_with(name, rule) for rule in cfg.selection)]
    if without:
        console.print(f"no cells of {' or '.join(without)} with first, which goes by the view of a pretrained encoder")
    check_study(cfg, jobs)
    _require_epochs(cfg)
    require_networks(jobs)
    return jobs


def _require_epochs(cfg: SweepConfig) -> None:
    """Raise a UserError if `--pretrain-epochs` lie beyond `--pretrain.steps`; `plan` compares them with epochs."""
    if not cfg.pretrain_epochs or not cfg.pretrain.steps:
        return
    if isinstance(cfg.data, MrnetSource | ExamsSource):
        images, kind = len(open_exams(cfg.data, labelled=False).positions("train")), "exams"
    else:
        images, kind = len(open_slices(cfg.data, labelled=False).positions("train")), "slices"
    batch = cfg.pretrain.batch_size
    per_epoch = StepSampler(count=images, batch_size=batch, micro_batch_size=batch).steps_per_epoch
    if max(cfg.pretrain_epochs) * per_epoch > cfg.pretrain.steps:
        steps = f"the {cfg.pretrain.steps} steps of --pretrain.steps"
        raise epochs_beyond(cfg, f"{steps} (batch size {batch}, {images} {kind})")


def _finish(cfg: SweepConfig, jobs: Sequence[Job]) -> Path:
    """Run what is left of the study, then write its tables and its report."""
    cells = [job for job in jobs if job.is_cell]
    for job in jobs:
        tidy(job, keep_model=cfg.keep_models)
    left = sum(not is_done(job) for job in jobs)
    trials = sum(job.is_trial for job in jobs)
    console.print(
        f"{count_of(len(cells), 'cell')} and {count_of(len(jobs) - len(cells) - trials, 'encoder')} in {cfg.out}"
        + (f", {trials} trials of learning rates before them" if trials else "")
        + (f", {len(jobs) - left} of them finished before" if left < len(jobs) else ""),
        soft_wrap=True,
    )
    if left:
        with Board(jobs, unit(cfg)) as board:
            _execute(cfg, jobs, board)
    errors = {job.name: failure(job) or "a job it depends on failed" for job in jobs if not is_done(job)}
    if left or not collected(cfg, cells):
        errors |= collect(cfg, cells)
    for name, error in list(errors.items())[:10]:
        console.print(Text.assemble(("failed", "red"), f" {name}: {error}"), soft_wrap=True)
    if len(errors) > 10:
        console.print(f"and {len(errors) - 10} more failed; see error.txt in their folders", soft_wrap=True)
    if all(job.name in errors for job in cells):
        raise UserError(f"every run of the study in {cfg.out} failed; the first: {next(iter(errors.values()))}")
    from sweep.report.page import report

    return report(cfg.out)


def decided(cfg: SweepConfig) -> SweepConfig:
    """The configuration with `keep_largest_component` decided, if it is auto, on the labels of the largest size.

    Decided by each run on its own labels, sizes of one curve could be post-processed differently. `study.json` records
    the decision, which is then kept.
    """
    if cfg.task != "segment" or cfg.segment.keep_largest_component != "auto":
        return cfg
    assert isinstance(cfg.data, AcdcSource | FolderSource)
    dataset = with_labelled_list(open_slices(cfg.data), cfg.segment.labelled_list)
    fraction = min(1.0, max(cfg.sizes) / count_labels(cfg)) if cfg.sizes else max(cfg.fractions)
    order = LABEL_ORDERS[cfg.label_order]
    positions = labelled_subset(dataset.table, fraction, cfg.label_unit, cfg.seeds[0], order)
    keep: Literal["yes", "no"] = "yes" if is_one_component(dataset, positions) else "no"
    return replace(cfg, segment=replace(cfg.segment, keep_largest_component=keep))


def count_labels(cfg: SweepConfig) -> int:
    """Number of labelled training slices, patients or exams of the study's data."""
    if isinstance(cfg.data, MrnetSource | ExamsSource):
        return len(open_exams(cfg.data, labelled=True).positions("train"))
    dataset = with_labelled_list(open_slices(cfg.data), cfg.segment.labelled_list)
    subjects = dataset.table["subject"].iloc[dataset.positions("train", labelled=True)]
    if order := LABEL_ORDERS[cfg.label_order]:
        order(subjects.unique())  # refuses other subjects before any run
    return len(subjects) if cfg.label_unit == "slice" else subjects.nunique()


def _execute(cfg: SweepConfig, jobs: Sequence[Job], board: Board) -> None:
    if cfg.executor == "slurm":
        from sweep.study.slurm import run_on_slurm

        run_on_slurm(cfg, jobs, board.note)
        return
    from sweep.study.local import run_locally

    gpus = 0
    if cfg.device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = cfg.processes or (gpus * cfg.runs_per_gpu if gpus else cores)
    if processes > MOST_PER_CORE * max(cores, gpus):
        raise UserError(
            f"--processes {processes}: this machine has {cores} cores; pass {MOST_PER_CORE * cores} or fewer"
        )
    (cfg.out / "logs").mkdir(exist_ok=True)
    run_locally(
        jobs,
        board.note,
        logs=cfg.out / "logs",
        processes=min(processes, len(jobs)),
        threads=cfg.threads or max(1, cores // processes),
        gpus=gpus,
        keep_models=cfg.keep_models,
    )


def _joined(cfg: SweepConfig) -> SweepConfig:
    """The configuration, with `--extend` joined to that of the study in the folder; another study is refused."""
    file = cfg.out / "study.json"
    if not file.exists():
        if not is_unused(cfg.out):
            raise UserError(f"{cfg.out} is not empty and holds no study; choose another --out")
        return cfg
    before, growing = read_config(SweepConfig, file), marked(SweepConfig, MayGrow)
    if cfg.segment.keep_largest_component == "auto":  # decided when the study began
        before_keeps = before.segment.keep_largest_component
        cfg = replace(cfg, segment=replace(cfg.segment, keep_largest_component=before_keeps))
    if before.anonymous != cfg.anonymous:  # a patient would have a name in some tables and a code in others
        begun = "with" if before.anonymous else "without"
        raise UserError(
            f"{cfg.out} holds a study that was begun {begun} --anonymous: keep it so, or choose another --out"
        )
    was, now = result_settings(before), result_settings(cfg)
    changed = [name for name in now if was[name] != now[name]]
    if other := [name for name in changed if name not in growing]:
        name = other[0]
        what = f"{name} was {_difference(was[name], now[name])} and is now {_difference(now[name], was[name])}"
        raise UserError(f"{cfg.out} holds a study of another configuration ({what}); choose another --out")
    if changed and not cfg.extend:
        what = ", ".join(f"{name} was {was[name]} and is now {now[name]}" for name in changed)
        raise UserError(f"{cfg.out} holds another study ({what}); add to it with --extend, or choose another --out")
    if not changed:
        return cfg
    if "next" in before.selection and (was["sizes"], was["fractions"]) != (now["sizes"], now["fractions"]):
        raise UserError(
            f"the study in {cfg.out} has --selection next, where each size goes on from the one before: no size can be "
            "added; choose another --out"
        )
    if bool(was["folds"]) != bool(now["folds"]):
        raise UserError(f"the study in {cfg.out} was begun with{'' if was['folds'] else 'out'} --folds; keep it so")
    if bool(was["sizes"]) != bool(now["sizes"]):
        defined, other_flag = ("--sizes", "--fractions") if was["sizes"] else ("--fractions", "--sizes")
        raise UserError(f"the study in {cfg.out} was defined with {defined}; --extend cannot switch it to {other_flag}")
    joined = {
        name: (*getattr(before, name), *(value for value in getattr(cfg, name) if value not in was[name]))
        for name in growing
    }
    return replace(cfg, **joined)  # type: ignore[arg-type]


def _difference(value: Any, other: Any) -> str:
    """A setting as text; of a group, those of its settings that differ from the other's."""
    if isinstance(value, dict) and isinstance(other, dict):
        changed = [f"{k} {_difference(v, other.get(k))}" for k, v in value.items() if v != other.get(k)]
        return f"({', '.join(changed)})"
    return repr(value)
