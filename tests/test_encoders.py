import copy

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from conftest import assert_close
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn

from core.errors import UserError
from encoders.build import build_clip_encoder, build_encoder, feature_width
from encoders.channels import adapt_channels
from encoders.norm import norm_of, replace_norm
from segment.model import build_unet


def lively(network: nn.Module) -> nn.Module:
    """Set scale, shift and statistics of all norms to values other than 0 and 1; return the network in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_those_of_the_paper():
    assert parameters(build_encoder("resnet50")) == 23_501_760
    unet = smp.Unet("tu-resnet50", encoder_weights=None, in_channels=1, classes=4)
    assert parameters(unet.encoder) == 23_501_760
    assert parameters(unet.decoder) == 9_012_928


@pytest.mark.parametrize(
    ("name", "channels", "width"),
    [
        ("resnet18", 1, 512),
        ("mobilenetv3_small_050", 2, 1024),
        ("regnetx_002", 1, 368),
        ("convnext_atto", 1, 320),
    ],
)
def test_encoder_gives_one_vector_per_image(name, channels, width):
    encoder = build_encoder(name, channels)
    assert encoder.eval()(torch.randn(2, channels, 64, 96)).shape == (2, width)
    assert feature_width(encoder) == width


def test_unknown_encoder_lists_the_nearest():
    with pytest.raises(UserError, match=r"encoder 'resnet5' is not a model of timm.*resnet50"):
        build_encoder("resnet5")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", "images of one size"),
        ("swin_tiny_patch4_window7_224", "images of one size"),
        ("sequencer2d_s", "no feature maps|no pyramid|one size"),
    ],
)
def test_encoder_without_feature_maps_is_refused(name, why):
    with pytest.raises(UserError, match=f"encoder '{name}'.*({why})"):
        build_encoder(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
def test_grey_equals_replicated_grey_after_adapting(name):
    torch.manual_seed(0)
    colour = lively(build_encoder(name, 3))
    grey = lively(build_encoder(name, 1))
    state = colour.state_dict()
    first = timm.get_pretrained_cfg(name).first_conv + ".weight"
    grey.load_state_dict(state | {first: adapt_channels(state[first], 1)})  # and nothing else
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert_close(grey(image), colour(image.repeat(1, 3, 1, 1)))


def test_adapted_channels_by_hand():
    weight = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    assert adapt_channels(weight, 1).flatten().tolist() == [7]
    assert adapt_channels(weight, 3) is weight
    assert adapt_channels(weight, 2).flatten().tolist() == [1.5, 3]
    assert adapt_channels(weight, 6).flatten().tolist() == [0.5, 1, 2, 0.5, 1, 2]
    assert adapt_channels(weight[:, :1], 2).flatten().tolist() == [0.5, 0.5]
    half = adapt_channels(weight.half(), 1)
    assert half.dtype == torch.float16
    # A stem that folds 2 x 2 pixels into depth: per pixel, the sum over the three colours.
    folded = adapt_channels(torch.arange(12.0).reshape(1, 12, 1, 1), 1, base_channels=3)
    assert folded.flatten().tolist() == [3, 12, 21, 30]


def test_frozen_norm_ignores_the_batch_and_keeps_the_weights():
    torch.manual_seed(0)
    plain = lively(build_encoder("resnet18"))
    frozen = replace_norm(copy.deepcopy(plain), "frozen").train()
    assert frozen.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(3, 1, 64, 64)
    # In training mode too: what evaluation of the plain network gives, image by image, statistics unmoved.
    assert_close(frozen(images), plain(images))
    assert_close(frozen(images)[:1], frozen(images[:1]))
    assert frozen.bn1.weight.requires_grad
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(frozen.state_dict()[key], value)
    # An EMA copy stays frozen.
    assert not copy.deepcopy(frozen).train().bn1.training


def test_group_norm_keeps_scale_and_shift():
    torch.manual_seed(0)
    plain = lively(build_encoder("resnet18"))
    group = replace_norm(copy.deepcopy(plain), "group")
    assert isinstance(group.bn1, nn.GroupNorm)
    assert group.bn1.num_groups == 32
    torch.testing.assert_close(group.bn1.weight, plain.bn1.weight)
    assert not [m for m in group.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    images = torch.randn(3, 1, 64, 64)
    assert_close(group.train()(images)[:1], group(images[:1]))


def test_norm_of_heads_and_of_fused_activations():
    head = nn.Sequential(nn.Linear(4, 24), nn.BatchNorm1d(24), nn.ReLU())
    vector = torch.randn(5, 4)
    group = replace_norm(copy.deepcopy(head), "group")
    assert group[1].num_groups == 12  # the largest divisor of 24 that leaves two channels a group
    assert_close(group(vector)[:1], group(vector[:1]))
    frozen = replace_norm(copy.deepcopy(head), "frozen").train()
    assert_close(frozen(vector), head.eval()(vector))

    fused = nn.Sequential(BatchNormAct2d(8, act_layer=nn.SiLU))
    swapped = replace_norm(fused, "group")[0]
    assert isinstance(swapped, GroupNormAct)
    x = torch.randn(2, 8, 4, 4)
    expected = nn.functional.silu(nn.functional.group_norm(x, 4, swapped.weight, swapped.bias))
    assert_close(swapped(x), expected)
    assert replace_norm(nn.BatchNorm2d(1), "group").num_groups == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dimensions"), [("resnet10t", 2), ("r3d_18", 3)])
def test_weights_are_standardised_where_they_are_used(name, dimensions):
    torch.manual_seed(0)
    build = build_encoder if dimensions == 2 else build_clip_encoder
    plain = build(name, norm="group")
    network = build(name, norm="group+ws")
    assert [norm_of(each) for each in (plain, network, build(name), build(name, norm="frozen"))] == [
        "group", "group+ws", "batch", "frozen",
    ]  # fmt: skip
    network.load_state_dict(plain.state_dict())  # the same names
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                weights = module.weight.flatten(1)
                variance, mean = torch.var_mean(weights, dim=1, correction=0, keepdim=True)
                module.weight.copy_(((weights - mean) / (variance + 1e-6).sqrt()).view_as(module.weight))
    images = torch.randn(2, 1, *(32,) * dimensions)
    assert_close(network(images), plain(images))
    trained = copy.deepcopy(network)
    trained(images).square().sum().backward()
    with torch.no_grad():
        for p in trained.parameters():
            p.sub_(p.grad)
    assert not torch.allclose(trained(images), network(images))
    assert trained.state_dict().keys() == plain.state_dict().keys()


def test_a_layer_without_a_norm_keeps_its_weights():
    unet = build_unet("resnet10t", 4, "group+ws")
    head = unet.segmentation_head[0]
    assert torch.equal(head.weight, head._parameters["weight"])
    first = unet.encoder.model.conv1[0]
    assert not torch.equal(first.weight, first._parameters["weight"])


def test_norm_by_name():
    assert isinstance(build_encoder("resnet18", norm="group").bn1, nn.GroupNorm)
    assert not build_encoder("resnet18", norm="frozen").train().bn1.training
