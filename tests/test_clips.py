import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.augment import Augmenter
from data.augmentation import Augmentation
from data.preprocessing import z_score
from data.readers.exams import load_mrnet
from data.samples.clips import LabelledClips, TwoClips, WholeClips, draw_frames, whole_clips
from engine.sampler import MicroBatchSampler, Sample, StepSampler

SIZE = 24
FIRST = Augmentation(bicubic=True, brightness=0.4, contrast=0.4, blur=1.0)  # Ray 2022, table 5.1, in one channel
SECOND = replace(FIRST, blur=0.1, solarise=0.2)  # T'


@pytest.fixture
def exams(tmp_path, monkeypatch):
    """12 exams of 20 frames, numbered by their intensities, and one of 5."""
    monkeypatch.setenv("FEWSLICE_CACHE", str(tmp_path / "cache"))
    folder: Path = tmp_path / "knees/train/sagittal"
    folder.mkdir(parents=True)
    for case in range(13):
        noise = np.random.default_rng(case).normal(0, 3, (20 if case < 12 else 5, 30, 32))
        np.save(folder / f"{case:04d}.npy", (noise + 40 + 10 * np.arange(len(noise))[:, None, None]).astype(np.uint8))
    (tmp_path / "knees/train-acl.csv").write_text("".join(f"{case:04d},{case % 3 == 0:d}\n" for case in range(13)))
    return load_mrnet(tmp_path / "knees")


def test_draw_frames():
    rng = np.random.default_rng(0)
    for count in (16, 17, 61):
        drawn = draw_frames(count, 16, rng)
        assert len(set(drawn.tolist())) == 16
        assert (np.diff(drawn) > 0).all()
        assert 0 <= drawn.min() <= drawn.max() < count
    assert draw_frames(16, 16, rng).tolist() == list(range(16))
    seen = np.concatenate([draw_frames(30, 16, rng) for _ in range(3000)])
    assert np.bincount(seen, minlength=30) == pytest.approx(1600, abs=150)  # every frame alike; 5 sigma


def test_too_few_frames_repeat_evenly():
    drawn = draw_frames(5, 16, np.random.default_rng(0))
    assert len(drawn) == 16
    assert (np.diff(drawn) >= 0).all()
    assert sorted(np.bincount(drawn).tolist()) == [3, 3, 3, 3, 4]
    assert set(draw_frames(2, 3, np.random.default_rng(0)).tolist()) == {0, 1}


@pytest.mark.parametrize(
    "recipe",
    [
        FIRST,
        SECOND,
        Augmentation(jitter=1, blur=0.5, solarise=0.5, affine=0.5, noise=0.5),
        Augmentation(area=(0.8, 1.0), blur=0.5, noise=0.5),  # frames shrink to less than 1 / 1.5
        Augmentation(crop="fixed", affine=0.75, jitter=0.5),
    ],
)
def test_all_frames_of_a_clip_share_one_augmentation(recipe):
    frames = np.random.default_rng(0).normal(size=(5, 40, 36)).astype(np.float32)
    views = Augmenter(recipe, SIZE)
    different = set()
    for seed in range(12):
        clip = views.clip(frames, seed)
        assert (clip.shape, clip.dtype) == ((5, SIZE, SIZE), np.float32)
        np.testing.assert_array_equal(clip, [views(frame, seed)[0] for frame in frames])
        different.add(clip.tobytes())
    assert len(different) == 12
    still = views.clip(np.repeat(frames[:1], 5, axis=0), 3)  # no anatomy moves: nothing may
    assert (still == still[:1]).all()


def test_bicubic_overshoots():
    frames = np.random.default_rng(0).normal(size=(1, 20, 20)).astype(np.float32)
    plain = Augmentation(flip=0, jitter=0)
    linear, cubic = (
        Augmenter(recipe, 40).clip(frames, 0) for recipe in (plain, Augmentation(flip=0, jitter=0, bicubic=True))
    )
    assert np.ptp(cubic) > np.ptp(linear)


def which_frames(clip: np.ndarray, mean: float, std: float) -> list[int]:
    """The numbers of the frames in a z-scored clip (T, size, size), from their levels."""
    return np.rint((clip.mean(axis=(1, 2)) * std + mean - 39.5) / 10).astype(int).tolist()


STILL = Augmentation(flip=0, jitter=0)


def test_two_clips_show_the_same_frames(exams):
    clips = TwoClips(exams, exams.positions("train"), (Augmenter(STILL, SIZE), Augmenter(STILL, SIZE)), 16)
    pair = clips[Sample(2, 11)]
    assert (pair.shape, pair.dtype) == ((2, 1, 16, SIZE, SIZE), torch.float32)
    statistics = exams.statistics(exams.positions("train")[2])
    first, second = (which_frames(view[0].numpy(), *statistics) for view in pair)
    assert first == second == draw_frames(20, 16, np.random.default_rng(11)).tolist()
    assert not torch.equal(pair[0], pair[1])  # but different crops of them
    assert torch.equal(clips[Sample(2, 11)], pair)
    assert not torch.equal(clips[Sample(2, 12)], pair)


