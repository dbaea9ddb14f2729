"""The checks of a network: classifier, features, stages, sizes, and what copies and seeds must reproduce."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F

from harness.checking.text import Wrong, cut, run_checks, settings_of, wrapped
from harness.data.dataset import DatasetInfo
from harness.errors import reason
from harness.learning.contract import IMAGES, MAPS
from harness.networks import building
from harness.networks.building import close
from harness.networks.network import DenseNetwork, Network, Outputs
from harness.settings import PluginSpec, Recipe

CLASSES, BATCH = 5, 3
SIZES = {IMAGES: ((32, 32), (48, 40)), MAPS: ((40, 56), (37, 50))}
"""Heights and widths of the images; segmentation networks also get sides that are no multiples of their stride."""


@dataclass
class OnKind:
    """A network under check, for one kind of labels."""

    name: str
    plugin: type[Any]
    settings: Any
    kind: str
    hook: ClassVar[str] = "build"
    """What an exception is put down to if no line of the plug-in's file raises it."""

    @property
    def model(self) -> PluginSpec:
        """The network as a config names it."""
        return PluginSpec(self.name, self.settings)

    def build(self, seed: int = 0, channels: int = 3, size: tuple[int, int] | None = None) -> Network:
        """Return a new network in evaluation mode, with weights drawn with this seed, as a run builds it."""
        size = size or SIZES[self.kind][0]
        info = DatasetInfo(8, 8, CLASSES, channels, size, "made for a check", self.kind == MAPS)
        return building.build(self.model, info, seed).eval()

    def images(self, channels: int = 3, size: tuple[int, int] | None = None, seed: int = 0) -> torch.Tensor:
        """Return normalised images [3, channels, H, W]."""
        drawn = torch.Generator().manual_seed(seed)
        return torch.randn(BATCH, channels, *(size or SIZES[self.kind][0]), generator=drawn)

    def outputs(self, network: Network, images: torch.Tensor, stages: bool = False) -> Outputs:
        """Return the network's outputs, without gradients."""
        with torch.no_grad():
            return building.run(self.model, "forward", lambda: network(images, stages))

    def wrong(self, problem: str) -> Wrong:
        """Return the failure of a check."""
        return Wrong(self.plugin, problem, "build")


