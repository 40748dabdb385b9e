"""Configuration of a study, with the presets demo, default and paper for slices and for exams."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import classify.config
import pretrain.config
import pretrain.exam_presets
import segment.config
import sweep.imbalance.config
from classify.config import ClassifyConfig
from core.errors import UserError
from core.nearest import did_you_mean
from core.settings import Affects, Execution, Group, Invocation, MayGrow, OfStudyAlone, Output, SetBySweep, Settings
from data.protocols import FOLDS
from data.sources import AcdcSource, ExamsSource, FolderSource, MrnetSource
from encoders.names import VIDEO_ENCODERS, is_video
from engine.config import marked
from pretrain.config import PretrainConfig
from segment.config import SegmentConfig, Selection
from sweep.analysis.study_files import UNLABELLED, goes_with
from sweep.imbalance.config import ImbalanceConfig

PIPELINES = ("random", "generalist", "specialist", "hierarchical")
BYOL_IMAGENET = "resnet50_byol_imagenet2012.pth.tar"
"""File of a ResNet-50 pretrained with BYOL on ImageNet, of GitHub yaox12/BYOL-PyTorch, in the working folder."""
OF_KALAPOS = (
    "random",
    "generalist",
    f"generalist={BYOL_IMAGENET}",
    "specialist",
    "hierarchical",
    f"hierarchical={BYOL_IMAGENET}",
)
"""The five pipelines of Kalapos and Gyires-Toth 2022, figure 1, and before them a random start, which we add."""
IN_3D = ("random", "specialist")
"""Pipelines of a 3D encoder that need no download: it cannot start from single images."""
OF_MANNA = ("random", "kinetics", "specialist")
"""Starts of Manna et al. 2022, table 3."""
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of Kalapos and Gyires-Toth 2022: 1, 3, 7, 15, 30, 75, 150, 300, 749 and 1498 slices."""
SEEDS = (0, 13, 42, 123, 1111, 77, 62, 91, 7, 5)
"""Seeds of the code of Kalapos and Gyires-Toth 2022."""

