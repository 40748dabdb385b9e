"""Encoders that cannot take the images of a run are refused before anything is written."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_study
from PIL import Image
from torch import nn

from core.errors import UserError
from encoders.build import require_forward, require_image_size, require_unet
from segment.inference import padded_sizes
from sweep.study.run import run as run_study


class Picky(nn.Module):
    """Takes images of 64 pixels only."""

    def forward(self, images):
        assert images.shape[-1] == 64
        return images


class NeedsValues(nn.Module):
    """Cannot run on shapes alone."""

    def forward(self, images):
        return images * images.sum().item()


def test_the_size_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"encoder 'picky' cannot be used for images of 96 x 96 pixels"):
        require_forward(Picky, "picky", (2, 1, 64, 64), (2, 1, 96, 96))
    require_forward(Picky, "picky", (2, 1, 64, 64))


def test_a_network_that_needs_values_is_run_on_values():
    state = torch.get_rng_state()
    require_forward(NeedsValues, "network", (2, 1, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)


def test_small_encoders_take_images_and_clips():
    require_image_size("test_resnet", "batch", 32)
    require_image_size("test_resnet", "group", 32, 3)
    require_unet("test_resnet", "batch", (64, 96), (32, 32))


def test_slices_are_checked_in_the_sizes_that_are_scored():
    table = pd.DataFrame({"rows": [40, 40, 70], "columns": [36, 36, 64], "row_mm": 1.5, "column_mm": 1.0})
    assert padded_sizes(table, None) == [(64, 64), (96, 64)]
    assert padded_sizes(table, 3.0) == [(32, 32), (64, 32)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "halonet26t"])
def test_networks_of_few_sizes_are_refused_before_training(tmp_path, name):
    from data.sources import FolderSource
    from segment.config import SegmentConfig
    from segment.training import run

    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for k in range(6):
            pixels = np.random.default_rng(k).integers(0, 2, (36, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / kind / f"p{k}.png")
    data = FolderSource(data_root=tmp_path / "data")
    cfg = SegmentConfig(encoder=name, image_size=96, data=data, out=tmp_path / "run", steps=1, device="cpu")
    with pytest.raises(UserError, match=rf"encoder '{name}' cannot be used for images of \d\d x \d\d pixels"):
        run(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_classifier_and_a_pretraining_refuse_them_too():
    with pytest.raises(UserError, match="encoder 'inception_v3' cannot be used for images of 32 x 32 pixels"):
        require_image_size("inception_v3", "batch", 32)
    with pytest.raises(UserError, match="encoder 'halonet26t' cannot be used for images of 96 x 96 pixels"):
        require_image_size("halonet26t", "batch", 96, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "test_vit"}, "'test_vit' is a vision transformer, .* pass --decoder dpt"),
        ({"encoder": "test_resnet", "decoder": "dpt"}, "'test_resnet' is none: pass --decoder unet"),
    ],
)
def test_a_study_refuses_them_before_its_first_run(settings, message, tiny_acdc, tmp_path):
    cfg = make_study(tiny_acdc, tmp_path / "study", pipelines=("random",))
    with pytest.raises(UserError, match=message):
        run_study(replace(cfg, segment=replace(cfg.segment, **settings)))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_study_refuses_a_network_of_few_sizes(tiny_acdc, tmp_path):
    cfg = make_study(tiny_acdc, tmp_path / "study", pipelines=("random",))
    with pytest.raises(UserError, match="'inception_v3' cannot be used for images of 32 x 32 pixels"):
        run_study(replace(cfg, segment=replace(cfg.segment, encoder="inception_v3")))
    assert not (tmp_path / "study").exists()
