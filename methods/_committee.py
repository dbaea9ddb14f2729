"""What MC-Dropout, BALD and QBC share: scores from several predictions of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from harness.lazy import torch

from ._places import ByPlace

if TYPE_CHECKING:
    from harness.learning.contract import Columns
    from harness.networks.network import Network


class Committee(ByPlace):
    """Ranks by how the predictions of an image differ; an image's score is the mean over its places."""

    def predictions(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """Yield the logits [B, C, *s] of one prediction after another: they are never all in memory."""
        raise NotImplementedError

    def score(self, of_mean: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return [N], highest bought first, for the entropy of the mean prediction and the mean entropy [N].

        Their difference: the predictions' Jensen-Shannon divergence.
        """
        return of_mean - mean

    def heat(
        self, network: Network, images: torch.Tensor, prepared: Columns, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the score of each place [B, *s]."""
        from harness.learning.labels import as_rows

        places: list[int] = []

        def rows() -> Iterator[torch.Tensor]:
            for logits in self.predictions(network, images, prepared, generator):
                places[:] = logits.shape[2:]
                yield as_rows(logits)

        return self.score(*entropies(rows())).view(len(images), *places)


def entropies(predictions: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (entropy of the mean prediction, mean entropy of the predictions) [N] for logits [N, C] of each.

    In nats, and in float64: where predictions hardly differ, their difference is all that ranks.
    """
    total, entropy, count = torch.zeros(()), torch.zeros(()), 0
    for logits in predictions:
        p = logits.double().softmax(1)
        total, entropy, count = total + p, entropy + torch.special.entr(p).sum(1), count + 1
    return torch.special.entr(total / count).sum(1), entropy / count
