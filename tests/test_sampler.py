from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest

from engine.sampler import MicroBatchSampler, StepSampler


def items(sampler: StepSampler, step: int) -> list[int]:
    return [draw.item for draw in sampler.batch(step)]


def test_an_epoch_shows_every_item_once_and_ends_with_the_smaller_batch():
    sampler = StepSampler(count=10, batch_size=4, micro_batch_size=4)
    assert sampler.steps_per_epoch == 3
    windows = [items(sampler, step) for step in range(6)]
    assert [len(window) for window in windows] == [4, 4, 2, 4, 4, 2]
    first, second = list(chain(*windows[:3])), list(chain(*windows[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second  # shuffled anew
    assert first == np.random.default_rng((0, 0)).permutation(10).tolist()


def test_wrapping_runs_on_into_the_next_permutation():
    sampler = StepSampler(count=3, batch_size=5, micro_batch_size=5, wrap=True)
    drawn = list(chain(*(items(sampler, step) for step in range(6))))
    assert len(drawn) == 30
    assert all(sorted(drawn[k : k + 3]) == [0, 1, 2] for k in range(0, 30, 3))


def test_no_two_samples_share_their_augmentation_seed():
    sampler = StepSampler(count=50, batch_size=16, micro_batch_size=4, seed=3)
    seeds = [draw.seed for step in range(40) for draw in sampler.batch(step)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    other = StepSampler(count=50, batch_size=16, micro_batch_size=4, seed=4)
    assert (
        sampler.batch(0) == StepSampler(count=50, batch_size=16, micro_batch_size=4, seed=3).batch(0) != other.batch(0)
    )


def test_micro_batches_by_hand():
    sampler = StepSampler(count=11, batch_size=7, micro_batch_size=3)
    assert [(len(draws), weight) for draws, weight in sampler.micro_batches(0)] == [(3, 3 / 7), (3, 3 / 7), (1, 1 / 7)]
    assert [(len(draws), weight) for draws, weight in sampler.micro_batches(1)] == [(3, 3 / 4), (1, 1 / 4)]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 5])
def test_shares_are_disjoint_complete_and_weighted_by_their_samples(devices, wrap):
    for count, batch, micro in product((1, 7, 30), (1, 4, 13), (1, 3, 64)):
        whole = StepSampler(count=count, batch_size=batch, micro_batch_size=micro, wrap=wrap, devices=devices)
        samplers = [replace(whole, device=device) for device in range(devices)]
        for step in range(2 * whole.steps_per_epoch):
            window = whole.batch(step)
            per_device = [sampler.micro_batches(step) for sampler in samplers]
            assert {len(parts) for parts in per_device} == {whole.micro_steps(step)}
            real = [draws for parts in per_device for draws, weight in parts if weight]
            assert sorted(chain(*real)) == sorted(window)
            assert max(map(len, real)) <= micro
            # a sample weighs 1 / window in the mean over devices
            for draws, weight in chain(*per_device):
                assert weight in (0, pytest.approx(len(draws) * devices / len(window)))
            assert sum(weight for _, weight in chain(*per_device)) == pytest.approx(devices)


def test_a_device_without_samples_repeats_one_at_weight_zero():
    sampler = StepSampler(count=9, batch_size=4, micro_batch_size=2, device=2, devices=4)
    assert len(sampler.batch(2)) == 1
    assert sampler.micro_batches(2) == [(sampler.batch(2), 0.0)]


def test_a_last_batch_below_a_quarter_joins_the_one_before():
    """130 items in batches of 128: one step of 130 and not 128, 2, 128, 2, in equal micro-batches."""
    sampler = StepSampler(count=130, batch_size=128, micro_batch_size=128)
    assert (sampler.steps_per_epoch, sampler.merged) == (1, 2)
    assert sorted(items(sampler, 1)) == list(range(130))
    assert [(len(part), weight) for part, weight in sampler.micro_batches(0)] == [(65, 0.5), (65, 0.5)]
    several = StepSampler(count=19, batch_size=8, micro_batch_size=3)
    assert [len(several.batch(step)) for step in range(4)] == [8, 8, 3, 8]  # 3 of 8 are a batch of their own
    several = replace(several, count=17)
    assert [len(several.batch(step)) for step in range(4)] == [8, 9, 8, 9]
    assert sorted(items(several, 2) + items(several, 3)) == list(range(17))
    seeds = [draw.seed for step in range(6) for draw in several.batch(step)]
    assert len(set(seeds)) == 51
    shared = [replace(several, device=device, devices=2).micro_batches(1) for device in range(2)]
    assert [[len(part) for part, _ in parts] for parts in shared] == [[3, 2], [3, 1]]
    assert sum(weight for parts in shared for _, weight in parts) == pytest.approx(2)
    alone = StepSampler(count=1, batch_size=8, micro_batch_size=8)
    assert [len(alone.batch(step)) for step in range(2)] == [1, 1]  # no batch before it
    assert [len(replace(several, wrap=True).batch(step)) for step in range(4)] == [8] * 4


def test_the_batch_is_the_same_for_any_devices_and_micro_batches():
    one = StepSampler(count=23, batch_size=6, micro_batch_size=6, seed=5)
    other = StepSampler(count=23, batch_size=6, micro_batch_size=1, seed=5, device=1, devices=3)
    assert [one.batch(step) for step in range(9)] == [other.batch(step) for step in range(9)]


@pytest.mark.parametrize("count", [10, 9, 17])
def test_a_resumed_pass_goes_on_where_the_whole_one_was(count):
    """Also with last batches that join the ones before: 9 and 17 items in batches of 8."""
    sampler = StepSampler(count=count, batch_size=8 if count % 2 else 4, micro_batch_size=3)
    whole = list(MicroBatchSampler(sampler, 0, 7))
    before = sum(sampler.micro_steps(step) for step in range(5))
    assert whole[before:] == list(MicroBatchSampler(sampler, 5, 7))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        StepSampler(count=0, batch_size=4, micro_batch_size=4)
