"""BYOL and U-Net training steps of other libraries, re-created from their documentation around the same network.

Each function takes an encoder, (N, 1, ...) -> (N, features), and returns a step: it takes two views, makes one
optimiser step and updates the target network. Online classifiers, trainers and loggers are left out, as they would only
slow the libraries down.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

Step = Callable[[Tensor, Tensor], None]
"""One optimiser step on two views, each (N, 1, rows, columns) or (N, 1, frames, rows, columns)."""

LR, WEIGHT_DECAY, TRUST, TAU = 0.03, 1e-5, 0.02, 0.99
"""The same for all contestants."""


@dataclass(frozen=True)
class Heads:
    """Widths of BYOL's heads."""

    projector_hidden: int = 4096
    predictor_hidden: int = 8192
    outputs: int = 256


def solo_learn(encoder: nn.Module, features: int, heads: Heads) -> Step:
    """solo-learn's BYOL: view by view through both networks, LARS weight by weight, the average tensor by tensor.

    Source: its documentation (method BYOL, LARS with clip_lr, MomentumUpdater).
    """
    online = nn.Sequential(encoder, _mlp(features, heads.projector_hidden, heads.outputs))
    predictor = _mlp(heads.outputs, heads.predictor_hidden, heads.outputs)
    target = copy.deepcopy(online).requires_grad_(False)
    optimiser = LoopLars([*online.parameters(), *predictor.parameters()])

    def step(first: Tensor, second: Tensor) -> None:
        predictions = [predictor(online(view)) for view in (first, second)]
        with torch.no_grad():
            projections = [target(view) for view in (first, second)]
        loss = _cosine_loss(predictions[0], projections[1]) + _cosine_loss(predictions[1], projections[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        solo_learn_average(online, target, TAU)

    return step


def lightly(encoder: nn.Module, features: int, heads: Heads) -> Step:
    """lightly's example of BYOL in plain PyTorch, with lightly's heads, loss, average and LARS.

    Source: https://docs.lightly.ai/self-supervised-learning/examples/byol.html; LARS with two groups as its
    benchmarks on ImageNet set it up.
    """
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, get_weight_decay_parameters, update_momentum
    from lightly.utils.lars import LARS

    projector = BYOLProjectionHead(features, heads.projector_hidden, heads.outputs)
    predictor = BYOLPredictionHead(heads.outputs, heads.predictor_hidden, heads.outputs)
    target_encoder, target_projector = copy.deepcopy(encoder), copy.deepcopy(projector)
    deactivate_requires_grad(target_encoder)
    deactivate_requires_grad(target_projector)
    decayed, others = get_weight_decay_parameters([encoder, projector, predictor])
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimiser = LARS(groups, lr=LR, momentum=0.9, weight_decay=WEIGHT_DECAY, trust_coefficient=TRUST)
    criterion = NegativeCosineSimilarity()

    def predict(view: Tensor) -> Any:
        return predictor(projector(encoder(view).flatten(start_dim=1)))

    def project(view: Tensor) -> Any:
        return target_projector(target_encoder(view).flatten(start_dim=1)).detach()

    def step(first: Tensor, second: Tensor) -> None:
        update_momentum(encoder, target_encoder, m=TAU)
        update_momentum(projector, target_projector, m=TAU)
        p0, z0 = predict(first), project(first)
        p1, z1 = predict(second), project(second)
        loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def byol_pytorch(encoder: nn.Module, features: int, heads: Heads) -> Step:
    """byol-pytorch's class BYOL with its average; it has no optimiser, so `LoopLars` is used.

    Both views go through one forward pass, so that batch norms see the statistics of both: the result differs.
    Its augmentations are replaced by functions that select one of the two channels, which hold the two views.
    Source: https://github.com/lucidrains/byol-pytorch, README.
    """
    import byol_pytorch as peer

    learner = peer.BYOL(  # image_size is only used for a trial input
        encoder, image_size=64, hidden_layer=-1, projection_size=heads.outputs, moving_average_decay=TAU,
        projection_hidden_size=heads.projector_hidden, use_simplicial_embeddings=False,
        augment_fn=lambda images: images[:, :1], augment_fn2=lambda images: images[:, 1:2],
    )  # fmt: skip
    # the default predictor is as wide as the projector
    learner.online_predictor = _mlp(heads.outputs, heads.predictor_hidden, heads.outputs)
    optimiser = LoopLars([p for p in learner.parameters() if p.requires_grad])

    def step(first: Tensor, second: Tensor) -> None:
        loss = learner(torch.cat([first, second], dim=1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        learner.update_moving_average()

    return step


PEERS = {"lightly": lightly, "solo-learn loop": solo_learn, "byol-pytorch": byol_pytorch}


def smp_loop(encoder: str, classes: int) -> Step:
    """U-Net, Jaccard loss and Adam as the documentation of segmentation_models.pytorch puts them together.

    Gradients are clipped as in the reference code. Source: https://smp.readthedocs.io, quick start and losses.
    """
    import segmentation_models_pytorch as smp

    network = smp.Unet(encoder_name=f"tu-{encoder}", encoder_weights=None, in_channels=1, classes=classes)
    criterion = smp.losses.JaccardLoss(mode="multiclass")
    optimiser = optim.Adam(network.parameters(), lr=1e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = criterion(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()

    return step


@torch.no_grad()
def solo_learn_average(online: nn.Module, target: nn.Module, tau: float) -> None:
    """The target's weights as new tensors, one by one. Source: solo-learn's documentation of MomentumUpdater."""
    for op, mp in zip(online.parameters(), target.parameters(), strict=True):
        mp.data = tau * mp.data + (1 - tau) * op.data


class LoopLars(optim.Optimizer):
    """LARS as a loop over weights that reads the norms of each one in Python, which waits for the device every time.

    Source: You et al. 2017; clipping and exclusion of biases as solo-learn documents them (clip_lr,
    exclude_bias_n_norm).
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {"lr": LR, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if p.ndim > 1:
                    weight_norm, gradient_norm = torch.norm(p), torch.norm(update)
                    if weight_norm != 0 and gradient_norm != 0:
                        rate = TRUST * weight_norm / (gradient_norm + weight_norm * WEIGHT_DECAY + 1e-8)
                        rate = min(rate / group["lr"], 1)
                        update = update.add(p, alpha=WEIGHT_DECAY)
                        update *= rate
                state = self.state[p]
                if "momentum" in state:
                    state["momentum"].mul_(group["momentum"]).add_(update)
                else:
                    state["momentum"] = update.clone()
                p.add_(state["momentum"], alpha=-group["lr"])


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _cosine_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    return 2 - 2 * F.cosine_similarity(prediction, projection.detach(), dim=-1).mean()
