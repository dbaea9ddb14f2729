"""``python -m harness.check`` and ``harness.list``: what they say of right plug-ins, and of one wrong in each way."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_imagenet
import torch
import torch.nn as nn
import wrong_data
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from test_datasets import archive, write_tree
from test_segmentation_data import CLASSES, folder

import harness.check
import harness.list
from harness import registry
from harness.checking import datasets, methods, networks
from harness.checking.problem import made, with_random_labels, without_two_classes
from harness.checking.text import cut, run_checks, wrapped
from harness.data.dataset import DataRoot, Dataset, DatasetInfo, loaded, opened
from harness.data.files import IGNORED
from harness.faults import PluginFault
from harness.learning.contract import IMAGES, MAPS, Acquisition, Batch, Training, highest
from harness.learning.cycle import Cycle
from harness.learning.labels import cross_entropy
from harness.networks.architecture import Architecture
from harness.networks.building import build
from harness.networks.names import spec
from harness.networks.network import DenseNetwork, Network
from harness.settings import Strict
from harness.trial import ActiveLearner

Plug = Callable[[type[Any]], str]


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Make a class known as the plug-in of a file."""
    monkeypatch.setenv("COLUMNS", "1000")
    known: dict[str, type[Any]] = {}
    find, names = registry.find, registry.names

    def found(kind: str, name: str, contract: type[Any]) -> Any:
        if name not in known:
            return find(kind, name, contract)
        return known[name] if issubclass(known[name], contract) else None

    def named(kind: str) -> list[str]:
        contracts = {"methods": (Training, Acquisition), "datasets": (Dataset,), "networks": (Architecture,)}
        own = [name for name, cls in known.items() if issubclass(cls, contracts[kind])]
        return own + names(kind)

    def plug(cls: type[Any]) -> str:
        known[cls.__name__] = cls
        return cls.__name__

    monkeypatch.setattr(registry, "find", found)
    monkeypatch.setattr(registry, "names", named)
    return plug


def where(cls: type[Any], hook: str = "") -> str:
    """Return "file:line" of a hook, or of a class."""
    subject = getattr(cls, hook) if hook else cls
    return f"{Path(inspect.getfile(cls)).name}:{inspect.getsourcelines(subject)[1]}"


def line_of(cls: type[Any], text: str) -> str:
    """Return "file:line" of the line of a class that contains a text."""
    lines, first = inspect.getsourcelines(cls)
    (number,) = (first + offset for offset, line in enumerate(lines) if text in line)
    return f"{Path(inspect.getfile(cls)).name}:{number}"


def wrong_lines(printed: str) -> list[str]:
    return [line.removeprefix("WRONG").strip() for line in printed.splitlines() if line.startswith("WRONG")]


def said(name: str, cls: type[Any], check: Any, subject: Any) -> list[str]:
    """Return what one check says of a plug-in."""
    lines: list[str] = []
    run_checks(name, cls, [check], subject, lines.append)
    return wrong_lines("\n".join(lines))


# ------------------------------------------------------------------------------------------------------- wrong methods


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(logits.softmax(1)).sum(1)


class ByEntropy(Acquisition):
    """Right: images alone, so that a check is short."""

    @classmethod
    def labels(cls, settings: Any) -> frozenset[str]:
        return frozenset({IMAGES})

    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        return {"score": entropy(network(batch.images).logits)}


class Undeclared(ByEntropy):
    @classmethod
    def labels(cls, settings: Any) -> Any:
        return {"pictures"}


class Twice(ByEntropy):
    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return highest(columns["score"], budget)[[0, *range(budget - 1)]]


class Counting(ByEntropy):
    selections = itertools.count()

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return highest(columns["score"], len(columns["score"])).roll(next(self.selections))[:budget]


class Hooking(ByEntropy):
    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        network.classifier.register_forward_hook(lambda module, inputs, output: None)
        return super().describe(network, batch, prepared)


class Shuffling(ByEntropy):
    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return torch.from_numpy(np.random.permutation(len(columns["score"]))[:budget])  # noqa: NPY002


class Peeking(ByEntropy):
    """Finds the labels of the pool in the frames of its callers."""

    def prepare(self, cycle: Cycle) -> Any:
        frame: Any = sys._getframe()
        while frame and not isinstance(frame.f_locals.get("self"), ActiveLearner):
            frame = frame.f_back
        labels = frame.f_locals["self"].data.train_labels if frame else np.zeros(len(cycle.images.pixels))
        return {"labels": torch.from_numpy(labels)}

    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        return {"score": super().describe(network, batch, prepared)["score"] + prepared["labels"][batch.index]}


class Remembering(ByEntropy):
    """Keeps in itself what it should return from prepare."""

    def prepare(self, cycle: Cycle) -> Any:
        self.weight = 2.0
        return {}

    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        return {"score": self.weight * super().describe(network, batch, prepared)["score"]}


