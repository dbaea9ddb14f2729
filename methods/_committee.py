"""Shared by MC-Dropout, BALD and QBC: entropies of several predictions for each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from harness.lazy import torch
from harness.learning.labels import as_rows

if TYPE_CHECKING:
    from harness.learning.contract import Batch, Columns
    from harness.networks.network import Network


def entropies(predictions: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (entropy of the mean prediction, mean entropy of the predictions) [B, *s] for logits [B, C, *s] of each.

    The entropies are in nats and float64: their difference, the Jensen-Shannon divergence of the predictions, decides
    the order even if it is tiny. The predictions are never all in memory at the same time.
    """
    total, entropy, count = torch.zeros(()), torch.zeros(()), 0
    for logits in predictions:
        p = as_rows(logits).double().softmax(1)
        total, entropy, count = total + p, entropy + torch.special.entr(p).sum(1), count + 1
    shape = len(logits), *logits.shape[2:]
    return torch.special.entr(total / count).sum(1).view(shape), (entropy / count).view(shape)


def dropout_entropies(
    network: Network, batch: Batch, prepared: Columns, passes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``entropies`` of passes with dropout before the last layer, with probability ``prepared["dropout"]``.

    The features are computed once, and only the classifier runs in each pass. The result equals that of full passes.
    """
    features = network(batch.images).features

    def predictions() -> Iterator[torch.Tensor]:
        for _ in range(passes):
            yield network.classified(dropped(features, prepared["dropout"], batch.generator))

    return entropies(predictions())


def dropped(features: torch.Tensor, dropout: float | torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return features of any shape after dropout: random entries are set to 0, the others scaled to keep the mean.

    ``dropout`` is the probability. As a tensor [] it stays on the device, because reading it would synchronise.
    """
    kept = torch.rand(features.shape, generator=generator, device=features.device) >= dropout
    return features * kept / (1 - dropout)
