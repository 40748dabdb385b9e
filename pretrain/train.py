"""Training of one pretraining stage: a self-supervised method on its images, and the encoder file at the end."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from core.errors import UserError
from core.wording import count_of
from data.sources import chosen_channels
from encoders.card import UNET, versions
from engine.compiling import compile_method
from engine.config import plain
from engine.devices import channels_last, scales_gradients, synchronise_norms
from engine.loop import Metrics, Training, collate, train
from engine.optimisers import adamw, lars, warmup_cosine
from engine.run_folder import RunFolder
from engine.sampler import StepSampler, sampler_of
from pretrain.collapse import FLOOR, collapse_metrics
from pretrain.config import PretrainConfig
from pretrain.methods.build import build_method, trains_unet, views_of
from pretrain.methods.method import Exported, Method
from pretrain.methods.whole_batch import WholeBatchMethod
from pretrain.probe import Probe
from pretrain.sources import StageImages

log = logging.getLogger("fewslice")

PAPERS_SPECIALIST = 400
"""Epochs of the specialist in Kalapos and Gyires-Toth 2022."""
LARGEST_START_SHARE = 0.05
"""Share of its initial weights in a written encoder above which the run warns."""
ENCODER = "encoder.safetensors"
SMALLEST_BATCH = 8
"""Samples per backward pass and device below which batch norm's statistics are so noisy that the run warns."""


