"""Compile the networks of a training step with torch.compile, where that pays."""

import logging
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn

log = logging.getLogger("fewslice")

PAYS_FROM = 5000
"""Micro-batches of a run. An estimate (a minute or two of compiling, some 10 ms gained by each), not yet measured."""


def compile_method(
    module: nn.Module, name: str, wanted: Literal["auto", "yes", "no"], fabric: Fabric, *, micro_batches: int
) -> None:
    """Compile a method with torch.compile; on failure log one warning and run it uncompiled.

    Args:
        module: the method's owner; its state and the names in it do not change.
        name: name of a method that takes and returns tensors.
        wanted: "auto" compiles runs of `PAYS_FROM` micro-batches or more on one CUDA device; of several, synchronised
            norms would break the network into pieces too small to gain by it.
        fabric: where the module runs.
        micro_batches: number of calls in this run.
    """
    pays = micro_batches >= PAYS_FROM and fabric.device.type == "cuda" and fabric.world_size == 1
    if wanted == "no" or (wanted == "auto" and not pays):
        return
    import torch._functorch.config as functorch  # slow to import

    plain = getattr(module, name)
    fused = None

    def call(*tensors: Any) -> Any:
        nonlocal fused
        try:
            # a program for each size of a batch: a run has two or three
            fused = fused or torch.compile(plain, dynamic=False)
            with functorch.patch(force_non_lazy_backward_lowering=True):  # the backward as well, so that it fails here
                return fused(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many types; what is wrong with the network itself comes up again below
            reason = " ".join(str(error).split())[:200]
            log.warning(f"torch.compile failed ({reason}); going on without it, as with --compile no")
            setattr(module, name, plain)
            return plain(*tensors)

    setattr(module, name, call)
