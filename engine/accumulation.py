"""The gradient of an effective batch, accumulated over its micro-batches and devices."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor, nn

from encoders.build import frozen_statistics


def accumulate(fabric: Fabric, model: nn.Module, batches: Iterator[Any], weights: Sequence[float]) -> Tensor:
    """Add up the gradients of micro-batches whose loss is a mean over samples; return the loss of the whole batch.

    Args:
        fabric: where to compute.
        model: micro-batch -> mean loss over its samples, set up by Fabric.
        batches: this device's micro-batches.
        weights: share of each in the samples really in the batch (`StepSampler.micro_batches`), so that the sum of the
            gradients is that of the whole batch, whatever the sizes of its parts.
    """
    total = torch.zeros((), device=fabric.device)
    for k, weight in enumerate(weights):
        batch = fabric.to_device(next(batches))
        # Devices exchange gradients once per step, with the last micro-batch.
        with fabric.no_backward_sync(model, enabled=k < len(weights) - 1):
            loss = model(batch)
            fabric.backward(loss * weight)
        total += loss.detach() * weight
    return total


def accumulate_by_recomputation(
    fabric: Fabric,
    model: nn.Module,
    batch_loss: Callable[[Tensor], Tensor],
    batches: Iterator[Tensor],
    weights: Sequence[float],
) -> Tensor:
    """Add up the gradients of a loss that compares all samples of the effective batch with each other.

    All micro-batches are embedded without storing activations; the loss of all embeddings, from every device, gives its
    gradient with respect to each; then each micro-batch is embedded again, with the same random numbers, and that
    gradient propagated. The result is that of one large batch, as far as no layer uses statistics of its batch.

    Args:
        fabric: where to compute.
        model: micro-batch (n, ...) -> embeddings (n, ...), set up by Fabric.
        batch_loss: embeddings of the effective batch, in its order -> loss.
        batches: this device's micro-batches.
        weights: as in `accumulate`; 0 for a micro-batch that only takes part in the exchange of gradients.

    Source: Gao et al. 2021, Scaling deep contrastive learning batch size under memory limited setup (GradCache).
    """
    whole = len(weights) == 1  # activations of a batch in one piece are kept, not recomputed
    inputs, states, embeddings = [], [], []
    for _ in weights:
        inputs.append(next(batches))
        states.append(_random_state(fabric.device))
        with torch.set_grad_enabled(whole):
            embeddings.append(model(fabric.to_device(inputs[-1])))

    own = [part.detach() if weight else part.detach()[:0] for part, weight in zip(embeddings, weights, strict=True)]
    everyone = gather_samples(torch.cat(own)).requires_grad_()
    with torch.enable_grad():
        loss = batch_loss(everyone)
    (gradient,) = torch.autograd.grad(loss, everyone)
    # This device's share of the batch, in its micro-batches; the average over devices is to be the sum.
    parts = (gradient[fabric.global_rank :: fabric.world_size] * fabric.world_size).split([len(part) for part in own])

    for k, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        with fabric.no_backward_sync(model, enabled=k < len(weights) - 1):
            if not whole:
                _set_random_state(states[k], fabric.device)
            # running statistics have seen this micro-batch already
            with nullcontext() if whole else frozen_statistics(model):
                outputs = embeddings[k] if whole else model(fabric.to_device(inputs[k]))
                fabric.backward((outputs * part).sum() if weight else outputs.sum() * 0)
    return loss.detach()


@torch.no_grad()
def gather_samples(share: Tensor) -> Tensor:
    """The samples of all devices, in the order of the effective batch.

    Args:
        share: (n, ...) of this device: samples d, d + devices, d + 2 devices, ... of the batch on device d. Devices may
            hold different numbers of samples.
    """
    if not torch.distributed.is_initialized() or (devices := torch.distributed.get_world_size()) == 1:
        return share
    counts = [torch.empty((), dtype=torch.int64, device=share.device) for _ in range(devices)]
    torch.distributed.all_gather(counts, torch.tensor(len(share), device=share.device))
    longest = int(max(counts))
    padded = share.new_zeros(longest, *share.shape[1:])
    padded[: len(share)] = share
    gathered = [torch.empty_like(padded) for _ in range(devices)]
    torch.distributed.all_gather(gathered, padded)
    present = torch.arange(longest, device=share.device)[:, None] < torch.stack(counts)
    return torch.stack(gathered, dim=1)[present]


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)