def train_stage(
    cfg: PretrainConfig,
    fabric: Fabric,
    run: RunFolder,
    images: StageImages,
    encoder: nn.Module,
    lineage: list[dict[str, Any]],
    probe: Probe | None,
    *,
    given_start: bool,
) -> dict[str, Any]:
    """Pretrain an encoder and write it.

    Args:
        cfg: settings of the stage, the method, the optimiser and the run.
        fabric: where to compute.
        run: the run folder.
        images: images or exams to train on.
        encoder: encoder with its initial weights.
        lineage: earlier stages, whose result the initial weights are.
        probe: linear probe to follow the encoder with; None: no probe.
        given_start: whether the initial weights are given, not random.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: if a finished run has lost both its encoder and its checkpoint.
    """
    data = images.pool or images.hash
    written = {"encoder": str(run.path / ENCODER)} | ({"unet": str(run.path / UNET)} if trains_unet(cfg.method) else {})
    if run.finished is not None and _has_files(run, written.values()):
        run.note_data(data)
        return {**run.finished, **written}  # the folder may have been moved
    sampler = sampler_of(cfg, fabric, images.count, cfg.batch_size)
    _warn_of_small_batches(cfg.norm, sampler)
    epochs = cfg.generalist_epochs if cfg.stage == "generalist" else cfg.target_epochs
    steps = cfg.steps or max(1, round(epochs * sampler.steps_per_epoch))
    # A run that is cut short keeps the schedule of the whole stage, so that it ends where the stage would then be.
    last_step = _last_step(cfg.stop_after_epochs, sampler.steps_per_epoch, steps)
    warmup = _warmup(round(cfg.warmup_epochs * sampler.steps_per_epoch), steps)
    lr = cfg.peak_lr(given_start)
    method = synchronise_norms(
        build_method(cfg, channels_last(encoder), steps=steps, count=images.count), fabric, cfg.norm
    )
    compile_method(method, "networks", cfg.compiled, fabric, micro_batches=steps * sampler.micro_steps(0))
    model, optimiser = fabric.setup(method, _optimiser(cfg, method, lr, fabric))
    stage = _Stage(
        cfg=cfg,
        fabric=fabric,
        run=run,
        images=images,
        sampler=sampler,
        method=method,
        probe=probe,
        lineage=lineage,
        resolved={"learning_rate": lr, **method.resolved},
        epochs_kept=_epochs_kept(cfg.keep_epochs, sampler.steps_per_epoch, last_step),
    )
    if 0 in stage.epochs_kept and not (cfg.resume and run.checkpoint.exists()):
        stage.export(run.path / "epoch-0", 0)
    stage.say_start(steps, last_step)
    began = time.perf_counter()
    speed = train(
        Training(
            fabric=fabric,
            run=run,
            model=model,
            optimiser=optimiser,
            sampler=sampler,
            data=data,
            samples=method.samples(images.samples),
            batch_loss=method.batch_loss if isinstance(method, WholeBatchMethod) else None,
            steps=last_step,
            learning_rate=lambda step: lr * warmup_cosine(step, steps, warmup),
            after_step=method.after_step,
            observe=stage.observe,
            observed=stage.observed,
            columns=stage.columns,
            workers=cfg.workers,
            on_device=images.on_device,
            checkpoint_every=cfg.checkpoint_every,
            log_every=cfg.log_every,
        ),
        resume=cfg.resume,
    )
    stage.export(run.path, last_step)
    return {
        "stage": cfg.stage,
        "method": cfg.method,
        images.unit: images.count,
        "steps": last_step,
        "seed": cfg.seed,
        **stage.resolved,
        **{name: run.latest[name] for name in stage.columns if name in run.latest},
        **stage.start_share(last_step),
        "seconds": time.perf_counter() - began,
        f"{images.unit}_per_second": speed,
        **written,
        "subjects": images.subjects,
    }


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A stage that is being trained: what is measured and written along the way."""

    cfg: PretrainConfig
    fabric: Fabric
    run: RunFolder
    images: StageImages
    sampler: StepSampler
    method: Method
    probe: Probe | None
    lineage: list[dict[str, Any]]
    resolved: dict[str, float]
    """Settings as they were decided for this stage: the learning rate and those of the method."""
    epochs_kept: dict[int, int]
    """The epochs after which the encoder is written, by the optimiser step that ends them."""

    @property
    def exported(self) -> Exported:
        """The network that is written."""
        return self.cfg.export or self.method.exports[0]

    @property
    def columns(self) -> list[str]:
        """Names of the metrics that `observe` returns."""
        return [*self.method.metrics, "probe_jaccard"]

    def start_share(self, step: int) -> dict[str, float]:
        """Share of the stage's initial weights in the network that is written; {} if the method has no average."""
        known = "start_share" in self.method.metrics
        return {"start_share": self.method.start_share(self.exported, step)} if known else {}

    def export(self, folder: Path, step: int) -> None:
        """Write the encoder as it is after some steps."""
        self._prepare_export()
        if self.run.main:
            now = self.resolved | self.start_share(step)
            stages = [*self.lineage, _lineage_entry(self.cfg, self.images, step) | now]
            self.method.save(folder, self.exported, lineage=stages, **facts_of_encoder(self.cfg, self.images.channels))

    def observe(self, step: int, last: bool) -> Metrics:
        """Write the encoders of `--keep-epochs`, and measure what is due."""
        if step in self.epochs_kept:
            self.export(self.run.path / f"epoch-{self.epochs_kept[step]}", step)
        metrics: Metrics = {}
        if step % self.cfg.log_every == 0 or last:
            if (projections := self.method.last_projections) is not None:
                metrics |= collapse_metrics(projections)
                _warn_of_collapse(metrics["projection_std"], step)
            metrics |= self.start_share(step)
        if self.probe is not None and (step % self.cfg.probe_every == 0 or last):
            self._prepare_export()
            metrics["probe_jaccard"] = self.probe(self.method.encoder_to_export(self.exported), self.fabric.device)
        return metrics

    def observed(self, step: int) -> bool:
        """Whether `observe` measures or writes after this step."""
        probed = self.probe is not None and step % self.cfg.probe_every == 0
        return step in self.epochs_kept or step % self.cfg.log_every == 0 or probed

    def say_start(self, steps: int, last_step: int) -> None:
        """Log what will be trained, and how it differs from what its reader may expect."""
        share = self.method.start_share(self.exported, last_step)
        settings = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.resolved.items())
        left = (
            f"; at the end {share:.2%} of the initial weights are left in the encoder that is written" if share else ""
        )
        log.info(
            f"{self.cfg.method}: {count_of(self.images.count, self.images.unit[:-1])}, "
            f"{count_of(steps, 'optimiser step')} of {self.sampler.batch_size} ({self.sampler.steps_per_epoch} per "
            f"epoch, {count_of(self.sampler.micro_steps(0), 'micro-batch', 'micro-batches')} each), {settings}{left}"
        )
        _say_what_differs(self.cfg, self.sampler, steps, last_step)
        _warn_of_start(share, last_step)

    def _prepare_export(self) -> None:
        # on every device, as norms of several GPUs may exchange statistics
        self.method.prepare_export(_one_epoch(self.images, self.sampler, self.fabric))


def _has_files(run: RunFolder, files: Iterable[str]) -> bool:
    """Whether a finished run still has the networks that it wrote; if not they are written again from the checkpoint.

    Raises:
        UserError: if it has lost both.
    """
    if not (lost := [Path(file).name for file in files if not Path(file).exists()]):
        return True
    if not run.checkpoint.exists():
        raise UserError(f"{run.path} has lost {lost[0]} and its checkpoint; start again with --overwrite")
    return False


def _optimiser(cfg: PretrainConfig, method: Method, lr: float, fabric: Fabric) -> Optimizer:
    if cfg.chosen_optimiser == "adam":
        return adamw(method, lr=lr, weight_decay=cfg.weight_decay, scaled=scales_gradients(fabric))
    return lars(method, lr=lr, weight_decay=cfg.weight_decay, trust_coefficient=cfg.trust_coefficient)


def facts_of_encoder(cfg: PretrainConfig, channels: int = 1) -> dict[str, Any]:
    """The arguments of `save_encoder` that are the same for all encoders of a run."""
    each = channels > 1 and not cfg.on_images
    normalisation = {"kind": "z-score", "over": "exam" if cfg.on_clips else "channel" if each else "image"}
    return {"name": cfg.encoder, "in_channels": channels, "norm": cfg.norm, "normalisation": normalisation}


