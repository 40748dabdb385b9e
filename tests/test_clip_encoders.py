import copy
import io
import logging
import urllib.error

import pytest
import timm
import torch
import torchvision
from conftest import assert_close
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import UserError
from encoders import hub
from encoders.build import MaxPoolFrames, build_clip_encoder, build_encoder, feature_width, recompute_activations
from encoders.card import read_card
from encoders.channels import adapt_channels
from encoders.names import VIDEO_ENCODERS
from encoders.weights import load_into_unet, load_weights, save_encoder


def lively(network: nn.Module) -> nn.Module:
    """Set scale, shift and statistics of all norms to values other than 0 and 1; return the network in eval mode."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def clips(n: int = 2, frames: int = 4, size: int = 32) -> Tensor:
    return torch.randn(n, 1, frames, size, size, generator=torch.Generator().manual_seed(0))


def save(encoder: nn.Module, folder, name: str, **changes):
    settings = {"in_channels": 1, "network": "target", "normalisation": {"kind": "z-score", "over": "exam"}}
    settings |= {"norm": "batch", "lineage": [{"stage": "specialist"}]}
    return save_encoder(encoder, folder, name=name, **(settings | changes))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
@pytest.mark.slow
def test_max_pool_features_are_the_frame_wise_maximum_of_the_2d_encoder():
    """Ray 2022: (B * 16, 512, 7, 7) at 224 pixels, maximum over 16 frames, then the average."""
    torch.manual_seed(0)
    model = lively(build_clip_encoder("resnet18"))
    batch = clips(1, 16, 224)
    maps = model.feature_maps(batch)
    assert maps.shape == (1, 512, 7, 7)
    plain = build_encoder("resnet18")
    plain.load_state_dict(model.frame_encoder.state_dict())
    frames = torch.stack([plain.eval().forward_features(batch[:, :, t]) for t in range(16)])
    assert_close(maps, frames.max(dim=0).values)
    assert_close(model(batch), maps.mean(dim=(2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "regnetx_002"])
def test_max_pool_takes_any_2d_encoder(name):
    model = lively(build_clip_encoder(name))
    assert isinstance(model, MaxPoolFrames)
    batch = clips(2, 1, 64)
    assert model(batch).shape == (2, feature_width(model))
    assert_close(model(batch), model.frame_encoder(batch[:, :, 0]))  # one frame: the 2D encoder
    repeated = batch[:, :, [0, 0, 0]]
    assert_close(model(repeated), model(batch))


def test_clips_do_not_mix():
    model = lively(build_clip_encoder("resnet18"))
    batch = clips(3)
    with torch.no_grad():
        assert_close(model(batch)[1:2], model(batch[1:2]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames"), [("r3d_18", 1), ("mc3_18", 8), ("r2plus1d_18", 1)])
def test_video_encoders_give_one_vector_per_clip(name, frames):
    model = build_clip_encoder(name).eval()
    assert feature_width(model) == 512
    with torch.no_grad():
        assert model.feature_maps(clips(1, 8, 32)).shape == (1, 512, frames, 2, 2)
        assert model(clips(1, 8, 32)).shape == (1, 512)


def test_parameter_counts_are_torchvisions():
    with torch.device("meta"):
        assert parameters(torchvision.models.video.r3d_18(num_classes=400)) == 33_371_472
        colour, grey = build_clip_encoder("r3d_18", in_channels=3), build_clip_encoder("r3d_18")
    assert parameters(colour) + 512 * 400 + 400 == 33_371_472
    assert parameters(colour) - parameters(grey) == 64 * 2 * 3 * 7 * 7  # the stem sees one channel, not three


@torch.no_grad()
@pytest.mark.parametrize("name", VIDEO_ENCODERS)
@pytest.mark.slow
def test_a_torchvision_file_gives_torchvisions_features_for_grey_clips(name, tmp_path, caplog):
    """Kinetics-400 files look like this; summed over channels, grey equals grey replicated to three."""
    torch.manual_seed(0)
    theirs = lively(torchvision.models.get_model(name, weights=None))
    torch.save(theirs.state_dict(), tmp_path / "kinetics.pth")
    model = build_clip_encoder(name)
    with caplog.at_level(logging.INFO, "fewslice"):
        report = load_weights(model, tmp_path / "kinetics.pth", name=name, in_channels=1)
    assert (report.missing, report.unexpected) == ([], ["fc.bias", "fc.weight"])
    assert report.lineage[0]["stage"] == "foreign"
    theirs.fc = nn.Identity()
    batch = clips(2, 8, 32)
    expected = theirs(batch.repeat(1, 3, 1, 1, 1))
    assert_close(model.eval()(batch), expected)


def test_the_channels_of_a_3d_stem_by_hand():
    weight = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1, 1) * torch.ones(1, 3, 2, 3, 4)
    summed = adapt_channels(weight, 1)
    assert summed.shape == (1, 1, 2, 3, 4)
    assert (summed == 7).all()
    assert adapt_channels(weight, 3) is weight
    assert adapt_channels(weight, 2)[0, :, 0, 0, 0].tolist() == [1.5, 3]


@torch.no_grad()
@pytest.mark.parametrize("name", ["r3d_18", "resnet18"])
@pytest.mark.slow
def test_a_saved_encoder_is_loaded_unchanged(name, tmp_path):
    torch.manual_seed(0)
    model = lively(build_clip_encoder(name))
    path = save(model, tmp_path, name)
    card = read_card(path)
    assert card.architecture == name
    other = build_clip_encoder(name).eval()
    report = load_weights(other, path, name=name, in_channels=1)
    assert (report.missing, report.unexpected, report.lineage) == ([], [], [{"stage": "specialist"}])
    assert torch.equal(other(clips()), model(clips()))


@pytest.mark.slow
@torch.no_grad()
def test_the_file_of_a_max_pool_model_is_the_2d_encoders(tmp_path):
    import segmentation_models_pytorch as smp

    model = lively(build_clip_encoder("resnet18"))
    path = save(model, tmp_path, "resnet18")
    frame = clips()[:, :, 0]
    plain = timm.create_model("resnet18", in_chans=1, num_classes=0, checkpoint_path=path).eval()
    assert_close(plain(frame), model.frame_encoder(frame))
    unet = smp.Unet("tu-resnet18", encoder_weights=None, in_channels=1, classes=4).eval()
    load_into_unet(unet, path, "resnet18")
    assert_close(unet.encoder(frame)[-1], plain.forward_features(frame))


@pytest.mark.slow
@torch.no_grad()
def test_a_2d_encoder_file_starts_the_max_pool_model(tmp_path):
    """Hierarchical pretraining of exams: from one-channel files of ours and from three-channel foreign ones."""
    torch.manual_seed(0)
    ours, colour = lively(build_encoder("resnet18")), lively(build_encoder("resnet18", 3))
    torch.save(colour.state_dict(), tmp_path / "imagenet.pth")
    for source, plain in ((save(ours, tmp_path, "resnet18"), ours), (tmp_path / "imagenet.pth", colour)):
        model = build_clip_encoder("resnet18").eval()
        load_weights(model, source, name="resnet18", in_channels=1)
        batch = clips(2, 3)
        frames = [batch[:, :, t].repeat(1, 3 if plain is colour else 1, 1, 1) for t in range(3)]
        expected = torch.stack([plain.forward_features(frame) for frame in frames]).amax(dim=0).mean(dim=(2, 3))
        assert_close(model(batch), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: build_encoder("r3d_18"), r"'r3d_18' takes clips of exams, not single images; choose resnet18"),
        (lambda: build_clip_encoder("resnet5"), r"'resnet5' is not a model of timm"),
    ],
)
def test_wrong_encoders_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()


@pytest.mark.slow
def test_weights_of_another_kind_are_refused(tmp_path):
    path = save(build_encoder("resnet18"), tmp_path, "resnet18")
    video, frames = build_clip_encoder("r3d_18"), build_clip_encoder("resnet18")
    for source, message in ((path, "holds a resnet18, not a r3d_18"), ("imagenet", "r3d_18 has no ImageNet weights")):
        with pytest.raises(UserError, match=message):
            load_weights(video, source, name="r3d_18", in_channels=1)
    with pytest.raises(UserError, match="resnet18 has no Kinetics-400 weights, only r3d_18"):
        load_weights(frames, "kinetics", name="resnet18", in_channels=1)
    torch.save(torchvision.models.video.r3d_18().state_dict(), tmp_path / "video.pth")
    with pytest.raises(UserError, match=r"video.pth does not hold a resnet18"):
        load_weights(frames, tmp_path / "video.pth", name="resnet18", in_channels=1)


def test_kinetics_without_a_network_asks_for_a_file(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(hub, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UserError, match=r"Kinetics-400 weights of r3d_18 could not be fetched.* file instead, or put \S+"
    ):
        load_weights(build_clip_encoder("r3d_18"), "kinetics", name="r3d_18", in_channels=1)


@pytest.mark.slow
def test_kinetics_from_the_hub(monkeypatch, caplog):
    theirs = torchvision.models.video.r3d_18()
    kind = torchvision.models.get_model_weights("r3d_18").KINETICS400_V1
    monkeypatch.setattr(hub, "urlopen", lambda *args, **kwargs: io.StringIO())
    monkeypatch.setattr(type(kind), "get_state_dict", lambda self, **kwargs: theirs.state_dict())
    model = build_clip_encoder("r3d_18")
    report = load_weights(model, "kinetics", name="r3d_18", in_channels=1)
    assert report.lineage[0]["source"] == "torchvision R3D_18_Weights.KINETICS400_V1"
    assert torch.equal(model.layer4[1].conv2[0].weight, theirs.layer4[1].conv2[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_norms_in_three_dimensions_do_not_look_at_the_batch(norm):
    model = build_clip_encoder("r3d_18", norm=norm).train()
    with torch.no_grad():
        assert_close(model(clips(3))[:1], model(clips(3)[:1]))
    norms = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    assert norms == {"GroupNorm"} if norm == "group" else {"FrozenBatchNorm3d"}


@pytest.mark.parametrize(
    ("name", "norm"), [("r3d_18", "batch"), ("r3d_18", "group"), ("resnet18", "frozen"), ("efficientnet_b0", "batch")]
)
@pytest.mark.slow
def test_recomputed_activations_leave_gradients_and_statistics_equal(name, norm):
    """Two forward passes, as in BYOL; efficientnet has dropout, so the random numbers must repeat as well."""
    results = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = build_clip_encoder(name, norm, checkpoint).train()
        torch.manual_seed(1)
        (model(clips()).square().mean() + model(clips() * 3).square().mean()).backward()
        gradients = {key: p.grad for key, p in model.named_parameters()}
        results.append((gradients, model.state_dict()))
    for one, other in zip(*results, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.slow
def test_recomputing_keeps_fewer_activations():
    """Bytes that autograd keeps between the passes, counted on tensors held by the graph."""
    held = []
    for checkpoint in (False, True):
        model = build_clip_encoder("r3d_18", checkpoint_activations=checkpoint)
        weights_held = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept=kept, known=weights_held) -> Tensor:
            if tensor.data_ptr() not in known:
                kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = model(clips(1, 8, 32))
        held.append(sum(kept.values()))
        del features
    assert held[1] < 0.5 * held[0]


def test_a_copy_recomputes_its_own_blocks():
    """BYOL's target is a deep copy: its blocks must run on its own weights."""
    model = build_clip_encoder("resnet18", checkpoint_activations=True).eval()
    target = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert target(clips()).abs().max() > 0
    assert model(clips()).abs().max() == 0


def test_recomputing_changes_no_names():
    model = build_clip_encoder("resnet18")
    before = list(model.state_dict())
    recompute_activations(model)
    assert list(model.state_dict()) == before
