"""From exams to clips: some frames in order, z-scored with the exam's own statistics, one transform for all."""

import logging
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.exams import ExamSet
from data.views import ViewRecipe, Views, pair_of_seeds, z_score

CLIP_FRAMES = 16

FIRST_VIEW = ViewRecipe(area=(0.08, 1.0), bicubic=True, flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, blur=1.0)
"""T of the thesis's table 5.1. Saturation, hue and grey act on nothing in one channel."""

SECOND_VIEW = replace(FIRST_VIEW, blur=0.1, solarise=0.2)
"""T' of the same table."""

log = logging.getLogger("fewslice")


def draw_frames(count: int, clip: int, rng: np.random.Generator) -> np.ndarray:
    """Which frames make a clip: drawn without replacement, kept in order.

    An exam of fewer frames gives each of them equally often, give or take one, in order.

    Args:
        count: frames of the exam.
        clip: frames of the clip.
        rng: draws.

    Returns:
        (clip,) int64, ascending.
    """
    whole, rest = divmod(clip, count)
    return np.sort(np.concatenate([np.tile(np.arange(count), whole), rng.choice(count, rest, replace=False)]))


class TwoClips(TorchDataset[Tensor]):
    """Two views of one clip of each exam, for BYOL; indexed by `engine.order.Draw`.

    Both views show the same frames: what they must agree on is the anatomy in them. `views` are T and T'.
    """

    def __init__(
        self, exams: ExamSet, positions: np.ndarray, views: tuple[Views, Views], clip_frames: int = CLIP_FRAMES
    ) -> None:
        self.exams, self.positions, self.views, self.clip_frames = exams, positions, views, clip_frames
        _say_short(exams, clip_frames)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, draw: tuple[int, int]) -> Tensor:
        """(2, 1, clip_frames, size, size) float32."""
        index, seed = draw
        clip, statistics = _draw_clip(self.exams, self.positions[index], self.clip_frames, seed)
        pair = [view.clip(clip, its, statistics) for view, its in zip(self.views, pair_of_seeds(seed), strict=True)]
        return torch.from_numpy(np.stack(pair)[:, None])


class LabelledClips(TorchDataset[tuple[Tensor, Tensor]]):
    """One view of a clip of each exam, and its label; indexed by `engine.order.Draw`."""

    def __init__(self, exams: ExamSet, positions: np.ndarray, views: Views, clip_frames: int = CLIP_FRAMES) -> None:
        self.exams, self.positions, self.views, self.clip_frames = exams, positions, views, clip_frames
        if (exams.labels[positions] < 0).any():
            raise ValueError(f"exams of {exams.root} have no labels: load them with a task")
        _say_short(exams, clip_frames)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Clip (1, clip_frames, size, size) float32 and label () float32, 0 or 1."""
        index, seed = draw
        position = self.positions[index]
        clip, statistics = _draw_clip(self.exams, position, self.clip_frames, seed)
        view = self.views.clip(clip, seed, statistics)
        return torch.from_numpy(view[None]), torch.tensor(float(self.exams.labels[position]))


class WholeClips(TorchDataset[Tensor]):
    """Several clips of each exam for scoring: whole frames, resized; only the choice of frames is drawn.

    Draw d of an exam depends on `seed`, d and its number of frames, so a file alone gives what the set gave.
    """

    def __init__(
        self,
        exams: ExamSet,
        positions: np.ndarray,
        size: int,
        clip_frames: int = CLIP_FRAMES,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        self.exams, self.positions = exams, positions
        self.size, self.clip_frames, self.draws, self.seed = size, clip_frames, draws, seed
        _say_short(exams, clip_frames)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, k: int) -> Tensor:
        """(draws, 1, clip_frames, size, size) float32 of exam `positions[k]`."""
        i = self.positions[k]
        return whole_clips(
            self.exams.frames(i), self.exams.statistics(i), self.size, self.clip_frames, self.draws, self.seed
        )


def whole_clips(
    frames: np.ndarray,
    statistics: tuple[float, float],
    size: int,
    clip_frames: int = CLIP_FRAMES,
    draws: int = 1,
    seed: int = 0,
) -> Tensor:
    """Clips of one exam without any random view.

    Args:
        frames: (frames, rows, columns), file units.
        statistics: (mean, standard deviation) of the exam.
        size: side of the resized frames, pixels.
        clip_frames: frames of a clip.
        draws: number of clips.
        seed: of the frames drawn; the first clips of more draws are those of fewer.

    Returns:
        (draws, 1, clip_frames, size, size) float32.
    """
    drawn = [draw_frames(len(frames), clip_frames, np.random.default_rng((seed, d))) for d in range(draws)]
    used = np.unique(drawn)
    shrinks = size * size < frames[0].size
    resized = np.stack(
        [
            cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            for frame in z_score(frames[used], *statistics)
        ]
    )
    return torch.from_numpy(resized[np.searchsorted(used, drawn)][:, None])


def _draw_clip(exams: ExamSet, i: int, clip_frames: int, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    """(clip_frames, rows, columns) in file units, and what z-scores them; only these frames are read."""
    frames = exams.frames(i)
    return frames[draw_frames(len(frames), clip_frames, np.random.default_rng(seed))], exams.statistics(i)


def _say_short(exams: ExamSet, clip_frames: int) -> None:
    counts = exams.table["frame_count"]
    if short := int((counts < clip_frames).sum()):
        _say_once(
            f"{short} of {len(exams)} exams have fewer than {clip_frames} frames (the shortest {counts.min()}): "
            "their clips repeat frames"
        )


@lru_cache
def _say_once(message: str) -> None:
    log.info(message)
