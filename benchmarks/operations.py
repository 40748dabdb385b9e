"""Number of ATen operations of a step, and of those that wait for the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

WAITING = {f"aten::{name}" for name in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2")}
"""Operations that wait for the device, because Python needs a value or a size."""


class Operations(NamedTuple):
    """Counts from a profile of a function."""

    calls: int
    """Number of ATen operations, without those inside other operations."""
    waits: int
    """Number of operations of WAITING at any depth."""


def count_operations(code: Callable[[], Any]) -> Operations:
    """Run a function once under torch's profiler and count its operations, the backward pass included."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        code()
    seen = [event for event in profiler.events() or [] if event.name.startswith("aten::")]
    outer = [event for event in seen if event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::")]
    return Operations(calls=len(outer), waits=sum(event.name in WAITING for event in seen))
