"""Steps: what an optimiser step of BYOL and of the U-Net costs, and what the loop around it adds."""

import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import pinned
from benchmarks.operations import count_operations
from benchmarks.outcome import Outcome, Row, faster
from benchmarks.peers.networks import (
    LR,
    PEERS,
    TAU,
    WEIGHT_DECAY,
    Heads,
    Step,
    smp_loop,
    solo_learn,
    solo_learn_average,
)
from benchmarks.phantom import write_cines
from benchmarks.rounds import Clock, Rates, take_turns
from data.datasets import load_dataset
from data.samples import Slices, TwoViews
from data.views import ViewRecipe, Views
from encoders.build import build_encoder, feature_width
from encoders.clip import build_clip_encoder
from encoders.video import VIDEO_ENCODERS
from engine.config import RunSettings, plain
from engine.devices import make_fabric
from engine.ema import update_average
from engine.loop import Training, train
from engine.optimisers import adamw, lars
from engine.order import Draw, Order
from engine.run import RunFolder
from pretrain.byol import Byol
from segment.model import build_unet, jaccard_loss
from segment.training import Supervised

OURS = "fewslice"
CLASSES = 4
FORK = "fork" if sys.platform == "linux" else None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One size of the BYOL or U-Net step."""

    encoder: str
    size: int
    batch: int
    rounds: int
    """At most."""
    frames: int = 0
    """Of a clip; 0: single images."""
    clock: Clock = "cpu"
    """cpu: one pinned thread; wall: all cores."""

    def __str__(self) -> str:
        name = {"r3d_18": "R3D-18"}.get(self.encoder, self.encoder.replace("resnet", "ResNet-"))
        size = f"{self.frames}x{self.size}x{self.size}" if self.frames else f"{self.size}"
        return f"{name} at {size}, batch {self.batch}" + (", all cores" if self.clock == "wall" else "")

    def images(self) -> Tensor:
        """(batch, 1, ...) of noise."""
        frames = (self.frames,) if self.frames else ()
        return torch.randn(self.batch, 1, *frames, self.size, self.size)


BYOL = (
    Setting(encoder="resnet18", size=96, batch=16, rounds=5),
    Setting(encoder="resnet50", size=96, batch=8, rounds=3),
    Setting(encoder="resnet50", size=224, batch=4, rounds=3),
)
ALL_CORES = Setting(encoder="resnet18", size=96, batch=16, rounds=2, clock="wall")
VIDEO = Setting(encoder="r3d_18", size=112, frames=16, batch=2, rounds=1, clock="wall")
"""A step takes 20 s on one core: on all of them, and once."""
UNET = (
    Setting(encoder="resnet18", size=96, batch=16, rounds=5),
    Setting(encoder="resnet50", size=224, batch=4, rounds=2),
)


def run(*, rounds: int, quick: bool) -> Outcome:
    """Time all steps; `quick`: tiny ones, once."""
    torch.manual_seed(0)
    rows: list[Row] = []
    details: dict[str, Any] = {}
    heads = Heads(64, 64, 32) if quick else Heads()
    byol: tuple[Setting, ...] = (*BYOL, ALL_CORES)
    unet: tuple[Setting, ...] = UNET
    video = VIDEO
    if quick:
        byol, video, unet = (_tiny(BYOL[0]),), replace(_tiny(VIDEO), frames=8), (_tiny(UNET[0]),)
    for setting in byol:
        _against_peers(setting, rounds, heads, rows, details)
    _video(video, rounds, heads, rows, details)
    for setting in unet:
        _unet(setting, rounds, rows, details)
    _count(heads, rows, details)
    _average(1 if quick else rounds, heads, rows, details)
    with tempfile.TemporaryDirectory() as folder:
        _whole_loop(byol[0], 1 if quick else min(3, rounds), heads, Path(folder), rows, details)
        _between_epochs(1 if quick else min(5, rounds), Path(folder), rows, details)
    return Outcome(rows=rows, details=details)


def _tiny(setting: Setting) -> Setting:
    return replace(setting, size=32, batch=4, rounds=1)


def our_byol(encoder: nn.Module, features: int, heads: Heads) -> tuple[Byol, optim.Optimizer]:
    """Networks and optimiser as `pretrain.stages` makes them."""
    byol = Byol(
        encoder,
        features,
        projector_hidden=heads.projector,
        predictor_hidden=heads.predictor,
        outputs=heads.outputs,
    )
    return byol, lars(byol, lr=LR, weight_decay=WEIGHT_DECAY)


def our_step(
    byol: Callable[[Tensor], Tensor], optimiser: optim.Optimizer, move_target: Callable[[float], None], views: Tensor
) -> None:
    """The optimiser step of `engine.loop`, without the loop."""
    byol(views).backward()
    optimiser.step()
    move_target(TAU)
    optimiser.zero_grad(set_to_none=True)


def make_encoder(setting: Setting) -> tuple[nn.Module, int]:
    """One-channel encoder with random weights, and its width."""
    if setting.encoder in VIDEO_ENCODERS:
        clip_encoder = build_clip_encoder(setting.encoder)
        return clip_encoder, clip_encoder.num_features
    encoder = build_encoder(setting.encoder)
    return encoder, feature_width(encoder)


def _turns(contestants: Mapping[str, Callable[[], int]], setting: Setting, rounds: int) -> Rates:
    def timed() -> Rates:
        return take_turns(contestants, unit="samples/s", rounds=min(setting.rounds, rounds), clock=setting.clock)

    if setting.clock == "wall":
        return timed()
    with pinned():
        return timed()


def _byol_rates(setting: Setting, rounds: int, heads: Heads, peers: Mapping[str, Any]) -> Rates:
    """Samples per second of ours and of peers, all on the same weights and the same views."""
    encoder, features = make_encoder(setting)
    first, second = setting.images(), setting.images()
    both = torch.stack([first, second], dim=1)
    own = copy.deepcopy(encoder)
    if not setting.frames:
        own = own.to(memory_format=torch.channels_last)
    byol, optimiser = our_byol(own, features, heads)

    def ours() -> int:
        our_step(byol, optimiser, byol.move_target, both)
        return setting.batch

    def turn(step: Step) -> Callable[[], int]:
        def theirs() -> int:
            step(first, second)
            return setting.batch

        return theirs

    made = {name: turn(make(copy.deepcopy(encoder), features, heads)) for name, make in peers.items()}
    return _turns({OURS: ours, **made}, setting, rounds)


def _against_peers(setting: Setting, rounds: int, heads: Heads, rows: list[Row], details: dict[str, Any]) -> None:
    rates = _byol_rates(setting, rounds, heads, PEERS)
    fastest = max(PEERS, key=rates.median)
    ratio = rates.ratio(OURS, fastest)
    row = faster("step", f"BYOL step, {setting}", f"{fastest}, the fastest of three peers", ratio, 1.05)
    if not row.met:
        others = ", ".join(f"{rates.ratio(OURS, name).median:.3g}x {name}" for name in PEERS if name != fastest)
        why = f"{row.why}: all spend the step in the same convolutions ({others})"
        if fastest == "byol-pytorch":
            why += "; it merges both views' batch statistics, which changes the result"
        row = replace(row, why=why)
    rows.append(row)
    details[f"BYOL step, {setting}, samples/s"] = dict(rates.rates)


def _video(setting: Setting, rounds: int, heads: Heads, rows: list[Row], details: dict[str, Any]) -> None:
    naive = "plain loop (no peer has clips)"
    rates = _byol_rates(setting, rounds, heads, {naive: solo_learn})
    rows.append(faster("step", f"BYOL step, {setting}", naive, rates.ratio(OURS, naive)))
    details[f"BYOL step, {setting}, samples/s"] = dict(rates.rates)


def _unet(setting: Setting, rounds: int, rows: list[Row], details: dict[str, Any]) -> None:
    images, labels = setting.images(), torch.randint(CLASSES, (setting.batch, setting.size, setting.size))
    unet = build_unet(setting.encoder, CLASSES).to(memory_format=torch.channels_last)
    network = Supervised(unet, jaccard_loss("jaccard"), averaged=False)
    adam = adamw(unet.parameters(), lr=1e-4, weight_decay=0.0, scaled=False)
    plain_step = smp_loop(setting.encoder, CLASSES)

    def ours() -> int:
        network((images, labels)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return setting.batch

    def theirs() -> int:
        plain_step(images, labels)
        return setting.batch

    rates = _turns({OURS: ours, "plain SMP loop": theirs}, setting, rounds)
    rows.append(faster("step", f"U-Net step, {setting}", "plain SMP loop", rates.ratio(OURS, "plain SMP loop")))
    details[f"U-Net step, {setting}, images/s"] = dict(rates.rates)


def _count(heads: Heads, rows: list[Row], details: dict[str, Any]) -> None:
    """On the CPU, with small images: the counts depend on neither."""
    setting = Setting(encoder="resnet50", size=64, batch=2, rounds=1)
    encoder, features = make_encoder(setting)
    first, second = setting.images(), setting.images()
    byol, optimiser = our_byol(copy.deepcopy(encoder), features, heads)
    both = torch.stack([first, second], dim=1)
    plain_step = solo_learn(encoder, features, heads)

    def our_turn() -> None:
        our_step(byol, optimiser, byol.move_target, both)

    def their_turn() -> None:
        plain_step(first, second)

    counts = []
    for turn in (our_turn, their_turn):
        turn()  # makes the optimiser's state
        counts.append(count_operations(turn))
    limits = (("ATen operations", 1800), ("device synchronisations", 0))
    for (what, limit), own, theirs in zip(limits, *counts, strict=True):
        met = own <= limit
        rows.append(
            Row(
                benchmark="step",
                what=f"{what} in one ResNet-50 BYOL step",
                against=f"plain loop, {theirs}",
                target=f"<= {limit}",
                value=str(own),
                met=met,
                why="" if met else f"{own - limit} too many",
            )
        )
        details[what] = {OURS: own, "plain loop": theirs}


def _average(rounds: int, heads: Heads, rows: list[Row], details: dict[str, Any]) -> None:
    """The target's movement alone: encoder and projector of ResNet-50."""
    from lightly.models.utils import update_momentum

    encoder, features = make_encoder(Setting(encoder="resnet50", size=0, batch=0, rounds=0))
    byol, _ = our_byol(encoder, features, heads)
    pairs = [(byol.encoder, byol.target_encoder), (byol.projector, byol.target_projector)]
    repeats = 5

    def turn(move: Callable[[nn.Module, nn.Module], None], networks: list[tuple[nn.Module, nn.Module]]) -> Any:
        def moves() -> int:
            for _ in range(repeats):
                for online, target in networks:
                    move(online, target)
            return repeats

        return moves

    def ours(online: nn.Module, target: nn.Module) -> None:
        update_average(target.parameters(), online.parameters(), TAU)

    def copy_weights(online: nn.Module, target: nn.Module) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(target.parameters()), list(online.parameters()))

    contestants = {
        OURS: turn(ours, pairs),
        "copy": turn(copy_weights, copy.deepcopy(pairs)),
        "solo-learn loop": turn(lambda o, t: solo_learn_average(o, t, TAU), copy.deepcopy(pairs)),
        "lightly": turn(lambda o, t: update_momentum(o, t, m=TAU), copy.deepcopy(pairs)),
    }
    with pinned():
        rates = take_turns(contestants, unit="updates/s", rounds=rounds)
    copied = rates.ratio(OURS, "copy").median
    for peer, least in (("solo-learn loop", 4.0), ("lightly", 1.3)):
        row = faster("step", "EMA update, ResNet-50 and projector", peer, rates.ratio(OURS, peer), least)
        why = f"{row.why}: at {copied:.0%} of the rate of copying the same weights, which moves 2/3 of the bytes"
        rows.append(row if row.met else replace(row, why=why))
    details["EMA updates/s"] = dict(rates.rates)


