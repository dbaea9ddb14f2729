"""Random resized crops and central crops: against torchvision, and through whole trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_trial, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from test_cli import SUITES, expanded
from test_images import images, loaded, normalised
from torchvision.transforms import RandomResizedCrop as Torchvision

from harness.data.crops import parts, random_resized, weights
from harness.data.dataset import LoadedData
from harness.data.images import Images
from harness.errors import UserError
from harness.settings import RandomResizedCrop as Crop
from harness.settings import Recipe, decisive


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=60)
@given(
    side=st.integers(1, 40), size=st.integers(1, 40), start=st.integers(0, 39), length=st.integers(1, 40),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_weights_resize_like_torch_with_antialiasing(side: int, size: int, start: int, length: int, seed: int) -> None:
    start = min(start, side - 1)
    length = min(length, side - start)
    row = torch.rand(side, generator=stream(seed))
    found = weights(torch.tensor([float(start)]), torch.tensor([float(length)]), size, side)[0] @ row
    alone = row[start : start + length].view(1, 1, 1, length).expand(1, 1, 2, length)
    expected = F.interpolate(alone, (2, size), mode="bilinear", antialias=True)[0, 0, 0]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(256, 256), (60, 200), (200, 60), (300, 2)])
@pytest.mark.parametrize("crop", [Crop(), Crop(scale=(0.5, 0.9), ratio=(0.9, 2.0))])
def test_parts_are_distributed_as_those_of_torchvision(size: tuple[int, int], crop: Crop) -> None:
    count, image = 1500, torch.empty(3, *size)
    torch.manual_seed(5)
    theirs = np.array([Torchvision.get_params(image, [*crop.scale], [*crop.ratio]) for _ in range(count)])
    ours = torch.stack(parts(count, size, crop, stream(1)), 1).double().numpy()
    assert (ours == ours.round()).all() and (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    properties = {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 3] / box[:, 2],
        "down the free rows": lambda box: box[:, 0] / np.maximum(size[0] - box[:, 2], 1),
    }
    for name, value in properties.items():
        assert ks_2samp(value(ours), value(theirs)).pvalue > 1e-4, name


def test_the_largest_central_part_counts_where_no_draw_fits() -> None:
    crop = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    top, left, tall, wide = parts(3, (20, 9), crop, stream())
    assert [t.tolist() for t in (top, left, tall, wide)] == [[5] * 3, [0] * 3, [9] * 3, [9] * 3]


def test_the_whole_image_is_a_part_and_is_only_mirrored() -> None:
    pixels = torch.randint(0, 256, (64, 6, 6, 3), dtype=torch.uint8, generator=stream(2))
    whole = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    same = random_resized(pixels, whole, (6, 6), False, stream())
    torch.testing.assert_close(same, pixels.float(), atol=1e-4, rtol=0)
    mirrored = random_resized(pixels, whole, (6, 6), True, stream())
    kept = torch.tensor([torch.allclose(m, p.float(), atol=1e-3) for m, p in zip(mirrored, pixels, strict=True)])
    turned = torch.tensor(
        [torch.allclose(m, p.float().flip(1), atol=1e-3) for m, p in zip(mirrored, pixels, strict=True)]
    )
    assert (kept ^ turned).all() and 20 < int(turned.sum()) < 44


def test_each_image_is_resized_like_its_part_alone() -> None:
    data, crop = loaded(40, 12, 9), Crop(scale=(0.1, 0.7))
    batch = random_resized(torch.from_numpy(data.train_images), crop, (5, 14), False, stream(3))
    for row, box in enumerate(torch.stack(parts(40, (12, 9), crop, stream(3)), 1).int().tolist()):
        top, left, tall, wide = box
        alone = torch.from_numpy(data.train_images[row, top : top + tall, left : left + wide]).permute(2, 0, 1)[None]
        expected = F.interpolate(alone.float(), (5, 14), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        torch.testing.assert_close(batch[row], expected, atol=2e-3, rtol=0)


def cropping(data: LoadedData, **keys: Any) -> Images:
    return images(data, random_resized_crop={}, **keys)


def test_augmented_images_have_the_size_of_the_crop_and_come_from_the_stream_alone() -> None:
    data, rows = loaded(30, 10, 10), torch.arange(30)
    split = cropping(data, crop_size=(7, 12))
    one = split.augmented(rows, stream(7))
    assert one.shape == (30, 3, 7, 12) and one.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(1)
    assert torch.equal(one, split.augmented(rows, stream(7))) and not torch.equal(one, split.augmented(rows, stream(8)))
    assert cropping(data).augmented(rows, stream()).shape == (30, 3, 10, 10), "without crop_size: that of the images"
    batches = [rows[:8], rows[8:]]
    (first, labels), _ = split.pairs(batches, torch.zeros(30, dtype=torch.int64).split([8, 22]), stream(7))
    assert torch.equal(first, split.augmented(rows[:8], stream(7))) and labels.shape == (8,)
    assert torch.equal(next(split.augmented_batches(batches, stream(7))), first)
    assert split.augmented(rows, stream(7), crop=False).shape == (30, 3, 10, 10), "a flip alone keeps the size"


def test_tests_see_the_centre() -> None:
    data = loaded(6, 9, 8)
    split = images(data, center_crop=(4, 6))
    rows = torch.tensor([5, 0])
    batch = split.unaugmented(rows)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([normalised(data.train_images[row, 2:6, 1:7]) for row in rows])
    np.testing.assert_allclose(batch.numpy(), expected, atol=2e-6)
    assert torch.equal(next(split.unaugmented_batches([rows])), batch)


def test_resized_copies_are_of_the_centre() -> None:
    data = loaded(20, 16, 16)
    split = images(data, center_crop=(8, 8))
    copy = split.resized(16)
    assert copy is not split and copy is split.resized(16), "not the images themselves, whose edges tests do not see"
    middle = torch.from_numpy(data.train_images[:, 4:12, 4:12]).permute(0, 3, 1, 2).float()
    larger = F.interpolate(middle, (16, 16), mode="bilinear", antialias=True).round().to(torch.uint8)
    assert torch.equal(copy.pixels, larger.permute(0, 2, 3, 1))
    assert copy.unaugmented(torch.arange(20)).shape == (20, 3, 16, 16)


@pytest.mark.parametrize("acquisition", ["epmcm", "vaal"])
def test_a_trial_trains_on_crops_and_is_tested_on_centres(
    acquisition: str, digits: LoadedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"random_resized_crop": {}, "crop_size": (6, 10), "center_crop": (4, 6), "flip": False}
    training = "isda" if acquisition == "epmcm" else "cross_entropy"
    learner, cycle = opened(make_trial(training, acquisition, **keys), digits)
    sizes = []
    forward = type(cycle.network).forward

    def watched(network: Any, batch: torch.Tensor, *args: Any, **more: Any) -> Any:
        sizes.append((network.training, tuple(batch.shape[2:])))
        return forward(network, batch, *args, **more)

    monkeypatch.setattr(type(cycle.network), "forward", watched)
    learner.train(cycle)
    learner.select(cycle)
    assert set(sizes) == {(True, (6, 10)), (False, (4, 6))}


def test_label_maps_have_no_such_crops(tmp_path: Path) -> None:
    for key, value in {"random_resized_crop": "{}", "center_crop": "[8, 8]"}.items():
        text = SUITES.replace("dataset: digits", "dataset: scenes")
        with pytest.raises(UserError, match=rf"recipe\.{key}=.*: is for datasets that label images, but scenes labels"):
            expanded(tmp_path, text, f"recipe.{key}={value}", "model=drn_small")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("recipe.center_crop=[9, 8]", r"must fit into the images of digits, 8 x 8 pixels, got \[9, 8\]"),
        ("recipe.random_resized_crop={scale: [0.5, 0.1]}", r"must ascend, got \[0.5, 0.1\]"),
        ("recipe.random_resized_crop={scale: [0, 1]}", r"must be above 0, got 0"),
        ("recipe.random_resized_crop={scale: [0.1, 2]}", r"must be at most 1 \(it is a share of the image\), got 2"),
        ("recipe.random_resized_crop={scael: [0.1, 1]}", r"unknown key 'scael'; did you mean 'scale'\?"),
        ("recipe.random_resized_crop=[0.1, 1]", r"must be a mapping of keys, got \[0.1, 1\]"),
    ],
)
def test_wrong_crops_are_one_sentence(override: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        expanded(tmp_path, SUITES, override)
    assert "\n" not in str(caught.value)


def test_a_random_resized_crop_may_be_larger_than_the_images(tmp_path: Path) -> None:
    expanded(tmp_path, SUITES, "recipe.random_resized_crop={}", "recipe.crop_size=[20, 20]", "recipe.crop_padding=0")


def test_a_network_is_checked_on_what_it_is_tested_on(tmp_path: Path) -> None:
    """Images may be stored larger than the only size that a network takes."""
    small = "model={name: resnet_small, input_size: [4, 4]}"
    expanded(tmp_path, SUITES, "recipe.center_crop=[4, 4]", small)
    with pytest.raises(UserError, match=r"input_size.*: must be at least the size of the images of digits, \[5, 5\]"):
        expanded(tmp_path, SUITES, "recipe.center_crop=[5, 5]", small)


def test_recipes_without_them_are_those_of_before() -> None:
    assert decisive(Recipe(epochs=1)) == {"epochs": 1}
