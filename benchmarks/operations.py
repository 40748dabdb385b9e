"""Operations of ATen in a step: how often Python and autograd call upon the device, and how often they wait for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

WAITING = {f"aten::{name}" for name in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2")}
"""Operations after which the program waits for a device: Python needs a value, or a size."""


class Operations(NamedTuple):
    """What a profile of some code shows."""

    calls: int
    """Operations of ATen, those within others not counted."""
    waits: int
    """Operations of WAITING, wherever they are."""


def count_operations(code: Callable[[], Any]) -> Operations:
    """Run the code once under torch's profiler, the backward pass included."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        code()
    seen = [event for event in profiler.events() or [] if event.name.startswith("aten::")]
    outer = [event for event in seen if event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::")]
    return Operations(calls=len(outer), waits=sum(event.name in WAITING for event in seen))
