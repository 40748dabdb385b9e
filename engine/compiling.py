"""Compiling the networks of a training step (`torch.compile`), where that pays."""

import logging
from typing import Any, Literal

import torch
from torch import nn

log = logging.getLogger("fewslice")

PAYS_FROM = 5000
"""Micro-batches of a run: compiling takes a minute or more."""


def compile_method(
    module: nn.Module, name: str, wanted: Literal["auto", "yes", "no"], device: torch.device, *, micro_batches: int
) -> None:
    """Have a method of the module fused by torch.compile; it stays as it is where that fails, which one line then says.

    Args:
        module: its state, and the names in it, do not change.
        name: of a method that takes and returns tensors.
        wanted: "auto" compiles on CUDA, for runs of `PAYS_FROM` micro-batches or more.
        device: where it will run.
        micro_batches: calls of this run.
    """
    if wanted == "no" or (wanted == "auto" and (device.type != "cuda" or micro_batches < PAYS_FROM)):
        return
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    plain = getattr(module, name)
    fused = torch.compile(plain, dynamic=False)  # a program for each size of a batch: a run has two or three

    def call(*tensors: Any) -> Any:
        try:
            return fused(*tensors)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            log.warning(f"torch.compile failed ({reason}); going on without it, as with --compile no")
            setattr(module, name, plain)
            return plain(*tensors)

    setattr(module, name, call)
