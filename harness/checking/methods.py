"""The checks of a method: what only a second run on a small problem shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from harness import registry
from harness.checking.problem import (
    COUNTS,
    GLOBAL_SEED,
    PROTOCOLS,
    RECIPES,
    AsOnWorkers,
    Backwards,
    Method,
    Ran,
    Refusing,
    made,
    run,
    with_random_labels,
    without_two_classes,
)
from harness.checking.text import Inapplicable, Wrong, cut, run_checks, settings_of, wrapped
from harness.config.suite import DEFAULT_TRAINING, PluginSpec
from harness.errors import UserError
from harness.faults import call, place
from harness.learning import boundary
from harness.learning.checkpoints import FIRST, RANK, SCORE, SELECT, TRAIN
from harness.learning.contract import IMAGES, MAPS, Acquisition, Batch, Training
from harness.learning.cycle import Cycle
from harness.learning.inference import evaluating
from harness.seeds import stream
from harness.trial import ActiveLearner

TOLERANCE = 0.1
"""By how much the declared passes may differ from the counted ones, for batches that a training leaves out."""

ROUNDING = {"rtol": 1e-3, "atol": 1e-4}
"""How far columns may differ between batch sizes: kernels sum in another order."""


def method_of(name: str, values: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """Return the method that a plug-in defines, and the settings that were lowered to make its check short.

    An acquisition follows the training of its own file if there is one, else the default training, or if that does not
    give what the acquisition needs, the first that does. A training alone gets an acquisition that needs nothing.
    Raises UserError.
    """
    own = {contract: registry.find("methods", name, contract) for contract in (Training, Acquisition)}
    classes = [cls for cls in own.values() if cls]
    lowered = {key: value for cls in classes for key, value in cut(cls, values).items()}
    settings = iter(settings_of(classes, {**lowered, **values}))
    specs = {contract: PluginSpec(name, next(settings)) for contract, cls in own.items() if cls}
    acquisition: Any = own[Acquisition]
    training: Any = own[Training]
    if acquisition is None:
        specs[Acquisition] = _companion(Acquisition, lambda cls: not cls.scores_images and not cls.needs)
        acquisition = registry.find("methods", specs[Acquisition].name, Acquisition)
    needed = boundary.needed(acquisition, specs[Acquisition].name, specs[Acquisition].settings)
    if training is None or not needed <= training.gives:
        specs[Training] = _companion(
            Training,
            lambda cls: needed <= cls.gives,
            first=DEFAULT_TRAINING,
            what=needed,
            where=f"{name} ({place(acquisition)})",
        )
        training = registry.find("methods", specs[Training].name, Training)
    return Method(name, specs[Training], specs[Acquisition], training, acquisition, tuple(classes)), lowered


def _companion(
    contract: type[Any],
    suits: Callable[[Any], bool],
    first: str = "",
    what: frozenset[str] = frozenset(),
    where: str = "",
) -> PluginSpec:
    """Return the first plug-in of a contract that suits, with its default settings. Raises UserError if none does."""
    every: dict[str, Any] = registry.every("methods", contract)
    for name, cls in sorted(every.items(), key=lambda item: item[0] != first):
        if suits(cls):
            return PluginSpec(name, cls.Settings(**cut(cls, {})))
    missing = " and ".join(sorted(what))
    raise UserError(f"{where} needs {missing}, which no training gives; define one, in the same file or in another")


@dataclass
class OnKind:
    """A method on the problem of one kind of labels; runs that several checks compare with are run once."""

    method: Method
    kind: str

    def run(self, **keys: Any) -> Ran:
        """Return what comes out of a run; see ``problem.run``."""
        return run(self.method, self.kind, **keys)

    @cached_property
    def first(self) -> Ran:
        """The run that others are compared with."""
        return self.run()

    @cached_property
    def scored(self) -> tuple[Cycle, Acquisition, dict[str, torch.Tensor]]:
        """Cycle 0, trained, its acquisition and the prepared tensors."""
        learner = ActiveLearner(self.method.trial(self.kind), made(self.kind))
        learner.draw_initial_set()
        cycle = learner.open_cycle(0)
        learner.train(cycle)
        learner.acquisition.ready(cycle)
        return cycle, learner.acquisition, boundary.prepare(learner.acquisition, cycle)

    def describe(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the columns of one batch of images, as ``describe`` returns them."""
        cycle, acquisition, prepared = self.scored
        with evaluating(cycle.network):
            batch = Batch(cycle.images.unaugmented(indices), indices, stream(cycle.key("describe"), 0))
            columns: dict[str, torch.Tensor] = call(acquisition, "describe", cycle.network, batch, prepared)
            return columns

    def same(self, other: Ran, than: str, first: Ran | None = None, hook: str = "") -> None:
        """Raise Wrong unless another run came out like the first one; ``than`` says what differs between them."""
        if found := (first or self.first).difference(other):
            for_training, difference = found
            raise Wrong(self.method.blamed(for_training), f"{than}: {difference}", hook)

    def budget(self, ran: Ran, budget: int) -> None:
        """Raise Wrong unless each selection has ``budget`` different images, all of them candidates."""
        for number, (selected, candidates) in enumerate(zip(ran.selected, ran.candidates, strict=True)):
            different = len(set(selected) & set(candidates))
            if not len(selected) == different == budget:
                problem = f"cycle {number} selects {different} different candidates; expected {budget}"
                raise Wrong(self.method.blamed(False), problem, "select")


