"""Neighbours of slices in their volume and in time, where a cine moves, and pretraining that makes use of them."""

import logging
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from data.augment import Augmenter, draw_crop
from data.augmentation import Augmentation
from data.cines import CELLS, centre_map, motion_maps, neighbours
from data.samples.on_device import ViewsOnDevice
from data.samples.slices import Pairing, TwoViews
from data.slices import Slices, load_dataset
from data.sources import AcdcSource, MrnetSource
from engine.sampler import Sample
from pretrain.config import PretrainConfig
from pretrain.sources import target_slices


@pytest.fixture(scope="module")
def pool(tiny_acdc) -> Slices:
    """Training patients: frames 1 to 4 of patient 3, of which 1 and 3 have files of their own; 1 and 3 of 4, 5, 6."""
    dataset = load_dataset("acdc", tiny_acdc)
    return Slices(store=dataset.store, positions=dataset.positions("train"))


def made_up(rows: list[tuple[str, str, int, int]]) -> Slices:
    """Slices of a table of (subject, file, frame, slice), without pixels."""
    table = pd.DataFrame(rows, columns=["subject", "file", "frame", "slice"])
    return Slices(store=SimpleNamespace(table=table), positions=np.arange(len(rows)))  # type: ignore[arg-type]


def test_neighbours_are_of_the_same_subject(pool):
    table = pool.store.table.iloc[pool.positions].reset_index(drop=True)
    beside, phases = neighbours(pool, "slice"), neighbours(pool, "phase")
    present = {name: sorted(rows["frame"].unique().tolist()) for name, rows in table.groupby("subject")}
    assert present["patient003"] == [1, 2, 3, 4]
    assert present["patient005"] == [1, 3]
    for k, row in table.iterrows():
        of = table.iloc[list(beside[k])]
        assert {*of["subject"]} == {row["subject"]}
        assert {*of["frame"]} == {row["frame"]}
        assert of["slice"].tolist() == [z for z in (row["slice"] - 1, row["slice"] + 1) if 0 <= z < 3]
        of, frames = table.iloc[list(phases[k])], present[row["subject"]]
        assert {*of["subject"]} == {row["subject"]}
        assert {*of["slice"]} == {row["slice"]}
        at = frames.index(row["frame"])
        assert of["frame"].tolist() == [frames[n] for n in (at - 1, at + 1) if 0 <= n < len(frames)]


def test_neighbours_in_any_folder():
    """A 4D file is a cine, and so are files of frames named like ACDC's; other files of a subject are not."""
    slices = made_up(
        [
            ("a", "a.nii.gz", 2, 0), ("a", "a.nii.gz", 1, 0), ("a", "a.nii.gz", 1, 1), ("a", "a.nii.gz", 1, 3),
            ("a", "a_t2.nii.gz", 1, 0),
            ("b", "x/b_frame07.nii.gz", 1, 0), ("b", "x/b_frame02.nii.gz", 1, 0), ("b", "x/b_frame12.nii.gz", 1, 0),
            ("b", "y/b_frame01.nii.gz", 1, 0),
            ("c", "a.nii.gz", 3, 0),
        ]
    )  # fmt: skip
    assert neighbours(slices, "phase") == [(1,), (0,), (), (), (), (6, 7), (5,), (5,), (), ()]
    assert neighbours(slices, "slice") == [(), (2,), (1,), (), (), (), (), (), (), ()]


def test_a_map_has_most_where_the_cine_moves(tmp_path):
    """A square whose brightness pulsates, in noise: 40 x 40 of 128 x 96 pixels, 13 % of the slice."""
    rng = np.random.default_rng(0)
    cine = rng.normal(100, 5, (8, 2, 128, 96))
    cine[:, 0, 20:60, 40:80] += 20 * np.sin(np.arange(8))[:, None, None]
    nib.Nifti1Image(cine.T.astype(np.float32), np.eye(4)).to_filename(tmp_path / "p1_4d.nii.gz")
    nib.Nifti1Image(cine[0].T.astype(np.float32), np.eye(4)).to_filename(tmp_path / "p2.nii.gz")
    store = load_dataset("folder", tmp_path, labelled=False).store
    slices = Slices(store=store, positions=np.arange(len(store)))
    maps = motion_maps(slices)
    assert [m is None for m in maps] == (store.table["subject"] == "p2").tolist()
    moving = [m for m, z in zip(maps, store.table["slice"], strict=True) if m is not None and z == 0]
    assert all(m is moving[0] for m in moving)  # the frames share it
    density = np.diff(moving[0].ravel(), prepend=0).reshape(CELLS, CELLS)
    assert density.min() > 0
    assert density.sum() == pytest.approx(1)
    assert density[4:16, 12:28].sum() > 0.7  # the square and a cell around it; evenly spread it would be 0.19
    centres = [draw_crop(Augmentation(area=(0.05, 0.1)), (128, 96), seed, moving[0])[:4] for seed in range(200)]
    inside = [20 <= top + height / 2 <= 60 and 40 <= left + width / 2 <= 80 for top, left, height, width in centres]
    assert np.mean(inside) > 0.5


