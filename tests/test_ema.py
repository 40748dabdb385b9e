import math

import pytest
import torch
from torch import nn

from engine.ema import Decay, chosen_tau, cosine_tau, update_average
from engine.supervised import Supervised


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


def test_the_share_of_the_start_by_hand():
    constant = Decay(0.9, 10)
    assert [constant.start_share(step) for step in (0, 1, 3)] == pytest.approx([1, 0.9, 0.729])
    rising = Decay(0.9, 2, "cosine")
    assert [rising(0), rising(1)] == pytest.approx([0.9, 0.95])
    assert rising.start_share(2) == pytest.approx(0.9 * 0.95)
    # the runs of the first studies with 0.99: 58 % after 106 steps, 45 % after 159, 0.1 % after 1,325
    shares = [Decay(0.99, steps, "cosine").start_share(steps) for steps in (106, 159, 1325)]
    assert shares == pytest.approx([0.584, 0.447, 0.0013], rel=0.02)


def test_the_share_is_what_the_average_holds():
    """A target of ones follows an online network of zeros: what is left of it is the share."""
    decay = Decay(0.8, 7, "cosine")
    target, online = torch.ones(1), torch.zeros(1)
    for step in range(7):
        update_average([target], [online], decay(step))
    assert target.item() == pytest.approx(decay.start_share(7), rel=1e-5)


@pytest.mark.parametrize(("schedule", "largest"), [("cosine", 0.99), ("constant", 0.996), ("constant", 0.999)])
def test_chosen_decay_rates_leave_at_most_one_percent(schedule, largest):
    for steps in [*range(19, 60), 100, 500, *range(880, 930), 1150, 1151, 4000, 5000]:
        tau = chosen_tau(steps, schedule, largest)
        assert 0.5 <= tau <= largest
        assert Decay(tau, steps, schedule).start_share(steps) <= 0.0101
    assert chosen_tau(3925, schedule, largest) == pytest.approx(largest if largest < 0.999 else 0.01 ** (1 / 3925))
    assert chosen_tau(2, schedule, largest) == 0.5
    assert chosen_tau(60, "cosine", 0.99) == pytest.approx(1 - 9.2 / 60)


def test_a_network_without_running_statistics_has_none_to_average():
    supervised = Supervised(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)), nn.MSELoss(), averaged=True)
    with torch.no_grad():
        supervised.average[0].weight.zero_()
    supervised.move_average(0.5)
    torch.testing.assert_close(supervised.average[0].weight, supervised.network[0].weight.detach() / 2)
