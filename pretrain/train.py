"""The training of one pretraining stage: BYOL on its images, and the encoder file at the end."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from encoders.build import feature_width
from encoders.card import versions
from encoders.weights import save_encoder
from engine.compiling import compile_method
from engine.config import plain
from engine.devices import channels_last, synchronise_norms
from engine.ema import cosine_tau
from engine.loop import Metrics, Training, train
from engine.optimisers import lars, warmup_cosine
from engine.run_folder import RunFolder
from engine.sampler import StepSampler, sampler_of
from pretrain.collapse import FLOOR, collapse_metrics
from pretrain.config import PretrainConfig
from pretrain.methods.byol import Byol
from pretrain.probe import Probe
from pretrain.sources import StageImages

log = logging.getLogger("fewslice")

SMALLEST_BATCH = 8
"""Samples per backward pass and device below which batch norm's statistics are so noisy that the run warns."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: its images, its length and the encoder it starts from."""

    name: str
    """Of the lineage: generalist, specialist or hierarchical."""
    images: StageImages
    epochs: float
    """Passes over the images."""
    steps: int | None = None
    """Optimiser steps in place of epochs."""
    encoder: nn.Module
    """With its first weights."""
    lineage: list[dict[str, Any]]
    """The stages that made these weights."""
    probe: Probe | None = None


def train_stage(cfg: PretrainConfig, fabric: Fabric, run: RunFolder, stage: Stage) -> dict[str, Any]:
    """Pretrain an encoder with BYOL and write it.

    Args:
        cfg: settings of the method, the optimiser and the run.
        fabric: where to compute.
        run: the run folder.
        stage: what to train on and from which weights.

    Returns:
        The content of `result.json`.
    """
    images = stage.images
    byol = Byol(
        channels_last(stage.encoder),
        feature_width(stage.encoder),
        projector_hidden=cfg.projector_hidden,
        predictor_hidden=cfg.predictor_hidden,
        outputs=cfg.projection,
        norm=cfg.norm,
    )
    byol = synchronise_norms(byol, fabric, cfg.norm)
    sampler = sampler_of(cfg, fabric, images.count, cfg.batch_size)
    _warn_of_small_batches(cfg.norm, sampler)
    steps = stage.steps or max(1, round(stage.epochs * sampler.steps_per_epoch))
    warmup = _warmup(round(cfg.warmup_epochs * sampler.steps_per_epoch), steps)
    lr = cfg.lr * cfg.batch_size / 256  # the linear scaling rule of large-batch training, as in BYOL
    compile_method(byol, "networks", cfg.compiled, fabric, micro_batches=steps * sampler.micro_steps(0))
    optimiser = lars(byol, lr=lr, weight_decay=cfg.weight_decay, trust_coefficient=cfg.trust_coefficient)
    model, optimiser = fabric.setup(byol, optimiser)

    def move_target(step: int) -> None:
        # tau counts optimiser steps, as the target moves once per step whatever the accumulation.
        byol.move_target(cosine_tau(step - 1, steps, cfg.tau) if cfg.tau_schedule == "cosine" else cfg.tau)

    def export(folder: Path, step: int) -> None:
        if run.main:
            network = byol.target_encoder if cfg.export == "target" else byol.encoder
            lineage = [*stage.lineage, _entry(cfg, stage, step)]
            save_encoder(network, folder, network=cfg.export, lineage=lineage, **facts_of_encoder(cfg))

    observer = _Observer(byol, stage.probe, fabric.device, cfg.log_every, cfg.probe_every)
    epochs_kept = _epochs_kept(cfg.keep_epochs, sampler.steps_per_epoch, steps)

    def observe(step: int, last: bool) -> Metrics:
        if step in epochs_kept:
            export(run.path / f"epoch-{epochs_kept[step]}", step)
        return observer(step, last)

    if 0 in epochs_kept and not (cfg.resume and run.checkpoint.exists()):
        export(run.path / "epoch-0", 0)
    log.info(
        f"BYOL: {images.count} {images.unit}, {steps} optimiser steps of {sampler.batch_size} "
        f"({sampler.steps_per_epoch} per epoch, {sampler.micro_steps(0)} micro-batches each), learning rate {lr:.3g}"
    )
    began = time.perf_counter()
    speed = train(
        Training(
            fabric=fabric,
            run=run,
            model=model,
            optimiser=optimiser,
            sampler=sampler,
            data=images.hash,
            samples=images.samples,
            steps=steps,
            learning_rate=lambda step: lr * warmup_cosine(step, steps, warmup),
            after_step=move_target,
            observe=observe,
            columns=["projection_std", "effective_rank", "probe_jaccard"],
            workers=cfg.workers,
            on_device=images.on_device,
            checkpoint_every=cfg.checkpoint_every,
            log_every=cfg.log_every,
        ),
        resume=cfg.resume,
    )
    export(run.path, steps)
    return {
        "stage": cfg.stage,
        images.unit: images.count,
        "steps": steps,
        "seed": cfg.seed,
        **observer.latest,
        "seconds": time.perf_counter() - began,
        f"{images.unit}_per_second": speed,
        "encoder": str(run.path / "encoder.safetensors"),
    }


