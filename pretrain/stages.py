"""The chain of stages: natural images, then the target images; an encoder file links them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from core.errors import UserError
from data.augment import Augmenter
from data.reserved_split import reserve_split
from data.sources import (
    ExamsSource,
    ImagesSource,
    MrnetSource,
    chosen_channels,
    open_exams,
    open_images,
    open_slices,
    save_requested_splits,
)
from data.splits import save_splits
from encoders.build import (
    build_clip_encoder,
    build_encoder,
    build_unet,
    recompute_activations,
    require_encoder,
    require_image_size,
    require_unet,
)
from encoders.card import UNET, require_channels, say_channels, say_normalisation
from encoders.names import is_video
from encoders.weights import load_into_unet, load_weights, save_encoder
from engine.devices import make_fabric, show_messages
from engine.run_folder import RunFolder
from engine.run_page import write_run_page
from pretrain.config import OF_TARGETS, PretrainConfig
from pretrain.methods.build import require_method, trains_unet, views_of
from pretrain.probe import Probe
from pretrain.run_page import run_page
from pretrain.sources import Augmenters, StageImages, natural_images, target_exams, target_images, target_slices
from pretrain.train import facts_of_encoder, train_stage

log = logging.getLogger("fewslice")


def run(cfg: PretrainConfig, fabric: Fabric | None = None) -> dict[str, Any]:
    """Run the stages that the configuration names and write `encoder.safetensors` and `encoder.json`.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)

    # Mistakes are found before anything is written: in the encoder's name, the data and the file of weights.
    require_method(cfg)
    require_network(cfg)
    natural = None
    if cfg.stage != "specialist":
        natural = natural_images(
            cfg.generalist, cfg.encoder, _augmenters(cfg), cfg.generalist_images, cfg.seed, boxes=cfg.dense > 0
        )
    target, probe = _target(cfg, fabric.device) if cfg.stage != "generalist" else (None, None)
    channels = target.channels if target else 1
    if natural is not None and cfg.on_images and channels > natural.channels:
        raise UserError(
            f"--stage {cfg.stage}: the images of {cfg.data.dataset} are RGB and those of --generalist {cfg.generalist} "
            "grey: pass --stage specialist, or --generalist imagenet or an encoder file"
        )
    start = _start(cfg, cfg.generalist, channels) if natural is None and cfg.stage != "specialist" else None

    with RunFolder(cfg.run_folder, cfg, main=fabric.global_rank == 0) as run_folder:
        fabric.barrier()
        if cfg.stage == "hierarchical" and natural is not None:
            start = _start(cfg, _generalist_file(cfg, fabric, channels), channels)
        encoder, lineage = start or _start(cfg, None, channels)
        if target and target.splits and run_folder.main:
            save_splits(run_folder.path / "splits.json", target.splits)
            save_requested_splits(cfg.data, target.splits)
        if images := target or natural:
            result = train_stage(
                cfg, fabric, run_folder, images, encoder, lineage, probe, given_start=start is not None
            )
        else:
            result = _save_untrained(cfg, run_folder, encoder, lineage)
        if target and target.warnings:
            result["warnings"] = list(target.warnings)
        result = run_folder.write_result(result)
        write_run_page(run_folder, cfg, lambda: run_page(cfg, result))
    return result


def require_network(cfg: PretrainConfig) -> None:
    """Raise a UserError unless the encoder, or the U-Net on it, takes images or clips of the size of the views."""
    if not (cfg.on_clips and is_video(cfg.encoder)):
        require_encoder(cfg.encoder)
    require_image_size(cfg.encoder, cfg.norm, cfg.image_size, cfg.clip_frames if cfg.on_clips else None)
    if trains_unet(cfg.method):
        require_unet(cfg.encoder, cfg.norm, (cfg.image_size, cfg.image_size))


