"""`torch.compile` changes no result, and whoever cannot have it goes on without."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from engine import compiling
from engine.compiling import compile_method
from engine.devices import make_fabric
from pretrain.methods.byol import Byol

CPU = make_fabric("cpu", "fp32")


def byol() -> Byol:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Byol(encoder, 32, projector_hidden=16, predictor_hidden=16, outputs=8).double()


def two_micro_batches(network: Byol) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, gradients and state after the forward and backward of two micro-batches of different size.

    In float64, in which the operations of a compiler and the plain ones round far below what is compared.
    """
    losses = []
    for n in (6, 4):
        views = torch.randn(n, 2, 1, 12, 12, generator=torch.Generator().manual_seed(n)).double()
        loss = network(views)
        loss.backward()
        losses.append(loss.item())
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return sum(losses), gradients, network.state_dict()


@pytest.fixture
def tracing(monkeypatch):
    """Everything but the generated code, which takes a minute to build: capture, autograd, guards."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(tracing):
    plain, fused = byol(), byol()
    compile_method(fused, "networks", "yes", CPU, micro_batches=1)
    for ours, theirs in zip(two_micro_batches(fused), two_micro_batches(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one per size, none broken
    assert len(fused.last_projections) == 20


def _break(*_):
    raise RuntimeError("no compiler\nfound")


def _leave(graph, _):
    return graph.forward


def _refuse(function, dynamic):
    raise RuntimeError("no compiler\nfound")


@pytest.mark.parametrize(
    "compiler",
    [
        _refuse,
        functools.partial(torch.compile, backend=_break),
        functools.partial(torch.compile, backend=aot_autograd(fw_compiler=_leave, bw_compiler=_break)),
    ],
    ids=["torch.compile", "forward", "backward"],
)
@pytest.mark.slow
def test_a_failed_compilation_is_logged_once_and_the_network_runs_uncompiled(compiler, monkeypatch, caplog):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiler)
    plain, fused = byol(), byol()
    compile_method(fused, "networks", "yes", CPU, micro_batches=1)
    with caplog.at_level("WARNING", logger="fewslice"):
        losses = two_micro_batches(fused)
    for ours, theirs in zip(losses, two_micro_batches(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (line,) = [record.message for record in caplog.records if record.name == "fewslice"]
    assert "no compiler found" in line
    assert "--compile no" in line
    assert "\n" not in line


def test_a_lack_of_memory_is_no_failure_of_the_compiler(monkeypatch):
    def full(*tensors):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: full)
    network = byol()
    compile_method(network, "networks", "yes", CPU, micro_batches=1)
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.randn(4, 2, 1, 12, 12).double())


@pytest.mark.parametrize(
    ("wanted", "device", "devices", "micro_batches", "compiles"),
    [
        ("auto", "cpu", 1, 10**6, False),
        ("auto", "cuda", 1, compiling.PAYS_FROM - 1, False),
        ("auto", "cuda", 1, compiling.PAYS_FROM, True),
        ("auto", "cuda", 2, 10**6, False),
        ("yes", "cpu", 2, 1, True),
        ("no", "cuda", 1, 10**6, False),
    ],
)
def test_when_it_compiles(wanted, device, devices, micro_batches, compiles):
    network, fabric = byol(), SimpleNamespace(device=torch.device(device), world_size=devices)
    compile_method(network, "networks", wanted, fabric, micro_batches=micro_batches)
    assert ("networks" in vars(network)) == compiles
