"""Builds target networks from their settings, and checks the facts that the harness relies on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn

from harness.data.dataset import DatasetInfo
from harness.errors import UserError, reason
from harness.faults import PluginFault, Result, described, fault, guarded
from harness.networks import names
from harness.networks.maps import STRIDES
from harness.networks.network import DenseNetwork, Network, Outputs, Stages
from harness.networks.weights import load_weights
from harness.seeds import global_states, key, moved, restore
from harness.settings import PluginSpec


def _set_last_gammas(network: Network, model: PluginSpec) -> None:
    """Set the gamma of the last batch norm of each residual block: 0 for kaiming_zero_last, else 1.

    timm's default differs between networks, and not all of them have an argument for it.
    """
    blocks = [module for module in network.modules() if hasattr(module, "zero_init_last")]
    if model.settings.initialisation == "kaiming_zero_last":
        if not blocks:
            raise UserError(f"model.initialisation: kaiming_zero_last zeroes residual blocks, {model.name!r} has none")
        for block in blocks:
            block.zero_init_last()  # type: ignore[operator]
    else:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
                nn.init.ones_(module.weight)


def build(model: PluginSpec, info: DatasetInfo, seed: int) -> Network:
    """Return a new network, whose weights depend only on the seed and the file of pretrained weights.

    Raises UserError if the network does not fit the dataset, or the file does not fit the network; PluginFault if a
    user's ``build`` fails or returns no network for the dataset's labels and classes.
    """
    names.check_fits(model, info)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # seeds only the CPU's generator, not the GPU's
        before = global_states()
        network = run(model, "build", lambda: names.of(model).build(info))
        del before["torch"]
        if library := moved(before, global_states()):
            restore(before)
            problem = f"must draw from torch's global random stream alone; it draws from that of {library}"
            raise fault(names.architecture(model.name), "build", problem, model.name)
        _check_built(model, info, network)
        _set_last_gammas(network, model)
        if model.settings.initialisation == "pytorch":
            for module in network.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        if model.settings.weights is not None:
            load_weights(network, model, info.channels)
    network.input_size = model.settings.input_size
    return network


def initial(model: PluginSpec, info: DatasetInfo, seed: int, cycle: int) -> Network:
    """Return the network that a cycle with fresh weights starts from. It is the same for all methods of a seed."""
    return build(model, info, key(seed, "weights", cycle))


CHECKED_SIDE = 64
"""Longest side, in pixels, of the images on which segmentation networks are checked: Cityscapes' would take minutes."""


def check(model: PluginSpec, info: DatasetInfo) -> None:
    """Run a network on two images of the dataset's size, and check what comes out.

    Raises UserError if the harness's or timm's own network can't process such images, and PluginFault if a user's
    network breaks a fact of Network or DenseNetwork.
    """
    network = build(model, info, 0).eval()
    size = info.size
    if isinstance(network, DenseNetwork):
        size = (min(size[0], CHECKED_SIDE), min(size[1], CHECKED_SIDE))
    images = torch.randn(2, info.channels, *size, generator=torch.Generator().manual_seed(0))
    if not names.shipped(model.name):
        with torch.no_grad():
            _check_facts(model, info, network, images)
        _check_seeded(model, info, network)
        return
    try:
        with torch.no_grad():
            logits = network(images).logits
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UserError(f"model.name: {model.name!r} can't process images of size {size}: {reason(error)}") from None
    expected = (2, info.num_classes, *_positions(network, images))
    if logits.shape != expected:
        raise UserError(f"model.name: {model.name!r} returns {tuple(logits.shape)} for 2 images, expected {expected}")