class Ordered(ByEntropy):
    """Scores a short batch otherwise if it comes first."""

    described = 0

    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        sign = -1 if self.described == 0 and len(batch.index) < 16 else 1
        self.described += 1
        return {"score": sign * super().describe(network, batch, prepared)["score"]}


class Relative(ByEntropy):
    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        score = super().describe(network, batch, prepared)["score"]
        return {"score": score - score.mean()}


class Squeezing(ByEntropy):
    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        return {"score": super().describe(network, batch, prepared)["score"].squeeze()}


class Forgetting(ByEntropy):
    """Selects by the number of its selections, which state lacks."""

    selections = 0

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        self.selections += 1
        return highest(columns["score"], len(columns["score"])).roll(self.selections)[:budget]


class WarmOnly(ByEntropy):
    """Expects in later cycles what it did in the first one."""

    def prepare(self, cycle: Cycle) -> Any:
        if cycle.number == 0:
            self.kept = torch.ones(1)
        return {"kept": self.kept}

    def state(self) -> Any:
        return {"kept": self.kept} if hasattr(self, "kept") else {}

    def load_state(self, state: Any) -> None:
        self.kept = state["kept"]


class Leaving(Training):
    """Has a loop that does not name its optimizer, whose momentum is lost."""

    def fit(self, cycle: Cycle) -> float:
        network, losses = cycle.network.train(), list[torch.Tensor]()
        optimiser = torch.optim.SGD(network.parameters(), 0.05, 0.9)
        everything = torch.arange(len(cycle.labelled))
        for step in cycle.steps(cycle.recipe.epochs, network=network, losses=losses):
            images, labels = next(cycle.pairs([everything], cycle.stream(f"mine {step}")))
            losses.append(cross_entropy(network(images).logits, labels))
            optimiser.zero_grad()
            losses[-1].backward()
            optimiser.step()
        network.eval()
        return float(losses[-1].detach())


