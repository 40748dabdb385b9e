"""One segmentation run: the labelled subset, the U-Net, its training and its scores."""

import copy
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from scipy import ndimage
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from data.datasets import Dataset, load_dataset
from data.errors import UserError
from data.samples import LabelledViews, Slices, pooled_statistics
from data.splits import save_splits
from data.subsets import labelled_subset
from data.views import Views
from encoders.weights import LoadReport, load_into_unet
from engine.compiling import compile_method
from engine.config import plain
from engine.devices import make_fabric, scales_gradients, show_messages
from engine.ema import update_average
from engine.loop import Metrics, Training, train
from engine.optimisers import adamw, warmup_cosine
from engine.order import Order
from engine.run import RunFolder, write_json
from segment.config import SegmentConfig
from segment.evaluation import predict_split, score_split, split_dice
from segment.figures import learning_curve
from segment.model import ModelCard, build_unet, jaccard_loss, load_unet, save_unet

log = logging.getLogger("fewslice")


def run(cfg: SegmentConfig, fabric: Fabric | None = None, dataset: Dataset | None = None) -> dict[str, Any]:
    """Train on the labelled subset, score whole volumes, write `model.safetensors` and `result.json`.

    Args:
        cfg: all that the run is told.
        fabric: where to compute, when the caller has one.
        dataset: that of `load_run_dataset(cfg)`, when the caller has it open already.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)
    dataset = dataset or load_run_dataset(cfg)
    subset_seed = cfg.seed if cfg.subset_seed is None else cfg.subset_seed
    positions = labelled_subset(dataset.table, cfg.labelled_fraction, cfg.label_unit, subset_seed)
    for split in ("val", "test") if cfg.test else ("val",):  # before training, not after it
        if not len(dataset.positions(split, labelled=True)):
            raise UserError(
                f"{dataset.root} has no labelled volume in the {split} split to score; label a {split} subject"
            )
    labelled = dataset.table.iloc[positions]

    torch.manual_seed(cfg.seed)
    unet = build_unet(cfg.encoder, len(dataset.classes), cfg.norm)
    report = None if cfg.init == "random" else load_into_unet(unet, cfg.init, cfg.encoder)
    card = _card(cfg, dataset, positions, report)

    main = fabric.global_rank == 0
    with RunFolder(cfg.run_folder, plain(cfg), resume=cfg.resume, overwrite=cfg.overwrite, main=main) as run:
        fabric.barrier()
        if main:
            _save_subset(run.path, labelled, dataset)
        if cfg.init == "random":
            log.info("encoder: random weights; pass a pretrained one with --init FILE (python -m pretrain makes one)")
        subjects = labelled["subject"].nunique()
        log.info(
            f"{len(labelled)} labelled slices of {subjects} subjects, {cfg.steps} optimiser steps of {cfg.batch_size}"
        )
        began = time.perf_counter()
        speed, validated = _fit(cfg, fabric, run, unet, card, dataset, positions)
        result = {
            "split": "val",
            "init": cfg.init,
            "labelled_slices": len(labelled),
            "labelled_subjects": subjects,
            "steps": cfg.steps,
            "seed": cfg.seed,
            "subset_seed": subset_seed,
            "synthetic": dataset.synthetic,
        }
        if main:
            if cfg.test or not validated:  # else the kept network has made its predictions already
                unet, card = load_unet(run.path)
                unet.to(fabric.device).to(memory_format=torch.channels_last)
            predictions = validated or predict_split(unet, card, dataset, "val")
            result |= score_split(predictions, dataset, "val", run.path, figures=cfg.figures)
            if cfg.test:
                predictions = predict_split(unet, card, dataset, "test")
                result["test"] = score_split(predictions, dataset, "test", run.path / "test", figures=cfg.figures)
        result |= {"seconds": time.perf_counter() - began, "images_per_second": speed}
        run.write_result(result)
    fabric.barrier()
    return result


def load_run_dataset(cfg: SegmentConfig) -> Dataset:
    """The data set that a run's configuration names."""
    return load_dataset(cfg.dataset, cfg.data_root, subject_pattern=cfg.subject_pattern, splits_file=cfg.splits_file)


