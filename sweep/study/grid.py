"""The runs of a study: the encoders it needs, trials of learning rates, a cell for each pipeline, size and seed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from classify.config import ClassifyConfig
from classify.image_settings import ImagesConfig, ProbeConfig
from core.errors import UserError
from data.sources import AcdcSource
from data.splits import FEWEST_EXAMS, labelled_count
from encoders.card import UNET
from engine.config import result_settings
from pretrain.config import OF_TARGETS, PretrainConfig, with_method
from segment.config import SegmentConfig
from sweep.analysis.study_files import UNLABELLED, goes_with, source_name, start_and_endings, with_selections
from sweep.study.config import SweepConfig
from sweep.study.rates import fraction_to_try

MOST_CELLS = 100_000
"""More cells are a mistake: each is a training run."""

WEIGHTS = ("init", "generalist", "selection_run")
"""Settings of a run that name initial weights, whose path differs between machines: the runs that make them are named
by `Job.needs`."""

RunConfig = PretrainConfig | SegmentConfig | ClassifyConfig | ImagesConfig | ProbeConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study: an encoder's pretraining, the trial of a learning rate, or a cell."""

    name: str
    """Folder within the study: encoders/NAME, rates/PIPELINE/NAME or cells/NAME."""
    config: RunConfig
    needs: tuple[str, ...] = ()
    """Names of the jobs that must be finished first."""
    trials: tuple[tuple[float, Path], ...] = ()
    """Learning rate and folder of the trials that decide on a cell's rate; none: that of `config`."""
    is_gone_on_from: bool = False
    """Whether another cell chooses its labels by this one's network, which is kept for it."""
    key: dict[str, Any]
    """pipeline, pretrain_epochs, pretrain_seed, fraction, labels, subset_seed, seed of a cell, of several folds also
    fold; empty for the others."""

    @property
    def is_cell(self) -> bool:
        """Whether the job trains on labels and its scores are reported."""
        return self.name.startswith("cells/")

    @property
    def is_trial(self) -> bool:
        """Whether the job tries a learning rate; if it fails, another rate is chosen."""
        return self.name.startswith("rates/")

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        assert self.config.out is not None
        return self.config.out

    @property
    def hash(self) -> str:
        """Digest of all that affects the result."""
        settings = {name: value for name, value in result_settings(self.config).items() if name not in WEIGHTS}
        return hashlib.sha256(json.dumps([settings, self.key, self.needs], sort_keys=True).encode()).hexdigest()[:12]


def plan(cfg: SweepConfig, total: int | Mapping[int, int]) -> list[Job]:
    """All jobs of a study, each after those it needs.

    Every cell of a size and a pair of seeds has the same labelled slices, the same decoder and the same order in
    every pipeline, so that differences between pipelines are paired. An encoder is made once and serves all its cells,
    also those of the pipeline that learns from unlabelled slices as well.

    Args:
        total: number of labelled training slices, patients or exams: what `labels` counts; of several folds, by fold.

    Raises:
        UserError: when a size is larger than `total`, or is one exam, or there are more cells than `MOST_CELLS`.
    """
    if isinstance(total, int):
        return _plan(cfg, total)
    # Shares of the first fold, so that every fold trains on the same numbers of labels.
    cfg = replace(cfg, sizes=tuple(_sizes(cfg, total[cfg.folds[0]])))
    jobs: dict[str, Job] = {}
    for fold in cfg.folds:
        jobs |= {job.name: job for job in _plan(cfg.of_fold(fold), total[fold], fold)}
    return sorted(jobs.values(), key=lambda job: (job.is_cell, job.is_trial))  # encoders first