def facts_of_encoder(cfg: PretrainConfig) -> dict[str, Any]:
    """What the card of every encoder of a run says alike: arguments of `save_encoder`."""
    normalisation = {"kind": "z-score", "over": "exam" if cfg.on_clips else "image"}
    return {"name": cfg.encoder, "in_channels": 1, "norm": cfg.norm, "normalisation": normalisation}


def _entry(cfg: PretrainConfig, stage: Stage, steps: int) -> dict[str, Any]:
    """The stage's entry in the lineage of its encoder."""
    images = stage.images
    entry: dict[str, Any] = {
        "stage": stage.name,
        "data": {"name": images.name, "hash": images.hash, images.unit: images.count},
        "augmentation": plain(cfg.augmentation),
        "second_augmentation": plain(cfg.second_augmentation),
        "image_size": cfg.image_size,
        "steps": steps,
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "versions": versions(),
    }
    if images.unit == "exams":
        entry |= {"plane": getattr(cfg.data, "plane", ""), "clip_frames": cfg.clip_frames}
    return entry


def _warmup(wanted: int, steps: int) -> int:
    """Optimiser steps of warm-up: at most half of the stage, so that short runs also reach their peak rate."""
    if wanted > steps // 2:
        log.info(f"warm-up shortened from {wanted} to {steps // 2} optimiser steps, half of this stage")
    return min(wanted, steps // 2)


def _epochs_kept(epochs: Sequence[int], steps_per_epoch: int, steps: int) -> dict[int, int]:
    """Optimiser step -> epoch after which the encoder is written as well."""
    kept = {round(epoch * steps_per_epoch): epoch for epoch in epochs}
    if beyond := [epoch for step, epoch in kept.items() if step > steps]:
        log.warning(f"--keep-epochs {' '.join(map(str, beyond))} lie beyond this run's {steps} steps and are not kept")
    return kept


class _Observer:
    """Metrics of a stage beside its loss: signs of collapse, and the linear probe."""

    def __init__(self, byol: Byol, probe: Probe | None, device: torch.device, log_every: int, probe_every: int) -> None:
        self.byol, self.probe, self.device = byol, probe, device
        self.log_every, self.probe_every = log_every, probe_every
        self.latest: Metrics = {}

    def __call__(self, step: int, last: bool) -> Metrics:
        metrics: Metrics = {}
        if step % self.log_every == 0 or last:
            metrics |= collapse_metrics(self.byol.last_projections)
            _warn_of_collapse(metrics["projection_std"], step)
        if self.probe is not None and (step % self.probe_every == 0 or last):
            metrics["probe_jaccard"] = self.probe(self.byol.target_encoder, self.device)
        self.latest |= metrics
        return metrics


def _warn_of_small_batches(norm: str, sampler: StepSampler) -> None:
    if norm != "batch":
        return
    if sampler.micro_batch_size < SMALLEST_BATCH:
        log.warning(
            f"batch norm sees {sampler.micro_batch_size} samples at a time: accumulation averages gradients, not "
            f"statistics; use --micro-batch-size {SMALLEST_BATCH} or more, or --norm group"
        )
    if sampler.devices > 1 and not torch.cuda.is_available():
        log.warning("batch norm on several CPU processes takes each one's own statistics; --norm group does not")


def _warn_of_collapse(projection_std: float, step: int) -> None:
    if projection_std < FLOOR:
        log.warning(
            f"step {step}: the projections' standard deviation is {projection_std:.1%} of the value of spread "
            "projections; the representation is collapsing: lower --lr or raise --tau"
        )
