"""Builds target networks: this project's networks for small images, DRNs, and any timm model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.models.resnet import BasicBlock, ResNet

from harness.data.dataset import DatasetInfo
from harness.errors import UserError
from harness.networks import drn, names
from harness.networks.network import VGG, DenseNetwork, Network
from harness.networks.weights import classifier_name, load_weights, reason
from harness.seeds import key
from harness.settings import Model


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


def _resnet18(model: Model, info: DatasetInfo) -> Network:
    body = timm.create_model("resnet18", num_classes=info.num_classes, in_chans=info.channels)
    return Network(_small_stem(body, info.channels, 64))


def _resnet18_projection(model: Model, info: DatasetInfo) -> Network:
    return Network(_resnet18(model, info).body, _Projection(512))


def _resnet_small(model: Model, info: DatasetInfo) -> Network:
    width = model.width or 16
    body = ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=info.num_classes,
        in_chans=info.channels,
        channels=(width, 2 * width, 4 * width, 8 * width),
        # only with a deep stem does timm's ResNet accept a first stage without 64 channels; the stem is replaced below
        stem_type="deep",
        stem_width=width // 2,
    )
    return Network(_small_stem(body, info.channels, width))


def _vgg16_bn(model: Model, info: DatasetInfo) -> Network:
    body = timm.create_model("vgg16_bn", num_classes=info.num_classes, in_chans=info.channels)
    body.pre_logits = nn.Identity()
    body.head.fc = nn.Linear(512, info.num_classes)
    body.head_hidden_size = body.num_features = 512
    return VGG(body)


BUILDERS: dict[str, Callable[[Model, DatasetInfo], Network]] = {
    "resnet18_cifar": _resnet18,
    "resnet18_cifar_projection": _resnet18_projection,
    "vgg16_bn_cifar": _vgg16_bn,
    "resnet_small": _resnet_small,
}
"""Networks for small images. Sources: ResNet-18 with the 3x3 stem as in the LL4AL and DAST-AL code; ``_projection``
is DAST-AL's own variant with one more 1x1 convolution before the classifier (11 436 106 parameters for 10 classes);
VGG-16 with batch norm and one linear 512 -> C as in DAST-AL's code. ``resnet_small`` (four stages of one block,
``width`` channels in the first) is this project's, for CPUs and quick starts."""


def _dense(model: Model, info: DatasetInfo) -> Network:
    """Return a network for segmentation."""
    if model.output_stride is None:
        return DenseNetwork(drn.DRN(model.name, info.channels, info.num_classes, model.width), drn.STRIDE)
    try:
        body = timm.create_model(
            model.name,
            pretrained=False,
            num_classes=0,
            global_pool="",
            in_chans=info.channels,
            output_stride=model.output_stride,
        )
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"model.output_stride: {model.name!r} does not support {model.output_stride} ({reason(error)}); ResNets, "
            "EfficientNets, RegNets and ConvNeXts of timm do"
        ) from None
    body.set_submodule(classifier_name(body), nn.Linear(body.head_hidden_size, info.num_classes))
    return DenseNetwork(body, model.output_stride)


def _set_last_gammas(network: Network, model: Model) -> None:
    """Set the gamma of the last batch norm of each residual block: 0 for kaiming_zero_last, else 1.

    timm's default differs between networks, and not all of them have an argument for it.
    """
    blocks = [module for module in network.modules() if hasattr(module, "zero_init_last")]
    if model.initialisation == "kaiming_zero_last":
        if not blocks:
            raise UserError(f"model.initialisation: kaiming_zero_last zeroes residual blocks, {model.name!r} has none")
        for block in blocks:
            block.zero_init_last()  # type: ignore[operator]
    else:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
                nn.init.ones_(module.weight)


def build(model: Model, info: DatasetInfo, seed: int) -> Network:
    """Return a new network, whose weights depend only on the seed and the file of pretrained weights.

    Raises UserError if the network does not fit the dataset's kind of labels, or the file does not fit the network.
    """
    if problem := names.incompatible(model, info.per_pixel):
        raise UserError(f"model.{problem[0]}: {problem[1]}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # seeds only the CPU's generator, not the GPU's
        if model.name in BUILDERS:
            network = BUILDERS[model.name](model, info)
        elif info.per_pixel:
            network = _dense(model, info)
        else:
            network = Network(
                timm.create_model(model.name, pretrained=False, num_classes=info.num_classes, in_chans=info.channels)
            )
            if not isinstance(network.body.get_classifier(), nn.Linear):
                raise UserError(f"model.name: {model.name!r} does not end in one linear layer")
        _set_last_gammas(network, model)
        if model.initialisation == "pytorch":
            for module in network.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
    if model.weights is not None:
        load_weights(network, model, model.weights)
    return network


CHECKED_SIDE = 64
"""Longest side, in pixels, of the images on which segmentation networks are checked: Cityscapes' would take minutes."""


def check(model: Model, info: DatasetInfo) -> None:
    """Run a network on two images of the dataset's size. Raises UserError, with the network's error, if it fails."""
    network = build(model, info, 0).eval()
    size = info.size
    expected: tuple[int, ...] = (2, info.num_classes)
    if isinstance(network, DenseNetwork):
        size = (min(size[0], CHECKED_SIDE), min(size[1], CHECKED_SIDE))
        expected += tuple(-(-side // network.stride) for side in size)
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, info.channels, *size)).logits
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UserError(f"model.name: {model.name!r} can't process images of size {size}: {reason(error)}") from None
    if logits.shape != expected:
        raise UserError(f"model.name: {model.name!r} returns {tuple(logits.shape)} for 2 images, expected {expected}")


def initial(model: Model, info: DatasetInfo, seed: int, cycle: int) -> Network:
    """Return the network that a cycle with fresh weights starts from. It is the same for all methods of a seed."""
    return build(model, info, key(seed, "weights", cycle))
