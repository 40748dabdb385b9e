"""Freeze a part of a network: no gradients, and evaluation mode whatever the mode of the network around it."""

from functools import cache

from torch import nn


def freeze(module: nn.Module) -> None:
    """Keep the weights of a module and the running statistics of its batch norms as they are, in place.

    The names of its tensors do not change, and copies of it are frozen as well.
    """
    module.requires_grad_(False)
    if not isinstance(module, _Evaluated):
        module.__class__ = _evaluated_class(type(module))  # type: ignore[arg-type]
    module.eval()


class _Evaluated(nn.Module):
    def train(self, mode: bool = True) -> "_Evaluated":
        return super().train(False)


@cache
def _evaluated_class(kind: type) -> type:
    return type(f"Evaluated{kind.__name__}", (_Evaluated, kind), {})
