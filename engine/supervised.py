"""Supervised training, common to the U-Net and the exam classifier."""

import copy
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.files import write_json
from core.program import program
from core.tables import read_table
from encoders.freeze import freeze
from encoders.layers import layer_factors
from engine.compiling import compile_method
from engine.config import SupervisedSettings
from engine.devices import channels_last, scales_gradients, synchronise_norms
from engine.ema import update_average
from engine.learning_curve import draw_learning_curve
from engine.loop import Metrics, Training, train
from engine.optimisers import adamw
from engine.run_folder import RunFolder
from engine.sampler import StepSampler

log = logging.getLogger("fewslice")


class Supervised(nn.Module):
    """A network and its loss, so that one call is the whole forward pass of a training step.

    Args:
        network: inputs (N, ...) -> logits.
        loss: logits and targets -> mean over the samples, or sums of each sample (see `Task.in_parts`).
        averaged: keep a moving average of the network as well. (torch's `AveragedModel` copies the weights at its
            first update, which gives another average.)
    """

    batch_loss: Callable[[Tensor], Tensor] | None = None
    """The loss of an effective batch from what `forward` gives for all of its samples; None: a mean over samples."""
    renewed_at: Collection[int] = ()
    """Optimiser steps before which `renew` changes the samples."""

    def __init__(self, network: nn.Module, loss: nn.Module, *, averaged: bool) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        self.average = copy.deepcopy(network).requires_grad_(False) if averaged else None

    @property
    def kept(self) -> nn.Module:
        """The network to evaluate and to save: the moving average if there is one."""
        return self.network if self.average is None else self.average

    def move_average(self, decay: float) -> None:
        """Move the average, if there is one, towards the network; call it after each real optimiser step."""
        if self.average is None:
            return
        update_average(self.average.parameters(), self.network.parameters(), decay)
        # The average is only evaluated, never trained: it needs averaged running statistics too.
        update_average(_statistics(self.average), _statistics(self.network), decay)

    def renew(self, step: int) -> None:
        """Bring the samples up to date after `step` optimiser steps; see `engine.loop.Training.renew`."""

    def metrics(self) -> Metrics:
        """Metrics of the steps since the last call."""
        return {}

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        """What `loss` gives for a micro-batch of inputs and targets."""
        inputs, targets = batch
        if inputs.ndim == 4:  # images; 5 for clips
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits = self.logits(inputs)
        # the loss in fp32 whatever the network's precision, or in fp64
        return self.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)

    def logits(self, inputs: Tensor) -> Tensor:
        """The network's logits in a training step, a separate method so that it can be compiled."""
        return self.network(inputs)


def _statistics(network: nn.Module) -> list[Tensor]:
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


class LossInParts(NamedTuple):
    """A loss of the effective batch that is no mean over samples, for batches that are computed in parts."""

    of_samples: nn.Module
    """Logits and targets -> sums of each sample (N, ...)."""
    of_batch: Callable[[Tensor], Tensor]
    """The sums of all samples of the effective batch -> its loss."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The parts of supervised training in which tasks differ."""

    loss: nn.Module
    """Logits and targets of an effective batch -> its loss."""
    in_parts: LossInParts | None = None
    """The same loss for micro-batches and several devices; None: it is a mean over samples."""
    supervised: Callable[[nn.Module], Supervised] | None = None
    """Makes the network and loss of a training step, if they are others than those of `Supervised`: of samples that
    have more than inputs and targets."""
    samples: Dataset[Any]
    """Inputs and targets, indexed by `engine.sampler.Sample`."""
    pretrained: nn.Module | None = None
    """The part of the network that is trained at the encoder's learning rate; None: its `encoder`."""
    data: str
    """Digest of the data; a run cannot be resumed on other data."""
    validate: Callable[[nn.Module], Metrics]
    """Metrics of a network on the validation split; called in the main process."""
    save: Callable[[nn.Module], None]
    """Write a network and its card; called in the main process."""
    columns: Sequence[str]
    """Names of the metrics that `validate` returns."""
    score: str
    """The metric that the learning curve shows, higher is better."""
    select: str
    """Description, for `kept.json`, of the weights that are kept."""
    rank: Callable[[Metrics], tuple[float, ...]] | None
    """From the metrics of a validation to a tuple that is larger for better weights; None keeps the last weights."""
    max_grad_norm: float | None = None
    figures: bool = True
    """Draw the learning curve."""


