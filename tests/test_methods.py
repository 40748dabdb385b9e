"""SimCLR, MoCo and Barlow Twins: losses by hand, accumulation, the queue, and whole runs of every method."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from core.errors import UserError
from data.sources import AcdcSource, MrnetSource
from encoders.build import build_encoder
from encoders.card import read_card
from encoders.norm import Norm, replace_norm
from engine.accumulation import accumulate, accumulate_by_recomputation
from engine.checkpoint import read_checkpoint
from engine.command_line import parse
from engine.ema import Decay
from pretrain.collapse import collapse_metrics
from pretrain.config import PretrainConfig, presets_for
from pretrain.methods.build import METHODS, build_method, widths
from pretrain.methods.moco import Moco, info_nce, parts_of
from pretrain.methods.whole_batch import BarlowTwins, SimClr, WholeBatchMethod, cross_correlation_loss, nt_xent
from pretrain.stages import run

pytestmark = pytest.mark.usefixtures("one_thread", "no_stale_handlers")
OTHERS = ("simclr", "moco", "barlow")


def encoder(norm: Norm = "group", dropout: float = 0.0) -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.AdaptiveAvgPool2d(2)]
    return replace_norm(nn.Sequential(*layers, nn.Flatten()), norm)


def simclr(norm: Norm = "group", dropout: float = 0.0) -> SimClr:
    torch.manual_seed(0)
    return SimClr(encoder(norm, dropout), 32, projector_hidden=16, outputs=8, norm=norm)


def barlow(norm: Norm = "group", dropout: float = 0.0) -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins(encoder(norm, dropout), 32, projector_hidden=16, outputs=8, norm=norm)


def moco(norm: Norm = "group", queue: int = 6) -> Moco:
    torch.manual_seed(0)
    heads = {"projector_hidden": 16, "outputs": 8, "temperature": 0.2}
    return Moco(encoder(norm), 32, queue=queue, norm=norm, decay=Decay(0.9), **heads)


def draw(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


def test_the_contrastive_loss_of_two_pairs_by_hand():
    """Samples along two axes, both views equal: every view has similarity 1 to its own and 0 to the two others."""
    axes = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    for temperature in (0.5, 1.0):
        one = math.exp(1 / temperature)
        assert nt_xent(axes, 3 * axes, temperature).item() == pytest.approx(-math.log(one / (one + 2)), rel=1e-6)
    # the second views exchanged: the positive has similarity 0, one negative 1 and the other 0
    one = math.exp(2)
    assert nt_xent(axes, axes.flip(0), 0.5).item() == pytest.approx(-math.log(1 / (one + 2)), rel=1e-6)
    assert nt_xent(axes[:1], axes[1:], 0.5).item() == 0  # one pair has no negatives


def test_the_cross_correlation_loss_of_two_pairs_by_hand():
    """Standardised, every dimension is +-1; the second view repeats the first one's first dimension."""
    first = torch.tensor([[3.0, 1.0], [1.0, 5.0]])  # (1, -1), (-1, 1)
    second = torch.tensor([[30.0, 9.0], [10.0, 4.0]])  # (1, 1), (-1, -1)
    # correlations: 1 and 1 of the first dimension with both, -1 and -1 of the second: 0 + 4 on the diagonal
    assert cross_correlation_loss(first, second, 0.0).item() == pytest.approx(4, rel=1e-4)
    assert cross_correlation_loss(first, second, 0.25).item() == pytest.approx(4 + 0.25 * 2, rel=1e-4)
    single = first[:1].requires_grad_()
    loss = cross_correlation_loss(single, second[:1], 0.5)  # nothing correlates over one sample
    assert loss.item() == 2
    loss.backward()


def test_the_queue_loss_of_two_by_two_by_hand():
    axes = torch.eye(2)
    one = math.exp(1 / 0.2)
    # the queue holds both axes: one negative is like the query, one is not
    assert info_nce(axes, axes, axes, 0.2).item() == pytest.approx(-math.log(one / (2 * one + 1)), rel=1e-6)
    assert info_nce(axes, axes.flip(0), axes, 0.2).item() == pytest.approx(-math.log(1 / (one + 2)), rel=1e-6)


def test_the_losses_of_lightly():
    """An implementation by others; it standardises both views of Barlow Twins together, which here changes nothing."""
    loss = pytest.importorskip("lightly.loss")
    first, second = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)).unbind()
    assert nt_xent(first, second, 0.5).item() == pytest.approx(loss.NTXentLoss(0.5)(first, second).item(), rel=1e-4)
    a, b = ((x - x.mean(0)) / x.std(0, unbiased=False) for x in (first, second))
    expected = loss.BarlowTwinsLoss(lambda_param=5e-3)(a, b).item()
    assert cross_correlation_loss(a, b, 5e-3).item() == pytest.approx(expected, rel=1e-3)