def _whole_loop(
    setting: Setting, rounds: int, heads: Heads, folder: Path, rows: list[Row], details: dict[str, Any]
) -> None:
    """`engine.loop.train` on slices of a store, from the end of its first step to the end of its last, against the
    same steps on a batch that is there already."""
    write_cines(folder / "acdc", 4, frames=4 if setting.size < 96 else 8)  # patients 1 and 2 do not train
    dataset = load_dataset("acdc", folder / "acdc")
    slices = Slices(store=dataset.store, positions=dataset.positions("train"))
    samples = TwoViews(slices, Views(ViewRecipe(), setting.size))
    encoder, features = make_encoder(setting)
    byol, optimiser = our_byol(encoder.to(memory_format=torch.channels_last), features, heads)
    fabric = make_fabric("cpu", "fp32")
    model, optimiser = fabric.setup(byol, optimiser)
    steps = 5
    order = Order(count=len(slices), batch=setting.batch, micro=setting.batch)
    both = torch.stack([setting.images(), setting.images()], dim=1)

    def loop(number: int) -> float:
        ends: list[float] = []

        def after_step(step: int) -> None:
            byol.move_target(TAU)
            ends.append(time.process_time())

        with _run_folder(folder / f"loop-{number}") as run_folder:
            train(
                Training(
                    fabric=fabric,
                    run=run_folder,
                    model=model,
                    optimiser=optimiser,
                    order=order,
                    data=dataset.store.key,
                    samples=samples,
                    steps=steps,
                    learning_rate=lambda step: LR,
                    after_step=after_step,
                    checkpoint_every=0,
                )
            )
        return setting.batch * (steps - 1) / (ends[-1] - ends[0])

    def bare() -> float:
        began = time.process_time()
        for _ in range(steps - 1):
            our_step(byol, optimiser, byol.move_target, both)
        return setting.batch * (steps - 1) / (time.process_time() - began)

    rates: dict[str, list[float]] = {"loop": [], "step": []}
    with pinned():
        for number in range(rounds):  # the first step of each run of the loop warms up
            rates["loop"].append(loop(number))
            rates["step"].append(bare())
    ratio = Rates("samples/s", rates).ratio("loop", "step")
    row = faster("step", f"loop / step, {setting}", "own step on a fixed batch", ratio, 0.95)
    rows.append(row if row.met else replace(row, why=f"{row.why}: data and bookkeeping cost {1 - ratio.median:.1%}"))
    details[f"loop and step, {setting}, samples/s"] = rates


