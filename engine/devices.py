"""Devices, precision and processes of a run, through Lightning Fabric."""

import logging
import os
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from timm.layers import convert_sync_batchnorm
from torch import nn

import core.messages
from core.errors import UserError
from engine.process_group import share_errors

log = logging.getLogger("fewslice")

MOST_PER_CORE = 16
"""Processes per core of a run on the CPU: more only take memory."""

Network = TypeVar("Network", bound=nn.Module)


def make_fabric(device: str = "auto", precision: str = "auto", devices: int = 1, nodes: int = 1) -> Fabric:
    """Start the processes of a run and return this one's Fabric.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        precision: "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16".
        devices: processes per node, one per device; under torchrun, torchrun's count is used.
        nodes: machines.

    Raises:
        UserError: if `device` is "cuda" and there is no GPU, `precision` is "fp16" on the CPU, there are fewer GPUs
            than `devices`, or Slurm has started another number of processes.
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
    available = torch.cuda.device_count() if device == "cuda" else MOST_PER_CORE * (os.cpu_count() or 1)
    if devices > available:
        what = "GPUs" if device == "cuda" else "processes on the CPU"
        raise UserError(f"--devices {devices}: this machine has room for {available} {what}; pass fewer")
    torch.set_float32_matmul_precision("high")
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
        plugins=_environment(devices, nodes),
    )
    fabric.launch()
    if fabric.world_size > 1:
        share_errors(fabric)
    return fabric


def _environment(devices: int, nodes: int) -> list[ClusterEnvironment] | None:
    """Who starts the processes: this process, Slurm, or (None) what Fabric finds, such as torchrun.

    A single process needs no cluster: Fabric would read Slurm's variables and wait for other processes. So would it
    in a batch job that starts Python without srun.
    """
    if devices * nodes == 1:
        return [LightningEnvironment()]
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_NTASKS" not in os.environ:
        return None
    variables = os.environ
    in_step = "SLURM_STEP_ID" in variables or "SLURM_STEPID" in variables  # set by srun alone
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS", variables["SLURM_NTASKS"])) if in_step else 1
    if tasks == 1:
        if nodes > 1 and "NODE_RANK" not in variables:
            raise UserError(f"--nodes {nodes}: under Slurm, start the command with srun, one task for each device")
        return [LightningEnvironment()]
    machines = int(variables.get("SLURM_STEP_NUM_NODES", variables.get("SLURM_NNODES", nodes)))
    if (tasks, machines) != (devices * nodes, nodes):
        raise UserError(
            f"--devices {devices} --nodes {nodes}: srun has started {tasks} tasks on {machines} nodes; "
            "start one task for each device"
        )
    variables["SLURM_NTASKS_PER_NODE"] = str(devices)  # a job without --ntasks-per-node lacks it
    return [SLURMEnvironment(auto_requeue=False)]


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
    core.messages.show_messages(main)