def gradients(method: WholeBatchMethod, views: Tensor, micro: int) -> tuple[float, list[Tensor]]:
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup_module(method)
    parts = views.split(micro)
    weights = [len(part) / len(views) for part in parts]
    loss = accumulate_by_recomputation(fabric, model, method.batch_loss, iter(parts), weights)
    return loss.item(), [p.grad.clone() for p in method.parameters() if p.grad is not None]


@pytest.mark.parametrize("build", [simclr, barlow])
@pytest.mark.parametrize("micro", [16, 24, 64])
def test_four_micro_batches_of_16_equal_one_of_64(build, micro):
    """Both with the gradient that autograd gives for the whole batch; largest gradients are of the order of 1."""
    views, plain = draw(64), build()
    expected = plain.batch_loss(plain(views))
    expected.backward()
    loss, found = gradients(build(), views, micro)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(found, (p.grad for p in plain.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_recomputed_micro_batch_draws_the_same_random_numbers():
    """Dropout: the gradient of the second pass belongs to the embeddings of the first."""
    views = draw(8)
    torch.manual_seed(1)
    _, found = gradients(simclr(dropout=0.5), views, 4)
    after = torch.rand(1)
    plain = simclr(dropout=0.5)
    torch.manual_seed(1)
    simclr(dropout=0.5)  # seeds
    embeddings = torch.cat([plain(part) for part in views.split(4)])
    assert torch.equal(torch.rand(1), after)  # the state is that after one pass
    plain.batch_loss(embeddings).backward()
    for ours, theirs in zip(found, (p.grad for p in plain.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several_gpus", [False, True])
def test_recomputation_counts_running_statistics_once(several_gpus):
    """Those of several GPUs as well, whose norm is that of one where there is one process."""
    views, plain, method = draw(8), simclr("batch"), simclr("batch")
    if several_gpus:
        method = convert_sync_batchnorm(method)
    for part in views.split(4):
        plain(part)
    gradients(method, views, 4)
    for ours, theirs in zip(method.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    norms = [
        norm for norm in method.modules() if isinstance(norm, nn.SyncBatchNorm if several_gpus else nn.BatchNorm2d)
    ]
    assert norms
    assert all(norm.momentum == 0.1 for norm in norms)


@pytest.mark.parametrize("micro", [3, 12])
def test_moco_accumulates_exactly(micro):
    fabric, views, method, plain = Fabric(accelerator="cpu", devices=1), draw(12), moco(), moco()
    parts = views.split(micro)
    model = fabric.setup_module(method)
    loss = accumulate(fabric, model, iter(parts), [len(part) / 12 for part in parts])
    method.after_step(1)
    plain(views).backward()
    plain.after_step(1)
    assert loss.isfinite()
    for ours, theirs in zip(method.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(method.queue, plain.queue)
    assert method.last_projections is not None
    assert len(method.last_projections) == 12


def test_the_order_of_the_queue():
    """First in, first out, around the end; of more keys than places the last ones stay."""
    method = moco(queue=5)
    method.queue.zero_()
    key = lambda *numbers: torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 8)  # noqa: E731
    for keys, expected, oldest in (
        (key(1, 2, 3), [1, 2, 3, 0, 0], 3),
        (key(4, 5, 6), [6, 2, 3, 4, 5], 1),
        (key(7, 8, 9, 10, 11, 12), [12, 8, 9, 10, 11], 1),
    ):
        method.enqueue(keys)
        assert (method.queue[:, 0].tolist(), int(method.oldest)) == (expected, oldest)


def test_a_step_of_moco_by_hand():
    """The key encoder is an average, gets no gradient, and its keys of this step become the next step's negatives."""
    method, views = moco(queue=4), draw(3)
    begun = [parameter.clone() for parameter in method.target_encoder.parameters()]
    keys = F.normalize(method._target(views[:, 1]), dim=1)
    before = method.queue.clone()
    method(views).backward()
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    assert torch.equal(method.queue, before)  # not before the step
    method.after_step(1)
    torch.testing.assert_close(method.queue, torch.cat([keys, before[3:]]))
    pairs = zip(begun, method.encoder.parameters(), method.target_encoder.parameters(), strict=True)
    for start, online, target in pairs:
        assert target.grad is None
        torch.testing.assert_close(target, 0.9 * start + 0.1 * online)
    assert method.encoder_to_export("online") is method.encoder


def test_batch_norm_sees_keys_with_other_images_than_their_queries():
    """17 images in two parts: queries in the batch's order, keys a stride apart, and put back into this order."""
    method, views = moco("batch"), draw(17)
    seen: dict[str, list[Tensor]] = {"encoder": [], "target_encoder": []}
    for name, images in seen.items():
        getattr(method, name).register_forward_hook(lambda _, inputs, __, images=images: images.append(inputs[0]))
    method(views)
    assert [len(part) for part in seen["encoder"]] == [9, 8]
    torch.testing.assert_close(torch.cat(seen["encoder"]), views[:, 0])
    torch.testing.assert_close(torch.cat(seen["target_encoder"]), torch.cat([views[::2, 1], views[1::2, 1]]))
    method.eval()  # without batch statistics the parts make no difference
    method._step_ended = True
    method(views)
    torch.testing.assert_close(method._keys[0], F.normalize(method._target(views[:, 1]), dim=1))
    assert [parts_of(n) for n in (3, 15, 16, 64, 256)] == [1, 1, 2, 4, 8]


def test_collapse_of_moco_is_watched_on_the_queries():
    method = moco()
    views = draw(4)
    with torch.no_grad():
        method.projector[-1].weight.zero_()
        method.projector[-1].bias.fill_(1)
    method(views)
    assert method.last_projections is not None
    assert collapse_metrics(method.last_projections)["projection_std"] == 0
    assert collapse_metrics(method._target(views[:, 1]))["projection_std"] > 0.1


def of_recipe(*flags: str) -> PretrainConfig:
    return parse(presets_for, "", [*flags, "--data-root", "X"])


@pytest.mark.parametrize(
    ("method", "expected"),
    [("byol", (4096, 256)), ("simclr", (2048, 128)), ("moco", (2048, 128)), ("barlow", (8192, 8192))],
)
def test_widths_of_the_methods_on_a_resnet50(method, expected):
    cfg = of_recipe("--method", method, "--recipe", "paper")
    assert cfg.encoder == "resnet50"
    assert widths(cfg, 2048) == expected
    assert widths(replace(cfg, projector_hidden=16, projection=8), 2048) == (16, 8)


def test_values_of_the_papers_when_none_are_given():
    """Chen et al. 2020 (temperature 0.5), He et al. 2020 (65,536 keys, 0.999), Zbontar et al. 2021 (0.005)."""
    small = {"projector_hidden": 8, "projection": 8}
    built = {
        method: build_method(
            replace(PretrainConfig(method=method), **small), build_encoder("test_resnet"), steps=100_000, count=count
        )
        for method, count in (("simclr", 9), ("moco", 100_000), ("barlow", 9))
    }
    assert built["simclr"].temperature == 0.5
    assert (len(built["moco"].queue), built["moco"].decay.tau, built["moco"].temperature) == (65_536, 0.999, 0.2)
    assert built["barlow"].redundancy_weight == 5e-3
    few = build_method(
        replace(PretrainConfig(method="moco"), **small), build_encoder("test_resnet"), steps=100_000, count=7
    )
    assert len(few.queue) == 7


@pytest.mark.slow
def test_a_recipe_is_adapted_to_the_method_and_the_optimiser():
    """The decay rate of byol's recipe is not moco's, a rate of LARS not Adam's, a projector of SimCLR not Barlow's."""
    assert of_recipe("--recipe", "paper").tau == 0.99
    assert of_recipe("--recipe", "paper", "--method", "moco").tau is None
    assert of_recipe("--recipe", "paper", "--method", "moco", "--tau", "0.9").tau == 0.9
    assert of_recipe("--recipe", "paper", "--optimiser", "adam").peak_lr(given_start=False) == 1e-3
    assert of_recipe("--recipe", "paper", "--optimiser", "lars").lr == 0.5
    thesis = of_recipe("--dataset", "images", "--recipe", "thesis")
    assert (thesis.optimiser, thesis.lr, widths(thesis, 512)) == ("adam", 1e-3, (512, 128))
    barlow = of_recipe("--dataset", "images", "--recipe", "thesis", "--method", "barlow")
    assert widths(barlow, 512) == (8192, 8192)
    assert of_recipe("--dataset", "images", "--recipe", "thesis", "--optimiser", "lars").lr is None
    assert of_recipe("--recipe", "paper", "--method", "moco").predictor_hidden == PretrainConfig.predictor_hidden


def tiny(root: Path, out: Path, **settings) -> PretrainConfig:
    few = {
        "stage": "specialist",
        "encoder": "test_resnet",
        "image_size": 32,
        "batch_size": 8,
        "micro_batch_size": 5,
        "steps": 3,
        "device": "cpu",
        "checkpoint_every": 2,
        "log_every": 1,
    }
    few |= {"projector_hidden": 16, "projection": 8} if settings.get("method") != "masked" else {}
    return PretrainConfig(**({"data": AcdcSource(data_root=root), "out": out} | few | settings))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_pretrains_and_its_encoder_loads_in_timm(tiny_acdc, tmp_path, method):
    result = run(tiny(tiny_acdc, tmp_path / "run", method=method))
    file = result["encoder"]
    timm.create_model("test_resnet", in_chans=1, num_classes=0, checkpoint_path=file)
    card = read_card(file)
    assert card.network == METHODS[method][0].exports[0]
    assert card.lineage[-1]["method"] == result["method"] == method
    with (tmp_path / "run" / "metrics.csv").open() as metrics:
        rows = list(csv.DictReader(metrics))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    if METHODS[method][0].views == 2:
        assert all(float(row["effective_rank"]) > 1 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_a_run_that_is_resumed_ends_bit_for_bit_alike(tiny_acdc, tmp_path, monkeypatch, method):
    """The queue, its order and the target included: stopped after two of three steps."""
    whole = run(tiny(tiny_acdc, tmp_path / "whole", method=method, encoder="test_resnet"))
    kind = METHODS[method][0]
    after_step = kind.after_step

    def fail(self, step: int) -> None:
        if step == 3:
            raise MemoryError
        after_step(self, step)

    cut = tiny(tiny_acdc, tmp_path / "cut", method=method, encoder="test_resnet")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "after_step", fail)
        with pytest.raises(MemoryError):
            run(cut)
    resumed = run(replace(cut, resume=True))
    ours, theirs = (load_file(each["encoder"]) for each in (resumed, whole))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    states = [read_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("cut", "whole")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert ("queue" in states[0]) == (method == "moco")


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_takes_clips(tiny_knees, tmp_path, method):
    cfg = tiny(tiny_knees, tmp_path / "run", method=method, data=MrnetSource(data_root=tiny_knees), clip_frames=2)
    result = run(replace(cfg, encoder="test_resnet", steps=1))
    assert result["exams"] > 0
    assert math.isfinite(result["effective_rank"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.1}, "--temperature 0.1 goes with --method simclr or moco, not with byol"),
        ({"method": "simclr", "tau": 0.9}, "--tau 0.9 goes with --method byol or moco, not with simclr"),
        ({"mask_patch": 8}, "--mask-patch 8 goes with --method masked, not with byol"),
        ({"method": "simclr", "batch_size": 1}, "--batch-size 1: simclr compares the samples of a batch"),
        ({"method": "barlow", "batch_size": 1}, "--batch-size 1: barlow compares the samples of a batch"),
        ({"method": "simclr", "queue": 10}, "--queue 10 goes with --method moco, not with simclr"),
        ({"method": "moco", "redundancy_weight": 1.0}, "--redundancy-weight 1.0 goes with --method barlow"),
        ({"method": "moco", "queue": 10**13}, "--queue 10000000000000: takes .* GB, more than"),
        ({"method": "moco", "queue": 0}, "--queue 0: must be above 0"),
        ({"method": "simclr", "temperature": 0.0}, r"--temperature 0\.0: must be above 0"),
        ({"method": "moco", "predictor_hidden": 8}, "--predictor-hidden 8 goes with --method byol, not with moco"),
        ({"method": "moco", "tau_schedule": "constant"}, "--tau-schedule constant goes with --method byol"),
        ({"method": "masked", "projection": 8}, "--projection 8 goes with --method byol or simclr or moco or barlow"),
        ({"optimiser": "adam", "trust_coefficient": 0.1}, r"--trust-coefficient 0\.1 goes with --optimiser lars"),
        ({"stage": "generalist", "crop_towards": "motion"}, "--crop-towards motion is for the target images, of which"),
        ({"stage": "generalist", "positives": "phase"}, "--positives phase is for the target images, of which"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(**settings)


def test_a_network_that_a_method_lacks_is_refused(tiny_acdc, tmp_path):
    with pytest.raises(UserError, match="--export target: simclr has no target network"):
        run(tiny(tiny_acdc, tmp_path / "run", method="simclr", export="target"))
    assert not (tmp_path / "run").exists()
