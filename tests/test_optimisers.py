import pytest
import torch
from torch import Tensor, nn

from engine.optimisers import adamw, lars, set_learning_rate, warmup_cosine, warmup_periodic_cosine


def reference(p: Tensor, g: Tensor, buffer: Tensor, lr: float, decay: float, trust: float) -> tuple[Tensor, Tensor]:
    """One LARS step with the layer's rate clipped at the plain one (You et al. 2017, and LARC), in float64."""
    if p.ndim > 1:
        adapted_rate = trust * p.norm() / (g.norm() + decay * p.norm())
        g = min(adapted_rate / lr, torch.tensor(1.0)) * (g + decay * p)
    buffer = 0.9 * buffer + g
    return p - lr * buffer, buffer


@pytest.mark.parametrize("decay", [1e-2, 0.0])
def test_lars_against_a_reference(decay):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        network[4].weight.mul_(50)  # a layer whose own rate lies above the plain one
    optimiser = lars(network, lr=0.1, weight_decay=decay)
    expected = [p.detach().double() for p in network.parameters()]
    buffers = [torch.zeros_like(p) for p in expected]
    clipped = set()
    for step in range(3):
        lr = 0.1 * (step + 1)
        for group in optimiser.param_groups:
            group["lr"] = lr
        network(torch.randn(5, 1, 4, 4)).square().sum().mul(1e-3).backward()
        for k, p in enumerate(network.parameters()):
            if p.ndim > 1:
                adapted_rate = 0.02 * expected[k].norm() / (p.grad.double().norm() + decay * expected[k].norm())
                clipped.add(bool(adapted_rate > lr))
            expected[k], buffers[k] = reference(expected[k], p.grad.double(), buffers[k], lr, decay, 0.02)
        optimiser.step()
        optimiser.zero_grad()
        for p, e in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(p.data.double(), e, rtol=1e-5, atol=1e-6)
    assert clipped == {True, False}  # both branches were seen


def test_biases_and_norms_are_neither_decayed_nor_adapted():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimiser = lars(network, lr=0.5, weight_decay=1.0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimiser.step()
    for name in ("0.bias", "1.weight", "1.bias"):
        torch.testing.assert_close(network.get_parameter(name).data, before[name] - 0.5 * 0.1)


def test_frozen_parameters_are_left_out():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    optimiser = lars(network, lr=1, weight_decay=0.1)
    assert [len(group["params"]) for group in optimiser.param_groups] == [1, 0]


@pytest.mark.parametrize("scaled", [False, True])
def test_adamw_decays_weights_alone(scaled):
    """Without a gradient AdamW only decays: by lr x weight decay."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser = adamw(network, lr=0.1, weight_decay=0.5, scaled=scaled)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in network.named_parameters():
        decay = 0.05 if name in ("0.weight", "2.weight") else 0
        torch.testing.assert_close(p.detach(), before[name] * (1 - decay), msg=name)


def test_the_encoder_has_its_own_learning_rate():
    """The first step of Adam moves every parameter by its learning rate."""
    network = nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 1)})
    network["encoder"].bias.requires_grad_(False)
    optimiser = adamw(
        network, lr=1.0, weight_decay=0.0, scaled=False, encoder=network["encoder"], encoder_lr_factor=0.1
    )
    set_learning_rate(optimiser, 0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()
    moved = {name: (before[name] - p.detach()).max().item() for name, p in network.named_parameters()}
    expected = {"encoder.weight": 0.05, "encoder.bias": 0.0, "head.weight": 0.5, "head.bias": 0.5}
    assert moved == pytest.approx(expected, rel=1e-4)


def test_warmup_and_cosine_by_hand():
    assert [warmup_cosine(step, 12, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert warmup_cosine(8, 12, 4) == pytest.approx(0.5)
    assert warmup_cosine(12, 12, 4) == pytest.approx(0)
    assert warmup_cosine(11, 12, 4) > 0  # the last step still moves
    assert warmup_cosine(0, 10, 0) == 1
    assert warmup_cosine(0, 1, 1) == 1


def test_periodic_cosine_by_hand():
    """Two steps of warm-up, then five periods of four steps: 1, 0.854, 0.5, 0.146."""
    factors = [warmup_periodic_cosine(step, 22, 2) for step in range(22)]
    assert factors == pytest.approx([0.5, 1] + [1, 0.8535534, 0.5, 0.1464466] * 5)
    assert [k for k, factor in enumerate(factors) if factor == 1] == [1, 2, 6, 10, 14, 18]
    assert warmup_periodic_cosine(0, 1, 0) == 1