LARGEST = {"processes": 1024, "runs_per_gpu": 64, "threads": 1024}
"""Largest sensible values: a mistyped number must not bring the machine down."""
LARGEST |= {"slurm_minutes": 366 * 24 * 60, "slurm_parallel": 10_000, "slurm_memory_gb": 100_000}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Train every pipeline on every number of labels with several seeds, and estimate the worth of further labels."""

    task: Annotated[Literal["segment", "classify"], Group("grid")] = "segment"
    """What the labels are for: the U-Net's label maps, or the classes of whole exams. `--task imbalance` is a study of
    its own, with other options: add `--help` to see them."""
    pipelines: Annotated[tuple[str, ...], MayGrow] = PIPELINES
    """random, generalist, specialist, hierarchical; generalist=SOURCE and hierarchical=SOURCE start from other
    weights of natural images, where SOURCE is a value of `python -m pretrain --generalist`. For slices also masked and
    masked=SOURCE: masked image modelling of a whole U-Net from random weights or from those of SOURCE. For slices each
    of them also with +unlabelled at its end, e.g. hierarchical+unlabelled: the U-Net learns from unlabelled slices as
    well (`python -m segment --unlabelled`). For exams with a 3D encoder also kinetics: torchvision's weights of
    videos."""
    selection: Annotated[tuple[Selection, ...], MayGrow, OfStudyAlone] = ("random",)
    """Rules by which labelled slices are chosen (segment only, see `python -m segment --selection`); every pipeline is
    trained with each, but one from random weights not with `first`, which needs an encoder. `next` chooses the slices
    of each size with the network of the size before, those of the smallest as `foreground`, the baseline that the other
    rules have to beat."""
    fractions: Annotated[tuple[float, ...], MayGrow] = FRACTIONS
    """Shares of the labelled training slices (patients, exams), each in (0, 1]."""
    sizes: Annotated[tuple[int, ...], MayGrow] = ()
    """Numbers of labelled slices (patients, exams), in place of fractions."""
    label_unit: Literal["slice", "patient"] = "slice"
    """What fractions and sizes count (segment only; classify counts exams)."""
    label_order: Literal["random", "ssl4mis"] = "random"
    """Order in which `--label-unit patient` takes patients: random, by the seed; or that of the SSL4MIS benchmark, the
    same patients for every seed."""
    seeds: Annotated[tuple[int, ...], MayGrow] = SEEDS
    """Repetitions: random seeds, each 0 or more. A seed draws the labelled subset, the weights of decoder or head and
    the data order, the same in all pipelines."""
    cross_seeds: bool = False
    """Draw the labelled subset with one seed and everything else with another, and run every pair of seeds."""
    pretrain_seeds: Annotated[tuple[int, ...], MayGrow] = (0,)
    """Random seeds of pretraining, one encoder for each."""
    pretrain_epochs: Annotated[tuple[int, ...], MayGrow] = ()
    """Also fine-tune from the encoders after these epochs of domain pretraining, e.g. 0 1 2 5 (figure 6 of Kalapos and
    Gyires-Toth 2022)."""
    folds: Annotated[tuple[int, ...], MayGrow] = ()
    """Folds of `--split five-fold`, 0 to 4: the whole study is trained once on each, with encoders of its own, and
    every patient is scored by the networks that were not trained on it. None: the fold of `--fold` alone."""
    lr: Annotated[tuple[float, ...], OfStudyAlone] = ()
    """Learning rates of the networks, e.g. 1e-4 3e-4 1e-3: each pipeline takes that with the best score on a third of
    the labelled training subjects, after training on a few labels of the others; nothing that is reported takes part in
    the choice. One: that for all; none: `--segment.lr` or `--classify.lr`."""

    data: AcdcSource | FolderSource | MrnetSource | ExamsSource = field(default_factory=AcdcSource)
    """Data set: acdc or folder to segment, mrnet or exams to classify."""
    test: Annotated[bool, Group("scoring")] = False
    """Score the test split as well and report on it; use it once, after all choices have been made."""
    measure: Output[Literal["dice", "jaccard"]] = "dice"
    """Score of a segmentation that the report is about; exams are always scored by AUC."""
    allow_leakage: Output[bool] = False
    """Go on with encoders that were pretrained on validation or test subjects; results and report then say so."""
    allow_duplicates: Output[bool] = False
    """Go on if the same image is in two splits under two names; results and report then say so."""
    anonymous: Output[bool] = False
    """Write codes in place of the names of subjects, exams and files into tables, figures and the report."""
    keep_models: Annotated[bool, Affects.OUTPUT, Group("study")] = False
    """Keep the trained networks of all runs (tens of megabytes each), not only the scores."""
    out: Annotated[Path, Affects.OUTPUT, OfStudyAlone] = Path("runs/sweep")
    """Folder of the study. Run the same command again to continue a study that was stopped."""
    extend: Invocation[bool] = False
    """Add pipelines, sizes, seeds and epochs to the study in `out`."""
    dry_run: Invocation[bool] = False
    """Print the plan and its cost, estimated from one short run; train nothing."""

    executor: Annotated[Literal["local", "slurm"], Affects.EXECUTION, Group("execution")] = "local"
    """Where the runs are executed: in processes of this machine, or as job arrays of a Slurm cluster."""
    processes: Execution[int | None] = None
    """Largest number of runs at the same time on this machine; None: one per core, or `runs_per_gpu` per GPU."""
    runs_per_gpu: Execution[int] = 1
    """Runs that share one GPU (local)."""
    threads: Execution[int | None] = None
    """CPU threads of one run; None: the machine's cores divided by the processes. Results differ in the last digits
    between numbers of threads: set it where executors are to agree."""
    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device to compute on; auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point precision; auto: bf16 on a GPU that supports it, else fp32."""
    slurm_partition: Annotated[str | None, Affects.EXECUTION, Group("Slurm")] = None
    """Partition; None: the cluster's default."""
    slurm_minutes: Execution[int] = 240
    """Time limit of one run in minutes. A run that reaches it is queued again and continues from its checkpoint."""
    slurm_gres: Execution[str | None] = None
    """Generic resources of one run, e.g. gpu:1."""
    slurm_parallel: Execution[int] = 16
    """Largest number of Slurm runs at the same time."""
    slurm_memory_gb: Execution[float | None] = None
    """Memory of one run in GB; None: the cluster's default."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """How encoders are pretrained."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    """How U-Nets are trained."""
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    """How classifiers are trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for pipeline in self.pipelines:
            name, _, source = pipeline.removesuffix(UNLABELLED).partition("=")
            named = (*PIPELINES, "kinetics", "masked")
            if name not in named or (source and name not in ("generalist", "hierarchical", "masked")):
                raise UserError(
                    f"--pipelines {pipeline}: there is no such pipeline; choose among {', '.join(PIPELINES)}, "
                    "kinetics, masked, generalist=SOURCE, hierarchical=SOURCE, masked=SOURCE"
                    f"{did_you_mean(name, named)}"
                )
            if pipeline.endswith(UNLABELLED):
                self._refuse_unlabelled(pipeline)
            if name == "masked" and self.task == "classify":
                raise UserError(f"--pipelines {pipeline}: masked image modelling takes single images, not exams")
            if name == "kinetics" and not (self.task == "classify" and is_video(self.classify.encoder)):
                raise UserError(
                    f"--pipelines kinetics: these are weights of {', '.join(VIDEO_ENCODERS)}; pass --task classify "
                    f"--classify.encoder {VIDEO_ENCODERS[0]} --pretrain.encoder {VIDEO_ENCODERS[0]}"
                )
        if not any(pipeline.endswith(UNLABELLED) for pipeline in self.pipelines):
            self.segment.refuse_settings_of_unlabelled("add a pipeline such as random+unlabelled", group="segment.")
        self._refuse_unsuitable_selections()
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise UserError(f"--fractions {fraction}: must lie in (0, 1], e.g. 0.02 for 2 %")
        for name in ("sizes", "processes", "runs_per_gpu", "threads", "slurm_minutes", "slurm_parallel"):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and value < 1:
                    raise UserError(f"{_flag(name)} {value}: must be 1 or more")
                if value is not None and value > LARGEST.get(name, value):
                    raise UserError(f"{_flag(name)} {value}: must be at most {LARGEST[name]}")
        for name in marked(SweepConfig, MayGrow):
            values = getattr(self, name)
            if not values and name not in ("sizes", "pretrain_epochs", "folds"):
                raise UserError(f"{_flag(name)} is empty: pass one or more")
            if len(set(values)) < len(values):
                raise UserError(f"{_flag(name)} {' '.join(map(str, values))}: a value is repeated")
            if any(isinstance(value, int) and value < 0 for value in values):
                raise UserError(f"{_flag(name)} {' '.join(map(str, values))}: must be 0 or more")
            if any(isinstance(value, int) and value >= 2**63 for value in values):
                raise UserError(f"{_flag(name)} {' '.join(map(str, values))}: must be below 2 to the power of 63")
        if len(set(self.lr)) < len(self.lr) or not all(0 < rate < math.inf for rate in self.lr):
            raise UserError(f"--lr {' '.join(map(str, self.lr))}: each must be above 0, and none repeated")
        self._refuse_unsafe_settings_of_slurm()
        exams = isinstance(self.data, MrnetSource | ExamsSource)
        if exams != (self.task == "classify"):
            raise UserError(f"--dataset {self.data.dataset} does not go with --task {self.task}")
        if self.folds and getattr(self.data, "split", "") != "five-fold":
            raise UserError("--folds goes with --dataset acdc --split five-fold")
        if self.folds and (max(self.folds) >= FOLDS or self.test):
            raise UserError(
                f"--folds {' '.join(map(str, self.folds))}: must lie between 0 and {FOLDS - 1}, and go without --test"
            )
        if getattr(self.data, "test_set", "") == "both" and self.test:
            raise UserError("--test-set both: a study reports one mean score, not of two test sets: pass one of them")
        if exams and self.label_unit != "slice":
            raise UserError(f"--label-unit {self.label_unit} goes with --task segment: classify counts exams")
        if self.label_order != "random" and self.label_unit != "patient":
            raise UserError(f"--label-order {self.label_order} is an order of patients: pass --label-unit patient")
        for part in ("pretrain", "segment", "classify"):
            self._refuse_settings_of_runs(part)

    def _refuse_unlabelled(self, pipeline: str) -> None:
        if self.task == "classify":
            raise UserError(f"--pipelines {pipeline}: pseudo-labels are those of slices, not of exams; pass another")
        if not self.segment.ema_decay:
            raise UserError(
                f"--pipelines {pipeline}: keeps a moving average of the weights, which every pipeline must do to be "
                "comparable; pass --segment.ema-decay 0.99"
            )

    def _refuse_unsuitable_selections(self) -> None:
        if self.selection != ("random",) and (self.task == "classify" or self.label_unit != "slice"):
            raise UserError(
                f"--selection {' '.join(self.selection)}: rules choose slices; leave it out with --task classify and "
                "with --label-unit patient"
            )
        if {"first", "next"} & {*self.selection} and "foreground" not in self.selection:
            raise UserError(
                f"--selection {' '.join(self.selection)}: a rule has to beat foreground, the draw of an annotator who "
                "leafs through the slices; add it"
            )
        if "first" in self.selection and not any(goes_with(name, "first") for name in self.pipelines):
            raise UserError(
                "--selection first goes by the view of a pretrained encoder: add a pipeline other than random, or "
                "leave first out"
            )

    def _refuse_unsafe_settings_of_slurm(self) -> None:
        """Refuse what is no name of a partition or resource: Slurm's settings become lines of a batch script."""
        for name in ("slurm_partition", "slurm_gres"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\w[\w.,:=/-]*", value, re.ASCII):
                raise UserError(f"{_flag(name)} {value!r}: may hold letters, digits and . , : = / _ - only")
        if self.slurm_memory_gb is not None and not 0 < self.slurm_memory_gb <= LARGEST["slurm_memory_gb"]:
            raise UserError(
                f"--slurm-memory-gb {self.slurm_memory_gb}: must be above 0 and at most {LARGEST['slurm_memory_gb']}"
            )
        unsafe = re.search(r"[\x00-\x1f\x7f%\\'\"]", str(self.out.absolute()))
        if self.executor == "slurm" and unsafe:
            raise UserError(
                f"--out {str(self.out.absolute())!r}: Slurm cannot write to a path with {unsafe[0]!r}; choose another"
            )

    def _refuse_settings_of_runs(self, part: str) -> None:
        """Refuse settings below `pretrain`, `segment` or `classify` that the sweep sets in every run."""
        config = getattr(self, part)
        initial = type(config)()
        shared = self.shared_with(config)
        for name in {*marked(type(config), SetBySweep), *shared}:
            if getattr(config, name) != getattr(initial, name):
                instead = f"pass {_flag(name)}" if name in shared else "the sweep sets it itself"
                flag = _flag(f"{part}.{name}")
                raise UserError(f"{flag} {getattr(config, name)} belongs to single runs: {instead}")

    def of_fold(self, fold: int) -> "SweepConfig":
        """The same study on one fold of `folds` alone."""
        assert isinstance(self.data, AcdcSource)  # checked when the study was made
        return replace(self, folds=(), data=replace(self.data, fold=fold))

    def shared_with(self, config: PretrainConfig | SegmentConfig | ClassifyConfig) -> dict[str, Any]:
        """The settings of the study that all its runs share, if they have them: data set, device, precision, test."""
        names = {f.name for f in dataclasses.fields(self)} - {*marked(SweepConfig, OfStudyAlone)}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(config) if f.name in names}

    @property
    def run_config(self) -> SegmentConfig | ClassifyConfig:
        """How networks of the task are trained."""
        return self.segment if self.task == "segment" else self.classify


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def paper() -> SweepConfig:
    """The pipelines, ten fractions and ten seeds of Kalapos and Gyires-Toth 2022, by Jaccard on the test split."""
    return SweepConfig(
        pipelines=OF_KALAPOS,
        test=True,
        measure="jaccard",
        pretrain=pretrain.config.paper(),
        segment=segment.config.paper(),
    )


