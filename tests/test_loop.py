import csv
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.errors import UserError
from encoders.norm import Norm, replace_norm
from engine.checkpoint import read_checkpoint
from engine.config import RunSettings
from engine.loop import Interrupted, Training, train
from engine.run_folder import RunFolder
from engine.sampler import Sample, StepSampler

CONFIG = {"out": None, "device": "cpu", "workers": 0, "checkpoint_every": 0, "log_every": 0}
COUNT, BATCH = 11, 4  # batches of 4, 4 and 3


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    torch.set_num_threads(1)
    return Fabric(accelerator="cpu", devices=1)


class Noise(Dataset):
    """An image and a target that depend on the sample's item and seed alone."""

    def __getitem__(self, draw: Sample) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * draw.item + draw.seed % 1000)
        image = torch.randn(1, 8, 8, generator=generator)
        return image, image.mean(dim=(1, 2))


class Regression(nn.Module):
    """A conv net and its mean loss."""

    def __init__(self, norm: Norm, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout))
        self.network = replace_norm(nn.Sequential(layers, nn.Flatten(), nn.Linear(72, 1)), norm)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        return (self.network(images) - targets).square().mean()


def training(
    fabric: Fabric,
    folder: Path,
    *,
    micro: int = BATCH,
    steps: int = 7,
    norm: Norm = "group",
    dropout: float = 0.0,
    resume: bool = False,
    **settings,
) -> tuple[Training, nn.Module]:
    network = Regression(norm, dropout)
    model, optimiser = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    t = Training(
        fabric=fabric,
        run=RunFolder(folder, RunSettings(resume=resume)),
        model=model,
        optimiser=optimiser,
        sampler=StepSampler(count=COUNT, batch_size=BATCH, micro_batch_size=micro, seed=1),
        samples=Noise(),
        steps=steps,
        learning_rate=lambda step: 0.1 / (1 + step),
        **({"data": "noise", "columns": ["seen"], "log_every": 2, "checkpoint_every": 3} | settings),
    )
    return t, network


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def finish(t: Training, resume: bool = False) -> None:
    train(t, resume=resume)
    t.run.close()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_accumulated_equals_one_large_batch(fabric, tmp_path, norm):
    """Seven steps, of which the third and the sixth have a smaller batch."""
    one, large = training(fabric, tmp_path / "large", norm=norm)
    finish(one)
    for micro in (1, 2, 3):
        many, small = training(fabric, tmp_path / f"micro-{micro}", norm=norm, micro=micro)
        finish(many)
        torch.testing.assert_close(weights(small), weights(large), rtol=0, atol=1e-5)
        for a, b in zip(rows(tmp_path / "large"), rows(tmp_path / f"micro-{micro}"), strict=True):
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-5)


def test_the_steps_against_a_plain_loop(fabric, tmp_path):
    t, network = training(fabric, tmp_path, micro=2)
    plain = Regression("group")
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(7):
        images, targets = zip(*(Noise()[draw] for draw in t.sampler.batch(step)), strict=True)
        sgd.param_groups[0]["lr"] = 0.1 / (1 + step)
        loss = (plain.network(torch.stack(images)) - torch.stack(targets)).square().mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    finish(t)
    torch.testing.assert_close(weights(network), weights(plain), rtol=0, atol=1e-5)
    recorded = {int(row["step"]): float(row["loss"]) for row in rows(tmp_path)}
    # rows at every second step and at the end, not at checkpoints; each the mean since the row before
    assert recorded.keys() == {2, 4, 6, 7}
    assert recorded[2] == pytest.approx((losses[0] + losses[1]) / 2, abs=1e-5)
    assert recorded[4] == pytest.approx((losses[2] + losses[3]) / 2, abs=1e-5)
    assert recorded[6] == pytest.approx((losses[4] + losses[5]) / 2, abs=1e-5)


