"""ResNet-18 for small images, with one more 1x1 convolution before the classifier: DAST-AL's own variant.

It has 11 436 106 parameters for 10 classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.data.dataset import DatasetInfo
from harness.networks.architecture import Architecture
from harness.networks.zoo import _resnet

if TYPE_CHECKING:
    from harness.networks.network import Network


class ResNet18Projection(Architecture):
    """ResNet-18 with a 3x3 stem, and a projection of the pooled features."""

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture."""
        from harness.networks.network import Network
        from harness.networks.zoo._projection import Projection

        return Network(_resnet.resnet18(info), Projection(512))

    def num_parameters(self, info: DatasetInfo) -> int:
        """Return the number of parameters; see Architecture."""
        return _resnet.parameters(info, [64, 128, 256, 512], 2) + 512 * 512
