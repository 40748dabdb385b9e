"""MoCo (momentum contrast): a view is to be told from a queue of earlier views (He et al. 2020)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.norm import Norm
from engine.accumulation import gather_samples
from engine.ema import Decay
from pretrain.methods.method import Exported
from pretrain.methods.target import TargetMethod

PARTS = 8
"""Most parts of a micro-batch that batch norm normalises by themselves, the number of GPUs of the paper."""
IMAGES_OF_PART = 16
"""Images of a part: statistics of fewer are noisy, and small parts are slow."""
FEWEST_IMAGES = 16
"""Micro-batches of fewer images are not cut in two."""


def parts_of(images: int) -> int:
    """Number of parts in which a micro-batch of so many images is normalised; 1: it is too small to be shuffled."""
    return max(1 if images < FEWEST_IMAGES else 2, min(PARTS, images // IMAGES_OF_PART))


class Moco(TargetMethod):
    """The online network, its target, and a queue of the target's projections of earlier steps, the negatives.

    As the negatives come from the queue, the loss is a mean over samples, whatever the batch. Batch norm would give the
    positives away: query and key of an image would be normalised with the same images, unlike the keys of the queue.
    The paper therefore shuffles the keys between GPUs. Here each device normalises a micro-batch in up to eight parts,
    those of the keys made of other images than those of the queries; group norm has no such statistics.

    Args:
        encoder: see `Method`.
        features: width of the encoder's output.
        projector_hidden, outputs: widths of the projector, of two layers as in MoCo v2 (Chen et al. 2020).
        queue: length of the queue.
        temperature: of the similarities, above 0.
        norm: normalisation of the projector.
        decay: decay rates of the target's moving average.
    """

    exports: ClassVar[tuple[Exported, ...]] = ("online", "target")
    queue: Tensor
    oldest: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        *,
        projector_hidden: int,
        outputs: int,
        queue: int,
        temperature: float,
        norm: Norm,
        decay: Decay,
    ) -> None:
        super().__init__(encoder, features, projector_hidden=projector_hidden, outputs=outputs, norm=norm, decay=decay)
        self.temperature = temperature
        self.resolved |= {"temperature": temperature, "queue": queue}
        # Both are saved in checkpoints. The queue begins with random directions, as in the paper.
        self.register_buffer("queue", F.normalize(torch.randn(queue, outputs), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self._keys: list[Tensor] = []

    def forward(self, views: Tensor) -> Tensor:
        """Mean loss of the first views as queries and the second views as keys.

        Args:
            views: (N, 2, channels, H, W), or of clips (N, 2, channels, T, H, W).
        """
        if self._step_ended:
            self._keys.clear()
        # Samples come in random order, so that keys a stride apart are as good as shuffled ones, and need no seed.
        parts = self._parts(views)
        order = torch.cat([torch.arange(k, len(views), parts) for k in range(parts)]).to(views.device)
        projections, keys = self.networks(torch.stack([views[:, 0], views[order, 1]], dim=1) if parts > 1 else views)
        self.remember(projections)
        keys = F.normalize(keys[order.argsort()].float(), dim=1)
        self._keys.append(keys)
        with torch.autocast(keys.device.type, enabled=False):  # the loss in fp32 whatever the networks' precision
            return info_nce(F.normalize(projections.float(), dim=1), keys, self.queue.float(), self.temperature)

    def networks(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Projections (N, outputs) of the first views by the online network and of the second by the target."""
        parts = views.chunk(self._parts(views))
        queries = torch.cat([self.projector(self.encoder(part[:, 0])) for part in parts])
        return queries, torch.cat([self._target(part[:, 1]) for part in parts])

    def _parts(self, views: Tensor) -> int:
        """Parts that a micro-batch is normalised in."""
        return parts_of(len(views)) if self.batch_statistics else 1

    def after_step(self, step: int) -> None:
        """Move the target, and put this step's keys into the queue in place of the oldest ones."""
        super().after_step(step)
        # In the order of the batch, whatever the devices. A device without samples for a last micro-batch has repeated
        # one, whose key is then twice in the queue.
        self.enqueue(gather_samples(torch.cat(self._keys)))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest entries of the queue by keys (N, outputs); of more keys than entries the last ones."""
        keys = keys[-len(self.queue) :]
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys.to(self.queue.dtype)
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy of telling each query's own key from the queue.

    Args:
        queries: (N, D) of unit length.
        keys: (N, D) of unit length, the positives.
        queue: (K, D) of unit length, the negatives.
        temperature: of the similarities.

    Source: He et al. 2020, eq. 1.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    similarities = torch.cat([positive, queries @ queue.T], dim=1) / temperature
    return F.cross_entropy(similarities, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))
