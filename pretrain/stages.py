"""The stages: natural images, then the target images, an encoder travelling as a file in between."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from data.clips import TwoClips
from data.datasets import Dataset, load_dataset
from data.errors import UserError
from data.exams import load_exams
from data.procedural import FolderImages, ProceduralImages
from data.resident import ResidentViews, bytes_needed, can_reside
from data.samples import Images, Slices, Standardised, TwoViews
from data.views import Views
from encoders.build import build_encoder, feature_width
from encoders.clip import build_clip_encoder, recompute_activations
from encoders.video import VIDEO_ENCODERS
from encoders.weights import Network, load_weights, save_encoder, versions
from engine.compiling import compile_method
from engine.config import plain
from engine.devices import make_fabric, show_messages
from engine.ema import cosine_tau
from engine.loop import Metrics, Training, train
from engine.optimisers import lars, warmup_cosine
from engine.order import Order
from engine.run import RunFolder
from pretrain.byol import Byol
from pretrain.collapse import FLOOR, collapse_metrics
from pretrain.config import PretrainConfig
from pretrain.probe import Probe

log = logging.getLogger("fewslice")

SMALLEST_BATCH = 8
"""Samples per backward and device below which batch norm's statistics are too noisy to go unmentioned."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The images or exams of one stage."""

    samples: TorchDataset[Tensor]
    """Two views of each, indexed by `engine.order.Draw`."""
    on_device: bool = False
    """They come from the device itself."""
    count: int
    unit: str = "images"
    name: str
    hash: str
    epochs: float
    steps: int | None = None


class Start(NamedTuple):
    """The weights that a stage starts from, and the stages that made them."""

    encoder: nn.Module
    lineage: list[dict[str, Any]]


def run(cfg: PretrainConfig, fabric: Fabric | None = None) -> dict[str, Any]:
    """Run what a stage needs and write `encoder.safetensors` and `encoder.json`.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)
    folder = cfg.run_folder
    _build(cfg)  # a wrong name is refused before anything is written
    natural = _natural_images(cfg) if cfg.stage != "specialist" else None
    dataset, target = None, None
    if cfg.stage == "generalist":
        pass
    elif cfg.dataset == "mrnet" or cfg.dataset == "exams":
        target = _target_exams(cfg, cfg.dataset)
    else:
        dataset = load_dataset(
            cfg.dataset, cfg.data_root, subject_pattern=cfg.subject_pattern, splits_file=cfg.splits_file
        )
        target = _target_images(cfg, dataset, fabric.device)
    given = _load(cfg, cfg.generalist) if natural is None and cfg.stage != "specialist" else None
    main = fabric.global_rank == 0
    with RunFolder(folder, plain(cfg), resume=cfg.resume, overwrite=cfg.overwrite, main=main) as run_folder:
        fabric.barrier()
        if cfg.stage == "generalist":
            result = _byol(cfg, fabric, run_folder, natural) if natural else _adopt(cfg, run_folder, given)
        else:
            if natural is not None:
                given = _load(cfg, _generalist_file(cfg, fabric, folder))
            assert target is not None
            result = _byol(cfg, fabric, run_folder, target, start=given, dataset=dataset)
        run_folder.write_result(result)
    return result


def _natural_images(cfg: PretrainConfig) -> Pool | None:
    """The natural images to pretrain on; None when the generalist is a file of weights."""
    path = Path(cfg.generalist)
    if cfg.generalist in ("imagenet", "kinetics") or path.is_file() or (path / "encoder.safetensors").is_file():
        return None
    if cfg.encoder in VIDEO_ENCODERS:
        raise UserError(
            f"--generalist {cfg.generalist}: {cfg.encoder} takes clips and cannot be pretrained on single images; "
            "give kinetics or an encoder file, or take --stage specialist"
        )
    if cfg.generalist == "procedural":
        drawn = ProceduralImages(cfg.generalist_images, max(cfg.image_size, 64), cfg.seed)
        return _natural_pool(cfg, drawn, "procedural", f"procedural-{len(drawn)}-{cfg.seed}")
    if path.is_dir():
        folder = FolderImages(path)
        return _natural_pool(cfg, folder, path.name, folder.hash)
    raise UserError(
        f"--generalist {cfg.generalist}: no such file or folder; give an encoder file, a folder of images, "
        "imagenet, kinetics or procedural"
    )


def _natural_pool(cfg: PretrainConfig, images: Images, name: str, digest: str) -> Pool:
    return Pool(
        samples=TwoViews(Standardised(images), *_views(cfg)),
        count=len(images),
        name=name,
        hash=digest,
        epochs=cfg.generalist_epochs,
        steps=cfg.steps if cfg.stage == "generalist" else None,
    )


def _views(cfg: PretrainConfig) -> tuple[Views, Views]:
    """T and T'."""
    return Views(cfg.views, cfg.image_size), Views(cfg.second_views, cfg.image_size)


