"""ResNets for small images: timm's, with a 3x3 convolution of stride 1 as the stem. torch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.data.dataset import DatasetInfo


def small_stem(body: Any, channels: int, width: int) -> Any:
    """Replace a ResNet's ImageNet stem by a 3x3 convolution of stride 1, without max-pooling."""
    import torch.nn as nn

    body.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()
    return body


def resnet18(info: DatasetInfo) -> Any:
    """Return timm's ResNet-18 with the small stem, as in the LL4AL and DAST-AL code."""
    import timm

    body = timm.create_model("resnet18", num_classes=info.num_classes, in_chans=info.channels)
    return small_stem(body, info.channels, 64)


def parameters(info: DatasetInfo, widths: list[int], blocks: int) -> int:
    """Return the number of parameters of a ResNet with these channels in its stages, and so many blocks in each."""
    total, before = 9 * info.channels * widths[0] + 2 * widths[0], widths[0]
    for width in widths:
        for block in range(blocks):
            total += 9 * before * width + 9 * width * width + 4 * width
            if block == 0 and width != widths[0]:
                total += before * width + 2 * width
            before = width
    return total + (before + 1) * info.num_classes
