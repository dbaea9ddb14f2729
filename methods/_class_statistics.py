"""Class-conditional feature statistics, and the C x C table that ISDA and EPMCM compute from them.

Both use only Q[y, j] = (w_j - w_y)^T Sigma_y (w_j - w_y), which depends on the pair (y, j) and not on the sample. The
table is therefore built once per step (or per scoring pass) and indexed, and replaces the N x C x A x A tensors of the
usual code.
"""

from __future__ import annotations

from typing import Literal

from harness.lazy import torch

Covariance = Literal["diagonal", "full"]


BLOCK = 2**24
"""Numbers of the differences of weights in one product where classes are batched (64 MiB in float32)."""
LARGE_BLOCK = 2**26
"""Numbers of the matrices that are computed together: those of all classes, if classes are few (256 MiB)."""


def blocks(size: int) -> int:
    """Return how many matrices of so many numbers are computed together."""
    return max(1, LARGE_BLOCK // size)


def _may_loop(tensor: torch.Tensor) -> bool:
    """Return whether a loop over classes is cheap: on a GPU each class costs launches, and their look-up waits."""
    return tensor.device.type == "cpu"


class ClassStatistics:
    """Running per-class mean and biased covariance of all features so far (ISDA, Wang et al. 2019).

    ``count`` [C] int64, ``mean`` [C, A], ``covariance`` [C, A] (diagonal) or [C, A, A] (full), in the features'
    precision (float32 or better). Updating with weight n_batch / (n_batch + n_before) and the between-means term
    yields exactly the covariance, with correction 0, of all features so far.

    Difference from the authors' code: counters are 64-bit integers (theirs are float32 and stop counting at 2^24).
    """

    def __init__(self, num_classes: int, covariance: Covariance) -> None:
        self.num_classes, self.kind = num_classes, covariance
        self.count = torch.zeros(num_classes, dtype=torch.int64)
        self.mean = torch.zeros(0)
        self.covariance = torch.zeros(0)

    @classmethod
    def of(cls, state: dict[str, torch.Tensor]) -> ClassStatistics:
        """Return the statistics with this ``state()``."""
        statistics = cls(len(state["count"]), "diagonal" if state["covariance"].ndim == 2 else "full")
        statistics.load_state(state)
        return statistics

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors; empty before the first update."""
        if not self.mean.numel():
            return {}
        return {"count": self.count, "mean": self.mean, "covariance": self.covariance}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the tensors of ``state()``."""
        if state:
            self.count, self.mean, self.covariance = state["count"], state["mean"], state["covariance"]

    def _start(self, features: torch.Tensor) -> None:
        classes, width = self.num_classes, features.shape[1]
        shape = (classes, width) if self.kind == "diagonal" else (classes, width, width)
        self.count = self.count.to(features.device)
        self.mean = features.new_zeros(classes, width)
        self.covariance = features.new_zeros(shape)

    def update(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add features [N, A] (float32 or float64) with classes ``labels`` [N]; IGNORED labels are left out."""
        features = features.detach()
        if not self.mean.numel():
            self._start(features)
        classes = torch.arange(self.num_classes, device=labels.device)
        member = (labels[:, None] == classes).T.to(features.dtype)  # [C, N]; IGNORED is in no class
        count = member.sum(1).long()
        total = self.count + count
        # 0/0 := 0: a class absent from the batch keeps its statistics
        weight = (count.double() / total.clamp(min=1).double()).to(features.dtype)[:, None]
        mean = member @ features / count.clamp(min=1)[:, None]
        centred = features - mean[labels.clamp(max=self.num_classes - 1)]
        shift = self.mean - mean
        if self.kind == "diagonal":
            batch = member @ centred.square() / count.clamp(min=1)[:, None]
            self.covariance = torch.lerp(self.covariance, batch, weight) + weight * (1 - weight) * shift.square()
        elif _may_loop(features):
            for label in labels[labels < self.num_classes].unique().tolist():  # only the classes that are present
                rows, w = centred[labels == label], weight[label]
                batch = rows.T @ rows / len(rows)
                self.covariance[label].lerp_(batch, w).addr_(shift[label] * (w * (1 - w)), shift[label])
        else:  # fixed shapes over all classes: no synchronisation with the device
            at_once = blocks(features.shape[1] * max(features.shape))
            parts = (t.split(at_once) for t in (self.covariance, member, count, shift, weight))
            for sigma, of_class, images, moved, w in zip(*parts, strict=True):
                batch = (of_class[:, :, None] * centred).transpose(1, 2) @ centred / images.clamp(min=1)[:, None, None]
                between = moved[:, :, None] * moved[:, None, :]
                w = w[:, :, None]
                sigma.copy_(torch.lerp(sigma, batch, w) + w * (1 - w) * between)
        self.mean = torch.lerp(self.mean, mean, weight)
        self.count = total

    def table(self, weight: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Return Q [C, C] for the classifier's weight [C, A]: Q[y, j] = (w_j - w_y)^T Sigma_y (w_j - w_y).

        Differentiable in ``weight``, in the precision of weight and statistics. With ``classes`` only those rows y are
        computed; the other rows are 0 and must not be used.
        """
        # Q does not change when a vector is subtracted from all rows of the weight. Subtracting the mean removes their
        # common part, which would cancel, with a loss of digits, in the expanded square below
        weight = weight - weight.mean(0, keepdim=True)
        if self.kind == "diagonal":
            scaled = self.covariance * weight  # [C, A]: Sigma_y w_y
            quadratic = (scaled * weight).sum(1)
            table = self.covariance @ weight.square().T - 2 * scaled @ weight.T + quadratic[:, None]
            return table.clamp(min=0)
        which = torch.arange(self.num_classes, device=weight.device) if classes is None else classes
        if not len(which):
            return weight.new_zeros(len(weight), len(weight))
        computed = []
        if _may_loop(weight):
            for label in which.tolist():
                difference = weight - weight[label]
                computed.append(((difference @ self.covariance[label]) * difference).sum(1))
            rows = torch.stack(computed)
        else:
            for block in which.split(max(1, BLOCK // weight.numel())):
                differences = weight - weight[block][:, None]  # [block, C, A]
                computed.append(((differences @ self.covariance[block]) * differences).sum(2))
            rows = torch.cat(computed)
        return weight.new_zeros(len(weight), len(weight)).index_copy(0, which, rows)

    def logit_covariance(self, weight: torch.Tensor) -> torch.Tensor:
        """Return S [C, C, C], S[y] = V Sigma_y V^T, where V is the weight minus its mean row.

        S[y] is the covariance of the logits of class-y features minus their mean over classes, which softmax ignores.
        """
        weight = weight - weight.mean(0, keepdim=True)
        classes = len(weight)
        found = weight.new_empty(classes, classes, classes)
        at_once = blocks(weight.numel()) if self.kind == "diagonal" else 1
        for part, sigma in zip(found.split(at_once), self.covariance.split(at_once), strict=True):
            if self.kind == "diagonal":
                part.copy_(torch.einsum("ja,ya,ka->yjk", weight, sigma, weight))
            else:
                part[0] = weight @ sigma[0] @ weight.T
        return found


def logit_covariance(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return S [C, C, C], the biased covariance of the logits [N, C] of each class's samples.

    It equals W Sigma_y W^T, where Sigma_y is the full covariance of the same samples' features, but needs no A x A
    matrix. A class without samples gets 0.
    """
    covariance = logits.new_zeros(num_classes, num_classes, num_classes)
    for label in labels.unique().tolist():
        rows = logits[labels == label]
        rows = rows - rows.mean(0)
        covariance[label] = rows.T @ rows / len(rows)
    return covariance


def fresh_table(logits: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return Q [C, C] from logits [N, C] of labelled samples: Q[y, j] = Var over class y of (z_j - z_y).

    It equals the full-covariance table of the same samples' features, but costs O(N C) and needs no A x A matrix.
    """
    table = logits.new_zeros(num_classes, num_classes)
    for label in labels.unique().tolist():
        rows = logits[labels == label]
        table[label] = (rows - rows[:, label : label + 1]).var(0, correction=0)
    return table
