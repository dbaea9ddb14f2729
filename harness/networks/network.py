"""One interface for every target network: logits, penultimate features, stage outputs, last linear layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from harness.networks import compiling
from harness.settings import Recipe


class Outputs(NamedTuple):
    """The results of a forward pass, float32. For segmentation, logits are [B, C, h, w] and features [B, D, h, w]."""

    logits: torch.Tensor
    """[B, C]"""
    features: torch.Tensor
    """[B, D] penultimate features: the input of the last linear layer."""
    stages: list[torch.Tensor]
    """[B, D_s, H_s, W_s] of the last four stages, shallow to deep; empty unless requested."""


class Network(nn.Module):
    """Wraps a timm-style model behind one interface: logits, penultimate features, stage outputs.

    ``precision`` is the precision that the network runs in: float32 or bfloat16. The last linear layer and all outputs
    are float32, because scores and ISDA's logits depend on small differences that bfloat16 can't represent.
    ``compiled_batches`` holds the two batch sizes that run as compiled code: for evaluation and for training mode.
    Batches of other sizes, such as the last one of an epoch, are not compiled: each size would need its own
    compilation.
    """

    def __init__(self, body: Any, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.precision = "float32"
        self.compiled_batches: tuple[int, int] | None = None
        self.body: Any = body
        self.projection = projection if projection is not None else nn.Identity()

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer: weight [C, D], bias [C]."""
        layer = self.body.get_classifier()
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, images: torch.Tensor, stages: bool = False) -> Outputs:
        """Return the outputs for images [B, channels, H, W]."""
        if self.compiled_batches and len(images) == self.compiled_batches[self.training]:
            return compiling.run(Network._through, self, images, stages)
        return self._through(images, stages)

    def _through(self, images: torch.Tensor, stages: bool) -> Outputs:
        stage_outputs: list[torch.Tensor] = []
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if stages:
                last, stage_outputs = self._with_stages(images)
            else:
                last = self.body.forward_features(images)
            features = self.projection(self.body.forward_head(last, pre_logits=True)).float()
        return Outputs(self.classified(features), features, [stage.float() for stage in stage_outputs])

    def classified(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, C] of features [B, D], from the last linear layer alone."""
        return F.linear(features, self.classifier.weight, self.classifier.bias)

    def _with_stages(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last feature map and the outputs of the last four stages."""
        last, stage_outputs = self.body.forward_intermediates(images, indices=4)
        return last, stage_outputs

    def to_device(self, device: torch.device, recipe: Recipe) -> Network:
        """Move to a device and set precision, memory format and compilation by the recipe."""
        self.precision = recipe.precision
        if recipe.compile:
            compiling.compiled(Network._through)  # imports the compiler now, so that this is not timed as training
            self.compiled_batches = (recipe.inference_batch_size, recipe.batch_size)
        memory = torch.channels_last if recipe.precision == "bfloat16" else torch.contiguous_format
        return self.to(device=device, memory_format=memory)  # type: ignore[call-overload]

    def num_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


class VGG(Network):
    """A VGG whose stages end with the last ReLU before each max-pooling (in timm, after the max-pooling)."""

    def _with_stages(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        stage_outputs, features = [], images
        for layer in self.body.features:
            if isinstance(layer, nn.MaxPool2d):
                stage_outputs.append(features)
            features = layer(features)
        return features, stage_outputs[-4:]


class DenseNetwork(Network):
    """A network for segmentation: logits [B, C, h, w] and features [B, D, h, w], h = ceil(H / stride).

    Images whose sides are not multiples of the stride are padded with zeros, the mean colour, at the bottom and on the
    right; ``upsampled`` crops this padding. The classifier is the same nn.Linear, applied to each position.
    """

    def __init__(self, body: Any, stride: int) -> None:
        super().__init__(body)
        self.stride = stride

    def forward(self, images: torch.Tensor, stages: bool = False) -> Outputs:
        """Return the outputs for images [B, channels, H, W]."""
        height, width = images.shape[2:]
        return super().forward(F.pad(images, (0, -width % self.stride, 0, -height % self.stride)), stages)

    def classified(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, C, h, w] of features [B, D, h, w]."""
        return F.conv2d(features, self.classifier.weight[:, :, None, None], self.classifier.bias)
