"""The names of all networks, and checks of their settings, without importing torch or timm (which takes seconds)."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.settings import Model

OURS = ("resnet18_cifar", "resnet18_cifar_projection", "vgg16_bn_cifar", "resnet_small")
"""Networks for small images, which harness/networks/zoo.py builds from timm's."""

DRNS = ("drn_c_26", "drn_d_22", "drn_d_38", "drn_d_54", "drn_small")
"""Networks for segmentation, from harness/networks/drn.py."""

VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
"""Output channels of the convolutions of VGG-16."""


@cache
def timm_names() -> frozenset[str]:
    """Return the names of timm's models, read from its source files (0.1 s; importing timm takes seconds)."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    files = (Path(spec.origin).parent / "models").glob("*.py")
    return frozenset(
        name for file in files for name in re.findall(r"@register_model\s*\ndef (\w+)\(", file.read_text())
    )


def sha256(path: str) -> str:
    """Return a file's SHA-256. Raises OSError."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problem(model: Model) -> tuple[str, str] | None:
    """Return (key, what is wrong with its value) for the first invalid setting, or None if all are valid."""
    if model.name not in (*OURS, *DRNS) and model.name not in timm_names():
        untagged = model.name.split(".")[0]
        close = get_close_matches(untagged, sorted({*OURS, *DRNS, *timm_names()}), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        allowed = f"{', '.join((*OURS, *DRNS))}, or any model of timm {version('timm')}, without a pretrained tag"
        return "name", f"unknown network {model.name!r}{hint} allowed: {allowed}"
    if model.name == "vgg16_bn_cifar" and model.initialisation == "kaiming_zero_last":
        return (
            "initialisation",
            f"kaiming_zero_last is for residual networks, not {model.name}; allowed: kaiming, pytorch",
        )
    if model.width is not None and model.name not in ("resnet_small", "drn_small"):
        return "width", f"only resnet_small and drn_small take a width, got {model.width} for {model.name}"
    if model.name == "resnet_small" and model.width is not None and model.width % 2:
        return "width", f"must be even, got {model.width}"
    if model.output_stride is not None and model.name in (*OURS, *DRNS):
        return "output_stride", f"is for timm's models, got {model.output_stride} for {model.name}; remove it"
    if model.weights is None:
        return ("weights_sha256", "needs model.weights, which is not set") if model.weights_sha256 else None
    if model.initialisation == "kaiming_zero_last":
        return "initialisation", "kaiming_zero_last would be overwritten by model.weights; allowed: kaiming, pytorch"
    try:
        digest = sha256(model.weights)
    except OSError as error:
        return "weights", f"{model.weights!r} can't be read: {error.strerror}"
    if model.weights_sha256 not in (None, digest):
        return "weights_sha256", f"must be the SHA-256 of {model.weights!r}, {digest}, got {model.weights_sha256!r}"
    return None


def incompatible(model: Model, per_pixel: bool, dataset: str = "the dataset") -> tuple[str, str] | None:
    """Return (key, reason) if the network does not suit the dataset's kind of labels, else None."""
    dense = model.name in DRNS or model.output_stride is not None
    if per_pixel and not dense:
        allowed = f"{', '.join(DRNS)}, or a timm model with model.output_stride: 8"
        return "name", f"{dataset} labels pixels, but {model.name} has one output per image; allowed: {allowed}"
    if dense and not per_pixel:
        problem = f"{dataset} labels images, but this network has one output per position"
        if model.output_stride is not None:
            return "output_stride", f"{problem}, got {model.output_stride}; remove it"
        return "name", f"{problem}, got {model.name}; allowed: {', '.join(OURS)}, or any timm model"
    return None


def num_parameters(model: Model, channels: int, num_classes: int) -> int:
    """Return the number of parameters of a network. It builds DRNs and timm's own models, which takes seconds."""

    def resnet(widths: list[int], blocks: int) -> int:
        total, before = 9 * channels * widths[0] + 2 * widths[0], widths[0]
        for width in widths:
            for block in range(blocks):
                total += 9 * before * width + 9 * width * width + 4 * width
                if block == 0 and width != widths[0]:
                    total += before * width + 2 * width
                before = width
        return total + (before + 1) * num_classes

    if model.name == "resnet_small":
        return resnet([(model.width or 16) * 2**stage for stage in range(4)], 1)
    if model.name.startswith("resnet18_cifar"):
        return resnet([64, 128, 256, 512], 2) + (512 * 512 if model.name.endswith("projection") else 0)
    if model.name == "vgg16_bn_cifar":
        inputs = (channels, *VGG16[:-1])
        return sum(9 * i * o + 3 * o for i, o in zip(inputs, VGG16, strict=True)) + 513 * num_classes
    body: Any
    if model.name in DRNS:
        import torch

        from harness.networks.drn import DRN

        with torch.device("meta"):
            body = DRN(model.name, channels, num_classes, model.width)
    else:
        import timm

        body = timm.create_model(model.name, num_classes=num_classes, in_chans=channels)
    return sum(p.numel() for p in body.parameters())
