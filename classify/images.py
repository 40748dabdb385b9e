"""`python -m classify.images --dataset images`: train a classifier of images; its encoder travels as a file."""

import logging
import time
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from classify.image_scores import print_scores, score_images
from classify.image_settings import IMAGES_PRESETS, ImagesConfig
from classify.probe import open_test_images
from core.errors import UserError, user_errors
from core.wording import count_of
from data.augment import Augmenter
from data.readers.class_images import ClassImages
from data.samples.images import LabelledImages, squares
from encoders.build import build_encoder, feature_width, require_image_size
from encoders.card import require_channels, versions
from encoders.weights import load_weights, save_encoder
from engine.config import plain
from engine.devices import make_fabric, show_messages
from engine.loop import Metrics
from engine.optimisers import warmup_cosine
from engine.run_folder import RunFolder
from engine.sampler import sampler_of
from engine.supervised import Task, fit

log = logging.getLogger("fewslice")

EXAMPLES = ("--dataset images --encoder resnet18", "--dataset images --data-root CIFAR --imbalance 0.01 --stem small")
MOST_CHECKED = 1000
"""Training images on which the accuracy in `metrics.csv` is measured."""


class ImageClassifier(nn.Module):
    """An encoder of images and a linear layer: (N, channels, H, W) -> logits (N, classes)."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(feature_width(encoder), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W), z-scored, -> logits (N, classes)."""
        return self.head(self.encoder(images))


def run(cfg: ImagesConfig, fabric: Fabric | None = None) -> dict[str, Any]:
    """Train on the training images, keep the last weights, score the test images; write `encoder.safetensors`.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: for a mistake in the configuration, the data or the encoder file, before anything is written.
    """
    fabric = fabric or make_fabric(cfg.device, cfg.precision, cfg.devices, cfg.nodes)
    show_messages(fabric.global_rank == 0)
    images, warned = open_test_images(cfg)
    require_image_size(cfg.encoder, cfg.norm, cfg.image_size)
    torch.manual_seed(cfg.seed)
    network = ImageClassifier(build_encoder(cfg.encoder, images.channels, cfg.norm, cfg.stem), len(images.classes))
    lineage: list[dict[str, Any]] = []
    if cfg.init != "random":
        require_channels(cfg.init, images.channels, f"the images of {images.name}")
        report = load_weights(network.encoder, cfg.init, name=cfg.encoder, in_channels=images.channels)
        lineage = report.lineage
    with RunFolder(cfg.run_folder, cfg, main=fabric.global_rank == 0) as folder:
        fabric.barrier()
        file = folder.path / "encoder.safetensors"
        if folder.finished is not None and not file.exists():
            raise UserError(f"{folder.path} has lost {file.name}; start again with --overwrite")
        if folder.finished is not None:
            folder.note_data(images.digest)
            return folder.write_result(folder.finished | {"encoder_file": str(file)})
        began = time.perf_counter()
        speed, trained = _fit(cfg, fabric, folder, images, network, lineage)
        predicted = predict(trained, images, images.test, cfg.image_size, fabric)
        result: dict[str, Any] = {
            "dataset": images.name,
            "encoder": cfg.encoder,
            "init": cfg.init,
            "image_size": cfg.image_size,
            "epochs": cfg.epochs if cfg.steps is None else None,
            "steps": cfg.steps,
            "seed": cfg.seed,
            "train": {"images": len(images.train), "by_class": images.counts},
            "encoder_file": str(file),
            "warnings": warned,
        }
        if folder.main:
            result |= score_images(images, predicted, images.counts, folder.path, anonymous=cfg.anonymous)
        result |= {"seconds": time.perf_counter() - began, "images_per_second": speed}
        result = folder.write_result(result)
    fabric.barrier()
    return result


def _fit(
    cfg: ImagesConfig,
    fabric: Fabric,
    folder: RunFolder,
    images: ClassImages,
    network: ImageClassifier,
    lineage: list[dict[str, Any]],
) -> tuple[float, nn.Module]:
    """Train the network and write the encoder; returns images per second and the network of that encoder."""
    sampler = sampler_of(cfg, fabric, len(images.train), min(cfg.batch_size, len(images.train)))
    steps = cfg.steps or max(1, round(cfg.epochs * sampler.steps_per_epoch))
    log.info(
        f"{count_of(len(images.train), 'training image')}, {count_of(steps, 'optimiser step')} "
        f"({sampler.steps_per_epoch} per epoch)"
    )
    checked = np.random.default_rng(cfg.seed).permutation(images.train)[:MOST_CHECKED]
    entry = {
        "stage": "supervised",
        "data": {"name": images.name, "hash": images.digest, "images": len(images.train)}
        | {"classes": list(images.classes), "by_class": images.counts},
        "augmentation": plain(cfg.augmentation),
        "image_size": cfg.image_size,
        "steps": steps,
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "versions": versions(),
    }

    def validate(trained: nn.Module) -> Metrics:
        # of training images: there is no validation split, and the last weights are kept whatever the value
        right = predict(trained, images, checked, cfg.image_size, fabric) == images.labels[checked]
        return {"train_accuracy": float(right.mean())}

    def save(trained: nn.Module) -> None:
        assert isinstance(trained, ImageClassifier)
        save_encoder(
            trained.encoder,
            folder.path,
            name=cfg.encoder,
            in_channels=images.channels,
            network="supervised",
            normalisation={"kind": "z-score", "over": "image"},
            norm=cfg.norm,
            lineage=[*lineage, entry],
        )

    task = Task(
        loss=nn.CrossEntropyLoss(),
        samples=LabelledImages(images, Augmenter(cfg.augmentation, cfg.image_size)),
        data=images.digest,
        validate=validate,
        save=save,
        columns=["train_accuracy"],
        score="train_accuracy",
        select="last",
        rank=None,
        figures=False,
    )
    return fit(
        cfg,
        fabric,
        folder,
        network,
        task,
        sampler=sampler,
        steps=steps,
        evaluate_every=steps,
        learning_rate=lambda step: cfg.lr * warmup_cosine(step, steps, min(sampler.steps_per_epoch, steps // 10)),
    )


@torch.no_grad()
def predict(
    network: nn.Module, images: ClassImages, positions: np.ndarray, size: int, fabric: Fabric, batch_size: int = 256
) -> np.ndarray:
    """(n,) the most probable class of each image; the network is left in the mode that it was in."""
    was_training = network.training
    network.eval()
    parts = []
    for first in range(0, len(positions), batch_size):
        batch = squares(images, positions[first : first + batch_size], size).to(fabric.device)
        with fabric.autocast():
            parts.append(network(batch).argmax(dim=1).cpu().numpy())
    network.train(was_training)
    return np.concatenate(parts)


def main() -> None:
    """Parse the command line, train, score and print the scores."""
    with user_errors():
        from engine.command_line import parse

        program = "python -m classify.images"
        cfg = parse(lambda flags: IMAGES_PRESETS, __doc__ or "", examples=EXAMPLES, program=program)
        result = run(cfg)
        if "accuracy" in result:  # only the main process scores
            print_scores(result, cfg.run_folder)


if __name__ == "__main__":
    main()
