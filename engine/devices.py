"""Devices, precision and processes of a run, through Lightning Fabric."""

import logging
import os
import sys
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from timm.layers import convert_sync_batchnorm
from torch import nn

from core.errors import UserError

log = logging.getLogger("fewslice")

Network = TypeVar("Network", bound=nn.Module)


def make_fabric(device: str = "auto", precision: str = "auto", devices: int = 1, nodes: int = 1) -> Fabric:
    """Start the processes of a run and return this one's Fabric.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16".
        devices: processes per node, one per device; under torchrun, torchrun's count is used.
        nodes: machines.

    Raises:
        UserError: if `device` is "cuda" and there is no GPU, or `precision` is "fp16" on the CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use; try --device cpu")
    if precision == "auto":
        precision = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("--precision fp16 needs a GPU; use fp32 or bf16 on the CPU")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    torch.set_float32_matmul_precision("high")
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
        # a single process needs no cluster: Fabric would else read Slurm's variables and wait for other processes
        plugins=[LightningEnvironment()] if devices * nodes == 1 else None,
    )
    fabric.launch()
    return fabric


def channels_last(network: Network) -> Network:
    """Put the weights of a 2D network into the memory format in which convolutions are fastest."""
    if any(isinstance(module, nn.Conv3d) for module in network.modules()):
        return network  # in three dimensions it does not pay
    return network.to(memory_format=torch.channels_last)


def synchronise_norms(network: Network, fabric: Fabric, norm: str) -> Network:
    """Let batch norms of several GPUs share their statistics; torch cannot do so on the CPU."""
    if fabric.world_size > 1 and norm == "batch" and fabric.device.type == "cuda":
        return convert_sync_batchnorm(network)  # timm's keeps the activation of its fused norms
    return network


def scales_gradients(fabric: Fabric) -> bool:
    """Whether gradients are scaled against underflow (fp16)."""
    return getattr(fabric.strategy.precision, "scaler", None) is not None


def show_messages(main: bool = True) -> None:
    """Show fewslice's log messages on standard output; `main` is False in all processes but the first."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    log.setLevel(logging.INFO if main else logging.ERROR)
    if not any(getattr(handler, "stream", None) is sys.stdout for handler in log.handlers):
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
