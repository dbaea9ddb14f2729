"""Networks that give maps: DRNs, timm models with an output stride, upsampling, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import HALF, same, weights
from safetensors.torch import save_file

from harness import registry
from harness.config.load import load_config
from harness.config.suite import Trial
from harness.data.dataset import MAPS, DatasetInfo
from harness.errors import UserError
from harness.experiment import grid, runner
from harness.networks import names as network_names
from harness.networks.building import build, check
from harness.networks.maps import upsampled, upsampled_bands
from harness.networks.names import spec as net
from harness.networks.network import DenseNetwork
from harness.networks.zoo._drn import DRN
from harness.settings import PluginSpec, Recipe

CPU = torch.device("cpu")
SMALL = net("drn_small", width=2)
DRNS = ("drn_c_26", "drn_d_22", "drn_d_38", "drn_d_54", "drn_small")


def other(model: PluginSpec, **settings: Any) -> PluginSpec:
    """Return the network with some settings changed."""
    return net(model.name, **{**model.settings.model_dump(), **settings})


def stride_of(model: PluginSpec) -> int | None:
    return getattr(model.settings, "output_stride", None)


def labels_maps(model: PluginSpec) -> bool:
    return MAPS in network_names.of(model).labels


def info(size: tuple[int, int] = (64, 96), classes: int = 19, channels: int = 3, per_pixel: bool = True) -> DatasetInfo:
    return DatasetInfo(100, 10, classes, channels, size, "", per_pixel)


def images(*size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return network_names.of(net(name)).build(info()).body


# ------------------------------------------------------------------------------------------------------------ DRNs


def test_the_networks_for_label_maps_are_the_drns() -> None:
    assert {name for name in registry.names("networks") if labels_maps(net(name))} == set(DRNS)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # the authors' code with its 19-class head; the classifiers they publish: drn_d_22 has 16 393 752
        ("drn_c_26", 20_623_331),
        ("drn_d_22", 15_890_499),
        ("drn_d_38", 25_998_659),
        ("drn_d_54", 35_305_923),
    ],
)
def test_parameters_of_the_published_networks(name: str, parameters: int) -> None:
    assert network_names.of(net(name)).num_parameters(info()) == parameters


@pytest.mark.parametrize(("channels", "classes", "width"), [(3, 19, None), (1, 5, 3)])
def test_parameters_of_the_small_one(channels: int, classes: int, width: int | None) -> None:
    model, kind = net("drn_small", width=width), info(classes=classes, channels=channels)
    built = build(model, kind, 0)
    assert built.num_parameters() == network_names.of(model).num_parameters(kind)
    assert built.classifier.weight.shape == (classes, 32 * (width or 4))


BASIC, BOTTLENECK = [16, 16, 32, 64, 128, 256, 512, 512, 512], [16, 16, 32, 256, 512, 1024, 2048, 512, 512]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("drn_c_26", BASIC),
        ("drn_d_22", BASIC),
        ("drn_d_38", BASIC),
        ("drn_d_54", BOTTLENECK),
        ("drn_small", [c // 4 for c in BASIC]),
    ],
)
def test_channels_and_sides_of_all_levels(name: str, channels: list[int]) -> None:
    body = on_meta(name)
    last, levels = body.forward_intermediates(torch.zeros(2, 3, 64, 96, device="meta"), 9)
    assert [level.shape[1] for level in levels] == channels
    strides = [1, 1, 2, 4, 8, 8, 8, 8, 8]
    assert [tuple(level.shape[2:]) for level in levels] == [(64 // s, 96 // s) for s in strides]
    assert last is levels[-1]


@pytest.mark.parametrize("name", DRNS)
def test_dilations_and_the_place_of_strides(name: str) -> None:
    dilations = {"layer5": 2, "layer6": 4, "layer7": 2}
    strided = []
    for path, conv in on_meta(name).named_modules():
        if isinstance(conv, nn.Conv2d):
            side = conv.kernel_size[0]
            dilation = dilations.get(path.split(".")[0], 1) if side == 3 else 1
            assert conv.dilation == (dilation, dilation), path
            assert conv.padding == (dilation * (side // 2),) * 2, path
            assert conv.bias is None
            if conv.stride != (1, 1):
                assert conv.stride == (2, 2)
                strided.append(path)
    conv = "conv2" if name == "drn_d_54" else "conv1"
    second = ["layer2.0.conv1", "layer2.0.downsample.0"] if name == "drn_c_26" else ["layer2.0"]
    assert strided == second + [f"layer{i}.0.{part}" for i in (3, 4) for part in (conv, "downsample.0")]


def test_tensors_are_called_as_in_the_public_files() -> None:
    names = {name: {k for k in on_meta(name).state_dict() if k.endswith("weight")} for name in DRNS}
    assert {"layer0.0.weight", "layer0.1.weight", "layer1.0.weight", "layer2.1.weight", "layer3.0.conv1.weight"} <= (
        names["drn_d_22"]
    )
    assert {"layer3.0.downsample.0.weight", "layer6.1.bn2.weight", "layer8.1.weight"} <= names["drn_d_22"]
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv2.weight", "layer2.0.downsample.1.weight"} <= names["drn_c_26"]
    assert {"layer7.0.conv1.weight", "layer8.0.bn2.weight"} <= names["drn_c_26"]
    assert "layer3.0.conv3.weight" in names["drn_d_54"] and "layer6.2.bn3.weight" in names["drn_d_54"]
    shortcuts = {k.split(".")[0] for k in names["drn_d_22"] if "downsample" in k}
    assert shortcuts == {"layer3", "layer4", "layer5", "layer6"}


def test_the_last_levels_of_c_have_no_shortcut() -> None:
    body = DRN(3, 19, (2, 2, 2, 2), arch="C", width=2).eval()
    for level, shortcut in ((1, True), (7, False), (8, False)):
        block = getattr(body, f"layer{level}")[0]
        features = torch.rand(1, block.conv1.in_channels, 4, 4)
        with torch.no_grad():
            nn.init.zeros_(block.conv2.weight)
            torch.testing.assert_close(block(features), features if shortcut else torch.zeros_like(features))


@pytest.mark.parametrize("name", DRNS)
def test_the_initialisation_is_the_authors(name: str) -> None:
    body = build(net(name), info(), 0).body
    for path, module in body.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            weight = module.weight.detach()
            assert float(weight.std()) == pytest.approx(expected, rel=5 / weight.numel() ** 0.5), path
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert float(body.fc.weight.detach().std()) == pytest.approx((2 / 19) ** 0.5, rel=0.1)
    assert (body.fc.bias == 0).all()


def test_initialisations() -> None:
    model = net("drn_c_26")
    kaiming, zero_last, pytorch = (
        weights(build(other(model, initialisation=how), info(), 0).body)
        for how in ("kaiming", "kaiming_zero_last", "pytorch")
    )
    zeroed = {k.split(".")[0] for k in kaiming if not torch.equal(kaiming[k], zero_last[k])}
    assert zeroed == {f"layer{i}" for i in range(1, 7)}, "levels 7 and 8 have no shortcut to fall back on"
    assert (zero_last["layer6.1.bn2.weight"] == 0).all() and (zero_last["layer8.0.bn2.weight"] == 1).all()
    for path in ("conv1", "layer4.0.conv2", "fc"):
        bound = pytorch[f"{path}.weight"][0].numel() ** -0.5  # uniform in +- 1 / sqrt(fan-in)
        assert 0.9 * bound < pytorch[f"{path}.weight"].abs().max() <= bound


def test_weights_depend_on_the_seed_alone() -> None:
    one = weights(build(SMALL, info(), 3))
    torch.manual_seed(2)
    assert same(one, weights(build(SMALL, info(), 3)))
    assert not torch.equal(one["body.fc.weight"], weights(build(SMALL, info(), 4))["body.fc.weight"])


# ------------------------------------------------------------------------------------------------------------ maps


@pytest.mark.parametrize(
    ("model", "depth", "stages"),
    [
        (SMALL, 64, [(32, 8), (64, 8), (64, 8), (64, 8)]),
        (net("resnet18", output_stride=8), 512, [(64, 4), (128, 8), (256, 8), (512, 8)]),
        (net("resnet18", output_stride=16), 512, [(64, 4), (128, 8), (256, 16), (512, 16)]),
        (net("convnext_atto", output_stride=8), 320, [(40, 4), (80, 8), (160, 8), (320, 8)]),
    ],
    ids=lambda value: f"{value.name}-{stride_of(value)}" if isinstance(value, PluginSpec) else None,
)
@pytest.mark.parametrize("size", [(32, 48), (27, 34)])
def test_network(model: PluginSpec, depth: int, stages: list[tuple[int, int]], size: tuple[int, int]) -> None:
    network = build(model, info(), 0).eval()
    assert network.num_parameters() == network_names.of(model).num_parameters(info())
    stride = stride_of(model) or 8
    with torch.no_grad():
        bare, full = network(images(*size)), network(images(*size), stages=True)
        half = network.to_device(CPU, HALF)(images(*size), stages=True)
    layer = network.classifier
    assert isinstance(layer, nn.Linear) and layer.weight.shape == (19, depth)
    sides = [-(-side // stride) for side in size]
    filled = [side * stride for side in sides]
    for outputs in (bare, full, half):
        assert outputs.logits.shape == (2, 19, *sides) and outputs.features.shape == (2, depth, *sides)
        at_positions = F.linear(outputs.features.movedim(1, -1), layer.weight, layer.bias)
        torch.testing.assert_close(outputs.logits.movedim(1, -1), at_positions, rtol=1e-4, atol=1e-4)
        assert {t.dtype for t in (*outputs[:2], *outputs.stages)} == {torch.float32}
    assert bare.stages == []
    torch.testing.assert_close(full.logits, bare.logits, rtol=1e-4, atol=1e-4)
    assert [tuple(stage.shape[1:]) for stage in full.stages] == [(d, filled[0] // s, filled[1] // s) for d, s in stages]
    assert not torch.equal(half.logits, bare.logits), "it did run in bfloat16"
    torch.testing.assert_close(half.features, bare.features, rtol=0.1, atol=0.1 * float(bare.features.abs().max()))
    assert upsampled(bare.logits, size).shape == (2, 19, *size)


def test_sides_are_filled_up_with_zeros_at_the_bottom_and_on_the_right() -> None:
    network = build(SMALL, info(), 0).eval()
    filled = torch.zeros(2, 3, 32, 40)
    filled[:, :, :27, :34] = images(27, 34)
    with torch.no_grad():
        assert torch.equal(network(images(27, 34)).logits, network(filled).logits)


def test_precision_sets_the_memory_format() -> None:
    conv = build(SMALL, info(), 0).to_device(CPU, HALF).body.layer3[0].conv1
    assert conv.weight.is_contiguous(memory_format=torch.channels_last) and conv.weight.dtype == torch.float32


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_small_network_learns_in_seconds(precision: str) -> None:
    # half of each image is of one brightness, half of the other; the border lies anywhere
    draw = torch.Generator().manual_seed(0)
    border = torch.randint(24, 72, (8, 1, 1), generator=draw)
    labels = (torch.arange(96) >= border).expand(8, 64, 96).long()
    pictures = (labels[:, None] - 0.5 + 0.5 * torch.randn(8, 3, 64, 96, generator=draw)).contiguous()
    network = build(net("drn_small"), info(classes=2), 0).to_device(CPU, Recipe(epochs=1, precision=precision)).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(15):
        loss = F.cross_entropy(upsampled(network(pictures).logits, (64, 96)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    right = upsampled(network(pictures).logits, (64, 96)).argmax(1) == labels
    assert float(right.float().mean()) > 0.9


# ------------------------------------------------------------------------------------------------------ upsampling


def by_hand(maps: torch.Tensor, stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, pixel by pixel: a position's value is at the centre of its stride x stride pixels."""
    pixels = torch.zeros(*maps.shape[:2], *size, dtype=maps.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            corners = []
            for at, positions in ((y, maps.shape[2]), (x, maps.shape[3])):
                centre = min(max((at - (stride - 1) / 2) / stride, 0), positions - 1)
                low = min(int(centre), max(positions - 2, 0))
                corners.append([(low, 1 - (centre - low)), (min(low + 1, positions - 1), centre - low)])
            for row, down in corners[0]:
                for column, right in corners[1]:
                    pixels[:, :, y, x] += down * right * maps[:, :, row, column]
    return pixels


@pytest.mark.parametrize(
    ("positions", "stride", "size"),
    [((3, 4), 8, (24, 32)), ((3, 4), 8, (17, 30)), ((1, 2), 16, (9, 20)), ((1, 1), 8, (3, 5)), ((2, 2), 32, (40, 50))],
)
def test_upsampling_is_bilinear(positions: tuple[int, int], stride: int, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *positions, generator=torch.Generator().manual_seed(0))
    pixels = upsampled(maps, size)
    torch.testing.assert_close(pixels, by_hand(maps, stride, size))
    whole = F.interpolate(maps, scale_factor=stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(pixels, whole[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("height", [1, 5, 8, 13, 41, 99])
@pytest.mark.parametrize("size", [(41, 27), (17, 64)])
def test_bands_are_the_upsampled_map_cut_up(size: tuple[int, int], height: int) -> None:
    maps = torch.randn(2, 3, *(-(-side // 8) for side in size), generator=torch.Generator().manual_seed(0))
    bands = list(upsampled_bands(maps, size, height))
    assert [band.shape[2] for band in bands] == [min(height, size[0] - top) for top in range(0, size[0], height)]
    whole = F.interpolate(maps, scale_factor=8, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]
    torch.testing.assert_close(torch.cat(bands, 2), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(bands, 2), upsampled(maps, size), rtol=0, atol=1e-5)


def test_upsampling_is_the_authors_transposed_convolution_but_at_the_border() -> None:
    maps = torch.randn(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    tent = 1 - (torch.arange(16) / 8 - 15 / 16).abs()
    theirs = F.conv_transpose2d(maps, (tent[:, None] * tent)[None, None], stride=8, padding=4)
    ours = upsampled(maps, (40, 48))
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4])
    assert not torch.isclose(ours[..., :4, :], theirs[..., :4, :]).any()


@pytest.mark.parametrize(("positions", "size"), [((3, 4), (25, 32)), ((3, 4), (24, 33)), ((8, 8), (24, 24))])
def test_upsampling_refuses_what_are_no_maps_of_such_images(positions: tuple[int, int], size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"maps of .* positions do not fit images"):
        upsampled(torch.zeros(1, 1, *positions), size)


# ---------------------------------------------------------------------------------------------------------- checks

CONFIG = """
dataset: digits
model: {name: drn_small}
recipe: {epochs: 1}
protocol: {initial: 20, budget: 10, cycles: 2, start: warm}
methods: {Ran: random}
seeds: [0]
"""

REFUSED = [
    (net("resnet18_cifar"), True, r"model.name: the dataset labels pixels, but resnet18_cifar .*drn_d_22"),
    (net("resnet18"), True, r"model.name: the dataset labels pixels, but resnet18 .*output_stride: 8"),
    (SMALL, False, r"model.name: the dataset labels images.*got drn_small; allowed: resnet18_cifar"),
    (net("resnet18", output_stride=8), False, r"model.output_stride: the dataset labels images.*got 8"),
]


@pytest.mark.parametrize(("model", "per_pixel", "message"), REFUSED)
def test_a_network_for_the_other_kind_of_labels_is_refused(model: PluginSpec, per_pixel: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(model, info(per_pixel=per_pixel), 0)
    assert network_names.resolved(model) == model, "it is the dataset that it does not fit"


def test_a_run_refuses_it_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match=r"c.yaml:3: model.name: digits labels images.*got drn_small"):
        grid.expand(load_config(tmp_path / "c.yaml"), planning=True)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vgg11_bn"])
def test_a_network_of_timms_without_output_stride_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"model.output_stride: '{name}' does not support 8 \(\w.*\); ResNets"):
        check(net(name, output_stride=8), info())


@pytest.mark.parametrize("name", ["resnet18_cifar", "drn_d_22"])
def test_an_output_stride_is_for_timms_networks(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"c.yaml:3: model.output_stride: unknown key 'output_stride'"):
        loaded(tmp_path, f"{{name: {name}, output_stride: 8}}")


def test_check_takes_small_images_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = DenseNetwork.forward
    monkeypatch.setattr(DenseNetwork, "forward", lambda self, x: seen.append(tuple(x.shape[2:])) or forward(self, x))
    check(SMALL, info((1024, 30)))
    check(net("resnet10t", output_stride=8), info((40, 2048)))
    assert seen == [(64, 30), (40, 64)]


# --------------------------------------------------------------------------------------------------------- weights


def saved(model: PluginSpec, path: Path, classes: int = 7, drop: str = "", **more: torch.Tensor) -> str:
    """Write a network's body to a file, without the tensors whose names end in ``drop``."""
    body = build(model, info(classes=classes, per_pixel=labels_maps(model)), 9).body
    state = {k: v for k, v in body.state_dict().items() if not drop or not k.endswith(drop)}
    torch.save(state | more, path)
    return str(path)


@pytest.mark.parametrize("classes", [7, 19])
@pytest.mark.parametrize(
    ("wrote", "model"),
    [
        (SMALL, SMALL),
        (net("drn_c_26"), net("drn_c_26")),
        (net("resnet10t"), net("resnet10t", output_stride=8)),
        (net("resnet10t"), net("resnet10t")),
        (net("convnext_atto"), net("convnext_atto", output_stride=8)),
    ],
    ids=lambda model: f"{model.name}-{stride_of(model)}",
)
def test_all_weights_but_the_classifiers_are_taken_over(
    tmp_path: Path, wrote: PluginSpec, model: PluginSpec, classes: int
) -> None:
    path = saved(wrote, tmp_path / "w.pth", classes)
    kind = info(per_pixel=labels_maps(model))
    from_file = weights(build(other(model, weights=path), kind, 0).body)
    new, written = weights(build(model, kind, 0).body), torch.load(path)
    last = {k for k in new if k.startswith(("fc.", "head.fc."))}
    assert len(last) == 2
    assert same({k: from_file[k] for k in last}, {k: new[k] for k in last}), "also where the number of classes agrees"
    assert same({k: v for k, v in from_file.items() if k not in last}, {k: written[k] for k in new if k not in last})


def test_a_file_in_the_form_of_the_public_ones(tmp_path: Path) -> None:
    """1000 classes by a 1x1 convolution, and no counters in batch norm, which are younger."""
    body = build(net("drn_small"), info(classes=1000), 9).body
    state = {k: v for k, v in body.state_dict().items() if not k.endswith("num_batches_tracked")}
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    torch.save(state, tmp_path / "drn.pth", _use_new_zipfile_serialization=False)
    network = build(net("drn_small", weights=str(tmp_path / "drn.pth")), info(), 0)
    assert torch.equal(network.body.layer6[0].conv2.weight, body.layer6[0].conv2.weight)
    assert network.classifier.weight.shape == (19, 128)


def test_safetensors(tmp_path: Path) -> None:
    body = build(SMALL, info(), 9).body
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    network = build(other(SMALL, weights=str(tmp_path / "w.safetensors")), info(), 0)
    assert torch.equal(network.body.layer5[0].conv1.weight, body.layer5[0].conv1.weight)


@pytest.mark.parametrize(
    ("wrote", "drop", "message"),
    [
        (
            net("drn_small", width=3),
            "",
            r"it has the wrong shape for layer0.0.weight \[3, 3, 7, 7\], not \[2, 3, 7, 7\], .* \d+ more$",
        ),
        (SMALL, "layer6.0.bn2.bias", "it lacks layer6.0.bn2.bias$"),
        (
            SMALL,
            "conv1.weight",
            r"it lacks layer3.0.conv1.weight, layer4.0.conv1.weight, layer5.0.conv1.weight and 1 more$",
        ),
        (
            net("resnet10t"),
            "",
            r"it lacks layer0.0.weight, layer0.1.weight, layer0.1.bias and \d+ more; it also has conv1",
        ),
    ],
    ids=["width", "one", "four", "another"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, wrote: PluginSpec, drop: str, message: str) -> None:
    model = other(SMALL, weights=saved(wrote, tmp_path / "w.pth", drop=drop))
    with pytest.raises(UserError, match=f"model.weights: '.*w.pth' does not fit 'drn_small': {message}"):
        build(model, info(), 0)


class Trap:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("trapped"),)


def test_a_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "w.pth")
    with pytest.raises(UserError, match=r"model.weights: 'w.pth' can't be read as a file of tensors: \w"):
        build(other(SMALL, weights="w.pth"), info(), 0)
    assert not Path("trapped").exists()
    torch.load("w.pth", weights_only=False)
    assert Path("trapped").exists(), "the trap works"


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_file_that_cant_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model.weights: '.*w.pth' can't be read( as a file of tensors)?: \w"):
        build(other(SMALL, weights=str(path)), info(), 0)


def loaded(folder: Path, model: str) -> Trial:
    (folder / "c.yaml").write_text(CONFIG.replace("{name: drn_small}", model))
    return next(load_config(folder / "c.yaml").suites[0].trials())[1]


def test_a_trial_is_known_by_its_weights_and_not_by_their_path(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.save({"x": torch.full((1,), seed)}, tmp_path / f"{name}.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    none = loaded(tmp_path, "{name: drn_small}")
    a, b, c = (loaded(tmp_path, f"{{name: drn_small, weights: {tmp_path}/{name}.pth}}") for name in "abc")
    assert a.id == b.id and a.sharing_key == b.sharing_key and a.spec() == b.spec()
    assert len({none.id, a.id, c.id}) == len({t.sharing_key for t in (none, a, c)}) == 3
    assert a.model.settings.weights == f"{tmp_path}/a.pth", "where it is loaded from"
    assert str(tmp_path) not in str(a.spec())
    again = pickle.loads(pickle.dumps(a))
    assert again == a and again.id == a.id, "what a worker is sent"


def test_the_resolved_config_holds_the_file_to_what_it_was(tmp_path: Path) -> None:
    path = saved(SMALL, tmp_path / "w.pth")
    (tmp_path / "c.yaml").write_text(CONFIG.replace("drn_small", f"drn_small, width: 2, weights: {path}"))
    once = load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(once.written())
    assert load_config(tmp_path / "c.yaml").written() == once.written()
    saved(SMALL, tmp_path / "w.pth", layer0=torch.zeros(1))
    with pytest.raises(UserError, match=r"model.weights_sha256: must be the SHA-256 of '.*w.pth', [0-9a-f]{64}, got"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"model.weights: '.*w.pth' has changed: its sha256 is"):
        build(once.suites[0].model, info(), 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{name: drn_small, weights: nowhere.pth}", "model.weights: 'nowhere.pth' can't be read: No such file"),
        ("{name: drn_small, weights_sha256: abc}", "model.weights_sha256: needs model.weights, which is not set"),
        (
            "{name: drn_small, weights: c.yaml, initialisation: kaiming_zero_last}",
            "model.initialisation: kaiming_zero_last would be overwritten by model.weights; allowed: kaiming, pytorch",
        ),
    ],
)
def test_mistakes_with_weights_are_refused_immediately(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, model)


def test_a_run_checks_the_weights_of_all_networks_before_it_starts(tmp_path: Path) -> None:
    path = saved(net("resnet10t"), tmp_path / "w.pth")
    (tmp_path / "c.yaml").write_text(CONFIG.replace("drn_small", f"resnet_small, weights: {path}"))
    benchmark = load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"model.weights: '.*w.pth' does not fit 'resnet_small'"):
        runner.check_networks(benchmark, grid.expand(benchmark))
