from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness import registry
from harness.data.dataset import DataRoot, Dataset, LoadedData, balanced
from harness.errors import DataMissing

PLUGINS = {name: registry.find("datasets", name, Dataset) for name in registry.names("datasets")}
cifar = import_module("harness.datasets._cifar")
trees = import_module("harness.datasets._trees")


def make(name: str, root: Path, download: bool = False, **settings: Any) -> Any:
    plugin = PLUGINS[name]
    assert plugin is not None
    return plugin(plugin.Settings(**settings), DataRoot(root, download))


def pictures(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_tree(root: Path, classes: Any, train: int = 3, test: int = 2, size: int = 32, suffix: str = ".png") -> None:
    images = iter(pictures(len(classes) * (train + test), size))
    for part, count in (("train", train), ("test", test)):
        for name in reversed(classes):  # so that a listing in order of writing would be wrong
            for number in reversed(range(count)):
                save(root / part / name / f"{number:04}{suffix}", next(images))


def archive(root: Path, kind: str = "cifar10", each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    classes = len(cifar.KINDS[kind].classes)
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(classes, dtype=np.int64), each))
    images = pictures(len(labels))
    cifar.write_cifar_archive(root, kind, images, labels)
    return images, labels


def official(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "cifar10", each: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write CIFAR's unpacked archive; it counts as the official one because the built-in MD5 sums are replaced.

    Return its images, its labels and which of them are test images.
    """
    about, folder = cifar.KINDS[kind], root / cifar.KINDS[kind].folder
    folder.mkdir(parents=True)
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(about.classes)), each))
    images, is_test = pictures(len(labels)), trees.last_of_every(labels, 6)
    md5 = {}
    for names, rows in ((about.train, np.flatnonzero(~is_test)), (about.test, np.flatnonzero(is_test))):
        for name, part in zip(names, np.array_split(rows, len(names)), strict=True):
            data = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)).reshape(len(part), -1)
            content = pickle.dumps({"data": data, about.labels: labels[part].tolist()}, protocol=2)
            (folder / name).write_bytes(content)
            md5[name] = hashlib.md5(content).hexdigest()
    parts = {part: {name: md5[name] for name in getattr(about, part)} for part in ("train", "test")}
    monkeypatch.setattr(PLUGINS[kind], "kind", replace(about, **parts))
    return images, labels, is_test


def whole(array: Any) -> np.ndarray:
    """Return the rows of an array, or of files, decoded."""
    return array[np.arange(len(array))]


def checked(dataset: Any) -> LoadedData:
    """Load, and check what is true of every dataset: its info, and the same content a second time."""
    info, data = dataset.info(), dataset.load()
    assert (len(data.train_images), len(data.test_images)) == (info.num_train, info.num_test)
    assert data.train_images.shape[1:] == data.test_images.shape[1:] == (*info.size, info.channels)
    assert len(data.classes) == info.num_classes
    assert len(data.mean) == len(data.std) == info.channels
    assert all(deviation > 0 for deviation in data.std)
    assert all(whole(array).flags.c_contiguous for array in (data.train_images, data.test_images))
    assert dataset.load().fingerprint == data.fingerprint
    return data


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_plugin_is_found() -> None:
    assert set(PLUGINS) >= {"cifar10", "cifar100", "digits", "image_folder"}
    assert all(plugin is not None for plugin in PLUGINS.values())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70))
def test_balanced(labels: list[int], limit: int) -> None:
    array = np.array(labels, dtype=np.int64)
    kept = balanced(array, limit)
    assert len(kept) == min(limit, len(labels))
    assert (np.diff(kept) > 0).all()
    counts, taken = np.bincount(array, minlength=6), np.bincount(array[kept], minlength=6)
    assert all(taken[c] >= taken.max() - 1 or taken[c] == counts[c] for c in range(6))
    for c in range(6):  # of each class the first
        assert (kept[array[kept] == c] == np.flatnonzero(array == c)[: taken[c]]).all()


def test_balanced_without_a_limit_keeps_all() -> None:
    assert balanced(np.array([1, 0, 1]), None).tolist() == [0, 1, 2]


def test_digits(tmp_path: Path) -> None:
    data = checked(make("digits", tmp_path))
    assert data.train_images.shape == (1442, 8, 8, 1) and len(data.test_images) == 355
    assert np.bincount(data.test_labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert data.train_images.max() == 255 and len(np.unique(data.train_images)) == 17
    mean, std = trees.mean_and_std(data.train_images)
    assert data.mean == pytest.approx(mean, abs=5e-5) and data.std == pytest.approx(std, abs=5e-5)


def test_digits_split(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits, data = load_digits(), make("digits", tmp_path).load()
    zeros = np.rint(digits.images[digits.target == 0] * 255 / 16)
    assert (data.test_images[data.test_labels == 0][..., 0] == zeros[4::5]).all()
    assert (data.train_images[data.train_labels == 0][:5, ..., 0] == zeros[[0, 1, 2, 3, 5]]).all()


def test_digits_limit(tmp_path: Path) -> None:
    data = checked(make("digits", tmp_path, limit=23, test_limit=10))
    assert np.bincount(data.train_labels).tolist() == [3] * 3 + [2] * 7
    assert np.bincount(data.test_labels).tolist() == [1] * 10


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_constants_are_torchvision_s(kind: str) -> None:
    from torchvision import datasets

    ours, theirs = cifar.KINDS[kind], getattr(datasets, kind.upper())
    assert (ours.folder, ours.archive, ours.archive_md5) == (theirs.base_folder, theirs.filename, theirs.tgz_md5)
    assert [list(item) for item in ours.train.items()] == theirs.train_list
    assert [list(item) for item in ours.test.items()] == theirs.test_list
    assert ours.labels == theirs.meta["key"].replace("label_names", "labels")
    assert list(ours.classes) == sorted(set(ours.classes))
    assert len(ours.classes) == {"cifar10": 10, "cifar100": 100}[kind]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_generated_archive(tmp_path: Path, kind: str) -> None:
    images, labels = archive(tmp_path, kind)
    dataset = make(kind, tmp_path)
    assert "not real images" in dataset.info().source and not dataset.info().official
    data = checked(dataset)
    is_test = trees.last_of_every(labels, 6)
    assert (data.train_images == images[~is_test]).all() and (data.train_labels == labels[~is_test]).all()
    assert (data.test_images == images[is_test]).all() and (data.test_labels == labels[is_test]).all()
    assert set(np.bincount(data.test_labels)) == {2}
    limited = checked(make(kind, tmp_path, limit=150, test_limit=7))
    kept = balanced(data.train_labels, 150)
    assert (limited.train_images == data.train_images[kept]).all()


def test_generating_never_overwrites(tmp_path: Path) -> None:
    archive(tmp_path)
    with pytest.raises(FileExistsError):
        archive(tmp_path)


@pytest.mark.parametrize(
    "damage_it",
    [
        damage,
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, train_images=np.zeros(3)),
    ],
)
def test_damaged_generated_archive(tmp_path: Path, damage_it: Callable[[Path], Any]) -> None:
    archive(tmp_path)
    damage_it(tmp_path / "cifar10_generated.npz")
    for call in (make("cifar10", tmp_path).info, make("cifar10", tmp_path, download=True).load):
        with pytest.raises(DataMissing, match=r"cifar10_generated\.npz is damaged: remove it and generate"):
            call()


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_official_folder(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision reads from it."""
    from torchvision import datasets

    images, labels, is_test = official(tmp_path, monkeypatch, kind)
    archive(tmp_path, kind)
    dataset = make(kind, tmp_path, download=True)
    assert dataset.info().source == f"official archive in {tmp_path}", "it comes before a generated one"
    assert dataset.info().official
    data = dataset.load()
    assert data.train_images.flags.c_contiguous and data.train_labels.dtype == np.int64
    assert (data.train_images == images[~is_test]).all() and (data.train_labels == labels[~is_test]).all()
    assert (data.test_images == images[is_test]).all() and (data.test_labels == labels[is_test]).all()
    theirs = getattr(datasets, kind.upper())
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)
    monkeypatch.setattr(theirs, "_load_meta", lambda self: None)
    read = theirs(tmp_path, train=True)
    assert (read.data == data.train_images).all() and read.targets == data.train_labels.tolist()


