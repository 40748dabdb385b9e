"""Compile the networks of a training step with torch.compile if the run is long enough to gain by it."""

import logging
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn

log = logging.getLogger("fewslice")

PAYS_FROM = 5000
"""Micro-batches from which compiling saves time: an estimate, not measured (compiling takes one or two minutes, and
saves some 10 ms in each)."""


def compile_method(
    module: nn.Module, name: str, wanted: Literal["auto", "yes", "no"], fabric: Fabric, *, micro_batches: int
) -> None:
    """Compile a method with torch.compile; on failure log one warning and run it uncompiled.

    Args:
        module: the object whose method is compiled; its state and the names in it do not change.
        name: name of a method that takes and returns tensors.
        wanted: "auto" compiles runs of `PAYS_FROM` micro-batches or more on one CUDA device. On several, synchronised
            batch norms would split the network into pieces too small to gain by it.
        fabric: where the module runs.
        micro_batches: number of calls in this run.
    """
    pays = micro_batches >= PAYS_FROM and fabric.device.type == "cuda" and fabric.world_size == 1
    if wanted == "no" or (wanted == "auto" and not pays):
        return
    import torch._functorch.config as functorch  # slow to import

    plain = getattr(module, name)
    compiled = None

    def call(*tensors: Any) -> Any:
        nonlocal compiled
        try:
            # compiled again for each batch size, of which a run has two or three
            compiled = compiled or torch.compile(plain, dynamic=False)
            # the backward pass is compiled now as well, so that its failure is caught here
            with functorch.patch(force_non_lazy_backward_lowering=True):
                return compiled(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many types; an error in the network itself is raised again below
            reason = " ".join(str(error).split())[:200]
            log.warning(f"torch.compile failed ({reason}); going on without it, as with --compile no")
            setattr(module, name, plain)
            return plain(*tensors)

    setattr(module, name, call)
