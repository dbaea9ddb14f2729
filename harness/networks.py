"""Target networks behind one face (logits, penultimate features, stage outputs, last linear layer).

timm models and our small ones for images, which give a vector each; DRNs and timm models with an output stride for
datasets that label pixels, which give a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import load_state_dict
from timm.models.resnet import BasicBlock, ResNet

from harness import compiling, drn, network_names
from harness.data import Facts
from harness.errors import UserError
from harness.seeds import key
from harness.settings import Model, Recipe


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


STRIDES = (1, 8, 16, 32, 64, 128)  # 1: of what is upsampled already; the last two: labels larger than the images


def upsampled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps [B, K, h, w] of images of ``size`` (H, W) as [B, K, H, W]: bilinear, align_corners=False.

    It is the DRN authors' frozen transposed convolution, but for the outermost half stride, where theirs fades to 0.
    Two small matrix products, because the deterministic backward pass of F.interpolate on a GPU is a scatter.
    """
    return next(upsampled_bands(maps, size, size[0]))


def upsampled_bands(maps: torch.Tensor, size: tuple[int, int], height: int) -> Iterator[torch.Tensor]:
    """Yield ``upsampled(maps, size)`` from top to bottom in bands [B, K, <= height, W]: it is never all in memory."""
    stride = stride_of(maps, size)
    rows, columns = (_bilinear(side, stride, maps.device).to(maps.dtype) for side in size)
    for band in rows.split(height):
        yield band @ maps @ columns.T