def default() -> SweepConfig:
    """Seven sizes and three seeds with the small networks of the other commands' default."""
    return SweepConfig(
        fractions=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0),
        seeds=SEEDS[:3],
        pretrain=pretrain.config.default(),
        segment=replace(segment.config.default(), steps=600, evaluate_every=60),
    )


def demo() -> SweepConfig:
    """Two starts, three sizes, two seeds on synthetic patients in minutes. It checks that the software runs."""
    encoder = replace(
        pretrain.config.demo(),
        encoder="resnet10t",
        image_size=32,
        steps=60,
        generalist_images=512,
        generalist_epochs=3,
        checkpoint_every=0,
    )
    return SweepConfig(
        pipelines=("random", "hierarchical"),
        fractions=(0.002, 0.01, 0.05),
        seeds=SEEDS[:2],
        pretrain=encoder,
        # Small batches make many steps in little time; the average of the weights evens out the last ones' noise.
        segment=replace(
            segment.config.demo(),
            encoder="resnet10t",
            image_size=64,
            spacing_mm=3.0,
            steps=240,
            batch_size=4,
            lr=5e-3,
            ema_decay=0.95,
            evaluate_every=60,
            checkpoint_every=0,
        ),
    )


def exam_paper() -> SweepConfig:
    """The classifier and starts of Manna et al. 2022 at five fractions; 20,000 steps are 50 epochs of all exams."""
    return _of_exams(paper(), pretrain.exam_presets.paper(), classify.config.paper(), steps=20_000, pipelines=OF_MANNA)