def runs(it: OnKind) -> None:
    """It runs and selects exactly the budget of different unlabelled images."""
    it.budget(it.first, PROTOCOLS[it.kind].budget)


def reproduces(it: OnKind) -> None:
    """A second run gives the same result."""
    it.same(it.run(), "a second run differs")


def ignores_global_streams(it: OnKind) -> None:
    """The result does not depend on the global random streams."""
    it.same(
        it.run(global_seed=2), "with other global seeds of torch, numpy and random the run differs; use the generator "
        "that the hook is given, or cycle.stream"
    )  # fmt: skip


def looks_at_no_pool_label(it: OnKind) -> None:
    """The labels of unlabelled images are not used."""
    used = [*it.first.first, *(index for selected in it.first.selected for index in selected)]
    data = made(it.kind)
    it.same(
        it.run(data=with_random_labels(data, used), oracle=Refusing(data)),
        "it looks at labels of the pool: with random labels there the run differs",
    )


def shards(it: OnKind) -> None:
    """The result is the same on 1, 2 and 3 scoring workers."""
    for workers in (1, 2, 3):
        it.same(
            it.run(scorer=AsOnWorkers(GLOBAL_SEED, workers)),
            f"with {workers} scoring workers, which know only the network and the prepared tensors, the run differs",
            hook="describe",
        )


def order(it: OnKind) -> None:
    """The result is the same for any order of the batches, and if the process dies between two of them."""
    it.same(
        it.run(scorer=Backwards(GLOBAL_SEED)),
        "with the batches in another order the run differs",
        hook="describe",
    )
    it.same(
        it.run(dies={SCORE}),
        "a run that dies between two batches and goes on from there differs; a batch must not depend on earlier ones",
        hook="describe",
    )


def batch_size(it: OnKind) -> None:
    """An image's columns do not depend on the other images of its batch."""
    cycle, acquisition, _ = it.scored
    candidates = cycle.candidates
    generator = stream(0)
    with evaluating(cycle.network):
        batch = Batch(cycle.images.unaugmented(candidates[:4]), candidates[:4], generator)
        before = generator.get_state()
        call(acquisition, "describe", cycle.network, batch, it.scored[2])
    if not torch.equal(before, generator.get_state()):
        raise Inapplicable("it draws from the batch's generator")
    whole = it.describe(candidates)
    for at_once in (7, 4):
        parts = [it.describe(indices) for indices in candidates.split(at_once)]
        for name, column in whole.items():
            other = torch.cat([part[name] for part in parts])
            if not torch.allclose(column.double(), other.double(), **ROUNDING, equal_nan=True):
                raise Wrong(
                    it.method.blamed(False),
                    f"the column {name!r} of an image depends on the other images of its batch: it differs between "
                    f"batches of {at_once} and of {len(candidates)} images; draw random numbers from batch.generator",
                    "describe",
                )


def one_image(it: OnKind) -> None:
    """A batch of one image can be described."""
    cycle, _, _ = it.scored
    for name, column in it.describe(cycle.candidates[:1]).items():
        if column.shape[:1] != (1,):
            shape = tuple(column.shape)
            problem = (
                f"describe must return one row for a batch of one image; expected (1, ...) in {name!r}, got {shape}"
            )
            raise Wrong(it.method.blamed(False), problem, "describe")


def leaves_the_target(it: OnKind) -> None:
    """Selection leaves the target's weights, buffers, modes and hooks unchanged."""
    if it.first.changed:
        raise Wrong(it.method.blamed(False), it.first.changed)


def resumes(it: OnKind) -> None:
    """A run that is interrupted after each cycle gives the same result."""
    it.same(
        it.run(resumed=True), "a run that is resumed after each cycle differs: state must return what it depends on"
    )


def goes_on(it: OnKind) -> str | None:
    """A run that dies within the first cycle's trainings gives the same result."""
    ran = it.run(dies={FIRST, TRAIN, SELECT, RANK})
    it.same(
        ran, "a run that dies within a training and goes on from there differs; give cycle.steps all that steps change"
    )
    for hook, stage, images in zip(("fit", "prepare"), (TRAIN, SELECT), it.first.trained_on, strict=True):
        if images and stage not in ran.stored and not ran.warnings:
            return f"{hook} trains without cycle.steps: a process that dies there starts it again"
    return next(iter(ran.warnings), None)


