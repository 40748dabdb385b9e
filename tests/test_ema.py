import math

import pytest
import torch
from torch import nn

from engine.ema import cosine_tau, update_average


def test_the_average_by_hand():
    target, online = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        target.weight.copy_(torch.tensor([[1.0, 2.0]]))
        target.bias.fill_(10)
        online.weight.copy_(torch.tensor([[3.0, -2.0]]))
        online.bias.fill_(0)
    update_average(target.parameters(), online.parameters(), 0.75)
    torch.testing.assert_close(target.weight.data, torch.tensor([[1.5, 1.0]]))
    torch.testing.assert_close(target.bias.data, torch.tensor([7.5]))
    assert online.weight.tolist() == [[3.0, -2.0]]
    update_average(target.parameters(), online.parameters(), 1.0)
    assert target.weight.tolist() == [[1.5, 1.0]]
    update_average(target.parameters(), online.parameters(), 0.0)
    assert target.weight.tolist() == online.weight.tolist()


def test_the_average_leaves_buffers_and_gradients_alone():
    target, online = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    online.running_mean.fill_(5)
    update_average(target.parameters(), online.parameters(), 0.5)
    assert target.running_mean.tolist() == [0, 0]
    assert target.weight.grad_fn is None
    assert target.weight.requires_grad


def test_tau_rises_along_half_a_cosine():
    assert cosine_tau(0, 100) == pytest.approx(0.99)
    assert cosine_tau(50, 100) == pytest.approx(0.995)
    assert cosine_tau(100, 100) == 1
    assert cosine_tau(25, 100, base=0.9) == pytest.approx(1 - 0.1 * (1 + math.sqrt(0.5)) / 2)
    taus = [cosine_tau(step, 100) for step in range(101)]
    assert taus == sorted(taus)
