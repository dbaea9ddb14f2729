"""Datasets whose labels are maps: drawn scenes, Cityscapes and folders of label maps; files read when needed."""

from __future__ import annotations

import pickle
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from test_datasets import PLUGINS, damage, make, pictures, save

from harness.config.load import load_config
from harness.data import remembered
from harness.data import rows as rows_module
from harness.data.dataset import LoadedData, spaced
from harness.data.files import IGNORED, Files, common_size
from harness.data.images import Images
from harness.data.rows import AHEAD, Streamed, on_device, rows_on_device, take
from harness.errors import DataMissing, UserError
from harness.faults import WrongData
from harness.settings import Recipe

scenes = import_module("harness.datasets.scenes")
street = import_module("harness.datasets._street")
cityscapes = import_module("harness.datasets.cityscapes")
maps = import_module("harness.datasets._maps")
trees = import_module("harness.datasets._trees")

CLASSES = ["grass", "wall", "cat"]


def whole(array: Any) -> np.ndarray:
    return array[np.arange(len(array))]


def checked(dataset: Any) -> LoadedData:
    """Load, and check what is true of every dataset with label maps."""
    info, data = dataset.info(), dataset.load()
    assert info.per_pixel and data.per_pixel
    assert data.train_images.shape == (info.num_train, *info.size, info.channels)
    assert data.test_images.shape == (info.num_test, *info.size, info.channels)
    assert data.train_labels.shape == data.train_images.shape[:3]
    factor = round(1 / getattr(dataset.settings, "scale", 1))
    height, width = data.test_images.shape[1:3]
    assert data.test_labels.shape == (info.num_test, factor * height, factor * width), "at their own size"
    assert all(side % 8 == 0 for side in info.size)
    for labels in (data.train_labels, data.test_labels):
        values = np.unique(whole(labels))
        assert set(values) <= {*range(info.num_classes), IGNORED}
    assert len(data.classes) == info.num_classes and len(data.mean) == len(data.std) == info.channels
    assert dataset.load().fingerprint == data.fingerprint
    return data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated Cityscapes tree that is only read."""
    root = tmp_path_factory.mktemp("made")
    cityscapes.write_cityscapes(root, train=4, test=2)
    return root


@pytest.fixture
def city(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed; returns the folder above cityscapes/."""
    shutil.copytree(made, tmp_path / "city")
    return tmp_path / "city"


def folder(root: Path, sizes: Any = ((16, 24), (16, 24)), suffix: str = ".png") -> Path:
    """Write splits train and test, each with one image per size, and maps of the ids 0, 1, 2 and 7 (ignored)."""
    random = np.random.default_rng(2)
    for split in ("train", "test"):
        for number, (height, width) in reversed(list(enumerate(sizes))):
            image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            ids = random.choice(np.array([0, 1, 2, 7], np.uint8), (height, width))
            save(root / "images" / split / f"{number:03}{suffix}", image)
            save(root / "labels" / split / f"{number:03}.png", ids)
    return root


def own(root: Path, **settings: Any) -> Any:
    return make("segmentation_folder", root.parent, **{"folder": root.name, "classes": CLASSES, "ignore": 7} | settings)


def read(root: Path, part: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(root / part / name))


# ----------------------------------------------------------------------------------------------------- Cityscapes


def test_the_table_is_the_official_one() -> None:
    from torchvision.datasets import Cityscapes

    official = {c.id: c.train_id for c in Cityscapes.classes if 0 <= c.train_id < 19}
    assert len(official) == 19
    assert cityscapes.TABLE.dtype == np.uint8
    assert [int(label) for label in cityscapes.TABLE] == [official.get(i, 255) for i in range(256)]
    names = {c.train_id: c.name for c in Cityscapes.classes}
    assert list(cityscapes.IDS) == [names[label] for label in range(19)]


