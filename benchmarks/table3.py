"""Table 3 of DAST-AL: what features drawn from N(a, Sigma) look like, of images that a method and that chance selects.

    python benchmarks/table3.py quickstart [KEY=VALUE ...] [--method DAST-AL] [--images 4] [--draws 6]
                                [--steps 1000] [--suite NAME] [--picture FILE.png] [--csv FILE]

The network is that of the trial's last finished cycle in the results folder of the config, or of a cycle 0 that is
trained here. For each image it prints how far the draws spread: the trace of Sigma of the predicted class, the mean
distance between draws, how many different candidates are nearest to them, and the mean of Q[yhat]. The picture has for
each image: itself, its features decoded, the draws decoded, and the candidate nearest to each draw.

A small decoder is trained here to turn features back into images of candidates, without labels. Of more than 10 000
candidates it takes as many, drawn at random, and the selected images; the nearest candidates are among them. Larger
images are shown with 64 pixels on their longer side; the network sees them whole. The paper reverses the network with a
generative model of ImageNet, which is not used here. What such pictures can't show:

- Sigma depends on the predicted class only: two images of one class have the same spread, so that the pictures of
  their draws differ by the images, and not by how diverse the draws are.
- The decoder was trained on features of images. Draws lie between and beyond them, where it may show anything.
- A nearest candidate is a real image, but may be far from the draw: compare the distance that is printed.
- More diverse pictures are no better labelled set: only accuracy measures that.
"""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from measure import of_config, trained
from tabulate import tabulate
from torch import nn

from harness.learning.cycle import Cycle
from harness.learning.inference import inferred
from harness.report.plots import picture

epmcm = import_module("harness.methods.epmcm")
class_statistics = import_module("harness.methods._class_statistics")

BATCH = 128
SIDE = 64  # longest side of what the decoder learns and the picture shows, so that all candidates fit into memory
MOST = 10_000  # candidates whose features and pixels are held, apart from those selected
HELD_OUT = 0.1  # share of the candidates that the decoder is not trained on


