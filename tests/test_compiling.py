"""`torch.compile` changes no result, and whoever cannot have it goes on without."""

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from engine import compiling
from engine.compiling import compile_method
from pretrain.byol import Byol

CPU = torch.device("cpu")


def byol() -> Byol:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Byol(encoder, 32, projector_hidden=16, predictor_hidden=16, outputs=8)


def two_micro_batches(network: Byol) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, gradients and state after the forward and backward of two micro-batches of different size."""
    losses = []
    for n in (6, 4):
        views = torch.randn(n, 2, 1, 12, 12, generator=torch.Generator().manual_seed(n))
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


def test_a_compiled_step_is_the_same_step(tracing):
    plain, fused = byol(), byol()
    compile_method(fused, "networks", "yes", CPU, micro_batches=1)
    for ours, theirs in zip(two_micro_batches(fused), two_micro_batches(plain), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one per size, none broken
    assert len(fused.last_projections) == 20


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(monkeypatch, caplog):
    def broken(function, dynamic):
        def call(*tensors):
            raise BackendCompilerFailed(None, RuntimeError("no compiler\nfound"), None)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    plain, fused = byol(), byol()
    compile_method(fused, "networks", "yes", CPU, micro_batches=1)
    with caplog.at_level("WARNING", logger="fewslice"):
        found = two_micro_batches(fused)
    for ours, theirs in zip(found, two_micro_batches(plain), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "no compiler found" in caplog.text
    assert "--compile no" in caplog.text


def test_only_the_compiler_is_forgiven(monkeypatch):
    def full(*tensors):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: full)
    network = byol()
    compile_method(network, "networks", "yes", CPU, micro_batches=1)
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.randn(4, 2, 1, 12, 12))
    assert not issubclass(torch.OutOfMemoryError, TorchDynamoException)


@pytest.mark.parametrize(
    ("wanted", "device", "micro_batches", "compiles"),
    [
        ("auto", "cpu", 10**6, False),
        ("auto", "cuda", compiling.PAYS_FROM - 1, False),
        ("auto", "cuda", compiling.PAYS_FROM, True),
        ("yes", "cpu", 1, True),
        ("no", "cuda", 10**6, False),
    ],
)
def test_when_it_compiles(wanted, device, micro_batches, compiles, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: asked.append(function))
    compile_method(byol(), "networks", wanted, torch.device(device), micro_batches=micro_batches)
    assert bool(asked) == compiles