def _target_images(cfg: PretrainConfig, dataset: Dataset, device: torch.device) -> Pool:
    """The unlabelled pool: every slice of the training subjects, labelled or not."""
    slices = Slices(store=dataset.store, positions=_pooled(cfg, dataset.positions))
    if not len(slices):
        raise UserError(f"{dataset.root} has no slice of a training subject to pretrain on")
    subjects = dataset.store.table["subject"].iloc[slices.positions].nunique()
    log.info(f"pretraining on {len(slices)} slices of {subjects} subjects of {dataset.name}")
    views = _views(cfg)
    resident = _resides(cfg, slices, views, device)
    return Pool(
        samples=ResidentViews(slices, views, device) if resident else TwoViews(slices, *views),
        on_device=resident,
        count=len(slices),
        name=dataset.name,
        hash=dataset.store.key,
        epochs=cfg.target_epochs,
        steps=cfg.steps,
    )


def _resides(cfg: PretrainConfig, slices: Slices, views: tuple[Views, Views], device: torch.device) -> bool:
    """Whether the slices go to the device's memory and the views are made there."""
    if cfg.resident == "yes" and not can_reside(slices, views):
        raise UserError("--resident yes goes with plain bilinear crops: leave out blur, bicubic and affine maps")
    if cfg.resident != "auto":
        return cfg.resident == "yes"
    if device.type != "cuda" or not can_reside(slices, views):
        return False
    return bytes_needed(slices) < torch.cuda.mem_get_info(device)[0] / 2


def _target_exams(cfg: PretrainConfig, layout: Literal["mrnet", "exams"]) -> Pool:
    """The exams of the training subjects, of which clips are drawn.

    Labels are not looked at, so those of MRNet's training exams that a classifier will validate on are among them.
    """
    exams = load_exams(
        layout, cfg.data_root, task=None, plane=cfg.plane, labels=cfg.labels, subject_pattern=cfg.subject_pattern
    )
    positions = _pooled(cfg, exams.positions)
    if not len(positions):
        raise UserError(f"{exams.root} has no exam of a training subject to pretrain on")
    log.info(f"pretraining on clips of {cfg.clip_frames} frames of {len(positions)} exams of {exams.name}")
    return Pool(
        samples=TwoClips(exams, positions, _views(cfg), cfg.clip_frames),
        count=len(positions),
        unit="exams",
        name=exams.name,
        hash=exams.key,
        epochs=cfg.target_epochs,
        steps=cfg.steps,
    )


def _pooled(cfg: PretrainConfig, positions: Callable[[str], np.ndarray]) -> np.ndarray:
    """Positions of whose images are used, ascending."""
    splits = ("train",) if cfg.pool == "train" else ("train", "val", "test")
    return np.sort(np.concatenate([positions(split) for split in splits]))


def _generalist_file(cfg: PretrainConfig, fabric: Fabric, folder: Path) -> str:
    """The natural-image encoder of a hierarchical run, pretrained first when it is not there yet."""
    out = folder / "generalist"
    if not (out / "result.json").exists():
        log.info(f"stage 1 of 2: generalist, in {out}")
        started = (out / "config.json").exists()
        run(
            replace(cfg, stage="generalist", out=out, resume=started, overwrite=False, keep_epochs=(), steps=None),
            fabric,
        )
    fabric.barrier()
    log.info(f"stage 2 of 2: {cfg.stage}, in {folder}")
    return str(out / "encoder.safetensors")


