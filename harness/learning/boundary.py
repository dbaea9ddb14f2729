"""The boundary between the harness and a method: every hook is called here, and what it returns is checked.

A check reads types, shapes and flags, which takes microseconds. What would read tensors' values is read once per
scoring, from all batches together, so that no batch and no step waits for the device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.dataset import IMAGES, MAPS
from harness.data.host import in_units
from harness.errors import REMEDY, NonFiniteLoss
from harness.faults import call, check_signature, described, fault, make
from harness.lazy import torch
from harness.seeds import global_states, moved
from harness.settings import PluginSpec, Recipe, Strict

if TYPE_CHECKING:
    from harness.learning.contract import Acquisition, Ahead, Batch, Columns, Half, Training
    from harness.learning.cycle import Cycle
    from harness.networks.network import Network, Outputs

KINDS = frozenset({IMAGES, MAPS})
"""The kinds of labels."""


# ------------------------------------------------------------------------------------------------------------- classes


def check_class(plugin: type[Any], name: str, contract: type[Any]) -> None:
    """Raise PluginFault if the class of a half, written ``name`` in the config, breaks its contract (a base class).

    Checks its Settings, its class variables and the arguments that its hooks accept.
    """
    for hook in ("__init__", *(word for word in dir(contract) if not word.startswith("_"))):
        expected, found = getattr(contract, hook), getattr(plugin, hook)
        if hook == "Settings":
            if not (isinstance(found, type) and issubclass(found, Strict)):
                raise fault(plugin, hook, "must be a subclass of Strict", name)
        elif isinstance(expected, frozenset):
            _check_words(plugin, name, hook, found, "be")
        elif callable(expected):
            check_signature(plugin, contract, hook, name)
        elif type(found) is not type(expected):
            raise fault(plugin, hook, f"must be a {type(expected).__name__}; got {described(found)}", name)


def _check_words(plugin: type[Any], name: str, hook: str, words: Any, verb: str) -> None:
    if not isinstance(words, frozenset) or not all(isinstance(word, str) for word in words):
        raise fault(plugin, hook, f"must {verb} a frozenset of texts; got {described(words)}", name)


def labels(plugin: type[Half], name: str, settings: Any) -> frozenset[str]:
    """Return the kinds of labels that a half supports."""
    kinds = call(plugin, "labels", settings, name=name)
    _check_words(plugin, name, "labels", kinds, "return")
    if not kinds or not kinds <= KINDS:
        raise fault(plugin, "labels", f"must return IMAGES, MAPS or both; got {sorted(kinds)}", name)
    return kinds


def unsuited(plugin: type[Half], name: str, settings: Any, ahead: Ahead) -> str:
    """Return why a half can't run in a suite, or ''."""
    problem = call(plugin, "unsuited", settings, ahead, name=name)
    if not isinstance(problem, str):
        raise fault(plugin, "unsuited", f"must return a text; got {described(problem)}", name)
    return problem


WIDEST, LITTLE = 4096, 10**9
"""Features of a wide network, and bytes that every trial has: a half that keeps no more with so many is not refused."""


