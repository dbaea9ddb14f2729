"""CIFAR-10 and CIFAR-100, from the official python archive, a generated archive, or an image tree.

The official batches are pickles, and a pickle can run any command: each is read once, compared with its official
checksum, and only then unpickled. Nothing that lies beside it can make another one trusted.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar
from zipfile import BadZipFile

import numpy as np

from harness.data.dataset import Dataset, DatasetInfo, LoadedData, balanced
from harness.data.pixels import REPLACE, altered
from harness.errors import DataMissing, reason

from ._trees import Tree, class_names, decode, described, last_of_every, read_tree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

SUFFIXES = (".png", ".jpg", ".jpeg")
SIZE = 32
NUM_TRAIN, NUM_TEST = 50_000, 10_000
STALLED_SECONDS = 30.0
GENERATED = ("train_images", "train_labels", "test_images", "test_labels")
"""The arrays of a generated archive."""


@dataclass(frozen=True)
class Kind:
    """The differences between CIFAR-10 and CIFAR-100. MD5 sums are those of torchvision.datasets (a test compares)."""

    name: str
    title: str
    folder: str
    archive: str
    archive_md5: str
    train: dict[str, str]
    test: dict[str, str]
    labels: str
    """Key of the labels in a batch."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Kind(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    labels="labels",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),  # as in the code of LL4AL and DAST-AL
    std=(0.2023, 0.1994, 0.2010),
)
CIFAR100 = Kind(
    name="cifar100",
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels="fine_labels",
    classes=tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
        can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
        pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
        seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
        tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm
        """.split()  # noqa: SIM905 (as a list it would take a hundred lines)
    ),
    mean=(0.5071, 0.4867, 0.4408),  # as in the code of LL4AL
    std=(0.2675, 0.2565, 0.2761),
)
KINDS = {kind.name: kind for kind in (CIFAR10, CIFAR100)}


class Cifar(Dataset):
    """Base class of cifar10 and cifar100. The official archive comes before a generated one, and that before a tree."""

    kind: ClassVar[Kind]

    def info(self) -> DatasetInfo:
        """Return counts and shapes; check the files of an archive against their MD5 sums."""
        num_train, num_test, root = NUM_TRAIN, NUM_TEST, self._root
        notes: tuple[str, ...] = ()
        official = True
        if self._folder.is_dir():
            for name, md5 in (self.kind.train | self.kind.test).items():
                self._verified(self._folder / name, md5)
            source = f"official archive in {root}"
        elif self._archive.is_file():
            self._verified(self._archive, self.kind.archive_md5)
            source = f"official archive in {root}"
        elif self._generated.is_file():
            (_, train_labels), (_, test_labels) = self._read_generated()
            num_train, num_test = len(train_labels), len(test_labels)
            source, official = f"generated archive (not real images) in {root}", False
        elif folder := self._tree_folder():
            tree = self._tree(folder)
            num_train, num_test = len(tree.train_paths), len(tree.test_paths)
            source, notes, official = f"image tree in {folder} ({tree.formats})", tree.notes, False
        elif self.data_root.download and not self._is_renamed:
            source = f"official archive, to be downloaded to {root}"
        else:
            raise DataMissing(self._absent())
        return DatasetInfo(
            min(num_train, self.settings.limit or num_train),
            min(num_test, self.settings.test_limit or num_test),
            len(self.kind.classes),
            channels=3,
            size=(SIZE, SIZE),
            source=source,
            notes=notes,
            official=official,
        )

    def fetch(self) -> None:
        """Download or unpack the archive if needed. Its folder is either complete or absent."""
        found = self._archive.is_file()
        if self._folder.is_dir() or (not found and self._generated.is_file()) or self._tree_folder():
            return
        self.info()  # raises DataMissing if the archive is damaged, or if it is absent and must not be downloaded
        import socket
        from http.client import HTTPException

        from torchvision import datasets
        from torchvision.datasets import utils

        kind, default_timeout = self.kind, socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(STALLED_SECONDS)  # behind a firewall, torchvision would wait for minutes
            self._root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._root) as part:
                archive = self._archive
                if not found:
                    archive = Path(part, kind.archive)
                    utils.download_url(getattr(datasets, kind.name.upper()).url, part, archive.name, kind.archive_md5)
                self._unpack(archive, Path(part, kind.folder))
                Path(part, kind.folder).rename(self._folder)
        except (OSError, RuntimeError, HTTPException, tarfile.TarError, EOFError, zlib.error) as problem:
            if not self._folder.is_dir():  # if it exists, another process was faster
                verb = "unpacked" if found else "downloaded"
                raise DataMissing(f"{kind.title} could not be {verb} ({reason(problem)}): {self._advice}") from problem
        finally:
            socket.setdefaulttimeout(default_timeout)

    def load(self) -> LoadedData:
        """Return the images: those of an archive in its order, those of a tree sorted by class and name."""
        names: Sequence[str] = ()
        notes: list[str] = []
        if folder := self._tree_folder():
            tree = self._tree(folder)
            names = tree.names()
            images, test_images = decode((tree.train_paths, tree.test_paths), SIZE)
            train, test = (images, tree.train_labels), (test_images, tree.test_labels)
            notes = altered((tree.train_paths, tree.test_paths))
        else:
            self.fetch()
            if self._folder.is_dir():
                train, test = self._read(self.kind.train), self._read(self.kind.test)
            else:
                train, test = self._read_generated()
            train, test = _kept(*train, self.settings.limit), _kept(*test, self.settings.test_limit)
        return LoadedData(*train, *test, self.kind.classes, self.kind.mean, self.kind.std, names, tuple(notes))

    def examine(self) -> list[str]:
        """Decode all images of a tree; those of an archive are known."""
        return described(self._tree(folder), REPLACE, SIZE) if (folder := self._tree_folder()) else []

    @cached_property
    def _root(self) -> Path:
        """The folder above the official one: the data folder, its cifar10/, or its parent if it is the official one."""
        given, folder = self.data_root.root, self.kind.folder
        within = [given.parent if given.parts else Path("..")] if given.absolute().name == folder else []
        files = self.kind.archive, generated_name(self.kind.name)
        for root in (given, given / self.kind.name, *within):
            if (root / folder).is_dir() or any((root / name).is_file() for name in files):
                return root
        return given

    @property
    def _is_renamed(self) -> bool:
        """Whether the data folder is the official folder under another name."""
        return all((self.data_root.root / name).is_file() for name in (*self.kind.train, *self.kind.test))

    def _absent(self) -> str:
        """Return what to do, with what was seen of other versions of the data."""
        kind, root = self.kind, self.data_root.root
        if self._is_renamed:
            return (
                f"{root} holds the batches of {kind.title}, but is not called {kind.folder}: rename it, and give the "
                "folder above it (where.data)"
            )
        seen = ""
        for version, sign in (("binary", "*.bin"), ("Matlab", "*.mat")):
            if any(next(iter(folder.glob(sign)), None) for folder in (root, *root.glob("cifar*"))):
                seen = f" (the {version} version, which lies there, is not read)"
        return f"{kind.title} is not in {root}{seen}: {self._advice}, or set where.download: true"

    @property
    def _folder(self) -> Path:
        return self._root / self.kind.folder

    @property
    def _archive(self) -> Path:
        return self._root / self.kind.archive

    @property
    def _generated(self) -> Path:
        return self._root / generated_name(self.kind.name)

    @property
    def _advice(self) -> str:
        kind, root = self.kind, self.data_root.root
        return (
            f"get {kind.archive}, the python version on the home page of {kind.title}, and "
            f"put it into {root}, or PNG or JPEG images into {root / kind.name} as train/<class>/, test/<class>/"
        )

    def _tree_folder(self) -> Path | None:
        """Return the folder of the image tree, or None if there is no tree or the official files exist."""
        if self._folder.is_dir() or self._archive.is_file() or self._generated.is_file():
            return None
        below = self.data_root.root / self.kind.name
        if (below / "train").is_dir():
            return below
        parts = (self.data_root.root / "train", self.data_root.root / "test")
        return self.data_root.root if all(class_names(part) == self.kind.classes for part in parts) else None

    def _tree(self, folder: Path) -> Tree:
        tree = read_tree(folder, SUFFIXES, self.kind.classes)
        return tree.limited(self.settings.limit, self.settings.test_limit)

    def _verified(self, path: Path, md5: str) -> bytes:
        """Return the bytes of an official file. Raises DataMissing if its MD5 sum is another, or if it is missing."""
        if not path.is_file():
            raise DataMissing(f"{path} is missing: remove {path.parent} and unpack the archive again")
        content = path.read_bytes()
        if not _is_official(content, md5):
            raise DataMissing(
                f"{path} is not read, because its MD5 sum is not that of {self.kind.title}'s official file and a file "
                f"of unknown origin could run commands: remove {path if path == self._archive else path.parent} and "
                f"{self._advice}"
            )
        return content

    def _unpack(self, archive: Path, folder: Path) -> None:
        """Write the official batches of an archive into a new folder; no path that the archive names is used."""
        folder.mkdir()
        with tarfile.open(archive) as tar:
            for name, md5 in (self.kind.train | self.kind.test).items():
                try:
                    member = tar.extractfile(f"{self.kind.folder}/{name}")
                except KeyError:
                    member = None
                content = member.read() if member else b""
                if not _is_official(content, md5):
                    raise tarfile.TarError(f"{archive.name} does not hold the official {name}")
                (folder / name).write_bytes(content)

    def _read(self, names: dict[str, str]) -> Arrays:
        """Return the images and labels of official batches."""
        images, labels = [], []
        for name, md5 in names.items():
            # what is unpickled are the very bytes whose checksum is the official one
            batch = pickle.loads(self._verified(self._folder / name, md5), encoding="latin1")  # noqa: S301
            images.append(batch["data"].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))
            labels += batch[self.kind.labels]
        return np.concatenate(images), np.array(labels, dtype=np.int64)

    def _read_generated(self) -> tuple[Arrays, Arrays]:
        """Return the training and the test images of a generated archive, with labels. Raises DataMissing."""
        path, found = self._generated, {}
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = {name: stored[name] for name in GENERATED}
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error):
            pass
        for images, labels in (GENERATED[:2], GENERATED[2:]):
            if not (
                found
                and (found[images].dtype, found[labels].dtype, found[labels].ndim) == (np.uint8, np.int64, 1)
                and found[images].shape == (*found[labels].shape, SIZE, SIZE, 3)
                and set(np.unique(found[labels])) <= set(range(len(self.kind.classes)))
            ):
                raise DataMissing(f"{path} is damaged: remove it and generate the archive again")
        train, train_labels, test, test_labels = found.values()
        return (train, train_labels), (test, test_labels)


def _is_official(content: bytes, md5: str) -> bool:
    # MD5, because the official sums are; nobody can make another file with a given sum, only pairs of files with equal
    # sums. Without usedforsecurity=False, some systems forbid it
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


def _kept(images: NDArray[np.uint8], labels: NDArray[np.int64], limit: int | None) -> Arrays:
    """Return a class-balanced subset."""
    kept = balanced(labels, limit)
    return np.ascontiguousarray(images[kept]), labels[kept]


def generated_name(kind: str) -> str:
    """Return the name of the file that ``write_cifar_archive`` writes."""
    return f"{kind}_generated.npz"


def write_cifar_archive(root: Path, kind: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write generated images into a folder as an archive that the dataset reads in place of the official one.

    The kind is 'cifar10' or 'cifar100', images are [N, 32, 32, 3], and every sixth image of each class becomes a test
    image. Raises FileExistsError if there is one.
    """
    root.mkdir(parents=True, exist_ok=True)
    is_test = last_of_every(labels, 6)
    parts: Any = (images[~is_test], labels[~is_test], images[is_test], labels[is_test])
    with (root / generated_name(kind)).open("xb") as file:
        np.savez(file, **dict(zip(GENERATED, parts, strict=True)))
