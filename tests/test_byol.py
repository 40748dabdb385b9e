import copy
import math

import pytest
import torch
from conftest import assert_close
from torch import Tensor, nn

from encoders.norm import Norm, replace_norm
from pretrain.collapse import collapse_metrics
from pretrain.methods.byol import Byol, regression_loss
from pretrain.methods.heads import mlp


def encoder(norm: Norm = "group") -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return replace_norm(net, norm)


def build(norm: Norm = "group") -> Byol:
    torch.manual_seed(0)
    return Byol(encoder(norm), 32, projector_hidden=256, predictor_hidden=320, outputs=8, norm=norm)


def draw(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


def test_the_target_starts_as_a_copy_without_shared_storage():
    byol = build("batch")
    for online, target in ((byol.encoder, byol.target_encoder), (byol.projector, byol.target_projector)):
        for (name, a), (_, b) in zip(online.state_dict().items(), target.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
            assert a.data_ptr() != b.data_ptr(), name
        assert not any(p.requires_grad for p in target.parameters())
    assert not hasattr(byol, "target_predictor")


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_three_steps_against_a_reference(norm):
    """Grill et al. 2020, eqs. 1 and 2, with SGD; written anew, one view at a time.

    In float64 no ReLU flips; the loss alone is computed in float32, so it is exact to some 1e-7 of at most 8.
    """
    byol = build(norm).double()
    f, g, q = (copy.deepcopy(m) for m in (byol.encoder, byol.projector, byol.predictor))
    ft, gt = copy.deepcopy(f), copy.deepcopy(g)
    sgd = torch.optim.SGD([p for p in byol.parameters() if p.requires_grad], lr=0.1)
    optimiser = torch.optim.SGD([*f.parameters(), *g.parameters(), *q.parameters()], lr=0.1)

    for step, tau in enumerate((0.5, 0.9, 1.0)):
        views = draw(6, step).double()
        loss = byol(views)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        byol.move_target(tau)

        expected = torch.zeros((), dtype=torch.float64)
        for v, w in ((views[:, 0], views[:, 1]), (views[:, 1], views[:, 0])):
            prediction = q(g(f(v)))
            projection = gt(ft(w)).detach()
            a = prediction / prediction.norm(dim=1, keepdim=True)
            b = projection / projection.norm(dim=1, keepdim=True)
            expected = expected + (2 - 2 * (a * b).sum(dim=1)).sum() / len(views)
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
        with torch.no_grad():
            for online, target in ((f, ft), (g, gt)):
                for p, xi in zip(online.parameters(), target.parameters(), strict=True):
                    xi.copy_(tau * xi + (1 - tau) * p)

        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        pairs = ((byol.encoder, f), (byol.projector, g), (byol.predictor, q))
        for ours, theirs in (*pairs, (byol.target_encoder, ft), (byol.target_projector, gt)):
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a.data, b.data, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "calls"), [("group", 1), ("frozen", 1), ("batch", 2)])
def test_views_go_through_one_forward_only_without_batch_statistics(norm, calls):
    byol = build(norm)
    sizes: dict[nn.Module, list[int]] = {byol.encoder: [], byol.target_encoder: []}
    for network, seen in sizes.items():
        network.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
    byol(draw(5))
    assert list(sizes.values()) == [[10 // calls] * calls] * 2


def test_batch_statistics_are_of_one_view_only():
    """A second view of very different intensities must not reach the statistics of the first."""
    byol = build("batch")
    views = draw(8)
    views[:, 1] *= 100
    byol(views)
    single = build("batch")
    single._online(views[:, 0])
    single._online(views[:, 1])
    for network in (byol.encoder, byol.target_encoder):
        assert_close(network[1].running_var, single.encoder[1].running_var)


def test_one_sample_alone_is_trained_on_under_batch_norm():
    """The last batch of an epoch may hold one sample, too few for batch statistics."""
    loss = build("batch")(draw(1))
    assert loss.isfinite()
    loss.backward()


def test_the_target_gets_no_gradient():
    byol = build()
    byol(draw(4)).backward()
    assert all(p.grad is None for p in (*byol.target_encoder.parameters(), *byol.target_projector.parameters()))
    online = (*byol.encoder.parameters(), *byol.projector.parameters(), *byol.predictor.parameters())
    assert all(p.grad is not None for p in online)


def test_the_loss_by_hand():
    one = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert regression_loss(one, one * 7).item() == pytest.approx(0, abs=1e-6)
    assert regression_loss(one, -one).item() == pytest.approx(4)
    assert regression_loss(one, one.flip(1)).item() == pytest.approx(2)
    halfway = torch.tensor([[1.0, 1.0], [0.0, 5.0]])
    assert regression_loss(one, halfway).item() == pytest.approx((2 - math.sqrt(2)) / 2)
    assert regression_loss(one.bfloat16(), one.bfloat16()).dtype == torch.float32


def test_the_symmetric_loss_lies_between_0_and_8_and_ignores_the_order_of_views():
    byol = build()
    views = draw(16)
    loss = byol(views).item()
    assert 0 < loss < 8
    assert byol(views.flip(1)).item() == pytest.approx(loss, rel=1e-4)


def test_heads_have_the_configured_widths():
    head = mlp(5, 7, 3)
    shapes = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert shapes == [(5, 7), (7, 3)]
    assert head[0].weight.abs().max() <= math.sqrt(6 / 5)  # Kaiming-uniform for ReLU
    assert not head[0].bias.any()


def test_collapse_is_watched_on_the_online_network():
    """The target lags behind: it still spreads its projections when those of the online network are all alike."""
    byol = build()
    views = draw(4)
    with torch.no_grad():
        byol.projector[3].weight.zero_()
        byol.projector[3].bias.fill_(1)
    byol(views)
    assert byol.last_projections is not None
    assert collapse_metrics(byol.last_projections)["projection_std"] == 0
    assert collapse_metrics(byol._target(views[:, 0]))["projection_std"] > 0.1
    expected = byol.projector(byol.encoder(torch.cat([views[:, 0], views[:, 1]])))
    assert_close(byol.last_projections, expected)
    assert not byol.last_projections.requires_grad


def test_spread_projections_score_one_and_constant_ones_zero():
    spread = collapse_metrics(torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)))
    assert spread["projection_std"] == pytest.approx(1, abs=0.02)
    assert 60 < spread["effective_rank"] <= 64
    for constant in (torch.ones(16, 8), torch.zeros(16, 8), torch.arange(1.0, 17)[:, None] * torch.ones(8)):
        collapsed = collapse_metrics(constant)  # the last: one direction at many lengths
        assert collapsed["projection_std"] == pytest.approx(0, abs=1e-5)


def test_the_effective_rank_by_hand():
    axes = torch.eye(3)
    # opposite pairs along the axes: centred already, singular values sqrt(2 n) for n pairs
    equal = torch.cat([axes[:2], -axes[:2]])
    assert collapse_metrics(equal)["effective_rank"] == pytest.approx(2, rel=1e-5)
    uneven = torch.cat([axes[:1], -axes[:1]] * 9 + [axes[1:2], -axes[1:2]])  # singular values 3 : 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert collapse_metrics(uneven)["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-5)
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert collapse_metrics(line)["effective_rank"] == pytest.approx(1, rel=1e-5)