def starts_fresh(it: OnKind) -> None:
    """The same holds if each cycle starts from new weights."""
    fresh = it.run(start="fresh")
    it.budget(fresh, PROTOCOLS[it.kind].budget)
    it.same(
        it.run(start="fresh", resumed=True),
        "with start: fresh, a run that is resumed after each cycle differs",
        first=fresh,
    )


def declares_its_passes(it: OnKind) -> None:
    """It trains on as many images as extra_passes declares."""
    method, recipe, protocol = it.method, RECIPES[it.kind], PROTOCOLS[it.kind]
    counts = protocol.initial, min(protocol.candidates or 0, COUNTS[it.kind][0] - protocol.initial)
    of_target = protocol.initial * recipe.epochs
    halves = (
        (method.training_class, method.training, of_target),
        (method.acquisition_class, method.acquisition, 0),
    )
    for (cls, spec, standard), counted in zip(halves, it.first.trained_on, strict=True):
        declared = standard + boundary.extra_passes(cls, spec.name, spec.settings, recipe, *counts)
        if cls in method.own and abs(declared - counted) > TOLERANCE * max(declared, counted):
            raise Wrong(
                cls,
                f"extra_passes declares {declared - standard} training images, but cycle 0 trains on "
                f"{counted - standard} in addition to the target's {of_target}",
                "extra_passes",
            )


def runs_in_bfloat16(it: OnKind) -> None:
    """It runs with precision: bfloat16."""
    it.budget(it.run(precision="bfloat16", cycles=2), PROTOCOLS[it.kind].budget)


def lacks_classes(it: OnKind) -> None:
    """It runs if two classes have no labelled image."""
    data = without_two_classes(made(it.kind), it.first.first)
    it.budget(it.run(data=data, cycles=2), PROTOCOLS[it.kind].budget)


def takes_all(it: OnKind) -> None:
    """It runs if the budget is all candidates."""
    budget = PROTOCOLS[it.kind].budget
    it.budget(it.run(candidates=budget, cycles=2), budget)


CHECKS: list[Callable[[OnKind], str | None]] = [
    leaves_the_target,
    ignores_global_streams,
    looks_at_no_pool_label,
    resumes,
    starts_fresh,
    goes_on,
    declares_its_passes,
    runs_in_bfloat16,
    lacks_classes,
    takes_all,
]
"""The checks of a method that runs and is reproducible, in the order of the output."""

SCORING: list[Callable[[OnKind], str | None]] = [shards, order, batch_size, one_image]
"""The checks of an acquisition that scores images, in addition."""


def declares_labels(method: Method) -> str | None:
    """It declares which kinds of labels it supports."""
    for cls, spec in ((method.training_class, method.training), (method.acquisition_class, method.acquisition)):
        declared = cls.labels(spec.settings)
        if not (isinstance(declared, frozenset) and declared and declared <= {IMAGES, MAPS}):
            problem = f"labels must return a frozenset of IMAGES, MAPS or both; got {declared!r}"
            raise Wrong(cls, problem, "labels")
    if len(method.kinds()) == 2:
        return None
    kind = IMAGES if MAPS in method.kinds() else MAPS
    try:
        run(method, kind, cycles=2)
    except Exception:  # as declared
        return None
    return f"it also runs on {kind}, which labels does not declare"


def check(name: str, values: dict[str, Any], say: Callable[[str], None]) -> tuple[int, int]:
    """Check a method, say a line for each check, and return (how many failed, how many ran). Raises UserError."""
    method, lowered = method_of(name, values)
    pair = f"{name}: training {method.training.name}, acquisition {method.acquisition.name}"
    short = f"; lowered for this check: {', '.join(f'{k}={v}' for k, v in lowered.items())}" if lowered else ""
    say(wrapped("", pair + short))
    plugin = method.own[0]
    failed, ran = run_checks(name, plugin, [declares_labels], method, say)
    if failed:
        return failed, ran
    scores = method.acquisition_class in method.own and method.acquisition_class.scores_images
    all_checks = [*CHECKS, *SCORING] if scores else CHECKS
    for kind in sorted(method.kinds()):
        it, prefix = OnKind(method, kind), f"{kind}: "
        stages: list[list[Callable[[OnKind], str | None]]] = [[runs], [reproduces], all_checks]
        for checks in stages:
            more_failed, more = run_checks(name, plugin, checks, it, say, prefix)
            failed, ran = failed + more_failed, ran + more
            if more_failed and checks is not all_checks:
                say(wrapped("skip", f"{prefix}the other checks need a method that runs and is reproducible"))
                break
    return failed, ran
