"""What makes a step fast and can be counted: no timing, so no noise."""

import copy

import pytest
import torch
from torch import nn, optim
from torch.utils.data import Dataset

from benchmarks.operations import count_operations
from encoders.build import build_encoder, feature_width
from engine.config import RunSettings
from engine.devices import make_fabric
from engine.ema import update_average
from engine.loop import Training, train
from engine.optimisers import adamw, lars
from engine.run_folder import RunFolder
from engine.sampler import Sample, StepSampler
from pretrain.methods.byol import Byol


@pytest.mark.slow
def test_operations_and_waits_of_a_resnet50_step():
    """A plain loop over parameters takes 3,835 operations and waits 171 times."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50")
    byol = Byol(encoder, feature_width(encoder), projector_hidden=64, predictor_hidden=64, outputs=32)
    optimiser = lars(byol, lr=0.1, weight_decay=1e-5)
    views = torch.randn(2, 2, 1, 32, 32)

    def step() -> None:
        byol(views).backward()
        optimiser.step()
        byol.move_target(0.99)
        optimiser.zero_grad(set_to_none=True)

    step()  # creates the momentum
    calls, waits = count_operations(step)
    assert 1000 < calls <= 1800
    assert waits == 0


def test_lars_and_the_average_take_the_same_operations_whatever_the_number_of_layers():
    counts = []
    for layers in (2, 12):
        network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        optimiser, target = lars(network, lr=0.1, weight_decay=1e-5), copy.deepcopy(network)
        for _ in range(2):
            network(torch.randn(3, 4)).sum().backward()
            optimiser.step()
        stepping = count_operations(optimiser.step)
        moving = count_operations(lambda t=target, n=network: update_average(t.parameters(), n.parameters(), 0.9))
        assert stepping.waits == moving.waits == 0
        counts.append(stepping.calls + moving.calls)
    assert counts[0] == counts[1] < 40


@pytest.mark.parametrize("scaled", [False, True], ids=["fused", "foreach"])
def test_adamw_equals_that_of_torch(scaled):
    """In float64: the gradient of a bias before a norm is rounding error, which Adam scales up."""
    torch.manual_seed(0)
    ours, reference = (nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).double() for _ in range(2))
    reference.load_state_dict(ours.state_dict())
    optimisers = [
        adamw(ours, lr=0.01, weight_decay=0.1, scaled=scaled),
        optim.AdamW(
            [
                {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in reference.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.01,
            foreach=False,
        ),
    ]
    for _ in range(5):
        images = torch.randn(2, 1, 6, 6, dtype=torch.float64)
        for network, optimiser in zip((ours, reference), optimisers, strict=True):
            optimiser.zero_grad()
            network(images).square().mean().backward()
            optimiser.step()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Ones(Dataset[torch.Tensor]):
    def __getitem__(self, draw: Sample) -> torch.Tensor:
        return torch.ones(3)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).mean()


def test_the_loop_waits_for_the_device_only_when_it_reports(tmp_path, monkeypatch):
    """Twice as many steps with the same number of reports cause no more waits."""
    read: list[int] = []
    tolist = torch.Tensor.tolist  # the profiler does not see it
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(1) or tolist(self))
    fabric = make_fabric("cpu", "fp32")

    def run(steps: int) -> None:
        network = Mean()
        model, optimiser = fabric.setup(network, optim.SGD(network.parameters(), lr=0.1))
        with RunFolder(tmp_path / f"{steps} steps", RunSettings()) as folder:
            train(
                Training(
                    fabric=fabric,
                    run=folder,
                    model=model,
                    optimiser=optimiser,
                    sampler=StepSampler(count=6, batch_size=4, micro_batch_size=2),
                    data="",
                    samples=Ones(),
                    steps=steps,
                    learning_rate=lambda step: 0.1,
                    checkpoint_every=0,
                    log_every=steps // 2,
                )
            )

    assert count_operations(lambda: run(10)).waits == count_operations(lambda: run(20)).waits
    assert len(read) == 4