class Uninterrupted(Training):
    """Has a loop of which no step can be continued."""

    def fit(self, cycle: Cycle) -> float:
        network, loss = cycle.network.train(), torch.zeros(())
        optimiser = torch.optim.SGD(network.parameters(), 0.05)
        for images, labels in cycle.pairs([torch.arange(len(cycle.labelled))] * 2, cycle.stream("mine")):
            loss = cross_entropy(network(images).logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        network.eval()
        return float(loss.detach())


class Unplanned(ByEntropy):
    def prepare(self, cycle: Cycle) -> Any:
        cycle.images.augmented(cycle.labelled, cycle.stream("mine"))
        return {}


class UnplannedWithout(ByEntropy):
    """Trains on images without augmentation, and looks at others without training."""

    def prepare(self, cycle: Cycle) -> Any:
        layer = nn.Flatten()
        layer(cycle.images.unaugmented(cycle.labelled))
        with torch.no_grad():
            layer(cycle.images.unaugmented(cycle.candidates))
        return {}


class FloatOnly(ByEntropy):
    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        return {"score": {"float32": entropy}[network.precision](network(batch.images).logits)}


class AllClasses(ByEntropy):
    def prepare(self, cycle: Cycle) -> Any:
        labels: Any = cycle.labels
        return {"first": torch.stack([(labels == c).nonzero()[0] for c in range(self.num_classes)])}


class OneMore(ByEntropy):
    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return columns["score"].topk(budget + 1).indices[:budget]


NUMBERS = r"[\d, .]+"
WRONG_METHODS: list[tuple[type[Any], Any, str, str]] = [
    (
        Undeclared,
        methods.declares_labels,
        line_of(Undeclared, "def labels"),
        "labels must return a frozenset of IMAGES, MAPS or both; got {'pictures'}",
    ),
    (Twice, methods.runs, where(Twice, "select"), "select must return different row numbers; got 50 twice"),
    (
        Counting,
        methods.reproduces,
        where(Counting),
        f"a second run differs: cycle 0 selects {NUMBERS} instead of {NUMBERS}",
    ),
    (
        Hooking,
        methods.leaves_the_target,
        where(Hooking, "describe"),
        "describe must leave the networks as they are; it changes the hooks of the target network",
    ),
    (
        Shuffling,
        methods.ignores_global_streams,
        where(Shuffling, "select"),
        "select must not draw from the global random stream of numpy; draw from its generator",
    ),
    (
        Peeking,
        methods.looks_at_no_pool_label,
        where(Peeking),
        "it looks at labels of the pool: with random labels there the run differs: "
        f"cycle 0 selects {NUMBERS} instead of {NUMBERS}",
    ),
    (
        Remembering,
        methods.shards,
        line_of(Remembering, "self.weight *"),
        "describe raises AttributeError: 'Remembering' object has no attribute 'weight'",
    ),
    (
        Ordered,
        methods.order,
        where(Ordered, "describe"),
        f"with the batches in another order the run differs: cycle 0 selects {NUMBERS} instead of {NUMBERS}",
    ),
    (
        Relative,
        methods.batch_size,
        where(Relative, "describe"),
        "the column 'score' of an image depends on the other images of its batch: it differs between batches of 7 and "
        "of 56 images; draw random numbers from batch.generator",
    ),
    (
        Squeezing,
        methods.one_image,
        where(Squeezing, "describe"),
        r"describe must return one row for a batch of one image; expected \(1, ...\) in 'score', got \(\)",
    ),
    (
        Forgetting,
        methods.resumes,
        where(Forgetting),
        "a run that is resumed after each cycle differs: state must return what it depends on: "
        f"cycle 1 selects {NUMBERS} instead of {NUMBERS}",
    ),
    (
        WarmOnly,
        methods.starts_fresh,
        line_of(WarmOnly, 'return {"kept": self.kept}\n'),
        "prepare raises AttributeError: 'WarmOnly' object has no attribute 'kept'",
    ),
    (
        Leaving,
        methods.goes_on,
        where(Leaving),
        "a run that dies within a training and goes on from there differs; give cycle.steps all that steps change: "
        "(in|after) cycle 0 .*",
    ),
    (
        Unplanned,
        methods.declares_its_passes,
        where(Unplanned),
        "extra_passes declares 0 training images, but cycle 0 trains on 24 in addition to the target's 48",
    ),
    (
        UnplannedWithout,
        methods.declares_its_passes,
        where(UnplannedWithout),
        "extra_passes declares 0 training images, but cycle 0 trains on 24 in addition to the target's 48",
    ),
    (
        FloatOnly,
        methods.runs_in_bfloat16,
        line_of(FloatOnly, "network.precision"),
        "describe raises KeyError: 'bfloat16'",
    ),
    (
        AllClasses,
        methods.lacks_classes,
        line_of(AllClasses, "nonzero()"),
        "prepare raises IndexError: index 0 is out of bounds for dimension 0 with size 0",
    ),
    (OneMore, methods.takes_all, line_of(OneMore, "topk"), "select raises RuntimeError: selected index k out of range"),
]
of_each_method = pytest.mark.parametrize("case", WRONG_METHODS, ids=[case[0].__name__ for case in WRONG_METHODS])


def test_each_check_of_methods_has_a_wrong_method() -> None:
    checks = {methods.declares_labels, methods.runs, methods.reproduces, *methods.CHECKS, *methods.SCORING}
    assert {case[1] for case in WRONG_METHODS} == checks


@of_each_method
def test_a_wrong_method_gets_its_sentence(case: Any, plugged: Plug) -> None:
    cls, check, place, sentence = case
    method, _ = methods.method_of(plugged(cls), {})
    subject = method if check is methods.declares_labels else methods.OnKind(method, IMAGES)
    (line,) = said(cls.__name__, cls, check, subject)
    assert re.fullmatch(re.escape(f"{cls.__name__} ({place}): ") + sentence, line), line


class Counting(ByEntropy):
    """Selects by the number of batches that this process has described."""

    described = 0

    def prepare(self, cycle: Cycle) -> Any:
        self.described = 0
        return {}

    def describe(self, network: Network, batch: Batch, prepared: Any) -> Any:
        self.described += 1
        return super().describe(network, batch, prepared)

    def select(self, columns: Any, labelled: Any, budget: int, generator: torch.Generator) -> torch.Tensor:
        return highest(columns["score"], len(columns["score"])).roll(self.described)[:budget]


def test_a_death_between_two_batches_is_noticed(plugged: Plug) -> None:
    """The order of the batches changes nothing here; with workers it differs, too, which another check says."""
    method, _ = methods.method_of(plugged(Counting), {})
    (line,) = said("Counting", Counting, methods.order, methods.OnKind(method, IMAGES))
    assert "a run that dies between two batches and goes on from there differs; a batch must not depend" in line


@pytest.mark.long
@of_each_method
def test_a_wrong_method_fails_that_check_alone(case: Any, plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    cls, _, place, sentence = case
    assert harness.check.main([plugged(cls)]) == 1
    printed = capsys.readouterr().out
    lines = wrong_lines(printed)
    kinds = {line.partition(":")[0] for line in lines}
    assert len(lines) == len(kinds) > 0, "once for each kind of labels"
    assert all(f"({place}): " in line and re.search(sentence + "$", line) for line in lines)
    assert re.fullmatch(rf"{cls.__name__}: {len(lines)} of \d+ checks failed", printed.splitlines()[-1])


def test_a_right_method(plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.check.main([plugged(ByEntropy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = 3 + len(methods.CHECKS) + len(methods.SCORING)
    assert lines[0].strip() == "ByEntropy: training cross_entropy, acquisition ByEntropy"
    assert sum(line.startswith("ok    ") for line in lines) == checks
    assert "note  it also runs on label maps, which labels does not declare" in lines
    assert lines[-1] == f"ByEntropy: all {checks} checks passed"


CHEAP = ["margin"]
OPTIONS = [
    "epmcm statistics=fresh form=sampled",
    "epmcm pseudo_labels=true",
    "epmcm resolution=image",
    "isda covariance=full",
    "sraal initial_set=k_center iterations=3",
]


@pytest.mark.parametrize(
    "written",
    [pytest.param(n, marks=[] if n in CHEAP else pytest.mark.long) for n in [*registry.names("methods"), *OPTIONS]],
)
def test_shipped_methods_pass(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = harness.check.main(written.split())
    printed = capsys.readouterr().out
    assert code == 0, printed
    on_maps = any(line.startswith("ok    label maps: ") for line in printed.splitlines())
    assert on_maps == ("pseudo_labels" not in written)
    assert all(len(line) <= 80 for line in printed.splitlines())


@pytest.mark.parametrize(
    ("cls", "note"),
    [
        (Uninterrupted, "fit trains without cycle.steps: a process that dies there starts it again"),
        (Unplanned, "prepare trains without cycle.steps: a process that dies there starts it again"),
        (ByEntropy, None),
    ],
)
def test_a_loop_without_steps_is_noted(cls: type[Any], note: str | None, plugged: Plug) -> None:
    method, _ = methods.method_of(plugged(cls), {})
    assert methods.goes_on(methods.OnKind(method, IMAGES)) == note


def test_what_an_acquisition_needs_is_given(plugged: Plug) -> None:
    method, lowered = methods.method_of("epmcm", {})
    assert (method.training.name, method.acquisition.name, lowered) == ("isda", "epmcm", {})
    assert methods.method_of("epmcm", {"form": "sampled"})[1] == {"samples": 8}
    assert methods.method_of("epmcm", {"statistics": "fresh"})[0].training.name == "cross_entropy"
    assert [half.name for half in (lambda m: (m.training, m.acquisition))(methods.method_of("ads", {})[0])] == [
        "ads"
    ] * 2
    assert methods.method_of("isda", {})[0].acquisition.name == "random"

    class Demanding(ByEntropy):
        needs = frozenset({"a moon"})

    assert harness.check.main([plugged(Demanding)]) == 2


def test_large_numbers_are_lowered_where_that_is_allowed() -> None:
    class Large:
        class Settings(Strict):
            steps: int = 40_000
            side: int = Field(32, ge=16)
            members: int = 5
            kept: int = 500
            rate: float = 99.0
            each: bool = True

    assert cut(Large, {"kept": 500}) == {"steps": 8}


@settings(max_examples=20, deadline=None)
@given(kept=st.sets(st.integers(0, 39), min_size=1, max_size=30), kind=st.sampled_from([IMAGES, MAPS]))
def test_only_other_labels_become_random(kept: set[int], kind: str) -> None:
    data, some = made(kind), sorted(kept)
    changed = with_random_labels(data, some)
    assert (changed.train_labels[some] == data.train_labels[some]).all()
    others = np.setdiff1d(np.arange(len(data.train_labels)), some)
    assert (changed.train_labels[others] != data.train_labels[others]).mean() > 0.4
    without = without_two_classes(data, some)
    assert set(np.unique(without.train_labels[some])) <= {0, 1, IGNORED}
    assert (without.train_labels[others] == data.train_labels[others]).all()


# ------------------------------------------------------------------------------------------------------ wrong datasets

W = wrong_data
WRONG_DATA: list[tuple[type[Any], Any, str, str]] = [
    (
        W.OtherSettings,
        datasets.inherits_settings,
        where(W.OtherSettings),
        "Settings must inherit from DatasetSettings, which has limit and test_limit",
    ),
    (W.Broken, datasets.loads, line_of(W.Broken, '["images"]'), "load raises KeyError: 'images'"),
    (
        W.OtherFacts,
        datasets.facts_are_true,
        where(W.OtherFacts, "info"),
        "info must return what load returns; expected num_classes=2, got 3",
    ),
    (
        W.OtherChannels,
        datasets.types_are_right,
        line_of(W.OtherChannels, "replace("),
        "load returns wrong data: test_images must be uint8 [N, H, W, 3]; got uint8 [16, 8, 8, 1]",
    ),
    (
        W.TooHigh,
        datasets.labels_are_classes,
        line_of(W.TooHigh, "return replace(data"),
        "load returns wrong data: train_labels must be 0..1 or 255, which is ignored; got 2",
    ),
    (
        W.SameClasses,
        datasets.classes_differ,
        line_of(W.SameClasses, "return replace("),
        "load returns wrong data: classes must differ; 'cat' occurs 2 times",
    ),
    (
        W.Unscaled,
        datasets.mean_and_std_are_scaled,
        where(W.Unscaled, "load"),
        "mean must have 3 numbers, one per channel, of pixels scaled to 0..1; got (127.5, 127.5, 127.5)",
    ),
    (
        W.Vanishing,
        datasets.gives_batches,
        where(W.Vanishing, "load"),
        "a batch, normalised by mean and std, must be finite float32; got float32 [2, 3, 8, 8] (training images)",
    ),
    (
        W.Shuffled,
        datasets.loads_twice,
        where(W.Shuffled, "load"),
        "a second load returns other train_images; their order must be the same on every machine",
    ),
    (
        W.Hashed,
        datasets.loads_elsewhere,
        where(W.Hashed, "load"),
        "a new process in another folder loads other data; sort what comes from a folder or from a set",
    ),
    (
        W.OneSplit,
        datasets.splits_differ,
        where(W.OneSplit, "load"),
        "both splits are one object; test images must not be training images",
    ),
    (
        W.SameNames,
        datasets.names_are_of_images,
        where(W.SameNames, "load"),
        "names must differ; '0.png' occurs 40 times",
    ),
    (W.Unlimited, datasets.keeps_limits, where(W.Unlimited, "load"), "limit=20 must give 20 images; load returns 40"),
    (
        W.NotSaid,
        datasets.says_what_is_missing,
        where(W.NotSaid, "info"),
        "info must raise DataMissing if its files are missing; it raises FileNotFoundError: [Errno 2] No such file or "
        "directory: ",
    ),
]


def test_each_check_of_datasets_has_a_wrong_dataset() -> None:
    assert [case[1] for case in WRONG_DATA] == [datasets.inherits_settings, datasets.loads, *datasets.CHECKS]


@pytest.fixture
def with_file(tmp_path: Path) -> Path:
    (tmp_path / "here.txt").write_text("here")
    return tmp_path


@pytest.mark.parametrize("case", WRONG_DATA, ids=[case[0].__name__ for case in WRONG_DATA])
def test_a_wrong_dataset_fails_its_check_alone(
    case: Any, plugged: Plug, with_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls, _, place, sentence = case
    assert harness.check.main([plugged(cls), "--data", str(with_file)]) == 1
    (line,) = wrong_lines(capsys.readouterr().out)
    assert line.startswith(f"{cls.__name__} ({place}): {sentence}")
    assert line.endswith("here.txt'") or line == f"{cls.__name__} ({place}): {sentence}"


def test_a_dataset_that_kills_the_new_process_is_told(
    plugged: Plug, with_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness.check.main([plugged(W.Crashing), "--data", str(with_file)]) == 1
    problem = "load fails in a new process in another folder: signal 11, SIGSEGV"
    assert wrong_lines(capsys.readouterr().out) == [f"Crashing ({where(W.Crashing, 'load')}): {problem}"]


class Nothing(W.Fine):
    def load(self) -> Any:
        return None


class Unmade(W.Fine):
    def __init__(self, settings: Any, data_root: Any) -> None:
        super().__init__(settings, data_root)
        raise KeyError("colour")


@pytest.mark.parametrize(
    ("cls", "place", "sentence"),
    [
        (Nothing, where(Nothing, "load"), "load must return LoadedData; got None"),
        (Unmade, line_of(Unmade, "raise"), "__init__ raises KeyError: 'colour'"),
        (W.Broken, line_of(W.Broken, '["images"]'), "load raises KeyError: 'images'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_check_says_of_a_dataset_is_what_a_run_says(
    cls: type[Any], place: str, sentence: str, plugged: Plug, with_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = plugged(cls)
    assert harness.check.main([name, "--data", str(with_file)]) == 1
    assert wrong_lines(capsys.readouterr().out) == [f"{name} ({place}): {sentence}"]
    with pytest.raises(PluginFault) as refused:
        loaded(opened(cls, name, cls.Settings(), DataRoot(with_file, False)), W.Fine.info)  # type: ignore[arg-type]
    assert str(refused.value) == f"{name} ({place}): {sentence}"


def test_a_right_dataset(plugged: Plug, with_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.check.main([plugged(W.Fine), "--data", str(with_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 + len(datasets.CHECKS) and lines[-1] == "Fine: all 13 checks passed"
    assert harness.check.main(["Fine", "--data", str(with_file / "elsewhere")]) == 2
    assert "Fine can't be checked without its data: " in capsys.readouterr().err


def test_copies_of_training_images_are_noted(plugged: Plug, with_file: Path) -> None:
    class Copied(W.Fine):
        def load(self) -> Any:
            data = super().load()
            data.test_images[:3] = data.train_images[3]  # type: ignore[index]
            return data

    it = datasets.Loadable("Copied", Copied, {}, datasets.DataRoot(with_file, False))
    assert datasets.splits_differ(it) == "3 of 16 test images are also training images"


@pytest.mark.long
@pytest.mark.parametrize("name", registry.names("datasets"))
def test_shipped_datasets_pass(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written: list[str] = []
    if name.startswith("cifar"):
        archive(tmp_path, name)
    elif name == "cityscapes":
        import_module("harness.datasets.cityscapes").write_cityscapes(tmp_path, train=4, test=2)
    elif name == "imagenet":
        test_imagenet.write_two_classes(tmp_path)
        written = ["image_size=16", "classes=2", "top5=false"]
    elif name == "image_folder":
        write_tree(tmp_path / "mine", ["ant", "zebra"])
        written = ["folder=mine", "image_size=16"]
    elif name == "segmentation_folder":
        folder(tmp_path / "mine", sizes=((16, 24),) * 4)
        written = ["folder=mine", f"classes=[{', '.join(CLASSES)}]", "ignore=7"]
    code = harness.check.main([name, *written, "--data", str(tmp_path)])
    captured = capsys.readouterr()
    assert code == 0, captured
    assert all(len(line) <= 80 for line in captured.out.splitlines())
    without_files = name in ("digits", "scenes")
    assert ("it reads no files of the data" in captured.out) == without_files


# ------------------------------------------------------------------------------------------------------ wrong networks


def shipped(name: str, kind: str, **keys: Any) -> type[Architecture]:
    """Return a network of the harness as a plug-in."""

    class Shipped(Architecture):
        labels = frozenset({kind})

        def build(self, info: DatasetInfo) -> Network:
            return build(spec(name, **keys), info, int(torch.randint(2**31, ())))

    return Shipped


class Body(nn.Module):
    """Four convolutions and a classifier, with timm's interface."""

    def __init__(self, channels: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 3, stride=stride, padding=1), nn.BatchNorm2d(d), nn.ReLU())
            for c, d, stride in ((channels, 4, 2), (4, 4, 1), (4, 4, 1), (4, 6, 2))
        )
        self.fc = nn.Linear(6, classes, bias=bias)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_intermediates(images)[0]

    def forward_intermediates(self, images: torch.Tensor, indices: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
        outputs = [images]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[-1], outputs[1:]

    def forward_head(self, features: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        return features.mean((2, 3))


class Right(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        return Network(Body(info.channels, info.num_classes))


class OneTooMany(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        return Network(Body(info.channels, info.num_classes + 1))


class ThreeChannels(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        return Network(Body(3, info.num_classes))


class NoBias(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        return Network(Body(info.channels, info.num_classes, bias=False))


class Scaling(Network):
    def classified(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * super().classified(features)


class Scaled(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        return Scaling(Body(info.channels, info.num_classes))


class UpsideDown(Architecture):
    class Body(Body):
        def forward_intermediates(self, images: torch.Tensor, indices: int = 4) -> Any:
            last, stages = super().forward_intermediates(images)
            return last, stages[::-1]

    def build(self, info: DatasetInfo) -> Any:
        return Network(self.Body(info.channels, info.num_classes))


class Mixing(Architecture):
    class Body(Body):
        def forward_head(self, features: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
            return features.mean((2, 3)) - features.mean((0, 2, 3))

    def build(self, info: DatasetInfo) -> Any:
        return Network(self.Body(info.channels, info.num_classes))


class Unseeded(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        body = Body(info.channels, info.num_classes)
        body.fc.weight.data += float(np.random.default_rng().random())
        return Network(body)


class Shifted(Architecture):
    """Draws a number that is no buffer."""

    class Body(Body):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.shift = float(torch.rand(()))

        def forward_head(self, features: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
            return features.mean((2, 3)) + self.shift

    def build(self, info: DatasetInfo) -> Any:
        return Network(self.Body(info.channels, info.num_classes))


class Idle(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        body: Any = Body(info.channels, info.num_classes)
        body.unused = nn.Linear(2, 2)
        return Network(body)


class Unpicklable(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        body: Any = Body(info.channels, info.num_classes)
        body.scale = lambda x: x
        return Network(body)


class Overflowing(Architecture):
    class Body(Body):
        def forward_head(self, features: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
            scale = float("inf") if torch.is_autocast_enabled("cpu") else 1.0
            return features.mean((2, 3)) * scale

    def build(self, info: DatasetInfo) -> Any:
        return Network(self.Body(info.channels, info.num_classes))


WRONG_NETWORKS: list[tuple[type[Any], Any, str]] = [
    (
        OneTooMany,
        networks.fits,
        "build must return a network whose classifier has 5 outputs, one for each class; got 6",
    ),
    (
        ThreeChannels,
        networks.takes_any_channels,
        "forward raises RuntimeError: Given groups=1, weight of size [4, 3, 3, 3]",
    ),
    (
        NoBias,
        networks.has_a_classifier,
        "the classifier must be nn.Linear with a bias and 5 outputs; got Linear(in_features=6, out_features=5, "
        "bias=False)",
    ),
    (Scaled, networks.has_features, "the logits must be the classifier's output for the features; they differ"),
    (
        UpsideDown,
        networks.has_stages,
        "the stages must be ordered shallow to deep, with maps that do not grow; got [(3, 6, 8, 8), (3, 4, 16, 16), "
        "(3, 4, 16, 16), (3, 4, 16, 16)]",
    ),
    (
        Mixing,
        networks.keeps_images_apart,
        "in evaluation mode an image's logits must not depend on its batch; they differ if it is alone",
    ),
    (
        Unseeded,
        networks.follows_the_seed,
        "two networks of one seed differ, first in 'body.fc.weight'; draw weights from torch alone",
    ),
    (
        Shifted,
        networks.restores,
        "the state_dict must hold all that the outputs depend on; another network with it differs",
    ),
    (
        Idle,
        networks.trains_every_parameter,
        "no gradient reaches the parameter 'body.unused.weight' and 1 more; remove it, or use it in the forward pass",
    ),
    (Unpicklable, networks.pickles, "the network must be picklable, as workers get a copy; it is not: Can't "),
    (
        Overflowing,
        networks.runs_in_bfloat16,
        "with precision: bfloat16 logits must be finite float32; got torch.float32",
    ),
]


class Deep(Architecture):
    """Its classifier is not one layer."""

    def build(self, info: DatasetInfo) -> Any:
        body = Body(info.channels, info.num_classes)
        body.fc = nn.Sequential(body.fc)  # type: ignore[assignment]
        return Network(body)


class Silent(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        if info.channels == 3:
            raise AssertionError
        return Network(Body(info.channels, info.num_classes))


class Narrow(Architecture):
    def build(self, info: DatasetInfo) -> Any:
        body = Body(info.channels, info.num_classes)
        body.fc = nn.Linear(2, info.num_classes)
        return Network(body)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Deep, "build must return a network whose classifier is an nn.Linear; got Sequential"),
        (Silent, "build raises AssertionError"),
        (Narrow, "forward raises RuntimeError: mat1 and mat2 shapes cannot be multiplied (3x6 and 2x5)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_check_says_of_a_network_has_text_and_line(
    cls: type[Any], sentence: str, plugged: Plug, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness.check.main([plugged(cls)]) == 1
    (line,) = wrong_lines(capsys.readouterr().out)
    place = line_of(cls, "raise") if cls is Silent else where(cls, "build")
    assert line == f"images: {cls.__name__} ({place}): {sentence}"


class Diverging(Training):
    def loss(self, outputs: Any, targets: Any, progress: float) -> torch.Tensor:
        mean: torch.Tensor = outputs.logits.mean()
        return mean * float("nan")


def test_a_loss_that_is_nan_is_a_sentence(plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.check.main([plugged(Diverging)]) == 1
    printed = capsys.readouterr().out
    assert "NonFiniteLoss" not in printed
    assert f"Diverging ({where(Diverging, 'loss')}): loss must lead to finite numbers; cycle 0, epoch 0" in printed


def test_an_exception_without_a_message_has_its_place(plugged: Plug) -> None:
    def empty(subject: Any) -> None:
        """It holds."""
        raise AssertionError

    (line,) = said("silent", Silent, empty, None)
    assert re.fullmatch(r"silent \(test_check\.py:\d+\): empty raises AssertionError", line)


def test_each_check_of_networks_has_a_wrong_network() -> None:
    assert [case[1] for case in WRONG_NETWORKS] == [networks.fits, *networks.CHECKS]


@pytest.mark.parametrize("case", WRONG_NETWORKS, ids=[case[0].__name__ for case in WRONG_NETWORKS])
def test_a_wrong_network_fails_its_check_alone(case: Any, plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    cls, _, sentence = case
    assert harness.check.main([plugged(cls)]) == 1
    (line,) = wrong_lines(capsys.readouterr().out)
    assert re.match(rf"images: {cls.__name__} \(test_check\.py:\d+\): ", line), line
    assert line.split("): ", 1)[1].startswith(sentence), line
    if ": " not in sentence.split(" ")[0] and "Error" not in sentence:
        assert f"({where(cls, 'build')})" in line


@pytest.mark.parametrize(
    "network",
    [
        Right,
        shipped("resnet_small", IMAGES, width=4),
        shipped("drn_small", MAPS, width=4),
        pytest.param(shipped("resnet18_cifar", IMAGES), marks=pytest.mark.long),
        pytest.param(shipped("resnet18_cifar_projection", IMAGES), marks=pytest.mark.long),
        pytest.param(shipped("vgg16_bn_cifar", IMAGES), marks=pytest.mark.long),
        pytest.param(shipped("drn_d_22", MAPS), marks=pytest.mark.long),
        pytest.param(shipped("drn_c_26", MAPS), marks=pytest.mark.long),
        pytest.param(shipped("resnet18", MAPS, output_stride=8), marks=pytest.mark.long),
    ],
)
def test_right_networks(network: type[Architecture], plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    code = harness.check.main([plugged(network)])
    assert code == 0, capsys.readouterr().out


def test_label_maps_need_a_dense_network(plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    class Flat(Right):
        labels = frozenset({MAPS})

    assert harness.check.main([plugged(Flat)]) == 1
    assert "build must return a DenseNetwork for label maps; got Network" in capsys.readouterr().out
    assert issubclass(DenseNetwork, Network)


# ------------------------------------------------------------------------------------------------------- command lines


FILES = {
    "none": (
        "import torch\n\n\nclass Badge:\n    pass\n",
        "none (none.py:4): no class in it is a subclass of harness.Tra",
    ),
    "two": (
        "from harness import Acquisition\n\nclass A(Acquisition):\n    pass\n\nclass B(Acquisition):\n    pass\n",
        "two (two.py:6) has 2 classes of Acquisition, A and B; allowed: one in each file",
    ),
    "needing": (
        "from harness import Acquisition\n\nclass A(Acquisition):\n    needs = frozenset({'covarience'})\n",
        "needing (needing.py:3) needs covarience, which no training gives; define one, in the same file or in another",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_defines_no_plug_in_is_named_with_its_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, sentence = FILES[name]
    (tmp_path / f"{name}.py").write_text(source)
    assert harness.check.main([name, "--plugins", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epmmc"], "unknown plug-in 'epmmc'; did you mean 'epmcm'? allowed: ads, "),
        (["epmmc", "--kind", "dataset"], "unknown dataset 'epmmc'; allowed: cifar10, "),
        (["vaal", "iteratons=3"], "iteratons=3: unknown key 'iteratons'; did you mean 'iterations'? allowed: "),
        (["random", "x=3"], "x=3: unknown key 'x'; this plug-in has no settings"),
        (["vaal", "iterations=many"], "vaal (command line): iterations: must be a whole number, got 'many'"),
        (["vaal", "iterations"], "iterations: a setting is written KEY=VALUE, e.g. iterations=3"),
        (["vaal", "iterations=[3"], "iterations=[3: not valid YAML: expected ',' or ']'"),
        (["image_folder"], "image_folder (command line): folder: this key is required; write folder=VALUE"),
        (
            ["vaal", "--kind", "method", "--what"],
            "unknown option '--what'; did you mean '--data'? allowed: --data, --help, ",
        ),
        ([], "the name of a plug-in is needed, e.g. epmcm; --help lists the options"),
    ],
)
def test_wrong_arguments_of_check(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.check.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_two_kinds_of_one_name(plugged: Plug, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(registry, "find", lambda kind, name, contract: contract)
    monkeypatch.setattr(registry, "known", lambda kind, name: True)
    assert harness.check.main(["digits"]) == 2
    assert "'digits' is a method and a dataset and a network; add --kind method" in capsys.readouterr().err


def test_list_names_every_plug_in(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert harness.list.main([]) == 0
    printed = capsys.readouterr().out
    for kind in ("methods", "datasets"):
        assert set(registry.names(kind)) <= set(re.findall(r"^  (\w+)(?:  \(.*\))?$", printed, re.M))
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "  epmcm  (acquisition; images and label maps)\n      EPMCM: expected" in printed
    assert "        samples        whole number above 0 and at most 1000000000, default\n" in printed
    assert "        form           closed or sampled, default closed: Eq. 7, or" in printed
    assert "        pseudo_labels  true or false, default false: add scored images to the\n" + " " * 23 in printed
    assert "latent whole number at least 2 and at most 10000, default 32" in " ".join(printed.split()), (
        "the higher of two"
    )
    assert "  ads  (training and acquisition; images and label maps)\n" in printed
    assert printed.count("test_limit") == 1, "once for all datasets"
    assert re.search("folder +text, required", printed)


def test_list_of_one_kind_has_the_users_last(plugged: Plug, capsys: pytest.CaptureFixture[str]) -> None:
    plugged(ByEntropy)
    plugged(W.Fine)
    assert harness.list.main(["methods"]) == 0
    shipped, own = capsys.readouterr().out.split("\n\n")
    assert shipped.startswith("methods\n  ads") and own.splitlines()[:2] == [
        "your methods",
        "  ByEntropy  (acquisition; images)",
    ]
    assert harness.list.main(["method"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown kind 'method'; did you mean 'methods'? allowed: ")


def test_lines_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert wrapped("ok", "a line that is longer than the terminal") == (
        "ok    a line that is longer\n      than the terminal"
    )
