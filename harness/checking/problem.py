"""A small active-learning problem that is made inside a check, and runs of a method on it."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from harness.checking.text import Wrong
from harness.config.suite import PluginSpec, Trial
from harness.data.dataset import DatasetSettings, LoadedData
from harness.data.files import IGNORED
from harness.data.images import Images
from harness.errors import Death
from harness.faults import name_of, named
from harness.learning.boundary import same_streams
from harness.learning.checkpoints import SELECT, TRAIN, Checkpoints
from harness.learning.contract import IMAGES, MAPS, Acquisition
from harness.learning.cycle import Cycle
from harness.learning.scoring import Columns, InProcess, Scored, Scorer, ascending, cut, describe_batches
from harness.networks import names
from harness.networks.network import Network
from harness.settings import Protocol, Recipe
from harness.trial import ActiveLearner

CLASSES = ("a", "b", "c", "d")

NETWORKS = {
    IMAGES: names.spec("resnet_small", width=4),
    MAPS: names.spec("drn_small", width=4),
}
"""The target networks of the checks: the smallest ones that the harness has."""

_RECIPE = {"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "crop_padding": 1, "inference_batch_size": 16}
RECIPES = {
    IMAGES: Recipe.model_validate(_RECIPE),
    MAPS: Recipe.model_validate({**_RECIPE, "batch_size": 4, "crop_padding": 0, "inference_batch_size": 6}),
}
# labelled images and candidates of cycle 0 are whole training batches, so that a count of passes has no remainder, but
# the last batch of scoring is short
_PROTOCOL = {"initial": 24, "budget": 10, "cycles": 3, "candidates": 56, "start": "warm"}
PROTOCOLS = {
    IMAGES: Protocol.model_validate(_PROTOCOL),
    MAPS: Protocol.model_validate({**_PROTOCOL, "initial": 8, "budget": 4, "candidates": 16}),
}
COUNTS = {IMAGES: (120, 24), MAPS: (40, 6)}
"""Training and test images."""


@cache
def made(kind: str) -> LoadedData:
    """Return small colour images with labels of this kind; what shows a class is its tint, under noise."""
    drawn = np.random.Generator(np.random.PCG64(5))
    tints = drawn.uniform(60, 196, (len(CLASSES), 3))
    size = (12, 12) if kind == IMAGES else (24, 32)

    def split(count: int) -> tuple[Any, Any]:
        if kind == IMAGES:
            labels: Any = drawn.permutation(np.arange(count) % len(CLASSES)).astype(np.int64)
            colours = tints[labels][:, None, None]
        else:
            coarse = drawn.integers(0, len(CLASSES), (count, size[0] // 8, size[1] // 8))
            labels = coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)
            colours = tints[labels]
            labels[drawn.random(labels.shape) < 0.05] = IGNORED
        noise = drawn.normal(0, 1, (count, *size, 3)) * drawn.uniform(5, 60, (count, 1, 1, 1))
        return (colours + noise).clip(0, 255).astype(np.uint8), labels

    train, test = (split(count) for count in COUNTS[kind])
    return LoadedData(*train, *test, CLASSES, (0.5, 0.51, 0.52), (0.2, 0.21, 0.22))


def without_two_classes(data: LoadedData, images: Sequence[int]) -> LoadedData:
    """Return the data, but the last two classes do not occur in these training images."""
    labels: Any = data.train_labels[np.arange(len(data.train_labels))]
    some = labels[[*images]]
    labels[[*images]] = np.where(some == IGNORED, some, some % 2)
    return replace(data, train_labels=labels)


def with_random_labels(data: LoadedData, kept: Sequence[int]) -> LoadedData:
    """Return the data with random labels for all training images except these."""
    labels: Any = data.train_labels[np.arange(len(data.train_labels))]
    drawn: Any = (
        np.random.Generator(np.random.PCG64(1)).integers(0, len(data.classes), labels.shape).astype(labels.dtype)
    )
    drawn[[*kept]] = labels[[*kept]]
    return replace(data, train_labels=drawn)


@dataclass(frozen=True)
class Method:
    """A method under check: the class or classes of the plug-in's file, and a pair that can run."""

    name: str
    training: PluginSpec
    acquisition: PluginSpec
    training_class: type[Any]
    acquisition_class: type[Any]
    own: tuple[type[Any], ...]
    """The classes of the plug-in's file: a training, an acquisition, or both."""

    def kinds(self) -> frozenset[str]:
        """Return the kinds of labels that both halves declare."""
        halves = ((self.training_class, self.training), (self.acquisition_class, self.acquisition))
        return frozenset.intersection(*(frozenset(cls.labels(spec.settings)) for cls, spec in halves))

    def trial(self, kind: str, **keys: Any) -> Trial:
        """Return a trial of three cycles on the problem of this kind, with some keys of recipe or protocol changed."""
        recipe, protocol = RECIPES[kind].model_dump(), PROTOCOLS[kind].model_dump()
        recipe |= {key: value for key, value in keys.items() if key in recipe}
        protocol |= {key: value for key, value in keys.items() if key in protocol}
        return Trial(
            PluginSpec("made", DatasetSettings.model_validate({})),
            NETWORKS[kind],
            Recipe.model_validate(recipe),
            Protocol.model_validate(protocol),
            self.training,
            self.acquisition,
            seed=3,
        )

    def blamed(self, for_training: bool) -> type[Any]:
        """Return the class to name in a sentence: the half that a difference comes from, if it is the plug-in's."""
        half = self.training_class if for_training else self.acquisition_class
        return half if half in self.own else self.own[0]


