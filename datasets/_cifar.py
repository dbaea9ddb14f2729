"""CIFAR-10 and CIFAR-100, from the official python archive, a generated archive in its format, or an image tree."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness.data.dataset import Dataset, DatasetInfo, LoadedData, balanced
from harness.errors import DataMissing
from harness.settings import Strict

from ._trees import Tree, class_names, decode, described, last_of_every, read_tree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

MARKER = "GENERATED"
SUFFIXES = (".png", ".jpg", ".jpeg")
SIZE = 32
NUM_TRAIN, NUM_TEST = 50_000, 10_000
STALLED_SECONDS = 30.0


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
    meta: dict[str, str]
    prefix: str
    """Prefix of the keys 'labels' and 'label_names' in the files."""
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
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    prefix="",
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
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    prefix="fine_",
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


class Marker(Strict):
    """The file GENERATED next to generated batches: their MD5 sums and counts."""

    note: str
    md5: dict[str, str]
    num_train: int
    num_test: int


class Cifar(Dataset):
    """Base class of cifar10 and cifar100. The official archive takes precedence over an image tree."""

    kind: ClassVar[Kind]

    def info(self) -> DatasetInfo:
        """Return counts and shapes; check the files of an archive against their MD5 sums."""
        num_train, num_test, root = NUM_TRAIN, NUM_TEST, self._root
        notes: tuple[str, ...] = ()
        if self._folder.is_dir():
            marker = self._checked()
            source = f"official archive in {root}"
            if marker is not None:
                num_train, num_test = marker.num_train, marker.num_test
                source = f"generated archive (not real images) in {root}"
        elif self._archive.is_file():
            _check(self._archive, self.kind.archive_md5)
            source = f"official archive in {root}"
        elif folder := self._tree_folder():
            tree = self._tree(folder)
            num_train, num_test = len(tree.train_paths), len(tree.test_paths)
            source, notes = f"image tree in {folder} ({tree.formats})", tree.notes
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
        )

    def fetch(self) -> None:
        """Download or unpack the archive if needed. Its folder is either complete or absent."""
        if self._folder.is_dir() or self._tree_folder():
            return
        self.info()  # raises DataMissing if the archive is damaged, or if it is absent and must not be downloaded
        import socket
        from http.client import HTTPException

        from torchvision import datasets
        from torchvision.datasets import utils

        verb = "unpacked" if self._archive.is_file() else "downloaded"
        default_timeout = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(STALLED_SECONDS)  # behind a firewall, torchvision would wait for minutes
            self._root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._root) as part:
                if self._archive.is_file():
                    utils.extract_archive(str(self._archive), part)
                else:
                    official = getattr(datasets, self.kind.name.upper())
                    utils.download_and_extract_archive(official.url, part, md5=self.kind.archive_md5)
                Path(part, self.kind.folder).rename(self._folder)
        except (OSError, RuntimeError, HTTPException) as problem:
            if not self._folder.is_dir():  # if it exists, another process was faster
                raise DataMissing(f"{self.kind.title} could not be {verb} ({problem}): {self._advice}") from problem
        finally:
            socket.setdefaulttimeout(default_timeout)

    def load(self) -> LoadedData:
        """Return the images: those of an archive in its order, those of a tree sorted by class and name."""
        if folder := self._tree_folder():
            tree = self._tree(folder)
            names = tree.names()
            train = decode(tree.train_paths, SIZE, resize=False), tree.train_labels
            test = decode(tree.test_paths, SIZE, resize=False), tree.test_labels
        else:
            names = ()
            self.fetch()
            marker = self._checked()
            train = self._read(True, marker, self.settings.limit)
            test = self._read(False, marker, self.settings.test_limit)
        return LoadedData(*train, *test, self.kind.classes, self.kind.mean, self.kind.std, names)

    def examine(self) -> list[str]:
        """Decode all images of a tree; those of an archive are known."""
        return described(self._tree(folder), "") if (folder := self._tree_folder()) else []

    @cached_property
    def _root(self) -> Path:
        """The folder above the official one: the data folder, its cifar10/, or its parent if it is the official one."""
        given, folder = self.data_root.root, self.kind.folder
        within = [given.parent if given.parts else Path("..")] if given.absolute().name == folder else []
        for root in (given, given / self.kind.name, *within):
            if (root / folder).is_dir() or (root / self.kind.archive).is_file():
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
    def _advice(self) -> str:
        kind, root = self.kind, self.data_root.root
        return (
            f"get {kind.archive}, the python version on the home page of {kind.title}, and "
            f"put it into {root}, or PNG or JPEG images into {root / kind.name} as train/<class>/, test/<class>/"
        )

    def _tree_folder(self) -> Path | None:
        """Return the folder of the image tree, or None if there is no tree or the official files exist."""
        if self._folder.is_dir() or self._archive.is_file():
            return None
        below = self.data_root.root / self.kind.name
        if (below / "train").is_dir():
            return below
        parts = (self.data_root.root / "train", self.data_root.root / "test")
        return self.data_root.root if all(class_names(part) == self.kind.classes for part in parts) else None

    def _tree(self, folder: Path) -> Tree:
        tree = read_tree(folder, SUFFIXES, self.kind.classes)
        return tree.limited(self.settings.limit, self.settings.test_limit)

    def _checked(self) -> Marker | None:
        """Return the marker if the batches are generated. Raises DataMissing if a file is missing or damaged."""
        marker = None
        md5 = self.kind.train | self.kind.test | self.kind.meta
        if (self._folder / MARKER).is_file():
            try:
                marker = Marker.model_validate_json((self._folder / MARKER).read_bytes())
            except ValueError as problem:
                raise DataMissing(f"{self._folder / MARKER} is damaged: generate the archive again") from problem
        for name in md5:
            _check(self._folder / name, marker.md5.get(name, "") if marker else md5[name])
        return marker

    def _read(self, is_train: bool, marker: Marker | None, limit: int | None) -> Arrays:
        from torchvision import datasets

        reader = getattr(datasets, self.kind.name.upper())
        if marker is not None:  # torchvision reads generated batches if it has their MD5 sums
            train, test = ([[name, marker.md5[name]] for name in part] for part in (self.kind.train, self.kind.test))
            meta = reader.meta | {"md5": marker.md5[reader.meta["filename"]]}
            reader = type(reader.__name__, (reader,), {"train_list": train, "test_list": test, "meta": meta})
        part = reader(self._root, train=is_train)
        labels = np.array(part.targets, dtype=np.int64)
        kept = balanced(labels, limit)
        return np.ascontiguousarray(part.data[kept]), labels[kept]


def _check(path: Path, md5: str) -> None:
    if not path.is_file():
        raise DataMissing(f"{path} is missing: remove {path.parent} and unpack the archive again")
    with path.open("rb") as file:
        # without usedforsecurity=False, some systems forbid MD5; here it only detects damage
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() != md5:
            raise DataMissing(f"{path} is damaged (its MD5 sum is wrong): remove it and get it again")


def write_cifar_archive(root: Path, kind: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write generated images in the format of CIFAR's unpacked archive, with a marker file.

    The kind is 'cifar10' or 'cifar100', images are [N, 32, 32, 3], and every sixth image of each class becomes a test
    image. Raises FileExistsError if the archive's folder exists.
    """
    about = KINDS[kind]
    folder = root / about.folder
    folder.mkdir(parents=True)
    is_test = last_of_every(labels, 6)
    contents: dict[str, dict[str, object]] = {}
    for names, kept in ((about.train, np.flatnonzero(~is_test)), (about.test, np.flatnonzero(is_test))):
        for name, part in zip(names, np.array_split(kept, len(names)), strict=True):
            rows = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)).reshape(len(part), -1)
            contents[name] = {"data": rows, f"{about.prefix}labels": labels[part].tolist()}
    for name in about.meta:
        contents[name] = {f"{about.prefix}label_names": list(about.classes)}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    marker = Marker(
        note="generated, not real images",
        md5={n: hashlib.md5((folder / n).read_bytes(), usedforsecurity=False).hexdigest() for n in contents},
        num_train=int((~is_test).sum()),
        num_test=int(is_test.sum()),
    )
    (folder / MARKER).write_text(marker.model_dump_json(indent=1))
