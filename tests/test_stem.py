"""The small stem of ResNets for images of 32 pixels."""

import pytest
import segmentation_models_pytorch as smp
import torch

from core.errors import UserError
from encoders.build import build_encoder
from encoders.card import read_card
from encoders.identify import identify
from encoders.stem import stem_of
from encoders.weights import load_into_unet, load_weights, save_encoder


def written(encoder, folder, in_channels=3):
    card = {"network": "online", "normalisation": {}, "norm": "batch", "lineage": []}
    return save_encoder(encoder, folder, name="resnet10t", in_channels=in_channels, **card)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_it_keeps_the_size_of_the_image(name):
    """32 pixels reach the four stages of a ResNet at 32, 16, 8 and 4 pixels (He et al. 2016, section 4.2)."""
    standard, small = build_encoder(name, 3), build_encoder(name, 3, stem="small")
    assert (stem_of(standard), stem_of(small)) == ("standard", "small")
    images = torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        assert small.forward_features(images).shape[-2:] == (4, 4)
        assert standard.forward_features(images).shape[-2:] == (1, 1)
        assert small(images).shape == standard(images).shape
    assert small.state_dict().keys() == standard.state_dict().keys()


def test_it_is_for_resnets():
    with pytest.raises(UserError, match=r"mobilenetv3_small_050.* has no small stem: pass a ResNet"):
        build_encoder("mobilenetv3_small_050", stem="small")


def test_the_card_remembers_it(tmp_path):
    small = build_encoder("resnet10t", 3, stem="small")
    file = written(small, tmp_path)
    assert read_card(file).stem == identify(file).stem == "small"
    again = build_encoder("resnet10t", 3, stem="small")
    assert not load_weights(again, file, name="resnet10t", in_channels=3).unexpected
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in small.state_dict().items())


def test_the_other_stem_is_refused(tmp_path):
    file = written(build_encoder("resnet10t", 1, stem="small"), tmp_path / "small", 1)
    with pytest.raises(UserError, match=r"has the small stem and the network here the standard one: pass --stem small"):
        load_weights(build_encoder("resnet10t"), file, name="resnet10t", in_channels=1)
    unet = smp.Unet("tu-resnet10t", encoder_weights=None, in_channels=1)
    with pytest.raises(UserError, match="has the small stem"):
        load_into_unet(unet, file, "resnet10t")
    file = written(build_encoder("resnet10t", 1), tmp_path / "standard", 1)
    with pytest.raises(UserError, match="has the standard stem and the network here the small one"):
        load_weights(build_encoder("resnet10t", stem="small"), file, name="resnet10t", in_channels=1)