def test_the_gradient_is_clipped_once_and_whole(fabric, tmp_path):
    t, network = training(fabric, tmp_path, micro=1, steps=1, max_grad_norm=1e-3)
    before = weights(network)
    finish(t)
    assert (weights(network) - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("micro", [1, 4])
def test_the_average_moves_once_per_optimiser_step(fabric, tmp_path, micro):
    moved, backward = [], []
    t, network = training(fabric, tmp_path, micro=micro, after_step=moved.append)
    network.register_forward_hook(lambda *_: backward.append(1))
    finish(t)
    assert moved == [1, 2, 3, 4, 5, 6, 7]
    assert len(backward) == {1: 26, 4: 7}[micro]  # 4 + 4 + 3 + 4 + 4 + 3 + 4 samples


def test_the_average_waits_for_a_step_that_the_scaler_skipped(fabric, tmp_path, monkeypatch):
    """In fp16 a gradient that overflows leaves the weights as they are; the average then has nothing to follow."""

    class Scaler:
        scales = iter([8, 8, 8, 4, 4, 8])  # before and after three steps; the second overflowed

        def get_scale(self) -> int:
            return next(self.scales)

    monkeypatch.setattr(fabric.strategy.precision, "scaler", Scaler(), raising=False)
    moved: list[int] = []
    t, _ = training(fabric, tmp_path, steps=3, after_step=moved.append)
    finish(t)
    assert moved == [1, 3]


def test_a_loss_that_is_no_number_stops_the_run(fabric, tmp_path):
    """The error names the step of the loss, before the broken network is validated, and no checkpoint is saved."""
    observed = []
    t, network = training(
        fabric,
        tmp_path,
        steps=9,
        log_every=4,
        observe=lambda step, last: observed.append(step) or {},
        after_step=lambda step: network.network[2].bias.data.fill_(float("nan")) if step == 5 else None,
    )
    with pytest.raises(UserError, match=rf"became nan at optimiser step 6;.*{re.escape(str(tmp_path))}.*--lr"):
        train(t)
    t.run.close()
    assert observed == [1, 2, 3, 4, 5]
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())


def stop_at(step: int, act: Callable[[], None]) -> Callable[[int, bool], dict[str, float]]:
    def observe(done: int, last: bool) -> dict[str, float]:
        if done == step:
            act()
        return {}

    return observe


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_continuation_is_bit_identical(fabric, tmp_path, number, code):
    """The signal comes while step 4 ends; step 5 is finished and saved, mid-epoch, with dropout's state."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole, expected = training(fabric, tmp_path / "whole", micro=3, norm="batch", dropout=0.5)
    finish(whole)

    observe = stop_at(4, lambda: os.kill(os.getpid(), number))
    t, _ = training(fabric, tmp_path / "run", micro=3, norm="batch", dropout=0.5, observe=observe)
    with pytest.raises(Interrupted) as stopped:
        train(t)
    assert stopped.value.code == code
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 5
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers

    torch.rand(5)  # whatever happened in between
    t, network = training(fabric, tmp_path / "run", micro=3, norm="batch", dropout=0.5, resume=True)
    finish(t, resume=True)
    assert torch.equal(weights(network), weights(expected))
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, expected.get_buffer(name))
    rows_of_both = [
        [{name: value for name, value in row.items() if name != "samples_per_second"} for row in rows(folder)]
        for folder in (tmp_path / "run", tmp_path / "whole")
    ]
    assert [row["step"] for row in rows_of_both[0]] == ["2", "4", "6", "7"]
    assert rows_of_both[0] == rows_of_both[1]


def test_a_signal_in_the_last_step_changes_nothing(fabric, tmp_path):
    observe = stop_at(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    t, _ = training(fabric, tmp_path, observe=observe)
    finish(t)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["step"] == 7


def test_resuming_a_finished_run_keeps_its_weights(fabric, tmp_path):
    t, expected = training(fabric, tmp_path)
    finish(t)
    t, network = training(fabric, tmp_path, resume=True)
    finish(t, resume=True)
    assert torch.equal(weights(network), weights(expected))


@pytest.mark.slow
def test_loading_processes_change_nothing_and_ignore_interrupts(fabric, tmp_path):
    """Ctrl-C in a terminal reaches the loading processes as well; the step under way still gets its samples."""

    def interrupt_all() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    plain, expected = training(fabric, tmp_path / "plain", micro=2)
    finish(plain)
    t, _ = training(fabric, tmp_path / "run", micro=2, workers=1, observe=stop_at(2, interrupt_all))
    with pytest.raises(Interrupted):
        train(t)
    t, network = training(fabric, tmp_path / "run", micro=2, workers=1, resume=True)
    finish(t, resume=True)
    assert torch.equal(weights(network), weights(expected))


def test_a_run_is_not_continued_on_other_data(fabric, tmp_path):
    t, _ = training(fabric, tmp_path / "run")
    finish(t)
    t, _ = training(fabric, tmp_path / "run", resume=True, data="other noise")
    with pytest.raises(UserError, match=r"on other data, labels or splits .*noise, now other noise.*--data-root"):
        train(t, resume=True)
