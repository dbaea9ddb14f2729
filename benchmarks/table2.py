"""Table 2 of DAST-AL: EPMCM's bound (Eq. 7) against means of M explicit samples (Eq. 5), on a trained network.

    python benchmarks/table2.py quickstart [KEY=VALUE ...] [--method DAST-AL] [--images 1000] [--csv FILE]

The network is that of the trial's last finished cycle in the results folder of the config, or of a cycle 0 that is
trained here. The paper does not say of which expectation it samples the mean, so both readings are printed:

- the bound minus the mean of 1 - p, the score of Eq. 6: the bound is no limit of this mean, so the gap can't shrink;
- the distance of the bound to the mean of 1/p - 1, the middle of Eq. 7, whose expectation it is: this can.

p is the probability of the predicted class under logits z~ ~ N(z, W Sigma W^T), which have the same distribution as
those of sampled features. Draws are nested: the first 100 of 1000 are those of M = 100.
"""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from measure import of_config, trained
from scipy.stats import spearmanr
from tabulate import tabulate

from harness.learning.inference import inferred

epmcm = import_module("harness.methods.epmcm")
class_statistics = import_module("harness.methods._class_statistics")

AT_ONCE = 2**22  # normal numbers of one chunk
PAPER = {100: (0.85, 0.49), 1000: (0.57, 0.34), 10_000: (0.35, 0.10), 100_000: (0.11, 0.07)}
"""M -> mean and standard deviation of the gap over 1000 queried images, as printed: ResNet-18, CIFAR-10."""
TOP = 0.1


def means(
    logits: torch.Tensor, root: torch.Tensor, samples: list[int], generator: torch.Generator
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return M -> the means [N] of 1 - p and of 1/p - 1 over the first M draws, for each M of ``samples``.

    ``logits`` [N, C] and ``root`` [C, C, C], the root of each predicted class's logit covariance, are float64.
    """
    predicted = logits.argmax(1)
    sums, done, found = torch.zeros(2, len(logits), dtype=torch.float64, device=logits.device), 0, {}
    for number in sorted(samples):
        while done < number:
            draws = min(max(1, AT_ONCE // logits.numel()), number - done)
            noise = torch.randn(
                len(logits), draws, logits.shape[1], generator=generator, dtype=logits.dtype, device=logits.device
            )
            drawn = logits[:, None, :] + noise @ root[predicted]
            log_p = drawn.log_softmax(2).gather(2, predicted[:, None, None].expand(-1, draws, 1))[..., 0]
            sums += torch.stack([-torch.expm1(log_p).sum(1), torch.expm1(-log_p).sum(1)])
            done += draws
        found[number] = (sums[0] / number, sums[1] / number)
    return found


def compared(bound: torch.Tensor, found: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> list[list[float | str]]:
    """Return a row for each M: gaps as mean and std over images, and the rank correlation with the mean of 1 - p."""
    rows = []
    for number, (literal, inverse) in found.items():
        gaps = [bound - literal, (bound - inverse).abs(), (bound.log() - inverse.log()).abs()]
        spread = [float(value) for gap in gaps for value in (gap.mean(), gap.std())]
        rows.append([number, *spread, float(spearmanr(bound, literal).statistic), *PAPER.get(number, ("", ""))])
    return rows


HEADS = [
    *("M", "E[1-p]: gap", "E[1-p]: std", "E[1/p-1]: gap", "E[1/p-1]: std", "log gap", "log std"),
    *("rank corr. to E[1-p]", "paper: gap", "paper: std"),
]


def main(words: list[str] | None = None) -> None:
    """Print the table and how the bound ranks images against least confidence."""
    options = of_config(__doc__, images=1000)
    options.add_argument("--samples", type=int, nargs="+", default=[*PAPER], metavar="M")
    options.add_argument("--csv", type=Path, help="also write the table to this file")
    asked = options.parse_args(words)
    _, cycle = trained(asked)
    statistics = class_statistics.ClassStatistics.of(cycle.learned)
    weight = cycle.network.classifier.weight.detach()
    indices = cycle.candidates[: asked.images]  # in random order
    logits = inferred(cycle, indices, lambda images: cycle.network(images).logits, "the candidates' logits").double()
    bound = epmcm.log_change(logits, statistics.table(weight).double()).exp().cpu()
    root = epmcm.matrix_root(statistics.logit_covariance(weight).double())
    found = means(logits, root, asked.samples, torch.Generator(logits.device).manual_seed(asked.seed))
    rows = compared(bound, {number: (a.cpu(), b.cpu()) for number, (a, b) in found.items()})
    print(tabulate(rows, HEADS, floatfmt=("g", *[".4g"] * 9)))
    least = 1 - logits.softmax(1).max(1).values.cpu()
    most = max(1, round(TOP * len(bound)))
    common = len({*bound.topk(most).indices.tolist()} & {*least.topk(most).indices.tolist()}) / most
    table = statistics.table(weight).cpu().numpy()
    median = np.median(table[~np.eye(len(table), dtype=bool)])
    print(
        f"{len(bound)} candidates; the bound against least confidence: rank correlation "
        f"{spearmanr(bound, least).statistic:.3f}, {100 * common:.0f} % of the first {100 * TOP:.0f} % are the same; "
        f"median of Q off its diagonal {median:.3g}"
    )
    if asked.csv:
        with asked.csv.open("w", newline="") as file:
            csv.writer(file).writerows([HEADS, *rows])


if __name__ == "__main__":
    main()
