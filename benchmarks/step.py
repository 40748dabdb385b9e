"""The cost of an optimiser step of BYOL and of the U-Net, and of the loop around it."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.loop import loop_cost, time_between_epochs
from benchmarks.machine import pinned
from benchmarks.operations import count_operations
from benchmarks.outcome import Outcome, Row, faster
from benchmarks.peers.networks import PEERS, TAU, Heads, smp_loop, solo_learn, solo_learn_average
from benchmarks.rounds import Rates, counted, take_turns
from benchmarks.training import CLASSES, Setting, make_encoder, our_byol, our_step, our_unet
from engine.ema import update_average

OURS = "fewslice"
BYOL = (
    Setting(encoder="resnet18", size=96, batch=16, rounds=5),
    Setting(encoder="resnet50", size=96, batch=8, rounds=3),
    Setting(encoder="resnet50", size=224, batch=4, rounds=3),
)
ALL_CORES = Setting(encoder="resnet18", size=96, batch=16, rounds=2, clock="wall")
VIDEO = Setting(encoder="r3d_18", size=112, frames=16, batch=2, rounds=1, clock="wall")
"""A step takes 20 s on one core, so all cores are used, and one round."""
UNET = (
    Setting(encoder="resnet18", size=96, batch=16, rounds=5),
    Setting(encoder="resnet50", size=224, batch=4, rounds=2),
)


def run(*, rounds: int, quick: bool) -> Outcome:
    """Time all steps; `quick`: tiny ones, one round."""
    torch.manual_seed(0)
    outcome = Outcome()
    heads = Heads(64, 64, 32) if quick else Heads()
    byol, video, unet = [*BYOL, ALL_CORES], VIDEO, list(UNET)
    if quick:
        byol, video, unet = [BYOL[0].tiny()], VIDEO.tiny(), [UNET[0].tiny()]
    for setting in (*byol, video):
        _byol(setting, rounds, heads, outcome)
    for setting in unet:
        _unet(setting, rounds, outcome)
    _count(heads, outcome)
    _average(rounds, heads, outcome)
    with tempfile.TemporaryDirectory() as folder:
        loop_cost(byol[0], min(3, rounds), heads, Path(folder), outcome)
        time_between_epochs(min(5, rounds), Path(folder), outcome)
    return outcome


def _turns(contestants: Mapping[str, Callable[[], int]], setting: Setting, rounds: int) -> Rates:
    with pinned() if setting.clock == "cpu" else nullcontext():
        return take_turns(contestants, unit="samples/s", rounds=min(setting.rounds, rounds), clock=setting.clock)


def _byol(setting: Setting, rounds: int, heads: Heads, outcome: Outcome) -> None:
    """Compare fewslice with its peers, or for clips with a plain loop; all have the same weights and the same views."""
    peers = {"plain loop (no peer has clips)": solo_learn} if setting.frames else PEERS
    encoder, features = make_encoder(setting.encoder)
    first, second = setting.images(), setting.images()
    both = torch.stack([first, second], dim=1)
    byol, optimiser = our_byol(setting.layout(copy.deepcopy(encoder)), features, heads)
    turns = {OURS: counted(setting.batch, our_step, byol, optimiser, byol.move_target, both)}
    for name, make_step in peers.items():
        turns[name] = counted(setting.batch, make_step(copy.deepcopy(encoder), features, heads), first, second)
    rates = _turns(turns, setting, rounds)
    fastest = max(peers, key=rates.median)
    others = ", ".join(f"{rates.ratio(OURS, name).median:.3g}x {name}" for name in peers if name != fastest)
    why = f"all spend the step in the same convolutions ({others})"
    if fastest == "byol-pytorch":
        why += "; it merges both views' batch statistics, which changes the result"
    against, at_least = (fastest, None) if setting.frames else (f"{fastest}, the fastest of three peers", 1.05)
    row = faster(f"BYOL step, {setting}", against, rates.ratio(OURS, fastest), at_least, because=why)
    outcome.add(row, f"BYOL step, {setting}, samples/s", dict(rates.rates))


def _unet(setting: Setting, rounds: int, outcome: Outcome) -> None:
    images, labels = setting.images(), torch.randint(CLASSES, (setting.batch, setting.size, setting.size))
    network, our_update = our_unet(setting)
    peer = "plain SMP loop"
    turns = {
        OURS: counted(setting.batch, lambda: our_update(network((images, labels)))),
        peer: counted(setting.batch, smp_loop(setting.encoder, CLASSES), images, labels),
    }
    rates = _turns(turns, setting, rounds)
    row = faster(f"U-Net step, {setting}", peer, rates.ratio(OURS, peer))
    outcome.add(row, f"U-Net step, {setting}, images/s", dict(rates.rates))


def _count(heads: Heads, outcome: Outcome) -> None:
    """Count operations and synchronisations, on the CPU with small images: the counts depend on neither."""
    setting = Setting(encoder="resnet50", size=64, batch=2)
    encoder, features = make_encoder(setting.encoder)
    first, second = setting.images(), setting.images()
    byol, optimiser = our_byol(copy.deepcopy(encoder), features, heads)
    both = torch.stack([first, second], dim=1)
    counts = []
    for turn in (
        counted(1, our_step, byol, optimiser, byol.move_target, both),
        counted(1, solo_learn(encoder, features, heads), first, second),
    ):
        turn()  # creates the optimiser's state
        counts.append(count_operations(turn))
    limits = (("ATen operations", 1800), ("device synchronisations", 0))
    for (what, limit), ours, theirs in zip(limits, *counts, strict=True):
        why = "" if ours <= limit else f"{ours - limit} too many"
        row = Row(
            what=f"{what} in one ResNet-50 BYOL step", against=f"plain loop, {theirs}",
            target=f"<= {limit}", value=str(ours), met=not why, why=why,
        )  # fmt: skip
        outcome.add(row, what, {OURS: ours, "plain loop": theirs})


def _average(rounds: int, heads: Heads, outcome: Outcome) -> None:
    """Time the update of the target network alone: encoder and projector of ResNet-50."""
    from lightly.models.utils import update_momentum

    encoder, features = make_encoder("resnet50")
    byol, _ = our_byol(encoder, features, heads)
    pairs = [(byol.encoder, byol.target_encoder), (byol.projector, byol.target_projector)]
    repeats = 5

    def moves(move: Callable[[nn.Module, nn.Module], None], networks: list[tuple[nn.Module, nn.Module]]) -> None:
        for online, target in networks * repeats:
            move(online, target)

    def ours(online: nn.Module, target: nn.Module) -> None:
        update_average(target.parameters(), online.parameters(), TAU)

    @torch.no_grad()
    def copy_weights(online: nn.Module, target: nn.Module) -> None:
        torch._foreach_copy_(list(target.parameters()), list(online.parameters()))

    contestants: dict[str, Callable[..., None]] = {
        OURS: ours,
        "copy": copy_weights,
        "solo-learn loop": partial(solo_learn_average, tau=TAU),
        "lightly": partial(update_momentum, m=TAU),
    }
    turns = {name: counted(repeats, moves, move, copy.deepcopy(pairs)) for name, move in contestants.items()}
    with pinned():
        rates = take_turns(turns, unit="updates/s", rounds=rounds)
    copied = rates.ratio(OURS, "copy").median
    why = f"at {copied:.0%} of the rate of copying the same weights, which moves 2/3 of the bytes"
    what = "EMA update, ResNet-50 and projector"
    for peer, least in (("solo-learn loop", 4.0), ("lightly", 1.3)):
        row = faster(what, peer, rates.ratio(OURS, peer), least, because=why)
        outcome.add(row, "EMA updates/s", dict(rates.rates))
