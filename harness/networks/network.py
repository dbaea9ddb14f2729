"""One interface for every target network: logits, penultimate features, stage outputs, last linear layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from harness.errors import UserError
from harness.networks import compiling, pointwise
from harness.settings import Recipe


class Outputs(NamedTuple):
    """The results of a forward pass, float32. For segmentation, logits are [B, C, h, w] and features [B, D, h, w]."""

    logits: torch.Tensor
    """[B, C]"""
    features: torch.Tensor
    """[B, D] penultimate features: the input of the last linear layer."""
    stages: list[torch.Tensor]
    """[B, D_s, H_s, W_s] of the last four stages, shallow to deep; empty unless requested."""
    unprojected: torch.Tensor | None = None
    """[B, E] the input of the network's projection; None: there is no projection."""

    @property
    def body_features(self) -> torch.Tensor:
        """The body's features: what precedes the projection, or ``features`` if there is none."""
        return self.features if self.unprojected is None else self.unprojected


def classifier_name(body: Any) -> str:
    """Return the name of a body's last linear layer."""
    last = body.get_classifier()
    return next(name for name, module in body.named_modules() if module is last)


class Stages(nn.Module):
    """A ready body of modules applied one after another, and the classifier; a DenseNetwork needs ``pool=False``.

    ``stages``: modules from images [B, channels, H, W], or from the output of the previous module, to maps
    [B, D_s, H_s, W_s]; methods that read stages need at least four. ``classifier``: an nn.Linear from the last module's
    D channels to the classes. ``pool``: whether its input is the last map's mean over positions [B, D], for a Network,
    or the map itself, for a DenseNetwork.
    """

    def __init__(self, stages: Iterable[nn.Module], classifier: nn.Linear, pool: bool = True) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        self.pool = pool

    def get_classifier(self) -> nn.Linear:
        """Return the last linear layer."""
        return self.classifier

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last map [B, D, h, w] of images [B, channels, H, W]."""
        return self.forward_intermediates(images, 1)[0]

    def forward_intermediates(self, images: torch.Tensor, indices: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last map, and the outputs of the last ``indices`` stages."""
        outputs, maps = [], images
        for stage in self.stages:
            maps = stage(maps)
            outputs.append(maps)
        return maps, outputs[-indices:]

    def forward_head(self, last: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        """Return the classifier's input, from the last map."""
        return last.mean((2, 3)) if self.pool else last


class Network(nn.Module):
    """Wraps a body with timm's interface: logits, penultimate features, stage outputs.

    The body is a Stages, a model of timm, or any module with these methods:

    - ``get_classifier()``: the last linear layer, an nn.Linear with D inputs and one output for each class
    - ``forward_features(images)``: the last feature map of images [B, channels, H, W] float32
    - ``forward_head(last, pre_logits=True)``: from it the penultimate features [B, D], the classifier's input
    - ``forward_intermediates(images, indices=4)``: (last feature map, [outputs [B, D_s, H_s, W_s] of the last four
      stages, shallow to deep]); only a method that reads stages needs it

    In evaluation mode, the outputs of an image may not depend on the other images of its batch. ``projection``: a
    module from the body's features [B, D] to those of the classifier, or None.

    ``input_size``: [height, width] to which images are scaled before anything else, or None. ``weights_source``: in
    words, where pretrained weights came from; empty for fresh ones. ``precision`` is the precision that the network
    runs in: float32 or bfloat16. The last linear layer and all outputs are float32, because scores and ISDA's logits
    depend on small differences that bfloat16 can't represent. ``compiled_batches`` holds the two batch sizes that run
    as compiled code: for evaluation and for training mode. Batches of other sizes, such as the last one of an epoch,
    are not compiled: each size would need its own compilation.
    """

    def __init__(self, body: Any, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.precision = "float32"
        self.compiled_batches: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None
        self.weights_source = ""
        self.body: Any = body
        self.projection = projection if projection is not None else nn.Identity()
        pointwise.protect(self)

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer: weight [C, D], bias [C]."""
        layer = self.body.get_classifier()
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, images: torch.Tensor, stages: bool = False) -> Outputs:
        """Return the outputs for images [B, channels, H, W] float32; ``stages``: with the outputs of the stages.

        Raises UserError with ``stages`` if the body has no ``forward_intermediates``.
        """
        if self.input_size is not None:
            images = F.interpolate(images, self.input_size, mode="bicubic", antialias=True)
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
            body_features = self.body.forward_head(last, pre_logits=True)
            features = self.projection(body_features).float()
        unprojected = None if isinstance(self.projection, nn.Identity) else body_features.float()
        return Outputs(self.classified(features), features, [stage.float() for stage in stage_outputs], unprojected)

    def classified(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, C] of features [B, D], from the last linear layer alone."""
        return F.linear(features, self.classifier.weight, self.classifier.bias)

    def _with_stages(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last feature map and the outputs of the last four stages."""
        if not hasattr(self.body, "forward_intermediates"):
            raise UserError("model.name: the method reads the network's stages, but this network has none")
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


class DenseNetwork(Network):
    """A network for segmentation: logits [B, C, h, w] and features [B, D, h, w], h = ceil(H / stride).

    The body's ``forward_head`` does not pool: it returns maps [B, D, h, w], one position for stride x stride pixels.
    ``stride`` is 1, 2, 4, 8, 16 or 32.
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
