"""`python -m classify.probe --init FILE --dataset images`: linear evaluation of an encoder on images with classes."""

import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from classify.image_scores import print_scores, score_images
from classify.image_settings import PROBE_PRESETS, ProbeConfig
from core.errors import UserError, user_errors
from core.wording import listed
from data.duplicates import warn_of_test_duplicates
from data.readers.class_images import ClassImages
from data.samples.images import squares
from data.sources import open_images
from encoders.build import build_encoder, require_image_size
from encoders.card import require_channels
from encoders.weights import load_weights
from engine.devices import make_fabric, show_messages
from engine.run_folder import RunFolder

log = logging.getLogger("fewslice")

EXAMPLES = (
    "--init runs/pretrain-specialist/encoder.safetensors --dataset images",
    "--init runs/pretrain-specialist/encoder.safetensors --dataset images --data-root CIFAR",
)
ITERATIONS = 1000
"""Largest number of steps of the solver for one C."""


def run(cfg: ProbeConfig, fabric: Fabric | None = None) -> dict[str, Any]:
    """Fit the regression on the training images and score the test images; see `image_scores` for the files.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file, before anything is written.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision)
    show_messages()
    images, warned = open_test_images(cfg)
    channels = images.channels
    torch.manual_seed(cfg.seed)
    encoder = build_encoder(cfg.encoder, channels, cfg.norm, cfg.stem)
    lineage: list[dict[str, Any]] = []
    if cfg.init != "random":
        require_channels(cfg.init, channels, f"the images of {images.name}")
        lineage = load_weights(encoder, cfg.init, name=cfg.encoder, in_channels=channels).lineage
    size = cfg.image_size or _trained_size(lineage)
    require_image_size(cfg.encoder, cfg.norm, size)
    with RunFolder(cfg.run_folder, cfg) as folder:
        folder.note_data(images.digest)
        began = time.perf_counter()
        train, test = (
            features(encoder, images, positions, size, cfg.batch_size, fabric)
            for positions in (images.train, images.test)
        )
        log.info(f"features of {len(train)} training and {len(test)} test images, {train.shape[1]} numbers each")
        labels = images.labels[images.train]
        strength, held_out = choose_regularisation(train, labels, cfg.regularisation, cfg.held_out, cfg.seed)
        predicted = regression(train, labels, strength).predict(test)
        counts = trained_counts(lineage, images)
        result = {
            "dataset": images.name,
            "encoder": cfg.encoder,
            "init": cfg.init,
            "image_size": size,
            "seed": cfg.seed,
            "train": {"images": len(train), "by_class": images.counts},
            "regularisation": {"value": strength, "accuracy_on_held_out": held_out},
            **score_images(images, predicted, counts, folder.path),
            "warnings": warned,
            "seconds": time.perf_counter() - began,
        }
        return folder.write_result(result)


def open_test_images(cfg: Any) -> tuple[ClassImages, list[str]]:
    """The images of a configuration's data set, and what is doubtful about scores on its test images, logged as well.

    Raises:
        UserError: if there are no test images.
    """
    images = open_images(cfg.data)
    if not len(images.test):
        raise UserError(f"{cfg.data.data_root} holds no test images: put them into test/CLASS/")
    doubts = warn_of_test_duplicates(images)
    if untested := images.untested:
        doubts.append(
            f"{len(untested)} of {len(images.classes)} classes have no test images and no score: {listed(untested)}"
        )
        log.warning(doubts[-1])
    return images, doubts


@torch.no_grad()
def features(
    encoder: nn.Module, images: ClassImages, positions: np.ndarray, size: int, batch_size: int, fabric: Fabric
) -> np.ndarray:
    """(n, features) float32 of the images at some positions, by the encoder in evaluation mode."""
    encoder.to(fabric.device).eval()
    parts = []
    for first in range(0, len(positions), batch_size):
        batch = squares(images, positions[first : first + batch_size], size)
        with fabric.autocast():
            parts.append(encoder(batch.to(fabric.device)).float().cpu().numpy())
    return np.concatenate(parts)


def regression(train: np.ndarray, labels: np.ndarray, strength: float) -> Pipeline:
    """Multinomial logistic regression on standardised features, with C = `strength`."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels)
    if model[-1].n_iter_.max() >= ITERATIONS:
        log.info(f"C {strength:g}: stopped after {ITERATIONS} iterations, before the regression converged")
    return model


def choose_regularisation(
    train: np.ndarray, labels: np.ndarray, strengths: Sequence[float], held_out: float, seed: int
) -> tuple[float, float | None]:
    """The C that is most accurate on a held-out part of the training images, of equal ones the smallest.

    Returns:
        C and its accuracy on the held-out part; None if there is nothing to choose.
    """
    if len(strengths) == 1:
        return strengths[0], None
    inner = held_out_part(labels, held_out, seed)
    accuracies = {
        strength: float(regression(train[~inner], labels[~inner], strength).score(train[inner], labels[inner]))
        for strength in sorted(strengths)
    }
    best = max(accuracies, key=accuracies.__getitem__)  # of equal ones the first
    return best, accuracies[best]


def held_out_part(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) True for a seeded share of each class, at least one image and at most all but one; none of a single one."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        positions = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        held[positions[: min(max(1, round(share * len(positions))), len(positions) - 1)]] = True
    return held


def trained_counts(lineage: Sequence[dict[str, Any]], images: ClassImages) -> list[int]:
    """Images of each class that the encoder was trained on last, if these classes; else those of the regression."""
    for entry in reversed(lineage):
        data = entry.get("data", {})
        if data.get("classes") == list(images.classes):
            return list(map(int, data["by_class"]))
    return images.counts


def _trained_size(lineage: Sequence[dict[str, Any]]) -> int:
    sizes = [entry["image_size"] for entry in lineage if isinstance(entry.get("image_size"), int)]
    return sizes[-1] if sizes else 32


def main() -> None:
    """Parse the command line, evaluate and print the scores."""
    with user_errors():
        from engine.command_line import parse

        program = "python -m classify.probe"
        cfg = parse(lambda flags: PROBE_PRESETS, __doc__ or "", examples=EXAMPLES, program=program)
        print_scores(run(cfg), cfg.run_folder)


if __name__ == "__main__":
    main()
