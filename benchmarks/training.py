"""The training steps and the training loop of fewslice, as the benchmarks run them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import FORK
from benchmarks.peers.networks import LR, TAU, WEIGHT_DECAY, Heads
from benchmarks.rounds import Clock
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.samples.slices import TwoViews
from data.slices import Slices, load_dataset
from encoders.build import build_clip_encoder, build_encoder, feature_width
from encoders.names import is_video
from engine.config import RunSettings
from engine.devices import make_fabric
from engine.loop import Training, collate, train
from engine.optimisers import adamw, lars
from engine.run_folder import RunFolder
from engine.sampler import StepSampler
from engine.supervised import Supervised
from pretrain.methods.byol import Byol
from segment.model import build_unet, segmentation_loss

CLASSES = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Size of a BYOL or U-Net step."""

    encoder: str
    size: int
    batch: int
    rounds: int = 1
    """Largest number of rounds."""
    frames: int = 0
    """Frames of a clip; 0: single images."""
    clock: Clock = "cpu"
    """cpu: processor time of one pinned thread; wall: wall time of all cores."""

    def __str__(self) -> str:
        name = {"r3d_18": "R3D-18"}.get(self.encoder, self.encoder.replace("resnet", "ResNet-"))
        size = f"{self.frames}x{self.size}x{self.size}" if self.frames else f"{self.size}"
        return f"{name} at {size}, batch {self.batch}" + (", all cores" if self.clock == "wall" else "")

    def tiny(self) -> "Setting":
        """The same step on a few small images, once."""
        return replace(self, size=32, batch=4, rounds=1, frames=min(self.frames, 8))

    def images(self) -> Tensor:
        """Noise of shape (batch, 1, ...)."""
        frames = (self.frames,) if self.frames else ()
        return torch.randn(self.batch, 1, *frames, self.size, self.size)

    def layout(self, network: nn.Module) -> nn.Module:
        """The network in the memory layout of the product: channels last for single images."""
        return network if self.frames else network.to(memory_format=torch.channels_last)


def make_encoder(name: str) -> tuple[nn.Module, int]:
    """One-channel encoder with random weights, and its number of features."""
    if is_video(name):
        clip_encoder = build_clip_encoder(name)
        return clip_encoder, clip_encoder.num_features
    encoder = build_encoder(name)
    return encoder, feature_width(encoder)


def our_byol(encoder: nn.Module, features: int, heads: Heads) -> tuple[Byol, optim.Optimizer]:
    """Networks and optimiser as `pretrain` builds them."""
    byol = Byol(encoder, features, **vars(heads))
    return byol, lars(byol, lr=LR, weight_decay=WEIGHT_DECAY)


def our_step(
    byol: Callable[[Tensor], Tensor], optimiser: optim.Optimizer, move_target: Callable[[float], None], views: Tensor
) -> None:
    """The optimiser step of `engine.loop`, without the loop."""
    byol(views).backward()
    optimiser.step()
    move_target(TAU)
    optimiser.zero_grad(set_to_none=True)


def our_unet(setting: Setting, device: torch.device | None = None) -> tuple[Supervised, Callable[[Tensor], None]]:
    """U-Net with its loss, and the optimiser step that follows its forward pass: from the loss to new weights."""
    unet = setting.layout(build_unet(setting.encoder, CLASSES)).to(device)
    network = Supervised(unet, segmentation_loss("jaccard"), averaged=False)
    adam = adamw(unet, lr=1e-4, weight_decay=0.0, scaled=False)

    def step(loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0, foreach=device is not None or None)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return network, step


def training_slices(dataset: str, root: Path) -> tuple[Slices, str]:
    """Training slices of a data set ("acdc" or "folder"), and the key of its store."""
    opened = load_dataset(dataset, root)  # type: ignore[arg-type]
    return Slices(store=opened.store, positions=opened.positions("train")), opened.store.key


def two_views(slices: Slices, size: int) -> TwoViews:
    """Two augmented views of each slice, as in pretraining."""
    return TwoViews(slices, Augmenter(Augmentation(), size))


def batch_loader(samples: Dataset[Any], batches: Iterable[Any], workers: int) -> DataLoader[Any]:
    """Loader of given batches of samples, whose worker processes persist."""
    return DataLoader(
        samples, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate,
        multiprocessing_context=FORK if workers else None,
    )  # fmt: skip


def run_loop(
    folder: Path, network: nn.Module, optimiser: optim.Optimizer, samples: Dataset[Any], *, count: int, batch_size: int,
    lr: float, micro_batch_size: int | None = None, **settings: Any,
) -> None:  # fmt: skip
    """Run `engine.loop.train` on the CPU in fp32, without checkpoints; `settings` are further fields of Training."""
    fabric = make_fabric("cpu", "fp32")
    model, optimiser = fabric.setup(network, optimiser)
    sampler = StepSampler(
        count=count, batch_size=batch_size, micro_batch_size=micro_batch_size or batch_size, wrap=batch_size > count
    )
    with RunFolder(folder, RunSettings(out=folder)) as run:
        train(
            Training(
                fabric=fabric, run=run, model=model, optimiser=optimiser, sampler=sampler, samples=samples,
                learning_rate=lambda step: lr, checkpoint_every=0, **settings,
            )
        )  # fmt: skip