class Decoder(nn.Module):
    """Turns features [B, A] into images [B, channels, H, W] of pixels from 0 to 1."""

    def __init__(self, width: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.start = -(-size[0] // 8), -(-size[1] // 8)
        self.linear = nn.Linear(width, 64 * self.start[0] * self.start[1])
        layers: list[nn.Module] = []
        for inside, outside in ((64, 64), (64, 32), (32, 32)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside)]
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers, nn.Conv2d(32, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the images."""
        maps = self.layers(self.linear(features).view(len(features), 64, *self.start))
        return maps[:, :, : self.size[0], : self.size[1]]


def decoder_of(
    features: torch.Tensor, images: torch.Tensor, steps: int, generator: torch.Generator
) -> tuple[Decoder, float, float]:
    """Return a decoder of images [N, channels, H, W], 0 to 1, from features [N, A] in units of their own spread.

    Also its mean absolute error on images that it was not trained on, and that of the mean training image.
    """
    order = torch.randperm(len(features), generator=generator)
    held, kept = order.split([max(1, round(HELD_OUT * len(order))), len(order) - max(1, round(HELD_OUT * len(order)))])
    decoder = Decoder(features.shape[1], images.shape[1], (images.shape[2], images.shape[3]))
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    for _ in range(steps):
        rows = kept[torch.randint(len(kept), (min(BATCH, len(kept)),), generator=generator)]
        loss = F.l1_loss(decoder(features[rows]), images[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    with torch.no_grad():
        error = float(F.l1_loss(decoder(features[held]), images[held]))
    return decoder, error, float((images[kept].mean(0) - images[held]).abs().mean())


def small(images: Any, indices: np.ndarray) -> np.ndarray:
    """Return images [N, h, w, channels] uint8 of files or of an array, with at most SIDE pixels on a side."""
    longest = max(images.shape[1:3])
    if longest <= SIDE:
        return np.asarray(images[indices])
    size = [max(1, round(side * SIDE / longest)) for side in images.shape[1:3]]
    parts = []
    for part in np.array_split(indices, -(-len(indices) // BATCH)):
        pixels = torch.from_numpy(images[part]).permute(0, 3, 1, 2).float()
        shrunk = F.interpolate(pixels, size, mode="bilinear", antialias=True).round().to(torch.uint8)
        parts.append(shrunk.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def drawn(features: torch.Tensor, covariance: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Return draws [N, draws, A] from N(a, Sigma) for features [N, A] and covariances [N, A] or [N, A, A]."""
    noise = torch.randn(len(features), draws, features.shape[1], generator=generator, dtype=features.dtype)
    if covariance.ndim == 2:
        return features[:, None] + noise * covariance.sqrt()[:, None]
    return features[:, None] + noise @ epmcm.matrix_root(covariance)


def spread(draws: torch.Tensor, pool: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, list[list[float]]]:
    """Return the rows [N, draws] of ``pool`` [P, A] nearest to draws, other than the images' ``own`` rows [N].

    Also (mean distance between draws, different neighbours, mean distance to them) of each image.
    """
    distances = torch.cdist(draws.flatten(0, 1), pool).view(*draws.shape[:2], len(pool))
    distances.scatter_(2, own[:, None, None].expand(-1, draws.shape[1], 1), float("inf"))
    nearest = distances.min(2)
    number = draws.shape[1]
    between = torch.cdist(draws, draws).sum((1, 2)) / max(1, number * (number - 1))
    different = [len(set(rows)) for rows in nearest.indices.tolist()]
    values = [
        [float(b), float(d), float(n)] for b, d, n in zip(between, different, nearest.values.mean(1), strict=True)
    ]
    return nearest.indices, values


def named(
    method: str, indices: list[int], candidates: torch.Tensor, images: int, generator: torch.Generator
) -> dict[str, list[int]]:
    """Return who selected -> the first ``images`` indices: the method, by its name, and chance."""
    by_chance = candidates[torch.randperm(len(candidates), generator=generator)[:images]].tolist()
    return {method: indices[:images], "random" if method != "random" else "random, again": by_chance}


def within_memory(candidates: torch.Tensor, selected: dict[str, list[int]], generator: torch.Generator) -> torch.Tensor:
    """Return the candidates [P] whose features and pixels are held: all, or MOST and those selected, ascending."""
    if len(candidates) <= MOST:
        return candidates
    some = candidates[torch.randperm(len(candidates), generator=generator)[:MOST]]
    return torch.tensor(sorted({*some.tolist(), *(index for indices in selected.values() for index in indices)}))


def grid(rows: list[tuple[str, list[np.ndarray]]], heads: list[str]) -> Figure:
    """Return a figure with a row of images, 0 to 1, for each name."""
    figure = Figure(figsize=(1.05 * len(heads) + 1.4, 1.2 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(heads), squeeze=False)
    for (name, images), line in zip(rows, axes, strict=True):
        for image, place in zip(images, line, strict=True):
            place.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name, fontsize=7)
    for place, head in zip(axes[0], heads, strict=True):
        place.set_title(head, fontsize=7)
    return figure


def features_of(cycle: Cycle, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (features [N, A], logits [N, C]) of images, on the CPU."""
    width = cycle.network.classifier.in_features

    def both(images: torch.Tensor) -> torch.Tensor:
        outputs = cycle.network(images)
        return torch.cat([outputs.features, outputs.logits], 1)

    rows = inferred(cycle, indices, both, "the candidates' features").cpu()
    return rows[:, :width], rows[:, width:]


def main(words: list[str] | None = None) -> None:
    """Print the table, and draw the picture."""
    options = of_config(__doc__, images=4, draws=6, steps=1000)
    options.add_argument("--picture", type=Path, help="write the picture to this file (.png)")
    options.add_argument("--csv", type=Path, help="also write the table to this file")
    asked = options.parse_args(words)
    learner, cycle = trained(asked)
    generator = torch.Generator().manual_seed(asked.seed)
    torch.manual_seed(asked.seed)  # the decoder's weights
    candidates = cycle.candidates.cpu()
    selected = named(asked.method, learner.select(cycle).indices, candidates, asked.images, generator)
    candidates = within_memory(candidates, selected, generator)
    features, logits = features_of(cycle, candidates.to(cycle.candidates.device))
    statistics = class_statistics.ClassStatistics.of({name: t.cpu() for name, t in cycle.learned.items()})
    table = statistics.table(cycle.network.classifier.weight.detach().cpu())
    pixels = small(learner.data.train_images, candidates.numpy())
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    scale = features.std(0).clamp(min=1e-6)
    decoder, error, baseline = decoder_of(features / scale, images, asked.steps, generator)
    rows: list[list[object]] = []
    pictures: list[tuple[str, list[np.ndarray]]] = []
    position = {index: row for row, index in enumerate(candidates.tolist())}
    for who, indices in selected.items():
        own = torch.tensor([position[index] for index in indices])
        predicted = logits[own].argmax(1)
        sigma = statistics.covariance[predicted]
        draws = drawn(features[own], sigma, asked.draws, generator)
        nearest, values = spread(draws, features, own)
        traces = sigma.sum(1) if sigma.ndim == 2 else sigma.diagonal(dim1=1, dim2=2).sum(1)
        with torch.no_grad():
            shown = decoder(torch.cat([features[own][:, None], draws], 1).flatten(0, 1) / scale)
        shown = shown.permute(0, 2, 3, 1).view(len(own), asked.draws + 1, *pixels.shape[1:]).numpy()
        for number, index in enumerate(indices):
            name = learner.data.classes[int(predicted[number])]
            changes = float(table[predicted[number]].sum()) / (len(table) - 1)
            rows.append([who, index, name, float(traces[number]), changes, *values[number]])
            near = [pixels[row] / 255 for row in nearest[number].tolist()]
            pictures.append((f"{who}\n{index}\n{name}", [pixels[own[number]] / 255, *shown[number], *near]))
    heads = ["selected by", "image", "predicted", "trace of Sigma", "mean Q", "between draws", "neighbours", "distance"]
    print(tabulate(rows, heads, floatfmt=".4g"))
    means = {who: np.mean([row[3:] for row in rows if row[0] == who], 0) for who in selected}
    print(tabulate([[who, *values] for who, values in means.items()], ["mean of", *heads[3:]], floatfmt=".4g"))
    print(f"decoder: mean absolute error {error:.3f} of candidates left out; the mean image's is {baseline:.3f}")
    if asked.picture:
        drawn_heads = [f"{kind} {number + 1}" for kind in ("draw", "nearest to") for number in range(asked.draws)]
        asked.picture.write_bytes(picture(grid(pictures, ["image", "decoded", *drawn_heads]), "png"))
    if asked.csv:
        with asked.csv.open("w", newline="") as file:
            csv.writer(file).writerows([heads, *rows])


if __name__ == "__main__":
    main()