def _plan(cfg: SweepConfig, total: int, fold: int | None = None) -> list[Job]:
    """The jobs of one fold, or of a study without folds."""
    sizes = _sizes(cfg, total)
    if "next" in cfg.selection and len(sizes) < 2:
        raise UserError(
            "--selection next goes on from the size before, and the study has one size: pass two or more --sizes or "
            "--fractions, or leave it out"
        )
    of_fold = "" if fold is None else f"-fold{fold}"
    if cfg.cross_seeds and len(cfg.seeds) ** 2 > MOST_CELLS:
        raise UserError(f"--cross-seeds with {len(cfg.seeds):,} seeds: more than {MOST_CELLS:,} pairs; pass fewer")
    pairs = list(product(cfg.seeds, cfg.seeds)) if cfg.cross_seeds else [(seed, seed) for seed in cfg.seeds]
    encoders: dict[str, Job] = {}
    starts = {name: _starts(cfg, name.removesuffix(UNLABELLED), encoders, of_fold) for name in cfg.pipelines}
    trials = {name: _trials(cfg, name, starts[name], total, of_fold) for name in cfg.pipelines}
    chosen = [(name, rule) for name in cfg.pipelines for rule in cfg.selection if goes_with(name, rule)]
    count = len(pairs) * len(sizes) * sum(len(starts[pipeline]) for pipeline, _ in chosen)
    if count > MOST_CELLS:
        raise UserError(f"the study would have {count:,} cells, more than {MOST_CELLS:,}; pass fewer seeds or sizes")
    cells: dict[str, Job] = {}
    smaller = dict(zip(list(sizes)[1:], sizes, strict=False))
    for (subset_seed, seed), (labels, fraction), (pipeline, rule) in product(pairs, sizes.items(), chosen):
        for start in starts[pipeline]:
            (arm,) = with_selections([pipeline], [rule])
            key = {
                "pipeline": arm,
                "pretrain_epochs": start.epochs,
                "pretrain_seed": start.seed,
                "fraction": fraction,
                "labels": labels,
                "subset_seed": subset_seed,
                "seed": seed,
            }
            key |= {} if fold is None else {"fold": fold}
            of_arm = f"cells/{_slug(arm)}{start.suffix}"
            ends = f"-seed{seed}" + (f"-subset{subset_seed}" if cfg.cross_seeds else "") + of_fold
            name = f"{of_arm}-n{labels}{ends}"
            settings = {"seed": seed, "subset_seed": subset_seed, "labelled_fraction": fraction, "init": start.init}
            needs = (*start.needs, *(trial.name for trial in trials[pipeline]))
            if cfg.task == "segment":
                # the report shows masks of the largest size only, and drawing them takes time
                drawn = labels == max(sizes) and (subset_seed, seed) == pairs[0]
                settings |= {"label_unit": cfg.label_unit, "figures": drawn}
                settings |= {"unlabelled": pipeline.endswith(UNLABELLED)}
                earlier = cells.get(f"{of_arm}-n{smaller.get(labels)}{ends}") if rule == "next" else None
                settings |= _selecting(rule, earlier, [*sizes].index(labels), len(sizes) - 1)
                if earlier:
                    needs += (earlier.name,)
                    cells[earlier.name] = replace(earlier, is_gone_on_from=True)
            settings |= {"lr": cfg.lr[0]} if len(cfg.lr) == 1 else {}
            config = _configured(cfg, cfg.run_config, out=cfg.out / name, **settings)
            tried = tuple(zip(cfg.lr, (trial.folder for trial in trials[pipeline]), strict=False))
            cells[name] = Job(name=name, config=config, needs=needs, trials=tried, key=key)
    return [*encoders.values(), *chain(*trials.values()), *cells.values()]


def _selecting(rule: str, earlier: Job | None, number: int, rounds: int) -> dict[str, Any]:
    """Settings of a cell's rule of selection; `earlier` is that of the size before, of which this is round `number`."""
    if rule != "next":
        return {"selection": rule}
    if earlier is None:
        return {"selection": "foreground"}
    return {"selection": "next", "selection_run": earlier.folder, "selection_round": (number, rounds)}


@dataclass(frozen=True)
class _Start:
    """Initial weights of cells."""

    init: str
    needs: tuple[str, ...] = ()
    seed: int = 0
    epochs: float | None = None
    suffix: str = ""
    """Part of the cells' names."""


def _starts(cfg: SweepConfig, pipeline: str, encoders: dict[str, Job], of_fold: str) -> list[_Start]:
    """The starts of a pipeline's cells, one for each pretraining seed and epoch; adds its encoders to `encoders`.

    `of_fold` ends the names of encoders that are trained on the subjects of one fold.
    """
    stage, _, source = pipeline.partition("=")
    if stage == "random":
        return [_Start("random")]
    if stage == "kinetics":
        stage, source = "generalist", "kinetics"
    pretraining, file = cfg.pretrain, "encoder.safetensors"
    if stage == "masked":
        stage, file = "hierarchical" if source else "specialist", UNET
        if pretraining.method != "masked":  # rates of another method mean nothing to this one
            pretraining = with_method(replace(pretraining, optimiser=None, lr=None, export=None), "masked")
    source = source or cfg.pretrain.generalist
    starts: list[_Start] = []
    for seed in cfg.pretrain_seeds:
        suffix = f"-pretrained{seed}" if len(cfg.pretrain_seeds) > 1 else ""
        if stage == "generalist":
            generalist = _generalist(cfg, source, seed, encoders)
            if generalist not in [name for start in starts for name in start.needs]:  # ready weights have no seed
                starts.append(_Start(str(_encoder(cfg, generalist)), (generalist,), seed, None, suffix))
            continue
        needs: tuple[str, ...] = ()
        initial = cfg.pretrain.generalist
        if stage == "hierarchical":
            needs = (_generalist(cfg, source, seed, encoders),)
            initial = str(_encoder(cfg, needs[0]))
        name = f"encoders/{_slug(pipeline)}{suffix}{of_fold}"
        settings: dict[str, Any] = {"stage": stage, "generalist": initial, "seed": seed}
        if cfg.pretrain_epochs:  # warm-up, cosine and tau are those of the whole stage, of which the rest is left out
            settings |= {"keep_epochs": cfg.pretrain_epochs, "stop_after_epochs": max(1, *cfg.pretrain_epochs)}
        config = _configured(cfg, pretraining, out=cfg.out / name, **settings)
        if not config.steps and max(cfg.pretrain_epochs, default=0) > config.target_epochs:
            raise epochs_beyond(cfg, f"{config.target_epochs:g} epochs ({stage})")
        encoders[name] = Job(name=name, config=config, needs=needs, key={})
        if cfg.pretrain_epochs:
            starts += [
                _Start(str(cfg.out / name / f"epoch-{epochs}" / file), (name,), seed, epochs, f"{suffix}-epoch{epochs}")
                for epochs in cfg.pretrain_epochs
            ]
        else:
            starts.append(_Start(str(cfg.out / name / file), (name,), seed, None, suffix))
    return starts


