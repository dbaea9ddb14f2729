"""ResNet-18 for small images, with the 3x3 stem of the LL4AL and DAST-AL code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.data.dataset import DatasetInfo
from harness.networks.architecture import Architecture
from harness.networks.zoo import _resnet

if TYPE_CHECKING:
    from harness.networks.network import Network


class ResNet18(Architecture):
    """ResNet-18 with a 3x3 stem of stride 1."""

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture."""
        from harness.networks.network import Network

        return Network(_resnet.resnet18(info))

    def num_parameters(self, info: DatasetInfo) -> int:
        """Return the number of parameters; see Architecture."""
        return _resnet.parameters(info, [64, 128, 256, 512], 2)
