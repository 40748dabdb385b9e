"""Grad-CAM of a classifier: the frames and pixels that raise the probability of the positive class most."""

import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from classify.model import Classifier, ModelCard
from core.files import save_figure
from core.subjects import pseudonyms
from data.preprocessing import z_score
from data.readers.exams import ExamSet
from data.samples.clips import draw_frames, whole_clips
from encoders.build import MaxPoolFrames, VideoEncoder

MONTAGE_FRAMES = 6
"""Largest number of frames in a montage."""


def explain_exams(
    classifier: Classifier,
    card: ModelCard,
    exams: ExamSet,
    names: Iterable[str],
    folder: Path,
    *,
    anonymous: bool = False,
) -> None:
    """Write a montage (see `montage`) of each of the named exams into `folder`, in place of earlier ones.

    With `anonymous` titles and file names have codes in place of the exams' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.png"):  # which may bear the names of exams that now have codes
        earlier.unlink()
    code = pseudonyms() if anonymous else str
    positions = {name: i for i, name in enumerate(exams.table["exam"])}
    for name in names:
        i = positions[name]
        title = f"{code(name)}: {card.task} {card.plane}".rstrip() + f", label {exams.labels[i]}"
        montage(classifier, card, exams.frames(i), exams.statistics(i), title, montage_path(folder, code(name)))


def montage_path(folder: Path, name: str) -> Path:
    """The file of an exam's montage."""
    return folder / (re.sub(r"[^\w.-]+", "-", name) + ".png")


def montage(
    classifier: Classifier, card: ModelCard, frames: np.ndarray, statistics: tuple[float, float], title: str, path: Path
) -> float:
    """Draw the frames with the largest attribution for class 1, each with its heat map below, and a bar per frame.

    Args:
        classifier: classifier in evaluation mode.
        card: the classifier's card.
        frames: (frames, rows, columns), file units.
        statistics: (mean, standard deviation) of the exam.
        title: title of the figure; the probability is added.
        path: file to write.

    Returns:
        The exam's probability of class 1.
    """
    heat, probability = heat_maps(classifier, card, frames, statistics)
    weight = heat.sum(axis=(1, 2))
    chosen = np.sort(np.argsort(-weight, kind="stable")[: min(MONTAGE_FRAMES, len(frames))])
    top = heat.max() or 1.0
    figure = Figure(figsize=(2.1 * len(chosen), 5.6), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, len(chosen), height_ratios=(3, 3, 1))
    for column, k in enumerate(chosen):
        image = z_score(frames[k], *statistics)
        low, high = np.percentile(image, (1, 99))
        overlay = cv2.resize(heat[k] / top, image.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for row in (0, 1):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.set_axis_off()
            if row:
                axis.imshow(overlay, cmap="inferno", vmin=0, vmax=1, alpha=0.65 * np.sqrt(overlay))
            else:
                axis.set_title(f"frame {k + 1} of {len(frames)}", fontsize=9)
    bars = figure.add_subplot(grid[2, :])
    numbers = np.arange(len(frames))
    bars.bar(numbers + 1, weight, color=np.where(np.isin(numbers, chosen), "#D55E00", "0.75"))
    bars.set(xlabel="frame", yticks=[], xlim=(0.4, len(frames) + 0.6))
    bars.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"{title}, probability {probability:.3f}", fontsize=11, fontweight="bold", parse_math=False)
    save_figure(path, figure, dpi=110)
    return probability


def heat_maps(
    classifier: Classifier, card: ModelCard, frames: np.ndarray, statistics: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """How much each pixel of each frame raises the logit, averaged over the clips that scoring draws.

    The positive part of gradient times activation of the last feature maps, summed over channels. Under average pooling
    this is Grad-CAM, whose channel weights are these gradients; under maximum pooling it also separates the frames.

    Args:
        classifier: classifier in evaluation mode.
        card: the classifier's card.
        frames: (frames, rows, columns), file units.
        statistics: (mean, standard deviation) of the exam.

    Returns:
        Heat maps (frames, image_size, image_size), 0 or more, each the mean over the clips that contain the frame; and
        the mean probability of the clips.

    Source: Selvaraju et al. 2017, Grad-CAM; Draelos and Carin 2020, HiResCAM.
    """
    size = card.image_size
    clips = whole_clips(frames, statistics, size, card.clip_frames, card.test_clips, card.test_seed)
    device = next(classifier.parameters()).device
    heat, count = np.zeros((len(frames), size, size), np.float32), np.zeros(len(frames))
    scores = []
    for d, clip in enumerate(clips):
        drawn = draw_frames(len(frames), card.clip_frames, np.random.default_rng((card.test_seed, d)))
        cam, logit = _attribution(classifier, clip[None].to(device))
        wide = interpolate(
            cam.clamp(min=0)[None, None], (len(drawn), size, size), mode="trilinear", align_corners=False
        )
        np.add.at(heat, drawn, wide[0, 0].cpu().numpy())
        np.add.at(count, drawn, 1)
        scores.append(torch.sigmoid(logit).item())
    return heat / np.maximum(count, 1)[:, None, None].astype(np.float32), float(np.mean(scores))


def _attribution(classifier: Classifier, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient times activation (T', h, w), whose sum is the logit without its bias, and logit () of one clip."""
    encoder = classifier.encoder
    if isinstance(encoder, MaxPoolFrames):
        with torch.no_grad():
            maps = encoder.feature_maps(clip.transpose(0, 2))  # each frame as a clip: (T, C, h, w)
        maps.requires_grad_()
        features = encoder.frame_encoder.forward_head(maps.amax(dim=0, keepdim=True))  # type: ignore[operator]
    else:
        assert isinstance(encoder, VideoEncoder)
        with torch.no_grad():
            maps = encoder.feature_maps(clip)[0].transpose(0, 1)  # (T', C, h, w)
        maps = maps.contiguous().requires_grad_()
        features = maps.mean(dim=(0, 2, 3))[None]
    logit = classifier.head(features)[0, 0]
    (gradient,) = torch.autograd.grad(logit, maps)
    return (gradient * maps).sum(dim=1).detach(), logit.detach()