def fits(it: OnKind) -> None:
    """It returns a class score for each image, or for each position of its map, at two image sizes."""
    for size in SIZES[it.kind]:
        network = it.build(size=size)
        expected: tuple[int, ...] = (BATCH, CLASSES)
        if it.kind == MAPS:
            assert isinstance(network, DenseNetwork)  # see building.build
            expected += tuple(-(-side // network.stride) for side in size)
        logits = it.outputs(network, it.images(size=size)).logits
        if logits.shape != expected or logits.dtype != torch.float32:
            found = f"{tuple(logits.shape)} {logits.dtype}"
            raise it.wrong(
                f"{BATCH} images of {size[0]} x {size[1]} pixels must give logits {expected} float32; got {found}"
            )
        if not logits.isfinite().all():
            raise it.wrong("the logits must be finite; got NaN or infinity")


def takes_any_channels(it: OnKind) -> None:
    """It takes images of one channel."""
    it.outputs(it.build(channels=1), it.images(channels=1))


def has_a_classifier(it: OnKind) -> None:
    """Its classifier is one linear layer, with an output for each class."""
    layer: Any = it.build().body.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.out_features != CLASSES or layer.bias is None:
        raise it.wrong(f"the classifier must be nn.Linear with a bias and {CLASSES} outputs; got {layer}")


def has_features(it: OnKind) -> None:
    """Its features, through the classifier, give its logits."""
    network = it.build()
    outputs = it.outputs(network, it.images())
    width, ndim = network.classifier.in_features, 2 if it.kind == IMAGES else 4
    if outputs.features.ndim != ndim or outputs.features.shape[1] != width:
        shape = f"[B, {width}]" if ndim == 2 else f"[B, {width}, h, w]"
        raise it.wrong(f"the features must be {shape}, what the classifier takes; got {tuple(outputs.features.shape)}")
    with torch.no_grad():
        layer = network.classifier
        logits = F.linear(outputs.features.movedim(1, -1), layer.weight, layer.bias).movedim(-1, 1)
    if not close(logits, outputs.logits):
        raise it.wrong("the logits must be the classifier's output for the features; they differ")


def has_stages(it: OnKind) -> None:
    """It returns the maps of its stages, shallow to deep, and the same logits with and without them."""
    network, images = it.build(), it.images()
    with_stages = it.outputs(network, images, stages=True)
    shapes = [tuple(stage.shape) for stage in with_stages.stages]
    if len(shapes) != 4 or any(len(shape) != 4 or shape[0] != BATCH for shape in shapes):
        raise it.wrong(f"the stages must be the last four maps [B, D, H, W]; got {shapes}")
    if any(deep[2] > shallow[2] or deep[3] > shallow[3] for shallow, deep in pairwise(shapes)):
        raise it.wrong(f"the stages must be ordered shallow to deep, with maps that do not grow; got {shapes}")
    if not close(with_stages.logits, it.outputs(network, images).logits):
        raise it.wrong("the logits must be the same with and without stages; they differ")


def keeps_images_apart(it: OnKind) -> None:
    """In evaluation mode an image's output does not depend on its batch."""
    network, images = it.build(), it.images()
    whole = it.outputs(network, images).logits
    alone = torch.cat([it.outputs(network, image[None]).logits for image in images])
    if not close(whole, alone):
        raise it.wrong("in evaluation mode an image's logits must not depend on its batch; they differ if it is alone")
    if not torch.equal(whole, it.outputs(network, images).logits):
        raise it.wrong("in evaluation mode the logits must be the same twice; they differ")


def follows_the_seed(it: OnKind) -> None:
    """Its weights depend on the seed, and on nothing else."""
    first, again, other = it.build(1).state_dict(), it.build(1).state_dict(), it.build(2).state_dict()
    if different := [name for name in first if not torch.equal(first[name], again[name])]:
        raise it.wrong(f"two networks of one seed differ, first in {different[0]!r}; draw weights from torch alone")
    if all(torch.equal(first[name], other[name]) for name in first):
        raise it.wrong("networks of two seeds are equal; draw weights from torch's global stream")


def restores(it: OnKind) -> None:
    """Its state_dict, loaded into another network, gives the same outputs."""
    network, other, images = it.build(1), it.build(2), it.images()
    network.train()
    it.outputs(network, images)  # moves buffers
    other.load_state_dict(network.state_dict())
    if not torch.equal(it.outputs(network.eval(), images).logits, it.outputs(other, images).logits):
        raise it.wrong("the state_dict must hold all that the outputs depend on; another network with it differs")


def trains_every_parameter(it: OnKind) -> None:
    """A gradient reaches each parameter."""
    network = it.build().train()
    building.run(it.model, "forward", lambda: network(it.images()).logits.square().sum().backward())
    without = [name for name, p in network.named_parameters() if p.grad is None]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        raise it.wrong(
            f"no gradient reaches the parameter {without[0]!r}{more}; remove it, or use it in the forward pass"
        )


def pickles(it: OnKind) -> None:
    """A pickled copy gives the same outputs."""
    network, images = it.build(), it.images()
    try:
        copy = pickle.loads(pickle.dumps(network))  # noqa: S301
    except Exception as error:
        raise it.wrong(f"the network must be picklable, as workers get a copy; it is not: {reason(error)}") from error
    if not torch.equal(it.outputs(network, images).logits, it.outputs(copy, images).logits):
        raise it.wrong("a pickled copy must give the same logits; they differ")


def runs_in_bfloat16(it: OnKind) -> None:
    """With precision: bfloat16 its outputs are finite and float32."""
    network = it.build().to_device(torch.device("cpu"), Recipe.model_validate({"epochs": 1, "precision": "bfloat16"}))
    outputs = it.outputs(network, it.images(), stages=True)
    stages = [(f"stage {number}", stage) for number, stage in enumerate(outputs.stages)]
    for name, tensor in (("logits", outputs.logits), ("features", outputs.features), *stages):
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise it.wrong(f"with precision: bfloat16 {name} must be finite float32; got {tensor.dtype}")


CHECKS: list[Callable[[OnKind], None]] = [
    takes_any_channels,
    has_a_classifier,
    has_features,
    has_stages,
    keeps_images_apart,
    follows_the_seed,
    restores,
    trains_every_parameter,
    pickles,
    runs_in_bfloat16,
]
"""The checks of a network that can be built and run, in the order of the output."""


def check(name: str, plugin: type[Any], values: dict[str, Any], say: Callable[[str], None]) -> tuple[int, int]:
    """Check a network, say a line for each check, and return (how many failed, how many ran). Raises UserError."""
    (settings,) = settings_of([plugin], {**cut(plugin, values), **values})
    failed = ran = 0
    for kind in sorted(plugin(settings).labels):
        prefix = f"{kind}: "
        for checks in ([fits], CHECKS):
            more_failed, more = run_checks(name, plugin, checks, OnKind(name, plugin, settings, kind), say, prefix)
            failed, ran = failed + more_failed, ran + more
            if more_failed and checks is not CHECKS:
                say(wrapped("skip", f"{prefix}the other checks need a network that runs"))
                break
    return failed, ran