def _fit(
    cfg: SegmentConfig,
    fabric: Fabric,
    run: RunFolder,
    unet: nn.Module,
    card: ModelCard,
    dataset: Dataset,
    positions: np.ndarray,
) -> tuple[float, list[np.ndarray]]:
    """Train `unet` in place and write it.

    Returns:
        Training images per second, and the kept network's label maps of the validation split; none when they were
        made before the run was resumed.
    """
    slices = Slices(
        store=dataset.store,
        positions=positions,
        normalisation=cfg.normalisation,
        statistics=card.statistics,
        spacing_mm=cfg.spacing_mm,
    )
    share = -(-cfg.batch_size // fabric.world_size)
    order = Order(
        count=len(slices),
        batch=cfg.batch_size,
        micro=min(cfg.micro_batch_size or share, share),
        seed=cfg.seed,
        wrap=True,  # the same number of steps of the same size at every labelled fraction
        device=fabric.global_rank,
        devices=fabric.world_size,
    )
    network = Supervised(unet.to(memory_format=torch.channels_last), jaccard_loss(cfg.loss), averaged=cfg.ema > 0)
    if fabric.world_size > 1 and cfg.norm == "batch" and fabric.device.type == "cuda":
        network = convert_sync_batchnorm(network)
    compile_method(network, "logits", cfg.compile, fabric, micro_batches=cfg.steps * order.micro_steps(0))
    adam = adamw(unet.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, scaled=scales_gradients(fabric))
    model, optimiser = fabric.setup(network, adam)
    warmup = round(cfg.warmup * cfg.steps)
    best = _Kept(run.path / "kept.json")
    kept: list[np.ndarray] = []

    def observe(step: int, last: bool) -> Metrics:
        if step % cfg.evaluate_every and not last:
            return {}
        if not run.main:
            return {"validation_dice": 0.0}
        predictions = predict_split(network.best, card, dataset, "val")
        dice = split_dice(predictions, dataset, "val")
        if last if cfg.select == "last" else best.beaten_by(dice):
            save_unet(network.best, run.path, card)
            best.note(dice, step)
            kept[:] = predictions
        return {"validation_dice": dice}

    speed = train(
        Training(
            fabric=fabric,
            run=run,
            model=model,
            optimiser=optimiser,
            order=order,
            data=dataset.store.key,
            samples=LabelledViews(slices, Views(cfg.views, cfg.image_size)),
            steps=cfg.steps,
            learning_rate=lambda step: cfg.lr * warmup_cosine(step, cfg.steps, warmup),
            clip=cfg.clip,
            after_step=lambda step: network.move_average(min(cfg.ema, step / (step + 10))),
            observe=observe,
            columns=["validation_dice"],
            workers=cfg.workers,
            checkpoint_every=cfg.checkpoint_every,
            log_every=cfg.log_every,
        ),
        resume=cfg.resume,
    )
    if run.main and cfg.figures:
        metrics = pd.read_csv(run.path / "metrics.csv")
        learning_curve(metrics, run.path / "learning_curve.png", loss="loss", score="validation_dice")
    return speed, kept


class Supervised(nn.Module):
    """A network and its loss, so that one call is the whole forward of a training step.

    Args:
        network: images (N, 1, H, W) -> logits (N, C, H, W).
        loss: of logits and label maps.
        averaged: keep a moving average of the network beside it.
    """

    def __init__(self, network: nn.Module, loss: nn.Module, *, averaged: bool) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        self.average = copy.deepcopy(network).requires_grad_(False) if averaged else None

    @property
    def best(self) -> nn.Module:
        """The network to evaluate and to keep: the average where there is one."""
        return self.network if self.average is None else self.average

    def move_average(self, tau: float) -> None:
        """Move the average towards the network, the running statistics of its norms too; after every real step."""
        if self.average is not None:
            update_average(self.average.parameters(), self.network.parameters(), tau)
            update_average(_statistics(self.average), _statistics(self.network), tau)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of images (N, 1, H, W) with label maps (N, H, W)."""
        images, labels = batch
        return self.loss(self.logits(images.contiguous(memory_format=torch.channels_last)).float(), labels)

    def logits(self, images: Tensor) -> Tensor:
        """Of a training step: (N, 1, H, W) -> (N, C, H, W)."""
        return self.network(images)


def _statistics(network: nn.Module) -> list[Tensor]:
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


class _Kept:
    """The validation score of the weights that were kept, on disk so that a resumed run knows it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def beaten_by(self, score: float) -> bool:
        return not self.path.exists() or score > json.loads(self.path.read_text())["validation_dice"]

    def note(self, score: float, step: int) -> None:
        write_json(self.path, {"validation_dice": score, "step": step})


def _card(cfg: SegmentConfig, dataset: Dataset, positions: np.ndarray, report: LoadReport | None) -> ModelCard:
    if len(dataset.classes) < 2:
        raise UserError(f"{dataset.root} has no label maps; python -m pretrain needs none, segment does")
    return ModelCard(
        encoder=cfg.encoder,
        norm=cfg.norm,
        classes=list(dataset.classes),
        normalisation=cfg.normalisation,
        statistics=pooled_statistics(dataset.store, positions),
        spacing_mm=cfg.spacing_mm,
        mirror=cfg.mirror,
        one_piece=cfg.one_piece == "yes" or (cfg.one_piece == "auto" and _comes_in_one_piece(dataset, positions)),
        dataset=f"{dataset.name} {dataset.store.key}",
        init=cfg.init,
        lineage=report.lineage if report else [],
    )


def _comes_in_one_piece(dataset: Dataset, positions: np.ndarray) -> bool:
    """Whether the foreground of at least 99 % of the given labelled slices is one connected piece."""
    pieces = [ndimage.label(dataset.store.label(i) > 0)[1] for i in positions]
    marked = [count for count in pieces if count]
    return bool(marked) and sum(count == 1 for count in marked) >= 0.99 * len(marked)


def _save_subset(folder: Path, labelled: pd.DataFrame, dataset: Dataset) -> None:
    """Which slices carried labels, and which subject was in which split."""
    labelled[["subject", "group", "phase", "frame", "slice", "file"]].to_csv(
        folder / "labelled_slices.csv", index=False
    )
    save_splits(folder / "splits.json", dataset.splits)