class Counted(Images):
    """Images that count those that are trained on.

    These are all augmented ones, and each unaugmented batch that goes through a module with gradients on. Parts of a
    batch that a method cuts out or mixes itself are not seen.
    """

    trained_on: list[int]
    """[their number]; a list, because resized images are a copy."""
    loaded: WeakTensorKeyDictionary
    """Unaugmented batches that went through no module yet."""

    @classmethod
    def of(cls, images: Images) -> Counted:
        """Return the same images, counted from 0."""
        counted = cls.__new__(cls)
        vars(counted).update(vars(copy(images)))
        counted.trained_on, counted.loaded = [0], WeakTensorKeyDictionary()
        return counted

    def _window(self, shape: torch.Size, generator: torch.Generator, crop: bool) -> Any:
        self.trained_on[0] += shape[0]
        return super()._window(shape, generator, crop)

    def _noticed(self, images: torch.Tensor) -> torch.Tensor:
        self.loaded[images] = True
        return images

    def unaugmented(self, indices: torch.Tensor) -> torch.Tensor:
        """Return images; see Images."""
        return self._noticed(super().unaugmented(indices))

    def unaugmented_batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield images; see Images."""
        return map(self._noticed, super().unaugmented_batches(batches))

    def _enter(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            for images in inputs:
                if isinstance(images, torch.Tensor) and self.loaded.pop(images, False):
                    self.trained_on[0] += len(images)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the images of a ``with`` block, from 0."""
        self.trained_on[0] = 0
        hook = torch.nn.modules.module.register_module_forward_pre_hook(self._enter)
        try:
            yield
        finally:
            hook.remove()


class Seeding(InProcess):
    """Describes images, and then seeds the global random streams, which a selection must not depend on."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see Scorer."""
        with same_streams(acquisition, "describe", cycle.device):  # as in a run, before the streams are set
            scored = super().describe(cycle, acquisition, prepared, indices, purpose)
        set_global_streams(self.seed)
        return scored


