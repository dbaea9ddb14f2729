from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import HALF, same, weights

from harness.data.dataset import DatasetInfo
from harness.errors import UserError
from harness.networks import names as network_names
from harness.networks.building import build, initial
from harness.networks.names import spec as net
from harness.settings import Recipe

CPU = torch.device("cpu")
SMALL = net("resnet_small", width=4)


def info(channels: int = 3, size: int = 32, classes: int = 10) -> DatasetInfo:
    return DatasetInfo(100, 10, classes, channels, (size, size), "")


@pytest.mark.parametrize(
    ("name", "width", "size", "parameters", "sizes"),
    [
        ("resnet18_cifar", None, 32, 11_173_962, [32, 16, 8, 4]),
        ("resnet18_cifar_projection", None, 32, 11_436_106, [32, 16, 8, 4]),
        ("vgg16_bn_cifar", None, 32, 14_728_266, [16, 8, 4, 2]),
        ("resnet_small", 4, 16, None, [16, 8, 4, 2]),
        ("resnet10t", None, 64, None, [16, 8, 4, 2]),
        ("mobilenetv3_small_050", None, 64, None, [16, 8, 4, 2]),
        ("resnet18", None, 64, None, [16, 8, 4, 2]),
        ("resnet50", None, 64, None, [16, 8, 4, 2]),
    ],
)
def test_network(name: str, width: int | None, size: int, parameters: int | None, sizes: list[int]) -> None:
    model = net(name, **({"width": width} if width else {}))
    network = build(model, info(size=size), 0).eval()
    assert network.num_parameters() == network_names.of(model).num_parameters(info(size=size))
    assert parameters is None or network.num_parameters() == parameters
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bare, full = network(images), network(images, stages=True)
        half = network.to_device(CPU, HALF)(images, stages=True)
    layer = network.classifier
    for outputs in (bare, full, half):
        assert torch.equal(outputs.logits, F.linear(outputs.features, layer.weight, layer.bias))
        assert outputs.logits.shape == (3, 10)
        assert outputs.features.shape == (3, layer.in_features)
        assert {t.dtype for t in (*outputs[:2], *outputs.stages)} == {torch.float32}
    assert bare.stages == []
    torch.testing.assert_close(full.logits, bare.logits)
    assert [tuple(stage.shape[2:]) for stage in full.stages] == [(s, s) for s in sizes]
    if name.startswith("resnet"):
        pooled = full.stages[-1].mean((2, 3))
        if name.endswith("projection"):
            pooled = pooled @ network.projection.conv.weight.detach()[:, :, 0, 0].T
        torch.testing.assert_close(full.features, pooled, rtol=1e-4, atol=1e-4)
    assert not torch.equal(half.logits, bare.logits), "it did run in bfloat16"
    torch.testing.assert_close(half.features, bare.features, rtol=0.1, atol=0.1 * float(bare.features.abs().max()))


@pytest.mark.long
def test_vgg16_of_timm_is_that_of_torchvision() -> None:
    """VAAL's ImageNet network: three wide layers with dropout, of which the second gives the features."""
    from torchvision.models import vgg16_bn

    network = build(net("vgg16_bn", drop_rate=0.5), info(size=224, classes=7), 0).eval()
    theirs = vgg16_bn(num_classes=7).eval()
    ours = dict(network.body.state_dict())
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    for name, tensor in theirs.state_dict().items():
        layer, _, kind = name.rpartition(".")
        tensor.copy_(ours[f"{names.get(layer, layer)}.{kind}"].view_as(tensor))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = network(images, stages=True)
        torch.testing.assert_close(outputs.logits, theirs(images), atol=1e-5, rtol=1e-4)
    assert outputs.features.shape == (1, 4096) and len(outputs.stages) == 4
    dropped = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropped == [module.p for module in theirs.modules() if isinstance(module, torch.nn.Dropout)] == [0.5, 0.5]


def test_networks_for_imagenet_have_the_published_sizes() -> None:
    with torch.device("meta"):
        found = {name: timm.create_model(name, num_classes=1000) for name in ("vgg16_bn", "resnet18", "resnet50")}
    sizes = {name: sum(p.numel() for p in body.parameters()) for name, body in found.items()}
    assert sizes == {"vgg16_bn": 138_365_992, "resnet18": 11_689_512, "resnet50": 25_557_032}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [2, 100])
