"""A small DRN of this project, for CPUs: a DRN-D with one block per level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from harness.data.dataset import MAPS, DatasetInfo
from harness.networks.architecture import Architecture
from harness.settings import Channels, ModelSettings

if TYPE_CHECKING:
    from harness.networks.network import Network


class SmallDRN(Architecture):
    """A dilated residual network of type D with few channels."""

    class Settings(ModelSettings):
        """Settings of the network."""

        width: Channels | None = Field(None, description="channels of the first level; null: 4")

    labels = frozenset({MAPS})

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture."""
        from harness.networks.zoo._drn import drn

        return drn(info, (1, 1, 1, 1), width=self.settings.width or 4)