def test_each_view_has_its_augmentation(exams):
    inverted = Augmentation(flip=0, jitter=0, solarise=1.0)
    pair = TwoClips(exams, exams.positions("train"), (Augmenter(STILL, SIZE), Augmenter(inverted, SIZE)), 16)[
        Sample(0, 0)
    ]
    assert pair[0].max() > 0
    assert pair[1].max() <= 0


def test_labelled_clips(exams):
    positions = exams.positions("train")
    clips = LabelledClips(exams, positions, Augmenter(STILL, SIZE), clip_frames=8)
    for k, position in enumerate(positions):
        clip, label = clips[Sample(k, 5)]
        assert (clip.shape, label.dtype) == ((1, 8, SIZE, SIZE), torch.float32)
        assert label.item() == exams.labels[position] == (int(exams.table["exam"].iloc[position][-4:]) % 3 == 0)
    unlabelled = load_mrnet(exams.root, task=None)
    with pytest.raises(ValueError, match="have no labels: load them with a task"):
        LabelledClips(unlabelled, unlabelled.positions("train"), Augmenter(STILL, SIZE), 16)


def test_clips_are_z_scored_by_exam(exams):
    whole = WholeClips(exams, np.arange(12), SIZE, 20, draws=1, seed=0)
    for k in range(12):
        frames = exams.frames(k)
        # 20 of 20 frames: the level of the clip is the exam's, 0, and the spread of its frames' levels too.
        assert whole[k].mean().item() == pytest.approx(0, abs=0.01)
        levels = z_score(frames.mean(axis=(1, 2)), *exams.statistics(k))
        np.testing.assert_allclose(whole[k][0, 0].mean(dim=(1, 2)).numpy(), levels, atol=0.02)


def test_whole_clips_are_whole_and_deterministic(exams):
    clips = WholeClips(exams, exams.positions("val"), SIZE, 16, draws=4, seed=7)
    first = clips[0]
    assert (first.shape, first.dtype) == ((4, 1, 16, SIZE, SIZE), torch.float32)
    assert torch.equal(first, clips[0])
    assert len({draw.numpy().tobytes() for draw in first}) == 4
    i = exams.positions("val")[0]
    fewer = whole_clips(exams.frames(i), exams.statistics(i), SIZE, 16, draws=1, seed=7)
    assert torch.equal(fewer[0], first[0])
    assert not torch.equal(whole_clips(exams.frames(i), exams.statistics(i), SIZE, 16, draws=1, seed=8)[0], first[0])
    # At the size of the frames nothing is resampled.
    square = exams.frames(i)[:, :30, :30]
    own = whole_clips(square, (40.0, 2.0), 30, 20, draws=1, seed=0)
    np.testing.assert_array_equal(own[0, 0].numpy(), (square.astype(np.float32) - 40) / 2)


def test_whole_clips_are_resized_as_in_training():
    """Averaged by area where they shrink by more than 1.5, interpolated where they shrink less."""
    frames = np.random.default_rng(0).integers(0, 255, (4, 60, 64)).astype(np.uint8)
    whole = Augmenter(Augmentation(area=(1, 1), flip=0, jitter=0), 32)
    for size in (32, 48):
        made = whole_clips(frames, (128.0, 70.0), size, 4, draws=1, seed=0)[0, 0].numpy()
        how = cv2.INTER_AREA if size == 32 else cv2.INTER_LINEAR
        resized = [cv2.resize(frame, (size, size), interpolation=how) for frame in z_score(frames, 128.0, 70.0)]
        np.testing.assert_allclose(made, resized, atol=1e-6)
    square = frames[:, :60, :60]
    made = whole_clips(square, (128.0, 70.0), 32, 4, draws=1, seed=0)[0, 0].numpy()
    np.testing.assert_allclose(made, whole.clip(square, 0, (128.0, 70.0)), atol=1e-5)


def test_short_exams_are_logged_once(exams, caplog):
    with caplog.at_level(logging.INFO, "fewslice"):
        for _ in range(3):
            TwoClips(exams, exams.positions("train"), (Augmenter(STILL, SIZE), Augmenter(STILL, SIZE)), clip_frames=18)
        LabelledClips(exams, exams.positions("train"), Augmenter(STILL, SIZE), clip_frames=18)
    assert [record.message for record in caplog.records] == [
        "1 of 13 exams have fewer than 18 frames (the shortest 5): their clips repeat frames"
    ]


def test_the_loop_reads_clips_in_worker_processes(exams):
    positions = exams.positions("train")
    clips = LabelledClips(exams, positions, Augmenter(SECOND, SIZE), 16)
    sampler = StepSampler(count=len(positions), batch_size=4, micro_batch_size=2, seed=0)
    batches = [list(DataLoader(clips, batch_sampler=MicroBatchSampler(sampler, 0, 2), num_workers=n)) for n in (0, 1)]
    assert batches[0][0][0].shape == (2, 1, 16, SIZE, SIZE)
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
