"""The self-supervised methods by name."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from core.errors import UserError
from encoders.build import feature_width
from engine.ema import Decay, chosen_tau
from pretrain.config import PretrainConfig
from pretrain.methods.byol import Byol
from pretrain.methods.dense import DenseByol
from pretrain.methods.masked import Masked
from pretrain.methods.method import Method
from pretrain.methods.moco import FEWEST_IMAGES, Moco, parts_of
from pretrain.methods.whole_batch import BarlowTwins, SimClr

log = logging.getLogger("fewslice")

WIDTHS = {"byol": (4096, 256), "simclr": (None, 128), "moco": (None, 128), "barlow": (8192, 8192)}
"""Hidden and output width of each method's projector, unless they are given: Kalapos and Gyires-Toth 2022 for byol, the
methods' own papers for the others. None: the width of the encoder's output, 2048 for a ResNet-50 as in the papers."""


def build_method(cfg: PretrainConfig, encoder: nn.Module, *, steps: int, count: int) -> Method:
    """The method that `--method` names, around an encoder with its initial weights.

    Args:
        cfg: settings of the method.
        encoder: from `build_encoder`, `build_clip_encoder` or `build_unet`, see `Method.trains`; it becomes part of the
            method.
        steps: optimiser steps of the stage's schedule.
        count: images or exams of the stage.
    """
    return METHODS[cfg.method][1](cfg, encoder, steps, count)


def widths(cfg: PretrainConfig, features: int) -> tuple[int, int]:
    """Hidden and output width of the projector, on an encoder whose output has a width of `features`."""
    hidden, outputs = WIDTHS[cfg.method]
    return cfg.projector_hidden or hidden or features, cfg.projection or outputs


def require_method(cfg: PretrainConfig) -> None:
    """Raise a UserError if the method cannot do what other settings ask of it."""
    kind = METHODS[cfg.method][0]
    if cfg.on_clips and not kind.on_clips:
        raise UserError(f"--method {cfg.method} takes single images, not clips of exams: choose byol or simclr")
    if kind.views == 1 and cfg.positives != "same":
        raise UserError(f"--positives {cfg.positives}: {cfg.method} has one view of each image; leave it at same")
    if cfg.dense and (cfg.on_clips or cfg.augmentation.crop != "resized" or cfg.augmentation.affine):
        raise UserError(
            f"--dense {cfg.dense:g} compares places of resized crops of slices: without exams, other crops "
            "and affine maps; leave it at 0"
        )
    if cfg.export and cfg.export not in kind.exports:
        raise UserError(f"--export {cfg.export}: {cfg.method} has no {cfg.export} network; leave it out")


def views_of(method: str) -> int:
    """Augmented views of each sample that a method needs."""
    return METHODS[method][0].views


def trains_unet(method: str) -> bool:
    """Whether a method is built around a U-Net instead of an encoder."""
    return METHODS[method][0].trains == "unet"


def _byol(cfg: PretrainConfig, encoder: nn.Module, steps: int, count: int) -> Method:
    largest = 0.99 if cfg.tau_schedule == "cosine" else 0.996  # Kalapos and Gyires-Toth 2022; Grill et al. 2020
    tau = chosen_tau(steps, cfg.tau_schedule, largest) if cfg.tau is None else cfg.tau
    hidden, outputs = widths(cfg, feature_width(encoder))
    kind: Callable[..., Byol] = partial(DenseByol, dense_weight=cfg.dense) if cfg.dense else Byol
    return kind(
        encoder,
        feature_width(encoder),
        projector_hidden=hidden,
        predictor_hidden=cfg.predictor_hidden,
        outputs=outputs,
        norm=cfg.norm,
        decay=Decay(tau, steps, cfg.tau_schedule),
    )


def _simclr(cfg: PretrainConfig, encoder: nn.Module, steps: int, count: int) -> Method:
    width = feature_width(encoder)
    hidden, outputs = widths(cfg, width)
    temperature = cfg.temperature or 0.5
    return SimClr(encoder, width, temperature=temperature, projector_hidden=hidden, outputs=outputs, norm=cfg.norm)


def _barlow(cfg: PretrainConfig, encoder: nn.Module, steps: int, count: int) -> Method:
    hidden, outputs = widths(cfg, feature_width(encoder))
    return BarlowTwins(
        encoder,
        feature_width(encoder),
        redundancy_weight=cfg.redundancy_weight,
        projector_hidden=hidden,
        outputs=outputs,
        norm=cfg.norm,
    )


def _moco(cfg: PretrainConfig, encoder: nn.Module, steps: int, count: int) -> Method:
    hidden, outputs = widths(cfg, feature_width(encoder))
    tau = chosen_tau(steps, "constant", 0.999) if cfg.tau is None else cfg.tau
    if cfg.norm == "batch" and parts_of(micro_batch := cfg.micro_batch_size or cfg.batch_size) == 1:
        log.warning(
            f"moco with batch norm: the statistics of micro-batches of {micro_batch} give the positives away; pass "
            f"{FEWEST_IMAGES} or more, or --norm group, which has none"
        )
    return Moco(
        encoder,
        feature_width(encoder),
        projector_hidden=hidden,
        outputs=outputs,
        queue=min(cfg.queue, count),  # more would only repeat the images
        temperature=cfg.temperature or 0.2,
        norm=cfg.norm,
        decay=Decay(tau),
    )


def _masked(cfg: PretrainConfig, unet: nn.Module, steps: int, count: int) -> Method:
    return Masked(unet, patch=cfg.patch, share=cfg.mask_share)


METHODS: Mapping[str, tuple[type[Method], Callable[[PretrainConfig, nn.Module, int, int], Method]]] = {
    "byol": (Byol, _byol),
    "simclr": (SimClr, _simclr),
    "moco": (Moco, _moco),
    "barlow": (BarlowTwins, _barlow),
    "masked": (Masked, _masked),
}
"""Class of each value of `--method`, and what builds it from settings, encoder, steps of the schedule and number of
images."""