def test_channels_and_classes(channels: int, classes: int) -> None:
    network = build(SMALL, info(channels, 8, classes), 0)
    assert network(torch.randn(2, channels, 8, 8)).logits.shape == (2, classes)
    assert network.num_parameters() == network_names.of(SMALL).num_parameters(info(channels, 8, classes))


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = weights(initial(SMALL, info(), 3, 0))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(one, weights(initial(SMALL, info(), 3, 0)))
    assert torch.equal(torch.get_rng_state(), before), "the global stream is left alone"
    for seed, cycle in ((4, 0), (3, 1)):
        other = weights(initial(SMALL, info(), seed, cycle))
        differ = [k for k in one if not torch.equal(one[k], other[k])]
        assert {"body.conv1.weight", "body.layer4.0.conv2.weight", "body.fc.weight"} <= set(differ)


@pytest.mark.parametrize("name", ["resnet_small", "resnet18_cifar"])
def test_initialisations(name: str) -> None:
    by_kind = {}
    for how in ("kaiming", "kaiming_zero_last", "pytorch"):
        model = net(name, initialisation=how, **({"width": 4} if name == "resnet_small" else {}))
        by_kind[how] = weights(build(model, info(), 0))
    last = [k for k in by_kind["kaiming"] if k.endswith("bn2.weight")]
    assert len(last) == (4 if name == "resnet_small" else 8)
    assert all((by_kind["kaiming"][k] == 1).all() for k in last)
    assert all((by_kind["kaiming_zero_last"][k] == 0).all() for k in last)
    for layer in ("conv1", "layer1.0.conv1", "layer4.0.conv2"):
        weight = {how: values[f"body.{layer}.weight"] for how, values in by_kind.items()}
        outgoing = weight["kaiming"].shape[0] * 9  # fan-out, ReLU
        assert weight["kaiming"].std() == pytest.approx((2 / outgoing) ** 0.5, rel=0.3)
        bound = weight["pytorch"][0].numel() ** -0.5  # uniform in +- 1 / sqrt(fan-in)
        assert 0.9 * bound < weight["pytorch"].abs().max() <= bound
        assert not torch.equal(weight["pytorch"], weight["kaiming"])
        assert torch.equal(weight["kaiming_zero_last"], weight["kaiming"])


def test_pytorch_initialisation_reaches_the_projection() -> None:
    for how, bound in (("kaiming", None), ("pytorch", 512**-0.5)):
        model = net("resnet18_cifar_projection", initialisation=how)
        weight = weights(build(model, info(), 0))["projection.conv.weight"]
        assert (float(weight.abs().max()) <= 512**-0.5) is (bound is not None)


def test_memory_format_follows_the_precision() -> None:
    weight = build(SMALL, info(), 0).to_device(CPU, HALF).body.layer2[0].conv1.weight
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert build(SMALL, info(), 0).to_device(CPU, Recipe(epochs=1)).body.layer2[0].conv1.weight.is_contiguous()


def test_gradients_reach_every_parameter_in_bfloat16() -> None:
    network = build(SMALL, info(1, 8), 0).to_device(CPU, HALF).train()
    network(torch.randn(8, 1, 8, 8)).logits.logsumexp(1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet_small", "resnet10t"])
@pytest.mark.parametrize(("initialisation", "gamma"), [("kaiming", 1.0), ("kaiming_zero_last", 0.0)])
def test_the_last_gamma_of_each_residual_block_is_what_the_config_says(
    name: str, initialisation: str, gamma: float
) -> None:
    network = build(net(name, initialisation=initialisation), info(), 0)
    blocks = [module for module in network.modules() if hasattr(module, "zero_init_last")]
    assert blocks
    assert {float(value) for block in blocks for value in block.bn2.weight.unique()} == {gamma}


def test_a_network_without_residual_blocks_refuses_to_zero_them() -> None:
    with pytest.raises(UserError, match=r"residual blocks.*vgg11_bn.*none"):
        build(net("vgg11_bn", initialisation="kaiming_zero_last"), info(), 0)
    with pytest.raises(ValueError, match="kaiming_zero_last is for residual networks, not a VGG; allowed: kaiming, "):
        net("vgg16_bn_cifar", initialisation="kaiming_zero_last")