def test_cityscapes(made: Path) -> None:
    dataset = make("cityscapes", made)
    assert dataset.info().source == f"generated tree (not real images) in {made / 'cityscapes'}"
    data = checked(dataset)
    assert data.train_images.shape == (4, 1024, 2048, 3) and data.test_images.shape == (2, 1024, 2048, 3)
    names = [path.name for path in data.train_images.paths]
    cities = (("aachen", 0), ("aachen", 2), ("zurich", 1), ("zurich", 3))  # not in the order of writing
    assert names == [f"{name}_{index:06}_000019_leftImg8bit.png" for name, index in cities]
    assert [p.name for p in data.test_labels.paths] == [
        f"{c}_00000{i}_000019_gtFine_labelIds.png" for i, c in enumerate(("frankfurt", "munster"))
    ]
    tree = made / "cityscapes"
    image = read(tree, "leftImg8bit/train/zurich", "zurich_000001_000019_leftImg8bit.png")
    ids = read(tree, "gtFine/train/zurich", "zurich_000001_000019_gtFine_labelIds.png")
    rows = np.array([2, 0])
    assert (data.train_images[rows][0] == image).all()
    assert (data.train_labels[rows][0] == cityscapes.TABLE[ids]).all()
    labels = data.train_labels[rows][0]
    assert set(np.unique(ids)) >= {1, 7, 23} and (labels[ids == 7] == 0).all() and (labels[ids == 1] == 255).all()


def test_cityscapes_limits_are_spread_evenly(made: Path) -> None:
    data = make("cityscapes", made, limit=2, test_limit=1).load()
    assert [path.name[:13] for path in data.train_images.paths] == ["aachen_000000", "zurich_000001"]
    assert make("cityscapes", made, limit=2, test_limit=1).info().num_test == len(data.test_labels) == 1


def test_cityscapes_scale(made: Path) -> None:
    dataset = make("cityscapes", made, scale=0.25, limit=1, test_limit=1)
    assert dataset.info().size == (256, 512)
    data = checked(dataset)
    image = Image.open(data.train_images.paths[0])
    assert (whole(data.train_images)[0] == np.asarray(image.resize((512, 256), Image.Resampling.BILINEAR))).all()
    full = whole(make("cityscapes", made, limit=1).load().train_labels)[0]
    assert (whole(data.train_labels)[0] == full[2::4, 2::4]).all()  # drawn in blocks of 16


def test_info_decodes_a_few_label_maps_and_load_every_file_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(maps, "LOOKED_AT", 2)
    monkeypatch.setattr(remembered, "_entries", {})
    decoded, load = [], PngImageFile.load

    def counted(self: Any) -> Any:
        decoded.append(Path(self.fp.name).name) if self.tile else None
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", counted)
    dataset = make("cityscapes", made)
    assert dataset.info().num_train == 4
    assert len(set(decoded)) == 4 and all("labelIds" in name for name in decoded)
    assert len(dataset.load().fingerprint) == 16
    assert len(set(decoded)) == 12
    decoded.clear()
    assert make("cityscapes", made).load().train_images.shape[0] == 4
    assert not decoded, "what was found out is remembered"


@pytest.mark.parametrize("missing", ["cityscapes", "cityscapes/gtFine", "cityscapes/leftImg8bit/val"])
def test_absent_cityscapes(city: Path, missing: str) -> None:
    shutil.rmtree(city / missing)
    for call in (make("cityscapes", city, download=True).info, make("cityscapes", city).load):
        with pytest.raises(DataMissing) as caught:
            call()
        for word in ("licence", "registration", "leftImg8bit_trainvaltest", "gtFine_trainvaltest", str(city / missing)):
            assert word in str(caught.value)
        assert f"unpack both into {city / 'cityscapes'}" in str(caught.value) and "\n" not in str(caught.value)


def test_an_official_tree_that_is_not_whole(city: Path) -> None:
    (city / "cityscapes" / "GENERATED").unlink()
    with pytest.raises(DataMissing, match=r"train has 4 images, but Cityscapes has 2975: unpack leftImg8bit_trainval"):
        make("cityscapes", city, limit=2).info()


