"""SimCLR and Barlow Twins, whose losses compare the samples of the whole effective batch with each other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.norm import Norm
from pretrain.methods.heads import mlp
from pretrain.methods.method import Method


class WholeBatchMethod(Method):
    """An encoder and a projector, and a loss of all embeddings of an effective batch.

    Calling it returns embeddings, not a loss: `engine.accumulation.accumulate_by_recomputation` trains it, so that
    micro-batches and devices do not change the result.

    Args:
        encoder: see `Method`.
        features: width of the encoder's output.
        projector_hidden, outputs, layers: widths and linear layers of the projector.
        norm: normalisation of the projector.
    """

    def __init__(
        self, encoder: nn.Module, features: int, *, projector_hidden: int, outputs: int, layers: int, norm: Norm
    ) -> None:
        super().__init__(encoder)
        self.projector = mlp(features, projector_hidden, outputs, layers=layers, norm=norm)
        self.batch_statistics = norm == "batch"

    def forward(self, views: Tensor) -> Tensor:
        """Projections of both views, (N, 2, outputs)."""
        return self.networks(views)

    def networks(self, views: Tensor) -> Tensor:
        """Projections of both views, (N, 2, outputs)."""
        first, second = views[:, 0], views[:, 1]
        if self.batch_statistics and len(views) > 1:  # statistics of each view by itself, see `Byol.networks`
            outputs = [self._project(first), self._project(second)]
        else:
            outputs = list(self._project(torch.cat([first, second])).chunk(2))
        return torch.stack(outputs, dim=1)

    def _project(self, view: Tensor) -> Tensor:
        return self.projector(self.encoder(view))

    def batch_loss(self, projections: Tensor) -> Tensor:
        """Loss of the projections (N, 2, outputs) of an effective batch."""
        self.remember(projections.flatten(0, 1))
        return self.loss(projections[:, 0].float(), projections[:, 1].float())

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Loss of the projections (N, outputs) of the first and of the second views, in fp32."""
        raise NotImplementedError


class SimClr(WholeBatchMethod):
    """SimCLR: a view is to be told from the views of all other samples (Chen et al. 2020).

    Args:
        temperature: of the similarities, above 0.
    """

    def __init__(self, encoder: nn.Module, features: int, *, temperature: float = 0.5, **projector: object) -> None:
        super().__init__(encoder, features, layers=2, **projector)  # type: ignore[arg-type]
        self.temperature = temperature
        self.resolved = {"temperature": temperature}

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """See `nt_xent`."""
        return nt_xent(first, second, self.temperature)


class BarlowTwins(WholeBatchMethod):
    """Barlow Twins: the views' features agree, and repeat no other feature (Zbontar et al. 2021).

    Args:
        redundancy_weight: weight of the redundancy term, lambda in the paper.
    """

    def __init__(
        self, encoder: nn.Module, features: int, *, redundancy_weight: float = 5e-3, **projector: object
    ) -> None:
        super().__init__(encoder, features, layers=3, **projector)  # type: ignore[arg-type]
        self.redundancy_weight = redundancy_weight

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """See `cross_correlation_loss`."""
        return cross_correlation_loss(first, second, self.redundancy_weight)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy of N pairs of projections, both (N, D), averaged over the 2N views.

    The positive of a view is the other view of its sample, the negatives are both views of all other samples. 0 for one
    pair, which has no negatives. Source: Chen et al. 2020, eq. 1 and algorithm 1.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)
    similarities = views @ views.T / temperature
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    positives = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarities.masked_fill(itself, -torch.inf), positives)


def cross_correlation_loss(first: Tensor, second: Tensor, redundancy_weight: float) -> Tensor:
    """Squared distance of the cross-correlation matrix of N pairs of projections, both (N, D), from the identity.

    Elements off the diagonal are weighted by `redundancy_weight`. Each dimension of each view is standardised over the
    batch first. Source: Zbontar et al. 2021, eqs. 1 and 2, and algorithm 1.
    """
    a, b = (F.batch_norm(view, None, None, training=True) if len(view) > 1 else view * 0 for view in (first, second))
    correlation = a.T @ b / len(a)
    on_diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - on_diagonal.square().sum()
    return (on_diagonal - 1).square().sum() + redundancy_weight * off_diagonal
