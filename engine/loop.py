"""The training loop: gradient accumulation, optimiser steps, logging, checkpoints and interruption."""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, default_collate

from core.errors import UserError
from engine.accumulation import accumulate, accumulate_by_recomputation
from engine.checkpoint import read_checkpoint, write_checkpoint
from engine.failure import write_failure
from engine.optimisers import set_learning_rate
from engine.run_folder import RunFolder
from engine.sampler import MicroBatchSampler, StepSampler

log = logging.getLogger("fewslice")

Metrics = dict[str, float]


class Interrupted(SystemExit):
    """Raised after SIGINT or SIGTERM, once the run's state is saved; the exit code is 128 + the signal's number."""


@dataclass(kw_only=True)
class Training:
    """Everything that `train` works with."""

    fabric: Fabric
    run: RunFolder
    model: nn.Module
    """As set up by Fabric: `model(batch)` returns the mean loss over the samples of one micro-batch."""
    optimiser: optim.Optimizer
    sampler: StepSampler
    samples: Dataset[Any]
    """Indexed by `engine.sampler.Sample`."""
    data: str
    """Digest of the data; a run cannot be resumed on other data."""
    batch_loss: Callable[[Tensor], Tensor] | None = None
    """Loss of an effective batch from the outputs of `model` for all of its samples, which `model` then returns in
    place of a loss; None: the loss is a mean over samples."""
    steps: int
    learning_rate: Callable[[int], float]
    """Learning rate of optimiser step 0, 1, ..."""
    max_grad_norm: float | None = None
    """Gradients of a larger norm are scaled down to it; None: never."""
    after_step: Callable[[int], None] = lambda step: None
    """Called with the number of steps taken, after each real optimiser step (to move BYOL's target)."""
    observe: Callable[[int, bool], Metrics] = lambda step, last: {}
    """Called after each step with the number of steps taken and whether it was the last, to validate or to save;
    the metrics it returns go into `metrics.csv`."""
    columns: Sequence[str] = ()
    """Names of the metrics that `observe` may return."""
    renew: Callable[[int], None] = lambda step: None
    """Called with the number of steps taken before the first step of this process and before those of `renewed_at`, on
    all devices, to bring `samples` up to date with what was trained so far."""
    renewed_at: Collection[int] = ()
    workers: int = 0
    on_device: bool = False
    """Whether the samples are made on the device, without worker processes and pinned memory."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints; 0: only when the run is interrupted."""
    log_every: int = 10
    observed: Callable[[int], bool] = lambda step: False
    """Whether `observe` may return metrics, or keep a network, after this number of steps."""
    losses: list[Tensor] = field(default_factory=list, init=False)
    """Mean loss of each step since the last row of `metrics.csv`."""

    def state(self, step: int, losses: Sequence[float]) -> dict[str, Any]:
        """The content of a checkpoint, with the losses since the last row of metrics.

        The sampler has no state: samples and augmentation follow from the step.
        """
        return {
            "step": step,
            "data": self.data,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "losses": torch.tensor(losses),
        }

    def restore(self) -> int:
        """Load the checkpoint and return the number of optimiser steps taken before it was saved."""
        state = read_checkpoint(self.run.checkpoint)
        try:
            self.run.note_data(self.data, state["data"])
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
            torch.set_rng_state(state["torch_rng"])
            losses = state.get("losses", torch.empty(0))  # checkpoints of version 0.1 have none
            self.losses = list(losses.to(self.fabric.device).unbind())
            step = int(state["step"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{self.run.checkpoint} is not a checkpoint of this run ({type(error).__name__}: {reason}); "
                "start again with --overwrite"
            ) from error
        if not 0 <= step <= self.steps:
            raise UserError(f"{self.run.checkpoint} is of step {step}, the run has {self.steps}; use --overwrite")
        return step


def train(t: Training, *, resume: bool = False) -> float:
    """Take the remaining optimiser steps and return the training samples per second, validation not counted.

    The gradient of a step is the mean over its effective batch, accumulated over micro-batches; then come one
    optimiser step, one `after_step` and the clearing of the gradients (docs/methods.md, gradient accumulation).

    Raises:
        UserError: if the loss is not finite, naming the step; the last checkpoint stays.
        Interrupted: after SIGINT or SIGTERM, once the running step is done and saved.
    """
    t.run.note_data(t.data)
    if t.run.finished is not None and not t.run.checkpoint.exists():
        return 0.0  # the checkpoint was removed to save room
    first = _first_step(t, resume)
    t.run.open_metrics(["step", "epoch", "learning_rate", "loss", "samples_per_second", *t.columns], first)
    seen, began, paused = 0, time.perf_counter(), 0.0
    with _stop_on_signals() as signals, _progress(t, first) as advance:
        for step in range(first, t.steps):
            if step == first or step in t.renewed_at:
                t.renew(step)
                # Worker processes have the samples as they were when they started, and read ahead: new ones are started
                # for what is renewed, so that samples do not depend on how far ahead the old ones were.
                loader = iter(_loader(t, step, min((k for k in t.renewed_at if k > step), default=t.steps)))

            set_learning_rate(t.optimiser, t.learning_rate(step))

            micro_batches = t.sampler.micro_batches(step)
            weights = [weight for _, weight in micro_batches]
            batches = (_next_batch(loader) for _ in weights)
            if t.batch_loss is None:
                total = accumulate(t.fabric, t.model, batches, weights)
            else:
                total = accumulate_by_recomputation(t.fabric, t.model, t.batch_loss, batches, weights)
            t.losses.append(total)
            seen += sum(len(samples) for samples, _ in micro_batches)

            if t.max_grad_norm is not None:
                t.fabric.clip_gradients(t.model, t.optimiser, max_norm=t.max_grad_norm, error_if_nonfinite=False)
            # The average follows real optimiser steps only: it must not move after micro-batches, nor after a step
            # that the fp16 scaler skipped.
            if _optimiser_step(t):
                t.after_step(step + 1)
            t.optimiser.zero_grad(set_to_none=True)

            done = step + 1
            stopping = _asked_to_stop(t, done, signals)
            saving = stopping or bool(t.checkpoint_every and (done == t.steps or done % t.checkpoint_every == 0))
            # Rows follow from the step alone: a stop, or another interval of checkpoints, does not change them.
            due = done == t.steps or done % t.log_every == 0
            # Read before observing and saving, so that a network with a loss that is not finite is never kept.
            losses = _read_losses(t, done) if due or saving or t.observed(done) else []
            pause_began = time.perf_counter()
            metrics = t.observe(done, done == t.steps)
            paused += time.perf_counter() - pause_began
            if due or metrics:
                losses = losses or _read_losses(t, done)
                mean_loss = sum(losses) / len(losses)
                t.losses, losses = [], []
                speed = seen * t.sampler.devices / max(1e-9, time.perf_counter() - began - paused)
                row = {
                    "step": done,
                    "epoch": done / t.sampler.steps_per_epoch,
                    "learning_rate": t.learning_rate(step),
                    "loss": mean_loss,
                    "samples_per_second": speed,
                }
                t.run.record(row | metrics)
                advance(done, mean_loss, speed)
            if saving:
                _save(t, done, losses)
            if stopping and done < t.steps:
                raise _interrupted(t, done, signals)
    return seen * t.sampler.devices / max(1e-9, time.perf_counter() - began - paused)


def _first_step(t: Training, resume: bool) -> int:
    """Number of optimiser steps that an earlier process has taken and saved."""
    if resume and t.run.checkpoint.exists():
        return t.restore()
    if resume and (t.run.path / "metrics.csv").exists():
        log.warning(f"{t.run.path} holds no checkpoint: training starts again at step 0")
    t.run.forget_kept()
    return 0


def _loader(t: Training, first: int, last: int) -> DataLoader[Any]:
    """The micro-batches of steps `first` to `last - 1`."""
    workers = 0 if t.on_device else t.workers
    return DataLoader(
        t.samples,
        batch_sampler=MicroBatchSampler(t.sampler, first, last),
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # drawing from the global one would change dropout after a resume
        worker_init_fn=_leave_signals_to_the_loop,
        pin_memory=t.fabric.device.type == "cuda" and not t.on_device,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def _next_batch(loader: Iterator[Any]) -> Any:
    """The next batch.

    Raises:
        UserError: for a file that cannot be read, or a worker that died, in one sentence. torch puts the traceback of
            the worker process into the message.
    """
    try:
        return next(loader)
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError("a data loading process died, perhaps for want of memory: lower --workers") from error


def collate(samples: Any) -> Any:
    """Collate samples into a batch; a tensor or a tuple, as data sets with `__getitems__` return, is one already."""
    return samples if isinstance(samples, Tensor | tuple) else default_collate(samples)


def _leave_signals_to_the_loop(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too, but the running step still needs them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the loop, which waits for the step to end


def _optimiser_step(t: Training) -> bool:
    """One optimiser step; False when the fp16 scaler skipped it because a gradient overflowed."""
    scaler = getattr(t.fabric.strategy.precision, "scaler", None)
    before = scaler.get_scale() if scaler else None
    t.optimiser.step()
    return scaler is None or scaler.get_scale() >= before


def _read_losses(t: Training, done: int) -> list[float]:
    """Mean loss of each step since the last row, over all devices. The only place where the loop waits for the device.

    Raises:
        UserError: if one is not finite, after `failure.json` was written.
    """
    values = t.fabric.all_reduce(torch.stack(t.losses), reduce_op="mean").tolist()
    for step, value in enumerate(values, start=done - len(values)):
        if not math.isfinite(value):
            if t.run.main:
                batches = [samples for samples, _ in t.sampler.micro_batches(step)]
                write_failure(t.run.path, t.run.command, step + 1, value, batches)
            raise UserError(
                f"the loss became {value} at optimiser step {step + 1}; the last checkpoint is kept in "
                f"{t.run.path}: lower --lr, or try --precision fp32 "
                f"(python -m engine.replay {t.run.path} repeats that step)"
            )
    return values


def _save(t: Training, done: int, losses: Sequence[float]) -> None:
    if t.run.main:
        write_checkpoint(t.run.checkpoint, t.state(done, losses))
    t.fabric.barrier()


def _asked_to_stop(t: Training, done: int, signals: list[int]) -> bool:
    """Whether a signal arrived. Several processes must agree on the step; as that costs an exchange between them, they
    do so only every `log_every` steps."""
    if t.sampler.devices == 1:
        return bool(signals)
    if done % t.log_every:
        return False
    count = t.fabric.all_reduce(torch.tensor(float(len(signals)), device=t.fabric.device), reduce_op="sum")
    return bool(count > 0)


def _interrupted(t: Training, done: int, signals: list[int]) -> Interrupted:
    log.info(f"stopped at step {done} of {t.steps}, saved in {t.run.path}; continue with --resume")
    t.run.close()
    return Interrupted(128 + (signals[0] if signals else signal.SIGTERM))


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """A list that receives the number of a SIGINT or SIGTERM; a second signal acts as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for caught in (signal.SIGINT, signal.SIGTERM):
            previous[caught] = signal.signal(caught, note)
    except ValueError:  # not in the main thread: the program that started the thread handles signals
        previous.clear()
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(t: Training, first: int) -> Iterator[Callable[[int, float, float], None]]:
    """A bar with loss, throughput and time left on a terminal; about ten lines elsewhere."""
    console = Console(stderr=True)
    if t.run.main and console.is_terminal:
        text = TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.1f} samples/s")
        bar = Progress(BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn(), console=console)
        with bar:
            task = bar.add_task("", total=t.steps, completed=first, loss=math.nan, speed=0.0)
            yield lambda done, loss, speed: bar.update(task, completed=done, loss=loss, speed=speed)
        return
    reported = first

    def line(done: int, loss: float, speed: float) -> None:
        nonlocal reported
        if done == t.steps or done - reported >= t.steps / 10:
            reported = done
            log.info(f"step {done} of {t.steps}: loss {loss:.4f}, {speed:.1f} samples/s")

    yield line
