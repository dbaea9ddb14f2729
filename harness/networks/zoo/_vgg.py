"""VGGs for small images."""

from __future__ import annotations

import timm
import torch
import torch.nn as nn

from harness.data.dataset import DatasetInfo
from harness.networks.network import Network


class VGG(Network):
    """A VGG whose stages end with the last ReLU before each max-pooling (in timm, after the max-pooling)."""

    def _with_stages(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        stage_outputs, features = [], images
        for layer in self.body.features:
            if isinstance(layer, nn.MaxPool2d):
                stage_outputs.append(features)
            features = layer(features)
        return features, stage_outputs[-4:]


def vgg16_bn(info: DatasetInfo) -> VGG:
    """Return timm's VGG-16 with batch norm, with one linear layer instead of its three."""
    body = timm.create_model("vgg16_bn", num_classes=info.num_classes, in_chans=info.channels)
    body.pre_logits = nn.Identity()
    body.head.fc = nn.Linear(512, info.num_classes)
    body.head_hidden_size = body.num_features = 512
    return VGG(body)
