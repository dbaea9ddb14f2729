"""DRN-D-22 for segmentation (Yu, Koltun & Funkhouser, CVPR 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.data.dataset import MAPS, DatasetInfo
from harness.networks.architecture import Architecture

if TYPE_CHECKING:
    from harness.networks.network import Network


class DRND22(Architecture):
    """A dilated residual network of type D."""

    labels = frozenset({MAPS})

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture."""
        from harness.networks.zoo._drn import drn

        return drn(info, (2, 2, 2, 2))