def fit(
    settings: SupervisedSettings,
    fabric: Fabric,
    run: RunFolder,
    network: nn.Module,
    task: Task,
    *,
    sampler: StepSampler,
    steps: int,
    evaluate_every: int,
    learning_rate: Callable[[int], float],
) -> tuple[float, nn.Module]:
    """Train a network in place, validate it regularly and save the weights that rank highest by `task.rank`.

    Args:
        settings: the run's configuration.
        fabric: where to compute.
        run: the run folder.
        network: the initialised network; parameters that require no gradient do not change.
        task: loss, samples and validation.
        sampler: the samples of each step.
        steps: optimiser steps.
        evaluate_every: optimiser steps between validations.
        learning_rate: learning rate of optimiser step 0, 1, ...

    Returns:
        Training samples per second, and the network of the last step: the moving average if there is one. Of a finished
        run without a checkpoint, which is not trained again, the network is the initial one.
    """
    network = channels_last(network)
    encoder: Any = getattr(network, "encoder", None)
    if settings.factor_of_encoder_lr == 0:
        # In evaluation mode as well: batch norm would go on to follow the images. A ModuleDict of encoder and decoder
        # is no part of the network itself, its children are.
        for part in [*task.pretrained.children()] if task.pretrained else [encoder] if encoder else []:
            freeze(part)
    if task.supervised:
        supervised = task.supervised(network)
    else:
        # In one piece the plain loss is faster; and micro-batches are computed twice for a loss in parts.
        in_parts = task.in_parts if sampler.micro_steps(0) > 1 or fabric.world_size > 1 else None
        loss = in_parts.of_samples if in_parts else task.loss
        supervised = Supervised(network, loss, averaged=settings.decay_of_average > 0)
        supervised.batch_loss = in_parts.of_batch if in_parts else None
    supervised = synchronise_norms(supervised, fabric, settings.norm)
    compile_method(supervised, "logits", settings.compiled, fabric, micro_batches=steps * sampler.micro_steps(0))
    adam = adamw(
        network,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        scaled=scales_gradients(fabric),
        encoder=task.pretrained or encoder,
        encoder_lr_factor=settings.factor_of_encoder_lr,
        layers=layer_factors(encoder, settings.encoder, settings.layer_decay) if settings.layer_decay < 1 else None,
    )
    model, optimiser = fabric.setup(supervised, adam)
    note = run.path / "kept.json"  # the metrics of the weights that are kept, on disk for a resumed run

    def improved(metrics: Metrics, last: bool) -> bool:
        if task.rank is None:
            return last
        return not note.exists() or task.rank(metrics) > task.rank(json.loads(note.read_text()))

    def validate(step: int, last: bool) -> Metrics:
        if not run.main:
            return dict.fromkeys(task.columns, 0.0)
        metrics = task.validate(supervised.kept)
        if improved(metrics, last):
            # Weights first, note second: after a kill between the two, the resumed run saves them again.
            task.save(supervised.kept)
            write_json(note, {"step": step, "selected_by": task.select} | metrics)
        return metrics

    def observe(step: int, last: bool) -> Metrics:
        validating = last or step % evaluate_every == 0
        metrics = validate(step, last) if validating else {}
        # only where a row of metrics is written anyway: they are of all steps since the row before
        return metrics | (supervised.metrics() if validating or step % settings.log_every == 0 else {})

    speed = train(
        Training(
            fabric=fabric,
            run=run,
            model=model,
            optimiser=optimiser,
            sampler=sampler,
            data=task.data,
            samples=task.samples,
            batch_loss=supervised.batch_loss,
            steps=steps,
            learning_rate=learning_rate,
            max_grad_norm=task.max_grad_norm,
            # In its first steps the average follows the network closely, or the random start would weigh too much.
            after_step=lambda step: supervised.move_average(min(settings.decay_of_average, step / (step + 10))),
            observe=observe,
            observed=lambda step: step % evaluate_every == 0,
            columns=task.columns,
            renew=supervised.renew,
            renewed_at=supervised.renewed_at,
            workers=settings.workers,
            checkpoint_every=settings.checkpoint_every,
            log_every=settings.log_every,
        ),
        resume=settings.resume,
    )
    if run.main and task.figures:
        metrics = read_table(run.path / "metrics.csv")
        draw_learning_curve(metrics, run.path / "learning_curve.png", score=task.score)
    return speed, supervised.kept


def say_start(settings: SupervisedSettings) -> None:
    """Log the encoder's start and learning rate; a hint at pretraining if it starts from random weights."""
    start = settings.init
    if start == "random":
        start = f"random weights; pass a pretrained one with --init FILE ({program('pretrain')} makes one)"
    factor = settings.factor_of_encoder_lr
    rate = f"learning rate {settings.lr * factor:.3g}, {factor:g} of the other layers' (--encoder-lr-factor)"
    if factor == 0:
        rate = "frozen: it is not trained, and its batch norm keeps its statistics"
    if factor > 0 and settings.layer_decay < 1:
        rate += f", times {settings.layer_decay:g} for each block towards the first (--layer-decay)"
    log.info(f"encoder: {start}" + (f"; {rate}" if factor != 1 or settings.layer_decay < 1 else ""))
