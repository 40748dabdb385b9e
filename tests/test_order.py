from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest

from engine.order import MicroBatches, Order


def items(order: Order, step: int) -> list[int]:
    return [draw.item for draw in order.window(step)]


def test_an_epoch_shows_every_item_once_and_ends_with_the_shorter_window():
    order = Order(count=10, batch=4, micro=4)
    assert order.steps_per_epoch == 3
    windows = [items(order, step) for step in range(6)]
    assert [len(window) for window in windows] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*windows[:3])), list(chain(*windows[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second  # shuffled anew
    assert first == np.random.default_rng((0, 0)).permutation(10).tolist()


def test_wrapping_runs_on_into_the_next_permutation():
    order = Order(count=3, batch=5, micro=5, wrap=True)
    drawn = list(chain(*(items(order, step) for step in range(6))))
    assert len(drawn) == 30
    assert all(sorted(drawn[k : k + 3]) == [0, 1, 2] for k in range(0, 30, 3))


def test_no_two_draws_share_the_seed_of_their_view():
    order = Order(count=50, batch=16, micro=4, seed=3)
    seeds = [draw.seed for step in range(40) for draw in order.window(step)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    other = Order(count=50, batch=16, micro=4, seed=4)
    assert order.window(0) == Order(count=50, batch=16, micro=4, seed=3).window(0) != other.window(0)


def test_micro_batches_by_hand():
    order = Order(count=11, batch=7, micro=3)
    assert [(len(draws), weight) for draws, weight in order.micro_batches(0)] == [(3, 3 / 7), (3, 3 / 7), (1, 1 / 7)]
    assert [(len(draws), weight) for draws, weight in order.micro_batches(1)] == [(3, 3 / 4), (1, 1 / 4)]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 5])
def test_shares_are_disjoint_complete_and_weighted_by_what_is_in_them(devices, wrap):
    for count, batch, micro in product((1, 7, 30), (1, 4, 13), (1, 3, 64)):
        whole = Order(count=count, batch=batch, micro=micro, wrap=wrap, devices=devices)
        orders = [replace(whole, device=device) for device in range(devices)]
        for step in range(2 * whole.steps_per_epoch):
            window = whole.window(step)
            per_device = [order.micro_batches(step) for order in orders]
            assert {len(parts) for parts in per_device} == {whole.micro_steps(step)}
            real = [draws for parts in per_device for draws, weight in parts if weight]
            assert sorted(chain(*real)) == sorted(window)
            assert max(map(len, real)) <= micro
            # a sample weighs 1 / window in the mean over devices
            for draws, weight in chain(*per_device):
                assert weight in (0, pytest.approx(len(draws) * devices / len(window)))
            assert sum(weight for _, weight in chain(*per_device)) == pytest.approx(devices)


def test_a_device_without_samples_repeats_one_at_weight_zero():
    order = Order(count=9, batch=4, micro=2, device=2, devices=4)
    assert len(order.window(2)) == 1
    assert order.micro_batches(2) == [(order.window(2), 0.0)]


def test_the_window_is_the_same_on_other_devices_and_micro_batches():
    one = Order(count=23, batch=6, micro=6, seed=5)
    other = Order(count=23, batch=6, micro=1, seed=5, device=1, devices=3)
    assert [one.window(step) for step in range(9)] == [other.window(step) for step in range(9)]


def test_a_resumed_pass_goes_on_where_the_whole_one_was():
    order = Order(count=10, batch=4, micro=3)
    whole = list(MicroBatches(order, 0, 7))
    before = sum(order.micro_steps(step) for step in range(5))
    assert whole[before:] == list(MicroBatches(order, 5, 7))


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Order(count=0, batch=4, micro=4)
