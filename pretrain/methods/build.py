"""The self-supervised methods by name."""

from collections.abc import Callable, Mapping

from torch import nn

from core.errors import UserError
from encoders.build import feature_width
from engine.ema import Decay, chosen_tau
from pretrain.config import PretrainConfig
from pretrain.methods.byol import Byol
from pretrain.methods.method import Method


def build_method(cfg: PretrainConfig, encoder: nn.Module, *, steps: int) -> Method:
    """The method that `--method` names, around an encoder with its initial weights.

    Args:
        cfg: settings of the method.
        encoder: from `build_encoder` or `build_clip_encoder`; it becomes part of the method.
        steps: optimiser steps of the stage's schedule.
    """
    return METHODS[cfg.method][1](cfg, encoder, steps)


def require_method(cfg: PretrainConfig) -> None:
    """Raise a UserError if the method cannot do what other settings ask of it."""
    kind = METHODS[cfg.method][0]
    if cfg.on_clips and not kind.on_clips:
        raise UserError(f"--method {cfg.method} takes single images, not clips of exams: choose byol or simclr")
    if cfg.export and cfg.export not in kind.exports:
        raise UserError(f"--export {cfg.export}: {cfg.method} has no {cfg.export} network; leave it out")


def views_of(method: str) -> int:
    """Augmented views of each sample that a method needs."""
    return METHODS[method][0].views


def _byol(cfg: PretrainConfig, encoder: nn.Module, steps: int) -> Method:
    largest = 0.99 if cfg.tau_schedule == "cosine" else 0.996  # Kalapos and Gyires-Toth 2022; Grill et al. 2020
    tau = chosen_tau(steps, cfg.tau_schedule, largest) if cfg.tau is None else cfg.tau
    return Byol(
        encoder,
        feature_width(encoder),
        projector_hidden=cfg.projector_hidden,
        predictor_hidden=cfg.predictor_hidden,
        outputs=cfg.projection,
        norm=cfg.norm,
        decay=Decay(tau, steps, cfg.tau_schedule),
    )


METHODS: Mapping[str, tuple[type[Method], Callable[[PretrainConfig, nn.Module, int], Method]]] = {
    "byol": (Byol, _byol),
}
"""Class of each value of `--method`, and what builds it from settings, encoder and optimiser steps of the schedule."""