def test_whole_numbers_of_an_official_tree(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (city / "cityscapes" / "GENERATED").unlink()
    monkeypatch.setattr(cityscapes, "NUM_TRAIN", 4)
    monkeypatch.setattr(cityscapes, "NUM_TEST", 2)
    info = make("cityscapes", city).info()
    assert (info.num_train, info.num_test) == (4, 2) and info.source.startswith("official tree in")
    (city / "cityscapes" / "leftImg8bit" / "val" / "munster" / "munster_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataMissing, match="val has 1 images, but Cityscapes has 2"):
        make("cityscapes", city).info()


def test_missing_label_map(city: Path) -> None:
    label = city / "cityscapes" / "gtFine" / "val" / "munster" / "munster_000001_000019_gtFine_labelIds.png"
    label.unlink()
    for call in (make("cityscapes", city).info, make("cityscapes", city).load):
        with pytest.raises(DataMissing, match=rf"{label.name} is missing: it must hold the labels of its image"):
            call()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"leftImg8bit": (1024, 1024)},
            "zurich_000001_000019_gtFine_labelIds.png is 2048 x 1024 pixels, but its image is 1024 x 1024",
        ),
        (
            {"leftImg8bit": (512, 1024), "gtFine": (512, 1024)},
            "zurich_000001_000019_leftImg8bit.png is 1024 x 512 pixels, but must be 2048 x 1024",
        ),
    ],
)
def test_wrong_size(city: Path, sizes: dict[str, tuple[int, int]], message: str) -> None:
    for part, (height, width) in sizes.items():
        file = next((city / "cityscapes" / part / "train" / "zurich").glob("zurich_000001_*"))
        Image.open(file).resize((width, height)).save(file)
    with pytest.raises(DataMissing, match=re.escape(message)):
        make("cityscapes", city).info()


def test_generating_never_writes_into_a_tree(made: Path) -> None:
    with pytest.raises(FileExistsError):
        cityscapes.write_cityscapes(made, 2, 2)


# --------------------------------------------------------------------------------------------- folders of label maps


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_segmentation_folder(tmp_path: Path, suffix: str) -> None:
    root = folder(tmp_path / "mine", suffix=suffix)
    (root / "images" / "train" / f"._000{suffix}").write_text("of macOS")
    (root / "images" / "train" / "notes.txt").write_text("mine")
    data = checked(own(root))
    assert data.classes == tuple(CLASSES) and data.train_images.shape == (2, 16, 24, 3)
    for index in range(2):
        image, ids = read(root, "images/train", f"{index:03}{suffix}"), read(root, "labels/train", f"{index:03}.png")
        assert (data.train_images[np.array([index])][0] == image).all()
        assert (data.train_labels[np.array([index])][0] == np.where(ids == 7, 255, ids)).all()
    scaled = whole(data.train_images) / 255
    assert data.mean == pytest.approx(scaled.mean((0, 1, 2))) and data.std == pytest.approx(scaled.std((0, 1, 2)))


