"""The dense term of BYOL: boxes, matching cells and loss by hand, accumulation, and a whole run."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from core.errors import UserError
from data.augment import Augmenter
from data.augmentation import Augmentation
from data.samples.boxes import TwoViewsWithBoxes
from data.slices import PartOf, whole
from data.sources import AcdcSource, MrnetSource
from encoders.build import build_encoder
from engine.ema import Decay
from engine.sampler import Sample
from pretrain.config import PretrainConfig
from pretrain.methods.byol import Byol
from pretrain.methods.dense import DenseByol, dense_loss, features_and_cells, matching_cells
from pretrain.stages import run

pytestmark = pytest.mark.usefixtures("one_thread", "no_stale_handlers")


class Two:
    """Two images of different shapes, as slices are."""

    channels = 1

    def __len__(self) -> int:
        return 2

    def raw(self, k: int, part: PartOf = whole) -> tuple[np.ndarray, tuple[float, float]]:
        return np.random.default_rng(k).normal(size=(40 + k, 50)).astype(np.float32), (0.0, 1.0)


def test_a_box_is_the_place_that_its_view_shows():
    augmenter = Augmenter(Augmentation(jitter=0, flip=0.5, antialias=False), 32)
    samples = [Sample(k % 2, seed) for k, seed in enumerate(range(6))]
    views, boxes = TwoViewsWithBoxes(Two(), augmenter).__getitems__(samples)
    assert (views.shape, boxes.shape) == ((6, 2, 1, 32, 32), (6, 2, 5))
    assert 0 < boxes[..., 4].mean() < 1
    for (item, _), pair, of_pair in zip(samples, views, boxes, strict=True):
        for view, (top, left, height, width, flipped) in zip(pair[:, 0], of_pair.int().tolist(), strict=True):
            part = Two().raw(item)[0][top : top + height, left : left + width]
            part = np.ascontiguousarray(part[:, ::-1] if flipped else part)
            np.testing.assert_allclose(view, cv2.resize(part, (32, 32)), atol=1e-5)
    one, box = TwoViewsWithBoxes(Two(), augmenter)[samples[3]]
    assert torch.equal(one, views[3])
    assert torch.equal(box, boxes[3])


def matches(first: list[float], second: list[float], cells: tuple[int, int]) -> list[list[int]]:
    """Pairs of matching cells, numbered row by row."""
    return matching_cells(torch.tensor([[first, second]]), cells)[0].nonzero().tolist()


def test_matching_cells_by_hand():
    """Maps of 1 x 4 and 2 x 2 cells; neighbours are a cell apart, further than 0.7 diagonals of a square one."""
    whole = [0.0, 0.0, 10.0, 40.0, 0.0]  # four cells of 10 x 10
    assert matches(whole, whole, (1, 4)) == [[k, k] for k in range(4)]
    assert matches(whole, [*whole[:4], 1.0], (1, 4)) == [[k, 3 - k] for k in range(4)]  # flipped left-right
    assert matches(whole, [0.0, 20.0, 10.0, 40.0, 0.0], (1, 4)) == [[2, 0], [3, 1]]  # two cells further right
    assert matches(whole, [0.0, 23.0, 10.0, 40.0, 0.0], (1, 4)) == [[2, 0], [3, 0], [3, 1]]  # 3, 7 and 3 of 9.9 away
    assert matches(whole, [0.0, 60.0, 10.0, 40.0, 0.0], (1, 4)) == []  # no overlap
    square = [0.0, 0.0, 20.0, 20.0, 0.0]
    # a quarter of the size, in the lower right: its cells' centres lie within 9.9 pixels of that of the last cell, and
    # two of them within 7.9 of those beside it
    near = [[1, 0], [1, 1], [2, 0], [2, 2], *([3, k] for k in range(4))]
    assert matches(square, [10.0, 10.0, 10.0, 10.0, 0.0], (2, 2)) == near
    # cells twice as large reach to 19.8 pixels: to centres 5 away in both directions, or 5 and 15
    near = [[0, 0], [1, 0], [1, 1], [2, 0], [2, 2], [3, 0], [3, 1], [3, 2]]
    assert matches(square, [0.0, 0.0, 40.0, 40.0, 0.0], (2, 2)) == near


def test_the_dense_loss_by_hand():
    axes = torch.eye(2).view(1, 2, 1, 2)  # cell k points along axis k
    pair = torch.cat([axes, axes])
    same = torch.eye(2, dtype=torch.bool).expand(2, -1, -1)
    assert dense_loss(pair, 3 * pair, same).item() == pytest.approx(0, abs=1e-6)
    assert dense_loss(pair, pair, ~same).item() == pytest.approx(2)
    assert dense_loss(pair, -pair, same).item() == pytest.approx(4)
    one = same.clone()
    one[0] = torch.tensor([[True, True], [False, False]])  # cell 0 with cells 0 and 1: the mean of 0 and 2
    one[1] = False  # no overlap
    assert dense_loss(pair, pair, one).item() == pytest.approx((1 + 0) / 2)


def dense(norm: str, weight: float = 0.5, hidden: int = 16) -> DenseByol:
    torch.manual_seed(0)
    heads = {"projector_hidden": hidden, "predictor_hidden": hidden, "outputs": 8}
    encoder = build_encoder("test_resnet", norm=norm)
    return DenseByol(encoder, encoder.num_features, dense_weight=weight, norm=norm, decay=Decay(0.9), **heads)


def draw(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat([torch.rand(n, 2, 4, generator=generator) * 40 + 10, torch.zeros(n, 2, 1)], dim=2)
    return torch.randn(n, 2, 1, 32, 32, generator=generator), boxes


def test_features_and_cells_are_the_encoders():
    encoder = build_encoder("test_resnet").eval()
    images = torch.randn(2, 1, 40, 40)
    features, cells = features_and_cells(encoder, images)
    assert torch.equal(features, encoder(images))
    assert cells.shape == (2, 48, 5, 5)


def test_the_heads_of_cells_are_no_wider_than_512():
    method = dense("batch", hidden=1024)
    assert [head[0].weight.shape[0] for head in (method.projector, method.cell_projector)] == [1024, 512]
    assert [head[0].weight.shape[0] for head in (method.predictor, method.cell_predictor)] == [1024, 512]


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_the_dense_term_accumulates_exactly(norm):
    views, boxes = draw(6)
    gradients = []
    for size in (6, 4):
        method = dense(norm)
        for part, of_part in zip(views.split(size), boxes.split(size), strict=True):
            (method((part, of_part)) * len(part) / 6).backward()
        gradients.append([p.grad for p in method.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_dense_term_is_added_to_byols_loss():
    """Of the same networks: with weight 0 it is BYOL's loss; the cells' target moves and gets no gradient."""
    views, boxes = draw(4)
    method, none = dense("batch", 2.0), dense("batch", 0.0)
    begun = method.target_cell_projector[0].weight.clone()
    loss, plain = method((views, boxes)), none((views, boxes))
    torch.manual_seed(0)
    encoder = build_encoder("test_resnet")
    byol = Byol(encoder, encoder.num_features, projector_hidden=16, predictor_hidden=16, outputs=8)
    assert plain.item() == pytest.approx(byol(views).item(), abs=1e-5)
    assert loss.item() > plain.item()
    loss.backward()
    assert method.cell_projector[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in method.target_cell_projector.parameters())
    with torch.no_grad():
        method.cell_projector[0].weight.add_(1)
    method.after_step(1)
    torch.testing.assert_close(method.target_cell_projector[0].weight, begun + 0.1)


def tiny(root: Path | None, out: Path | None = None, **settings) -> PretrainConfig:
    few = {"stage": "specialist", "encoder": "test_resnet", "image_size": 32, "batch_size": 8, "micro_batch_size": 5}
    few |= {"projector_hidden": 16, "predictor_hidden": 16, "projection": 8, "steps": 2, "device": "cpu", "dense": 0.5}
    return PretrainConfig(**({"data": AcdcSource(data_root=root), "out": out} | few | settings))


@pytest.mark.slow
def test_a_run_with_the_dense_term(tiny_acdc, tmp_path):
    chain = {"stage": "hierarchical", "generalist_images": 9, "generalist_epochs": 1}
    result = run(tiny(tiny_acdc, tmp_path / "run", **chain))
    assert result["dense_weight"] == 0.5
    timm.create_model("test_resnet", in_chans=1, num_classes=0, checkpoint_path=result["encoder"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "simclr"}, "--dense 0.5 goes with --method byol, not with simclr"),
        ({"dense": -1.0}, "--dense -1.0: must be 0 or more"),
        ({"cache_on_device": "yes"}, "--cache-on-device yes needs a method of two views, without --dense"),
        ({"augmentation": Augmentation(affine=0.5)}, "--dense 0.5 compares places of resized crops of slices"),
        ({"data": MrnetSource()}, "--dense 0.5 compares places"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(tiny_acdc, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run(tiny(tiny_acdc, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