def stride_of(maps: torch.Tensor, size: tuple[int, int]) -> int:
    """Return the pixels per place of maps [B, K, h, w] of images of ``size``. Raises ValueError if they can't be."""
    for stride in STRIDES:
        if maps.shape[2:] == tuple(-(-side // stride) for side in size):
            return stride
    raise ValueError(f"maps of {tuple(maps.shape[2:])} places can't be those of images of {size} pixels")


def _bilinear(side: int, stride: int, device: torch.device) -> torch.Tensor:
    """Return the weights [side, ceil(side / stride)] that places have in each pixel."""
    places = torch.arange(-(-side // stride), device=device)
    centres = ((torch.arange(side, device=device) + 0.5) / stride - 0.5).clamp(0, len(places) - 1)
    return (1 - (centres[:, None] - places).abs()).clamp(min=0)


class _Projection(nn.Module):
    """A 1x1 convolution on pooled features: no bias, normalisation or activation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv(features[:, :, None, None]).flatten(1)


def _small_stem(body: Any, channels: int, width: int) -> Any:
    """Replace a ResNet's ImageNet stem by a 3x3 convolution of stride 1, without max-pooling."""
    body.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()
    return body


def _resnet18(model: Model, facts: Facts) -> Network:
    body = timm.create_model("resnet18", num_classes=facts.num_classes, in_chans=facts.channels)
    return Network(_small_stem(body, facts.channels, 64))


def _resnet18_projection(model: Model, facts: Facts) -> Network:
    return Network(_resnet18(model, facts).body, _Projection(512))


def _resnet_small(model: Model, facts: Facts) -> Network:
    width = model.width or 16
    body = ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=facts.num_classes,
        in_chans=facts.channels,
        channels=(width, 2 * width, 4 * width, 8 * width),
        # the deep stem is the only one that lets timm's ResNet start with other than 64 channels; it is replaced
        stem_type="deep",
        stem_width=width // 2,
    )
    return Network(_small_stem(body, facts.channels, width))


def _vgg16_bn(model: Model, facts: Facts) -> Network:
    body = timm.create_model("vgg16_bn", num_classes=facts.num_classes, in_chans=facts.channels)
    body.pre_logits = nn.Identity()
    body.head.fc = nn.Linear(512, facts.num_classes)
    body.head_hidden_size = body.num_features = 512
    return _VGG(body)


BUILDERS: dict[str, Callable[[Model, Facts], Network]] = {
    "resnet18_cifar": _resnet18,
    "resnet18_cifar_projection": _resnet18_projection,
    "vgg16_bn_cifar": _vgg16_bn,
    "resnet_small": _resnet_small,
}
"""Networks for small images. Sources: ResNet-18 with the 3x3 stem as in the LL4AL and DAST-AL code; ``_projection``
is DAST-AL's own variant with one more 1x1 convolution before the classifier (11 436 106 parameters for 10 classes);
VGG-16 with batch norm and one linear 512 -> C as in DAST-AL's code. ``resnet_small`` (four stages of one block,
``width`` channels in the first) is ours, for CPUs and quick starts."""


def _classifier_name(body: Any) -> str:
    """Return the name of a timm model's last layer."""
    last = body.get_classifier()
    return next(name for name, module in body.named_modules() if module is last)


def _dense(model: Model, facts: Facts) -> Network:
    """Return a network that gives maps."""
    if model.output_stride is None:
        return DenseNetwork(drn.DRN(model.name, facts.channels, facts.num_classes, model.width), drn.STRIDE)
    try:
        body = timm.create_model(
            model.name,
            pretrained=False,
            num_classes=0,
            global_pool="",
            in_chans=facts.channels,
            output_stride=model.output_stride,
        )
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"model.output_stride: {model.name!r} does not support {model.output_stride} ({_reason(error)}); ResNets, "
            "EfficientNets, RegNets and ConvNeXts of timm do"
        ) from None
    body.set_submodule(_classifier_name(body), nn.Linear(body.head_hidden_size, facts.num_classes))
    return DenseNetwork(body, model.output_stride)


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, or its kind if it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


def _set_last_gammas(network: Network, model: Model) -> None:
    """Set the gamma of the last batch norm of each residual block: 1, or with kaiming_zero_last 0.

    timm's own default is 0 for some networks and not an argument of others, so neither is left to it.
    """
    blocks = [module for module in network.modules() if hasattr(module, "zero_init_last")]
    if model.initialisation == "kaiming_zero_last":
        if not blocks:
            raise UserError(f"model.initialisation: {model.name!r} has no residual blocks of timm's to zero")
        for block in blocks:
            block.zero_init_last()  # type: ignore[operator]
    else:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
                nn.init.ones_(module.weight)


SHOWN = 3  # names in a message


def _take_over(network: Network, model: Model, path: str) -> None:
    """Load a file of weights into all layers but the classifier, which stays new.

    Only tensors are read, no code. Raises UserError, which names up to three tensors of each kind, unless all fit.
    """
    try:
        digest, read = network_names.sha256(path), load_state_dict(Path(path).expanduser(), use_ema=False)
    except Exception as error:  # whatever a file of unknown origin does to its readers
        raise UserError(f"model.weights: {path!r} can't be read as a file of tensors: {_reason(error)}") from None
    if model.weights_sha256 not in (None, digest):
        raise UserError(f"model.weights: {path!r} has changed: its sha256 is {digest}, was {model.weights_sha256}")

    def tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
        last = f"{_classifier_name(network.body)}."
        return {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and not k.startswith(last)}

    needed, found = tensors(network.body.state_dict()), tensors(read)
    # batch norm's counters came after the first public files
    lacking = [k for k in needed if k not in found and not k.endswith("num_batches_tracked")]
    other = [k for k in needed if k in found and found[k].shape != needed[k].shape]
    problems = {
        "lacks": lacking,
        "also has": [k for k in found if k not in needed],
        "has in another shape": [f"{k} {[*found[k].shape]}, not {[*needed[k].shape]}" for k in other],
    }
    told = [
        f"{verb} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for verb, names in problems.items()
        if names
    ]
    if told:
        raise UserError(f"model.weights: {path!r} does not fit {model.name!r}: it {'; it '.join(told)}")
    network.body.load_state_dict(found, strict=False)


def build(model: Model, facts: Facts, seed: int) -> Network:
    """Return a new network; its weights depend on the seed, and a file of weights, not on what ran before.

    Raises UserError if the network is not for the dataset's kind of labels, or the file not for the network.
    """
    if problem := network_names.misfit(model, facts.per_pixel):
        raise UserError(f"model.{problem[0]}: {problem[1]}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: a device's own stream runs on
        if model.name in BUILDERS:
            network = BUILDERS[model.name](model, facts)
        elif facts.per_pixel:
            network = _dense(model, facts)
        else:
            network = Network(
                timm.create_model(model.name, pretrained=False, num_classes=facts.num_classes, in_chans=facts.channels)
            )
            if not isinstance(network.body.get_classifier(), nn.Linear):
                raise UserError(f"model.name: {model.name!r} does not end in one linear layer")
        _set_last_gammas(network, model)
        if model.initialisation == "pytorch":
            for module in network.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
    if model.weights is not None:
        _take_over(network, model, model.weights)
    return network


CHECKED_SIDE = 64  # of an image, at most, where a network takes any size: Cityscapes' own would take minutes


def check(model: Model, facts: Facts) -> None:
    """Try a network on two images of the dataset's size. Raises UserError, with timm's own reason, if it fails."""
    network = build(model, facts, 0).eval()
    size = facts.size
    expected: tuple[int, ...] = (2, facts.num_classes)
    if isinstance(network, DenseNetwork):
        size = (min(size[0], CHECKED_SIDE), min(size[1], CHECKED_SIDE))
        expected += tuple(-(-side // network.stride) for side in size)
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, facts.channels, *size)).logits
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UserError(f"model.name: {model.name!r} can't take {size} images: {_reason(error)}") from None
    if logits.shape != expected:
        raise UserError(f"model.name: {model.name!r} gives {tuple(logits.shape)} for 2 images, not {expected}")


def initial(model: Model, facts: Facts, seed: int, cycle: int) -> Network:
    """Return the network that a cycle with fresh weights starts from; equal for all methods of a seed."""
    return build(model, facts, key(seed, "weights", cycle))