def _one_epoch(images: StageImages, sampler: StepSampler, fabric: Fabric) -> Iterator[Tensor]:
    """The samples of the first epoch in micro-batches on the device, drawn as they are asked for."""
    samples: Any = images.samples
    for step in range(sampler.steps_per_epoch):
        for drawn, _ in sampler.micro_batches(step):
            many = samples.__getitems__(drawn) if hasattr(samples, "__getitems__") else [samples[one] for one in drawn]
            yield fabric.to_device(collate(many))


def _lineage_entry(cfg: PretrainConfig, images: StageImages, steps: int) -> dict[str, Any]:
    """The stage's entry in the lineage of its encoder."""
    entry: dict[str, Any] = {
        "stage": cfg.stage,
        "method": cfg.method,
        "data": {"name": images.name, "hash": images.hash, images.unit: images.count},
        "augmentation": plain(cfg.augmentation),
        "image_size": cfg.image_size,
        "steps": steps,
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "versions": versions(),
    }
    if cfg.stage != "generalist":
        entry |= {"crop_towards": cfg.crop_towards, "positives": cfg.positives}
    if views_of(cfg.method) == 2:
        entry["second_augmentation"] = plain(cfg.second_augmentation)
    if images.channels > 1 and (chosen := chosen_channels(cfg.data)):
        entry["channels"] = [*chosen]
    if images.by_class:
        entry["data"] |= {"classes": [*images.by_class], "by_class": [*images.by_class.values()]}
    if images.subjects:
        entry["subjects"] = images.subjects
    if images.unit == "exams":
        entry |= {"plane": getattr(cfg.data, "plane", ""), "clip_frames": cfg.clip_frames}
    return entry


def _last_step(epochs: float | None, steps_per_epoch: int, steps: int) -> int:
    """Optimiser steps until `--stop-after-epochs` or the end of the stage."""
    if epochs is None:
        return steps
    if epochs * steps_per_epoch > steps:
        log.warning(f"--stop-after-epochs {epochs:g} lies beyond this stage, which ends after {steps} steps")
    return max(1, round(min(steps, epochs * steps_per_epoch)))


def _say_what_differs(cfg: PretrainConfig, sampler: StepSampler, steps: int, last_step: int) -> None:
    """Log how this run differs from what its reader may expect."""
    if sampler.merged:
        log.info(
            f"the last {sampler.merged} samples of each epoch, less than a quarter of a batch, join the batch before"
        )
    of_the_paper = cfg.stage == "specialist" and cfg.method == "byol" and not (cfg.on_exams or cfg.on_images)
    if of_the_paper and cfg.steps is None and cfg.target_epochs < PAPERS_SPECIALIST:
        log.info(f"specialist for {cfg.target_epochs:g} epochs ({PAPERS_SPECIALIST} in Kalapos and Gyires-Toth 2022)")
    if last_step < steps:
        log.info(f"stopping after {last_step} of the schedule's {steps} steps (--stop-after-epochs)")


def _warn_of_start(share: float, steps: int) -> None:
    if share > LARGEST_START_SHARE:
        log.warning(
            f"the encoder that is written will hold {share:.0%} of the weights that this stage starts from: {steps} "
            "steps are few for this decay of the moving average; train longer, lower --tau or pass --export online"
        )


def _warmup(wanted: int, steps: int) -> int:
    """Optimiser steps of warm-up: at most half of the stage, so that short runs also reach the full learning rate."""
    if wanted > steps // 2:
        log.info(f"warm-up shortened from {wanted} to {steps // 2} optimiser steps, half of this stage")
    return min(wanted, steps // 2)


def _epochs_kept(epochs: Sequence[int], steps_per_epoch: int, steps: int) -> dict[int, int]:
    """The epochs of `--keep-epochs` by the optimiser step that ends them."""
    kept = {round(epoch * steps_per_epoch): epoch for epoch in epochs}
    if beyond := [epoch for step, epoch in kept.items() if step > steps]:
        log.warning(f"--keep-epochs {' '.join(map(str, beyond))} lie beyond this run's {steps} steps and are not kept")
    return kept


def _warn_of_small_batches(norm: str, sampler: StepSampler) -> None:
    if norm != "batch":
        return
    if sampler.micro_batch_size < SMALLEST_BATCH:
        log.warning(
            f"batch norm sees {sampler.micro_batch_size} samples at a time: accumulation averages gradients, not "
            f"statistics; use --micro-batch-size {SMALLEST_BATCH} or more, or --norm group"
        )
    if sampler.devices > 1 and not torch.cuda.is_available():
        log.warning("on several CPU processes each computes batch norm's statistics alone; --norm group has none")


def _warn_of_collapse(projection_std: float, step: int) -> None:
    if projection_std < FLOOR:
        log.warning(
            f"step {step}: the projections' standard deviation is {projection_std:.1%} of the value of spread "
            "projections; the representation is collapsing: lower --lr, or raise --tau of a moving average"
        )