def test_the_centre_map_is_a_broad_gaussian():
    density = np.diff(centre_map().ravel(), prepend=0).reshape(CELLS, CELLS)
    np.testing.assert_allclose(density, density[::-1, ::-1], atol=1e-12)
    at = (np.arange(CELLS) + 0.5) / CELLS - 0.5
    assert np.sqrt(density.sum(axis=0) @ at**2) == pytest.approx(0.22, abs=0.005)  # 1/4, cut off at the edges


def test_the_second_view_shows_a_neighbour(pool):
    """The whole slice in both views, so that a view tells which slice it shows; the device draws the same."""
    table = pool.store.table.iloc[pool.positions].reset_index(drop=True)
    augmenters = (Augmenter(Augmentation(area=(1, 1), flip=0, jitter=0), 32),) * 2
    pairing = Pairing(neighbours=neighbours(pool, "phase"))
    shown, plain = TwoViews(pool, *augmenters, pairing), TwoViews(pool, *augmenters)
    k = table.index[(table["subject"] == "patient003") & (table["frame"] == 2) & (table["slice"] == 1)][0]
    seen = set()
    for seed in range(12):
        pair, alone = shown[Sample(k, seed)], plain[Sample(k, seed)]
        assert torch.equal(pair, shown[Sample(k, seed)])
        assert torch.equal(pair[0], alone[0])
        frame = {n: bool(torch.equal(pair[1], plain[Sample(n, seed)][1])) for n in pairing.neighbours[k]}
        assert sum(frame.values()) == 1
        seen |= {n for n, equal in frame.items() if equal}
    assert table.loc[sorted(seen), "frame"].tolist() == [1, 3]
    draws = [Sample(k, seed) for seed in range(4)]
    on_device = ViewsOnDevice(pool, augmenters, torch.device("cpu"), pairing).__getitems__(draws)
    torch.testing.assert_close(on_device, shown.__getitems__(draws), rtol=0, atol=2e-3)


def stage_of(dataset, **settings):
    augmenters = (Augmenter(Augmentation(), 32),) * 2
    return target_slices(dataset, ("train",), augmenters, torch.device("cpu"), "no", **settings)


def test_pretraining_takes_what_there_is(tiny_acdc, tmp_path, caplog):
    dataset = load_dataset("acdc", tiny_acdc)
    images = stage_of(dataset, crop_towards="motion", positives="slice")
    assert isinstance(images.samples, TwoViews)
    assert all(images.samples.pairing.neighbours)
    assert len({id(m) for m in images.samples.pairing.centres}) == 12  # of 4 patients with 3 slices
    plain = stage_of(dataset).samples.pairing
    assert not plain.neighbours
    assert not plain.centres
    root = shutil.copytree(tiny_acdc, tmp_path / "acdc")
    for file in root.glob("training/patient00[456]/*_frame03*"):
        file.unlink()
    few = load_dataset("acdc", root)
    with caplog.at_level(logging.INFO, "fewslice"):
        images = stage_of(few, crop_towards="motion", positives="phase")
    assert "9 of 21 slices have no cine: their crops are drawn towards the centre" in caplog.messages
    assert "9 of 21 slices have no neighbouring phase: both views show the same one" in caplog.messages
    assert sum(np.array_equal(m, centre_map()) for m in images.samples.pairing.centres) == 9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"crop_towards": "motion"}, r"--crop-towards motion: no slice of .* has several time frames; use centre"),
        ({"positives": "phase"}, r"--positives phase: no slice of .* has another time frame; use --positives same"),
        ({"positives": "slice"}, r"--positives slice: no slice of .* has a slice beside it in its volume"),
    ],
)
def test_data_without_what_is_asked_for(tmp_path, settings, sentence):
    for name in "ab":
        pixels = np.random.default_rng(0).integers(0, 99, (20, 20, 1)).astype(np.int16)
        nib.Nifti1Image(pixels + ord(name), np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match=sentence):
        stage_of(load_dataset("folder", tmp_path, labelled=False), **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data": MrnetSource(), "crop_towards": "motion"}, "--crop-towards motion needs cines of slices, exams have"),
        ({"data": MrnetSource(), "positives": "slice"}, "--positives slice is for slices: both views of an exam"),
        ({"crop_towards": "centre", "augmentation": Augmentation(affine=0.5)}, "--crop-towards centre needs resized"),
        ({"crop_towards": "motion", "augmentation": Augmentation(crop="fixed")}, "--crop-towards motion needs resized"),
    ],
)
def test_settings_that_do_not_fit(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        PretrainConfig(**{"data": AcdcSource(), **settings})