def too_large(
    plugin: type[Half], spec: PluginSpec, ahead: Ahead, features: Callable[[], int], available: Callable[[], int]
) -> str:
    """Return why what a half keeps does not fit into the memory of a trial, or ''; see ``Half.memory``.

    ``features`` and ``available`` (bytes; 0: not known) are called only if the half keeps a lot.
    """

    def kept(width: int, ahead: Ahead = ahead) -> int:
        count = call(plugin, "memory", spec.settings, ahead, width, name=spec.name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise fault(plugin, "memory", f"must return an int of at least 0; got {described(count)}", spec.name)
        return count

    if kept(WIDEST) <= LITTLE or (count := kept(width := features())) <= (free := available()) or not free:
        return ""
    written = ", ".join(f"{key}: {value}" for key, value in spec.decisive().items() if key != "name")
    info, protocol = ahead.info, ahead.protocol
    few = protocol.model_copy(update={"candidates": 1})
    remedies = {  # those that lower the count
        "fewer candidates": kept(width, replace(ahead, protocol=few)) < count,
        "fewer images": kept(width, replace(ahead, info=replace(info, num_train=info.num_train // 2))) < count,
        "fewer classes": kept(width, replace(ahead, info=replace(info, num_classes=info.num_classes // 2))) < count,
        "a network with fewer features": kept(width // 2) < count,
        f"other settings of {spec.name}": bool(written),
    }
    return (
        f"{spec.name}{f' with {written}' if written else ''} keeps {in_units(count)} for {info.num_train} training "
        f"images, {info.num_classes} classes and {width} features, but a trial has {in_units(free)} of memory here; "
        f"choose {' or '.join(remedy for remedy, helps in remedies.items() if helps) or 'another method'}"
    )


def needed(plugin: type[Acquisition], name: str, settings: Any) -> frozenset[str]:
    """Return what an acquisition needs of the training."""
    words = call(plugin, "needed", settings, name=name)
    _check_words(plugin, name, "needed", words, "return")
    return words


def draws_first(plugin: type[Acquisition], name: str, settings: Any) -> bool:
    """Return whether an acquisition draws the initial set."""
    draws = call(plugin, "draws_first", settings, name=name)
    if not isinstance(draws, bool):
        raise fault(plugin, "draws_first", f"must return a bool; got {described(draws)}", name)
    return draws


def extra_passes(plugin: type[Half], name: str, settings: Any, recipe: Recipe, labelled: int, candidates: int) -> int:
    """Return the image passes that a half adds to a cycle."""
    passes = call(plugin, "extra_passes", settings, recipe, labelled, candidates, name=name)
    if not isinstance(passes, int) or isinstance(passes, bool) or passes < 0:
        raise fault(plugin, "extra_passes", f"must return an int of at least 0; got {described(passes)}", name)
    return passes


def build(plugin: type[Any], name: str, contract: type[Any], settings: Any, num_classes: int) -> Any:
    """Return a new half, written ``name`` in the config, after the checks of its class."""
    check_class(plugin, name, contract)
    half = make(plugin, name, settings, num_classes)
    if not hasattr(half, "_carried"):
        raise fault(plugin, "__init__", "must call super().__init__(settings, num_classes)", name)
    return half


# --------------------------------------------------------------------------------------------------------- both halves


def module_of(half: Half, cycle: Cycle) -> torch.nn.Module | None:
    """Return the half's new module, or None."""
    module = call(half, "make", cycle)
    if module is not None and not isinstance(module, torch.nn.Module):
        raise fault(half, "make", f"must return a torch.nn.Module or None; got {described(module)}")
    for name, tensor in _tensors(module) if module is not None else ():
        if tensor.device.type != cycle.device.type:
            problem = (
                f"must return a module on the cycle's device; expected {cycle.device}, {name!r} is on {tensor.device}"
            )
            raise fault(half, "make", problem)
    return module


def modules(half: Half) -> list[torch.nn.Module]:
    """Return the modules that a half currently adds to the target."""
    found = call(half, "modules")
    if not isinstance(found, list) or not all(isinstance(module, torch.nn.Module) for module in found):
        raise fault(half, "modules", f"must return a list of modules; got {described(found)}")
    return found


def state(half: Half) -> dict[str, torch.Tensor]:
    """Return the tensors that a half stores."""
    found = call(half, "state")
    _check_tensors(half, "state", found)
    return found


def load_state(half: Half, stored: dict[str, torch.Tensor], own: bool = True) -> None:
    """Restore a half's stored state; ``own``: it is what the half's ``state`` returned, and must return again."""
    before = _contents(stored)
    call(half, "load_state", stored)
    after = _contents(state(half))
    # runs of schema version 1 lack entries that only repeat a setting
    if own and (lost := sorted(name for name in before if before[name] != after.get(name))):
        name = lost[0]
        raise fault(half, "load_state", f"must restore what state returned; {name!r} is another after it")


def _contents(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what two equal states have in common, wherever their tensors are."""
    return {name: (tensor.dtype, tensor.shape, int(checksum(tensor))) for name, tensor in tensors.items()}


def restore(half: Half, module: torch.nn.Module, stored: dict[str, torch.Tensor]) -> None:
    """Load the stored weights of the previous cycle into a half's new module."""
    try:
        module.load_state_dict(stored)
    except RuntimeError as error:
        problem = "must return a module that takes the weights of the previous cycle; the names or shapes differ"
        raise fault(half, "make", problem) from error


def _check_tensors(half: Half, hook: str, tensors: Any) -> None:
    """Raise PluginFault if ``tensors`` is not a dictionary of names and tensors."""
    if not isinstance(tensors, dict):
        raise fault(half, hook, f"must return a dict of tensors; got {described(tensors)}")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise fault(half, hook, f"must return a dict whose keys are texts; got the key {name!r:.40}")
        if not isinstance(tensor, torch.Tensor):
            raise fault(half, hook, f"must return a dict of tensors; {name!r} is {described(tensor)}")


def _check_portable(half: Half, hook: str, tensors: Any) -> None:
    """Raise PluginFault if tensors can't be sent to or from a worker, wherever the hook runs."""
    _check_tensors(half, hook, tensors)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise fault(half, hook, f"must return dense tensors; {name!r} is sparse")
        if tensor.requires_grad:
            raise fault(half, hook, f"must return tensors without gradients; call .detach() on {name!r}")
        if tensor.dtype == torch.bfloat16:
            raise fault(
                half, hook, f"must return no bfloat16 tensors, which workers can't send; call .float() on {name!r}"
            )


# ------------------------------------------------------------------------------------------------------------ training


def fit(training: Training, cycle: Cycle) -> float:
    """Train the cycle's network with a forked random stream, and return the loss."""
    network = cycle.network
    with forked(cycle.key("global"), cycle.device), unwritten(training, "fit", _of_cycle(cycle)), finite(training):
        loss = call(training, "fit", cycle)
    if isinstance(loss, bool) or not isinstance(loss, float | int | np.floating) or not np.isfinite(loss):
        raise fault(training, "fit", f"must return a finite float, the last epoch's mean loss; got {described(loss)}")
    if cycle.network is not network:
        raise fault(training, "fit", "must train cycle.network in place; it replaces cycle.network")
    with finite(training):
        _check_weights(cycle, {"the target network": network, **_named("training", modules(training))})
    return float(loss)


def _named(half: str, modules: list[torch.nn.Module]) -> dict[str, torch.nn.Module]:
    return {f"the {half}'s module {number}": module for number, module in enumerate(modules, 1)}


def _check_weights(cycle: Cycle, networks: dict[str, torch.nn.Module]) -> None:
    """Raise NonFiniteLoss if a parameter or buffer is not finite: no loss tells what the last step did."""
    wrong = first_not_finite(
        (f"{name!r} of {of}", t) for of, module in networks.items() for name, t in _tensors(module)
    )
    if wrong is not None:
        raise NonFiniteLoss(f"cycle {cycle.number}, after the last step: {wrong} has NaN or infinite values; {REMEDY}")


@contextmanager
def finite(half: Half) -> Iterator[None]:
    """Let a NonFiniteLoss of a user's half name it, and the hook that most likely causes it."""
    try:
        yield
    except NonFiniteLoss as error:
        if type(half).__module__.startswith("harness."):
            raise
        own = [hook for hook in ("prepare", "loss", "fit", "batch", "predict") if not _inherited(half, hook)]
        raise fault(half, own[0] if own else "loss", f"must lead to finite numbers; {error}") from error


def _inherited(half: Half, hook: str) -> bool:
    return getattr(getattr(half, hook, None), "__module__", "harness.").startswith("harness.")


def batch(
    training: Training, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, Any]:
    """Return a training batch's inputs and targets."""
    pair = call(training, "batch", images, labels, generator)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise fault(training, "batch", f"must return (images, targets); got {described(pair)}")
    inputs, targets = pair
    if not (isinstance(inputs, torch.Tensor) and inputs.ndim == 4 and inputs.is_floating_point()):
        raise fault(training, "batch", f"must return images [B, channels, H, W], floating; got {described(inputs)}")
    if inputs.device != images.device or inputs.shape[1] != images.shape[1]:
        expected = f"{images.shape[1]} channels on {images.device}"
        problem = f"must return images like those that it gets; expected {expected}, got {described(inputs)}"
        raise fault(training, "batch", f"{problem} on {inputs.device}")
    if inputs.dtype != images.dtype:
        kept = f"{images.dtype}".removeprefix("torch.")
        raise fault(training, "batch", f"must return images in the type that it gets, {kept}; got {described(inputs)}")
    if _inherited(training, "loss"):  # which compares classes; the targets of an own loss are its own
        alike = isinstance(targets, torch.Tensor) and targets.ndim == labels.ndim
        if not (alike and targets.dtype in (labels.dtype, torch.int64)):
            problem = f"must return targets like the labels that it gets, {described(labels)}, unless loss is its own"
            raise fault(training, "batch", f"{problem}; got {described(targets)}")
    if isinstance(targets, torch.Tensor) and targets.ndim and len(targets) != len(inputs):
        counts = f"{len(inputs)} images and {len(targets)} targets"
        raise fault(training, "batch", f"must return as many targets as images; got {counts}")
    return pair


def loss(training: Training, outputs: Outputs, targets: Any, progress: float) -> torch.Tensor:
    """Return a batch's loss."""
    value = call(training, "loss", outputs, targets, progress)
    if not (isinstance(value, torch.Tensor) and value.ndim == 0 and value.is_floating_point()):
        raise fault(training, "loss", f"must return a floating tensor [] (a mean); got {described(value)}")
    if not value.requires_grad:
        raise fault(training, "loss", "must return a loss with a gradient; it is detached from the outputs")
    return value


def predict(training: Training, network: Network, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the class scores of each tested head."""
    heads = call(training, "predict", network, images)
    classes = training.num_classes
    if not isinstance(heads, list) or not heads:
        raise fault(
            training, "predict", f"must return a list of class scores, one entry per head; got {described(heads)}"
        )
    for head in heads:
        if not (isinstance(head, torch.Tensor) and head.is_floating_point() and head.ndim in (2, 4)):
            raise fault(training, "predict", f"must return floating scores [B, C, *s]; got {described(head)}")
        if head.shape[:2] != (len(images), classes):
            problem = f"expected {len(images)} images and {classes} classes, got {described(head)}"
            raise fault(training, "predict", f"must return scores [B, C, *s]; {problem}")
    return heads


def replaced(training: Training, network: Network) -> list[torch.nn.Parameter]:
    """Return the target's parameters that the training's module replaces."""
    found = call(training, "replaced", network)
    own = {id(parameter) for parameter in network.parameters()}
    parameters = list(found) if isinstance(found, Iterable) and not isinstance(found, torch.Tensor | str) else None
    if parameters is None or not all(id(parameter) in own for parameter in parameters):
        raise fault(training, "replaced", f"must return parameters of the network; got {described(found)}")
    return parameters


# --------------------------------------------------------------------------------------------------------- acquisition


def first(acquisition: Acquisition, cycle: Cycle) -> list[int]:
    """Return the initial set that an acquisition draws."""
    with same_streams(acquisition, "first", cycle.device), unwritten(acquisition, "first", _of_cycle(cycle)):
        indices = call(acquisition, "first", cycle)
    total = len(cycle.labelled) + len(cycle.unlabelled)
    return _chosen(acquisition, "first", indices, len(cycle.labelled), total, "indices of training images")


def select(
    acquisition: Acquisition,
    columns: Columns,
    labelled: Callable[[], Columns],
    budget: int,
    generator: torch.Generator,
) -> list[int]:
    """Return the rows that an acquisition selects."""
    with unwritten(acquisition, "select", {"columns['index']": columns["index"]}):
        rows = call(acquisition, "select", columns, labelled, budget, generator)
    return _chosen(acquisition, "select", rows, budget, len(columns["index"]), "row numbers")


def _chosen(acquisition: Acquisition, hook: str, numbers: Any, count: int, total: int, what: str) -> list[int]:
    """Return the numbers as a list, if they are ``count`` different ones of 0..total-1."""
    if not (isinstance(numbers, torch.Tensor) and numbers.dtype == torch.int64 and numbers.ndim == 1):
        raise fault(acquisition, hook, f"must return {what} as int64 [{count}]; got {described(numbers)}")
    if len(numbers) != count:
        raise fault(acquisition, hook, f"must return {count} {what}; got {len(numbers)}")
    values: list[int] = numbers.tolist()
    if outside := [value for value in values if not 0 <= value < total]:
        raise fault(acquisition, hook, f"must return {what} of 0..{total - 1}; got {outside[0]}")
    if len(set(values)) < count:
        twice = next(value for value in values if values.count(value) > 1)
        raise fault(acquisition, hook, f"must return different {what}; got {twice} twice")
    return values


def check_selected(acquisition: Acquisition, indices: list[int], candidates: np.ndarray[Any, Any]) -> None:
    """Raise PluginFault if the selected images are not different candidates, whatever way they were changed."""
    if len({*indices}) < len(indices) or not np.isin(indices, candidates).all():
        raise fault(acquisition, "select", "must select different candidates; a hook has changed their indices")


def prepare(acquisition: Acquisition, cycle: Cycle) -> Columns:
    """Return the tensors that an acquisition prepares for scoring, with a forked random stream."""
    forks = forked(cycle.key("prepare"), cycle.device)
    with forks, unwritten(acquisition, "prepare", _of_cycle(cycle)), finite(acquisition):
        prepared = call(acquisition, "prepare", cycle)
        _check_weights(cycle, _named("acquisition", modules(acquisition)))
    _check_portable(acquisition, "prepare", prepared)
    return prepared


def describe(acquisition: Acquisition, network: Network, batch: Batch, prepared: Columns) -> Columns:
    """Return the columns of a batch, with score maps reduced to one score per image, and a column ``index``."""
    with unwritten(acquisition, "describe", {"batch.images": batch.images, "batch.index": batch.index}):
        columns = call(acquisition, "describe", network, batch, prepared)
    _check_portable(acquisition, "describe", columns)
    count, device = len(batch.index), batch.index.device
    for name, column in columns.items():
        if name == "index":
            raise fault(acquisition, "describe", "must not return a column 'index': the harness adds it")
        if column.ndim == 0 or len(column) != count:
            got = len(column) if column.ndim else "a number"
            problem = f"must return columns with one row per image; expected {count} rows in {name!r}, got {got}"
            raise fault(acquisition, "describe", problem)
        if column.device != device:
            problem = f"must return columns on the images' device; expected {device}, {name!r} is on {column.device}"
            raise fault(acquisition, "describe", problem)
    if "score" in columns:
        if not columns["score"].is_floating_point():
            got = described(columns["score"])
            raise fault(acquisition, "describe", f"must return floating scores; 'score' is {got}")
        images_only = isinstance(network, torch.nn.Module) and not hasattr(network, "stride")  # that of a DenseNetwork
        one_each = images_only and _inherited(acquisition, "over_positions")
        if columns["score"].ndim > 1 and one_each:
            problem = f"must return one score per image, [{count}]; 'score' is {described(columns['score'])}"
            raise fault(acquisition, "describe", problem)
        if columns["score"].ndim > 1:
            columns = {**columns, "score": over_positions(acquisition, columns["score"].flatten(1))}
    elif _uses_default_select(acquisition):
        found = ", ".join(map(repr, columns)) or "none"
        problem = f"must return a column 'score', which the default select ranks; its columns are {found}"
        raise fault(acquisition, "describe", problem)
    return {"index": batch.index, **columns}


def over_positions(acquisition: Acquisition, scores: torch.Tensor) -> torch.Tensor:
    """Return the scores [B] of images from those of their positions."""
    reduced = call(acquisition, "over_positions", scores)
    fits = isinstance(reduced, torch.Tensor) and reduced.shape == scores.shape[:1] and reduced.is_floating_point()
    if not fits or reduced.device != scores.device:
        problem = f"must return one floating score per image; expected [{len(scores)}], got {described(reduced)}"
        raise fault(acquisition, "over_positions", problem)
    return reduced


def _uses_default_select(acquisition: Acquisition) -> bool:
    return acquisition.select.__module__ == "harness.learning.contract"


def check_alike(acquisition: Acquisition, first: Columns, columns: Columns) -> None:
    """Raise PluginFault if two batches have different columns, or columns of different shapes or types."""
    if first.keys() != columns.keys():
        name = min(first.keys() ^ columns.keys())
        raise fault(acquisition, "describe", f"must return the same columns for all batches; not all have {name!r}")
    for name, column in columns.items():
        if column.shape[1:] != first[name].shape[1:] or column.dtype != first[name].dtype:
            row, other = (f"{described(part[name][0])}" for part in (first, columns))
            problem = f"must return rows of one shape and type for all batches; {name!r} has rows {row} and {other}"
            raise fault(acquisition, "describe", problem)


def check_finite_columns(acquisition: Acquisition, columns: Columns) -> None:
    """Raise PluginFault if a column has a value that is NaN or infinite. Waits for the device once."""
    name = first_not_finite(columns.items())
    if name is not None:
        rows = columns[name].flatten(1) if columns[name].ndim > 1 else columns[name][:, None]
        broken = (~rows.isfinite()).any(1).nonzero()[:, 0]
        values, image = rows[broken[0]], int(columns["index"][broken[0]])
        value = float(values[~values.isfinite()][0])
        problem = f"{name!r} is {value} for {len(broken)} images, such as image {image}"
        raise fault(acquisition, "describe", f"must return finite columns; {problem}")


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor that has a value that is NaN or infinite, or None. Waits once."""
    floating = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return None
    device = floating[0][1].device
    # the extremes are NaN if any value is; unlike isfinite they need no second tensor of the size of the first
    extremes = [torch.stack(torch.aminmax(tensor.detach())) for _, tensor in floating]
    finite = torch.stack([pair.isfinite().all().to(device) for pair in extremes]).tolist()
    return next((name for (name, _), is_finite in zip(floating, finite, strict=True) if not is_finite), None)


# -------------------------------------------------------------------------------------- what hooks must leave as it is


@contextmanager
def unwritten(half: Half, hook: str, tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Raise PluginFault if a ``with`` block writes into tensors that a hook may only read."""
    versions = {name: tensor._version for name, tensor in tensors.items()}
    yield
    for name, tensor in tensors.items():
        if tensor._version != versions[name]:
            raise fault(half, hook, f"must not write into {name}; copy it first, with .clone()")


def _of_cycle(cycle: Cycle) -> dict[str, torch.Tensor]:
    return {f"cycle.{name}": getattr(cycle, name) for name in ("labelled", "unlabelled", "candidates")}


@contextmanager
def forked(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random streams of torch, numpy and random for a ``with`` block, and restore them after it."""
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)  # noqa: NPY002


def _streams(device: torch.device) -> dict[str, Any]:
    """Return the states of the global random streams; no state is read from a device."""
    states = global_states()
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device)
    return states


@contextmanager
def same_streams(half: Half, hook: str, device: torch.device) -> Iterator[None]:
    """Raise PluginFault if the hook, which runs in the ``with`` block, moves a global random stream."""
    before = _streams(device)
    yield
    if library := moved(before, _streams(device)):
        instead = {
            "describe": "batch.generator",
            "select": "its generator",
            "first": "cycle.stream(...)",
        }.get(hook, "a torch.Generator of its own")
        raise fault(half, hook, f"must not draw from the global random stream of {library}; draw from {instead}")


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


INTEGERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum [] int64 of a tensor's bits, read as integers; stays on the device."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(getattr(torch, INTEGERS[tensor.element_size()])).sum(dtype=torch.int64)


class Unchanged:
    """Checks that the hooks of a scoring leave networks as they are: weights, flags, modes and forward hooks.

    Use ``during`` for each hook, and ``finish`` at the end. ``others`` are the modules of the training.
    """

    def __init__(self, half: Half, network: Network, others: Sequence[torch.nn.Module] = ()) -> None:
        self.half, self.device = half, next(network.parameters()).device
        self.networks: dict[str, torch.nn.Module] = {"the target network": network}
        self.networks |= _named("training", [*others])
        self._flags = self._read_flags()
        self._names = [f"{name} of {of}" for of, network in self.networks.items() for name, _ in _tensors(network)]
        self._sums = [("", self._read_sums())]

    def _read_flags(self) -> dict[str, Any]:
        """Return what is not a tensor's value; cheap, because nothing is read from the device."""
        flags: dict[str, Any] = {}
        for of, network in self.networks.items():
            parts = list(network.modules())
            tensors = list(_tensors(network))
            flags[f"the parts of {of}"] = [*map(id, parts)], [(name, tensor.shape) for name, tensor in tensors]
            flags[f"training or evaluation mode of {of}"] = [part.training for part in parts]
            flags[f"requires_grad of {of}"] = [tensor.requires_grad for _, tensor in tensors]
            flags[f"the hooks of {of}"] = [
                [*part._forward_hooks, *part._forward_pre_hooks, *part._backward_hooks, *part._backward_pre_hooks]
                for part in parts
            ]
        return flags

    def _read_sums(self) -> torch.Tensor:
        """Return the checksums [T] of all tensors, on the device."""
        sums = [
            checksum(tensor).to(self.device) for network in self.networks.values() for _, tensor in _tensors(network)
        ]
        return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64, device=self.device)

    @contextmanager
    def during(self, hook: str) -> Iterator[None]:
        """Check the state that ``hook`` leaves, which runs in the ``with`` block, and the global random streams.

        A hook that the harness defines changes nothing, and takes no time here.
        """
        if getattr(self.half, hook).__module__ == "harness.learning.contract":
            yield
            return
        with same_streams(self.half, hook, self.device):
            yield
        flags = self._read_flags()
        for what, before in self._flags.items():
            if flags[what] != before:
                raise self._fault(hook, what)
        self._sums.append((hook, self._read_sums()))

    def finish(self) -> None:
        """Raise PluginFault if a hook changed a tensor. Waits for the device once."""
        rows = torch.stack([sums for _, sums in self._sums])
        changed = (rows[1:] != rows[:-1]).cpu()
        if changed.any():
            number, tensor = changed.nonzero()[0].tolist()
            raise self._fault(self._sums[number + 1][0], self._names[tensor])

    def _fault(self, hook: str, what: str) -> Exception:
        return fault(self.half, hook, f"must leave the networks as they are; it changes {what}")