def test_mean_and_std_may_be_given(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    computed, given = own(root).load(), own(root, mean=[0.1, 0.2, 0.3]).load()
    assert given.mean == (0.1, 0.2, 0.3) and given.std == computed.std != own(root, std=[1, 1, 1]).load().std


def test_mean_is_computed_on_images_not_on_what_fills_them_up(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine", sizes=[(9, 9)])
    image = read(root, "images/train", "000.png") / 255
    assert own(root).load().mean == pytest.approx(image.mean((0, 1)))


def test_splits_are_joined_in_their_order(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    for part in ("images", "labels"):
        shutil.copytree(root / part / "train", root / part / "a_last")
    paths = own(root, train=["train", "a_last"]).load().train_images.paths
    assert [f"{p.parent.name}/{p.stem}" for p in paths] == ["train/000", "train/001", "a_last/000", "a_last/001"]
    limited = own(root, train=["train", "a_last"], limit=2, test_limit=1)
    assert [f"{p.parent.name}/{p.stem}" for p in limited.load().train_images.paths] == ["train/000", "a_last/000"]
    assert checked(limited).test_labels.shape[0] == 1


@pytest.mark.parametrize(("height", "width"), [(10, 24), (17, 9)])
def test_images_are_filled_up_to_a_multiple_of_8(tmp_path: Path, height: int, width: int) -> None:
    root = folder(tmp_path / "mine", sizes=[(height, width)] * 2)
    data = checked(own(root))
    rest = np.ones((-(-height // 8) * 8, -(-width // 8) * 8), bool)
    rest[:height, :width] = False
    assert data.train_images.shape == (2, *rest.shape, 3) and rest.any()
    images, labels = whole(data.train_images), whole(data.train_labels)
    for index in range(2):
        assert (images[index, :height, :width] == read(root, "images/train", f"{index:03}.png")).all()
        assert (labels[index, :height, :width] != IGNORED).mean() > 0.5
        assert (images[index][rest] == 0).all() and (labels[index][rest] == IGNORED).all()


def test_images_of_the_pool_must_have_one_size_and_those_of_the_test_need_not(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    for part, pixels in (("images", np.zeros((9, 40, 3), np.uint8)), ("labels", np.zeros((9, 40), np.uint8))):
        save(root / part / "test" / "000.png", pixels)
    data = own(root).load()
    assert own(root).info().size == (16, 24) and data.test_labels.shape == (2, 16, 40)
    assert data.test_images.shape == (2, 16, 40, 3)
    assert data.train_images.shape == (2, 16, 24, 3), "what fills up a test image is no part of the pool's"
    for part in ("images", "labels"):
        shutil.copy(root / part / "test" / "000.png", root / part / "train" / "001.png")
    message = r"train/001.png is 40 x 9 pixels, but 000.png is 24 x 16: set size: .height, width., because images of"
    with pytest.raises(DataMissing, match=message):
        own(root).info()


@pytest.mark.parametrize("size", [(30, 50), (16, 25), (9, 31)])
def test_scale(tmp_path: Path, size: tuple[int, int]) -> None:
    root = folder(tmp_path / "mine", sizes=[size] * 2)
    data = checked(own(root, scale=0.5))
    height, width = size[0] // 2, size[1] // 2
    images, labels = whole(data.train_images), whole(data.train_labels)
    for index in range(2):
        file = Image.open(root / "images" / "train" / f"{index:03}.png")
        even = file.crop((0, 0, 2 * width, 2 * height))  # a pixel lies over four, also far from the corner
        smooth = np.asarray(even.resize((width, height), Image.Resampling.BILINEAR))
        image = images[index, :height, :width].astype(int)
        # the last row and column see what is cut off
        assert np.abs(image - smooth)[:-1, :-1].max() <= 1
        if file.size == even.size:
            assert (image == smooth).all()
        assert (images[index, height:] == 0).all()
        ids = read(root, "labels/train", f"{index:03}.png")
        nearest = ids[1 : 2 * height : 2, 1 : 2 * width : 2]
        assert (labels[index, :height, :width] == np.where(nearest == 7, IGNORED, nearest)).all()


def test_the_ignored_id_may_lie_among_the_others(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    ids = np.arange(4, dtype=np.uint8).repeat(96).reshape(16, 24)
    for split in ("train", "test"):
        for number in range(2):
            save(root / "labels" / split / f"{number:03}.png", ids)
    labels = whole(checked(own(root, ignore=1)).train_labels)[0]
    assert (labels == np.array([0, IGNORED, 1, 2])[ids]).all()


def test_label_maps_with_a_palette(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    ids = read(root, "labels/train", "000.png")
    image = Image.fromarray(ids, "L").convert("P")
    image.putdata(list(ids.ravel()))
    image.putpalette([255, 0, 0] * 256)
    image.save(root / "labels" / "train" / "000.png")
    assert Image.open(root / "labels" / "train" / "000.png").mode == "P"
    assert (whole(own(root).load().train_labels)[0] == np.where(ids == 7, IGNORED, ids)).all()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((16, 24, 3), np.uint8), "must hold 8-bit class ids in one channel, its mode is RGB"),
        (np.zeros((16, 24), np.uint16), "must hold 8-bit class ids in one channel, its mode is I;16"),
        (np.full((16, 24), 9, np.uint8), "holds the id 9; allowed: 0..2, 7 (7 is ignored)"),
    ],
)
def test_label_maps_that_can_not_be_used(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    root = folder(tmp_path / "mine")
    data = own(root).load()
    save(root / "labels" / "train" / "001.png", pixels)
    whole_message = re.escape(f"{root / 'labels' / 'train' / '001.png'} {message}")
    with pytest.raises(DataMissing, match=whole_message):
        own(root).info()
    with pytest.raises(DataMissing, match=whole_message):
        data.train_labels[np.array([0, 1])]
    assert data.train_labels[np.array([0])].shape == (1, 16, 24), "the other file is not concerned"


def test_allowed_ids_without_an_ignored_one(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    with pytest.raises(DataMissing, match=re.escape("holds the id 7; allowed: 0..2") + "$"):
        own(root, ignore=None).info()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (".", "there is no folder"),
        (
            "images/test",
            r"there is no folder .*test; expected: images/<split>/<name>\.png or \.jpg and labels/<split>",
        ),
        ("labels", r"labels.train.000\.png, .*001\.png: each is missing: it must hold the labels of its image"),
        ("labels/test/001.png", r"labels.test.001\.png is missing"),
        ("images/train/*", "train has no image"),
    ],
)
def test_folders_that_are_not_whole(tmp_path: Path, remove: str, message: str) -> None:
    root = folder(tmp_path / "mine")
    for path in list(root.glob(remove)) if "*" in remove else [root / remove]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for call in (own(root).info, own(root).load):
        with pytest.raises(DataMissing, match=message) as caught:
            call()
        assert str(root) in str(caught.value) and "\n" not in str(caught.value)


def test_another_size_and_a_broken_header(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    save(root / "labels" / "test" / "001.png", np.zeros((24, 16), np.uint8))
    with pytest.raises(DataMissing, match=r"001\.png is 16 x 24 pixels, but its image is 24 x 16"):
        own(root).info()
    (root / "labels" / "test" / "001.png").write_text("broken")
    with pytest.raises(
        DataMissing, match=r"labels.test.001\.png can't be decoded \(no image, .*: replace or remove it"
    ):
        own(root).info()


# ------------------------------------------------------------------------------------------ files read when needed


def files(root: Path, count: int = 5) -> Files:
    folder(root, sizes=[(16, 24)] * count)
    return own(root).load().train_images


def test_files_read_like_an_array(tmp_path: Path) -> None:
    array = files(tmp_path / "mine")
    assert (array.ndim, array.dtype, len(array), array.shape) == (4, np.uint8, 5, (5, 16, 24, 3))
    everything = whole(array)
    assert (everything.shape, everything.dtype, everything.nbytes) == (array.shape, array.dtype, array.nbytes)
    assert len({row.tobytes() for row in everything}) == 5
    for indices in ([3, 0, 3], [-1], []):
        rows = np.array(indices, dtype=np.int64)
        assert np.array_equal(array[rows], everything[rows])
    for wrong in (np.array([True, False, True, False, False]), np.array(2), 2):
        with pytest.raises(AssertionError, match="array of indices"):
            array[wrong]
    with pytest.raises(IndexError):
        array[np.array([5])]


def test_files_are_pickled_by_their_paths(tmp_path: Path) -> None:
    data = own(folder(tmp_path / "mine", sizes=[(64, 64)] * 3)).load()
    whole(data.train_images)
    print_before = data.fingerprint
    packed = pickle.dumps(data)
    assert len(packed) < data.train_images.nbytes / 4
    again = pickle.loads(packed)
    assert (whole(again.train_images) == whole(data.train_images)).all()
    assert (whole(again.train_labels) == whole(data.train_labels)).all()
    assert again.fingerprint == print_before


def test_only_rows_that_are_taken_are_decoded(tmp_path: Path) -> None:
    array = files(tmp_path / "mine")
    array.paths[2].write_bytes(array.paths[2].read_bytes()[:-100])
    array[np.array([0, 1, 3, 4])]
    with pytest.raises(DataMissing, match=r"002\.png can't be decoded"):
        array[np.array([0, 2])]


def test_an_image_that_has_grown(tmp_path: Path) -> None:
    array = files(tmp_path / "mine")
    save(array.paths[1], pictures(1, 32)[0])
    with pytest.raises(DataMissing, match=r"001\.png has changed: it is larger than 24 x 16 pixels"):
        whole(array)


def test_fingerprint_of_files(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    before = own(root).load().fingerprint
    shutil.copytree(root, tmp_path / "moved")
    assert own(tmp_path / "moved").load().fingerprint == before, "where they lie does not count"
    seen = {before}
    eight = [str(number) for number in range(8)]
    for settings in ({"scale": 0.5}, {"scale": 0.25}, {"limit": 1}, {"ignore": None, "classes": eight}):
        seen.add(own(root, **settings).load().fingerprint)
    for name in ("images/train/001.png", "labels/train/000.png", "images/test/000.png", "labels/test/001.png"):
        shutil.copytree(root, tmp_path / "changed", dirs_exist_ok=True)
        pixels = read(root, *name.rsplit("/", 1)).copy()
        pixels[0, 0] = (pixels[0, 0] + 1) % 3  # another value, and an id that is allowed
        save(tmp_path / "changed" / name, pixels)
        seen.add(own(tmp_path / "changed").load().fingerprint)
    assert len(seen) == 9


def test_a_damaged_file_has_another_fingerprint(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    data = own(root).load()
    before, digest = data.fingerprint, data.train_images.digest()
    damage(root / "images" / "train" / "000.png")
    assert data.fingerprint == before, "computed once"
    assert data.train_images.digest() != digest
    with pytest.raises(DataMissing, match=r"000\.png can't be decoded"):
        own(root, mean=[0.5] * 3, std=[0.5] * 3).load()


def test_fingerprints_of_arrays_are_as_they_were() -> None:
    images, labels = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3), np.array([0, 1])
    data = LoadedData(images, labels, images[:1], labels[:1], ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    assert data.fingerprint == "c228d4f083437c77", "results of earlier versions could not be resumed"
    assert not data.per_pixel


# ---------------------------------------------------------------------------------------------------- looking ahead


CPU = torch.device("cpu")


def test_rows_of_files_are_those_of_an_array_wherever_they_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, rows = files(tmp_path / "mine"), np.array([4, 0, 3])
    for memory, kind in ((2**40, torch.Tensor), (0, Streamed)):
        monkeypatch.setattr(rows_module, "_free_memory", lambda device, memory=memory: memory)
        held, some = on_device(array, CPU), rows_on_device(array, rows, CPU)
        assert isinstance(held, kind) and isinstance(some, kind)
        assert torch.equal(held[torch.arange(5)], on_device(whole(array), CPU)[torch.arange(5)])
        assert torch.equal(some[torch.arange(3)], rows_on_device(whole(array), rows, CPU)[torch.arange(3)])
        assert torch.equal(some[torch.tensor([2, 0])], held[torch.tensor([3, 4])])


class Slow:
    """Stands for files: row i is i, and takes its time; knows which rows were decoded."""

    shape = (20, 2, 2, 3)

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        self.decoded += indices.tolist()
        time.sleep(0.02)
        return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), *self.shape[1:])).copy()


def test_batches_decoded_ahead_are_those_that_are_taken_one_by_one(tmp_path: Path) -> None:
    rows = Streamed(files(tmp_path / "mine", 9), CPU, np.array([8, 0, 7, 1, 6, 2, 5, 3]))
    batches = torch.tensor([3, 0, 7, 7, 1, 5, 2, 6, 4]).split(2)
    seen = [(ahead, rows[torch.tensor([4])]) for ahead in take(rows, batches)]
    assert len(seen) == len(batches) == 5
    for indices, (ahead, between) in zip(batches, seen, strict=True):
        assert torch.equal(ahead, rows[indices]), "in their order"
        assert torch.equal(between, rows[torch.tensor([4])]), "what is taken in between is not what is expected next"


def test_a_few_batches_are_decoded_ahead_and_no_more() -> None:
    slow = Slow()
    batches = torch.arange(20).split(2)
    for number, rows in enumerate(take(Streamed(slow, CPU), batches)):
        assert rows[0, 0, 0, 0] == 2 * number
        expected, deadline = min(20, 2 * (number + AHEAD)), time.monotonic() + 30
        while len(slow.decoded) < expected and time.monotonic() < deadline:
            time.sleep(0.001)  # while it is in use the next one is decoded
        time.sleep(0.05)
        assert sorted(slow.decoded) == list(range(expected))


def test_a_file_that_can_not_be_decoded_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    array = files(tmp_path / "mine", 7)
    array.paths[4].write_bytes(array.paths[4].read_bytes()[:-100])
    before, ahead = set(threading.enumerate()), take(Streamed(array, CPU), torch.arange(7).split(1))
    for index in range(4):
        assert torch.equal(next(ahead), torch.from_numpy(array[np.array([index])])), "what comes before is handed out"
    with pytest.raises(DataMissing, match=r"004\.png can't be decoded \(image file is truncated"):
        next(ahead)
    assert list(ahead) == [] and set(threading.enumerate()) <= before, "it is raised once"


@pytest.mark.parametrize("kind", ["unaugmented", "augmented", "pairs"])
def test_no_thread_outlives_a_loop_that_is_left(kind: str) -> None:
    array, small = Slow(), np.zeros((1, 2, 2, 3), np.uint8)
    data = LoadedData(small, np.array([0]), small, np.array([0]), ("a",), (0.5,) * 3, (0.2,) * 3)
    images = Images(Streamed(array, CPU), data, Recipe(epochs=1))
    batches, draws = torch.arange(20).split(2), torch.Generator()
    seen: Iterator[Any] = {
        "unaugmented": lambda: images.unaugmented_batches(batches),
        "augmented": lambda: images.augmented_batches(batches, draws),
        "pairs": lambda: images.pairs(batches, take(Streamed(Slow(), CPU), batches), draws),
    }[kind]()
    before = set(threading.enumerate())
    next(seen)
    assert set(threading.enumerate()) - before, "they are at work"
    del seen
    assert set(threading.enumerate()) <= before
    decoded = len(array.decoded)
    time.sleep(0.1)
    assert len(array.decoded) == decoded <= 2 * (1 + AHEAD)


@pytest.mark.parametrize(
    ("sizes", "scale", "common"),
    [
        ([(16, 24)], 1, (16, 24)),
        ([(17, 8), (9, 25)], 1, (24, 32)),
        ([(360, 480)], 0.5, (184, 240)),
        ([(737, 24)], 0.25, (192, 8)),
        ([(1, 1)], 0.1, (8, 8)),
    ],
)
def test_common_size(sizes: list[tuple[int, int]], scale: float, common: tuple[int, int]) -> None:
    assert common_size(sizes, scale) == common


def test_spaced() -> None:
    assert spaced(5, None).tolist() == spaced(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spaced(10, 4).tolist() == [0, 2, 5, 7] and spaced(3, 1).tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "test_labels", "message"),
    [
        (np.full((2, 8, 8), 2), None, "uint8 .*got int64"),
        (np.full((2, 8, 8), 2, np.uint8), None, r"train_labels must be 0\.\.1 or 255, which is ignored; got 2"),
        (np.full((2, 8, 8), 254, np.uint8), None, r"train_labels must be 0\.\.1 or 255, which is ignored; got 254"),
        (np.zeros((2, 8, 4), np.uint8), None, r"\[N, H, W\], uint8 \[2, 8, 8\]; got uint8 \[2, 8, 4\]"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64), "must be of one kind; they have 3 and 1 dimensions"),
        (np.full(2, 255), None, r"train_labels must be 0\.\.1; got 255"),
        (np.full(2, -1), None, r"train_labels must be 0\.\.1; got -1"),
        (np.zeros(2, np.uint8), None, r"\[N\], int64 \[2\]; got uint8 \[2\]"),
    ],
)
def test_loaded_data_refuses_labels_that_are_none(labels: Any, test_labels: Any, message: str) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    rest = ("a", "b"), (0.5,) * 3, (0.2,) * 3
    good = LoadedData(images, np.full((2, 8, 8), 255, np.uint8), images, np.ones((2, 8, 8), np.uint8), *rest)
    assert good.per_pixel
    with pytest.raises(WrongData, match=message):
        LoadedData(images, labels, images, labels if test_labels is None else test_labels, *rest)


# ---------------------------------------------------------------------------------------------------- drawn scenes


def test_scenes(tmp_path: Path) -> None:
    data = checked(make("scenes", tmp_path))
    assert data.train_images.shape == (240, 64, 96, 3) and len(data.test_images) == 60
    mean, std = trees.mean_and_std(data.train_images)
    assert data.mean == pytest.approx(mean, abs=5e-5) and data.std == pytest.approx(std, abs=5e-5)
    for labels in (data.train_labels, data.test_labels):
        shares = np.bincount(labels.ravel(), minlength=256) / labels.size
        assert (shares[:8] > 0.004).all(), "every class is there"
        assert shares[street.SIGN] < 0.01 < shares[street.PERSON] < 0.02 < shares[street.CAR] < 0.05
        assert (labels == IGNORED).any((1, 2)).all() and shares[IGNORED] < 0.1
        assert (labels[:, :48] != IGNORED).all(), "only the bonnet at the bottom"
    images = np.concatenate([data.train_images, data.test_images])
    assert len({image.tobytes() for image in images}) == 300, "all differ"


def test_a_scene_depends_on_its_index_alone(tmp_path: Path) -> None:
    few, many = (make("scenes", tmp_path, train=n, test=2).load() for n in (3, 6))
    assert (few.train_images == many.train_images[:3]).all() and (few.train_labels == many.train_labels[:3]).all()
    assert (few.test_images == many.test_images).all() and not (few.test_images == few.train_images[:2]).all()
    spread = checked(make("scenes", tmp_path, train=6, test=2, limit=2, test_limit=1))
    assert (spread.train_images == many.train_images[[0, 3]]).all() and len(spread.test_labels) == 1
    assert make("scenes", tmp_path, train=3, test=2).load().fingerprint == few.fingerprint != many.fingerprint


def test_scenes_have_the_pixels_they_always_had() -> None:
    image, labels = street.draw(0, 11, 64, 96)
    digest = zlib.crc32(image.tobytes() + labels.tobytes())
    assert digest == 292282879, "results can't be compared any more"


@pytest.mark.parametrize("size", [[32, 32], [64, 128], [96, 40]])
def test_scenes_of_other_sizes(tmp_path: Path, size: list[int]) -> None:
    data = checked(make("scenes", tmp_path, size=size, train=40, test=10))
    assert set(np.unique(data.train_labels)) == {*range(8), IGNORED}


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"name": "scenes", "size": [64, 90]}, "dataset.size: must be two multiples of 8 from 32 up, got [64, 90]"),
        ({"name": "scenes", "size": [64]}, "dataset.size: must be at least 2 long, got [64]"),
        ({"name": "scenes", "size": [64, 64, 64]}, "dataset.size: must be at most 2 long, got [64, 64, 64]"),
        ({"name": "scenes", "train": 0}, "dataset.train: must be above 0, got 0"),
        ({"name": "scene"}, "dataset.name: unknown dataset 'scene'; did you mean 'scenes'?"),
        ({"name": "cityscapes", "scale": 2}, "dataset.scale: must be 1, 0.5 or 0.25, got 2"),
        ({"name": "cityscapes", "scal": 0.5}, "dataset.scal: unknown key 'scal'; did you mean 'scale'?"),
        ({"classes": ["a", "b"]}, "dataset.folder: this key is required"),
        ({"folder": "x"}, "dataset.classes: this key is required"),
        ({"folder": "x", "classes": ["a", "b", "a"]}, "dataset.classes: 'a' occurs twice"),
        ({"folder": "x", "classes": ["a"]}, 'dataset.classes: must be at least 2 long, got ["a"]'),
        ({"folder": "x", "classes": CLASSES, "ignore": 256}, "dataset.ignore: must be at most 255, got 256"),
        (
            {"folder": "x", "classes": CLASSES, "train": ["train", "val"], "test": ["val"]},
            "dataset.test: the split 'val' occurs twice in train and test",
        ),
        ({"folder": "x", "classes": CLASSES, "mean": [0.5]}, "dataset.mean: must be at least 3 long, got [0.5]"),
        ({"folder": "x", "classes": CLASSES, "std": [0, 1, 1]}, "dataset.std.0: must be above 0, got 0"),
    ],
)
def test_mistakes_in_settings_get_one_sentence(tmp_path: Path, dataset: dict[str, Any], message: str) -> None:
    values = {
        "dataset": {"name": "segmentation_folder"} | dataset,
        "model": {"name": "resnet_small", "width": 8},
        "recipe": {"epochs": 5},
        "protocol": {"initial": 20, "budget": 10, "cycles": 3, "start": "warm"},
        "methods": {"Ran": "random"},
        "seeds": [0],
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(UserError, match=re.escape(f"{path}:") + r"\d+: " + re.escape(message)) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_good_settings_survive_being_written(tmp_path: Path) -> None:
    for settings in ({"folder": "x", "classes": CLASSES, "mean": [0.5, 0.4, 0.3], "ignore": 0, "scale": 0.5}, {}):
        plugin = PLUGINS["segmentation_folder" if settings else "scenes"]
        assert plugin is not None
        whole_settings = plugin.Settings(**settings)
        assert plugin.Settings.model_validate_json(whole_settings.model_dump_json(), strict=True) == whole_settings