def _target(cfg: PretrainConfig, device: torch.device) -> tuple[StageImages, Probe | None]:
    """The target images, and the probe on their labelled slices."""
    splits = ("train",) if cfg.unlabelled_splits == "train" else ("train", "val", "test")
    if len(splits) > 1:
        log.warning(
            "pretraining on validation and test subjects, too: segment and classify refuse to score them with this "
            "encoder, unless --allow-leakage is passed"
        )
    if isinstance(cfg.data, ImagesSource):
        return target_images(open_images(cfg.data), _augmenters(cfg)), None
    if isinstance(cfg.data, MrnetSource | ExamsSource):
        exams = open_exams(cfg.data, labelled=False)
        if splits == ("train",) and not {"val", "test"} & {*exams.splits.values()}:
            log.info(
                "every exam is pretrained on, so that none can validate or test a classifier later; a table of labels "
                "with the split reserves some"
            )
        return target_exams(exams, splits, _augmenters(cfg), cfg.clip_frames, cfg.crop_towards), None
    dataset = reserve_split(open_slices(cfg.data, labelled=False), cfg.data)
    images = target_slices(
        dataset,
        splits,
        _augmenters(cfg),
        device,
        cfg.cache_on_device,
        cfg.crop_towards,
        cfg.positives,
        boxes=cfg.dense > 0,
    )
    return images, Probe(dataset) if cfg.probe_every else None


def _augmenters(cfg: PretrainConfig) -> Augmenters:
    both = (cfg.augmentation, cfg.second_augmentation)
    return tuple(Augmenter(augmentation, cfg.image_size) for augmentation in both[: views_of(cfg.method)])


def _start(cfg: PretrainConfig, source: str | None, channels: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The encoder or, for methods that train one, the U-Net; and the stages that trained its weights.

    These are random, or come from a file or a download.
    """
    # Seeded here so that the heads, which are drawn next, are the same whatever weights the encoder gets.
    torch.manual_seed(cfg.seed)
    if trains_unet(cfg.method):
        encoder: Any = build_unet(cfg.encoder, channels, cfg.norm, channels)
    elif cfg.on_clips:
        encoder = build_clip_encoder(cfg.encoder, cfg.norm)
    else:
        encoder = build_encoder(cfg.encoder, channels, cfg.norm, cfg.stem)
    if cfg.checkpoint_activations:
        recompute_activations(encoder.encoder.model if trains_unet(cfg.method) else encoder)
    if source is None:
        return encoder, []
    if cfg.on_images:
        require_channels(source, channels, "the images here")
    with torch.random.fork_rng(devices=[]):
        if trains_unet(cfg.method):
            report = load_into_unet(encoder, source, cfg.encoder)
        else:
            report = load_weights(encoder, source, name=cfg.encoder, in_channels=channels)
    say_normalisation(report.card, facts_of_encoder(cfg, channels)["normalisation"]["over"])
    say_channels(report.lineage, chosen_channels(cfg.data) if channels > 1 else ())
    return encoder, list(report.lineage)


def _generalist_file(cfg: PretrainConfig, fabric: Fabric, channels: int) -> str:
    """The natural-image encoder of a hierarchical run, pretrained now unless an earlier run has done so.

    Of a U-Net for images of several channels only the encoder of that of the grey natural images, which is adapted.
    """
    out: Path = cfg.run_folder / "generalist"
    if not (out / "result.json").exists():
        log.info(
            f"stage 1 of 2: generalist, in {out}; --generalist imagenet or a FILE takes ready weights in its place, "
            "--generalist-epochs shortens it, --stage specialist leaves it out"
            + ("; --steps counts those of stage 2" if cfg.steps is not None else "")
        )
        resume = (out / "config.json").exists()
        first = replace(cfg, stage="generalist", out=out, resume=resume, overwrite=False, keep_epochs=(), steps=None)
        first = replace(first, stop_after_epochs=None, **OF_TARGETS)
        run(first, fabric)
    fabric.barrier()
    log.info(f"stage 2 of 2: {cfg.stage}, in {cfg.run_folder}")
    return str(out / (UNET if channels == 1 and (out / UNET).is_file() else "encoder.safetensors"))


def _save_untrained(
    cfg: PretrainConfig, run_folder: RunFolder, encoder: nn.Module, lineage: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write the weights that `--generalist` names in this project's format; a generalist stage does no more then."""
    if run_folder.main:
        encoder = encoder.encoder if trains_unet(cfg.method) else encoder  # type: ignore[assignment]
        save_encoder(encoder, run_folder.path, network="foreign", lineage=lineage, **facts_of_encoder(cfg))
    return {
        "stage": cfg.stage,
        "steps": 0,
        "source": cfg.generalist,
        "encoder": str(run_folder.path / "encoder.safetensors"),
    }