def _positions(network: Network, images: torch.Tensor) -> tuple[int, ...]:
    """Return the height and width of the network's map, or () if it has one output per image."""
    if not isinstance(network, DenseNetwork):
        return ()
    return tuple(-(-side // network.stride) for side in images.shape[2:])


def _check_built(model: PluginSpec, info: DatasetInfo, network: Any) -> None:
    """Raise PluginFault if a user's ``build`` did not return a network for the dataset's labels and classes."""
    expected = DenseNetwork if info.per_pixel else Network
    if not isinstance(network, expected) or isinstance(network, DenseNetwork) != info.per_pixel:
        raise _wrong(model, f"a {expected.__name__} for {info.labels}; got {described(network)}")
    if isinstance(network, DenseNetwork) and not (type(network.stride) is int and network.stride in STRIDES):
        allowed = f"{', '.join(map(str, STRIDES[:-1]))} or {STRIDES[-1]}"
        raise _wrong(model, f"a DenseNetwork whose stride is {allowed}; got {described(network.stride)}")
    if isinstance(network.body, Stages) and network.body.pool == info.per_pixel:
        problem = f"a {expected.__name__} whose Stages have pool={not info.per_pixel}, for {info.labels}"
        raise _wrong(model, f"{problem}; got pool={network.body.pool}")
    if not hasattr(network.body, "get_classifier"):
        raise _wrong(model, f"a network whose body has get_classifier(); {described(network.body)} has not")
    classifier = run(model, "get_classifier", network.body.get_classifier)
    if not isinstance(classifier, nn.Linear):
        raise _wrong(model, f"a network whose classifier is an nn.Linear; got {described(classifier)}")
    if classifier.out_features != info.num_classes:
        outputs = f"{info.num_classes} outputs, one for each class; got {classifier.out_features}"
        raise _wrong(model, f"a network whose classifier has {outputs}")


def _check_facts(model: PluginSpec, info: DatasetInfo, network: Network, images: torch.Tensor) -> None:
    """Raise PluginFault for the first fact about the outputs that does not hold."""
    outputs: Any = run(model, "forward", lambda: network(images))
    if not isinstance(outputs, Outputs):
        raise _wrong(model, f"a network that returns Outputs; got {described(outputs)}")
    positions = _positions(network, images)
    _check_tensor(model, "logits", outputs.logits, (2, info.num_classes, *positions))
    _check_tensor(model, "features", outputs.features, (2, network.classifier.in_features, *positions))
    if not close(network.classified(outputs.features), outputs.logits):
        raise _wrong(model, "a network whose logits are the classifier's output for the features; they differ")
    alone = run(model, "forward", lambda: network(images[:1]))
    if not close(alone.logits, outputs.logits[:1]):
        raise _wrong(model, "a network whose logits of an image do not depend on its batch in evaluation mode; they do")
    if hasattr(network.body, "forward_intermediates") or type(network)._with_stages is not Network._with_stages:
        with_stages = run(model, "forward", lambda: network(images, stages=True))
        stages = with_stages.stages
        if not isinstance(stages, list) or len(stages) != 4:
            raise _wrong(model, f"a network whose stages are a list of the last 4 maps; got {described(stages)}")
        for number, stage in enumerate(stages):
            _check_tensor(model, f"stage {number + 1} of 4", stage, (2, None, None, None))
        if not close(with_stages.logits, outputs.logits):
            raise _wrong(model, "a network whose logits are the same with and without stages; they differ")


def _check_seeded(model: PluginSpec, info: DatasetInfo, network: Network) -> None:
    """Raise PluginFault if a network's weights are those of another seed: all seeds of a run would start alike."""
    own, others = network.state_dict(), build(model, info, 1).state_dict()
    if own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own):
        problem = (
            "must draw its weights from torch's global random stream, which the harness seeds, and must not seed it"
        )
        raise fault(names.architecture(model.name), "build", f"{problem}; two seeds give equal networks", model.name)


def _check_tensor(model: PluginSpec, name: str, tensor: Any, shape: tuple[int | None, ...]) -> None:
    """Raise PluginFault unless it is a finite float32 tensor of this shape; None stands for any side."""
    sides = ", ".join("any" if side is None else str(side) for side in shape)
    verb = "is" if name.startswith("stage") else "are"
    wanted, found = f"a network whose {name} for 2 images {verb} float32 [{sides}]", described(tensor)
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32 or tensor.ndim != len(shape):
        raise _wrong(model, f"{wanted}; got {found}")
    if any(side not in (None, actual) for side, actual in zip(shape, tensor.shape, strict=True)):
        raise _wrong(model, f"{wanted}; got {found}")
    if not tensor.isfinite().all():
        raise _wrong(model, f"a network whose {name} {verb} finite; got NaN or infinity")


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two results are equal up to rounding: kernels sum in another order for other batches."""
    scale = 1e-4 + 1e-3 * float(other.abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=scale)


def run(model: PluginSpec, hook: str, work: Callable[[], Result]) -> Result:
    """Return ``work()``, code of a network; an exception in a user's network becomes a PluginFault."""
    if names.shipped(model.name):
        return work()
    return guarded(names.architecture(model.name), hook, work, model.name, at="build")


def _wrong(model: PluginSpec, expected: str) -> PluginFault:
    """Return the fault of a user's ``build`` that does not return what is expected."""
    return fault(names.architecture(model.name), "build", f"must return {expected}", model.name)
