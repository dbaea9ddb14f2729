"""VGG-16 with batch norm for small images, and one linear layer 512 -> C, as in DAST-AL's code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import field_validator

from harness.data.dataset import DatasetInfo
from harness.networks.architecture import Architecture
from harness.settings import ModelSettings

if TYPE_CHECKING:
    from harness.networks.network import Network

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
"""Output channels of the convolutions."""


class VGG16(Architecture):
    """VGG-16 with batch norm."""

    class Settings(ModelSettings):
        """Settings of the network."""

        @field_validator("initialisation")
        @classmethod
        def _has_no_residual_blocks(cls, initialisation: str) -> str:
            if initialisation == "kaiming_zero_last":
                raise ValueError(f"{initialisation} is for residual networks, not a VGG; allowed: kaiming, pytorch")
            return initialisation

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture."""
        from harness.networks.zoo._vgg import vgg16_bn

        return vgg16_bn(info)

    def num_parameters(self, info: DatasetInfo) -> int:
        """Return the number of parameters; see Architecture."""
        inputs = (info.channels, *WIDTHS[:-1])
        return sum(9 * i * o + 3 * o for i, o in zip(inputs, WIDTHS, strict=True)) + 513 * info.num_classes