class Backwards(Seeding):
    """Describes the batches in reverse order."""

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see Scorer."""
        batches = cut(indices, cycle.recipe)[::-1]
        columns = describe_batches(cycle.network, cycle.images, acquisition, prepared, batches, cycle.key(purpose))
        set_global_streams(self.seed)
        return Scored(ascending(columns), "in_process")


class AsOnWorkers(Seeding):
    """Describes groups of batches as Ray's workers do.

    A worker has an acquisition and a network of its own, which know nothing but the weights and the prepared tensors of
    the cycle, and random streams of its own process.
    """

    def __init__(self, seed: int, workers: int) -> None:
        super().__init__(seed)
        self.count = workers
        self.workers: list[tuple[Network, Acquisition]] = []
        self.prepared: list[Columns] = []
        self.cycle = -1

    def describe(
        self, cycle: Cycle, acquisition: Acquisition, prepared: Columns, indices: torch.Tensor, purpose: str
    ) -> Scored:
        """Describe the images; see Scorer."""
        if not self.workers:
            half, arguments = type(acquisition), (acquisition.settings, acquisition.num_classes)
            networks = (cycle.new_network(0).to_device(cycle.device, cycle.recipe) for _ in range(self.count))
            self.workers = [(network, named(half(*arguments), name_of(acquisition))) for network in networks]
        if cycle.number != self.cycle:
            weights = shipped(cycle.network.state_dict())
            for network, _ in self.workers:
                network.load_state_dict(weights)
            self.prepared = [shipped(prepared) for _ in self.workers]
            self.cycle = cycle.number
        batches, parts = cut(indices, cycle.recipe), []
        for number, ((network, half_of), tensors) in enumerate(zip(self.workers, self.prepared, strict=True)):
            group = batches[len(batches) * number // self.count : len(batches) * (number + 1) // self.count]
            if group:
                set_global_streams(100 + number)
                key = cycle.key(purpose)
                parts.append(describe_batches(network, cycle.images, half_of, tensors, group, key))
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        set_global_streams(self.seed)
        return Scored(ascending(columns), "in_process")


def shipped(tensors: Columns) -> Columns:
    """Return named tensors as they arrive on a worker: copies, through numpy."""
    return {name: torch.from_numpy(np.array(tensor.detach().cpu().numpy())) for name, tensor in tensors.items()}


def set_global_streams(seed: int) -> None:
    """Seed the global random streams of torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


class Refusing:
    """An oracle that has the true labels, and gives no others than those of labelled images."""

    def __init__(self, data: LoadedData) -> None:
        self.data = data
        self.labelled: Callable[[], Any] = list

    def labels(self, indices: Any, device: torch.device) -> Any:
        """Return labels; see Oracle."""
        unlabelled = set(indices.tolist()) - set(self.labelled().tolist())
        assert not unlabelled, f"the labels of the unlabelled images {sorted(unlabelled)} are asked for"
        return torch.from_numpy(self.data.train_labels[indices]).to(device)


@dataclass
class Ran:
    """What came out of a run, cycle by cycle."""

    candidates: list[list[int]] = field(default_factory=list)
    selected: list[list[int]] = field(default_factory=list)
    """Of all cycles but the last."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Of the target, with its last loss."""
    states: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """Part/name -> tensor, after each cycle."""
    first: list[int] = field(default_factory=list)
    """The labelled images of cycle 0."""
    trained_on: tuple[int, int] = (0, 0)
    """Images that the training and the acquisition trained on in cycle 0."""
    changed: str = ""
    """What scoring changed of the target."""
    warnings: list[str] = field(default_factory=list)
    """Those of the checkpoints within cycles."""
    stored: set[str] = field(default_factory=set)
    """The stages of cycle 0 in which a checkpoint was stored."""

    def difference(self, other: Ran) -> tuple[bool, str] | None:
        """Return (whether it arose in training, sentence) for the first difference of another run, or None."""
        for number, (mine, theirs) in enumerate(zip(self.metrics, other.metrics, strict=True)):
            for key in mine:
                if mine[key] != theirs[key]:
                    return True, f"in cycle {number} the {key} is {theirs[key]} instead of {mine[key]}"
            if number < len(self.selected) and self.selected[number] != other.selected[number]:
                one, two = (_shown(run.selected[number]) for run in (self, other))
                return False, f"cycle {number} selects {two} instead of {one}"
            one_state, two_state = self.states[number], other.states[number]
            for name in {**one_state, **two_state}:
                a, b = one_state.get(name), two_state.get(name)
                if a is None or b is None or not torch.equal(a, b):
                    return not name.startswith("acquisition"), f"after cycle {number} the state {name!r} is different"
        return None


def _shown(indices: list[int]) -> str:
    return f"{', '.join(map(str, indices[:3]))}, ..." if len(indices) > 3 else ", ".join(map(str, indices))


class Died(Death):
    """The process ends here."""


class Deaths:
    """Checkpoints of a cycle in memory, with which a process dies at the first and the third one of some stages."""

    def __init__(self, stages: Collection[str]) -> None:
        self.stages = stages
        self.content: dict[str, Any] | None = None
        self.counts: Counter[str] = Counter()

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """Return the content; see harness.learning.checkpoints.File."""
        return self.content, ""

    def write(self, content: dict[str, Any]) -> None:
        """Keep the content as a file would; see File."""
        file = io.BytesIO()
        torch.save(content, file)
        file.seek(0)
        self.content = torch.load(file, map_location="cpu", weights_only=True)
        self.counts[content["stage"]] += 1
        if content["stage"] in self.stages and self.counts[content["stage"]] in (1, 3):
            raise Died

    def remove(self) -> None:
        """Do nothing: the content is that of one cycle."""