def epochs_beyond(cfg: SweepConfig, length: str) -> UserError:
    """The error for `--pretrain-epochs` that lie beyond the end of pretraining, whose length it names."""
    last = max(cfg.pretrain_epochs)
    longer = f"pass --pretrain.epochs {last}" + (" --pretrain.steps None" if cfg.pretrain.steps else "")
    return UserError(f"--pretrain-epochs {last}: pretraining ends after {length}; {longer}")


def _trials(cfg: SweepConfig, pipeline: str, starts: Sequence[_Start], total: int, of_fold: str) -> list[Job]:
    """The runs that try each learning rate of `--lr` from the first encoder of a pipeline that was trained longest."""
    start = max(starts, key=lambda start: start.epochs or 0)
    trials = []
    for rate in cfg.lr if len(cfg.lr) > 1 else ():
        name = f"rates/{_slug(pipeline)}{of_fold}/lr{rate:g}"
        settings: dict[str, Any] = {"seed": cfg.seeds[0], "subset_seed": cfg.seeds[0], "init": start.init, "lr": rate}
        settings |= {"labelled_fraction": fraction_to_try(total, unit(cfg)), "inner_split": True, "test": False}
        if cfg.task == "segment":
            settings |= {"label_unit": cfg.label_unit, "figures": False}
            settings |= {"unlabelled": pipeline.endswith(UNLABELLED)}
        config = _configured(cfg, cfg.run_config, out=cfg.out / name, **settings)
        trials.append(Job(name=name, config=config, needs=start.needs, key={}))
    return trials


def _generalist(cfg: SweepConfig, source: str, seed: int, encoders: dict[str, Job]) -> str:
    """Name of the job that makes the natural-image encoder."""
    trained = source == "procedural" or (Path(source).is_dir() and not (Path(source) / "encoder.safetensors").exists())
    name = "encoders/generalist" + (f"-{_slug(source)}" if source != cfg.pretrain.generalist else "")
    if trained and len(cfg.pretrain_seeds) > 1:
        name += f"-pretrained{seed}"
    settings = {"stage": "generalist", "generalist": source, "seed": seed, "steps": None, **OF_TARGETS}
    if isinstance(cfg.data, AcdcSource):  # it is that of all folds, and of those by which the study is extended
        settings |= {"data": replace(cfg.data, fold=0)}
    config = _configured(cfg, cfg.pretrain, out=cfg.out / name, **settings)
    encoders.setdefault(name, Job(name=name, config=config, key={}))
    return name


def _encoder(cfg: SweepConfig, name: str) -> Path:
    return cfg.out / name / "encoder.safetensors"


def _configured(cfg: SweepConfig, config: Any, **settings: Any) -> Any:
    """A run's configuration with the settings that the study shares among its runs and those of this run."""
    return replace(config, **{**cfg.shared_with(config), **settings})


def _sizes(cfg: SweepConfig, total: int) -> dict[int, float]:
    """Fraction of each number of labels, ascending; of fractions with the same number of labels the smallest."""
    if too_large := [size for size in cfg.sizes if size > total]:
        raise UserError(f"--sizes {too_large[0]}: there are {total} labelled training {unit(cfg)} in all")
    fewest = FEWEST_EXAMS if cfg.task == "classify" else 1
    if min(cfg.sizes, default=fewest) < fewest:
        raise UserError(f"--sizes {min(cfg.sizes)}: a classifier takes one exam of each class; pass {fewest} or more")
    fractions = [size / total for size in cfg.sizes] or cfg.fractions
    sizes: dict[int, float] = {}
    for fraction in sorted(fractions):
        sizes.setdefault(labelled_count(fraction, total, fewest), fraction)
    return sizes


def unit(cfg: SweepConfig) -> str:
    """What the labels are, in the plural: exams, slices or patients."""
    return "exams" if cfg.task == "classify" else "slices" if cfg.label_unit == "slice" else "patients"


def _slug(name: str) -> str:
    """A pipeline or source as part of a file's name; different paths stay different."""
    start, endings = start_and_endings(name)
    stage, equals, source = start.rpartition("=")
    if "/" in source:
        source = source_name(source)
    return stage + equals + source + endings