class _Trivial(Dataset[Tensor]):
    """Samples that cost nothing."""

    def __len__(self) -> int:
        return 7 * 16

    def __getitem__(self, draw: Draw | int) -> Tensor:
        return torch.zeros(8)


class _Arrivals(nn.Module):
    """A network that costs nothing and notes when each batch reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.times: list[float] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        return self.layer(batch).mean()


def _between_epochs(rounds: int, folder: Path, rows: list[Row], details: dict[str, Any]) -> None:
    """From the end of an epoch's last step to the arrival of the next epoch's first batch, wall time.

    Of trivial samples, 7 batches an epoch, in both contestants: `engine.loop`, and a DataLoader that is started anew
    with 8 workers for every epoch, as the reference code does.
    """
    boundary, inside, fresh = [], [], []
    for number in range(rounds):
        gaps = _gaps_of_loop(folder / f"epochs-{number}", epochs=10)
        boundary += [gap for step, gap in gaps if step % 7 == 0]
        inside += [gap for step, gap in gaps if step % 7]
        fresh += _gaps_of_workers(epochs=3)
    ours, theirs = (1000 * statistics.median(gaps) for gaps in (boundary, fresh))
    rows.append(
        Row(
            benchmark="step",
            what="time between epochs of 7 steps",
            against=f"DataLoader with 8 fresh workers, {theirs:.0f} ms",
            target="<= 5 ms",
            value=f"{ours:.2g} ms [{1000 * min(boundary):.2g}, {1000 * max(boundary):.2g}]; "
            f"between steps {1000 * statistics.median(inside):.2g} ms",
            met=ours <= 5,
        )
    )
    details["gaps, ms"] = {
        name: [1000 * gap for gap in gaps]
        for name, gaps in (("epochs", boundary), ("steps", inside), ("fresh workers", fresh))
    }


def _gaps_of_loop(folder: Path, epochs: int) -> list[tuple[int, float]]:
    """Number of steps taken, and the time until the next batch arrived."""
    samples, network, ends = _Trivial(), _Arrivals(), []
    fabric = make_fabric("cpu", "fp32")
    model, optimiser = fabric.setup(network, optim.SGD(network.parameters(), lr=0.0))
    with _run_folder(folder) as run_folder:
        train(
            Training(
                fabric=fabric,
                run=run_folder,
                model=model,
                optimiser=optimiser,
                order=Order(count=len(samples), batch=16, micro=16),
                data="",
                samples=samples,
                steps=7 * epochs,
                learning_rate=lambda step: 0.0,
                after_step=lambda step: ends.append(time.perf_counter()),
                checkpoint_every=0,
            )
        )
    return [
        (step, arrival - end)
        for step, (end, arrival) in enumerate(zip(ends[:-1], network.times[1:], strict=True), start=1)
    ]


def _gaps_of_workers(epochs: int) -> list[float]:
    warnings.filterwarnings("ignore", message="This DataLoader will create 8 worker processes")
    # spawned, as this process was, the workers would import torch first, which no user's would
    loader = DataLoader(_Trivial(), batch_size=16, shuffle=True, num_workers=8, multiprocessing_context=FORK)
    gaps = []
    ended = None
    for _ in range(epochs + 1):
        for number, _ in enumerate(loader):
            if number == 0 and ended is not None:
                gaps.append(time.perf_counter() - ended)
            ended = time.perf_counter()
    return gaps


def _run_folder(path: Path) -> RunFolder:
    return RunFolder(path, plain(RunSettings(out=path)), resume=False, overwrite=False)