def _load(cfg: PretrainConfig, source: str) -> Start:
    """The encoder in a file, or timm's."""
    encoder = _build(cfg)
    return Start(encoder, list(load_weights(encoder, source, name=cfg.encoder, in_channels=1).lineage))


def _build(cfg: PretrainConfig) -> nn.Module:
    """The encoder of the stage, with random weights: of clips, but of images where natural images come first."""
    if cfg.of_exams and (cfg.stage != "generalist" or cfg.encoder in VIDEO_ENCODERS):
        encoder: nn.Module = build_clip_encoder(cfg.encoder, cfg.clip, cfg.norm)
    else:
        encoder = build_encoder(cfg.encoder, norm=cfg.norm)
    if cfg.checkpoint_activations:
        recompute_activations(encoder)
    return encoder


def _adopt(cfg: PretrainConfig, run: RunFolder, start: Start | None) -> dict[str, Any]:
    """A generalist that needs no training: foreign weights written as an encoder file of ours."""
    assert start is not None
    if run.main:
        _export(cfg, start.encoder, run.path, start.lineage, network="foreign")
    return {
        "stage": cfg.stage,
        "steps": 0,
        "source": cfg.generalist,
        "encoder": str(run.path / "encoder.safetensors"),
    }


def _byol(
    cfg: PretrainConfig,
    fabric: Fabric,
    run: RunFolder,
    pool: Pool,
    *,
    start: Start | None = None,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """One BYOL pretraining, from the encoder of `start` or from random weights."""
    torch.manual_seed(cfg.seed)
    encoder = _build(cfg)
    lineage = start.lineage if start else []
    if start is not None:
        encoder.load_state_dict(start.encoder.state_dict())
    if cfg.encoder not in VIDEO_ENCODERS:
        encoder = encoder.to(memory_format=torch.channels_last)  # in three dimensions it does not pay
    byol = Byol(
        encoder,
        feature_width(encoder),
        projector_hidden=cfg.projector_hidden,
        predictor_hidden=cfg.predictor_hidden,
        outputs=cfg.projection,
        norm=cfg.norm,
    )
    if fabric.world_size > 1 and cfg.norm == "batch" and fabric.device.type == "cuda":
        byol = convert_sync_batchnorm(byol)  # timm's keeps the activation of its fused norms

    share = -(-cfg.batch_size // fabric.world_size)
    order = Order(
        count=pool.count,
        batch=cfg.batch_size,
        micro=min(cfg.micro_batch_size or share, share),
        seed=cfg.seed,
        device=fabric.global_rank,
        devices=fabric.world_size,
    )
    _warn_of_small_batches(cfg, order)
    steps = pool.steps or max(1, round(pool.epochs * order.steps_per_epoch))
    warmup = round(cfg.warmup_epochs * order.steps_per_epoch)
    if warmup > steps // 2:
        log.info(f"warm-up shortened from {warmup} to {steps // 2} optimiser steps, half of this stage")
        warmup = steps // 2
    lr = cfg.lr * cfg.batch_size / 256
    wanted = "no" if cfg.checkpoint_activations else cfg.compile  # the compiler does not take their recomputation
    compile_method(byol, "networks", wanted, fabric, micro_batches=steps * order.micro_steps(0))
    model, optimiser = fabric.setup(byol, lars(byol, lr=lr, weight_decay=cfg.weight_decay, trust=cfg.trust))

    def move_target(step: int) -> None:
        byol.move_target(cosine_tau(step - 1, steps, cfg.tau) if cfg.tau_schedule == "cosine" else cfg.tau)

    keep = {round(epoch * order.steps_per_epoch): epoch for epoch in cfg.keep_epochs}
    if beyond := [epoch for step, epoch in keep.items() if step > steps]:
        log.warning(f"--keep-epochs {' '.join(map(str, beyond))} lie beyond this run's {steps} steps and are not kept")
    probe = Probe(dataset) if cfg.probe_every and dataset is not None else None
    stage: dict[str, Any] = {
        "stage": cfg.stage if start is None else "hierarchical",
        "data": {"name": pool.name, "hash": pool.hash, pool.unit: pool.count},
        "views": plain(cfg.views),
        "second_views": plain(cfg.second_views),
        "steps": steps,
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "versions": versions(),
    }
    if pool.unit == "exams":
        stage |= {"plane": cfg.plane, "clip_frames": cfg.clip_frames}

    def export(folder: Path, step: int) -> None:
        network = byol.target_encoder if cfg.export == "target" else byol.encoder
        if run.main:
            _export(cfg, network, folder, [*lineage, stage | {"steps": step}], network=cfg.export)

    last: Metrics = {}

    def observe(step: int, ending: bool) -> Metrics:
        if step in keep:
            export(run.path / f"epoch-{keep[step]}", step)
        metrics: Metrics = {}
        if step % cfg.log_every == 0 or ending:
            metrics |= collapse_metrics(byol.last_projections)
            _warn_of_collapse(metrics["projection_std"], step)
        if probe is not None and (step % cfg.probe_every == 0 or ending):
            metrics["probe_jaccard"] = probe(byol.target_encoder, fabric.device)
        last.update(metrics)
        return metrics

    if 0 in keep and not (cfg.resume and run.checkpoint.exists()):
        export(run.path / "epoch-0", 0)
    log.info(
        f"BYOL: {pool.count} {pool.unit}, {steps} optimiser steps of {order.batch} "
        f"({order.steps_per_epoch} per epoch, {order.micro_steps(0)} micro-batches each), learning rate {lr:.3g}"
    )
    began = time.perf_counter()
    speed = train(
        Training(
            fabric=fabric,
            run=run,
            model=model,
            optimiser=optimiser,
            order=order,
            data=pool.hash,
            samples=pool.samples,
            steps=steps,
            learning_rate=lambda step: lr * warmup_cosine(step, steps, warmup),
            after_step=move_target,
            observe=observe,
            columns=["projection_std", "effective_rank", "probe_jaccard"],
            workers=cfg.workers,
            on_device=pool.on_device,
            checkpoint_every=cfg.checkpoint_every,
            log_every=cfg.log_every,
        ),
        resume=cfg.resume,
    )
    export(run.path, steps)
    return {
        "stage": cfg.stage,
        pool.unit: pool.count,
        "steps": steps,
        "seed": cfg.seed,
        **last,
        "seconds": time.perf_counter() - began,
        f"{pool.unit}_per_second": speed,
        "encoder": str(run.path / "encoder.safetensors"),
    }


def _export(
    cfg: PretrainConfig, encoder: nn.Module, folder: Path, lineage: list[dict[str, Any]], network: Network
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    exams = cfg.of_exams and cfg.stage != "generalist"
    save_encoder(
        encoder,
        folder,
        name=cfg.encoder,
        in_channels=1,
        network=network,
        normalisation={"kind": "z-score", "over": "exam" if exams else "image"},
        spacing_mm=None,
        norm=cfg.norm,
        image_size=cfg.image_size,
        lineage=lineage,
    )


def _warn_of_small_batches(cfg: PretrainConfig, order: Order) -> None:
    if cfg.norm != "batch":
        return
    if order.micro < SMALLEST_BATCH:
        log.warning(
            f"batch norm sees {order.micro} samples at a time: accumulation averages gradients, not statistics; "
            f"use --micro-batch-size {SMALLEST_BATCH} or more, or --norm group"
        )
    if order.devices > 1 and not torch.cuda.is_available():
        log.warning("batch norm on several CPU processes takes each one's own statistics; --norm group does not")


def _warn_of_collapse(projection_std: float, step: int) -> None:
    if projection_std < FLOOR:
        log.warning(
            f"step {step}: the projections' standard deviation is {projection_std:.1%} of its spread value; "
            "the representation is collapsing: lower --lr or raise --tau"
        )
