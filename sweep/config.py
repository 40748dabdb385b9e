"""What a sweep can be told, and three recipes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import classify.config
import pretrain.config
import segment.config
from classify.config import ClassifyConfig
from data.errors import UserError
from engine.config import named_early
from pretrain.config import PretrainConfig
from segment.config import SegmentConfig

PIPELINES = ("random", "generalist", "specialist", "hierarchical")
IN_3D = ("random", "specialist")
"""A 3D encoder cannot start from single images: without Kinetics weights it has no generalist."""
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the paper: 1, 3, 7, 15, 30, 75, 150, 300, 749 and 1498 slices."""
SEEDS = (0, 13, 42, 123, 1111, 77, 62, 91, 7, 5)
"""Of the paper's code."""
SHARED = (
    "dataset", "data_root", "subject_pattern", "splits_file", "plane", "labels", "device", "precision", "test",
)  # fmt: skip
"""Settings that the sweep gives to all its runs, where they have them."""
OWN = (
    "seed", "subset_seed", "labelled_fraction", "label_unit", "init", "out", "resume", "overwrite", "stage",
    "keep_epochs", "planes", "devices", "nodes", "explain", "figures",
)  # fmt: skip
"""Settings that differ from run to run, or that a sweep has no use for."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train every pipeline on every number of labels, several times, and say what the next label is worth."""

    task: Literal["segment", "classify"] = "segment"
    """What the labels are for: the U-Net's label maps, or the classes of whole exams."""
    pipelines: tuple[str, ...] = PIPELINES
    """random, generalist, specialist, hierarchical; with a source of the natural-image weights of their own
    generalist=SOURCE and hierarchical=SOURCE, where SOURCE is what `python -m pretrain --generalist` takes."""
    fractions: tuple[float, ...] = FRACTIONS
    """Shares of the labelled training slices (patients, exams), each in (0, 1]."""
    sizes: tuple[int, ...] = ()
    """The same as counts, in place of fractions."""
    label_unit: Literal["slice", "patient"] = "slice"
    """What fractions and sizes count (segment only; classify counts exams)."""
    seeds: tuple[int, ...] = SEEDS
    """Repetitions. A seed draws the labelled subset, the decoder or head, and the order: the same in all pipelines."""
    cross_seeds: bool = False
    """Draw the subset and the rest by separate seeds, and run every pair of them."""
    pretrain_seeds: tuple[int, ...] = (0,)
    """Repetitions of each pretraining."""
    pretrain_epochs: tuple[int, ...] = ()
    """Also fine-tune from the encoders after these epochs of domain pretraining (figure 6), e.g. 0 1 2 5."""

    dataset: Literal["acdc", "folder", "mrnet", "exams"] | None = None
    """Layout of the data; None: acdc to segment, mrnet to classify."""
    data_root: Path | None = None
    """The data's folder; without it the embedded synthetic phantom is used."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in a file's name (`folder`, `exams`)."""
    splits_file: Path | None = None
    """A saved `splits.json` (`folder` only)."""
    plane: str = "sagittal"
    """Plane of the exams (`mrnet` only)."""
    labels: Path | None = None
    """Table of the exams (`exams` only), a CSV of path,label."""
    test: bool = False
    """Score the test split as well, and report on it; look at it once, when every choice is made."""

    out: Path = Path("runs/sweep")
    """Folder of the study. Run the same command again to continue one that was stopped."""
    extend: bool = False
    """The study in `out` was smaller: add pipelines, sizes, seeds and epochs to it."""
    dry_run: bool = False
    """Print the plan and what it will cost, measured on one short probe; train nothing."""
    keep_models: bool = False
    """Keep the trained networks of all runs (tens of megabytes each), not only the scores."""

    executor: Literal["local", "slurm"] = "local"
    """Where the runs are made: processes on this machine, or job arrays of a Slurm cluster."""
    processes: int | None = None
    """Runs at a time (local); None: one per core, or `runs_per_gpu` per GPU."""
    runs_per_gpu: int = 1
    """Runs that share one GPU (local)."""
    threads: int | None = None
    """Threads of one run on a CPU; None: the machine's cores shared out. Results differ in the last digits
    between numbers of threads: give one number where executors are to agree."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    slurm_partition: str | None = None
    """Partition; None: the cluster's default."""
    slurm_minutes: int = 240
    """Time limit of one run. A run that meets it is requeued and continues from its last checkpoint."""
    slurm_gres: str | None = None
    """Generic resources of one run, e.g. gpu:1."""
    slurm_parallel: int = 16
    """Runs at a time."""
    slurm_memory_gb: float | None = None
    """Memory of one run; None: the cluster's default."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """How encoders are pretrained."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    """How U-Nets are trained."""
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    """How classifiers are trained."""

    def __post_init__(self) -> None:
        for pipeline in self.pipelines:
            name, _, source = pipeline.partition("=")
            if name not in PIPELINES or (source and name not in ("generalist", "hierarchical")):
                raise UserError(
                    f"--pipelines {pipeline}: there is no such pipeline; choose among {', '.join(PIPELINES)}, "
                    "generalist=SOURCE, hierarchical=SOURCE"
                )
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise UserError(f"--fractions {fraction}: must lie in (0, 1], e.g. 0.02 for 2 %")
        for name in ("sizes", "processes", "runs_per_gpu", "threads", "slurm_minutes", "slurm_parallel"):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and value < 1:
                    raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        for name in ("pipelines", "fractions", "sizes", "seeds", "pretrain_seeds", "pretrain_epochs"):
            values = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            if not values and name not in ("sizes", "pretrain_epochs"):
                raise UserError(f"{flag} is empty: give one or more")
            if len(set(values)) < len(values):
                raise UserError(f"{flag} {' '.join(map(str, values))}: one of them is given twice")
            if any(isinstance(value, int) and value < 0 for value in values):
                raise UserError(f"{flag} {' '.join(map(str, values))}: must be 0 or more")
        exams = {"segment": False, "classify": True}[self.task]
        if self.dataset and (self.dataset in pretrain.config.EXAMS) != exams:
            raise UserError(f"--dataset {self.dataset} does not go with --task {self.task}")
        if exams and self.label_unit != "slice":
            raise UserError(f"--label-unit {self.label_unit} goes with --task segment: classify counts exams")
        for part in ("pretrain", "segment", "classify"):
            config, plain = getattr(self, part), type(getattr(self, part))()
            for name in (*SHARED, *OWN):
                if getattr(config, name, None) != getattr(plain, name, None):
                    instead = f"give --{name.replace('_', '-')}" if name in SHARED else "the sweep sets it itself"
                    flag = f"--{part}.{name.replace('_', '-')} {getattr(config, name)}"
                    raise UserError(f"{flag} belongs to single runs: {instead}")

    @property
    def run_config(self) -> SegmentConfig | ClassifyConfig:
        """How the runs of the task are trained."""
        return self.segment if self.task == "segment" else self.classify


GRID = ("pipelines", "fractions", "sizes", "seeds", "pretrain_seeds", "pretrain_epochs")
"""Settings that may grow with `--extend`."""
EXECUTION = (
    *("extend", "dry_run", "keep_models", "executor", "processes", "runs_per_gpu", "threads", "device", "out"),
    *(f.name for f in dataclasses.fields(SweepConfig) if f.name.startswith("slurm_")),
    *("data_root", "labels", "splits_file"),
)
"""Settings that change where a study is computed, or where its data lie, not what is."""


def paper() -> SweepConfig:
    """METHODS, section 6: ten fractions, ten seeds."""
    return SweepConfig(pretrain=pretrain.config.paper(), segment=segment.config.paper())


def default() -> SweepConfig:
    """Seven sizes and three seeds with the small networks of the other commands' default."""
    return SweepConfig(
        fractions=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0),
        seeds=SEEDS[:3],
        pretrain=pretrain.config.default(),
        segment=replace(segment.config.default(), steps=600, evaluate_every=60),
    )


