"""One interface for every target network: logits, penultimate features, stage outputs, last linear layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from harness.networks import compiling
from harness.settings import Recipe


class Outputs(NamedTuple):
    """What a forward pass gives, float32; [B, C, h, w] and [B, D, h, w] for a dataset that labels pixels."""

    logits: torch.Tensor
    """[B, C]"""
    features: torch.Tensor
    """[B, D] penultimate features: what the last linear layer is fed."""
    stages: list[torch.Tensor]
    """[B, D_s, H_s, W_s] of the last four stages, shallow to deep; empty unless asked for."""


class Network(nn.Module):
    """A model with timm's face whose parts are reachable in one way.

    ``precision`` (float32 or bfloat16) is the precision that the network runs in. What it returns is float32, and so
    is its last linear layer: scores and ISDA's logits hang on small differences that bfloat16 does not hold.
    ``compiled_batches`` are how many images a batch has that runs as compiled code, in evaluation mode and in training
    mode, if any do; a batch of another size, the last of an epoch, runs as it is: each size would be compiled anew.
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
        taken: list[torch.Tensor] = []
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if stages:
                last, taken = self._with_stages(images)
            else:
                last = self.body.forward_features(images)
            features = self.projection(self.body.forward_head(last, pre_logits=True)).float()
        return Outputs(self.classified(features), features, [stage.float() for stage in taken])

    def classified(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, C] of features [B, D]: the last linear layer alone."""
        return F.linear(features, self.classifier.weight, self.classifier.bias)

    def _with_stages(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last feature map and the outputs of the last four stages."""
        last, taken = self.body.forward_intermediates(images, indices=4)
        return last, taken

    def to_place(self, device: torch.device, recipe: Recipe) -> Network:
        """Move to a device, to run as the recipe says; the memory format is the one that suits its precision."""
        self.precision = recipe.precision
        if recipe.compile:
            compiling.compiled(Network._through)  # already now: a second of imports is no training's
            self.compiled_batches = (recipe.inference_batch_size, recipe.batch_size)
        memory = torch.channels_last if recipe.precision == "bfloat16" else torch.contiguous_format
        return self.to(device=device, memory_format=memory)  # type: ignore[call-overload]

    def num_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


class _VGG(Network):
    """A VGG, whose stages end in the last ReLU before each max-pooling (timm takes them after it)."""

    def _with_stages(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        taken, here = [], images
        for layer in self.body.features:
            if isinstance(layer, nn.MaxPool2d):
                taken.append(here)
            here = layer(here)
        return here, taken[-4:]


class DenseNetwork(Network):
    """A network that gives maps: logits [B, C, h, w] and features [B, D, h, w], h = ceil(H / stride).

    Images whose sides are not multiples of the stride are filled up with zeros, the mean colour, at the bottom and on
    the right; ``upsampled`` cuts that off. The classifier is the same nn.Linear, applied to each position.
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
