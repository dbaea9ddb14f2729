"""1x1 convolutions with a stride, for which oneDNN's kernel writes past its memory."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from test_datasets import write_tree

from harness.networks import pointwise
from harness.networks.network import Network, Stages

ROOT = Path(__file__).parents[1]

STEP = """
import torch
from harness.data.dataset import DatasetInfo
from harness.networks.building import build
from harness.networks.names import spec
from harness.settings import Recipe

width, side, precision, threads = {}
torch.set_num_threads(threads)
network = build(spec("resnet_small", width=width), DatasetInfo(100, 10, 10, 3, (side, side), ""), 0)
network.to_device(torch.device("cpu"), Recipe(epochs=1, precision=precision)).train()
network(torch.randn(50, side, side, 3).permute(0, 3, 1, 2)).logits.square().mean().backward()
assert all(p.grad.isfinite().all() for p in network.parameters())
"""


@pytest.mark.long
@pytest.mark.parametrize("case", [(2, 160, "bfloat16", 2), (8, 64, "float32", 2), (8, 64, "float32", 1)])
def test_the_kernel_does_not_kill_the_process(case: tuple[int, int, str, int]) -> None:
    done = subprocess.run([sys.executable, "-c", STEP.format(case)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_run_on_images_of_160_pixels_ends_well(tmp_path: Path) -> None:
    """It was killed: resnet_small of width 2 in bfloat16."""
    write_tree(tmp_path / "data" / "mine", ["a", "b"], train=60, test=4, size=160)
    (tmp_path / "c.yaml").write_text(
        "dataset: {name: image_folder, folder: mine, image_size: 160}\n"
        "model: {name: resnet_small, width: 2}\n"
        "recipe: {epochs: 1, batch_size: 50, precision: bfloat16}\n"
        "protocol: {initial: 50, budget: 10, cycles: 2, start: warm}\n"
        "methods: {Ran: random}\nseeds: [0]\n"
        f"where: {{trials: in_process, data: {tmp_path / 'data'}, output: {tmp_path / 'run'}, cpus_per_trial: 2}}\n"
    )
    words = [sys.executable, "-m", "harness.run", str(tmp_path / "c.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "2 of 2 cycles finished" in done.stdout, done


class Own(nn.Conv2d):
    """A user's convolution."""


def test_gradients_of_a_users_network_are_right() -> None:
    stages = [nn.Conv2d(3, 8, 3, padding=1), Own(8, 12, 1, 2), nn.Conv2d(12, 16, 1, (2, 1), bias=False), nn.ReLU()]
    network = Network(Stages(stages, nn.Linear(16, 5)))
    exact = copy.deepcopy(network).double()
    images = torch.randn(7, 32, 32, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    for one in (network, exact):
        last = one.body.forward_features(images.to(one.classifier.weight.dtype))
        one.classifier(one.body.forward_head(last, True)).square().mean().backward()
    for (name, found), expected in zip(network.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None and found.grad.is_contiguous() and expected.grad is not None
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_only_convolutions_that_meet_the_kernel_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = []
    real = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *a: channels.append(a[1].shape[-3]) or real(*a))
    images = torch.randn(2, 8, 8, 32).permute(0, 3, 1, 2)
    cases = {
        8: [(nn.Conv2d(8, 4, 1), 8), (nn.Conv2d(8, 4, 3, 2, 1), 8), (nn.Conv2d(8, 4, 1, 2, groups=2), 8)],
        15: [(nn.Conv2d(15, 4, 1, 2), 16)],
        16: [(nn.Conv2d(16, 4, 1, 2), 16)],
        17: [(nn.Conv2d(17, 4, 1, 2), 17)],
    }
    for count, convolutions in cases.items():
        for convolution, expected in convolutions:
            pointwise.protect(convolution)
            given = images[:, :count].contiguous(memory_format=torch.channels_last)
            convolution(given)
            convolution(given[..., :7])  # 7 is no multiple of the stride
            convolution(given.contiguous())
            convolution(given[0].contiguous())
            assert channels == [expected, count, count, count], convolution
            channels.clear()


def test_a_protected_network_is_copied_and_pickled() -> None:
    first = nn.Sequential(nn.Conv2d(4, 4, 1, 2, bias=False))
    pointwise.protect(first)
    images = torch.randn(2, 8, 8, 4).permute(0, 3, 1, 2)
    for again in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        nn.init.zeros_(again[0].weight)
        assert not again(images).any(), "the copy computes with its own weight"
    assert first(images).any()