def demo() -> SweepConfig:
    """Four pipelines, four sizes, two seeds on the phantom in minutes. It shows the plumbing, not the method."""
    return SweepConfig(
        fractions=(0.02, 0.05, 0.15, 0.5),
        seeds=SEEDS[:2],
        pretrain=replace(
            pretrain.config.demo(),
            image_size=32,
            steps=24,
            generalist_images=512,
            generalist_epochs=3,
            checkpoint_every=0,
        ),
        segment=replace(
            segment.config.demo(),
            image_size=32,
            spacing_mm=4.0,
            loss="jaccard",
            steps=40,
            batch_size=12,
            lr=3e-3,
            evaluate_every=10,
            checkpoint_every=0,
        ),
    )


def exam_paper() -> SweepConfig:
    """The paper's classifier at five fractions; 20,000 steps are its 50 epochs of all exams."""
    return _of_exams(paper(), pretrain.config.exam_paper(), classify.config.paper(), steps=20_000, pipelines=IN_3D)


def exam_default() -> SweepConfig:
    """Five sizes and three seeds with the classifier's default."""
    return _of_exams(default(), pretrain.config.exam_default(), classify.config.default(), steps=1000, pipelines=IN_3D)


def exam_demo() -> SweepConfig:
    """Four pipelines, three sizes, two seeds on synthetic knees."""
    small = replace(pretrain.config.exam_demo(), generalist_images=512, generalist_epochs=3, checkpoint_every=0)
    demo_classifier = replace(classify.config.demo(), checkpoint_every=0)
    return replace(_of_exams(demo(), small, demo_classifier, steps=60, pipelines=PIPELINES), fractions=(0.1, 0.3, 1.0))


def _of_exams(
    base: SweepConfig,
    encoder: PretrainConfig,
    classifier: ClassifyConfig,
    *,
    steps: int,
    pipelines: tuple[str, ...],
) -> SweepConfig:
    """Every size takes the same optimiser steps, with ten validations on the way."""
    return replace(
        base,
        task="classify",
        pipelines=pipelines,
        fractions=(0.05, 0.1, 0.2, 0.5, 1.0),
        pretrain=replace(encoder, stage="hierarchical", dataset="acdc", encoder=classifier.encoder),
        classify=replace(classifier, steps=steps, evaluate_every=max(1, steps // 10)),
    )


Recipes = Mapping[str, Callable[[], SweepConfig]]
RECIPES: Recipes = {"demo": demo, "default": default, "paper": paper}
EXAM_RECIPES: Recipes = {"demo": exam_demo, "default": exam_default, "paper": exam_paper}


def recipes_for(arguments: Sequence[str]) -> Recipes:
    """The recipes of the task that a command line names."""
    return EXAM_RECIPES if named_early(arguments, "--task") == ["classify"] else RECIPES
