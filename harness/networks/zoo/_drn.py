"""Dilated residual networks (Yu, Koltun & Funkhouser, CVPR 2017): from images to feature maps with stride 8.

A network has nine levels of layers: the first five halve height and width three times, the later ones dilate instead.
Tensors have the names of the authors' public checkpoints (github.com/fyu/drn), so that these can be loaded. The
interface is that of a timm model; the last linear layer, ``fc``, is applied to each position.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch
import torch.nn as nn
from timm.models.resnet import BasicBlock, Bottleneck

from harness.data.dataset import DatasetInfo
from harness.networks.network import DenseNetwork

STRIDE = 8


LEVELS = (
    # channels / width, stride, dilation
    (1, 1, 1),
    (1, 1, 1),
    (2, 2, 1),
    (4, 2, 1),
    (8, 2, 1),
    (16, 1, 2),
    (32, 1, 4),
    (32, 1, 2),
    (32, 1, 1),
)
"""Levels 0 to 8 of all networks. The stride is that of a level's first convolution, the dilation that of all."""


def _convolution(before: int, channels: int, stride: int, dilation: int, size: int = 3) -> list[nn.Module]:
    padding = dilation * (size // 2)
    conv = nn.Conv2d(before, channels, size, stride, padding, dilation, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _residual(
    block: type[BasicBlock] | type[Bottleneck], before: int, channels: int, count: int, stride: int, dilation: int
) -> nn.Sequential:
    out = channels * block.expansion
    shortcut = None
    if stride != 1 or before != out:
        shortcut = nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = block(before, channels, stride, shortcut, dilation=dilation)
    return nn.Sequential(first, *(block(out, channels, dilation=dilation) for _ in range(count - 1)))


def _without_shortcut(before: int, channels: int, dilation: int) -> nn.Sequential:
    """Return the convolutions of a basic block without its shortcut, under the same names."""
    parts = [*_convolution(before, channels, 1, dilation), *_convolution(channels, channels, 1, dilation)]
    names = ("conv1", "bn1", "act1", "conv2", "bn2", "act2")
    return nn.Sequential(nn.Sequential(OrderedDict(zip(names, parts, strict=True))))


class DRN(nn.Module):
    """A dilated residual network with ``blocks`` residual blocks in levels 3 to 6.

    ``arch`` D: levels 1, 2, 7 and 8 have one convolution each; C: two convolutions, with a shortcut in levels 1 and 2.
    ``width`` sets the channels of the first level, and scales those of all other levels.
    Initialised as in the authors' code: convolutions N(0, 2 / (k^2 C_out)), ``fc`` N(0, 2 / num_classes) with bias 0.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        blocks: tuple[int, int, int, int],
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        arch: Literal["C", "D"] = "D",
        width: int = 16,
    ) -> None:
        super().__init__()
        stem = _convolution(channels, width, 1, 1, size=7)
        if arch == "C":
            self.conv1, self.bn1, self.relu = stem
        else:
            self.layer0 = nn.Sequential(*stem)
        before = width
        for level, (factor, stride, dilation) in enumerate(LEVELS[1:], start=1):
            out = factor * width
            if 3 <= level <= 6:
                layer = _residual(block, before, out, blocks[level - 3], stride, dilation)
                out *= block.expansion
            elif arch == "D":
                layer = nn.Sequential(*_convolution(before, out, stride, dilation))
            elif level < 3:
                layer = _residual(BasicBlock, before, out, 1, stride, dilation)
            else:
                layer = _without_shortcut(before, out, dilation)
            self.add_module(f"layer{level}", layer)
            before = out
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def get_classifier(self) -> nn.Linear:
        """Return the last linear layer."""
        return self.fc

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last map [B, D, H / 8, W / 8] of images [B, channels, H, W] with sides divisible by 8."""
        return self.forward_intermediates(images, 1)[0]

    def forward_intermediates(self, images: torch.Tensor, indices: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last map, and the maps of the last ``indices`` levels."""
        stages: list[torch.Tensor] = []
        maps = images
        for name, part in self.named_children():
            if name != "fc":
                maps = part(maps)
                stages = [*stages, maps][-indices:]
        return maps, stages

    def forward_head(self, last: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        """Return the last map, the input of ``fc``."""
        assert pre_logits, "fc is applied by the Network"
        return last


def drn(info: DatasetInfo, *parts: Any, **options: Any) -> DenseNetwork:
    """Return a new DRN for a dataset; see DRN for the other arguments."""
    return DenseNetwork(DRN(info.channels, info.num_classes, *parts, **options), STRIDE)