def test_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch)
    damage(tmp_path / "cifar-10-batches-py" / "data_batch_3")
    for call in (make("cifar10", tmp_path).info, make("cifar10", tmp_path, download=True).load):
        with pytest.raises(DataMissing) as caught:
            call()
        assert "\n" not in str(caught.value)
        folder = tmp_path / "cifar-10-batches-py"
        assert str(caught.value).startswith(
            f"{folder / 'data_batch_3'} is not read, because its MD5 sum is not that of CIFAR-10's official file and a "
            f"file of unknown origin could run commands: remove {folder} and get cifar-10-python.tar.gz, the python"
        )


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(DataMissing, match="data_batch_2 is missing"):
        make("cifar10", tmp_path).info()


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """An archive that counts as the official one."""
    images, _, is_test = official(tmp_path / "made", monkeypatch)
    folder = tmp_path / "made" / "cifar-10-batches-py"
    file = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(folder, folder.name)
    count_as_official(file, monkeypatch)
    return file, images[~is_test]


def count_as_official(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the built-in MD5 sum of CIFAR-10's archive by that of a file."""
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    plugin: Any = PLUGINS["cifar10"]
    monkeypatch.setattr(plugin, "kind", replace(plugin.kind, archive_md5=md5))


def test_official_archive_is_unpacked(packed: tuple[Path, np.ndarray]) -> None:
    file, images = packed
    dataset = make("cifar10", file.parent)
    info = dataset.info()
    assert (info.num_train, info.num_test) == (50000, 10000) and info.source.startswith("official archive in")
    assert not (file.parent / "cifar-10-batches-py").exists()
    assert (dataset.load().train_images == images).all()
    assert sorted(p.name for p in file.parent.iterdir()) == ["cifar-10-batches-py", file.name, "made"]
    dataset.fetch()
    assert dataset.info() == info


def test_damaged_official_archive(packed: tuple[Path, np.ndarray]) -> None:
    file, _ = packed
    damage(file)
    for call in (make("cifar10", file.parent).info, make("cifar10", file.parent, download=True).fetch):
        with pytest.raises(DataMissing, match=f"{file.name} is not read, because its MD5 sum is not"):
            call()


def test_download(packed: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    file, images = packed
    dataset = make("cifar10", tmp_path / "new", download=True)
    info = dataset.info()
    assert info.num_train == 50000 and "to be downloaded" in info.source
    assert not (tmp_path / "new").exists(), "info downloads nothing"

    def download(url: str, root: str, name: str, md5: str) -> None:
        shutil.copy(file, Path(root, name))

    monkeypatch.setattr(utils, "download_url", download)
    dataset.fetch()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cifar-10-batches-py"]
    assert (dataset.load().train_images == images).all()


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("File not found or corrupted.")])
def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from torchvision.datasets import utils

    def download(url: str, root: str, name: str, md5: str) -> None:
        Path(root, name).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(utils, "download_url", download)
    dataset = make("cifar100", tmp_path, download=True)
    for call in (dataset.fetch, dataset.load):
        with pytest.raises(DataMissing) as caught:
            call()
        for word in ("CIFAR-100 could not be downloaded", "cifar-100-python.tar.gz", str(tmp_path)):
            assert word in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing half done is left"


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_absent(tmp_path: Path, kind: str) -> None:
    for call in (make(kind, tmp_path).info, make(kind, tmp_path).fetch, make(kind, tmp_path).load):
        with pytest.raises(DataMissing) as caught:
            call()
        ours = cifar.KINDS[kind]
        for word in (f"the python version on the home page of {ours.title}", ours.archive):
            assert word in str(caught.value)
        assert str(tmp_path) in str(caught.value) and "where.download" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("below", [True, False])
