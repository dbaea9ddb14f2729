"""The contract of a network: a file of harness/networks/zoo/, or a file of yours, defines one subclass.

An own network takes a few lines::

    from itertools import pairwise

    from torch import nn

    from harness import Architecture, Network, Stages


    class Plain(Architecture):
        def build(self, info):
            channels = [info.channels, 16, 32, 64, 128]
            stages = [
                nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
                for before, after in pairwise(channels)
            ]
            return Network(Stages(stages, nn.Linear(128, info.num_classes)))

The files of the zoo import torch inside ``build``, so that a config is checked within milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.data.dataset import IMAGES, MAPS, DatasetInfo
from harness.faults import check_signature, described, fault
from harness.settings import ModelSettings

if TYPE_CHECKING:
    from harness.networks.network import Network
    from harness.networks.pretrained import Pretrained


def check_architecture(plugin: Any, name: str) -> None:
    """Raise PluginFault if the class of a network, written ``name`` in the config, breaks its contract."""
    if not (isinstance(plugin.Settings, type) and issubclass(plugin.Settings, ModelSettings)):
        raise fault(plugin, "Settings", "must be a subclass of ModelSettings", name)
    for hook in ("__init__", "build"):
        check_signature(plugin, Architecture, hook, name)
    labels, allowed = plugin.labels, (frozenset({IMAGES}), frozenset({MAPS}))
    if not isinstance(labels, property) and labels not in allowed:
        problem = f"must be frozenset({{IMAGES}}) or frozenset({{MAPS}}); got {described(labels)}"
        raise fault(plugin, "labels", problem, name)


class Architecture:
    """A network before it is built: its settings, the labels that it is for, and how it is built."""

    Settings: ClassVar[type[ModelSettings]] = ModelSettings
    """The keys of ``model`` in a config; a nested ``class Settings(ModelSettings)`` adds the network's own."""

    labels: frozenset[str] = frozenset({IMAGES})
    """The kind of labels: {IMAGES} for a Network, {MAPS} for a DenseNetwork. Others are rejected before a run."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def build(self, info: DatasetInfo) -> Network:
        """Return a new network for images [B, info.channels, H, W] float32 and info.num_classes classes, on the CPU.

        Its weights come from torch's global stream, which the harness seeds. Before a run the harness checks the
        network on two images: PluginFault says which fact of Network or DenseNetwork does not hold.
        """
        raise NotImplementedError

    def num_parameters(self, info: DatasetInfo) -> int:
        """Return the number of parameters, for --plan; by default the network is built, without memory if it can be."""
        import torch

        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    return self.build(info).num_parameters()
            except Exception:  # it computes with its weights
                return self.build(info).num_parameters()

    @classmethod
    def pretrained(cls, download: bool) -> Pretrained | None:
        """Return what ``weights: pretrained`` stands for, or None if there are no such weights for this network.

        Raises UserError, which says how to get them, if they are not on this machine; with ``download`` they are
        downloaded first.
        """
        return None
