"""Any model of timm as a network, including those that a plug-in registers with timm's ``register_model``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.data.dataset import IMAGES, MAPS, DatasetInfo
from harness.errors import UserError, reason
from harness.networks.architecture import Architecture
from harness.settings import ModelSettings

if TYPE_CHECKING:
    from harness.networks.network import Network
    from harness.networks.pretrained import Pretrained


def _created(name: str, **keys: Any) -> Any:
    """Return a new model of timm, without timm's warning that a user's model has no pretrained weights."""
    import timm

    logger = logging.getLogger("timm.models._builder")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        return timm.create_model(name, pretrained=False, **keys)
    finally:
        logger.disabled = was_disabled


class TimmModel(Architecture):
    """A model of timm. ``harness.networks.names.architecture`` makes a subclass for each name."""

    class Settings(ModelSettings):
        """Settings of all models of timm."""

        output_stride: Literal[8, 16, 32] | None = Field(
            None, description="input pixels per position of the feature map; for datasets with label maps only"
        )

        drop_rate: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="dropout of the model itself, before its classifier and inside that of a VGG; null: timm's "
            "default, which is 0 for most models (also for a VGG, whose authors have 0.5)",
        )

    timm_name: ClassVar[str]
    """The name of the model in timm."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.labels = frozenset({IMAGES if settings.output_stride is None else MAPS})

    def build(self, info: DatasetInfo) -> Network:
        """Return the network; see Architecture. Raises UserError if timm's model does not fit the interface."""
        import torch.nn as nn

        from harness.networks.network import DenseNetwork, Network, classifier_name

        name, stride = self.timm_name, self.settings.output_stride
        keys = {"in_chans": info.channels, "drop_rate": self.settings.drop_rate}  # timm leaves out what is None
        if stride is None:
            body = _created(name, num_classes=info.num_classes, **keys)
            if not isinstance(body.get_classifier(), nn.Linear):
                raise UserError(f"model.name: {name!r} does not end in one linear layer")
            return Network(body)
        try:
            body = _created(name, num_classes=0, global_pool="", output_stride=stride, **keys)
        except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"model.output_stride: {name!r} does not support {stride} ({reason(error)}); ResNets, EfficientNets, "
                "RegNets and ConvNeXts of timm do"
            ) from None
        body.set_submodule(classifier_name(body), nn.Linear(body.head_hidden_size, info.num_classes))
        return DenseNetwork(body, stride)

    def num_parameters(self, info: DatasetInfo) -> int:
        """Return the number of parameters; see Architecture."""
        body = _created(self.timm_name, num_classes=info.num_classes, in_chans=info.channels)
        return sum(p.numel() for p in body.parameters())

    @classmethod
    def pretrained(cls, download: bool) -> Pretrained | None:
        """Return the weights that timm names for the model, or those of a package; see Architecture."""
        from harness.networks import pretrained

        return pretrained.find(cls.timm_name, download)