def test_tree(tmp_path: Path, kind: str, below: bool) -> None:
    classes = cifar.KINDS[kind].classes
    folder = tmp_path / kind if below else tmp_path
    write_tree(folder, classes)
    (folder / "train" / classes[0] / "._0000.png").write_text("of macOS")
    (folder / "train" / ".hidden").mkdir()
    dataset = make(kind, tmp_path)
    assert dataset.info().source == f"image tree in {folder} (PNG)" and not dataset.info().official
    data = checked(dataset)
    assert data.train_labels.tolist() == np.repeat(np.arange(len(classes)), 3).tolist()
    for index in (0, 4, len(data.train_labels) - 1):
        file = folder / "train" / classes[index // 3] / f"{index % 3:04}.png"
        assert (data.train_images[index] == np.asarray(Image.open(file))).all()
    assert checked(make(kind, tmp_path, limit=5, test_limit=3)).train_labels.tolist() == [0, 1, 2, 3, 4]


def test_tree_and_archive_agree(tmp_path: Path) -> None:
    images, labels = archive(tmp_path / "archive")
    is_test = trees.last_of_every(labels, 6)
    names = cifar.CIFAR10.classes
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        part = "test" if is_test[index] else "train"
        save(tmp_path / "tree" / part / names[label] / f"{index:04}.png", image)
    packed, tree = (make("cifar10", tmp_path / folder).load() for folder in ("archive", "tree"))
    assert packed.classes == tree.classes
    order = np.argsort(packed.train_labels, kind="stable")
    assert (packed.train_images[order] == tree.train_images).all()
    assert (packed.train_labels[order] == tree.train_labels).all()


def test_an_archive_is_preferred_to_a_tree(tmp_path: Path) -> None:
    write_tree(tmp_path, cifar.CIFAR10.classes)
    assert "image tree" in make("cifar10", tmp_path, download=True).info().source
    archive(tmp_path)
    assert "archive" in make("cifar10", tmp_path).info().source
    assert len(make("cifar10", tmp_path).load().train_labels) == 100


def test_a_foreign_tree_is_not_cifar(tmp_path: Path) -> None:
    write_tree(tmp_path, ["cat", "dog"])
    with pytest.raises(DataMissing, match="CIFAR-10 is not in"):
        make("cifar10", tmp_path).info()
    write_tree(tmp_path / "cifar10", ["cat", "dog"])
    with pytest.raises(DataMissing, match="lacks the classes 'airplane', 'automobile'"):
        make("cifar10", tmp_path).info()
    write_tree(tmp_path / "cifar10", [*cifar.CIFAR10.classes, "zebra"])
    with pytest.raises(DataMissing, match="unknown class 'zebra'"):
        make("cifar10", tmp_path).info()


def test_limit_decodes_only_what_is_used(tmp_path: Path) -> None:
    write_tree(tmp_path, cifar.CIFAR10.classes)
    for part, number in (("train", 2), ("test", 1)):
        for name in cifar.CIFAR10.classes:
            (tmp_path / part / name / f"{number:04}.png").write_text("broken")
    checked(make("cifar10", tmp_path, limit=20, test_limit=10))
    checked(make("image_folder", tmp_path, folder=".", image_size=8, limit=20, test_limit=10))
    with pytest.raises(DataMissing, match=r"airplane.0002\.png can't be decoded"):
        make("cifar10", tmp_path, limit=21, test_limit=10).load()


def test_wrong_size(tmp_path: Path) -> None:
    write_tree(tmp_path, cifar.CIFAR10.classes)
    save(tmp_path / "test" / "frog" / "0001.png", np.zeros((40, 48, 3), np.uint8))
    make("cifar10", tmp_path).info()
    with pytest.raises(DataMissing, match=r"frog.0001\.png is 48 x 40 pixels, but must be 32 x 32"):
        make("cifar10", tmp_path).load()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_truncated_image(tmp_path: Path, suffix: str) -> None:
    write_tree(tmp_path, ["one", "two"], suffix=suffix)
    broken = tmp_path / "train" / "one" / f"0001{suffix}"
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(DataMissing, match=rf"0001\{suffix} can't be decoded"):
        make("image_folder", tmp_path, folder=".", image_size=16).load()


@pytest.mark.parametrize("relative", [True, False])
def test_image_folder(tmp_path: Path, relative: bool) -> None:
    folder = tmp_path / "mine"
    write_tree(folder, ["zebra", "ant"], size=20)
    save(folder / "train" / "ant" / "0000.JPG", np.full((30, 60, 3), 200, np.uint8))
    Image.new("L", (40, 20), 100).save(folder / "train" / "zebra" / "grey.bmp")
    Image.new("RGBA", (20, 40), (9, 9, 9, 9)).save(folder / "train" / "zebra" / "clear.webp")
    dataset = make("image_folder", tmp_path, folder="mine" if relative else str(folder), image_size=10)
    assert dataset.info().source == f"image tree in {folder} (BMP, JPEG, PNG, WebP)"
    data = checked(dataset)
    assert data.classes == ("ant", "zebra")
    assert data.train_labels.tolist() == [0] * 4 + [1] * 5  # 0000.JPG before 0000.png
    assert data.train_images.shape == (9, 10, 10, 3)
    read = whole(data.train_images)
    assert abs(read[0].astype(int) - 200).max() <= 1 and (read[-1] == 100).all()
    scaled = read / 255
    assert data.mean == pytest.approx(scaled.mean((0, 1, 2))) and data.std == pytest.approx(scaled.std((0, 1, 2)))


def test_all_that_is_wrong_with_the_classes_is_told_at_once(tmp_path: Path) -> None:
    write_tree(tmp_path / "mine", ["ant", "bee", "wasp"])
    for part, name in (("train", "bee"), ("train", "wasp"), ("test", "ant")):
        for path in (tmp_path / "mine" / part / name).iterdir():
            path.unlink()
    shutil.move(tmp_path / "mine" / "test" / "bee", tmp_path / "mine" / "test" / "moth")
    with pytest.raises(DataMissing) as caught:
        make("image_folder", tmp_path, folder="mine", image_size=8).info()
    train, test = tmp_path / "mine" / "train", tmp_path / "mine" / "test"
    words = str(caught.value).split("; ")
    assert [word for word in words if "put" not in word and "the classes" not in word] == [
        f"{train} has no image of 'bee', 'wasp'",
        f"{test} has the unknown class 'moth'",
        f"{test} lacks the class 'bee'",
        f"{test / 'ant'} has no image",
    ]


def test_image_folder_crops_the_middle(tmp_path: Path) -> None:
    image = pictures(1, 80)[0, :40]
    for part in ("train", "test"):
        save(tmp_path / part / "one" / "wide.png", image)
        save(tmp_path / part / "one" / "tall.png", image.transpose(1, 0, 2))
        save(tmp_path / part / "two" / "0.png", image)
    data = make("image_folder", tmp_path, folder=".", image_size=20).load()
    wide = Image.fromarray(image).resize((40, 20), Image.Resampling.BILINEAR).crop((10, 0, 30, 20))
    read = whole(data.train_images)
    assert (read[1] == np.asarray(wide)).all()
    one, other = read[:2].astype(int)
    assert abs(one - other.transpose(1, 0, 2)).max() <= 1, (
        "Pillow's kernels of rows and of columns may round differently"
    )


def test_a_constant_channel_can_be_normalised() -> None:
    mean, std = trees.mean_and_std(np.full((2, 4, 4, 3), 255, np.uint8))
    assert mean == (1.0,) * 3 and min(std) > 0


def test_image_folder_resizes_smoothly(tmp_path: Path) -> None:
    board = np.indices((40, 40)).sum(0)[..., None] % 2 * np.full(3, 255)  # without antialiasing: black, white or both
    for part in ("train", "test"):
        for name in ("one", "two"):
            save(tmp_path / part / name / "0.png", board.astype(np.uint8))
    data = make("image_folder", tmp_path, folder=".", image_size=10).load()
    assert abs(whole(data.train_images)[:, 1:-1, 1:-1].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        (".", None, "there is no folder"),
        ("train", None, "has no folder train/"),
        ("test", None, "has no folder test/"),
        ("test/ant", "test/ant/notes.txt", "ant has no image"),
        ("train/bee", "train/bee/notes.txt", "bee has no image"),
        ("test/bee", None, "lacks the class 'bee'"),
        (None, "test/wasp/0.png", "unknown class 'wasp'"),
    ],
)
def test_image_folder_errors(tmp_path: Path, remove: str | None, add: str | None, message: str) -> None:
    folder = tmp_path / "mine"
    write_tree(folder, ["ant", "bee"])
    if remove:
        shutil.rmtree(folder / remove)
    if add:
        (folder / add).parent.mkdir(exist_ok=True)
        (folder / add).touch()
    dataset = make("image_folder", tmp_path, folder="mine", image_size=8)
    for call in (dataset.info, dataset.load):
        with pytest.raises(DataMissing, match=message) as caught:
            call()
        assert str(folder) in str(caught.value)


def test_info_is_light_and_a_foreign_package_called_datasets_does_no_harm(tmp_path: Path) -> None:
    write_tree(tmp_path, cifar.CIFAR10.classes)
    archive(tmp_path, "cifar100")
    code = """
import sys, types
from pathlib import Path
sys.modules["datasets"] = foreign = types.ModuleType("datasets")
from harness.data.dataset import DataRoot, Dataset
from harness.registry import find
cases = {"digits": {}, "cifar10": {}, "cifar100": {}, "image_folder": {"folder": ".", "image_size": 8}}
for name, settings in cases.items():
    plugin = find("datasets", name, Dataset)
    info = plugin(plugin.Settings(**settings), DataRoot(Path(sys.argv[1]), False)).info()
    assert info.num_train > 0 and info.num_classes in (10, 100), info
heavy = {"torch", "torchvision", "sklearn", "PIL", "scipy", "pandas", "ray"} & set(sys.modules)
assert not heavy, heavy
assert sys.modules["datasets"] is foreign
"""
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=True,
    )