def exam_default() -> SweepConfig:
    """Five sizes and three seeds with the classifier's default, but the last weights: validation is reported on."""
    classifier = replace(classify.config.default(), select="last")
    return _of_exams(default(), pretrain.exam_presets.default(), classifier, steps=1000, pipelines=IN_3D)


def exam_demo() -> SweepConfig:
    """Four pipelines, three sizes, two seeds on synthetic knees."""
    small = replace(pretrain.exam_presets.demo(), generalist_images=512, generalist_epochs=3, checkpoint_every=0)
    demo_classifier = replace(classify.config.demo(), checkpoint_every=0, select="last")
    return replace(_of_exams(demo(), small, demo_classifier, steps=60, pipelines=PIPELINES), fractions=(0.1, 0.3, 1.0))


def _of_exams(
    base: SweepConfig, encoder: PretrainConfig, classifier: ClassifyConfig, *, steps: int, pipelines: tuple[str, ...]
) -> SweepConfig:
    """Every size takes the same optimiser steps, with ten validations on the way."""
    return replace(
        base,
        task="classify",
        pipelines=pipelines,
        fractions=(0.05, 0.1, 0.2, 0.5, 1.0),
        measure="dice",
        data=MrnetSource(),
        pretrain=replace(encoder, stage="hierarchical", data=AcdcSource(), encoder=classifier.encoder),
        classify=replace(classifier, steps=steps, evaluate_every=max(1, steps // 10)),
    )


Presets = Mapping[str, Callable[[], SweepConfig]]
PRESETS: Presets = {"demo": demo, "default": default, "paper": paper}
EXAM_PRESETS: Presets = {"demo": exam_demo, "default": exam_default, "paper": exam_paper}
EXAMPLES = (
    "--data-root ACDC --pipelines random generalist --pretrain.generalist imagenet --out runs/study",
    "--sizes 2 4 8 --label-unit patient --seeds 0 13 42 --dry-run",
    "--task classify --data-root MRNET --pipelines random specialist",
    "--task imbalance --data-root CIFAR --ratios 0.1 0.01",
)


def presets_for(flags: Mapping[str, str]) -> Mapping[str, Callable[[], SweepConfig | ImbalanceConfig]]:
    """The presets for the task that the command line names."""
    if flags.get("task") == "imbalance":
        return sweep.imbalance.config.PRESETS
    return EXAM_PRESETS if flags.get("task") == "classify" else PRESETS
