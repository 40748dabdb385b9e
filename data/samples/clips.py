"""Clips of exams handed to a network: some frames in order, z-scored by the exam's statistics, augmented alike."""

import logging
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data.augment import Augmenter, pair_of_seeds
from data.preprocessing import resize, z_score
from data.readers.exams import ExamSet

log = logging.getLogger("fewslice")


def draw_frames(count: int, clip: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `clip` of an exam's `count` frames without replacement, and keep them in order: (clip,) int64, ascending.

    If the exam has fewer frames, each of them is taken equally often, give or take one.
    """
    whole, rest = divmod(clip, count)
    return np.sort(np.concatenate([np.tile(np.arange(count), whole), rng.choice(count, rest, replace=False)]))


class TwoClips(TorchDataset[Tensor]):
    """Two augmented views of one clip of each exam, for BYOL; indexed by `engine.sampler.Sample`.

    Both views show the same frames: what they must agree on is the anatomy in them. `centres` are the probabilities of
    their crops' centres, see `data.augment.draw_crop`.
    """

    def __init__(
        self,
        exams: ExamSet,
        positions: np.ndarray,
        augmenters: tuple[Augmenter, Augmenter],
        clip_frames: int,
        centres: np.ndarray | None = None,
    ) -> None:
        self.exams, self.positions, self.augmenters, self.clip_frames = exams, positions, augmenters, clip_frames
        self.centres = centres
        _log_short(exams, clip_frames)

    def __getitem__(self, sample: tuple[int, int]) -> Tensor:
        """(2, 1, clip_frames, size, size) float32."""
        index, sample_seed = sample
        clip, statistics = _draw_clip(self.exams, self.positions[index], self.clip_frames, sample_seed)
        seeds = pair_of_seeds(sample_seed)
        views = zip(self.augmenters, seeds, strict=True)
        pair = [augmenter.clip(clip, seed, statistics, self.centres) for augmenter, seed in views]
        return torch.from_numpy(np.stack(pair)[:, None])


class LabelledClips(TorchDataset[tuple[Tensor, Tensor]]):
    """An augmented clip of each exam, and its label; indexed by `engine.sampler.Sample`."""

    def __init__(self, exams: ExamSet, positions: np.ndarray, augmenter: Augmenter, clip_frames: int) -> None:
        self.exams, self.positions, self.augmenter, self.clip_frames = exams, positions, augmenter, clip_frames
        if (exams.labels[positions] < 0).any():
            raise ValueError(f"exams of {exams.root} have no labels: load them with a task")
        _log_short(exams, clip_frames)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Clip (1, clip_frames, size, size) float32 and label () float32, 0 or 1."""
        index, seed = sample
        position = self.positions[index]
        clip, statistics = _draw_clip(self.exams, position, self.clip_frames, seed)
        augmented = self.augmenter.clip(clip, seed, statistics)
        return torch.from_numpy(augmented[None]), torch.tensor(float(self.exams.labels[position]))


class WholeClips(TorchDataset[Tensor]):
    """Several clips of each exam, for scoring: whole frames, resized; only the choice of frames is random.

    Clip d of an exam depends on `seed`, d and its number of frames, so a single file gets the same clips as within the
    set.
    """

    def __init__(
        self, exams: ExamSet, positions: np.ndarray, size: int, clip_frames: int, draws: int, seed: int
    ) -> None:
        self.exams, self.positions = exams, positions
        self.size, self.clip_frames, self.draws, self.seed = size, clip_frames, draws, seed
        _log_short(exams, clip_frames)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, k: int) -> Tensor:
        """(draws, 1, clip_frames, size, size) float32 of exam `positions[k]`."""
        frames, statistics = self.exams.frames(self.positions[k]), self.exams.statistics(self.positions[k])
        return whole_clips(frames, statistics, self.size, self.clip_frames, self.draws, self.seed)


def whole_clips(
    frames: np.ndarray, statistics: tuple[float, float], size: int, clip_frames: int, draws: int, seed: int
) -> Tensor:
    """Clips of one exam, without augmentation: (draws, 1, clip_frames, size, size) float32.

    `frames` (frames, rows, columns) are in file units, `statistics` are the exam's mean and standard deviation. With
    one `seed`, more draws begin with the clips of fewer.
    """
    drawn = [draw_frames(len(frames), clip_frames, np.random.default_rng((seed, d))) for d in range(draws)]
    used = np.unique(drawn)
    resized = [resize(frame, (size, size)) for frame in z_score(frames[used], *statistics)]
    return torch.from_numpy(np.stack(resized)[np.searchsorted(used, drawn)][:, None])


def _draw_clip(exams: ExamSet, i: int, clip_frames: int, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    """(clip_frames, rows, columns) in file units, and what z-scores them; only these frames are read."""
    frames = exams.frames(i)
    return frames[draw_frames(len(frames), clip_frames, np.random.default_rng(seed))], exams.statistics(i)


def _log_short(exams: ExamSet, clip_frames: int) -> None:
    counts = exams.table["frame_count"]
    if short := int((counts < clip_frames).sum()):
        _log_once(
            f"{short} of {len(exams)} exams have fewer than {clip_frames} frames (the shortest {counts.min()}): "
            "their clips repeat frames"
        )


@lru_cache
def _log_once(message: str) -> None:
    log.info(message)