GLOBAL_SEED = 1
EVERY_STEP = 1e-9
"""Minutes between checkpoints after every step."""


def run(
    method: Method,
    kind: str,
    *,
    data: LoadedData | None = None,
    scorer: Scorer | None = None,
    oracle: Refusing | None = None,
    resumed: bool = False,
    dies: Collection[str] = (),
    global_seed: int = GLOBAL_SEED,
    **keys: Any,
) -> Ran:
    """Run a method on the problem of this kind; with ``resumed`` each cycle has a new process's worth of learner.

    Processes die within the stages ``dies`` of cycle 0, and others go on from their checkpoints. The global
    random streams start from ``global_seed``, also where ``select`` begins.
    """
    trial, ran = method.trial(kind, **keys), Ran()
    data = data or made(kind)
    set_global_streams(global_seed)
    state: dict[str, Any] = {}

    def learner_of() -> ActiveLearner:
        learner = ActiveLearner(trial, data, scorer=scorer or Seeding(global_seed), oracle=oracle)
        learner.images = Counted.of(learner.images)
        if oracle:
            oracle.labelled = lambda: learner.labelled
        return learner

    def next_process() -> ActiveLearner:
        """Return a learner that knows what is stored after the last finished cycle."""
        learner = learner_of()
        learner.start_from(ran.first)
        for selected in ran.selected:
            learner.label(selected)
        if state:
            learner.load_state(stored(state, method))
        return learner

    def cycle_of(number: int) -> None:
        """Run a cycle; what comes out is kept once it is finished."""
        cycle = learner.open_cycle(number)
        images: Any = learner.images
        learner.checkpoints.begin(TRAIN)
        with images.counting():
            trained = learner.train(cycle)
        if number < trial.protocol.cycles - 1:
            of_training = images.trained_on[0]
            before = snapshot(cycle.network)
            learner.checkpoints.begin(SELECT)
            if not learner.acquisition.scores_images:
                set_global_streams(global_seed)  # else the scorer does it: preparing may draw from torch's stream
            with images.counting():
                selected = learner.select(cycle).indices
            ran.candidates.append(cycle.candidates.tolist())
            ran.selected.append(selected)
            ran.changed = ran.changed or changes(before, snapshot(cycle.network))
            if number == 0:
                ran.trained_on = of_training, images.trained_on[0]
            learner.label(selected)
        ran.metrics.append({"loss": trained.final_loss, **trained.metrics})
        ran.warnings += learner.checkpoints.warnings

    learner = learner_of()
    learner.draw_initial_set()
    ran.first = learner.labelled.tolist()
    for number in range(trial.protocol.cycles):
        if resumed and number:
            learner = next_process()
        file, finished = Deaths(dies), False
        while not finished:
            learner.checkpoints = Checkpoints(file, EVERY_STEP, learner) if dies and number == 0 else Checkpoints()
            try:
                cycle_of(number)
                finished = True
            except Died:
                learner = next_process()
        ran.stored |= file.counts.keys()
        state = learner.state()
        ran.states.append(
            {f"{part}/{name}": v.clone() for part, tensors in state.items() for name, v in tensors.items()}
        )
    return ran


def stored(state: dict[str, Any], method: Method) -> dict[str, Any]:
    """Return a state as it comes back from the results folder. Raises Wrong if it can't be stored."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        for_training = any(not isinstance(value, torch.Tensor) for value in state["training"].values())
        raise Wrong(
            method.blamed(for_training), f"state can't be stored: {str(error).splitlines()[0]}", "state"
        ) from None
    return loaded


def snapshot(network: torch.nn.Module) -> dict[str, Any]:
    """Return copies of what scoring must not change: weights, buffers, modes, hooks, and which parameters train."""
    modules = dict(network.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights and buffers": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "training modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: sum(len(vars(module)[hook]) for hook in hooks) for name, module in modules.items()},
        "requires_grad flags": {name: p.requires_grad for name, p in network.named_parameters()},
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the first change between two snapshots, in words, or ""."""
    for what, values in before.items():
        for name, value in values.items():
            other = after[what].get(name)
            equal = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            if not equal:
                return f"the {what} of the target change while candidates are scored, first {name or 'the network'!r}"
    return ""
