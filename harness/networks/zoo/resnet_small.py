"""A small ResNet of this project, for CPUs and quick starts: four stages of one block each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from harness.data.dataset import DatasetInfo
from harness.networks.architecture import Architecture
from harness.networks.zoo import _resnet
from harness.settings import Channels, ModelSettings

if TYPE_CHECKING:
    from harness.networks.network import Network


class SmallResNet(Architecture):
    """A ResNet whose stages have width, 2 x width, 4 x width and 8 x width channels."""

    class Settings(ModelSettings):
        """Settings of the network."""

        width: Channels | None = Field(None, description="channels of the first stage, even; null: 16")

        @field_validator("width")
        @classmethod
        def _width_is_even(cls, width: int | None) -> int | None:
            if width is not None and width % 2:
                raise ValueError(f"must be even, got {width}")
            return width

    @property
    def _widths(self) -> list[int]:
        return [(self.settings.width or 16) * 2**stage for stage in range(4)]

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture."""
        from timm.models.resnet import BasicBlock, ResNet

        from harness.networks.network import Network

        widths = self._widths
        body = ResNet(
            BasicBlock,
            [1, 1, 1, 1],
            num_classes=info.num_classes,
            in_chans=info.channels,
            channels=tuple(widths),
            # only with a deep stem does timm's ResNet accept a first stage without 64 channels; the stem is replaced
            stem_type="deep",
            stem_width=widths[0] // 2,
        )
        return Network(_resnet.small_stem(body, info.channels, widths[0]))

    def num_parameters(self, info: DatasetInfo) -> int:
        """Return the number of parameters; see Architecture."""
        return _resnet.parameters(info, self._widths, 1)
